"""Parquet files at any address, and how often they are read."""

from types import SimpleNamespace

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_mae_robust.data import parquet
from hf_mae_robust.data.loaders import training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.order import NUM_SLOTS, epoch_batches
from hf_mae_robust.data.parquet import ParquetRows, open_parquet, parquet_errors
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from tests.flaky_files import everything, half
from tests.helpers import write_parquet_set


def identity(image):
    return image


@pytest.fixture(scope="module")
def parquet_set(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 60, "validation": 14})


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


def test_streamed_rows_read_each_row_group_few_times(parquet_set, monkeypatch):
    train, _ = open_splits(DataLocation(str(parquet_set), dataset_streaming=True), buffer_size=16)
    reads = []
    original = ParquetRows._read
    monkeypatch.setattr(ParquetRows, "_read", lambda self, group: reads.append(group) or original(self, group))
    list(training_loader(train, identity, 3, batch_size=5, seed=1, rank=0, world_size=1, buffer_size=16))
    assert len(reads) <= 1.5 * len(set(reads))


def test_a_damaged_file_is_named_with_the_row_group(tmp_path):
    folder = write_parquet_set(tmp_path / "set", {"train": 20}, files=1)
    (path,) = (folder / "data").iterdir()
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)
    train, _ = open_splits(DataLocation(str(folder), dataset_streaming=True))
    with pytest.raises(DataError, match=r"Row group 0 of .*train-00000-of-00001\.parquet cannot be read as Parquet"):
        train.rows[0]
    assert train.rows[19]["bytes"]


# Row groups as files on the Hub have them: of CIFAR-10, and of photos.
CIFAR = ([1000] * 6 + [250]) * 8
PHOTOS = [1000, 281] * 100


def count_reads(monkeypatch, groups: list[int], num_workers: int, buffer_size: int) -> tuple[int, int]:
    """Reads of row groups in an epoch of one rank by all its workers, one worker after the other; and the most rows
    that they hold together."""
    batches = epoch_batches(groups, epoch=0, rank=0, world_size=1, batch_size=64, seed=42, buffer_size=buffer_size)
    worker = SimpleNamespace(num_workers=num_workers) if num_workers else None
    monkeypatch.setattr(parquet, "get_worker_info", lambda: worker)
    reads, most_held = [], 0
    for first in range(max(num_workers, 1)):  # a loader hands out batches in turn
        rows = ParquetRows([("file", i, n) for i, n in enumerate(groups)], "image", None, buffer_size)

        def read(group, rows=rows):
            reads.append(group)
            start = int(rows.ends[group]) - groups[group]
            return range(start, start + groups[group]), None

        rows._read, held = read, 0
        for batch in batches[first :: max(num_workers, 1)].tolist():
            assert [rows[row] for row in batch] == batch
            held = max(held, rows.num_held)
        assert rows.num_held == sum(groups[group] for group in rows.rows)
        most_held += held
    return len(reads), most_held


@pytest.mark.parametrize("num_workers", [0, 4, 8, 16])
@pytest.mark.parametrize("buffer_size", [1024, 8192, 32768])
@pytest.mark.parametrize("groups", [CIFAR, PHOTOS], ids=["cifar", "photos"])
def test_row_groups_are_read_about_once_whatever_their_sizes(monkeypatch, groups, buffer_size, num_workers):
    reads, held = count_reads(monkeypatch, groups, num_workers, buffer_size)
    assert reads <= 1.3 * len(groups)
    assert held <= buffer_size + 2 * NUM_SLOTS * max(groups)


def test_a_number_of_workers_that_does_not_divide_the_slots_keeps_what_each_of_them_reads(monkeypatch):
    reads, _ = count_reads(monkeypatch, CIFAR, 12, 8192)
    assert reads <= 4 * len(CIFAR)  # three workers read each slot


def test_workers_start_with_nothing_held():
    rows = ParquetRows([("file", 0, 3)], "image", None, 16)
    rows._read = lambda group: (list("abc"), None)
    assert (rows[1], rows.num_held) == ("b", 3)
    state = rows.__getstate__()
    assert not state["rows"] and state["num_held"] == 0
