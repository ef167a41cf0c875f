"""What an error of the network is: whether it may pass, what is behind it, and how to show it."""

import asyncio
import errno
import re
from collections.abc import Iterator
from json import JSONDecodeError

import pyarrow as pa
from datasets.exceptions import DatasetsError
from huggingface_hub import constants

# HTTPError is that of httpx or httpx2, whichever this version of huggingface_hub uses.
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

try:
    from aiohttp import ClientError  # what fsspec raises for http:// and others, where it is installed
except ImportError:

    class ClientError(Exception):  # type: ignore[no-redef]  # stands in for it
        """Nothing raises it."""


# Trouble of this machine, which waiting does not cure.
_LOCAL_TROUBLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it. `raise ... from None` hides the context, but does not remove it."""
    seen = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def root_of(error: BaseException) -> BaseException:
    """What decides. huggingface_hub and datasets raise FileNotFoundError where the network failed, too, and
    RuntimeError where a large file could not be uploaded; then the fault of the network is among what led to it."""
    for cause in chain(error):
        is_wrapper = type(cause) is RuntimeError or isinstance(cause, FileNotFoundError)
        if status_of(cause) is not None or not is_wrapper or isinstance(cause, DatasetsError):
            return cause
    return error


def status_of(error: BaseException) -> int | None:
    """HTTP status of an error of huggingface_hub or aiohttp."""
    response = getattr(error, "response", None) if isinstance(error, HTTPError) else None
    status = getattr(response, "status_code", None) or (isinstance(error, ClientError) and getattr(error, "status", 0))
    return status or None


def is_transient(error: BaseException, expects_json: bool = False) -> bool:
    """Whether waiting may help: timeouts, broken connections, HTTP 408, 425, 429 and 5xx, reads of a wrong length.

    Not: 401, 403, 404 and other answers of a server that works, files that are not there, a full disk.

    expects_json: of a request that the Hub answers with JSON. A page of HTML in its place is a busy server's; anywhere
    else, JSON that cannot be parsed is a broken file.
    """
    cause = root_of(error)
    if isinstance(cause, JSONDecodeError):
        return expects_json
    if (status := status_of(cause)) is not None:
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
