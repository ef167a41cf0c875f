"""Percentiles of each band, against numpy's of all pixels."""

import logging
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_mae_robust.errors import DataError, UserError
from hf_mae_robust.statistics.band_percentiles import BandPercentiles


def of(images, rows=None, **settings):
    percentiles = BandPercentiles(len(images[0]), **settings)
    for row, image in zip(range(len(images)) if rows is None else rows, images):
        percentiles.update(image, row)
    return percentiles


def all_pixels(images, band):
    numbers = np.concatenate([np.asarray(image)[band].ravel() for image in images]).astype(np.float64)
    return numbers[~np.isnan(numbers)]


def integers(dtype):
    draw = np.random.default_rng(0)
    limits = np.iinfo(dtype)
    for height in (40, 3, 70, 25):
        image = draw.integers(limits.min, limits.max, (3, height, 50), endpoint=True).astype(np.float32)
        image[1] //= 7
        image[2, :2] = np.nan
        yield image


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("shares", [(0.1, 99.9), (2, 98), (0, 100), (33.3, 50)])
def test_of_integers_they_are_exact(dtype, shares):
    images = list(integers(dtype))
    percentiles = of(images, sample_size=10)
    assert percentiles.is_exact
    for band, found in enumerate(percentiles.value_range(*shares)):
        np.testing.assert_allclose(found, np.percentile(all_pixels(images, band), shares), rtol=1e-12)


def test_of_few_floats_they_are_exact():
    images = [np.random.default_rng(n).normal(size=(2, 9, 9)).astype(np.float32) for n in range(5)]
    percentiles = of(images)
    assert percentiles.is_exact
    for band, found in enumerate(percentiles.value_range(1, 99)):
        np.testing.assert_allclose(found, np.percentile(all_pixels(images, band), (1, 99)), rtol=1e-12)


def test_of_many_floats_they_lie_within_the_error_that_is_promised():
    images = [np.random.default_rng(n).normal(size=(2, 100, 100)).astype(np.float32) for n in range(20)]
    images[0][1] = np.nan
    percentiles = of(images, sample_size=10_000)
    assert not percentiles.is_exact and len(percentiles.keys) == 10_000
    for band, found in enumerate(percentiles.value_range(1, 99)):
        ranks = [(all_pixels(images, band) < number).mean() for number in found]
        assert np.abs(np.array(ranks) - (0.01, 0.99)).max() < 4 * np.sqrt(0.01 * 0.99 / 10_000)


@pytest.mark.parametrize("kind", ["integers", "floats", "both"])
def test_order_and_split_of_the_images_change_nothing(kind):
    images = [np.random.default_rng(n).normal(size=(3, 20, 20)).astype(np.float32) for n in range(4)]
    images = {"integers": list(integers(np.int16)), "floats": images, "both": [*integers(np.uint8), *images]}[kind]
    total = of(images, sample_size=500)
    rows = list(range(len(images)))[::-1]
    first, second = (of([images[row] for row in part], part, sample_size=500) for part in (rows[:1], rows[1:]))
    merged = first.without_content()
    for part in (first, second, merged.without_content()):
        merged.merge(part)
    assert merged.value_range(5, 95) == total.value_range(5, 95)
    assert (merged.histogram is not None) is (kind == "integers")
    merged._cut_back()
    total._cut_back()
    assert sorted(merged.keys) == sorted(total.keys)


def test_the_range_is_never_empty(caplog):
    image = torch.zeros(4, 100, 100)
    image[1, 0, 0] = 9  # 99.99% of the band are one number
    image[2], image[3] = 1e30, 0.3
    with caplog.at_level(logging.WARNING):
        found = of([image]).value_range(0.1, 99.9, bands=[5, 6, 7, 8])
    assert found[1] == (0, 9)
    assert all(np.float32(low) < np.float32(high) for low, high in found)
    assert all(low <= number <= high for (low, high), number in zip(found, (0, 0, 1e30, 0.3), strict=True))
    assert "both percentiles of band 6 are 0; it is not clipped" in caplog.text


def test_what_is_held_does_not_grow_with_the_number_of_images():
    """Nor does the time that an image takes: each image looked through what was held of those before."""
    draw, percentiles = np.random.default_rng(0), BandPercentiles(1, sample_size=10)
    sizes = []
    for row in range(3000):
        percentiles.update(draw.normal(size=(1, 1, 2)), row)
        if row % 100 == 0:
            sizes.append(len(pickle.dumps(percentiles)))
    assert max(sizes) < 10_000


def test_a_band_that_is_not_clipped_keeps_numbers_that_are_not_in_the_sample(caplog):
    images = [np.zeros((3, 50, 50), np.float32) for _ in range(40)]
    images[7][0, 3, 4], images[30][0, 5, 6], images[31][1, 0, 0] = 59.5, -2.5, 4
    images[8][:] = np.nan
    images[9][2] = np.random.default_rng(0).normal(size=(50, 50))
    with caplog.at_level(logging.WARNING):
        found = of(images, sample_size=50).value_range(0.1, 99.9)
        first, second = of(images[:20], sample_size=50), of(images[20:], range(20, 40), sample_size=50)
        first.merge(second)
        assert first.value_range(0.1, 99.9) == found
        assert first.value_range(0, 100) == [(np.nanmin(each), np.nanmax(each)) for each in np.stack(images, axis=1)]
    assert "both percentiles of band 0 are 0; it is not clipped" in caplog.text
    assert found[:2] == [(-2.5, 59.5), (0, 4)]


@pytest.mark.parametrize("dtype", [np.int32, np.float64])
def test_numbers_beyond_the_digits_of_float32_are_exact(dtype):
    images = list(2**24 + np.random.default_rng(0).integers(0, 1000, (5, 2, 9, 9)).astype(dtype))
    for band, found in enumerate(of(images).value_range(1, 99)):
        np.testing.assert_allclose(found, np.percentile(all_pixels(images, band), (1, 99)), rtol=1e-12)


def test_one_process_warns_for_all(caplog, monkeypatch):
    other = SimpleNamespace(is_main_process=False)
    monkeypatch.setattr("hf_mae_robust.statistics.band_percentiles.PartialState", lambda: other)
    of([torch.zeros(1, 5, 5)]).value_range(1, 99)
    assert not caplog.text


def test_bad_requests_are_refused():
    with pytest.raises(UserError, match="--clip_percentiles 99 1: needs 0 <= LO < HI <= 100"):
        of([torch.rand(1, 2, 2)]).value_range(99, 1)
    for number in (3, 0.5):
        image = torch.full((2, 2, 2), float(number))
        image[1] = torch.nan
        with pytest.raises(DataError, match="All pixels of band 1 are missing"):
            of([image]).value_range(1, 99)
