"""How many rows each block of a data set has that is read at once (a Parquet row group)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np


class RowGroups(Sequence[int]):
    """The numbers of rows of all row groups, in order: a sequence of integers that takes 8 bytes each.

    Attributes:
        ends: `(len(self),)` int64, number of rows up to the end of each group. Row i of the data set is in the first
            group whose end is above i.
        largest: rows of the largest group.
    """

    def __init__(self, sizes: Iterable[int] | np.ndarray):
        sizes = sizes if isinstance(sizes, np.ndarray) else np.fromiter(sizes, dtype=np.int64)
        self.largest = int(sizes.max(initial=0))
        self.ends = sizes.astype(np.int64)
        np.cumsum(self.ends, out=self.ends)  # in place: there may be ten millions

    @classmethod
    def of(cls, sizes: "RowGroups | Iterable[int]") -> "RowGroups":
        return sizes if isinstance(sizes, cls) else cls(sizes)

    @property
    def num_rows(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[int]:
        yield from np.diff(self.ends, prepend=0).tolist()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[group] for group in range(len(self))[index]]
        group = range(len(self))[index]
        return int(self.ends[group] - self.starts_of(group))

    def starts_of(self, groups: Any) -> Any:
        """First row of each of some groups. groups: `(N,)` int64, or one number."""
        return np.where(groups > 0, self.ends[groups - 1], 0)

    def find(self, row: int) -> tuple[int, int]:
        """The group that a row is in, and the row's place in it."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        return group, row - (int(self.ends[group - 1]) if group else 0)
