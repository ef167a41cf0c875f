"""Noticing that a run was launched with fewer processes than were asked for."""

import logging
import os
import sys
from pathlib import Path
from typing import cast

import psutil

from .arguments import ImageTrainingArguments

logger = logging.getLogger(__name__)


def check_launch(training: ImageTrainingArguments) -> None:
    """Say so where one process runs though several were meant, and keep that one to a single GPU."""
    if training.world_size > 1:
        return
    script = Path(sys.argv[0]).name or "run_pretrain.py"
    if training.n_gpu > 1:
        logger.warning(
            "%d GPUs are visible, but one process was started; it uses one GPU. For all of them: "
            "accelerate launch --multi_gpu --num_processes %d %s ...",
            training.n_gpu,
            training.n_gpu,
            script,
        )
        # Otherwise the Trainer would split each batch among threads (torch.nn.DataParallel).
        training._n_gpu = 1
    if "ACCELERATE_MIXED_PRECISION" in os.environ and (wanted := _processes_asked_for()) > 1:
        logger.warning(
            "accelerate launch was asked for %d processes and started one, as it does on a CPU. "
            "Use: torchrun --nproc_per_node %d %s ...",
            wanted,
            wanted,
            script,
        )


def _processes_asked_for() -> int:
    """--num_processes of the `accelerate launch` that started this process; 1 where it cannot be told."""
    try:
        words = cast(psutil.Process, psutil.Process().parent()).cmdline()
    except (psutil.Error, AttributeError):
        return 1
    for i, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or (words[i + 1] if i + 1 < len(words) else "")
            return int(value) if value.isdigit() else 1
    return 1
