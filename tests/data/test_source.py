"""One split: its length, its first rows, and where it comes from."""

import pickle
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from PIL import Image

from hf_mae_robust.data.loaders import training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation, ImageSource
from hf_mae_robust.errors import DataError
from tests.helpers import photos, write_parquet_set


def identity(image):
    return image


@pytest.fixture(scope="module")
def parquet_set(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 60, "validation": 14})


def test_first_rows_only(parquet_set):
    for streaming in (False, True):
        train, _ = open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming))
        head = train.head(13)
        assert head.num_rows == 13 and train.head(1000) is train
        loader = training_loader(head, identity, 3, batch_size=13, seed=1, rank=0, world_size=1, buffer_size=8)
        assert sorted(next(iter(loader))["row"].tolist()) == list(range(13))
        assert head.fingerprint != train.fingerprint


def test_a_location_is_made_from_flags_and_does_not_show_its_token():
    flags = SimpleNamespace(
        dataset_name="a/b", dataset_config_name=None, dataset_revision="v1", image_column_name=None,
        dataset_streaming=True, dataset_retry_seconds=7.0,
    )  # fmt: skip
    location = DataLocation.of(flags, "hf_secret")
    assert location == DataLocation("a/b", None, "v1", None, True, "hf_secret", 7.0)
    assert "hf_secret" not in repr(location)
    del flags.dataset_retry_seconds  # a command without this flag
    assert DataLocation.of(flags, None).dataset_retry_seconds == 300


def test_the_length_of_a_million_row_groups_is_counted_once():
    """It is asked for with every image."""
    source = ImageSource(None, (2,) * 1_000_000, False, "large", "")
    assert len(source) == source.num_rows == 2_000_000
    started = time.process_time()
    for _ in range(1000):
        assert len(source) == 2_000_000
    assert time.process_time() - started < 1  # counting takes 5 ms or more each time
    assert len(source.head(7)) == 7 and len(source) == 2_000_000
    assert len(pickle.loads(pickle.dumps(source.head(9)))) == 9


def test_a_stream_has_no_length_and_keeps_its_split():
    source = ImageSource(None, None, False, "stream (test)", "", split="test")
    assert source.num_rows is None and source.split == "test"
    with pytest.raises(TypeError, match="unknown length"):
        len(source)


def test_a_stream_is_there_whatever_its_length(parquet_set):
    stream = ImageSource(iter(()), None, False, "a stream", "fingerprint")
    assert stream and (stream or None) is stream
    with pytest.raises(TypeError, match="unknown length"):
        len(stream)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_sample_is_drawn_from_everywhere_and_is_always_the_same(parquet_set, streaming):
    train, _ = open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming))
    sample = train.sample(13, seed=1)
    assert (
        sample.num_rows == 13 == sum(sample.row_groups) and train.sample(1000) is train and train.sample(None) is train
    )
    everything = [train.rows[i]["bytes"] for i in range(train.num_rows)]
    places = [everything.index(sample.rows[i]["bytes"]) for i in range(13)]
    assert places == sorted(set(places)) and max(places) > 13
    again, other = train.sample(13, seed=1), train.sample(13, seed=2)
    assert [again.rows[i]["bytes"] for i in range(13)] == [sample.rows[i]["bytes"] for i in range(13)]
    assert (
        len({train.fingerprint, sample.fingerprint, other.fingerprint}) == 3 and again.fingerprint == sample.fingerprint
    )
    assert sample.description.startswith("random 13 of ")
    with pytest.raises(DataError, match="At least one image"):
        train.sample(0)


def test_a_sample_of_a_folder_sorted_by_class_has_all_classes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i, pixels in enumerate(photos(20)):
            Image.fromarray(pixels).save(tmp_path / name / f"{i:02d}.png")
    location = DataLocation(str(tmp_path), label_column_name="auto")
    train, _ = open_splits(location)
    assert {train.sample(10).rows.label(i) for i in range(10)} == {0, 1}
    assert {train.head(10).rows.label(i) for i in range(10)} == {0}
    stream, _ = open_splits(replace(location, dataset_streaming=True))
    sample = stream.sample(10, seed=3, buffer_size=40)
    rows = [(row["image"]["path"], row["label"]) for row in sample.rows]
    sample.rows.set_epoch(1)
    assert rows == [(row["image"]["path"], row["label"]) for row in sample.rows]
    assert len(set(rows)) == 10 and {label for _, label in rows} == {0, 1}
    assert "shuffle buffer of 40" in sample.description
