"""Which image comes at which step: pure functions of seed, epoch, rank and world size.

Nothing here reads data or keeps state, so seeking to any step of any epoch is arithmetic, and the order does not
depend on how many worker processes decode the images.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from .former_order import former_batches
from .permutation import KeyedPermutation
from .row_groups import RowGroups
from .stages import StagePlan

# Consecutive batches of a rank come from this many places of the data in turn. A data loader hands batches to its
# workers in turn as well, so with 1, 2, 4, 8 or 16 workers each of them reads its own part of a remote data set, and
# none reads what another one has read.
NUM_SLOTS = 16
# Row groups whose places in the order are computed together: some vectors that fit a processor's cache.
BLOCK = 8192


def _slots(num_batches: int) -> list[int]:
    """Where each slot begins, in batches, and at last their number: equal parts, the first ones of a batch more where
    they do not divide it. Batch j of the order is the next one of slot j % (number of slots)."""
    num_slots = min(NUM_SLOTS, max(num_batches, 1))
    each, more = divmod(num_batches, num_slots)
    return [slot * each + min(slot, more) for slot in range(num_slots + 1)]


class StreamedOrder(Sequence[np.ndarray]):
    """The shuffled batches of one rank in one epoch, for data that are read row group by row group: arguments as of
    `epoch_batches`. Each batch, `(batch_size,)` int64, is computed when it is asked for. What is held are the numbers
    of rows of blocks of row groups, and for each slot the stretch and the block in use.
    """

    def __init__(
        self,
        row_groups: Iterable[int],
        *,
        epoch: int,
        rank: int,
        world_size: int,
        batch_size: int,
        seed: int,
        buffer_size: int,
    ):
        self.groups, self.key = RowGroups.of(row_groups), (seed, epoch, rank)
        self.batch_size, self.num_batches = batch_size, self.groups.num_rows // (batch_size * world_size)
        self.stretch = max(buffer_size // NUM_SLOTS, batch_size)
        self.stretch -= self.stretch % batch_size
        self.slots, self.first_row = _slots(self.num_batches), rank * self.num_batches * batch_size
        self.permutation = KeyedPermutation(len(self.groups), [seed, epoch])
        # Rows in the order of all before each block of row groups.
        num_rows = [self._rows_of_block(i).sum() for i in range(-(-len(self.groups) // BLOCK))]
        self.before = np.cumsum([0, *num_rows])
        self._block = lru_cache(2 * NUM_SLOTS)(self._compute_block)
        self._stretch = lru_cache(NUM_SLOTS)(self._compute_stretch)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self.num_batches:
            raise IndexError(number)
        turn, slot = divmod(number, len(self.slots) - 1)
        stretch, first = divmod(turn * self.batch_size, self.stretch)
        return self._stretch(slot, stretch)[first : first + self.batch_size]

    def _groups_of_block(self, block: int) -> np.ndarray:
        return self.permutation(np.arange(block * BLOCK, min((block + 1) * BLOCK, len(self.groups))))

    def _rows_of_block(self, block: int) -> np.ndarray:
        groups = self._groups_of_block(block)
        return self.groups.ends[groups] - self.groups.starts_of(groups)

    def _compute_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each row group of a block: where it ends in the order of all, and what to add to a place in that order for
        the number of the row."""
        groups = self._groups_of_block(block)
        ends = self.groups.ends[groups]
        places = self.before[block] + np.cumsum(ends - self.groups.starts_of(groups))
        return places, ends - places

    def _compute_stretch(self, slot: int, number: int) -> np.ndarray:
        """The rows of a stretch, shuffled. It does not straddle slots, or two workers would read both of its ends."""
        start, end = (batch * self.batch_size for batch in self.slots[slot : slot + 2])
        start += number * self.stretch
        places = self.first_row + np.arange(start, min(start + self.stretch, end))
        first, last = np.searchsorted(self.before, places[[0, -1]], side="right") - 1
        blocks = [self._block(block) for block in range(first, last + 1)]
        ends, shifts = (np.concatenate(parts) for parts in zip(*blocks))
        rows = places + shifts[np.searchsorted(ends, places, side="right")]
        return np.random.default_rng([*self.key, slot, number]).permutation(rows)


def _batches(row_groups: Iterable[int], *, buffer_size: int | None = None, **plan: Any) -> Any:
    """As `epoch_batches`; those of streamed data are computed one by one."""
    if buffer_size is not None:
        return StreamedOrder(row_groups, buffer_size=buffer_size, **plan)
    rows = np.random.default_rng([plan["seed"], plan["epoch"]]).permutation(RowGroups.of(row_groups).num_rows)
    num_batches = len(rows) // (plan["batch_size"] * plan["world_size"])
    rows = rows[: num_batches * plan["batch_size"] * plan["world_size"]]
    # What the ranks take together in a step does not depend on how many they are.
    return rows.reshape(num_batches, plan["world_size"], plan["batch_size"])[:, plan["rank"]]


def epoch_batches(
    row_groups: Iterable[int],
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
    batches = _batches(
        row_groups,
        epoch=epoch,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        seed=seed,
        buffer_size=buffer_size,
    )
    return np.stack(list(batches)) if len(batches) else np.empty((0, batch_size), dtype=np.int64)


def _num_sequential(num_rows: int, world_size: int, batch_size: int) -> int:
    share = -(-num_rows // world_size)
    return -(-share // batch_size)


def _sequential_batch(number: int, num_rows: int, rank: int, world_size: int, batch_size: int) -> np.ndarray:
    """One of `sequential_batches`."""
    share = -(-num_rows // world_size)
    num_full = share // batch_size
    if number < num_full:
        slots = _slots(num_full)
        turn, slot = divmod(number, len(slots) - 1)
        number = slots[slot] + turn
    rows = rank * share + np.arange(number * batch_size, min((number + 1) * batch_size, share))
    return np.where(rows < num_rows, rows, -1)


def sequential_batches(num_rows: int, *, rank: int, world_size: int, batch_size: int) -> list[np.ndarray]:
    """Every row exactly once, over all ranks, not shuffled. Each rank gets the same number of batches (so that
    collective operations match); -1 marks places to be left out. Only the last batch may be short."""
    numbers = range(_num_sequential(num_rows, world_size, batch_size))
    return [_sequential_batch(number, num_rows, rank, world_size, batch_size) for number in numbers]


class EpochBatchSampler(Sampler[Any]):
    """Batches of keys `(epoch, row)` for a data loader. The epoch travels with the row, so that workers that live
    longer than an epoch need not be told about it. So does the stage, in keys `(epoch, row, stage)`: what is fetched
    ahead is of the stage of the step that it is for.

    Attributes:
        new_order_from: epoch from which on streamed images come in the order of `StreamedOrder`; before it, in that of
            former_order.py.
        stages: where images come out differently in stages of the training.
    """

    def __init__(self, row_groups: Iterable[int], **plan: Any):
        self.row_groups, self.plan, self.epoch = RowGroups.of(row_groups), plan, 0
        self.new_order_from, self._num_skipped = 0, 0
        self.stages: StagePlan | None = None

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def skip_next(self, num_batches: int) -> None:
        """Of the next epoch, do not compute the first batches: someone walks over them to find a place to resume from,
        and gets empty lists."""
        self._num_skipped = num_batches

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        first, self._num_skipped, epoch = self._num_skipped, 0, self.epoch
        yield from itertools.repeat([], first)
        is_former = self.plan.get("buffer_size") is not None and epoch < self.new_order_from
        batches = (former_batches if is_former else _batches)(self.row_groups, epoch=epoch, **self.plan)
        for number in range(first, len(batches)):
            stage = () if self.stages is None else (self.stages.stage_of_batch(epoch, number),)
            yield [(epoch, row, *stage) for row in batches[number].tolist()]

    def __len__(self) -> int:
        return self.row_groups.num_rows // (self.plan["batch_size"] * self.plan["world_size"])


class SequentialBatchSampler(Sampler[Any]):
    """Batches of keys `(0, row)`, those of `sequential_batches`; a row of -1 is a filler."""

    def __init__(self, num_rows: int, *, rank: int, world_size: int, batch_size: int):
        self.plan = (num_rows, rank, world_size, batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for number in range(len(self)):
            yield [(0, row) for row in _sequential_batch(number, *self.plan).tolist()]

    def __len__(self) -> int:
        num_rows, _, world_size, batch_size = self.plan
        return _num_sequential(num_rows, world_size, batch_size)
