"""Images in batches that do not depend on how many processes there are, nor on what was finished before: the order of
additions in a product of matrices depends on the batch, and so do the last bits of a vector."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..data.bad_images import path_within
from ..data.dataset import ImageDataset, collate
from ..data.loaders import outlive_signals
from ..data.preprocessing import EvaluationTransform
from ..data.row_groups import RowGroups
from ..data.source import HeldRows, ImageSource


@dataclass(frozen=True)
class Plan:
    """Which images are embedded together, and by which process. A part is `part_rows` images after one another; it is
    embedded by one process, in batches of `batch_size`, of which `part_rows` is a multiple.

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


class _NamedRows:
    """Rows of others; the file names of those that were read wait in `names`, by row, "" where there is none."""

    def __init__(self, source: ImageSource):
        self.rows, self.root, self.names = source.rows, source.root, dict[int, str]()

    def __getitem__(self, row: int) -> Any:
        value = self.rows[row]
        path = value.get("path") if isinstance(value, dict) else None
        self.names[row] = file_name(path, self.root) if path else ""
        return value

    def label(self, row: int) -> Any:
        return self.rows.label(row)


def file_name(path: str, root: str) -> str:
    """Counted from the folder of the data set; within an archive (`zip://cat/1.png::/data/x.zip`) from its top; of a
    file elsewhere the last part."""
    if "::" in path:
        return path.split("::", 1)[0].split("://", 1)[-1]
    return path_within(path, root)


class NamedImages(ImageDataset):
    """`ImageDataset` whose items also hold `"position"`, the row that was asked for, bad or not, and `"file_name"`. A
    bad image becomes a filler."""

    def __init__(self, source: ImageSource, transform: EvaluationTransform, num_channels: int):
        self.named = _NamedRows(source)
        super().__init__(replace(source, rows=self.named), transform, num_channels, replace_bad_images=False)

    def __getitems__(self, keys: Sequence[tuple[int, ...]]) -> list[dict[str, Any]]:
        items = super().__getitems__(keys)
        for (_, row), item in zip(keys, items):
            item |= {"position": row, "file_name": self.named.names.pop(row, "")}
        return items


class _HeldImages(torch.utils.data.Dataset[Any]):
    """The batches of `StreamBatches`, decoded."""

    def __init__(self, source: ImageSource, transform: EvaluationTransform, num_channels: int):
        self.source, self.transform, self.num_channels = replace(source, rows=None), transform, num_channels

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
        start = keys[0][0]
        rows = HeldRows([row["image"] for _, row in keys], [row.get("label") for _, row in keys])
        held = replace(self.source, rows=rows, row_groups=RowGroups([len(rows)]))
        items = NamedImages(held, self.transform, self.num_channels).__getitems__([(0, i) for i in range(len(rows))])
        for item in items:
            item["position"] += start
            item["row"] += start if item["row"] >= 0 else 0
            if "skipped" in item:
                item["skipped"] = [replace(record, row=record.row + start) for record in item["skipped"]]
        return items


def planned_loader(
    source: ImageSource, transform: EvaluationTransform, num_channels: int, plan: Plan, num_workers: int
) -> tuple[DataLoader[Any], RowBatches | StreamBatches]:
    """This process's batches in order, `{"pixel_values": (B, C, H, W), "row": (B,), "position": (B,), "file_name": a
    list}`, with labels also `"labels": (B,)`, and the sampler behind them; a row of -1 is a filler for an image that
    cannot be decoded, which is listed under `"skipped"` (see `collate`)."""
    options: dict[str, Any] = {"collate_fn": collate, "worker_init_fn": outlive_signals, "num_workers": num_workers}
    if source.num_rows is None:
        of_stream = StreamBatches(plan, source.rows)
        images: Any = _HeldImages(source, transform, num_channels)
        return DataLoader(images, batch_sampler=of_stream, **options), of_stream
    of_rows = RowBatches(plan, source.num_rows)
    return DataLoader(NamedImages(source, transform, num_channels), batch_sampler=of_rows, **options), of_rows
