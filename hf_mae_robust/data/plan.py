"""Images in parts and batches that depend neither on how many processes there are, nor on what was finished before.
Each part is worked on by one process, and a run that was killed resumes with those that are missing."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .bad_images import path_within


@dataclass(frozen=True)
class Plan:
    """Which images are worked on together, and by which process. A part is `part_rows` images after one another; one
    process works on it, in batches of `batch_size`, of which `part_rows` is a multiple.

    Attributes:
        finished: parts that are there already, ascending. The others are dealt out in turn.
    """

    batch_size: int
    part_rows: int
    finished: Sequence[int] = ()
    rank: int = 0
    world_size: int = 1

    def is_mine(self, part: int) -> bool:
        before = bisect_left(self.finished, part)
        if before < len(self.finished) and self.finished[before] == part:
            return False
        return (part - before) % self.world_size == self.rank


class RowBatches:
    """A batch sampler: the keys `(0, row)` of this process's batches, of a source with random access."""

    def __init__(self, plan: Plan, num_rows: int):
        self.plan, self.num_rows = plan, num_rows

    def _starts(self) -> Iterator[int]:
        plan = self.plan
        for part in range(-(-self.num_rows // plan.part_rows)):
            if plan.is_mine(part):
                start = part * plan.part_rows
                yield from range(start, min(start + plan.part_rows, self.num_rows), plan.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in self._starts():
            yield [(0, row) for row in range(start, min(start + self.plan.batch_size, self.num_rows))]

    def __len__(self) -> int:
        return sum(1 for _ in self._starts())


class StreamBatches:
    """A batch sampler for a stream that cannot seek: this process's batches of encoded images, `(row, {"image",
    "label"})`. It reads the stream to its end once, and passes over what is not this process's.

    Attributes:
        num_rows: of the stream, once it was read; None before.
    """

    def __init__(self, plan: Plan, rows: Any):
        self.plan, self.rows = plan, rows
        self.num_rows: int | None = None

    def __iter__(self) -> Iterator[list[tuple[int, dict[str, Any]]]]:
        rows, start = iter(self.rows), 0
        while batch := list(islice(rows, self.plan.batch_size)):
            if self.plan.is_mine(start // self.plan.part_rows):
                yield list(enumerate(batch, start))
            start += len(batch)
        self.num_rows = start


def file_name(path: str, root: str) -> str:
    """Counted from the folder of the data set; within an archive (`zip://cat/1.png::/data/x.zip`) from its top; of a
    file elsewhere the last part."""
    if "::" in path:
        return path.split("::", 1)[0].split("://", 1)[-1]
    return path_within(path, root)
