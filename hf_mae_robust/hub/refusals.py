"""A Hub that refuses, in a sentence: what it means, and what to do."""

from collections.abc import Mapping
from json import JSONDecodeError
from typing import Any

from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import (
    GatedRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .faults import chain, is_transient, public, root_of, status_of

_NO_SUCH_DATASET = (
    "The Hub has no such data set, or it is private or gated and the token does not open it: check the name; accept "
    "the terms on {page} if there are any; run `hf auth login` or give --token."
)
_ACCEPT_TERMS = "accept the terms on {page}, then run `hf auth login` or give that account's token with --token."
_LOGIN = "log in with `hf auth login`, or give another token"
_ANOTHER_ANSWER = "the Hub answered {status} for {name}{answer}"

# Kind of refusal (see `_kind`) -> sentence. A kind that is missing leaves it to the error to speak for itself.
# {name}: id on the Hub. {page}: address of a data set. {status}: of HTTP. {answer}, {says}: what the Hub says, if
# anything. {error}: the message, {type}: the class of the error.
DATASET = {
    "no token": f"The data set is gated, and a token is needed: {_ACCEPT_TERMS}",
    "no access": f"The data set is gated, and this account has no access: {_ACCEPT_TERMS}",
    "no revision": "The Hub has no such revision of the data set: check --dataset_revision.",
    "not shown": _NO_SUCH_DATASET,
    "not found": _NO_SUCH_DATASET,
    "401": "The server does not accept the token: run `hf auth login` or give a valid one with --token.",
    "403": "Access is refused: accept the terms on {page} if there are any, and check what --token may read.",
    "404": "The server has no such file.",
    "another answer": "The server answers {status}.",
}
# Of a model that is read or pushed; the caller says what was being done.
MODEL = {
    "no token": f"{{name}} is gated: accept its terms on its page on the Hub, and {_LOGIN}",
    "no access": f"{{name}} is gated: accept its terms on its page on the Hub, and {_LOGIN}",
    "no revision": "{name} has no such revision",
    "not shown": f"the Hub knows no such token, or {{name}} cannot be seen without one: {_LOGIN}",
    "not found": f"{{name}} is not on the Hub, or is private and not to be seen with this token: {_LOGIN}",
    "401": f"the Hub knows no such token, or {{name}} cannot be seen without one: {_LOGIN}",
    "403": f"this token has no right to write to {{name}}, or to see it{{says}}: {_LOGIN}",
    "404": _ANOTHER_ANSWER,
    "another answer": _ANOTHER_ANSWER,
    "busy": "the Hub answered {status} for {name}, also when asked again; it may be busy: try later",
    "offline": "offline mode is on: unset HF_HUB_OFFLINE",
    "wrong": "{error}",
    "unreachable": "the Hub cannot be reached for {name} ({type}): try later",
}


def refusal(error: BaseException, name: str | None = None, sentences: Mapping[str, str] = DATASET) -> str | None:
    """What a Hub that refuses means, and what to do, in a sentence without the token.

    Args:
        name: id on the Hub. sentences: DATASET, or MODEL.

    Returns None for what `sentences` does not know; MODEL has a sentence for everything.
    """
    causes: list[tuple[Any, BaseException]] = []
    causes += [("wrong", error)] if isinstance(error, ValueError) and not isinstance(error, JSONDecodeError) else []
    causes += [(_kind(cause), cause) for cause in chain(error)]
    causes += [("unreachable", root_of(error))]
    for kind, cause in causes:
        if kind in sentences:
            answer = public(getattr(cause, "server_message", None) or "")
            return sentences[kind].format(
                name=name,
                page=f"https://huggingface.co/datasets/{name}" if name else "its page",
                status=status_of(cause),
                answer=f" ({answer})" if answer else "",
                says=f" (the Hub says: {answer})" if answer else "",
                error=public(cause).rstrip("."),
                type=type(cause).__name__,
            )
    return None


def _kind(error: BaseException) -> str | None:
    status, text = status_of(error), str(error)
    # datasets loses the error of huggingface_hub on the way.
    is_lost = isinstance(error, DatasetNotFoundError)
    if isinstance(error, GatedRepoError) or (is_lost and "is a gated dataset" in text):
        return "no access" if status == 403 or "ask for access" in text else "no token"
    if isinstance(error, RevisionNotFoundError) or (is_lost and text.startswith("Revision ")):
        return "no revision"
    if isinstance(error, RepositoryNotFoundError) or is_lost:
        return "not shown" if status == 401 else "not found"
    if isinstance(error, OfflineModeIsEnabled):
        return "offline"
    if status is None:
        return None
    if is_transient(error):
        return "busy"
    return str(status) if status in (401, 403, 404) else "another answer"
