"""Retries, with a clock that does not have to run."""

import logging
import time
from types import SimpleNamespace

import pytest
import tenacity
from huggingface_hub.errors import GatedRepoError

from hf_mae_robust.errors import DataError
from hf_mae_robust.hub.network import retry, retrying
from tests.hub.errors import refused


@pytest.fixture
def clock(monkeypatch):
    """Time that passes in sleeps only; `slept` lists them."""
    state = SimpleNamespace(now=1000.0, slept=[])

    def sleep(seconds):
        state.now += seconds
        state.slept.append(seconds)

    monkeypatch.setattr(tenacity.nap.time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: state.now)
    return state


def failing(times: int, error: Exception, calls: list, clock=None, seconds=0.0):
    def attempt():
        calls.append(1)
        if clock:
            clock.now += seconds
        if len(calls) <= times:
            raise error
        return "data"

    return attempt


def test_waits_grow_and_stay_within_the_limit(clock, caplog):
    calls = []
    with caplog.at_level(logging.WARNING, "hf_mae_robust"):
        assert retry("Reading x", failing(6, TimeoutError("slow"), calls), 300) == "data"
    assert len(calls) == 7 and all(2**i <= wait <= 2**i + 1 for i, wait in enumerate(clock.slept[:5]))
    assert max(clock.slept) <= 30
    # The 1st, 2nd and 4th failure are told.
    assert [record.getMessage().split(" failed (")[0] for record in caplog.records] == [
        f"Reading x: attempt {n}" for n in (1, 2, 4)
    ]
    assert "TimeoutError: slow" in caplog.text and "Trying again in" in caplog.text


@pytest.mark.parametrize("seconds", [0.0, 4.0, 60.0, 300.0])
def test_it_ends_with_the_limit(clock, seconds):
    calls = []
    started = clock.now
    with pytest.raises(DataError) as caught:
        retry("Reading x", failing(10**6, ConnectionResetError("reset by peer"), calls), seconds)
    assert clock.now - started == pytest.approx(seconds)
    message = str(caught.value)
    assert f"Reading x failed for {seconds:.0f} s, {len(calls)} attempt(s)" in message
    assert "ConnectionResetError: reset by peer" in message and "--dataset_retry_seconds" in message
    assert len(calls) == 1 if seconds == 0 else len(calls) >= 4
    assert isinstance(caught.value.__cause__, ConnectionResetError)


def test_slow_attempts_count_except_those_of_a_download(clock):
    calls = []
    with pytest.raises(DataError, match="failed for 80 s, 1 attempt"):
        retry("x", failing(9, TimeoutError(), calls, clock, 80), 60)
    calls.clear()
    assert retry("x", failing(3, TimeoutError(), calls, clock, 3600), 60, counts_attempts=False) == "data"
    calls.clear()
    with pytest.raises(DataError, match="failed for"):
        retry("x", failing(10**6, TimeoutError(), calls, clock, 10), 60, counts_attempts=False)
    assert len(calls) < 20


def test_what_stays_wrong_is_tried_once(clock):
    for error, expected in ((ValueError("bug"), ValueError), (FileNotFoundError("gone"), FileNotFoundError)):
        calls = []
        with pytest.raises(expected):
            retry("x", failing(9, error, calls), 60)
        assert len(calls) == 1
    with pytest.raises(
        DataError, match=r"The data set is gated.*no access.*huggingface.co/datasets/a/b.*hf auth login"
    ):
        retry("--dataset_name a/b", failing(9, refused(403, GatedRepoError), []), 60, "a/b")
    with pytest.raises(KeyboardInterrupt):
        retry("x", failing(9, KeyboardInterrupt(), []), 60)
    assert not clock.slept


def test_a_number_of_attempts_is_a_limit_too(clock, caplog):
    calls = []
    assert retrying(attempts=4)(failing(3, refused(503), calls)) == "data"
    assert len(calls) == 4 and all(2**i <= wait <= 2**i + 1 for i, wait in enumerate(clock.slept))
    calls.clear()
    error = TimeoutError("slow")
    with pytest.raises(TimeoutError) as caught:
        retrying(attempts=4).wraps(failing(9, error, calls))()
    assert len(calls) == 4 and caught.value is error and not caplog.records
    calls.clear()
    with pytest.raises(FileNotFoundError):
        retrying(attempts=4)(failing(9, FileNotFoundError("gone"), calls))
    assert len(calls) == 1
