"""Real runs of the two scripts in processes of their own, which can be made to fail at a chosen step."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from tests.helpers import TINY_OVERRIDES

ROOT = Path(__file__).parents[1]

# A script with a fault: FAULT is a Python expression of (trainer, rank), evaluated as each step begins.
DRIVER = """
import importlib, os, signal, sys, time
from hf_mae_robust.training.trainer import ImageTrainer
main = importlib.import_module("hf_mae_robust." + os.environ["SCRIPT"]).main

fault = eval("lambda trainer, rank: " + os.environ["FAULT"])
training_step = ImageTrainer.training_step
steps = set()

def with_fault(trainer, *args, **kwargs):
    if trainer.state.global_step not in steps:
        steps.add(trainer.state.global_step)
        fault(trainer, trainer.args.process_index)
    return training_step(trainer, *args, **kwargs)

ImageTrainer.training_step = with_fault
main(sys.argv[1:])
"""


@dataclass
class Run:
    """What became of a run."""

    codes: list[int]
    output: str
    folder: Path

    def state(self) -> dict:
        return json.loads((self.folder / "trainer_state.json").read_text())

    def losses(self) -> list[tuple[int, float]]:
        return [(entry["step"], entry["loss"]) for entry in self.state()["log_history"] if "loss" in entry]

    def weights(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()


def send(number: signal.Signals, step: int, rank: int = 0) -> str:
    """A fault: process `rank` gets a signal while it works on step `step` (from 0)."""
    return f"rank == {rank} and trainer.state.global_step == {step} and os.kill(os.getpid(), {int(number)})"


def environment(**settings: str) -> dict[str, str]:
    hidden = {"ACCELERATE_", "TORCHELASTIC", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_"}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(tuple(hidden))}
    return {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _environments(processes: int, fault: str, script: str) -> list[dict[str, str]]:
    """As SLURM would start them: one command each, told by environment variables who it is."""
    port, found = free_port(), []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        settings = {key: str(value) for key, value in place.items()} if processes > 1 else {}
        found.append(environment(FAULT=fault, SCRIPT=script, **settings))
    return found


def start(words: list[str], fault: str) -> subprocess.Popen:
    """A pre-training in one process, whose output can be read while it runs."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *words],
        env=_environments(1, fault, "pretrain")[0],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


# Forks of one process that has imported everything: most of the time of a tiny run would be imports.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["hf_mae_robust.pretrain", "hf_mae_robust.finetune"])


def _become(words: list[str], settings: dict[str, str], output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.clear()
    os.environ.update(settings)
    os.chdir(ROOT)
    threadpool_limits(1)
    torch.set_num_threads(1)
    sys.argv = ["run", *words]
    exec(DRIVER, {"__name__": "__main__"})


def run(words: list[str], folder: Path, processes: int = 1, fault: str = "None", script: str = "pretrain") -> Run:
    """One run to its end, or to what `fault` makes of it. script: the module whose `main` is called, "pretrain" or
    "finetune"."""
    words, outputs = [*words, "--output_dir", str(folder)], []
    started = []
    for rank, settings in enumerate(_environments(processes, fault, script)):
        outputs.append(folder.with_name(f"{folder.name}-output-{rank}.txt"))
        outputs[-1].unlink(missing_ok=True)
        started.append(_PROCESSES.Process(target=_become, args=(words, settings, outputs[-1])))
        started[-1].start()
    try:
        for process in started:
            process.join(240)
        codes = [process.exitcode for process in started]
        assert None not in codes, f"{folder} has not ended: {codes}"
    finally:
        for process in started:
            process.kill()
    return Run(codes, "\n".join(path.read_text() for path in outputs), folder)


def tiny_run(dataset: Path, *words: str) -> list[str]:
    """Flags of a run of a tiny model that logs every step."""
    settings = {
        "dataset_name": dataset,
        "config_overrides": TINY_OVERRIDES,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "report_to": "none",
        "crop_pct": 1.0,
        "save_strategy": "no",
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)] + list(words)
