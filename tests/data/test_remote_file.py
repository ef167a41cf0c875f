"""Verified reads, with a file system that fails on demand."""

import io
import threading

import pytest

from hf_mae_robust.data.remote_file import VerifiedFile
from hf_mae_robust.errors import DataError
from tests.flaky_files import everything, half


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
