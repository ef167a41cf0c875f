"""Images in batches that do not depend on how many processes there are, nor on what was finished before: the order of
additions in a product of matrices depends on the batch, and so do the last bits of a vector."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..data.dataset import ImageDataset, collate
from ..data.loaders import outlive_signals
from ..data.plan import Plan, RowBatches, StreamBatches, file_name
from ..data.preprocessing import EvaluationTransform
from ..data.row_groups import RowGroups
from ..data.source import HeldRows, ImageSource


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
