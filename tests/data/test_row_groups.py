"""Numbers of rows, compactly."""

import pickle

import numpy as np
import pytest

from hf_mae_robust.data.row_groups import RowGroups

SIZES = [7, 0, 10, 3, 0, 25, 1]


@pytest.mark.parametrize(
    "sizes", [SIZES, tuple(SIZES), np.array(SIZES, dtype=np.int32)], ids=["list", "tuple", "array"]
)
def test_it_is_a_sequence_of_the_numbers(sizes):
    groups = RowGroups(sizes)
    assert list(groups) == SIZES and len(groups) == len(SIZES) and groups.num_rows == sum(groups) == sum(SIZES)
    assert [groups[i] for i in range(len(SIZES))] == SIZES and (groups[-1], groups[1:4]) == (1, [0, 10, 3])
    with pytest.raises(IndexError):
        groups[len(SIZES)]
    assert groups.largest == 25 and RowGroups.of(groups) is groups and list(RowGroups.of(sizes)) == SIZES
    assert list(pickle.loads(pickle.dumps(groups))) == SIZES


def test_each_row_is_found():
    groups, expected = RowGroups(SIZES), [(i, place) for i, size in enumerate(SIZES) for place in range(size)]
    assert [groups.find(row) for row in range(groups.num_rows)] == expected
    assert groups.starts_of(np.arange(len(SIZES))).tolist() == [0, 7, 7, 17, 20, 20, 45]


def test_no_groups():
    groups = RowGroups([])
    assert (len(groups), groups.num_rows, groups.largest, list(groups)) == (0, 0, 0, [])


def test_more_rows_than_32_bits_hold():
    assert RowGroups(np.full(3, 2**31 - 1, dtype=np.int32)).num_rows == 3 * (2**31 - 1)
