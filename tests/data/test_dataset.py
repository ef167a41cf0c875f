import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import IterableDataset
from PIL import Image

from hf_mae_robust.data.dataset import ImageDataset
from hf_mae_robust.data.loaders import sequential_loader, training_loader
from hf_mae_robust.data.opening import open_splits, source_of
from hf_mae_robust.data.preprocessing import training_transform
from hf_mae_robust.data.source import DataLocation, load_head_of_stream
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


def test_a_stream_that_cannot_seek_still_trains(tmp_path):
    """An image folder, streamed: no length, so the loader never ends, and shares the files among ranks."""
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


def test_a_batch_reads_its_rows_in_the_order_in_which_they_are_stored(parquet_set):
    """And its items, with several views and a place that is to stay empty, are in the order asked for."""
    train, _ = open_splits(DataLocation(str(parquet_set)))
    keys, read = [(2, 31), (2, 4), (0, -1), (2, 59), (2, 5)], []

    class Recorded:
        def __getitem__(self, row):
            read.append(row)
            return train.rows[row]

    options = {"seed": 1, "noise_length": 4, "num_views": 2}
    items = ImageDataset(replace(train, rows=Recorded()), training_transform(16), 3, **options).__getitems__(keys)
    assert read == [4, 5, 31, 59]
    assert [item["row"] for item in items] == [31, 31, 4, 4, -1, -1, 59, 59, 5, 5]
    alone = ImageDataset(train, training_transform(16), 3, **options)
    for key, item in zip(keys, items[::2], strict=True):
        assert all(torch.equal(item[name], alone[key][name]) for name in ("pixel_values", "noise"))


@pytest.mark.parametrize("streaming", [False, True])
def test_arrays_below_the_patch_size_are_no_pictures(tmp_path, streaming):
    """Of lists of pixels nobody says that they are pictures; files of any size are (here 3 pixels wide)."""
    rows = [[[0] * 20] * 8, [[0] * 20] * 16]
    table = pa.table({"image": rows})
    pq.write_table(table, tmp_path / "train.parquet")
    location = DataLocation(str(tmp_path), dataset_streaming=streaming, image_column_name="image")
    source = replace(open_splits(location)[0], min_side=16)
    loader = sequential_loader(source, training_transform(16), 3, batch_size=2, rank=0, world_size=1)
    (batch,) = loader
    assert batch["row"].tolist() == [-1, 1]
    assert "shape (8, 20), which would be a picture with a side below 16 pixels" in batch["skipped"][0].detail
    file = io.BytesIO()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(file, "PNG")
    small = replace(source, rows=[{"bytes": file.getvalue(), "path": None}], row_groups=(1,))
    assert "skipped" not in ImageDataset(small, training_transform(16), 3)[0, 0]
