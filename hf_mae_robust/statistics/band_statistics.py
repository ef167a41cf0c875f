"""Statistics of each band of a data set, of the pixels as they are stored: one streaming pass, mergeable, float64."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from ..errors import DataError, MissingFileError, UserError
from .moments import deviation, merged, merged_all, moments_of
from .statistics_file import read_statistics, write_statistics

FORMAT = "hf_mae_robust.band_statistics"
# Of all bands together; in float64 these fit a processor's cache.
NUMBERS_AT_ONCE = 2**17
# Usual marks of missing pixels, and how large a number is that no sensor measures.
MARKS = (-9999.0, -99999.0, -32768.0)
HUGE = 1e30
TENSORS = ("image_mean", "image_std", "band_minimum", "band_maximum", "band_count", "band_missing")


@dataclass
class BandStatistics:
    """Running statistics of each of C bands, in the units of the file. NaN is a missing pixel, which only
    `missing` counts.

    Two of them can be merged exactly (`moments.merged`), so the pass can be split over processes in any way.

    Attributes:
        count: int64 `(C,)`, pixels that hold a number. missing: int64 `(C,)`, pixels that hold none.
        mean, sum_of_squares: float64 `(C,)`, the second about the mean.
        minimum, maximum: float64 `(C,)`; inf and -inf of a band without any number.
        metadata: what they were computed over; kept in the file.
    """

    count: torch.Tensor
    missing: torch.Tensor
    mean: torch.Tensor
    sum_of_squares: torch.Tensor
    minimum: torch.Tensor
    maximum: torch.Tensor
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def empty(cls, num_bands: int) -> Self:
        none = torch.zeros(num_bands, dtype=torch.int64)
        zero, infinity = none.double(), torch.full((num_bands,), torch.inf, dtype=torch.float64)
        return cls(none, none, zero, zero, infinity, -infinity)

    def without_content(self) -> Self:
        """Statistics of nothing, of the same form."""
        return self.empty(self.num_bands)

    @property
    def num_bands(self) -> int:
        return len(self.count)

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation over the population (divides by the count), float64 `(C,)`; 0 of a constant band."""
        return torch.where(self.is_constant, 0.0, deviation(self.count, self.sum_of_squares))

    @property
    def usable_std(self) -> torch.Tensor:
        """`std` to divide by: 1 where the band is constant or has no number."""
        return torch.where(self.is_constant, 1.0, self.std)

    @property
    def is_constant(self) -> torch.Tensor:
        """bool `(C,)`: bands all of whose numbers are the same, or that have none. Not asked of the deviation, which
        rounding keeps from being exactly 0."""
        return self.minimum >= self.maximum

    @property
    def missing_share(self) -> torch.Tensor:
        """float64 `(C,)` in [0, 1]: which share of the pixels is missing; 0 of no pixels."""
        return self.missing.double() / (self.count + self.missing).clamp(min=1)

    def update(self, image: torch.Tensor | np.ndarray) -> None:
        """Take in an image `(C, H, W)` of any real type; NaN is a missing pixel."""
        for part in torch.as_tensor(image).flatten(1).split(max(1, NUMBERS_AT_ONCE // self.num_bands), dim=1):
            self.merge(self._of(part.double()))

    def _of(self, numbers: torch.Tensor) -> "BandStatistics":
        """numbers: float64 `(C, N)`."""
        total = numbers.shape[1]
        count, mean, sum_of_squares = moments_of(numbers, dim=1)
        if isinstance(count, int):
            counts = torch.full((self.num_bands,), count)
            limits = numbers.aminmax(dim=1) if count else self.empty(self.num_bands)._limits
        else:
            counts = count
            is_missing = numbers.isnan()
            limits = (
                numbers.masked_fill(is_missing, torch.inf).amin(dim=1),
                numbers.masked_fill(is_missing, -torch.inf).amax(dim=1),
            )
        return BandStatistics(counts, total - counts, mean, sum_of_squares, *limits)

    @property
    def _limits(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.minimum, self.maximum

    def merge(self, other: "BandStatistics") -> None:
        """Add what `other` has counted: as if all images had come here."""
        counts: Any
        counts, self.mean, self.sum_of_squares = merged(
            (self.count, self.mean, self.sum_of_squares), (other.count, other.mean, other.sum_of_squares)
        )
        self.count, self.missing = counts, self.missing + other.missing
        self.minimum = torch.minimum(self.minimum, other.minimum)
        self.maximum = torch.maximum(self.maximum, other.maximum)

    def packed(self) -> torch.Tensor:
        """float64 `(6, C)`, exact for counts up to 2**53: all but the metadata, as one tensor."""
        return torch.stack([getattr(self, name).double() for name in _PACKED])

    @classmethod
    def unpacked(cls, packed: torch.Tensor) -> Self:
        """`(B, 6, C)`, what `packed` gave for each of several parts -> the statistics of all of them."""
        count, missing, mean, squares, minimum, maximum = packed.unbind(1)
        counts: Any
        counts, mean, squares = merged_all(count, mean, squares)
        return cls(counts, missing.sum(0).long(), mean, squares, minimum.amin(0), maximum.amax(0))

    def names(self) -> list[str]:
        """A name for each band: "band 7", by its number in the file, from 0 (metadata["bands"], where a choice was
        made)."""
        return band_names(self.num_bands, self.metadata.get("bands"))

    def check(self, description: str) -> None:
        """Raise DataError where a band has no number at all. description: of the images."""
        lacking = [name for name, count in zip(self.names(), self.count.tolist(), strict=True) if count == 0]
        if lacking:
            raise DataError(
                f"{description}: all pixels of {', '.join(lacking)} are missing (--nodata, or the file's own mark). "
                "Leave these bands out with --bands, or correct --nodata."
            )

    def warnings(self) -> list[str]:
        """A sentence for each band whose deviation cannot be divided by, and one on numbers that look like marks of
        missing pixels."""
        rows = list(zip(self.names(), self.minimum.tolist(), self.maximum.tolist(), strict=True))
        constant = [
            f"{name[0].upper()}{name[1:]} is constant: all of its pixels are {low:g}. Its standard deviation is 0, and "
            "1 is used in its place; --bands can leave it out."
            for name, low, high in rows
            if low >= high
        ]
        marks: dict[float, list[str]] = {}
        for name, low, high in rows:
            for number in (low, high) if low < high else ():
                if number in MARKS or HUGE < abs(number) < math.inf:
                    marks.setdefault(number, []).append(name.removeprefix("band "))
        return constant + [
            f"The number {number:.9g} in band{'s' * (len(names) > 1)} {_shortened(names)} counts as a measurement. "
            f"If it marks missing pixels, name it: --nodata {number:.9g}."
            for number, names in marks.items()
        ]

    def describe(self) -> str:
        """One line, such as "13 bands, mean 0.12 to 2310, standard deviation 0.05 to 870, 1.5% of the numbers
        missing"."""
        missing = float(self.missing.sum()) / max(1, int((self.count + self.missing).sum()))
        return (
            f"{self.num_bands} band{'s' * (self.num_bands > 1)}, mean {_span(self.mean)}, standard deviation "
            f"{_span(self.std)}, {missing:.2%} of the numbers missing"
        )

    def table(self) -> str:
        """A line for each band, under a line of titles: mean, standard deviation, smallest and largest number, and the
        share of pixels that is missing."""
        lines = ["band            mean           std       minimum       maximum  missing"]
        values = (self.mean, self.std, self.minimum, self.maximum, self.missing_share)
        for name, *numbers, share in zip(self.names(), *(value.tolist() for value in values), strict=True):
            row = "".join(f"{number:14.6g}" for number in numbers)
            lines.append(f"{name.removeprefix('band '):<6}{row}{share:9.2%}")
        return "\n".join(lines)

    def tensors(self) -> dict[str, torch.Tensor]:
        """As they stand in a file: `image_mean` and `image_std` (float64, `usable_std`) are those of the config."""
        values = self.mean, self.usable_std, self.minimum, self.maximum, self.count, self.missing
        return dict(zip(TENSORS, values, strict=True))

    def save(self, path: str | Path) -> None:
        """Write `tensors` and the metadata to a .safetensors file, complete or not at all."""
        write_statistics(Path(path), self.tensors(), {"format": FORMAT, **self.metadata})

    @classmethod
    def load(cls, path: str | Path, num_bands: int | None = None) -> Self:
        """Read what `save` wrote, or the bands of a file that `python -m hf_mae_robust statistics` wrote.

        Raises MissingFileError where there is no such file, UserError where it is something else, cut off, or of
        another number of bands than `num_bands`.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(
                f"No band statistics at {path}. Compute them with `python -m hf_mae_robust statistics`, or let "
                "run_pretrain.py do it with --image_statistics auto."
            )
        tensors, metadata = read_statistics(path)
        if missing := set(TENSORS) - set(tensors):
            raise UserError(
                f"{path} holds no band statistics (no {', '.join(sorted(missing))}). They are written by "
                "`python -m hf_mae_robust statistics` for images of bands."
            )
        mean, std, minimum, maximum, count, missing_pixels = (tensors[name] for name in TENSORS)
        if num_bands is not None and len(mean) != num_bands:
            raise UserError(f"The statistics in {path} are of {len(mean)} bands, and the images have {num_bands}.")
        for key in ("format", "num_patches"):
            metadata.pop(key, None)
        squares = torch.where(minimum >= maximum, 0.0, std**2 * count)
        return cls(count, missing_pixels, mean, squares, minimum, maximum, metadata)


_PACKED = ("count", "missing", "mean", "sum_of_squares", "minimum", "maximum")


def _span(numbers: torch.Tensor) -> str:
    low, high = f"{numbers.min().item():.4g}", f"{numbers.max().item():.4g}"
    return low if low == high else f"{low} to {high}"


def _shortened(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def band_names(num_bands: int, bands: Sequence[int] | None = None) -> list[str]:
    """bands: their numbers in the file, from 0; None: all of them, in their order."""
    return [f"band {number}" for number in (range(num_bands) if bands is None else bands)]
