"""Faults of trainings, in the processes that the tests start."""

import importlib
import os
import signal
import time
from collections.abc import Callable


def send(number: signal.Signals, step: int, rank: int = 0) -> str:
    """A fault: process `rank` gets a signal while it works on step `step` (from 0)."""
    return f"rank == {rank} and trainer.state.global_step == {step} and os.kill(os.getpid(), {int(number)})"


def install_fault() -> None:
    """FAULT of the environment is a Python expression. With FAULT_AT, the name of a function of ours, it is one of
    `rank`, evaluated when that function is called; without, of (trainer, rank), evaluated as each step begins."""
    if "FAULT_AT" in os.environ:
        return before(os.environ["FAULT_AT"], eval(f"lambda rank: {os.environ['FAULT']}", {"os": os, "time": time}))
    from hf_mae_robust.training.trainer import ImageTrainer

    fault = eval(f"lambda trainer, rank: {os.environ['FAULT']}", {"os": os, "time": time})
    training_step, steps = ImageTrainer.training_step, set()

    def with_fault(trainer, *args, **kwargs):
        if trainer.state.global_step not in steps:
            steps.add(trainer.state.global_step)
            fault(trainer, trainer.args.process_index)
        return training_step(trainer, *args, **kwargs)

    ImageTrainer.training_step = with_fault


def before(name: str, fault: Callable[[int], object]) -> None:
    """Call `fault` with the process's rank whenever the function `name` is called."""
    module, _, attribute = name.rpartition(".")
    owner = importlib.import_module(module)
    function = getattr(owner, attribute)

    def with_fault(*args, **kwargs):
        fault(int(os.environ.get("RANK", 0)))
        return function(*args, **kwargs)

    setattr(owner, attribute, with_fault)
