"""How sure a measured accuracy is: 95% intervals by the bootstrap over images, and a paired comparison of two."""

from typing import NamedTuple

import numpy as np
from scipy.stats import binom, binomtest

CONFIDENCE = 0.95
# Ends of the percentile interval.
LEVELS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


def accuracy_interval(hits: np.ndarray) -> tuple[float, float]:
    """The 95% percentile interval of the bootstrap over images (Efron 1979) of the mean of `hits`.

    A resample of n images of which a share p is right holds Binomial(n, p) right ones. So the ends are quantiles of
    that distribution, as of infinitely many resamples, and no random numbers are needed. Where all images are right,
    or none, the interval is a point: resamples cannot hold what was not seen.

    Args:
        hits: `(N,)` bool, N > 0: whether each image is classified rightly.
    """
    low, high = binom.ppf(LEVELS, len(hits), hits.mean()) / len(hits)
    return float(low), float(high)


def interval_fields(name: str, hits: np.ndarray) -> dict[str, float]:
    """`accuracy_interval` as `{name}_ci95_low` and `{name}_ci95_high`, for JSON files and logs."""
    return dict(zip((f"{name}_ci95_low", f"{name}_ci95_high"), accuracy_interval(hits)))


class PairedComparison(NamedTuple):
    """Two classifiers on the same images.

    Attributes:
        difference: accuracy of the first minus that of the second. low, high: its 95% interval.
        only_first, only_second: images that this one alone classifies rightly.
        p_value: of the exact McNemar test: how likely a split at least as uneven as that of these images is where both
            are equally good. 1 where there are none.
    """

    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float


def compare_paired(
    first: np.ndarray, second: np.ndarray, *, num_resamples: int = 10_000, seed: int = 0
) -> PairedComparison:
    """Exact McNemar test (McNemar 1947; two-sided binomial test of the images that one alone gets right), and the
    interval of the difference by the paired bootstrap over images: a resample keeps both answers to an image together.

    Args:
        first, second: `(N,)` bool, N > 0, row by row of the same images. seed: of the resamples.
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    total, discordant = len(first), only_first + only_second
    # Only three kinds of images matter, so a resample is three counts.
    shares = np.array([only_first, only_second, total - discordant]) / total
    counts = np.random.default_rng(seed).multinomial(total, shares, size=num_resamples)
    low, high = np.quantile((counts[:, 0] - counts[:, 1]) / total, LEVELS)
    p_value = float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0
    difference = (only_first - only_second) / total
    return PairedComparison(difference, float(low), float(high), only_first, only_second, p_value)
