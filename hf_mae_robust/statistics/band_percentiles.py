"""Percentiles of each band of a data set (--clip_percentiles): exact for integers of 8 and 16 bits, of a sample for
other numbers; mergeable."""

import logging
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from accelerate import PartialState

from ..errors import DataError, UserError
from .band_statistics import band_names

logger = logging.getLogger(__name__)

# Numbers of int16 and uint16.
LOWEST, HIGHEST = -(2**15), 2**16 - 1
# Histograms grow by this many bins at a time.
BINS_AT_ONCE = 1024
# Pixels, of all bands together. The rank of the percentile p (a share) of a sample of n has a standard error of
# sqrt(p (1 - p) / n): 0.01 percentage points for the percentiles 0.1 and 99.9.
SAMPLE_SIZE = 100_000


class BandPercentiles:
    """The distribution of the numbers of each of C bands.

    - Where all numbers are integers from -32,768 to 65,535, as those of every type of 8 and 16 bits are: a histogram
      with a bin for each number between the smallest and the largest. Percentiles are those of all pixels, exactly.
    - Otherwise: a sample of `SAMPLE_SIZE` (100,000) pixels, drawn without replacement from all that hold a number in at
      least one band. The sample percentile p is the percentile p +- e of the data, where the standard error
      e = sqrt(p (1 - p) / n) with p as a share: 0.01 percentage points for the percentiles 0.1 and 99.9, 0.03 for 1 and
      99; n is smaller for bands that miss more pixels than others. Data of at most `SAMPLE_SIZE` pixels are in the
      sample completely, and their percentiles exact. So are smallest and largest number, the percentiles 0 and 100.

    Every pixel draws a random key from (seed, row of the image), and the smallest keys are the sample: it depends
    neither on the order of the images nor on the process that reads them.

    Memory: 8 bytes a bin and band (150 MB for 200 bands of all 98,304 numbers), and for a sampled pixel and band those
    of the type of the numbers (80 MB for 200 bands of float32; twice that before the sample is cut back).
    """

    def __init__(self, num_bands: int, sample_size: int = SAMPLE_SIZE, seed: int = 0):
        self.num_bands, self.sample_size, self.seed = num_bands, sample_size, seed
        self.metadata: dict[str, Any] = {}
        self.lowest = 0
        # (C, bins): how often each number from `lowest` on came; None: there were other numbers.
        self.histogram: np.ndarray | None = np.zeros((num_bands, 0), dtype=np.int64)
        # (n,) and (C, n); n may exceed the sample's size.
        self.keys, self.pixels = np.zeros(0), np.zeros((num_bands, 0), dtype=np.float32)
        self.threshold = 1.0
        self._new: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_new = 0  # pixels in them
        # (C,), of all pixels, sampled or not; NaN of a band without any number.
        self.minimum, self.maximum = np.full(num_bands, np.nan), np.full(num_bands, np.nan)

    def without_content(self) -> Self:
        """A distribution of nothing, of the same form."""
        return type(self)(self.num_bands, self.sample_size, self.seed)

    @property
    def is_exact(self) -> bool:
        """Whether percentiles are those of all pixels."""
        self._cut_back()
        return self.histogram is not None or self.threshold == 1.0

    def update(self, image: torch.Tensor | np.ndarray, row: int) -> None:
        """Take in an image `(C, H, W)`; NaN is a missing pixel. row: its number in the data set."""
        numbers = np.asarray(image).reshape(self.num_bands, -1)
        valid = ~np.isnan(numbers)
        # `fmin` and `fmax` leave NaN out.
        self.minimum = np.fmin(self.minimum, np.fmin.reduce(numbers, axis=1))
        self.maximum = np.fmax(self.maximum, np.fmax.reduce(numbers, axis=1))
        if self.histogram is not None:
            self._count(numbers, valid)
        keys = np.random.default_rng([self.seed, row]).random(numbers.shape[1])
        taken = (keys < self.threshold) & valid.any(axis=0)
        if taken.any():
            self._new.append((keys[taken], numbers[:, taken]))
            self._num_new += int(taken.sum())
        if self._num_new >= self.sample_size:
            self._cut_back()

    def _count(self, numbers: np.ndarray, valid: np.ndarray) -> None:
        chosen = numbers[valid]
        if not chosen.size:
            return
        low, high = chosen.min(), chosen.max()
        if low < LOWEST or high > HIGHEST or (chosen.dtype.kind == "f" and (chosen != np.rint(chosen)).any()):
            self.histogram = None
            return
        histogram = self._make_room(int(low), int(high))
        bands = np.broadcast_to(np.arange(self.num_bands)[:, None] * histogram.shape[1], numbers.shape)[valid]
        np.add.at(histogram.reshape(-1), chosen.astype(np.int64) - self.lowest + bands, 1)

    def _make_room(self, low: int, high: int) -> np.ndarray:
        """The histogram with bins from `low` to `high` at least."""
        histogram: Any = self.histogram
        bins = histogram.shape[1]
        start = low // BINS_AT_ONCE * BINS_AT_ONCE
        end = (high // BINS_AT_ONCE + 1) * BINS_AT_ONCE
        if bins:
            start, end = min(start, self.lowest), max(end, self.lowest + bins)
        else:
            self.lowest = start
        if end - start > bins:
            before = self.lowest - start
            self.histogram = histogram = np.pad(histogram, ((0, 0), (before, end - start - bins - before)))
            self.lowest = start
        return histogram

    def _cut_back(self) -> None:
        """Take in what is new, and leave the sample the smallest keys."""
        if self._new:
            parts = [(self.keys, self.pixels), *self._new]
            self.keys = np.concatenate([keys for keys, _ in parts])
            self.pixels = np.concatenate([pixels for _, pixels in parts], axis=1)
            self._new, self._num_new = [], 0
        if len(self.keys) > self.sample_size:
            kept = np.argpartition(self.keys, self.sample_size - 1)[: self.sample_size]
            self.keys, self.pixels = self.keys[kept], self.pixels[:, kept]
            self.threshold = float(self.keys.max())

    def merge(self, other: "BandPercentiles") -> None:
        """Add what `other` has seen: as if all images had come here."""
        other._cut_back()
        self.minimum, self.maximum = np.fmin(self.minimum, other.minimum), np.fmax(self.maximum, other.maximum)
        if self.histogram is None or other.histogram is None:
            self.histogram = None
        elif other.histogram.shape[1]:
            end = other.lowest + other.histogram.shape[1]
            histogram = self._make_room(other.lowest, end - 1)
            histogram[:, other.lowest - self.lowest : end - self.lowest] += other.histogram
        self.threshold = min(self.threshold, other.threshold)
        self._new.append((other.keys, other.pixels))
        self._cut_back()

    def value_range(self, low: float, high: float, bands: Sequence[int] | None = None) -> list[tuple[float, float]]:
        """The percentiles `low` and `high` of each band, as `numpy.percentile` interpolates them: what `value_range` of
        the form is to be. The first is smaller than the second, in float32 too.

        Where the two percentiles of a band are the same number, it gets its smallest and largest number, so that
        nothing is clipped, and a constant band a range around its number; a warning says so.

        Args:
            low, high: percentiles, 0 <= low < high <= 100.
            bands: their numbers in the file, for messages.

        Raises:
            UserError: no such percentiles. DataError: a band has no number.
        """
        if not 0 <= low < high <= 100:
            raise UserError(f"--clip_percentiles {low:g} {high:g}: needs 0 <= LO < HI <= 100.")
        self._cut_back()
        ranges = []
        for band, name in enumerate(band_names(self.num_bands, bands)):
            first, last = self._quantiles(band, [low / 100, high / 100], name)
            lowest, highest = float(self.minimum[band]), float(self.maximum[band])
            first, last = lowest if low == 0 else first, highest if high == 100 else last
            if np.float32(first) >= np.float32(last):
                if PartialState().is_main_process:
                    sentence = "--clip_percentiles %g %g: both percentiles of %s are %g; it is not clipped."
                    logger.warning(sentence, low, high, name, first)
                first, last = lowest, highest
            if np.float32(first) >= np.float32(last):
                margin = max(1.0, abs(first) / 2**10)
                first, last = first - margin, last + margin
            ranges.append((first, last))
        return ranges

    def _quantiles(self, band: int, shares: list[float], name: str) -> list[float]:
        if self.histogram is None:
            numbers = self.pixels[band][~np.isnan(self.pixels[band])]
            if numbers.size:
                return [float(number) for number in np.quantile(numbers.astype(np.float64), shares)]
        else:
            ends = np.cumsum(self.histogram[band])
            if ends.size and ends[-1]:
                ranks = np.asarray(shares) * (ends[-1] - 1)
                below, above = np.floor(ranks), np.ceil(ranks)
                # The number at rank r of all in order is the first whose cumulative count exceeds r.
                first, second = (np.searchsorted(ends, rank, side="right") + self.lowest for rank in (below, above))
                return [float(number) for number in first + (second - first) * (ranks - below)]
        raise DataError(f"All pixels of {name} are missing: it has no percentiles. Leave it out with --bands.")
