"""Every error that a user can meet, and the exit code of the scripts and commands for it."""

import errno
import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError


class UserError(ValueError):
    """Something that the user can change: a flag, a file, a model, the data. The message says what was found and what
    to change. An error that is neither of this class nor one of those below is a bug of this package.

    Attributes:
        exit_code: what the scripts end with.
    """

    exit_code = 2


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder does not exist."""

    __str__ = Exception.__str__  # not OSError's, which looks for a number and a name


class ExistingFileError(UserError, FileExistsError):
    """There is a file or a folder already where one was to be written."""

    __str__ = Exception.__str__


class DataError(UserError):
    """The data set cannot be used as asked; the message says what was found and what to change."""


class HubError(RuntimeError):
    """A finished model could not be uploaded; the message says why, and how to do it later."""

    exit_code = 5


class ImageDecodingError(UserError):
    """An image of the data set cannot be decoded. The message says which row and why.

    Attributes:
        kind: one of KINDS.
        detail: path, if there is one, and reason; at most 200 characters, and the same in every process.
        path: all of it; "" where there is none.
    """

    def __init__(self, message: str, kind: str = "corrupt", detail: str = "", path: str = ""):
        # Between processes an exception travels as its class, `args` and `__dict__`; `args` has to be the message.
        super().__init__(message)
        self.kind, self.detail, self.path = kind, detail, path


class SavingError(OSError):
    """A checkpoint could not be written; the message says why and which one is the newest complete one."""

    exit_code = 4


class CheckpointError(UserError):
    """A checkpoint cannot be resumed from; the message says which and why."""


class NonFiniteError(ArithmeticError):
    """The loss or the gradient became NaN or infinite; the message says in which step, and what was saved."""

    exit_code = 3


class LostProcessError(RuntimeError):
    """Another process of the run ended or does not answer; the message says which one. Checkpoints are complete."""

    exit_code = 6


# Exit code of a run that was asked to stop and can resume: EX_TEMPFAIL of sysexits.h, "try again later".
EXIT_STOPPED = 75


class StopRequested(Exception):
    """Training ended because of a signal, after a checkpoint was written."""

    def __init__(self, signal_number: int, step: int, checkpoint: str):
        super().__init__(signal_number, step, checkpoint)
        self.signal_name = signal.Signals(signal_number).name
        self.step, self.checkpoint = step, checkpoint

    def __str__(self) -> str:
        return f"Stopped by {self.signal_name} after step {self.step}; {self.checkpoint} holds everything up to there"


class StopOutsideTraining(KeyboardInterrupt):
    """A signal ended a run before its first step or after its last. The message is the name of the signal.

    It is a KeyboardInterrupt, and not an Exception, so that libraries let it through.
    """


# Errors that end a script in one sentence; subclasses as their class.
EXIT_CODES = {kind: kind.exit_code for kind in (UserError, NonFiniteError, SavingError, HubError, LostProcessError)}
# Exit code of a script that met a bug of this package.
EXIT_BUG = 1


class StudyError(RuntimeError):
    """Runs of a study failed; the others are finished."""


def sentence_of(error: BaseException) -> str:
    """The message. From a worker process it comes at the end of a traceback, which is left out."""
    message = str(error).strip()
    if "Traceback (most recent call last)" in message:
        return message.splitlines()[-1].split(f"{type(error).__name__}: ", 1)[-1]
    return message


# How libraries refuse the values or files they were given.
_REFUSALS = (
    ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError, OSError, EOFError, AssertionError,
    ZeroDivisionError, pickle.PickleError, SafetensorError, StrictDataclassError,
)  # fmt: skip


@contextmanager
def refused_by_library(what: str) -> Iterator[None]:
    """Around a call of a library that is handed a user's values: what it raises for them becomes a UserError that
    begins with `what`, such as "--optim_args a=1". Keep it around that call alone; our own errors pass through."""
    try:
        yield
    except tuple(EXIT_CODES):
        raise
    except _REFUSALS as error:
        name = type(error).__name__
        is_bare = isinstance(error, LookupError | AttributeError | TypeError | AssertionError)
        text = f"{name}: {error}" if is_bare else str(error)
        raise UserError(f"{what}: {' '.join(text.split()) or name}") from error


# What the system says of a place, and no code can mend: full, not to be written, failing.
_PLACES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG)


def fault_of_place(error: BaseException) -> UserError | None:
    """The same as an error of the user's, where a disk is full, or a file cannot be read or written."""
    if not isinstance(error, OSError) or error.errno not in _PLACES:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return UserError(f"{place}{error.strerror}. Make room, change the permissions, or name another place.")
