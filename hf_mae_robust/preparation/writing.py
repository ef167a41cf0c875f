"""From images to finished parts of a prepared split: workers shrink, each process writes parts of its own."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate import PartialState
from datasets import Features, Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.bad_images import SkippedImage, SkippedImages, skipped_image
from ..data.decoding import decode_image
from ..data.loaders import outlive_signals
from ..data.plan import Plan, RowBatches, StreamBatches, file_name
from ..data.source import ImageSource
from ..errors import ImageDecodingError
from ..statistics.stored import IMAGE_COLUMN, Accumulator, Form
from ..training.parts import Part, Parts
from ..training.processes import all_processes
from .annotations import Annotations
from .shrinking import Shrinking, Shrunk

# Images that a worker hands over together: few, so that the progress bar moves, and a multiple of these is a part.
MAX_BATCH = 25
STATISTICS = "statistics"


def batch_rows(part_rows: int) -> int:
    """The largest divisor of a part that MAX_BATCH allows."""
    return max(number for number in range(1, MAX_BATCH + 1) if part_rows % number == 0)


def features_of(annotations: Annotations | None) -> Features:
    """The columns of a prepared data set."""
    beside = {} if annotations is None else {annotations.column: annotations.feature}
    return Features({IMAGE_COLUMN: Image(), **beside})


def packed_text(statistics: np.ndarray) -> str:
    """float64 `(n,)` as JSON holds it, exactly."""
    return base64.b64encode(statistics.astype("<f8").tobytes()).decode()


def unpacked_text(text: str) -> np.ndarray:
    """The inverse of `packed_text`."""
    return np.frombuffer(base64.b64decode(text), "<f8").astype(np.float64)


@dataclass
class Batch:
    """Rows `start` to `stop` of a source, without those that cannot be decoded. statistics: as of `Accumulator`; None:
    of no image."""

    start: int
    stop: int
    rows: list[dict[str, Any]]
    skipped: list[SkippedImage]
    statistics: np.ndarray | None


class ShrunkImages(Dataset[Any]):
    """The batches of `RowBatches` and `StreamBatches`, shrunk."""

    def __init__(self, source: ImageSource, shrinking: Shrinking, annotations: Annotations | None, form: Form):
        # The rows of a stream come with the keys.
        self.source = source if source.num_rows is not None else replace(source, rows=None)
        self.shrinking, self.annotations, self.form = shrinking, annotations, form
        self.accumulator: Accumulator | None = None  # each worker makes its own

    def __getitem__(self, key: Any) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Any]) -> Batch:
        self.accumulator = self.accumulator or Accumulator(self.form)
        rows, skipped, statistics, positions = [], [], [], []
        for position, value, label in self._values(keys):
            positions.append(position)
            try:
                row, counted = self._shrunk(position, value, label)
            except ImageDecodingError as error:
                skipped.append(skipped_image(self.source.description, self.source.root, position, error))
                continue
            rows.append(row)
            statistics.append(counted)
        of_all = self.accumulator.joined(statistics) if statistics else None
        return Batch(positions[0], positions[-1] + 1, rows, skipped, of_all)

    def _values(self, keys: Sequence[Any]) -> Iterator[tuple[int, Any, Any]]:
        """Row number, encoded image, and what stands beside it."""
        for key in keys:
            if self.source.num_rows is None:
                yield key[0], key[1]["image"], key[1].get("label")
            else:
                row = key[1]
                label = None if self.annotations is None or self.source.labels is None else self.source.rows.label(row)
                yield row, self.source.rows[row], label

    def prepared(self, value: Any, position: int | None = None) -> tuple[Shrunk, np.ndarray]:
        """An encoded image -> one that is shrunk, and its statistics (as of `Accumulator`). Raises ImageDecodingError.
        position: of its row, for errors."""
        self.accumulator = self.accumulator or Accumulator(self.form)
        image = self.shrinking(value, position, self.source.min_side)
        # What stays as it is shows its damage here; and the statistics are of what training will read.
        pixels = decode_image(image.content, self.form.num_channels, position)
        return image, self.accumulator.of_image(pixels)

    def is_bad(self, row: int) -> bool:
        """Whether an image that could not be decoded still cannot."""
        return not self.source.may_be_repaired or bool(self[0, row].skipped)

    def _shrunk(self, position: int, value: Any, label: Any) -> tuple[dict[str, Any], np.ndarray]:
        image, statistics = self.prepared(value, position)
        path = value.get("path") if isinstance(value, dict) else None
        name = str(PurePosixPath(file_name(path, self.source.root)).with_suffix(image.ending)) if path else None
        row: dict[str, Any] = {IMAGE_COLUMN: {"bytes": image.content, "path": name}}
        if self.annotations is not None:
            row[self.annotations.column] = self.annotations.shrunk(label, image, position)
        return row, statistics


def _as_it_is(batch: Any) -> Any:
    return batch


class SplitWriter:
    """Writes this process's parts of a split.

    Args:
        finished: parts that are there already.
    """

    def __init__(
        self,
        source: ImageSource,
        images: ShrunkImages,
        parts: Parts,
        finished: list[Part],
        *,
        num_workers: int,
        max_bad_images: float,
    ):
        state = PartialState()
        self.source, self.images, self.parts = source, images, parts
        numbers = tuple(part.number for part in finished)
        plan = Plan(batch_rows(parts.part_rows), parts.part_rows, numbers, state.process_index, state.num_processes)
        is_stream = source.num_rows is None
        self.batches = StreamBatches(plan, source.rows) if is_stream else RowBatches(plan, len(source))
        options: dict[str, Any] = {"worker_init_fn": outlive_signals, "num_workers": num_workers}
        self.loader = DataLoader(images, batch_sampler=self.batches, collate_fn=_as_it_is, **options)
        self.max_bad_images = max_bad_images
        self.skipped = SkippedImages(None, max_bad_images)
        self.skipped.add(record for part in finished for record in part.skipped)

    def run(self) -> int:
        """Shrink and write. To be called by all processes, which meet at the end. Returns the number of images in the
        split, the bad ones included.

        Raises DataError, in all processes, where too many cannot be decoded, and LostProcessError where another process
        failed.
        """
        outcomes = all_processes(self._write_parts)
        skipped = SkippedImages(None, self.max_bad_images)
        skipped.add(record for part in outcomes for record in part)
        num_rows = self.source.num_rows
        if isinstance(self.batches, StreamBatches):
            num_rows = self.batches.num_rows  # it was read to its end
        skipped.check(self.source.description, num_rows)
        return num_rows or 0

    def _write_parts(self) -> list[SkippedImage]:
        source, is_shown = self.source, PartialState().is_main_process
        total = None if isinstance(self.batches, StreamBatches) else sum(len(batch) for batch in self.batches)
        with tqdm(total=total, desc=f"Shrinking {source.description}", unit="image", disable=not is_shown) as bar:
            for number, held in groupby(self.loader, lambda batch: batch.start // self.parts.part_rows):
                batches = []
                for batch in held:
                    bar.update(batch.stop - batch.start)
                    batches.append(batch)
                    is_new = self.skipped.add(batch.skipped)
                    is_known = is_new and source.num_rows is not None
                    if is_known and self.skipped.exceeds(source.description, source.num_rows):
                        return list(self.skipped)  # the others learn of it where all meet
                self._write(number, batches)
        return list(self.skipped)

    def _write(self, number: int, batches: list[Batch]) -> None:
        rows = [row for batch in batches for row in batch.rows]
        skipped = [record for batch in batches for record in batch.skipped]
        counted = [batch.statistics for batch in batches if batch.statistics is not None]
        more = {}
        if counted:
            more[STATISTICS] = packed_text(Accumulator(self.images.form).joined(counted))
        features = features_of(self.images.annotations)
        columns = {name: [row[name] for row in rows] for name in features}
        table = pa.table(features.encode_batch(columns), schema=features.arrow_schema)
        self.parts.write(Part(number, batches[0].start, batches[-1].stop, skipped, more), table)
