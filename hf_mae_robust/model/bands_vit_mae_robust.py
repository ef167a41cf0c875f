"""Images of any number of channels ("bands") and any type of number, with missing pixels: what a file holds, and how
its numbers become pixel values."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

# Fractions this large stand for "nothing was measured" in files that do not say so: the habit of GDAL and ESRI, who
# write the lowest number of float32 in full or as -3.4e38, and of NASA, who write the highest.
UNTAGGED_NODATA = 3.39e38


class BandError(ValueError):
    """An image that cannot be used as it is. kind: one of the kinds of data/decoding.py."""

    def __init__(self, message: str, kind: str = "unsupported"):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, eq=False)
class BandImage:
    """An image as it is stored.

    Attributes:
        pixels: `(C, H, W)`, numbers of the file's own type, in the byte order of the machine.
        nodata: the number that the file names as missing; None: it names none.
        valid: `(H, W)` or `(C, H, W)` bool, where the file has a mask of its own; None: everywhere.
    """

    pixels: np.ndarray
    nodata: float | None = None
    valid: np.ndarray | None = None


@dataclass(frozen=True)
class BandForm:
    """How the numbers of files become pixel values: choose bands, mark missing pixels, clip, normalise.

    Attributes:
        bands: 0-based numbers of the bands to take, in this order; None: all.
        nodata: number that means a missing pixel, beside what the file itself names; NaN always does.
        value_range: `(lowest, highest)` of each band after the choice; numbers beyond are clipped. None: no clipping.
        image_mean, image_std: of each band after the choice, in the units of the file; None: pixel values stay in these
            units.
        channel_axis: "first" or "last", of arrays, which do not say it themselves; None: found out by their shape.
        frame: 0-based number of the frame (page) to take of files that hold several; None: such files are refused.
    """

    bands: tuple[int, ...] | None = None
    nodata: float | None = None
    value_range: tuple[tuple[float, float], ...] | None = None
    image_mean: tuple[float, ...] | None = None
    image_std: tuple[float, ...] | None = None
    channel_axis: str | None = None
    frame: int | None = None

    @cached_property
    def num_channels(self) -> int | None:
        """C of the pixel values, where the form alone tells."""
        known = (self.bands, self.value_range, self.image_mean)
        return next((len(values) for values in known if values is not None), None)

    @cached_property
    def _numbers(self) -> dict[type, tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]]:
        """Type -> limits, and mean and 1 / deviation, `(C, 1, 1)` each; empty where there are none. Multiplying takes a
        third of the time of dividing."""
        limits = [] if self.value_range is None else list(zip(*self.value_range))
        normalization: list[Any] = []
        if self.image_mean is not None and self.image_std is not None:
            normalization = [self.image_mean, 1 / np.asarray(self.image_std, dtype=np.float64)]

        def typed(values: list[Any], dtype: type) -> tuple[np.ndarray, ...]:
            return tuple(np.asarray(numbers, dtype=dtype).reshape(-1, 1, 1) for numbers in values)

        return {dtype: (typed(limits, dtype), typed(normalization, dtype)) for dtype in (np.float32, np.float64)}

    def apply(
        self, image: BandImage, top: int = 0, left: int = 0, height: int | None = None, width: int | None = None
    ) -> np.ndarray:
        """A part of an image as pixel values.

        Args:
            top, left, height, width: in pixels; default: all of it.

        Returns:
            `(C, height, width)` float32, NaN where a pixel is missing; C: the chosen bands. In the units of the file,
            float64 where float32 does not hold its numbers: their small differences are what statistics are about.

        Raises:
            BandError: the image lacks a band, has another number of them than the form, holds infinite numbers, or
                numbers that are not real.
        """
        pixels = image.pixels
        if pixels.dtype.kind not in "iufb":
            raise BandError(f"numbers of type {pixels.dtype}, which are not real numbers")
        rows = slice(top, None if height is None else top + height)
        columns = slice(left, None if width is None else left + width)
        part = pixels[:, rows, columns]
        valid = image.valid if image.valid is None else image.valid[..., rows, columns]
        if self.bands is not None:
            if max(self.bands) >= len(pixels):
                raise BandError(f"--bands asks for band {max(self.bands)}, and the image has {len(pixels)} (0-based)")
            chosen = list(self.bands)
            part = part[chosen]
            valid = valid[chosen] if valid is not None and valid.ndim == 3 else valid
        if self.num_channels is not None and self.num_channels != len(part):
            raise BandError(f"an image of {len(part)} bands, where {self.num_channels} are wanted", "mismatch")
        # float32 holds every number of 16 bits.
        exact = np.float32 if part.dtype.itemsize <= 2 or part.dtype == np.float32 else np.float64
        values: Any = part.astype(exact)
        missing = None if valid is None else ~np.broadcast_to(valid, part.shape)
        for number in (image.nodata, self.nodata):
            if number is None or np.isnan(number) or not _may_hold(part.dtype, number):
                continue
            found = part == part.dtype.type(number)
            if found.any():
                missing = found if missing is None else missing | found
        if part.dtype.kind == "f":
            found = (np.abs(values) >= UNTAGGED_NODATA) & np.isfinite(values)
            if found.any():
                missing = found if missing is None else missing | found
        if missing is not None:
            values[missing] = np.nan
        if part.dtype.kind == "f" and np.isinf(values).any():
            count = int(np.isinf(values).sum())
            raise BandError(f"{count:,} infinite number{'s' * (count > 1)}", "not_finite")
        limits, normalization = self._numbers[exact]
        if limits:
            np.clip(values, *limits, out=values)
        if normalization:
            values -= normalization[0]
            values *= normalization[1]
        elif values.dtype == np.float64:
            return values
        return values.astype(np.float32, copy=False)


def _may_hold(dtype: np.dtype, number: float) -> bool:
    """Whether a type has this number: 65536 is no number of uint16, and -9999 none of uint8."""
    if dtype.kind == "f":
        return bool(np.isinf(number) or abs(number) <= float(np.finfo(dtype).max))
    if dtype.kind == "b":
        return number in (0, 1)
    limits = np.iinfo(dtype)
    return float(number).is_integer() and limits.min <= number <= limits.max
