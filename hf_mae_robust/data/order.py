"""Which image comes at which step: pure functions of seed, epoch, rank and world size.

Nothing here reads data or keeps state, so seeking to any step of any epoch is arithmetic, and the order does not
depend on how many worker processes decode the images.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

# Consecutive batches of a rank come from this many places of the data in turn. A data loader hands batches to its
# workers in turn as well, so with 1, 2, 4, 8 or 16 workers each of them reads its own part of a remote data set, and
# none reads what another one has read.
NUM_SLOTS = 16


def _interleave(rows: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut `rows` into batches such that batch j comes from slot j % NUM_SLOTS. Only the last may be short."""
    num_batches = -(-len(rows) // batch_size)
    batches = [rows[i * batch_size : (i + 1) * batch_size] for i in range(num_batches)]
    short = [batches.pop()] if num_batches and len(rows) % batch_size else []
    slots = np.array_split(np.arange(len(batches)), min(NUM_SLOTS, max(len(batches), 1)))
    order = [slot[turn] for turn in range(len(slots[0])) for slot in slots if turn < len(slot)]
    return [batches[i] for i in order] + short


def epoch_batches(
    row_groups: Sequence[int],
    *,
    epoch: int,
    rank: int,
    world_size: int,
    batch_size: int,
    seed: int,
    buffer_size: int | None = None,
) -> np.ndarray:
    """The shuffled batches of one rank in one epoch.

    Args:
        row_groups: number of rows of each block of the data that is read at once (a Parquet row group), in order.
            Row i is the i-th over all of them.
        epoch, rank, world_size, batch_size (of one rank), seed: what the order depends on.
        buffer_size: None draws a uniform permutation of all rows, for data with fast random access. A number
            permutes the row groups, and the rows within stretches of about `buffer_size / NUM_SLOTS` rows, so that a
            reader needs to hold only `buffer_size` rows, or NUM_SLOTS batches where that is more.

    Returns:
        `(batches, batch_size)` row numbers, the same shape for every rank. Over all ranks each row comes at most once
        an epoch; the remainder that does not fill a batch on every rank is left out, another one in each epoch.
    """
    sizes = np.asarray(row_groups, dtype=np.int64)
    rng = np.random.default_rng([seed, epoch])
    if buffer_size is None:
        rows = rng.permutation(sizes.sum())
    else:
        ends = sizes.cumsum()
        groups = rng.permutation(len(sizes))
        rows = np.concatenate([np.arange(ends[g] - sizes[g], ends[g]) for g in groups]) if len(groups) else ends
    num_batches = len(rows) // (batch_size * world_size)
    rows = rows[: num_batches * batch_size * world_size]
    if buffer_size is None:
        # What the ranks take together in a step does not depend on how many they are.
        return rows.reshape(num_batches, world_size, batch_size)[:, rank]
    rows = rows.reshape(world_size, -1)[rank]
    stretch = max(buffer_size // NUM_SLOTS, batch_size)
    stretch -= stretch % batch_size
    # Stretches must not straddle slots, or two workers would read both of their ends.
    rng = np.random.default_rng([seed, epoch, rank])
    shuffled = []
    for slot in np.array_split(np.arange(num_batches), min(NUM_SLOTS, max(num_batches, 1))):
        part = rows[slot[0] * batch_size : (slot[-1] + 1) * batch_size] if len(slot) else rows[:0]
        shuffled += [rng.permutation(part[i : i + stretch]) for i in range(0, len(part), stretch)]
    rows = np.concatenate(shuffled) if shuffled else rows
    return np.stack(_interleave(rows, batch_size)) if num_batches else rows.reshape(0, batch_size)


def sequential_batches(num_rows: int, *, rank: int, world_size: int, batch_size: int) -> list[np.ndarray]:
    """Every row exactly once, over all ranks, not shuffled. Each rank gets the same number of batches (so that
    collective operations match); -1 marks places to be left out."""
    share = -(-num_rows // world_size)
    rows = np.arange(rank * share, (rank + 1) * share)
    return _interleave(np.where(rows < num_rows, rows, -1), batch_size)


class EpochBatchSampler(Sampler[Any]):
    """Batches of keys `(epoch, row)` for a data loader. The epoch travels with the row, so that workers that live
    longer than an epoch need not be told about it."""

    def __init__(self, row_groups: Sequence[int], **plan: Any):
        self.row_groups, self.plan, self.epoch = row_groups, plan, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for rows in epoch_batches(self.row_groups, epoch=self.epoch, **self.plan):
            yield [(self.epoch, row) for row in rows.tolist()]

    def __len__(self) -> int:
        return int(sum(self.row_groups)) // (self.plan["batch_size"] * self.plan["world_size"])


class SequentialBatchSampler(Sampler[Any]):
    """Batches of keys `(0, row)`; a row of -1 is a filler."""

    def __init__(self, num_rows: int, **plan: Any):
        self.batches = sequential_batches(num_rows, **plan)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for rows in self.batches:
            yield [(0, row) for row in rows.tolist()]

    def __len__(self) -> int:
        return len(self.batches)
