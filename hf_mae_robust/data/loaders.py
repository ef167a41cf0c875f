"""Batches for each process: data loaders over sources with random access and over streams."""

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, cast

from torch.utils.data import DataLoader

from ..errors import DataError, UserError
from .dataset import ImageDataset, ImageStream, collate
from .order import EpochBatchSampler, SequentialBatchSampler
from .source import ImageSource
from .stages import Stage


def outlive_signals(worker_id: int) -> None:
    """For worker processes of a data loader: ignore SIGINT and the first SIGTERM, end at the second.

    Terminals and schedulers signal all of the process group, and the training process still needs images to finish its
    step and save. It ends its workers itself (`end_workers`).
    """

    def ignore_once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, ignore_once)


@atexit.register
def end_workers() -> None:
    """When this process ends, its workers do. Python would ask them with SIGTERM, which they may ignore, and then wait
    for them forever."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes the end of a worker for an accident
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class EpochDataLoader(DataLoader[Any]):
    """Passes the epoch on to the sampler; the Trainer calls `set_epoch`."""

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.batch_sampler, EpochBatchSampler):
            self.batch_sampler.set_epoch(epoch)


def images_in_batch(source: ImageSource, batch_size: int, world_size: int, num_views: int = 1) -> int:
    """How many different images a batch holds, with `num_views` of each. Raises DataError where the images do not fill
    one batch on every rank, and ValueError where a batch does not hold all views of each of its images."""
    if num_views < 1 or batch_size % num_views:
        raise UserError(
            f"--repeated_augmentation {num_views}: must be at least 1 and divide the batch, which is {batch_size} "
            "(--per_device_train_batch_size)."
        )
    num_images = batch_size // num_views
    if source.num_rows is not None and source.num_rows < num_images * world_size:
        views = f" ({num_images} images, {num_views} views of each)" if num_views > 1 else ""
        largest = source.num_rows // world_size * num_views
        advice = f"Give at most --per_device_train_batch_size {largest}." if largest else "Start fewer processes."
        raise DataError(
            f"{source.description} has {source.num_rows:,} images, fewer than one batch of {batch_size}{views} on each "
            f"of {world_size} process(es). {advice}"
        )
    return num_images


def training_loader(
    source: ImageSource,
    transform: Callable[..., Any],
    num_channels: int,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    buffer_size: int,
    noise_length: int | None = None,
    num_views: int = 1,
    stages: Sequence[Stage] = (),
    **loader_options: Any,
) -> EpochDataLoader:
    """Batches `{"pixel_values": (B, C, H, W), "noise": (B, L), "labels": (B,), "row": (B,)}` of one rank, all full.
    A bad image is replaced by another one and listed under `"skipped"` (see `collate`).

    num_views: repeated augmentation (Hoffer et al. 2020): a batch holds N views of each of its images, next to
    each other, from one decoding. An epoch is one pass over the images.
    stages: for sources that can seek; the sampler has to be told which batch belongs to which (`StagePlan`).

    Raises as `images_in_batch`.
    """
    num_images = images_in_batch(source, batch_size, world_size, num_views)
    loader_options = {"collate_fn": collate, "worker_init_fn": outlive_signals, **loader_options}
    if source.row_groups is None:
        stream = ImageStream(
            source,
            transform,
            num_channels,
            rank=rank,
            world_size=world_size,
            noise_length=noise_length,
            shuffle_seed=seed,
            buffer_size=buffer_size,
            endless=True,
            num_views=num_views,
        )
        return EpochDataLoader(stream, batch_size=batch_size, drop_last=True, **loader_options)
    sampler = EpochBatchSampler(
        source.row_groups,
        rank=rank,
        world_size=world_size,
        batch_size=num_images,
        seed=seed,
        buffer_size=None if source.seekable_at_no_cost else buffer_size,
    )
    dataset = ImageDataset(source, transform, num_channels, seed, noise_length, num_views=num_views, stages=stages)
    return EpochDataLoader(dataset, batch_sampler=sampler, **loader_options)


def sequential_loader(
    source: ImageSource,
    transform: Callable[..., Any],
    num_channels: int,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    noise_length: int | None = None,
    **loader_options: Any,
) -> DataLoader[Any]:
    """Every image once over all ranks, `row` -1 marking fillers; for a stream: this rank's share of it, each image
    once. A bad image becomes a filler and is listed under `"skipped"` (see `collate`)."""
    loader_options = {"collate_fn": collate, "worker_init_fn": outlive_signals, **loader_options}
    if source.row_groups is None:
        stream = ImageStream(source, transform, num_channels, rank=rank, world_size=world_size)
        return DataLoader(stream, batch_size=batch_size, **loader_options)
    sampler = SequentialBatchSampler(
        cast(int, source.num_rows), rank=rank, world_size=world_size, batch_size=batch_size
    )
    dataset = ImageDataset(source, transform, num_channels, noise_length=noise_length, replace_bad_images=False)
    return DataLoader(dataset, batch_sampler=sampler, **loader_options)
