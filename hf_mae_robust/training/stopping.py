"""Stopping on SIGTERM and SIGINT: every process at the same step, with a checkpoint."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import StopRequested
from .checkpoints import checkpoint_of_step

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# torchrun and `accelerate launch` pass a signal on that a terminal or a scheduler has sent to the whole group already:
# what comes twice within this time came once.
ECHO_SECONDS = 2.0


class StopSignals:
    """While entered: the first SIGTERM or SIGINT is remembered, a second one ends the process at once.

    `agreed()` is for all processes to call at the same points; they all get the same answer, whichever of them got
    the signal.
    """

    def __init__(self) -> None:
        self.received = 0
        self.received_at = 0.0
        self._former: dict[int, Any] = {}
        self._group: Any = None

    def __enter__(self) -> "StopSignals":
        self.received = 0
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._handle) for number in SIGNALS}
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1 and self._group is None:
            # On the CPU: asking a GPU would make it wait for the step to end.
            self._group = dist.new_group(backend="gloo")
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self.received_at = number, time.monotonic()
        elif "TORCHELASTIC_RUN_ID" not in os.environ or time.monotonic() - self.received_at > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def agreed(self) -> int:
        """The signal to stop for, 0 for none; the same in every process."""
        if self._group is None:
            return self.received
        number = torch.tensor(self.received)
        dist.all_reduce(number, dist.ReduceOp.MAX, group=self._group)
        return int(number)


class StopOnSignal(TrainerCallback):
    """Ends a training after SIGTERM or SIGINT: after the step, in all processes, with a checkpoint instead of the
    evaluation that was due. Raises StopRequested.

    `signals` is for the trainer to enter around the training. Within an evaluation it has to ask `is_asked_for` itself,
    and save, and `end`: an event can ask for a checkpoint between steps only.
    """

    def __init__(self) -> None:
        self.signals = StopSignals()
        self.number = 0

    def is_asked_for(self) -> bool:
        """To be called by all processes at the same points."""
        self.number = self.signals.agreed()
        return self.number != 0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.is_asked_for():
            control.should_evaluate, control.should_save = False, True

    on_epoch_end = on_step_end

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.number:
            self.end(args, state)

    def end(self, args: TrainingArguments, state: TrainerState) -> None:
        raise StopRequested(
            self.number, state.global_step, str(checkpoint_of_step(str(args.output_dir), state.global_step))
        )
