"""Requests that are tried again where the network or the Hub fails for a while.

huggingface_hub repeats a failed request 5 times by itself (about 25 seconds, with timeouts about 90; longer where the
server asks for it with Retry-After). All of that together is repeated here, so a time limit is overrun by at most
one such attempt.
"""

import logging
import socket
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import tenacity
from huggingface_hub import constants

from ..errors import DataError
from .faults import describe, is_transient, public, root_of
from .refusals import refusal

logger = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_SECONDS = 300.0
NO_ADDRESS = "this machine does not find its address (no network?)"
LONGEST_WAIT = 30.0


def hub_has_no_address() -> bool:
    """Whether this machine cannot find out where the Hub is, as one without a network; behind a proxy nobody asks."""
    if getproxies() or constants.HF_HUB_OFFLINE:
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def retrying(
    *,
    seconds: float | None = None,
    attempts: int | None = None,
    what: str | None = None,
    counts_attempts: bool = True,
    expects_json: bool = False,
) -> tenacity.Retrying:
    """How everything is tried again: after transient errors, with growing random waits of 1, 2, 4, ... seconds. It is
    called with a function, or decorates one with `.wraps`; what the last attempt raises comes through.

    Args:
        seconds: for how long; the last attempt begins then. 0: a single attempt.
        attempts: in place of `seconds`, the number of attempts, at most.
        what: for warnings about failed attempts, such as "Reading FILE"; None: no warnings.
        counts_attempts: whether the attempts themselves count towards `seconds`. Not for a download, which may go well
            for hours, and continues where it was.
        expects_json: as of `is_transient`.
    """
    limit = float("inf") if seconds is None else seconds
    first = min(1.0, limit / 16)  # a short limit is for several attempts, too
    backoff = tenacity.wait_exponential_jitter(initial=first, max=LONGEST_WAIT, jitter=first)

    def spent(state: tenacity.RetryCallState) -> float:
        return (state.seconds_since_start or 0.0) if counts_attempts else state.idle_for

    def log(state: Any) -> None:  # `RetryCallState`, whose outcome and next action are there by now
        if what is not None and state.attempt_number & (state.attempt_number - 1) == 0:  # 1, 2, 4, 8, ...
            logger.warning(
                "%s: attempt %d failed (%s). Trying again in %.1f s; %.0f of %.0f s are spent.",
                public(what), state.attempt_number, describe(root_of(state.outcome.exception())),
                state.next_action.sleep, spent(state), limit,
            )  # fmt: skip

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: is_transient(error, expects_json)),
        stop=lambda state: spent(state) >= limit or state.attempt_number == attempts,
        wait=lambda state: max(0.0, min(backoff(state), limit - spent(state))),
        before_sleep=log,
        reraise=True,
    )


def retry(
    what: str,
    attempt: Callable[[], T],
    seconds: float = RETRY_SECONDS,
    dataset: str | None = None,
    counts_attempts: bool = True,
) -> T:
    """`attempt()`, which reads something of a data set; tried again as `retrying` says.

    Args:
        what: for messages, such as "Reading FILE".
        dataset: its id on the Hub, for messages.

    Raises:
        DataError: transient errors all the time, or the server refuses (at once). What else `attempt` raises goes
            through.
    """
    trying = retrying(seconds=seconds, what=what, counts_attempts=counts_attempts)
    try:
        return trying(attempt)
    except DataError:
        raise
    except Exception as error:
        if is_transient(error):
            passed, attempts = trying.statistics["delay_since_first_attempt"], trying.statistics["attempt_number"]
            raise DataError(
                f"{public(what)} failed for {passed:.0f} s, {attempts} attempt(s); the last error: "
                f"{describe(root_of(error))}. Look at the connection and at https://status.huggingface.co, then start "
                "again; --dataset_retry_seconds sets for how long to try."
            ) from error
        reason = refusal(error, dataset)
        if reason is None:
            raise
        raise DataError(f"{public(what)}: {reason} ({describe(error)})") from error
