"""Intervals of accuracies and paired comparisons, against scipy's bootstrap, numpy's resamples and published values."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from hf_mae_robust.training.intervals import accuracy_interval, compare_paired, interval_fields


def hits_of(right: int, total: int) -> np.ndarray:
    return np.random.default_rng(5).permutation(np.arange(total) < right)


@pytest.mark.parametrize(("right", "total"), [(13, 23), (310, 400), (395, 400)])
def test_an_interval_is_that_of_scipys_bootstrap(right, total):
    hits = hits_of(right, total)
    options = {"n_resamples": 20_000, "method": "percentile", "batch": 1000}
    # Not rng, which scipy has since 1.15.
    found = bootstrap((hits,), np.mean, **options, random_state=np.random.default_rng(0)).confidence_interval
    # One image more or less: a quantile of resamples may fall on the step beside.
    assert accuracy_interval(hits) == pytest.approx(tuple(found), abs=1 / total + 1e-9)


def test_a_large_interval_is_that_of_the_normal_distribution():
    low, high = accuracy_interval(hits_of(9000, 10_000))
    assert (low, high) == pytest.approx((0.9 - 1.96 * 0.003, 0.9 + 1.96 * 0.003), abs=1e-4)


@pytest.mark.parametrize(("right", "ends"), [(0, (0.0, 0.0)), (7, (1.0, 1.0))])
def test_images_that_are_all_alike_have_an_interval_of_one_point(right, ends):
    assert accuracy_interval(hits_of(right, 7)) == ends
    assert interval_fields("accuracy", hits_of(right, 7)) == dict(
        zip(("accuracy_ci95_low", "accuracy_ci95_high"), ends)
    )


def pair(both: int, only_first: int, only_second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of two classifiers is right, in a random order of the images."""
    first = np.repeat([True, True, False, False], [both, only_first, only_second, neither])
    second = np.repeat([True, False, True, False], [both, only_first, only_second, neither])
    order = np.random.default_rng(3).permutation(len(first))
    return first[order], second[order]


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    # 2 (C(8,0) + C(8,1)) / 2^8; 2 / 2^5; C(n, n/2) is in both tails; R: binom.test(6, 22)$p.value.
    [(1, 7, 18 / 256), (5, 0, 2 / 32), (4, 4, 1.0), (0, 0, 1.0), (6, 16, 0.05248)],
)
def test_the_test_is_mcnemars_exact_one(only_first, only_second, p_value):
    found = compare_paired(*pair(50, only_first, only_second, 20))
    assert found.p_value == pytest.approx(p_value, abs=1e-5)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.difference == pytest.approx((only_first - only_second) / (70 + only_first + only_second))


def test_the_interval_of_the_difference_is_that_of_resampled_images():
    first, second = pair(120, 40, 15, 25)
    rng = np.random.default_rng(11)
    rows = rng.integers(len(first), size=(20_000, len(first)))
    differences = first[rows].mean(axis=1) - second[rows].mean(axis=1)
    found = compare_paired(first, second)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])), abs=0.006)
    assert found == compare_paired(first, second) and found.low > 0
    # Unpaired resamples of both would have a far wider one.
    alone = first[rows].mean(axis=1) - second[rng.permutation(rows)].mean(axis=1)
    assert found.high - found.low < 0.9 * np.ptp(np.quantile(alone, [0.025, 0.975]))


def test_swapped_classifiers_have_the_opposite_difference():
    first, second = pair(30, 9, 3, 8)
    there, back = compare_paired(first, second), compare_paired(second, first)
    assert there.difference == -back.difference and there.p_value == back.p_value
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.025)
