import time

import numpy as np
import pytest
from accelerate.data_loader import SkipBatchSampler
from scipy.stats import chisquare

from hf_mae_robust.data.former_order import former_batches
from hf_mae_robust.data.order import (
    EpochBatchSampler,
    SequentialBatchSampler,
    StreamedOrder,
    epoch_batches,
    sequential_batches,
)
from hf_mae_robust.data.permutation import LARGEST_DRAWN
from hf_mae_robust.data.row_groups import RowGroups

GROUPS = [7, 10, 10, 3, 25, 1, 10] * 12  # 792 rows


def plan(epoch=0, rank=0, world_size=1, batch_size=8, seed=3, buffer_size=64):
    return epoch_batches(
        GROUPS, epoch=epoch, rank=rank, world_size=world_size, batch_size=batch_size, seed=seed, buffer_size=buffer_size
    )


@pytest.mark.parametrize("buffer_size", [None, 1, 64, 10_000])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 8, 100])
def test_every_row_at_most_once_and_only_the_remainder_is_left_out(buffer_size, world_size, batch_size):
    ranks = [
        plan(rank=rank, world_size=world_size, batch_size=batch_size, buffer_size=buffer_size)
        for rank in range(world_size)
    ]
    expected_batches = sum(GROUPS) // (batch_size * world_size)
    assert all(batches.shape == (expected_batches, batch_size) for batches in ranks)
    rows = np.concatenate([batches.ravel() for batches in ranks])
    assert len(np.unique(rows)) == len(rows)
    assert rows.min() >= 0 and rows.max() < sum(GROUPS)


@pytest.mark.parametrize("buffer_size", [None, 64])
def test_order_is_a_function_of_seed_and_epoch(buffer_size):
    first = plan(buffer_size=buffer_size)
    assert np.array_equal(first, plan(buffer_size=buffer_size))
    assert not np.array_equal(first, plan(epoch=1, buffer_size=buffer_size))
    assert not np.array_equal(first, plan(seed=4, buffer_size=buffer_size))


@pytest.mark.parametrize("buffer_size", [None, 64])
def test_what_an_epoch_leaves_out_rotates(buffer_size):
    left_out = [
        set(range(sum(GROUPS))) - set(plan(epoch=epoch, batch_size=100, buffer_size=buffer_size).ravel().tolist())
        for epoch in range(4)
    ]
    assert all(len(rows) == 92 for rows in left_out)
    assert len(set.intersection(*left_out)) < 30


def test_with_random_access_a_step_takes_the_same_images_for_any_number_of_ranks():
    alone = plan(batch_size=8, buffer_size=None)
    together = [plan(rank=rank, world_size=2, batch_size=4, buffer_size=None) for rank in range(2)]
    assert np.array_equal(alone, np.concatenate(together, axis=1))


def test_streamed_order_reads_few_row_groups_at_a_time():
    """A reader with a bounded cache must not read a row group for every row: within the batches of one slot, row
    groups come one after the other."""
    groups = [10] * 400
    batches = epoch_batches(groups, epoch=0, rank=0, world_size=1, batch_size=5, seed=0, buffer_size=320)
    slot = batches[::16]  # as a loader with 16 workers gives them to the first
    groups_of_batch = [set(rows // 10) for rows in slot]
    assert max(map(len, groups_of_batch)) <= 3
    visits = [group for groups_here in groups_of_batch for group in groups_here]
    assert len(visits) <= 4 * len(set(visits))


def test_shuffling_mixes_the_data():
    rows = plan(buffer_size=64).ravel()
    assert np.abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.2


def test_too_few_rows_give_no_batch():
    assert plan(batch_size=1000).shape == (0, 1000)
    assert epoch_batches([], epoch=0, rank=0, world_size=1, batch_size=4, seed=0, buffer_size=8).shape == (0, 4)


@pytest.mark.parametrize(("num_rows", "world_size", "batch_size"), [(10, 1, 4), (10, 3, 4), (1, 2, 8), (500, 2, 7)])
def test_sequential_batches_cover_everything_once_with_equal_counts(num_rows, world_size, batch_size):
    ranks = [
        sequential_batches(num_rows, rank=rank, world_size=world_size, batch_size=batch_size)
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    rows = np.concatenate([row for batches in ranks for row in batches])
    assert sorted(rows[rows >= 0]) == list(range(num_rows))


def test_sampler_carries_the_epoch_and_knows_its_length():
    sampler = EpochBatchSampler(GROUPS, rank=1, world_size=2, batch_size=8, seed=3, buffer_size=None)
    sampler.set_epoch(5)
    keys = list(sampler)
    assert len(keys) == len(sampler) == 792 // 16
    assert keys[0] == [(5, row) for row in plan(epoch=5, rank=1, world_size=2, buffer_size=None)[0].tolist()]


def test_a_batch_can_be_computed_without_those_before_it():
    groups = np.random.default_rng(0).integers(0, 40, size=30_000)  # more than a block; some groups are empty
    settings = {"epoch": 3, "rank": 1, "world_size": 2, "batch_size": 16, "seed": 5, "buffer_size": 1024}
    order, whole = StreamedOrder(groups, **settings), epoch_batches(groups, **settings)
    assert len(order) == len(whole) == groups.sum() // 32
    for number in np.random.default_rng(1).integers(len(whole), size=200).tolist():
        assert np.array_equal(order[number], whole[number])
    with pytest.raises(IndexError):
        order[len(whole)]


def test_more_row_groups_than_are_drawn_at_once_come_once_each_over_all_ranks():
    groups = np.random.default_rng(0).integers(0, 12, size=LARGEST_DRAWN + 5_000)
    ranks = [
        epoch_batches(groups, epoch=1, rank=rank, world_size=3, batch_size=64, seed=0, buffer_size=512)
        for rank in range(3)
    ]
    rows = np.sort(np.concatenate([batches.ravel() for batches in ranks]))
    assert (
        len(rows) == groups.sum() // 192 * 192 and (np.diff(rows) > 0).all() and 0 <= rows[0] <= rows[-1] < groups.sum()
    )


def test_rows_of_a_stretch_are_mixed_as_chance_mixes_them():
    """In rows of one size, so that a row's place in its stretch is known."""
    orders = [
        epoch_batches([32] * 640, epoch=epoch, rank=0, world_size=1, batch_size=32, seed=0, buffer_size=512)
        for epoch in range(8)
    ]
    places = np.zeros((32, 32))
    for batches in orders:  # each batch is a stretch of 32 rows, and mostly one row group
        for batch in batches:
            if (batch // 32 == batch[0] // 32).all():
                places[np.arange(32), batch % 32] += 1
    assert places.sum() > 4_000 * 32 and chisquare(places.ravel()).pvalue > 1e-4


@pytest.mark.parametrize("buffer_size", [None, 64])
def test_what_is_skipped_costs_nothing_and_the_rest_stays_as_it_is(buffer_size):
    sampler = EpochBatchSampler(GROUPS, rank=0, world_size=1, batch_size=8, seed=3, buffer_size=buffer_size)
    whole = list(sampler)
    sampler.skip_next(30)
    assert list(sampler) == [[]] * 30 + whole[30:]
    assert list(sampler) == whole  # once


def test_a_billion_rows_can_be_sought():
    """benchmarks/epoch_order.py measures time and memory; here it must just not be hopeless."""
    sampler = EpochBatchSampler(
        RowGroups(np.full(1_000_000, 1000, dtype=np.int32)),
        rank=3,
        world_size=512,
        batch_size=64,
        seed=0,
        buffer_size=8192,
    )
    assert len(sampler) == 10**9 // (512 * 64)
    sampler.skip_next(30_000)
    started = time.process_time()
    skipped = SkipBatchSampler(sampler, skip_batches=30_000)
    first = next(iter(skipped))
    assert len(first) == 64 and all(0 <= row < 10**9 for _, row in first)
    assert time.process_time() - started < 5


def test_epochs_before_the_new_order_come_in_the_former_one():
    settings = {"rank": 0, "world_size": 1, "batch_size": 8, "seed": 3, "buffer_size": 64}
    sampler = EpochBatchSampler(GROUPS, **settings)
    sampler.new_order_from = 2
    for epoch, batches_of in enumerate((former_batches, former_batches, epoch_batches)):
        sampler.set_epoch(epoch)
        expected = batches_of(GROUPS, epoch=epoch, **settings)
        assert np.array_equal([[row for _, row in batch] for batch in sampler], expected)


def test_a_sequential_pass_over_a_billion_rows_is_not_held():
    sampler = SequentialBatchSampler(10**9 + 1, rank=1, world_size=2, batch_size=64)
    assert len(sampler) == 7_812_501
    batches = iter(sampler)
    assert next(batches)[0] == (0, 500_000_001) and next(batches)[0] == (0, 500_000_001 + 488_282 * 64)
