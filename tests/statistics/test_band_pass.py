"""The pass over a data set of bands: arrays in, statistics of bands and of patches out, both in the units of the
arrays."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation, HeldRows, ImageSource
from hf_mae_robust.errors import DataError
from hf_mae_robust.finetuning.segmentation.maps import find_maps
from hf_mae_robust.model.bands_vit_mae_robust import BandForm
from hf_mae_robust.statistics import statistics_pass
from hf_mae_robust.statistics.band_pass import statistics_of_band_source
from hf_mae_robust.statistics.statistics_pass import (
    band_statistics_of_source,
    cached_statistics_of_band_source,
    cached_statistics_of_source,
    statistics_of_source,
    value_range_of_source,
)
from tests.processes import offline

CONFIG = ViTMAERobustConfig(image_size=16, patch_size=8, num_channels=3)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics_pass, "HF_HOME", str(tmp_path / "home"))


def stored(number=7, bands=4, sides=((16, 16),), dtype=np.uint16, nodata=0):
    """Arrays `(C, H, W)` around 33,000, some pixels of which are missing, in all bands and in one."""
    draw = np.random.default_rng(0)
    images = [draw.normal(33_000, 250, (bands, *sides[i % len(sides)])).astype(dtype) for i in range(number)]
    for image in images[::2]:
        image[:, :5, 3:7] = nodata
        image[2, 10:, 2] = nodata
    return images


def source_of(images, **form):
    form = BandForm(**{"nodata": 0.0, "channel_axis": "first", **form})
    rows = HeldRows(images)
    return ImageSource(rows, [len(images)], True, "arrays (train)", "a1", band_form=form)


def assert_bands(statistics, images, bands, change=lambda numbers: numbers):
    for place, band in enumerate(bands):
        numbers = np.concatenate([image[band].ravel() for image in images]).astype(np.float64)
        there = change(numbers[numbers != 0])
        np.testing.assert_allclose(statistics.mean[place], there.mean(), rtol=1e-10)
        np.testing.assert_allclose(statistics.std[place], there.std(), rtol=1e-9)
        assert statistics.missing_share[place] == pytest.approx(1 - len(there) / len(numbers))
        assert (statistics.minimum[place], statistics.maximum[place]) == (there.min(), there.max())


def numbers_of_patches(images, bands, p):
    """`(patches, D)`, NaN where missing; independent of the code under test."""
    patches = [
        image[list(bands), i : i + p, j : j + p].transpose(1, 2, 0).ravel()
        for image in images
        for i in range(0, image.shape[1], p)
        for j in range(0, image.shape[2], p)
    ]
    numbers = np.array(patches, dtype=np.float64)
    return np.where(numbers == 0, np.nan, numbers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bands_and_patches_in_one_pass_equal_numpy(num_workers):
    images = stored()
    source = source_of(images, bands=(3, 0, 2), image_mean=(1.0, 2.0, 3.0), image_std=(4.0, 5.0, 6.0))
    bands, patches = statistics_of_band_source(source, CONFIG, crop_pct=1.0, batch_size=3, num_workers=num_workers)
    assert_bands(bands, images, (3, 0, 2))
    numbers = numbers_of_patches(images, (3, 0, 2), 8)
    np.testing.assert_allclose(patches.mean, np.nanmean(numbers, axis=0), rtol=1e-9)
    np.testing.assert_allclose(patches.std, np.nanstd(numbers, axis=0), rtol=1e-6)
    assert patches.count.tolist() == (~np.isnan(numbers)).sum(axis=0).tolist()
    assert bands.metadata["num_images"] == patches.metadata["num_images"] == 7
    assert bands.metadata["bands"] == (3, 0, 2) and patches.metadata["patch_size"] == [8, 8]
    alone = statistics_of_source(source, CONFIG, crop_pct=1.0)
    torch.testing.assert_close(alone.mean, patches.mean, rtol=1e-12, atol=0)
    assert statistics_of_band_source(source, CONFIG, crop_pct=1.0, with_patches=False)[1] is None


def test_images_of_all_sizes_count_as_they_are_stored_and_patches_as_they_are_seen():
    images = stored(sides=((40, 30), (16, 16), (5, 90)))
    bands, patches = statistics_of_band_source(source_of(images, bands=(0, 1, 2)), CONFIG, crop_pct=0.875)
    assert_bands(bands, images, (0, 1, 2))
    # 0, which stands for missing, is in none of them.
    assert patches.mean.min() > 32_000 and patches.mean.max() < 34_000 and patches.std.max() < 400


def test_without_missing_pixels_the_count_is_one_number():
    images = [np.maximum(image, 1) for image in stored(sides=((24, 20),))]
    bands, patches = statistics_of_band_source(source_of(images, bands=(0, 1, 2)), CONFIG, crop_pct=1.0)
    assert patches.count == 7 * 4 and bands.missing.tolist() == [0, 0, 0]


def test_numbers_are_clipped_before_they_are_counted():
    images = stored()
    limits = ((32_900.0, 33_100.0),) * 4
    assert_bands(
        band_statistics_of_source(source_of(images, value_range=limits), 4),
        images,
        range(4),
        lambda numbers: numbers.clip(32_900, 33_100),
    )


def test_pictures_of_8_bits_have_numbers_to_255():
    draw = np.random.default_rng(0)
    images = [draw.integers(1, 256, (9, 12, 3), dtype=np.uint8) for _ in range(5)]
    source = ImageSource(HeldRows(images), [5], True, "photos (train)", "a2")
    found = band_statistics_of_source(source, 3)
    assert_bands(found, [image.transpose(2, 0, 1) for image in images], range(3))
    assert found.describe() == (
        f"3 bands, mean {found.mean.min():.4g} to {found.mean.max():.4g}, standard deviation {found.std.min():.4g} to "
        f"{found.std.max():.4g}, 0.00% of the numbers missing"
    )


def test_percentiles_become_a_range_for_each_band():
    images = stored(sides=((40, 30), (16, 16)))
    found = value_range_of_source(source_of(images, bands=(1, 2)), 2, (1, 99))
    for band, limits in zip((1, 2), found, strict=True):
        numbers = np.concatenate([image[band].ravel() for image in images])
        np.testing.assert_allclose(limits, np.percentile(numbers[numbers != 0], (1, 99)))


def test_bad_images_are_left_out_and_limited():
    images = stored(number=6)
    mixed = [*images[:3], None, *images[3:]]
    bands, patches = statistics_of_band_source(
        source_of(mixed, bands=(0, 1, 2)), CONFIG, crop_pct=1.0, batch_size=2, max_bad_images=0.5
    )
    assert_bands(bands, images, (0, 1, 2))
    assert bands.metadata["num_images"] == patches.metadata["num_images"] == 6
    for function in (band_statistics_of_source, lambda source, number: value_range_of_source(source, number, (1, 99))):
        with pytest.raises(DataError, match=r"1 of 7 images of arrays \(train\) cannot be decoded"):
            function(source_of(mixed), 4)


def test_a_constant_band_is_warned_of_and_an_empty_one_refused(caplog):
    images = stored()
    for image in images:
        image[3] = 17
    with caplog.at_level(logging.WARNING):
        statistics = band_statistics_of_source(source_of(images, bands=(2, 3)), 2)
        band_statistics_of_source(source_of(images, bands=(2, 3)), 2)  # from the cache
    assert caplog.text.count("Band 3 is constant: all of its pixels are 17.") == 2
    assert statistics.usable_std[1] == 1
    for image in images:
        image[3] = 0
    with pytest.raises(DataError, match=r"arrays \(train\): all pixels of band 3 are missing"):
        statistics_of_band_source(source_of(images, bands=(2, 3)), ViTMAERobustConfig(num_channels=2), crop_pct=1.0)


def test_the_cache_holds_both_and_depends_on_data_and_form(monkeypatch):
    images = stored()
    source = source_of(images, bands=(0, 1, 2))
    first = cached_statistics_of_band_source(source, CONFIG, crop_pct=1.0)
    percentiles = value_range_of_source(source, 3, (2, 98))
    calls = []

    def again(source, *arguments, **options):
        calls.append(source)
        return statistics_of_band_source(source, *arguments, **options)

    monkeypatch.setattr(statistics_pass, "statistics_of_band_source", again)
    monkeypatch.setattr(statistics_pass, "percentiles_of_band_source", None)  # would fail if called
    normalised = source_of(images, bands=(0, 1, 2), image_mean=(1.0,) * 3, image_std=(2.0,) * 3)
    for same in (source, normalised):
        bands, patches = cached_statistics_of_band_source(same, CONFIG, crop_pct=1.0)
        assert torch.equal(bands.mean, first[0].mean) and torch.equal(patches.mean, first[1].mean)
        torch.testing.assert_close(bands.usable_std, first[0].usable_std, rtol=1e-12, atol=0)
        assert torch.equal(cached_statistics_of_source(same, CONFIG, crop_pct=1.0).mean, first[1].mean)
        assert torch.equal(band_statistics_of_source(same, 3).mean, first[0].mean)
        assert value_range_of_source(same, 3, (2, 98)) == percentiles
    assert not calls
    others = [{"nodata": 33_000.0}, {"bands": (0, 2, 1)}, {"value_range": ((0.0, 33_000.0),) * 3}]
    for number, form in enumerate(others, 1):
        band_statistics_of_source(source_of(images, **{"bands": (0, 1, 2), **form}), 3)
        assert len(calls) == number


PROGRAM = """
import sys
import torch
from accelerate import PartialState
from hf_mae_robust.statistics import statistics_pass
from tests.statistics.test_band_pass import CONFIG, source_of, stored

state = PartialState(cpu=True)
statistics_pass.HF_HOME = sys.argv[1]
source = source_of(stored(), bands=(3, 0, 2))
bands, patches = statistics_pass.cached_statistics_of_band_source(source, CONFIG, crop_pct=1.0)
limits = statistics_pass.value_range_of_source(source, 3, (1, 99))
of_bands = torch.cat([bands.mean, bands.std, bands.missing]).tolist()
found = [*of_bands, patches.mean.sum().item(), *sum(limits, ())]
with open(f"{sys.argv[1]}/{state.process_index}.txt", "w") as file:
    print(*found, bands.metadata["num_images"], file=file)
state.destroy_process_group()
"""


@pytest.mark.slow  # test_statistics_pass.py has two processes, and the tests of both classes merge them
def test_two_processes_agree_with_one(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    both = offline().run([tmp_path / "program.py", tmp_path], tmp_path / "logs", processes=2)
    assert both.codes == [0, 0], both.output
    first, second = ([float(word) for word in (tmp_path / f"{i}.txt").read_text().split()] for i in (0, 1))
    assert first == second
    source = source_of(stored(), bands=(3, 0, 2))
    bands, patches = statistics_of_band_source(source, CONFIG, crop_pct=1.0)
    limits = value_range_of_source(source, 3, (1, 99))
    alone = [*bands.mean, *bands.std, *bands.missing, patches.mean.sum(), *sum(limits, ()), 7]
    np.testing.assert_allclose(first, [float(number) for number in alone], rtol=1e-10)


def two_classes(features, column, description, _):
    return find_maps(features, column, description, id2label="2")


def test_semantic_maps_beside_the_images_are_not_read(tmp_path):
    """A segmentation from scratch measures the images of its labelled source."""
    images = [image[0] for image in stored()]
    for number, image in enumerate(images):
        for folder, pixels in (("images", image), ("masks", np.eye(16, dtype=np.uint8))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    location = DataLocation(str(tmp_path), label_column_name="auto")
    source, _ = open_splits(location, eval_split=None, find_labels=two_classes)
    assert source.labels.is_joint
    source = replace(source, band_form=BandForm())
    config = ViTMAERobustConfig(image_size=16, patch_size=8, num_channels=1)
    bands, _ = statistics_of_band_source(source, config, crop_pct=1.0, with_patches=False)
    assert bands.mean[0] == pytest.approx(np.mean(images))
