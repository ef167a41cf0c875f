"""The order of streamed images in which version 0.1.0 began its runs. A run that resumes from one of its checkpoints
ends the epoch in it, so that each image comes once; the next epoch is in the order of order.py."""

from collections.abc import Iterable

import numpy as np

NUM_SLOTS = 16


def former_batches(
    row_groups: Iterable[int],
    *,
    epoch: int,
    rank: int,
    world_size: int,
    batch_size: int,
    seed: int,
    buffer_size: int,
) -> np.ndarray:
    """As `epoch_batches` of order.py with a number as `buffer_size`, of at least one batch. Holds all rows at once."""
    sizes = np.array(list(row_groups), dtype=np.int64)
    sizes = sizes[sizes > 0]
    ends = sizes.cumsum()
    groups = np.random.default_rng([seed, epoch]).permutation(len(sizes))
    rows = np.concatenate([np.arange(ends[g] - sizes[g], ends[g]) for g in groups])
    num_batches = len(rows) // (batch_size * world_size)
    rows = rows[: num_batches * batch_size * world_size].reshape(world_size, -1)[rank]
    stretch = max(buffer_size // NUM_SLOTS, batch_size)
    stretch -= stretch % batch_size
    rng = np.random.default_rng([seed, epoch, rank])
    slots = np.array_split(np.arange(num_batches), min(NUM_SLOTS, max(num_batches, 1)))
    shuffled = []
    for slot in slots:
        part = rows[slot[0] * batch_size : (slot[-1] + 1) * batch_size]
        shuffled += [rng.permutation(part[i : i + stretch]) for i in range(0, len(part), stretch)]
    batches = np.concatenate(shuffled).reshape(num_batches, batch_size)
    return batches[[slot[turn] for turn in range(len(slots[0])) for slot in slots if turn < len(slot)]]
