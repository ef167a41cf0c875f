"""Which images are worked on together: the same ones, however many processes there are and whatever is finished."""

import pytest

from hf_mae_robust.data.plan import Plan, RowBatches, StreamBatches, file_name


def batches(num_rows: int, world_size: int, finished=(), streams: bool = False) -> list[list[list[int]]]:
    """Of each process."""
    found = []
    for rank in range(world_size):
        plan = Plan(4, 12, finished, rank, world_size)
        if streams:
            sampler = StreamBatches(plan, [{"image": row} for row in range(num_rows)])
            found.append([[row for row, _ in batch] for batch in sampler])
            assert sampler.num_rows == num_rows
        else:
            sampler = RowBatches(plan, num_rows)
            found.append([[row for _, row in batch] for batch in sampler])
            assert len(sampler) == len(found[-1])
    return found


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("num_rows", [1, 12, 55, 61])
def test_batches_do_not_depend_on_the_number_of_processes(num_rows, streams):
    alone = batches(num_rows, 1, streams=streams)[0]
    assert [row for batch in alone for row in batch] == list(range(num_rows))
    for world_size in (2, 3, 7):
        of_each = batches(num_rows, world_size, streams=streams)
        assert sorted(batch for process in of_each for batch in process) == alone
        assert all(process == sorted(process) for process in of_each)


@pytest.mark.parametrize("streams", [False, True])
def test_what_is_left_is_dealt_out_evenly(streams):
    """Parts of 12 rows; 0, 2 and 3 are finished."""
    of_each = batches(12 * 9 + 5, 2, (0, 2, 3), streams)
    parts = [sorted({batch[0] // 12 for batch in process}) for process in of_each]
    assert sorted(parts[0] + parts[1]) == [1, 4, 5, 6, 7, 8, 9] and abs(len(parts[0]) - len(parts[1])) <= 1
    assert batches(24, 2, (0, 1), streams) == [[], []]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/set/cat/1.png", "cat/1.png"),
        ("/elsewhere/2.png", "2.png"),
        ("3.png", "3.png"),
        ("zip://cat/4.png::/data/set/x.zip", "cat/4.png"),
    ],
)
def test_names_do_not_tell_where_the_data_lie(path, name):
    assert file_name(path, "/data/set") == name
