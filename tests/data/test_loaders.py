"""Several views of each image in a batch, from one decoding; and worker processes that get signals."""

import os
import signal

import pytest
import torch
from PIL import Image

from hf_mae_robust.data import dataset as data
from hf_mae_robust.data.dataset import ImageDataset
from hf_mae_robust.data.decoding import decode_image
from hf_mae_robust.data.loaders import training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import training_transform
from hf_mae_robust.data.source import DataLocation, ImageSource
from tests.helpers import photos, write_parquet_set

PLAN = {"batch_size": 12, "seed": 1, "rank": 0, "world_size": 1, "buffer_size": 16, "noise_length": 4}


@pytest.fixture(scope="module")
def parquet_set(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 60}, size=40)


def source_of(parquet_set, streaming=False):
    return open_splits(DataLocation(str(parquet_set), dataset_streaming=streaming), eval_split=None)[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_batch_holds_all_views_of_its_images_and_an_epoch_all_images(parquet_set, streaming):
    source, transform = source_of(parquet_set, streaming), training_transform(16)
    loader = training_loader(source, transform, 3, num_views=4, **PLAN)
    assert len(loader) == 20
    alone = ImageDataset(source, transform, 3, seed=1, noise_length=4)
    batches, rows = list(loader), []
    for batch in batches:
        assert batch["pixel_values"].shape == (12, 3, 16, 16)
        views = batch["row"].view(3, 4)
        assert (views == views[:, :1]).all()
        rows += views[:, 0].tolist()
        noise = {tuple(values) for values in batch["noise"].tolist()}
        assert len(noise) == 12 and len(batch["pixel_values"].flatten(1).unique(dim=0)) == 12
        for i, row in enumerate(views[:, 0].tolist()):  # the first view is what there is without others
            assert torch.equal(batch["pixel_values"][4 * i], alone[0, row]["pixel_values"])
            assert torch.equal(batch["noise"][4 * i], alone[0, row]["noise"])
    assert sorted(rows) == list(range(60))
    with_workers = training_loader(source, transform, 3, num_views=4, num_workers=2, **PLAN)
    for first, second in zip(batches, with_workers, strict=True):
        assert all(torch.equal(first[key], second[key]) for key in ("row", "pixel_values", "noise"))


def test_each_view_is_what_the_transform_makes_of_the_whole_image_and_images_are_decoded_once(parquet_set, monkeypatch):
    source, transform = source_of(parquet_set), training_transform(16)
    dataset = ImageDataset(source, transform, 3, seed=5, noise_length=4, num_views=3)
    image, decoded = decode_image(source.rows[7]), []
    original = data.decode_regions
    monkeypatch.setattr(data, "decode_regions", lambda *args: decoded.append(args[3]) or original(*args))
    items = dataset.__getitems__([(2, 7)])
    assert decoded == [7]
    for view, item in enumerate(items):
        torch.manual_seed(dataset._seed_of(2, 7, view))
        assert torch.equal(item["pixel_values"], transform(image))
        assert torch.equal(item["noise"], torch.rand(4))


def test_a_bad_image_is_replaced_in_all_views_and_told_once(parquet_set):
    source = source_of(parquet_set)
    values = [source.rows[row] for row in range(6)]
    values[3] = b"no image"
    broken = ImageSource(values, [6], True, "photos", "")
    dataset = ImageDataset(broken, training_transform(16), 3, num_views=2)
    items = dataset.__getitems__([(0, 3)])
    assert [item["row"] for item in items] == [3, 3]
    assert [record.row for item in items for record in item.get("skipped", ())] == [3]
    assert all(item["pixel_values"].float().std() > 0 for item in items)


def test_a_stream_that_cannot_seek(tmp_path):
    for i, pixels in enumerate(photos(12)):
        Image.fromarray(pixels).save(tmp_path / f"{i:02d}.png")
    stream = source_of(tmp_path, streaming=True)
    assert stream.row_groups is None
    batch = next(iter(training_loader(stream, training_transform(8), 3, num_views=4, **PLAN)))
    rows = batch["row"].view(3, 4)
    assert (rows == rows[:, :1]).all() and len(rows[:, 0].unique()) == 3
    assert len(batch["pixel_values"].flatten(1).unique(dim=0)) == 12


def test_a_batch_that_views_do_not_fill_is_refused(parquet_set):
    with pytest.raises(ValueError, match="--repeated_augmentation 5: must .* divide the batch, which is 12"):
        training_loader(source_of(parquet_set), training_transform(16), 3, num_views=5, **PLAN)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_workers_outlive_an_interrupt_and_one_termination(parquet_set):
    source, options = source_of(parquet_set), {**PLAN, "batch_size": 6}
    loader = training_loader(
        source, training_transform(16), 3, num_workers=2, persistent_workers=True, prefetch_factor=2, **options
    )
    batches = iter(loader)
    next(batches), next(batches)  # one of each worker: both have taken their places
    workers = batches._workers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        for worker in workers:
            os.kill(worker.pid, number)
    assert len(list(batches)) == 8
    with pytest.raises(RuntimeError, match="exited unexpectedly|killed by signal"):
        os.kill(workers[0].pid, signal.SIGTERM)
        workers[0].join(300)
        list(loader)
    workers[0].join(300)
    assert workers[0].exitcode == -signal.SIGTERM
