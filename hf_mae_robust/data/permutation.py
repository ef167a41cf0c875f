"""A random permutation of which any part can be computed by itself, without holding the rest."""

from collections.abc import Sequence

import numpy as np

# Up to this many elements numpy draws the permutation, which is uniform over all there are. The networks of more
# elements have at least 256 columns; of fewer, some neighbours would stay together more often than by chance.
LARGEST_DRAWN = 1 << 16
# Two neighbours stay at their distance with a probability of about 1 / size ** (NUM_ROUNDS / 2), beyond that of chance.
NUM_ROUNDS = 3


class KeyedPermutation:
    """A permutation of 0 to `size` - 1 that `key` decides on. Called with some places `(N,)` int64, it gives the
    elements that stand there, `(N,)` int64.

    A Feistel network (Luby and Rackoff 1988) on a rectangle of about sqrt(size) rows and columns that holds all
    elements: column and row are moved in turn, by what a table of random numbers says of the other. What falls outside
    the elements is put through once more until it falls inside ("cycle walking", Black and Rogaway 2002). The tables
    hold 2 * NUM_ROUNDS * sqrt(size) numbers.
    """

    def __init__(self, size: int, key: Sequence[int], largest_drawn: int = LARGEST_DRAWN):
        rng = np.random.default_rng(key)
        self.size = size
        self._drawn = rng.permutation(size) if size <= largest_drawn else None
        if self._drawn is None:
            width = int(np.ceil(np.sqrt(size)))
            height = -(-size // width)
            self._shape = np.uint64(height), np.uint64(width)
            self._tables = [
                (rng.integers(height, size=width, dtype=np.uint64), rng.integers(width, size=height, dtype=np.uint64))
                for _ in range(NUM_ROUNDS)
            ]

    def __call__(self, places: np.ndarray) -> np.ndarray:
        if self._drawn is not None:
            return self._drawn[places]
        elements = self._network(places)
        outside = np.flatnonzero(elements >= self.size)
        while len(outside):
            elements[outside] = self._network(elements[outside])
            outside = outside[elements[outside] >= self.size]
        return elements

    def _network(self, places: np.ndarray) -> np.ndarray:
        height, width = self._shape
        rows, columns = (part.view(np.uint64) for part in np.divmod(places, int(width)))
        for moves_of_column, moves_of_row in self._tables:
            _move(rows, moves_of_column, columns, height)
            _move(columns, moves_of_row, rows, width)
        return (rows * width + columns).view(np.int64)


def _move(values: np.ndarray, moves: np.ndarray, by: np.ndarray, size: np.uint64) -> None:
    """`values = (values + moves[by]) % size`, in place; a remainder would take three times as long."""
    values += moves.take(by.view(np.int64))
    np.minimum(values, values - size, out=values)  # where there is nothing to take off, the difference wraps around
