"""Arrays in columns of Arrow tables (`Array2D`, `Array3D`, nested lists) as numpy arrays of their own type, without a
copy and without a Python object a number: `datasets` gives them as nested lists, and integers as int64."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Array2D, Array3D, List, Value

ARRAYS = (Array2D, Array3D)


def holds_arrays(feature: Any) -> bool:
    """Whether a column of this feature holds an array of numbers in each row: of two axes or three."""
    if isinstance(feature, ARRAYS):
        return True
    depth = 0
    while isinstance(feature, List):
        feature, depth = feature.feature, depth + 1
    return depth in (2, 3) and isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "float"))


def arrays_of_chunk(chunk: pa.Array) -> Sequence[Any]:
    """The rows of a chunk: an array `(N, ...)` where all have one shape, else a list of arrays. None for a null; where
    the lists within a row have different lengths, so that they are not an array, these lists, which decoding refuses.
    """
    array = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
    nulls = np.asarray(array.is_null()) if array.null_count else None
    levels: list[np.ndarray] = []  # offsets into the level below, of each level of lists
    while pa.types.is_nested(array.type):
        if pa.types.is_fixed_size_list(array.type):
            size = array.type.list_size
            start = array.offset * size
            levels.append(np.arange(len(array) + 1, dtype=np.int64) * size)
            array = array.values[start : start + len(array) * size]
        else:
            offsets = np.asarray(array.offsets)
            levels.append(offsets - offsets[0])
            array = array.values[int(offsets[0]) : int(offsets[-1])]
    # A number that is missing among others becomes NaN, which makes floats of integers.
    numbers = array.to_numpy(zero_copy_only=False)
    sizes = [np.diff(offsets) for offsets in levels]
    if nulls is None and all(len(size) and (size == size[0]).all() for size in sizes):
        return numbers.reshape(len(chunk), *(int(size[0]) for size in sizes))
    return [
        None if nulls is not None and nulls[row] else _array_of_row(chunk, numbers, levels, row)
        for row in range(len(chunk))
    ]


def _array_of_row(chunk: pa.Array, numbers: np.ndarray, levels: Sequence[np.ndarray], row: int) -> Any:
    start, end, shape = row, row + 1, []
    for offsets in levels:
        lengths = {int(b) - int(a) for a, b in pairwise(offsets[start : end + 1])}
        if len(lengths) > 1:
            return chunk[row].as_py()
        shape.append(lengths.pop() if lengths else 0)
        start, end = int(offsets[start]), int(offsets[end])
    return numbers[start:end].reshape(shape)


class ArrayColumn:
    """Random access to the arrays of a column in memory-mapped chunks.

    index: `(N,)` row of the column for each row of this, of a table whose rows were chosen; None: all, in order.
    """

    def __init__(self, column: pa.ChunkedArray, index: np.ndarray | None = None):
        self.chunks, self.index = column.chunks, index
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks], dtype=np.int64)
        self.read: dict[int, Sequence[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "read": {}}

    def __getitem__(self, row: int) -> Any:
        """As `arrays_of_chunk` gives it."""
        row = int(row if self.index is None else self.index[row])
        chunk = int(np.searchsorted(self.ends, row, side="right"))
        if chunk not in self.read:
            self.read[chunk] = arrays_of_chunk(self.chunks[chunk])
        return self.read[chunk][row - (int(self.ends[chunk - 1]) if chunk else 0)]
