"""The Hugging Face Hub: models from it at one commit, and sentences for what goes wrong there."""

from collections.abc import Callable, Sequence
from json import JSONDecodeError
from pathlib import Path

import tenacity
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .remote import is_transient, public

# All that loading a model reads; repositories often hold the weights in other forms too.
_CONFIGURATION = ["*.json", "*.py"]
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
_OLD_WEIGHTS = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


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


class HubError(RuntimeError):
    """A finished model could not be uploaded; the message says why, and how to do it later."""


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


def _is_hub_id(name: str) -> bool:
    return not Path(name).exists() and not name.startswith((".", "/", "~")) and name.count("/") <= 1


def local_model(name: str, revision: str | None, token: str | None) -> tuple[str, str | None]:
    """A model of the Hub -> the folder it was downloaded to, whole, and its commit. All of it is of this commit, also
    when the branch moves meanwhile. Anything else, and whatever offline mode does not find in the cache, is returned as
    it is, with None.

    Args:
        name: folder, file, or Hub id. revision: branch, tag or commit; None: main. token: None: the one logged in with.

    Raises ValueError where the Hub has no such model or revision, refuses it, or cannot be reached.
    """
    if not _is_hub_id(name):
        if revision is not None:
            raise ValueError(f"--model_revision {revision}: {name} is no model on the Hub.")
        return name, None
    try:
        folder = _download(name, revision, token, [*_CONFIGURATION, *_WEIGHTS])
        if not any(Path(folder).glob("*.safetensors")):
            folder = _download(name, revision, token, [*_CONFIGURATION, *_OLD_WEIGHTS])
    except HFValidationError:
        return name, None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise ValueError(f"{name} cannot be loaded: {reason_of(error.__cause__, name)}.") from error
        return name, None
    except (HTTPError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise ValueError(f"{name}{at} cannot be loaded: {reason_of(error, name)}.") from error
    return folder, Path(folder).name


# What is complete already is not downloaded again, and the rest goes on where it was.
@patient(attempts=6)
def _download(name: str, revision: str | None, token: str | None, patterns: Sequence[str]) -> str:
    return snapshot_download(name, revision=revision, token=token, allow_patterns=list(patterns))
