"""Retries and verified reads, with file systems that fail on demand and a clock that does not have to run."""

import errno
import io
import logging
import threading
import time
from types import SimpleNamespace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tenacity
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_mae_robust.data.parquet import open_parquet, parquet_errors
from hf_mae_robust.data.remote_file import UnexpectedLengthError, VerifiedFile
from hf_mae_robust.errors import DataError
from hf_mae_robust.hub import network as remote
from hf_mae_robust.hub.network import (
    ClientError,
    describe,
    is_transient,
    public,
    refusal,
    retry,
)


def refused(status: int, kind=HfHubHTTPError) -> HfHubHTTPError:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} Client Error.\n\nat https://huggingface.co/x?sig=abc", response=response)


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def masked(error: Exception, context: Exception) -> Exception:
    """`raise error from None`, which is how datasets hides what happened."""
    error.__context__, error.__suppress_context__ = context, True
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError("read timed out"), True),
        (ConnectionResetError("reset"), True),
        (BrokenPipeError(), True),
        (OSError("of some file system"), True),
        (UnexpectedLengthError("3 came"), True),
        (HTTPError("server disconnected"), True),
        (ClientError("not enough data"), True),
        *[(refused(status), True) for status in (408, 429, 500, 502, 503, 504)],
        (masked(FileNotFoundError("no data file"), chained(LocalEntryNotFoundError("?"), HTTPError("reset"))), True),
        *[(refused(status), False) for status in (400, 401, 403, 404, 416)],
        (refused(403, GatedRepoError), False),
        (refused(404, RevisionNotFoundError), False),
        (FileNotFoundError("gone"), False),
        (chained(FileNotFoundError("repository not found"), refused(401, RepositoryNotFoundError)), False),
        (chained(LocalEntryNotFoundError("?"), OfflineModeIsEnabled("offline")), False),
        (PermissionError("no"), False),
        (IsADirectoryError("folder"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (DatasetNotFoundError("no such"), False),
        (chained(DatasetGenerationError("bad file"), OSError("Corrupt")), False),
        (pa.ArrowInvalid("magic bytes"), False),
        (ValueError("a bug"), False),
    ],
    ids=lambda value: describe(value)[:40] if isinstance(value, Exception) else None,
)
def test_what_is_worth_another_try(monkeypatch, error, expected):
    monkeypatch.setattr(remote.constants, "HF_HUB_OFFLINE", False)
    assert is_transient(error) is expected


def test_offline_nothing_is_tried_again(monkeypatch):
    monkeypatch.setattr(remote.constants, "HF_HUB_OFFLINE", True)
    assert not is_transient(ConnectionError("Couldn't reach the Hub: OfflineModeIsEnabled"))


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


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refused(401, GatedRepoError), "gated, and a token is needed"),
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub. You must be authenticated"), "is needed"),
        (DatasetNotFoundError("'a/b' is a gated dataset on the Hub. Visit ... to ask for access."), "has no access"),
        (refused(404, RevisionNotFoundError), "no such revision"),
        (DatasetNotFoundError("Revision 'v2' doesn't exist for dataset 'a/b' on the Hub."), "no such revision"),
        (refused(401, RepositoryNotFoundError), "no such data set"),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed."), "no such data set"),
        (refused(401), "does not accept the token"),
        (refused(403), "Access is refused"),
        (refused(404), "no such file"),
        (refused(400), "answers 400"),
    ],
)
def test_refusals_say_what_to_do(error, words):
    assert words in refusal(error, "a/b")
    assert words in refusal(chained(OSError("wrapped"), error), "a/b")


def test_messages_hold_no_secrets_and_no_line_breaks():
    text = "GET https://cdn.example/a/b.parquet?X-Amz-Signature=abc&Expires=1 failed\n Bearer abc.def hf_secretSecret"
    assert public(text) == "GET https://cdn.example/a/b.parquet failed *** ***"
    assert public("s3://key:secret@host/x") == "s3://host/x"
    assert public(f"hf://datasets/a/b@{'0' * 40}/x.parquet") == f"hf://datasets/a/b@{'0' * 40}/x.parquet"
    assert len(describe(OSError("x" * 999))) == 400


# Faults of a file system whose files forget nothing but what they are told to.


class FlakyFile(io.BytesIO):
    """Bytes of a memory file; the faults in `FlakyFileSystem.faults` are used up one a read."""

    def __init__(self, content: bytes):
        super().__init__(content)
        self.size = len(content)

    def read(self, size=-1):
        FlakyFileSystem.reads.append((self.tell(), size))
        fault = FlakyFileSystem.faults.pop(0) if FlakyFileSystem.faults else None
        if isinstance(fault, Exception):
            raise fault
        data = super().read(size)
        return fault(data, self.getvalue()) if fault else data


class FlakyFileSystem(MemoryFileSystem):
    protocol = "flaky"
    store, pseudo_dirs = {}, [""]
    faults, reads, opened, sizes = [], [], [], []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _open(self, path, mode="rb", **options):
        if mode != "rb":
            return super()._open(path, mode, **options)
        self.opened.append(options.get("cache_type"))
        fault = self.faults.pop(0) if self.faults and self.faults[0] == "open" else None
        if fault:
            raise ConnectionRefusedError("no connection")
        if path not in self.store:
            raise FileNotFoundError(path)
        file = FlakyFile(self.store[path].getvalue())
        file.size = self.sizes.pop(0) if self.sizes else file.size
        return file


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)
    for name in ("faults", "reads", "opened", "sizes"):
        monkeypatch.setattr(FlakyFileSystem, name, [])
    monkeypatch.setattr(FlakyFileSystem, "store", {})
    fsspec.filesystem("flaky").pipe_file("/data", bytes(range(200)))
    return FlakyFileSystem


def half(data, whole):
    return data[: len(data) // 2]


def everything(data, whole):
    return whole


@pytest.mark.parametrize(
    "fault",
    [half, everything, lambda data, whole: b"", TimeoutError("slow"), ConnectionResetError(), ValueError("no Range")],
)
def test_a_read_that_goes_wrong_is_done_again(flaky, fault):
    file = VerifiedFile("flaky://data", retry_seconds=60)
    flaky.faults[:] = [fault, fault]
    file.seek(10)
    assert file.read(20) == bytes(range(10, 30)) and file.tell() == 30
    assert flaky.reads == [(10, 20)] * 3
    assert flaky.opened == ["none"] * 3  # once, and again after each failure
    assert file.read(5) == bytes(range(30, 35))


def test_reads_that_stay_wrong_end_in_a_sentence(flaky):
    file = VerifiedFile("flaky://data", retry_seconds=0.2)
    flaky.faults[:] = [half] * 10**5
    with pytest.raises(DataError, match=r"Reading bytes 0-19 of flaky://data .*20 bytes were asked for, 10 came"):
        file.read(20)
    flaky.faults[:] = [PermissionError("403")]
    with pytest.raises(DataError, match="Reading bytes 0-19 of flaky://data: PermissionError"):
        file.read(20)
    assert not flaky.faults and file.tell() == 0


def test_opening_is_tried_again_and_a_missing_file_is_told_at_once(flaky):
    flaky.faults[:] = ["open", "open"]
    assert VerifiedFile("flaky://data", retry_seconds=60).read(3) == bytes(range(3))
    with pytest.raises(DataError, match="Opening flaky://nothing: FileNotFoundError"):
        VerifiedFile("flaky://nothing", retry_seconds=60)
    assert len(flaky.opened) == 4


def test_a_file_that_changes_or_does_not_tell_its_size_is_refused(flaky):
    file = VerifiedFile("flaky://data", retry_seconds=60)
    flaky.faults[:], flaky.sizes[:] = [TimeoutError()], [150]
    with pytest.raises(DataError, match="has changed: it had 200 bytes and now has 150"):
        file.read(20)


def test_it_behaves_as_a_file(flaky):
    file = VerifiedFile("flaky://data")
    assert file.readable() and file.seekable() and not file.writable() and not file.closed
    assert file.seek(0, io.SEEK_END) == 200 and file.read() == b"" and file.read(5) == b""
    assert file.seek(-4, io.SEEK_END) == 196 and file.read(100) == bytes(range(196, 200))
    assert file.seek(1) == 1 and file.seek(2, io.SEEK_CUR) == 3
    buffer = bytearray(4)
    assert file.readinto(buffer) == 4 and buffer == bytes(range(3, 7))
    file.seek(190)
    assert file.read() == bytes(range(190, 200)) and file.readall() == b""
    with pytest.raises(ValueError):
        file.seek(-1)
    file.close()
    assert file.closed
    with pytest.raises(ValueError):
        file.read(1)
    assert io.BufferedReader(VerifiedFile("flaky://data")).read(7) == bytes(range(7))


@pytest.fixture
def table():
    return pa.table({"image": [np.random.default_rng(i).bytes(500) for i in range(40)], "label": list(range(40))})


@pytest.mark.parametrize("where", ["path", "file://", "memory://", "flaky://"])
def test_parquet_at_any_address(flaky, table, tmp_path, where):
    url = f"{where}{tmp_path / 'x.parquet'}" if where == "file://" else f"{where}x.parquet"
    url = str(tmp_path / "x.parquet") if where == "path" else url
    with fsspec.open(url, "wb") as file:
        pq.write_table(table, file, row_group_size=10)
    flaky.faults[:] = [half, TimeoutError(), everything] if where == "flaky://" else []
    file = open_parquet(url, retry_seconds=60)
    flaky.faults += [half, ConnectionResetError()] if where == "flaky://" else []
    rows = [file.read_row_group(i, columns=["image"]).column("image").to_pylist() for i in range(4)]
    assert sum(rows, []) == table.column("image").to_pylist() and not flaky.faults
    assert len(flaky.opened) in (0, 5)  # a whole file for a whole file is right


def test_parquet_of_a_file_system_that_fails_ends_in_a_sentence(flaky, table):
    """Through pyarrow's threads."""
    with fsspec.open("flaky://x.parquet", "wb") as file:
        pq.write_table(table, file, row_group_size=10)
    file = open_parquet("flaky://x.parquet", retry_seconds=0.1)
    flaky.faults[:] = [half] * 10**5
    with pytest.raises(DataError, match="bytes were asked for"), parquet_errors("Row group 1 of x"):
        file.read_row_group(1)
    flaky.faults.clear()
    assert file.read_row_group(1).num_rows == 10


@pytest.mark.parametrize("content", [b"", b"<html>", bytes(5000), b"PAR1" + bytes(500) + b"PAR1"])
@pytest.mark.parametrize("where", ["flaky://", "path"])
def test_what_is_no_parquet_is_named(flaky, tmp_path, content, where):
    url = str(tmp_path / "x.parquet") if where == "path" else "flaky://x.parquet"
    with fsspec.open(url, "wb") as file:
        file.write(content)
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as Parquet \((Arrow|OSError)"):
        open_parquet(url)


def test_threads_may_share_a_file_system(flaky):
    """As the footers of many files are read."""
    flaky.faults[:] = [half, TimeoutError()] * 8
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(VerifiedFile("flaky://data", retry_seconds=60).read()))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [bytes(range(200))] * 16
