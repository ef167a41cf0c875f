"""Statistics of random images: their standard errors against how much such statistics vary, and their own cache."""

import json

import numpy as np
import pytest
import torch

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.model.bands_vit_mae_robust import BandForm
from hf_mae_robust.statistics.moments import moments_of
from hf_mae_robust.statistics.sampling import Sample, SampleErrors, describe_sample
from hf_mae_robust.statistics.statistics_pass import (
    cached_statistics_of_band_source,
    cached_statistics_of_source,
    statistics_of_source,
)
from tests.helpers import photos, write_parquet_set

RNG = np.random.default_rng(0)
CONFIG = ViTMAERobustConfig(image_size=16, patch_size=4)


def parts_of(images):
    """`(N, n, D)`, NaN is missing -> counts, means and squared deviations, each `(N, D)`."""
    found = [moments_of(image, dim=0) for image in images]
    return [
        torch.stack([torch.as_tensor(part[i]).expand(images.shape[2]).double() for part in found]) for i in range(3)
    ]


@pytest.mark.parametrize("missing", [False, True])
def test_errors_are_how_much_the_statistics_of_random_images_vary(missing):
    """Of a population of 300 images whose patches are alike within an image, 60 are drawn 2,000 times."""
    images = 1000 + RNG.uniform(0.2, 2, (300, 1, 3)) * RNG.normal(1, 1, (300, 8, 3))
    if missing:
        images[RNG.random((300, 8, 3)) < RNG.random((300, 1, 1)) * 0.9] = np.nan
    means, stds, errors = [], [], []
    count, mean, squares = (part.numpy() for part in parts_of(torch.from_numpy(images)))
    sums, sums_of_squares = count * (mean - 1000), squares + count * (mean - 1000) ** 2
    for draw in range(2000):
        index = RNG.choice(300, 60, replace=False)
        number = count[index].sum(0)
        means.append(sums[index].sum(0) / number)
        stds.append(np.sqrt(sums_of_squares[index].sum(0) / number - means[-1] ** 2))
        if draw < 40:
            found = SampleErrors.empty(3)
            for part in np.array_split(index, 4):
                found.add(*(torch.from_numpy(values[part]) for values in (count, mean, squares)))
            errors.append(found.errors(torch.from_numpy(means[-1]) + 1000, torch.from_numpy(stds[-1]), 300))
    expected = np.std(means, axis=0), np.std(stds, axis=0)
    for value, estimates in zip(expected, zip(*errors, strict=True), strict=True):
        squared = [each.numpy() ** 2 for each in estimates]
        np.testing.assert_allclose(np.sqrt(np.mean(squared, axis=0)), value, rtol=0.1)


def test_parts_that_are_merged_equal_one():
    parts = parts_of(torch.from_numpy(RNG.normal(5, 2, (40, 6, 4))))
    whole, merged = SampleErrors.empty(4), SampleErrors.empty(4)
    whole.add(*parts)
    for low, high in ((0, 1), (1, 1), (1, 30), (30, 40)):
        other = SampleErrors.empty(4)
        other.add(*(part[low:high] for part in parts))
        merged.merge(other)
    mean, std = torch.full((4,), 5.0).double(), torch.full((4,), 2.0).double()
    for one, other in zip(whole.errors(mean, std, None), merged.errors(mean, std, None), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("offset", [1e5, 1e8])
def test_a_large_mean_does_not_hide_the_error(offset):
    """Of the same images around 0; a place is missing in the first ones. In parts, as processes merge them."""
    images = RNG.normal(0, 1, (40, 1, 3)) + RNG.normal(0, 1, (40, 50, 3))
    images[:5, :, 2] = np.nan
    found = []
    for numbers in (images, images + offset):
        merged, parts = SampleErrors.empty(3), parts_of(torch.from_numpy(numbers))
        for low, high in ((0, 1), (1, 12), (12, 40)):
            other = SampleErrors.empty(3)
            other.add(*(part[low:high] for part in parts))
            merged.merge(other)
        mean, std = (torch.from_numpy(each(numbers, axis=(0, 1))) for each in (np.nanmean, np.nanstd))
        found.append(torch.stack(merged.errors(mean, std, None)))
    assert (found[0] > 0.01).all()
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=0)


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    return open_splits(DataLocation(str(write_parquet_set(tmp_path / "set", {"train": 30}))))[0]


def test_a_pass_over_random_images_has_its_own_cache(source, tmp_path, monkeypatch):
    sample, options = Sample(10, seed=3), {"crop_pct": 1.0, "batch_size": 4}
    some = cached_statistics_of_source(source, CONFIG, sample=sample, **options)
    assert some.metadata["num_images"] == 10
    everything = cached_statistics_of_source(source, CONFIG, **options)
    assert everything.metadata["num_images"] == 30 and describe_sample(everything.metadata) is None
    other = cached_statistics_of_source(source, CONFIG, sample=Sample(10, seed=4), **options)
    subset = cached_statistics_of_source(source.sample(10, 3), CONFIG, **options)  # --max_train_samples
    assert describe_sample(subset.metadata) is None
    assert len(list((tmp_path / "home").rglob("patch_statistics-*"))) == 4
    assert torch.equal(subset.mean, some.mean) and not torch.equal(other.mean, some.mean)
    again = cached_statistics_of_source(source, CONFIG, sample=sample, **options)
    assert torch.equal(again.mean, some.mean)
    sentence = describe_sample(some.metadata)
    assert "10 random of 30 images" in sentence and describe_sample(again.metadata) == sentence
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.statistics_of_source", None)  # would fail if called
    full = cached_statistics_of_source(source, CONFIG, sample=Sample(30, seed=0), **options)
    assert torch.equal(full.mean, everything.mean) and describe_sample(full.metadata) is None


def test_the_error_that_is_told_is_that_of_the_images(source):
    """Against numpy, of the mean: images of which all have as many patches."""
    sample = Sample(12, seed=1)
    statistics = statistics_of_source(source, CONFIG, crop_pct=1.0, sample=sample)
    rows = np.sort(np.random.default_rng(1).choice(30, 12, replace=False))
    images = np.stack(photos(30))[rows].astype(np.float64) / 255
    patches = images.reshape(12, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(12, 16, 48)
    error = patches.mean(axis=1).std(axis=0, ddof=1) / np.sqrt(12) * np.sqrt(1 - 12 / 30)
    share = (error / patches.reshape(-1, 48).std(axis=0)).max()
    assert statistics.metadata["sampling"]["error_of_mean"] == pytest.approx(share, rel=1e-6)


def test_bands_have_errors_of_bands_and_patches(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    images = RNG.normal(3000, 40, (20, 2, 1, 1)) + RNG.normal(0, 10, (20, 2, 16, 16))
    for i, image in enumerate(images):
        np.save(tmp_path / "set" / f"{i:02d}.npy", image.astype(np.float32))
    source, _ = open_splits(DataLocation(str(tmp_path / "set")))
    config = ViTMAERobustConfig(
        image_size=16, patch_size=4, num_channels=2, rescale_factor=1.0, image_mean=[0.0] * 2, image_std=[1.0] * 2
    )
    source = source.read_as(BandForm(), 2)
    bands, patches = cached_statistics_of_band_source(source, config, crop_pct=1.0, sample=Sample(8, seed=0))
    rows = np.sort(np.random.default_rng(0).choice(20, 8, replace=False))
    drawn = images.astype(np.float32)[rows].astype(np.float64)
    error = drawn.mean(axis=(2, 3)).std(axis=0, ddof=1) / np.sqrt(8) * np.sqrt(1 - 8 / 20)
    assert bands.metadata["sampling"]["error_of_mean"] == pytest.approx(
        (error / drawn.std(axis=(0, 2, 3))).max(), rel=1e-6
    )
    assert patches.metadata["sampling"]["images"] == 8
    assert bands.metadata["dataset"] == patches.metadata["dataset"] == "random 8 of set (train)"
    all_bands, _ = cached_statistics_of_band_source(source, config, crop_pct=1.0)
    assert all_bands.metadata["num_images"] == 20


@pytest.mark.parametrize("has_bands", [False, True])
def test_a_stream_with_fewer_images_is_no_sample(tmp_path, monkeypatch, has_bands):
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    images = RNG.integers(0, 256, (6, 16, 16, 3))
    (tmp_path / "set.jsonl").write_text("\n".join(json.dumps({"image": image.tolist()}) for image in images))
    source, _ = open_splits(DataLocation(str(tmp_path / "set.jsonl"), dataset_streaming=True))
    assert source.num_rows is None
    if has_bands:
        source = source.read_as(BandForm(channel_axis="last"), 3)
    for number, sentence in (100, None), (6, "6 random images"), (4, "4 random images"):
        found = statistics_of_source(source, CONFIG, crop_pct=1.0, sample=Sample(number))
        assert found.metadata["num_images"] == min(number, 6)
        told = describe_sample(found.metadata)
        assert told is None if sentence is None else told.startswith(sentence)
