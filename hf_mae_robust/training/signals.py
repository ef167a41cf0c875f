"""SIGTERM and SIGINT from the first line of a command to its last: remembered, or answered at once."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..errors import StopOutsideTraining

NUMBERS = (signal.SIGTERM, signal.SIGINT)
# torchrun and `accelerate launch` pass a signal on that a terminal or a scheduler has sent to all processes already:
# what comes twice within this time came once.
ECHO_SECONDS = 2.0


class Signals:
    """The signals of this process. Where the program does not answer them (`answered`), they do what they always do.

    Attributes:
        received: number of the first signal; 0: none came.
    """

    def __init__(self) -> None:
        self.received, self.received_at = 0, 0.0
        self._former: dict[int, Any] = {}
        self._depth, self._at_once = 0, False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave_to_parent)

    @contextmanager
    def answered(self) -> Iterator["Signals"]:
        """While entered, the first signal is remembered, and a second one ends the process at once. Within another
        `answered`, what was received stays. Does nothing outside the main thread, where Python allows no handlers."""
        if self._depth == 0 and threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._handle) for number in NUMBERS}
            if hasattr(signal, "pthread_sigmask"):  # the scripts block SIGTERM until now; Windows has none
                signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
        self._depth += 1
        try:
            yield self
        finally:
            self._depth -= 1
            if self._depth == 0:
                for number, handler in self._former.items():
                    signal.signal(number, handler)
                self._former, self.received = {}, 0

    @contextmanager
    def at_once(self, wanted: bool = True) -> Iterator[None]:
        """While entered, a signal (also one that came before) raises StopOutsideTraining instead of being remembered,
        where `answered` is entered. For code on which no other process waits. wanted: False to remember again."""
        former, self._at_once = self._at_once, wanted
        try:
            if wanted:
                self.check()
            yield
        finally:
            self._at_once = former

    def check(self) -> None:
        """Raises StopOutsideTraining where a signal was received. Other processes do not learn of it."""
        if self.received and self._depth:
            raise StopOutsideTraining(signal.Signals(self.received).name)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if "TORCHELASTIC_RUN_ID" not in os.environ or time.monotonic() - self.received_at > ECHO_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.received, self.received_at = number, time.monotonic()
        if self._at_once:
            self.check()
        elif os.environ.get("RANK", "0") == "0":
            # Not print: the signal may have come in the middle of one.
            text = f"\n{signal.Signals(number).name}: stopping as soon as the run can be resumed; again: at once.\n"
            os.write(2, text.encode())

    def _leave_to_parent(self) -> None:
        """In a fork, such as a process that decodes images: SIGTERM ends it, and of SIGINT the parent takes care."""
        if self._former:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)


SIGNALS = Signals()
