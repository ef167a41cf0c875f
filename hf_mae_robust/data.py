"""From an `ImageSource` to batches of uint8 images, each rank its own."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from .decoding import decode_image
from .plan import EpochBatchSampler, SequentialBatchSampler
from .sources import DataError, ImageSource


class ImageDataset(torch.utils.data.Dataset):
    """Keys `(epoch, row)` -> decoded, transformed images. What comes out, random transforms and the noise of the masks
    included, depends on (seed, epoch, row) alone: not on the process, on what it did before, or on who else is there.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Callable,
        num_channels: int,
        seed: int = 0,
        noise_length: int | None = None,
    ):
        """noise_length: add `noise` of this many uniform numbers to each image."""
        self.source, self.transform, self.num_channels = source, transform, num_channels
        self.seed, self.noise_length = seed, noise_length

    def __len__(self) -> int:
        return self.source.num_rows

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, row = key
        image = decode_image(self.source.rows[max(row, 0)], self.num_channels, row)
        seed = np.random.SeedSequence([self.seed, epoch, max(row, 0)]).generate_state(1, np.uint64)[0]
        # torch.manual_seed would seed every device too, which takes longer than decoding a small image.
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(int(seed >> 1))
        try:
            return _item(self.transform(image), row, self.noise_length)
        finally:
            torch.set_rng_state(state)


def _item(image: torch.Tensor, row: int, noise_length: int | None) -> dict[str, Any]:
    item = {"pixel_values": image, "row": row}
    if noise_length is not None:
        item["noise"] = torch.rand(noise_length)
    return item


class ImageStream(torch.utils.data.IterableDataset):
    """A `datasets` stream that cannot seek. Each rank and worker reads a share of its files, or leaves out the others'
    rows where there are fewer files than readers."""

    def __init__(
        self,
        source: ImageSource,
        transform: Callable,
        num_channels: int,
        *,
        rank: int,
        world_size: int,
        noise_length: int | None = None,
        shuffle_seed: int | None = None,
        buffer_size: int = 1,
        endless: bool = False,
    ):
        rows = source.rows
        if shuffle_seed is not None and buffer_size > 1:
            rows = rows.shuffle(seed=shuffle_seed, buffer_size=buffer_size)
        self.rows = split_dataset_by_node(rows, rank=rank, world_size=world_size)
        self.transform, self.num_channels, self.endless = transform, num_channels, endless
        self.noise_length = noise_length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            number = -1
            for number, row in enumerate(self.rows):
                image = decode_image(row["image"], self.num_channels, number)
                yield _item(self.transform(image), number, self.noise_length)
            # Workers beyond the number of files get nothing.
            if not self.endless or number < 0:
                return


class EpochDataLoader(DataLoader):
    """Passes the epoch on to the sampler; the Trainer calls `set_epoch`."""

    def set_epoch(self, epoch: int) -> None:
        if isinstance(self.batch_sampler, EpochBatchSampler):
            self.batch_sampler.set_epoch(epoch)


def check_fills_a_batch(source: ImageSource, batch_size: int, world_size: int) -> None:
    """Raises DataError where the images do not fill one batch on every rank."""
    if source.num_rows is not None and source.num_rows < batch_size * world_size:
        raise DataError(
            f"{source.description} has {source.num_rows:,} images, fewer than one batch of {batch_size} on each of "
            f"{world_size} process(es): lower --per_device_train_batch_size."
        )


def training_loader(
    source: ImageSource,
    transform: Callable,
    num_channels: int,
    *,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    buffer_size: int,
    noise_length: int | None = None,
    **loader_options,
) -> EpochDataLoader:
    """Batches `{"pixel_values": (B, C, H, W) uint8, "noise": (B, L), "row": (B,)}` of one rank, all of them full.

    Raises DataError where the images do not fill one batch on every rank.
    """
    check_fills_a_batch(source, batch_size, world_size)
    if source.row_groups is None:
        dataset = ImageStream(
            source,
            transform,
            num_channels,
            rank=rank,
            world_size=world_size,
            noise_length=noise_length,
            shuffle_seed=seed,
            buffer_size=buffer_size,
            endless=True,
        )
        return EpochDataLoader(dataset, batch_size=batch_size, drop_last=True, **loader_options)
    sampler = EpochBatchSampler(
        source.row_groups,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        seed=seed,
        buffer_size=None if source.seekable_at_no_cost else buffer_size,
    )
    dataset = ImageDataset(source, transform, num_channels, seed, noise_length)
    return EpochDataLoader(dataset, batch_sampler=sampler, **loader_options)


def sequential_loader(
    source: ImageSource,
    transform: Callable,
    num_channels: int,
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    noise_length: int | None = None,
    **loader_options,
) -> DataLoader:
    """Every image once over all ranks, `row` -1 marking fillers; for a stream: this rank's share of it, each image
    once."""
    if source.row_groups is None:
        stream = ImageStream(source, transform, num_channels, rank=rank, world_size=world_size)
        return DataLoader(stream, batch_size=batch_size, **loader_options)
    sampler = SequentialBatchSampler(source.num_rows, rank=rank, world_size=world_size, batch_size=batch_size)
    dataset = ImageDataset(source, transform, num_channels, noise_length=noise_length)
    return DataLoader(dataset, batch_sampler=sampler, **loader_options)
