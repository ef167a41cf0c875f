"""Which splits, columns and rows are opened, and what is said where they are not there."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features
from datasets import Image as ImageFeature

from hf_mae_robust.data.loaders import training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError, MissingFileError
from hf_mae_robust.statistics.statistics_pass import band_statistics_of_source
from tests.helpers import image_table, photos, write_parquet_set


def identity(image):
    return image


@pytest.fixture(scope="module")
def parquet_set(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 60, "validation": 14})


@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_split_to_evaluate_on_is_found_and_each_source_knows_its_own(parquet_set, streaming):
    train, evaluation = open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming))
    assert (train.split, evaluation.split) == ("train", "validation")
    assert evaluation.head(3).split == "validation"
    again, none = open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming), "validation")
    assert again.fingerprint == evaluation.fingerprint and none is None
    none, only = open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming), None, "train")
    assert none is None and only.fingerprint == train.fingerprint


def test_hold_out_where_there_is_no_split(tmp_path):
    folder = write_parquet_set(tmp_path / "set", {"train": 20})
    train, held_out = open_splits(DataLocation(str(folder)), train_val_split=0.25)
    assert (train.num_rows, held_out.num_rows) == (15, 5)
    assert [part.description for part in (train, held_out)] == [
        f"{folder} (train, not held out)",
        f"{folder} (train, held out)",
    ]
    assert train.split == held_out.split == "train" and train.fingerprint != held_out.fingerprint
    with pytest.raises(DataError, match="not streamed"):
        open_splits(DataLocation(str(folder), dataset_streaming=True), train_val_split=0.25)


@pytest.mark.parametrize(("rows", "share"), [(1, 0.1), (60, 0.999)])
def test_a_share_that_leaves_no_image_to_train_on_is_refused(tmp_path, rows, share):
    folder = write_parquet_set(tmp_path / "set", {"train": rows}, files=1)
    with pytest.raises(DataError, match=f"of {rows} images none would be left to train on. Give a smaller share"):
        open_splits(DataLocation(str(folder)), train_val_split=share)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_missing_is_named_with_what_there_is(parquet_set, tmp_path, streaming):
    location = DataLocation(str(parquet_set), dataset_streaming=streaming)
    with pytest.raises(DataError, match="no split 'training'.*train, validation"):
        open_splits(location, train_split="training")
    with pytest.raises(DataError, match="no column 'photo'.*image.*label"):
        open_splits(DataLocation(str(parquet_set), image_column_name="photo", dataset_streaming=streaming))
    with pytest.raises(MissingFileError, match="nowhere"):
        open_splits(DataLocation(str(tmp_path / "nowhere"), dataset_streaming=streaming))


@pytest.mark.parametrize("columns", [["image", "annotation"], ["photo", "annotation"]])
def test_of_several_image_columns_the_one_called_image(tmp_path, columns):
    features = Features({column: ImageFeature() for column in columns})
    (tmp_path / "set").mkdir()
    Dataset.from_dict({c: photos(2) for c in columns}, features=features).to_parquet(tmp_path / "set/train.parquet")
    if "image" in columns:
        assert open_splits(DataLocation(str(tmp_path / "set")))[0].rows.column == "image"
    else:
        with pytest.raises(DataError, match="2 image columns.*photo.*annotation"):
            open_splits(DataLocation(str(tmp_path / "set")))


def test_no_image_column_empty_split_and_too_few_images(tmp_path):
    (tmp_path / "words").mkdir()
    Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "words" / "train.parquet")
    with pytest.raises(DataError, match="no column of type Image.*text.*--image_column_name"):
        open_splits(DataLocation(str(tmp_path / "words")))
    empty = write_parquet_set(tmp_path / "empty", {"train": 0}, files=1)
    for streaming in (False, True):
        with pytest.raises(DataError, match="Split 'train'.*is empty|corresponds to no data"):
            open_splits(DataLocation(str(empty), dataset_streaming=streaming))
    DatasetDict(train=image_table(4)).save_to_disk(tmp_path / "four")
    train, _ = open_splits(DataLocation(str(tmp_path / "four")))
    with pytest.raises(DataError, match="4 images.*batch of 3 on each of 2"):
        training_loader(train, identity, 3, batch_size=3, seed=0, rank=0, world_size=2, buffer_size=8)


@pytest.mark.parametrize("streaming", [False, True])
def test_files_on_disk_have_no_revision(parquet_set, streaming):
    train, _ = open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming))
    assert train.revision is None and train.head(3).revision is None


@pytest.mark.parametrize("only", ["default", "all", "full"])
def test_the_only_split_is_trained_on_and_that_is_said(tmp_path, capsys, only):
    DatasetDict({only: image_table(3)}).save_to_disk(tmp_path / "set")
    train, evaluation = open_splits(DataLocation(str(tmp_path / "set")))
    assert train.num_rows == 3 and train.split == only and evaluation is None
    assert f"its only split, '{only}', is taken for the training split" in capsys.readouterr().out
    with pytest.raises(DataError, match=f"no split 'train'. It has: {only}"):
        open_splits(DataLocation(str(tmp_path / "set")), eval_split=only)


def test_images_that_are_urls_are_refused_before_anything_is_fetched(tmp_path):
    urls = [f"https://example.com/{i}.jpg" for i in range(3)]
    table = Dataset.from_dict({"image": urls})
    table.save_to_disk(tmp_path / "strings")
    for column in (None, "image"):
        with pytest.raises(DataError, match="column 'image' holds URLs.*are not fetched.*Download them"):
            open_splits(DataLocation(str(tmp_path / "strings"), image_column_name=column))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    stored = pa.array([{"bytes": None, "path": url} for url in urls], kind)
    schema = Features({"image": ImageFeature()}).arrow_schema
    (tmp_path / "images").mkdir()
    pq.write_table(pa.table({"image": stored}, schema=schema), tmp_path / "images" / "train.parquet")
    with pytest.raises(DataError, match="holds URLs, first https://example.com/0.jpg.*are not fetched"):
        open_splits(DataLocation(str(tmp_path / "images")))


def test_streams_of_another_column_or_configuration_are_others(tmp_path, monkeypatch):
    """Those that cannot seek: nothing of them is read before the training. Statistics are cached by the fingerprint."""
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    images, places = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 8, 3)), []
    for config, (summer, winter) in {"a": images[:2], "b": images[2:]}.items():
        rows = [{"summer": one.tolist(), "winter": other.tolist()} for one, other in zip(summer, winter, strict=True)]
        (tmp_path / f"{config}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        places += [(config, column) for column in ("summer", "winter")]
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in "ab")
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    fingerprints = set()
    for (config, column), expected in zip(places, images, strict=True):
        location = DataLocation(str(tmp_path), config, image_column_name=column, dataset_streaming=True)
        source = open_splits(location)[0]
        assert source.num_rows is None
        fingerprints.add(source.fingerprint)
        found = band_statistics_of_source(source, 3).mean
        np.testing.assert_allclose(found, expected.mean(axis=(0, 1, 2)), rtol=1e-9)
    assert len(fingerprints) == 4
