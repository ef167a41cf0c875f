"""Reading remote files: retries within a time limit, and no read that is shorter or longer than what was asked for.

huggingface_hub repeats a failed request 5 times by itself (about 25 seconds, with timeouts about 90; longer where the
server asks for it with Retry-After). What is repeated here is that as a whole, so a time limit is overrun by at most
one such attempt.
"""

import asyncio
import errno
import io
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import tenacity
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol
from huggingface_hub import constants

# HTTPError is that of httpx or httpx2, whichever this version of huggingface_hub uses.
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import DataError

try:
    from aiohttp import ClientError  # what fsspec raises for http:// and others, where it is installed
except ImportError:

    class ClientError(Exception):
        """Nothing raises it."""


logger = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_SECONDS = 300.0
LONGEST_WAIT = 30.0
# Trouble of this machine, which waiting does not cure.
_LOCAL_TROUBLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


class UnexpectedLengthError(OSError):
    """A read gave fewer or more bytes than were asked for."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it. `raise ... from None` hides the context, but does not remove it."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _root(error: BaseException) -> BaseException:
    """What decides. huggingface_hub and datasets raise FileNotFoundError where the network failed, too; then that is
    among what led to it."""
    for cause in _chain(error):
        if _status(cause) is not None or not isinstance(cause, FileNotFoundError) or isinstance(cause, DatasetsError):
            return cause
    return error


def _status(error: BaseException) -> int | None:
    """HTTP status of an error of huggingface_hub or aiohttp."""
    response = getattr(error, "response", None) if isinstance(error, HTTPError) else None
    status = getattr(response, "status_code", None) or (isinstance(error, ClientError) and getattr(error, "status", 0))
    return status or None


def is_transient(error: BaseException) -> bool:
    """Whether waiting may help: timeouts, broken connections, HTTP 408, 425, 429 and 5xx, reads of a wrong length.

    Not: 401, 403, 404 and other answers of a server that works, files that are not there, a full disk.
    """
    cause = _root(error)
    if (status := _status(cause)) is not None:
        return status in (408, 425, 429) or status >= 500
    if isinstance(
        cause, OfflineModeIsEnabled | DatasetsError | FileNotFoundError | PermissionError | pa.ArrowException
    ):
        return False
    if type(cause) is ConnectionError and constants.HF_HUB_OFFLINE:
        return False  # datasets raises it in place of OfflineModeIsEnabled
    if isinstance(cause, OSError):
        return cause.errno not in _LOCAL_TROUBLE and not isinstance(cause, IsADirectoryError | NotADirectoryError)
    return isinstance(cause, HTTPError | ClientError | TimeoutError | asyncio.TimeoutError)


def public(text: object) -> str:
    """One line for messages: without tokens, passwords and the query part of URLs, where signatures stand."""
    text = " ".join(str(text).split())
    text = re.sub(r"(\w+://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text)
    text = re.sub(r"(\w+://)[^\s/@'\"]+:[^\s/@'\"]+@", r"\1", text)
    return re.sub(r"\bhf_\w+|(?i:\bBearer \S+)", "***", text)


def describe(error: BaseException) -> str:
    """`Type: message` in one line of at most 400 characters."""
    text = f"{type(error).__name__}: {public(error)}".rstrip(" .:")
    return text if len(text) <= 400 else f"{text[:397]}..."


def refusal(error: BaseException, dataset: str | None = None) -> str | None:
    """What a Hub that refuses means, and what to do; None for other errors. dataset: its id, for the link."""
    page = f"https://huggingface.co/datasets/{dataset}" if dataset else "its page"
    for cause in _chain(error):
        status, text = _status(cause), str(cause)
        # datasets loses the error of huggingface_hub on the way.
        lost = isinstance(cause, DatasetNotFoundError)
        if isinstance(cause, GatedRepoError) or (lost and "is a gated dataset" in text):
            lack = "this account has no access" if status == 403 or "ask for access" in text else "a token is needed"
            return (
                f"The data set is gated, and {lack}: "
                f"accept the terms on {page}, then run `hf auth login` or give that account's token with --token."
            )
        if isinstance(cause, RevisionNotFoundError) or (lost and text.startswith("Revision ")):
            return "The Hub has no such revision of the data set: check --dataset_revision."
        if isinstance(cause, RepositoryNotFoundError) or lost:
            return (
                "The Hub has no such data set, or it is private or gated and the token does not open it: check the "
                f"name; accept the terms on {page} if there are any; run `hf auth login` or give --token."
            )
        if status == 401:
            return "The server does not accept the token: run `hf auth login` or give a valid one with --token."
        if status == 403:
            return f"Access is refused: accept the terms on {page} if there are any, and check what --token may read."
        if status == 404:
            return "The server has no such file."
        if status is not None and not is_transient(cause):
            return f"The server answers {status}."
    return None


def retry(
    what: str,
    attempt: Callable[[], T],
    seconds: float = RETRY_SECONDS,
    dataset: str | None = None,
    counts_attempts: bool = True,
) -> T:
    """`attempt()`, repeated after transient errors with growing random waits until `seconds` have passed; the last
    attempt begins then. 0: a single attempt.

    Args:
        what: for messages, such as "Reading FILE".
        dataset: its id on the Hub, for messages.
        counts_attempts: whether the attempts themselves count towards `seconds`. Not for a download, which may go well
            for hours, and goes on where it was.

    Raises:
        DataError: transient errors all the time, or the server refuses (at once). What else `attempt` raises goes
            through.
    """
    first = min(1.0, seconds / 16)  # a short limit is for several attempts, too
    backoff = tenacity.wait_exponential_jitter(initial=first, max=LONGEST_WAIT, jitter=first)

    def spent(state: tenacity.RetryCallState) -> float:
        return state.seconds_since_start if counts_attempts else state.idle_for

    def log(state: tenacity.RetryCallState) -> None:
        if state.attempt_number & (state.attempt_number - 1) == 0:  # 1, 2, 4, 8, ...
            logger.warning(
                "%s: attempt %d failed (%s). Trying again in %.1f s; %.0f of %.0f s are spent.",
                public(what), state.attempt_number, describe(_root(state.outcome.exception())), state.next_action.sleep,
                spent(state), seconds,
            )  # fmt: skip

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=lambda state: spent(state) >= seconds,
        wait=lambda state: max(0.0, min(backoff(state), seconds - spent(state))),
        before_sleep=log,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except DataError:
        raise
    except Exception as error:
        if is_transient(error):
            passed, attempts = retrying.statistics["delay_since_first_attempt"], retrying.statistics["attempt_number"]
            raise DataError(
                f"{public(what)} failed for {passed:.0f} s, {attempts} attempt(s); the last error: "
                f"{describe(_root(error))}. Look at the connection and at https://status.huggingface.co, then start "
                "again; --dataset_retry_seconds sets for how long to try."
            ) from error
        reason = refusal(error, dataset)
        if reason is None:
            raise
        raise DataError(f"{public(what)}: {reason} ({describe(error)})") from error


def _hub_dataset(url: str) -> str | None:
    match = re.match(r"hf://datasets/([^/@]+/[^/@]+)", url)
    return match and match[1]


class VerifiedFile(io.RawIOBase):
    """A read-only, seekable file at any URL of fsspec. Every `read` gives exactly the bytes that the file has there:
    reads of another length (a server that ignores Range, a body cut short) count as errors, and errors are retried.

    One file may be used by several threads that agree on its position, as pyarrow's do.

    Raises DataError where the file cannot be read for `retry_seconds`, is not there, or may not be read.
    """

    def __init__(self, url: str, token: str | None = None, retry_seconds: float = RETRY_SECONDS):
        super().__init__()
        self.url, self._token, self._retry_seconds = url, token, retry_seconds
        self._lock, self._file, self._position, self._size = threading.RLock(), None, 0, None
        with self._lock:
            self._retry(f"Opening {url}", self._opened)

    def _retry(self, what: str, attempt: Callable[[], T]) -> T:
        try:
            return retry(what, attempt, self._retry_seconds, _hub_dataset(self.url))
        except OSError as error:  # not transient, such as a file that is gone
            raise DataError(f"{public(what)}: {describe(error)}") from error

    def _opened(self) -> io.IOBase:
        if self._file is None:
            options = {"token": self._token} if self._token and get_protocol(self.url) == "hf" else {}
            fs, path = url_to_fs(self.url, **options)
            file = fs.open(path, "rb", cache_type="none")
            size = getattr(file, "size", None)
            if not isinstance(size, int):  # such as a method of that name, or a file of fsspec's memory
                size = fs.info(path)["size"]
            if size is None:
                raise DataError(f"{public(self.url)}: the server does not tell the size, which random access needs.")
            if self._size not in (None, size):
                raise DataError(f"{public(self.url)} has changed: it had {self._size:,} bytes and now has {size:,}.")
            self._file, self._size = file, size
        return self._file

    def _fetch(self, start: int, length: int) -> bytes:
        file = self._opened()
        try:
            file.seek(start)
            data = file.read(length)
            if len(data) != length:
                raise UnexpectedLengthError(f"{length:,} bytes were asked for, {len(data):,} came")
            return data
        except ValueError as error:  # fsspec's http, of a server that ignores Range
            self._file = None
            raise UnexpectedLengthError(str(error)) from error
        except Exception:
            self._file = None  # whatever state it is in
            raise

    def read(self, size: int | None = -1) -> bytes:
        with self._lock:
            if self.closed:
                raise ValueError("I/O operation on closed file.")
            rest = max(self._size - self._position, 0)
            length = rest if size is None or size < 0 else min(size, rest)
            if length == 0:
                return b""
            start = self._position
            what = f"Reading bytes {start}-{start + length - 1} of {self.url}"
            data = self._retry(what, lambda: self._fetch(start, length))
            self._position += length
            return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._lock:
            position = offset + (0, self._position, self._size)[whence]
            if position < 0:
                raise ValueError(f"Cannot seek to {position}.")
            self._position = position
            return position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        file, self._file = getattr(self, "_file", None), None
        if file is not None and not self.closed:
            file.close()
        super().close()


@contextmanager
def parquet_errors(what: str) -> Iterator[None]:
    """Turn what pyarrow raises for files that are damaged or no Parquet into DataError. what: file and place."""
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{public(what)} cannot be read as Parquet ({describe(error)}). If the file is damaged, fetch or write it "
            "again."
        ) from error


def open_parquet(url: str, token: str | None = None, retry_seconds: float = RETRY_SECONDS) -> pq.ParquetFile:
    """A Parquet file at a path or any URL of fsspec; remote ones as `VerifiedFile`. Raises DataError."""
    with parquet_errors(url):
        is_local = get_protocol(url) in ("file", "local")
        source = LocalFileSystem._strip_protocol(url) if is_local else VerifiedFile(url, token, retry_seconds)
        return pq.ParquetFile(source, pre_buffer=True)


def patient(attempts: int) -> Callable:
    """Decorates what is to be tried again, after 1, 2, 4, ... s, where the network or the Hub fails for a while."""

    def may_pass(error: BaseException) -> bool:
        # A page of HTML comes where a busy server should have sent JSON.
        return isinstance(error, JSONDecodeError) or is_transient(request_that_failed(error))

    return tenacity.retry(
        retry=tenacity.retry_if_exception(may_pass),
        stop=tenacity.stop_after_attempt(attempts),
        wait=tenacity.wait_exponential(max=16),
        reraise=True,
    )


def request_that_failed(error: BaseException) -> BaseException:
    """What led to `error` at the Hub; large files that fail come as a RuntimeError with the request as its cause."""
    cause = error
    while cause is not None:
        if isinstance(cause, HTTPError):
            return cause
        cause = cause.__cause__
    return error


def reason_of(error: BaseException, repo_id: str) -> str:
    """What a failed request means, and what to do, in a sentence without the token."""
    if isinstance(error, ValueError) and not isinstance(error, JSONDecodeError):
        return public(error).rstrip(".")  # found wrong before a request, or in its answer, as a card's metadata
    error = request_that_failed(error)
    login = "log in with `hf auth login`, or give another token"
    status = getattr(getattr(error, "response", None), "status_code", None)
    answer = public(getattr(error, "server_message", None) or "")
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on: unset HF_HUB_OFFLINE"
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated: accept its terms on its page on the Hub, and {login}"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision"
    if status == 401:
        return f"the Hub knows no such token, or {repo_id} cannot be seen without one: {login}"
    if status == 403:
        said = f" (the Hub says: {answer})" if answer else ""
        return f"this token has no right to write to {repo_id}, or to see it{said}: {login}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo_id} is not on the Hub, or is private and not to be seen with this token: {login}"
    if status is not None and not is_transient(error):
        return f"the Hub answered {status} for {repo_id}{f' ({answer})' if answer else ''}"
    if status is not None:
        return f"the Hub answered {status} for {repo_id}, also when asked again; it may be busy: try later"
    return f"the Hub cannot be reached for {repo_id} ({type(error).__name__}): try later"
