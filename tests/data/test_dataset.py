from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, IterableDataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_mae_robust.data.dataset import ImageDataset
from hf_mae_robust.data.loaders import sequential_loader, training_loader
from hf_mae_robust.data.opening import _source as source_of
from hf_mae_robust.data.opening import load_embedded_digits, open_splits
from hf_mae_robust.data.parquet import ParquetRows
from hf_mae_robust.data.preprocessing import training_transform
from hf_mae_robust.data.source import DataLocation, load_head_of_stream
from hf_mae_robust.errors import DataError
from tests.helpers import image_table, photos, write_parquet_set


def identity(image):
    return image


@pytest.fixture(scope="module")
def parquet_set(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 60, "validation": 14})


def images_of(loader) -> torch.Tensor:
    return torch.cat([batch["pixel_values"][batch["row"] >= 0] for batch in loader])


def as_sorted(images: torch.Tensor) -> np.ndarray:
    return np.sort(images.flatten(1).numpy().astype(np.int64).sum(axis=1))


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_the_images_in_order(parquet_set, streaming):
    train, validation = open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming))
    assert (train.num_rows, validation.num_rows) == (60, 14)
    assert train.seekable_at_no_cost is not streaming
    dataset = ImageDataset(train, identity, 3)
    expected = photos(60)
    for row in (0, 59, 31, 4, 5):
        assert np.array_equal(dataset[0, row]["pixel_values"].permute(1, 2, 0).numpy(), expected[row])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_shows_every_image_once_over_ranks_and_workers(parquet_set, streaming, world_size, workers):
    train, validation = open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming))
    options = {"world_size": world_size, "num_workers": workers}
    rows = []
    for rank in range(world_size):
        loader = training_loader(train, identity, 3, batch_size=5, seed=1, rank=rank, buffer_size=10, **options)
        assert len(loader) == 12 // world_size
        rows += [row for batch in loader for row in batch["row"].tolist()]
    assert sorted(rows) == list(range(60))
    seen = torch.cat(
        [
            images_of(sequential_loader(validation, identity, 3, batch_size=4, rank=r, **options))
            for r in range(world_size)
        ]
    )
    expected = torch.from_numpy(np.stack(photos(14, seed=1))).permute(0, 3, 1, 2)
    assert np.array_equal(as_sorted(seen), as_sorted(expected))


@pytest.mark.parametrize("streaming", [False, True])
def test_augmentation_noise_and_order_do_not_depend_on_workers_but_on_the_epoch(parquet_set, streaming):
    train, _ = open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming))

    def epoch(number, workers):
        loader = training_loader(
            train,
            training_transform(16, (0.2, 1.0)),
            3,
            batch_size=8,
            seed=1,
            rank=0,
            world_size=1,
            buffer_size=16,
            noise_length=9,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        loader.set_epoch(number)
        return list(loader)

    alone, with_workers, next_epoch = epoch(3, 0), epoch(3, 2), epoch(4, 0)
    for first, second in zip(alone, with_workers, strict=True):
        assert all(torch.equal(first[key], second[key]) for key in ("row", "pixel_values", "noise"))
    noise = {row: value for batch in alone for row, value in zip(batch["row"].tolist(), batch["noise"])}
    later = {row: value for batch in next_epoch for row, value in zip(batch["row"].tolist(), batch["noise"])}
    assert all(not torch.equal(noise[row], later[row]) for row in noise.keys() & later.keys())


def test_augmentation_leaves_the_global_random_numbers_alone(parquet_set):
    train, _ = open_splits(DataLocation(str(parquet_set)))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert ImageDataset(train, training_transform(16), 3, seed=1, noise_length=4)[0, 1]
    assert torch.equal(torch.rand(3), expected)


def test_streamed_rows_read_each_row_group_few_times(parquet_set, monkeypatch):
    train, _ = open_splits(DataLocation(str(parquet_set), dataset_streaming=True), buffer_size=16)
    reads = []
    original = ParquetRows._read
    monkeypatch.setattr(ParquetRows, "_read", lambda self, group: reads.append(group) or original(self, group))
    list(training_loader(train, identity, 3, batch_size=5, seed=1, rank=0, world_size=1, buffer_size=16))
    assert len(reads) <= 1.5 * len(set(reads))


def test_first_rows_only(parquet_set):
    for streaming in (False, True):
        train, _ = open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming))
        head = train.head(13)
        assert head.num_rows == 13 and train.head(1000) is train
        loader = training_loader(head, identity, 3, batch_size=13, seed=1, rank=0, world_size=1, buffer_size=8)
        assert sorted(next(iter(loader))["row"].tolist()) == list(range(13))
        assert head.fingerprint != train.fingerprint


def test_image_folder_and_save_to_disk(tmp_path):
    for name, pixels in zip("abcd", photos(4)):
        (tmp_path / "images" / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / "train" / f"{name}.png")
    folder, none = open_splits(DataLocation(str(tmp_path / "images")))
    assert none is None and folder.num_rows == 4
    assert ImageDataset(folder, identity, 3)[0, 2]["pixel_values"].shape == (3, 16, 16)

    DatasetDict(train=image_table(6), test=image_table(4)).save_to_disk(tmp_path / "saved")
    train, test = open_splits(DataLocation(str(tmp_path / "saved")))
    assert (train.num_rows, test.num_rows) == (6, 4)


def test_a_stream_that_cannot_seek_still_trains(tmp_path):
    """An image folder, streamed: no length, so the loader goes on for ever, and shares the files among ranks."""
    (tmp_path / "train").mkdir()
    for i, pixels in enumerate(photos(12)):
        Image.fromarray(pixels).save(tmp_path / "train" / f"{i:02d}.png")
    stream, _ = open_splits(DataLocation(str(tmp_path), dataset_streaming=True))
    assert stream.num_rows is None
    with pytest.raises(TypeError):
        len(stream)
    options = {"batch_size": 3, "seed": 0, "world_size": 2, "buffer_size": 4, "noise_length": 5}
    for rank in range(2):
        loader = iter(training_loader(stream, identity, 3, rank=rank, **options))
        for _ in range(6):  # three passes over this rank's six images
            batch = next(loader)
            assert batch["pixel_values"].shape == (3, 3, 16, 16) and batch["noise"].shape == (3, 5)
    parts = [images_of(sequential_loader(stream, identity, 3, batch_size=5, rank=r, world_size=2)) for r in range(2)]
    assert np.array_equal(
        as_sorted(torch.cat(parts)), as_sorted(torch.from_numpy(np.stack(photos(12))).permute(0, 3, 1, 2))
    )
    assert load_head_of_stream(stream, 5).num_rows == 5


def test_a_generator_trains(tmp_path):
    table = image_table(6)
    stream = IterableDataset.from_generator(lambda: iter(table), features=table.features)
    source = source_of(stream, "image", DataLocation(), "generator", 10)
    batch = next(iter(training_loader(source, identity, 3, batch_size=4, seed=0, rank=0, world_size=1, buffer_size=1)))
    assert batch["pixel_values"].shape == (4, 3, 16, 16)


def test_embedded_digits_are_the_real_ones():
    digits = load_embedded_digits()
    assert {split: len(table) for split, table in digits.items()} == {"train": 1500, "test": 297}
    assert digits["train"][0]["image"].size == (8, 8) and digits["train"][0]["label"] == 0
    train, test = open_splits(DataLocation())
    assert (train.num_rows, test.num_rows) == (1500, 297)


def test_hold_out_where_there_is_no_split(tmp_path):
    folder = write_parquet_set(tmp_path / "set", {"train": 20})
    train, held_out = open_splits(DataLocation(str(folder)), train_val_split=0.25)
    assert (train.num_rows, held_out.num_rows) == (15, 5)
    with pytest.raises(DataError, match="not streamed"):
        open_splits(DataLocation(str(folder), dataset_streaming=True), train_val_split=0.25)


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_missing_is_named_with_what_there_is(parquet_set, tmp_path, streaming):
    location = DataLocation(str(parquet_set), dataset_streaming=streaming)
    with pytest.raises(DataError, match="no split 'training'.*train, validation"):
        open_splits(location, train_split="training")
    with pytest.raises(DataError, match="no column 'photo'.*image.*label"):
        open_splits(DataLocation(str(parquet_set), image_column_name="photo", dataset_streaming=streaming))
    with pytest.raises(DataError, match="nowhere"):
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
    with pytest.raises(DataError, match="no column of type Image.*--image_column_name.*text"):
        open_splits(DataLocation(str(tmp_path / "words")))
    empty = write_parquet_set(tmp_path / "empty", {"train": 0}, files=1)
    for streaming in (False, True):
        with pytest.raises(DataError, match="Split 'train'.*is empty|corresponds to no data"):
            open_splits(DataLocation(str(empty), dataset_streaming=streaming))
    DatasetDict(train=image_table(4)).save_to_disk(tmp_path / "four")
    train, _ = open_splits(DataLocation(str(tmp_path / "four")))
    with pytest.raises(DataError, match="4 images.*batch of 3 on each of 2"):
        training_loader(train, identity, 3, batch_size=3, seed=0, rank=0, world_size=2, buffer_size=8)


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


@pytest.mark.parametrize("streaming", [False, True])
def test_files_on_disk_have_no_revision(parquet_set, streaming):
    train, _ = open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming))
    assert train.revision is None and train.head(3).revision is None


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
