"""Pairs of images whose embeddings are nearly the same, by cosine similarity, a block of them against another at a
time."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn
from tqdm.auto import tqdm

from .table import EmbeddingFile

# Of the vectors of a block, of which two are held.
BLOCK_BYTES = 64 * 2**20
# Rows of a product of matrices: 2,048 x 2,048 similarities, 16 MiB.
TILE = 2048
# The cosine of two equal vectors is 1 but for what float32 rounds.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Pairs:
    """Attributes: first, second: `(P,)` int64, places of the vectors, first < second. similarity: `(P,)` float32, the
    highest first. total: pairs that were found, of which at most N are kept."""

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray
    total: int

    def groups(self) -> np.ndarray:
        """`(P,)`: the group of each pair, from 0: images that pairs link, be it by others in between."""
        places, index = np.unique(np.concatenate([self.first, self.second]), return_inverse=True)
        first, second = index.reshape(2, -1)
        links = coo_matrix((np.ones(len(first)), (first, second)), shape=(len(places), len(places)))
        return connected_components(links, directed=False)[1][first]


class _Kept:
    """The most similar pairs of those that were added."""

    def __init__(self, max_pairs: int):
        self.max_pairs, self.total, self.num_held = max_pairs, 0, 0
        self.held: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, first: np.ndarray, second: np.ndarray, similarity: np.ndarray) -> None:
        self.held.append((first, second, similarity))
        self.total += len(first)
        self.num_held += len(first)
        if self.num_held > 2 * self.max_pairs:
            self.held = [self.best()]
            self.num_held = len(self.held[0][0])

    def best(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        kinds = (np.int64, np.int64, np.float32)
        first, second, similarity = (np.concatenate([np.zeros(0, k), *p]) for k, p in zip(kinds, zip(*self.held)))
        order = np.lexsort((second, first, -similarity))[: self.max_pairs]
        return first[order], second[order], similarity[order]


def find_pairs(
    load: Callable[[int], torch.Tensor],
    sizes: Sequence[int],
    threshold: float,
    max_pairs: int,
    device: torch.device | str = "cpu",
    shows_progress: bool = False,
) -> Pairs:
    """All pairs of vectors of a cosine similarity of at least `threshold`; of more than `max_pairs` the most similar,
    and among equals those that come first.

    Args:
        load: number of a block -> its vectors `(n, d)`. A vector of zeros is similar to none. sizes: n of each block.
    """
    starts, kept = np.cumsum([0, *sizes]), _Kept(max_pairs)
    kept.held.append((np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)))
    pairs = [(i, j) for i in range(len(sizes)) for j in range(i, len(sizes))]
    block, number = torch.zeros(0), -1
    for i, j in tqdm(pairs, desc="Near-duplicates", unit="block", disable=not shows_progress):
        if i != number:
            block, number = nn.functional.normalize(load(i).to(device)), i
        other = block if i == j else nn.functional.normalize(load(j).to(device))
        for a, b, similarity in _similar(block, other, threshold - ROUNDING, is_same=i == j):
            kept.add(a + starts[i], b + starts[j], similarity)
    return Pairs(*kept.best(), kept.total)


def _similar(
    block: torch.Tensor, other: torch.Tensor, threshold: float, is_same: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Places in both, and similarities; of a block with itself each pair once."""
    for top in range(0, len(block), TILE):
        for left in range(top if is_same else 0, len(other), TILE):
            product = block[top : top + TILE] @ other[left : left + TILE].T
            is_similar = product >= threshold
            if is_same and top == left:
                is_similar = is_similar.triu(diagonal=1)
            a, b = is_similar.nonzero(as_tuple=True)
            if len(a):
                similarity = product[a, b].clamp(max=1.0)
                yield a.cpu().numpy() + top, b.cpu().numpy() + left, similarity.cpu().numpy()


def near_duplicates(
    file: EmbeddingFile,
    threshold: float,
    max_pairs: int,
    device: torch.device | str = "cpu",
    shows_progress: bool = True,
) -> Pairs:
    """`find_pairs` of a file of embeddings, with two blocks of BLOCK_BYTES in memory."""
    blocks = file.blocks(max(1, BLOCK_BYTES // (4 * file.dim)))
    sizes = [int(file.group_rows[groups].sum()) for groups in blocks]

    def load(block: int) -> torch.Tensor:
        return torch.from_numpy(file.read(blocks[block]))

    return find_pairs(load, sizes, threshold, max_pairs, device, shows_progress)


def write_pairs(pairs: Pairs, file: EmbeddingFile, path: Path) -> None:
    """A CSV file, a line a pair, the most similar first: group, similarity, and row, file name and label of both."""
    columns = file.columns()
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    sides = [(f"{name}_1", f"{name}_2", values) for name, values in columns.items()]
    writer.writerow(["group", "similarity", *(name for first, second, _ in sides for name in (first, second))])
    names = file.class_names
    for group, similarity, *places in zip(pairs.groups(), pairs.similarity, pairs.first, pairs.second):
        cells = []
        for first, _, values in sides:
            for place in places:
                value = values[place]
                is_class = first == "label_1" and names is not None and value >= 0
                cells.append(names[value] if is_class and names is not None else value)
        writer.writerow([group, f"{similarity:.6f}", *cells])
    path.write_text(lines.getvalue(), encoding="utf-8")
