"""Every error that a user can meet, and the exit code of the scripts for it."""

import signal


class DataError(ValueError):
    """The data set cannot be used as asked; the message says what was found and what to change."""


class HubError(RuntimeError):
    """A finished model could not be uploaded; the message says why, and how to do it later."""


class ImageDecodingError(ValueError):
    """An image of the data set cannot be decoded. The message says which row and why.

    Attributes:
        kind: one of KINDS.
        detail: path, if there is one, and reason; at most 200 characters, and the same in every process.
    """

    def __init__(self, message: str, kind: str = "corrupt", detail: str = ""):
        # Between processes an exception travels as its class, `args` and `__dict__`; `args` has to be the message.
        super().__init__(message)
        self.kind, self.detail = kind, detail


class InputError(Exception):
    """Something the user can mend; the message says how."""


class SavingError(OSError):
    """A checkpoint could not be written; the message says why and which one is the newest complete one."""


class CheckpointError(ValueError):
    """A checkpoint cannot be resumed from; the message says which and why."""


class NonFiniteError(ArithmeticError):
    """The loss or the gradient became NaN or infinite; the message says in which step, and what was saved."""


# What a run ends with that was asked to stop and can go on: EX_TEMPFAIL of sysexits.h, "try again later".
EXIT_STOPPED = 75


class StopRequested(Exception):
    """Training ended because of a signal, after a checkpoint was written."""

    def __init__(self, signal_number: int, step: int, checkpoint: str):
        super().__init__(signal_number, step, checkpoint)
        self.signal_name = signal.Signals(signal_number).name
        self.step, self.checkpoint = step, checkpoint

    def __str__(self) -> str:
        return f"Stopped by {self.signal_name} after step {self.step}; {self.checkpoint} holds everything up to there"


EXIT_CODES = {InputError: 2, NonFiniteError: 3, SavingError: 4, HubError: 5}


class StudyError(RuntimeError):
    """Runs of a study failed; the others are finished."""
