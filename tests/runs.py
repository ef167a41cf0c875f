"""Real runs of the two scripts in processes of their own, which can be made to fail at a chosen step."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import TINY_OVERRIDES

ROOT = Path(__file__).parents[1]

# A script with a fault: FAULT is a Python expression of (trainer, rank), evaluated as each step begins.
DRIVER = """
import importlib, os, signal, sys, time
from hf_mae_robust.image_trainer import ImageTrainer
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


def processes_of(
    words: list[str], processes: int, fault: str = "None", script: str = "pretrain"
) -> list[subprocess.Popen]:
    """Start the processes of a run as SLURM would: one command each, told by environment variables who it is. script:
    the module whose `main` is called, "pretrain" or "finetune"."""
    port, started = free_port(), []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        settings = {key: str(value) for key, value in place.items()} if processes > 1 else {}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, *words],
                env=environment(FAULT=fault, SCRIPT=script, **settings),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
            )
        )
    return started


def run(words: list[str], folder: Path, processes: int = 1, fault: str = "None", script: str = "pretrain") -> Run:
    """One run to its end, or to what `fault` makes of it."""
    started = processes_of([*words, "--output_dir", str(folder)], processes, fault, script)
    try:
        outputs = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return Run([process.returncode for process in started], "\n".join(outputs), folder)


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
