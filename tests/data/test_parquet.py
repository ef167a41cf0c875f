"""Rows of Parquet files: which file they are in, and how often they are read."""

import pickle
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_mae_robust.data import parquet
from hf_mae_robust.data.loaders import training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.order import NUM_SLOTS, epoch_batches
from hf_mae_robust.data.parquet import Counted, ParquetRowGroups, ParquetRows
from hf_mae_robust.data.source import DataLocation, digest
from hf_mae_robust.errors import DataError
from tests.helpers import write_parquet_set


def identity(image):
    return image


@pytest.fixture(scope="module")
def parquet_set(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 60, "validation": 14})


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
        rows = ParquetRows(ParquetRowGroups(["file"], [len(groups)], groups), "image", buffer_size)

        def read(group, rows=rows):
            reads.append(group)
            start = int(rows.groups.ends[group]) - groups[group]
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


def test_reading_an_image_takes_no_longer_with_millions_of_row_groups():
    groups = ParquetRowGroups(["file"], [2_000_000], np.full(2_000_000, 3, dtype=np.int32))
    rows = ParquetRows(groups, "image", 16)
    rows._read = lambda group: (range(3 * group, 3 * group + 3), None)
    places = np.random.default_rng(0).integers(groups.num_rows, size=2000).tolist()
    started = time.process_time()
    assert [rows[row] for row in places] == places
    assert time.process_time() - started < 2  # going through all of them takes 1 ms or more each time


def test_workers_start_with_nothing_held():
    rows = ParquetRows(ParquetRowGroups(["file"], [1], [3]), "image", 16)
    rows._read = lambda group: (list("abc"), None)
    assert (rows[1], rows.num_held) == ("b", 3)
    state = rows.__getstate__()
    assert not state["rows"] and state["num_held"] == 0


def test_a_row_group_is_found_in_its_file():
    groups = ParquetRowGroups(["a", "b", "c"], [2, 0, 3], [5, 1, 3, 4, 4])
    assert [groups.place_of(group) for group in range(5)] == [("a", 0), ("a", 1), ("c", 0), ("c", 1), ("c", 2)]
    assert groups.num_rows == 17 and pickle.loads(pickle.dumps(groups)).place_of(4) == ("c", 2)
    some_are_empty = ParquetRowGroups(["a", "b", "c"], [2, 1, 3], [0, 5, 0, 1, 0, 4])
    assert list(some_are_empty) == [5, 1, 4]
    assert [some_are_empty.place_of(group) for group in range(3)] == [("a", 1), ("c", 0), ("c", 2)]


def test_the_fingerprint_is_that_of_all_counts_at_once(parquet_set):
    """It is in the checkpoints of version 0.1.0."""
    location = DataLocation(str(parquet_set), dataset_streaming=True, label_column_name="label")
    train, _ = open_splits(location)
    sizes = []
    for path in sorted((parquet_set / "data").glob("train*")):
        footer = pq.read_metadata(path)
        groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
        sizes.append((path.name, [(group.num_rows, group.total_byte_size) for group in groups]))
    assert train.fingerprint == digest("image", sizes, "label", ("a", "b"))
    assert open_splits(replace(location, label_column_name=None))[0].fingerprint == digest("image", sizes)


def test_a_row_group_that_has_changed_since_is_refused(parquet_set, tmp_path):
    folder = write_parquet_set(tmp_path / "set", {"train": 20}, files=1, row_group=5)
    train, _ = open_splits(DataLocation(str(folder), dataset_streaming=True))
    (path,) = (folder / "data").iterdir()
    pq.write_table(pq.read_table(path), path, row_group_size=4)
    with pytest.raises(DataError, match="Row group 1 of .*parquet has 4 rows, and had 5 when the data set was opened"):
        train.rows[5]


def test_processes_that_see_other_files_are_told(parquet_set, tmp_path):
    told = []

    def first(function):
        told.append(function())
        return told[-1]

    location = DataLocation(str(parquet_set), dataset_streaming=True)
    source, _ = open_splits(location, eval_split=None, share=first)
    assert isinstance(told[-1], Counted) and len(pickle.dumps(told[-1])) < 2000
    other = write_parquet_set(tmp_path / "set", {"train": 60}, files=3)
    with pytest.raises(DataError, match="another process sees other files"):
        open_splits(replace(location, dataset_name=str(other)), eval_split=None, share=lambda function: told[-1])
    again, _ = open_splits(location, eval_split=None, share=lambda function: told[-1])
    assert again.fingerprint == source.fingerprint and list(again.row_groups) == list(source.row_groups)
