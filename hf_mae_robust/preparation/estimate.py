"""What preparing a data set would gain: some images timed both ways, by one process, before anything is written."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..data.dataset import ImageDataset
from ..data.decoding import contents_of
from ..data.preprocessing import training_transform
from ..data.row_groups import RowGroups
from ..data.source import HeldRows, ImageSource
from ..errors import DataError, ImageDecodingError

SAMPLES = 200
# Images that are timed one way before the other way has its turn: a machine that others use too is faster now, slower
# then.
TURN = 10


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of an image, on average, over `num_images`: read for training as it is, prepared, and read for
    training after that. `num_rows`: images in all splits; None: unknown."""

    num_images: int
    original_s: float
    preparing_s: float
    prepared_s: float
    original_bytes: float
    prepared_bytes: float
    num_rows: int | None

    @property
    def gain(self) -> float:
        return self.original_s / self.prepared_s

    def describe(self, num_processes: int) -> str:
        """num_processes: that shrink side by side."""
        lines = [
            f"Of {self.num_images:,} images, one process reads {_rate(self.original_s)} a second for training as they "
            f"are, and {_rate(self.prepared_s)} once they are prepared: {self.gain:.3g} times as many",
            f"An image takes {_bytes(self.original_bytes)} now and {_bytes(self.prepared_bytes)} then",
        ]
        if self.num_rows is not None:
            seconds = self.num_rows * self.preparing_s / num_processes
            lines.append(
                f"All {self.num_rows:,} images take {_time(seconds)} to prepare with {num_processes} "
                f"process{'es' * (num_processes > 1)}, and {_bytes(self.num_rows * self.prepared_bytes)} on the disk"
            )
        return "\n".join(lines)


def estimate_of(
    source: ImageSource, prepare: Callable[[Any], bytes], image_size: tuple[int, int], num_rows: int | None
) -> Estimate:
    """Time the augmentation of pre-training on a sample of a source, as it is and prepared, in turns.

    Args:
        prepare: an encoded image -> one that is shrunk; all that is done to an image is timed, its statistics too.
        image_size: of the crops, (height, width). num_rows: images in all splits.

    Raises DataError where no image of the sample can be decoded.
    """
    values = [value for value in _sample(source) if _size_of(value) is not None]
    former: list[Any] = []
    shrunk: list[Any] = []
    seconds = {"original": 0.0, "preparing": 0.0, "prepared": 0.0}
    # The first images would be timed together with what libraries load when they are first used.
    with suppress(ImageDecodingError):
        warm = [{"bytes": prepare(value), "path": None} for value in values[:1]]
        _time_reading(source, values[:1] + warm, image_size)
    for start in range(0, len(values), TURN):
        some = values[start : start + TURN]
        good, begun = [], time.perf_counter()
        ready = []
        for value in some:
            try:
                ready.append({"bytes": prepare(value), "path": None})
                good.append(value)
            except ImageDecodingError:
                continue
        seconds["preparing"] += time.perf_counter() - begun
        seconds["prepared"] += _time_reading(source, ready, image_size)
        seconds["original"] += _time_reading(source, good, image_size)
        former += good
        shrunk += ready
    if not shrunk:
        raise DataError(f"No image of {source.description} that was looked at can be decoded.")
    number = len(shrunk)
    return Estimate(
        number,
        seconds["original"] / number,
        seconds["preparing"] / number,
        seconds["prepared"] / number,
        sum(_size_of(value) or 0 for value in former) / number,
        sum(len(value["bytes"]) for value in shrunk) / number,
        num_rows,
    )


def _sample(source: ImageSource) -> list[Any]:
    """Encoded images: drawn at random where any row is as quick to reach, otherwise the first ones."""
    if source.num_rows is None:
        return [row["image"] for row in source.rows.take(SAMPLES)]
    chosen = source.sample(SAMPLES) if source.seekable_at_no_cost else source.head(SAMPLES)
    return [chosen.rows[row] for row in range(chosen.num_rows or 0)]


def _size_of(value: Any) -> int | None:
    """Bytes of an encoded image or an array; None where there is nothing to read."""
    try:
        contents = contents_of(value)
    except ImageDecodingError:
        return None
    return getattr(contents, "nbytes", None) or (len(contents) if isinstance(contents, bytes) else 0)


def _time_reading(source: ImageSource, values: list[Any], image_size: tuple[int, int]) -> float:
    """Seconds that the data path of pre-training takes for these images. Their labels are not read."""
    if not values:
        return 0.0
    held = replace(source, rows=HeldRows(values), row_groups=RowGroups([len(values)]), labels=None)
    transform = training_transform(image_size)
    images = ImageDataset(held, transform, 3, replace_bad_images=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        begun = time.perf_counter()
        images.__getitems__([(0, row) for row in range(len(values))])
        return time.perf_counter() - begun
    finally:
        torch.set_num_threads(threads)


def _rate(seconds: float) -> str:
    """A second, of what takes so long."""
    rate = 1 / seconds
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:,.3g} {unit}"
        number /= 1000
    return f"{number:,.3g} TB"


def _time(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:,.1f} {unit}"
    return f"about {seconds:,.0f} seconds" if seconds >= 2 else "a second or two"
