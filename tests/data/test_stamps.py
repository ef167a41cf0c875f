"""What is kept in a cache for some files is not taken for others of the same names and sizes."""

import os

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.data.stamps import MAX_FILES, some, stamp_of, stamp_of_stream
from tests.helpers import write_parquet_set


def write(folder, number):
    folder.mkdir(exist_ok=True)
    for i in range(20):
        np.save(folder / f"{i}.npy", np.full((5, 8, 8), number + i, np.uint16))
        os.utime(folder / f"{i}.npy", (number, number))


def opened(folder, **options):
    return open_splits(DataLocation(str(folder), **options), eval_split=None, tells=False)[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_are_written_again_in_their_former_size(tmp_path, streaming):
    write(tmp_path / "set", 1000)
    before, again = (opened(tmp_path / "set", dataset_streaming=streaming) for _ in range(2))
    stamp = stamp_of(before)
    assert stamp == stamp_of(again) == stamp_of(before.sample(5))
    write(tmp_path / "set", 2000)
    after = opened(tmp_path / "set", dataset_streaming=streaming)
    assert after.fingerprint == before.fingerprint and stamp_of(after) != stamp


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_file_that_is_written_again(tmp_path, streaming):
    folder = write_parquet_set(tmp_path / "set", {"train": 6})
    before = stamp_of(opened(folder, dataset_streaming=streaming))
    assert stamp_of(opened(folder, dataset_streaming=streaming)) == before
    for path in folder.rglob("*.parquet"):
        os.utime(path, (1000, 1000))
    assert stamp_of(opened(folder, dataset_streaming=streaming)) != before


def test_a_stream_of_a_file_changes_with_that_file_alone(tmp_path):
    table = tmp_path / "images.parquet"
    pictures = [Image.fromarray(np.full((8, 8, 3), i, np.uint8)) for i in range(3)]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": pictures}, features=features).to_parquet(table)
    source = opened(table, dataset_streaming=True)
    stamp = stamp_of_stream(source, str(table))
    (tmp_path / "other").touch()
    assert stamp_of_stream(source, str(table)) == stamp
    os.utime(table, (1000, 1000))
    assert stamp_of_stream(source, str(table)) != stamp


def test_of_millions_of_files_some_are_looked_at():
    chosen = some(range(10**6))
    assert len(chosen) == MAX_FILES and chosen[0] == 0 and chosen[-1] == 10**6 - 1 and some([3, 1]) == [3, 1]
