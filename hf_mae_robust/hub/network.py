"""Reading remote files: retries within a time limit, and no read that is shorter or longer than what was asked for.

huggingface_hub repeats a failed request 5 times by itself (about 25 seconds, with timeouts about 90; longer where the
server asks for it with Retry-After). What is repeated here is that as a whole, so a time limit is overrun by at most
one such attempt.
"""

import asyncio
import errno
import logging
import re
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from typing import TypeVar

import pyarrow as pa
import tenacity
from datasets.exceptions import DatasetNotFoundError, DatasetsError
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


def hub_dataset(url: str) -> str | None:
    match = re.match(r"hf://datasets/([^/@]+/[^/@]+)", url)
    return match and match[1]


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
