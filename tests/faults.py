"""Faults of trainings, in the processes that the tests start."""

import os
import signal
import time


def send(number: signal.Signals, step: int, rank: int = 0) -> str:
    """A fault: process `rank` gets a signal while it works on step `step` (from 0)."""
    return f"rank == {rank} and trainer.state.global_step == {step} and os.kill(os.getpid(), {int(number)})"


def install_fault() -> None:
    """FAULT of the environment is a Python expression of (trainer, rank), evaluated as each step begins."""
    from hf_mae_robust.training.trainer import ImageTrainer

    fault = eval(f"lambda trainer, rank: {os.environ['FAULT']}", {"os": os, "time": time})
    training_step, steps = ImageTrainer.training_step, set()

    def with_fault(trainer, *args, **kwargs):
        if trainer.state.global_step not in steps:
            steps.add(trainer.state.global_step)
            fault(trainer, trainer.args.process_index)
        return training_step(trainer, *args, **kwargs)

    ImageTrainer.training_step = with_fault
