"""Stopping on SIGTERM and SIGINT: every process at the same point, in training with a checkpoint."""

import signal
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..errors import StopOutsideTraining, StopRequested
from .checkpoints import checkpoint_of_step
from .peers import control_group
from .signals import SIGNALS


def agreed_signal() -> int:
    """The signal to stop for, 0 for none; the same in every process, whichever of them got it. For all processes to
    call at the same points."""
    group = control_group()
    if group is None:
        return SIGNALS.received
    number = torch.tensor(SIGNALS.received)
    dist.all_reduce(number, dist.ReduceOp.MAX, group=group)
    return int(number)


def stop_if_asked() -> None:
    """Between the parts of a preparation, for all processes to call at the same points: raises StopOutsideTraining in
    all of them where one got a signal."""
    if number := agreed_signal():
        raise StopOutsideTraining(signal.Signals(number).name)


class StopOnSignal(TrainerCallback, ExportableState):
    """Ends a training after SIGTERM or SIGINT: after the step, in all processes, with a checkpoint instead of the
    evaluation that was due, which the checkpoint notes for the resume. Raises StopRequested.

    `SIGNALS.answered()` is for the trainer to enter around the training. Within an evaluation it has to ask
    `is_asked_for` itself, and save, and `end`: an event can ask for a checkpoint between steps only.
    """

    def __init__(self) -> None:
        self.number, self.evaluation_due = 0, False

    def state(self) -> dict[str, Any]:
        """As the Trainer writes it into a checkpoint; see `Resuming`."""
        return {"args": {}, "attributes": {"evaluation_due": self.evaluation_due}}

    def is_asked_for(self, args: TrainingArguments, evaluation_due: bool) -> bool:
        """To be called by all processes at the same points. evaluation_due: at this step, or just begun."""
        self.number = agreed_signal()
        if self.number:
            self.evaluation_due = evaluation_due
            args.save_only_model = False  # the run is to be resumed from this checkpoint
        return self.number != 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.is_asked_for(args, control.should_evaluate):
            control.should_evaluate, control.should_save = False, True

    on_epoch_end = on_step_end

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.number:
            self.end(args, state)

    def end(self, args: TrainingArguments, state: TrainerState) -> None:
        raise StopRequested(
            self.number, state.global_step, str(checkpoint_of_step(str(args.output_dir), state.global_step))
        )
