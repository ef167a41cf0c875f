"""A permutation that is computed by index: whole, by parts, and as random as numpy's."""

import numpy as np
import pytest
from scipy.stats import chisquare

from hf_mae_robust.data.permutation import LARGEST_DRAWN, KeyedPermutation

SIZE = 70_000  # a network by itself, and not a square: some places are walked
KEYS = range(20)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 99, 100, 101, 65_536, 65_537])
@pytest.mark.parametrize("largest_drawn", [0, LARGEST_DRAWN])
def test_every_element_comes_once_and_any_part_can_be_computed_alone(size, largest_drawn):
    permutation = KeyedPermutation(size, [3, 1], max(largest_drawn, 1 if size < 2 else 0))
    elements = permutation(np.arange(size))
    assert np.array_equal(np.sort(elements), np.arange(size))
    some = np.random.default_rng(0).integers(size, size=min(size, 50)) if size else np.arange(0)
    assert np.array_equal(permutation(some), elements[some])
    assert np.array_equal(
        KeyedPermutation(size, [3, 1], max(largest_drawn, 1 if size < 2 else 0))(some), elements[some]
    )


def test_places_that_are_given_stay_as_they_are():
    places = np.arange(SIZE)
    KeyedPermutation(SIZE, [0])(places)
    assert np.array_equal(places, np.arange(SIZE))


def drawn_by_numpy(key):
    return np.random.default_rng([7, key]).permutation(SIZE)


def drawn_by_network(key):
    permutation = KeyedPermutation(SIZE, [7, key])
    assert permutation._drawn is None
    return permutation(np.arange(SIZE))


# A statistic of a permutation -> counts that are equal on average. 1e-4: with chance alone, one test in 10,000 fails.
def places_of_elements(elements):
    """In which tenth of the order the elements of each tenth come."""
    return np.histogram2d(np.arange(SIZE), elements, bins=10)[0].ravel()


def steps_to_neighbours(elements):
    """How far it is to the next element, around the end."""
    return np.bincount((elements[1:] - elements[:-1]) % SIZE * 50 // SIZE, minlength=50)


def steps_over_a_column(elements):
    """The same over a width of the network, at which its columns repeat."""
    width = int(np.ceil(np.sqrt(SIZE)))
    return np.bincount((elements[width:] - elements[:-width]) % SIZE * 50 // SIZE, minlength=50)


def last_digits(elements):
    """What two neighbours have left over when they are divided by 7."""
    return np.bincount(elements[1:] % 7 * 7 + elements[:-1] % 7, minlength=49)


@pytest.mark.parametrize("draw", [drawn_by_numpy, drawn_by_network])
@pytest.mark.parametrize("count", [places_of_elements, steps_to_neighbours, steps_over_a_column, last_digits])
def test_elements_are_spread_as_chance_spreads_them(draw, count):
    assert chisquare(sum(count(draw(key)) for key in KEYS)).pvalue > 1e-4


@pytest.mark.parametrize("draw", [drawn_by_numpy, drawn_by_network])
def test_neighbours_are_parted_and_epochs_have_nothing_in_common(draw):
    orders = [draw(key) for key in KEYS]
    # Poisson: on average 2 neighbours that were neighbours before, and 1 element in the same place as an epoch earlier.
    together = sum((np.abs(np.diff(order)) == 1).sum() for order in orders)
    assert abs(together - 2 * len(orders)) < 4 * (2 * len(orders)) ** 0.5
    in_place = sum((one == other).sum() for one, other in zip(orders, orders[1:]))
    assert abs(in_place - (len(orders) - 1)) < 4 * (len(orders) - 1) ** 0.5
    assert max(abs(np.corrcoef(one, other)[0, 1]) for one, other in zip(orders, orders[1:])) < 4 / SIZE**0.5
    assert max(abs(np.corrcoef(order[1:], order[:-1])[0, 1]) for order in orders) < 4 / SIZE**0.5
