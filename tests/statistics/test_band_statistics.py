"""Statistics of each band, against numpy in two passes."""

import numpy as np
import pytest
import torch

from hf_mae_robust.errors import DataError, UserError
from hf_mae_robust.model.bands_vit_mae_robust import BandForm, BandImage
from hf_mae_robust.statistics.band_statistics import BandStatistics
from hf_mae_robust.statistics.patch_statistics import PatchStatistics


def random_images(dtype, number=20, bands=4):
    """`(C, H, W)` images of several sizes; each band has a range of its own."""
    draw = np.random.default_rng(0)
    for _ in range(number):
        height, width = draw.integers(5, 40, 2)
        if np.dtype(dtype).kind == "f":
            image = draw.normal(size=(bands, height, width)) * 10.0 ** np.arange(-2, bands * 8 - 2, 8)[:, None, None]
        else:
            limits = np.iinfo(dtype)
            image = draw.integers(limits.min, limits.max, (bands, height, width), endpoint=True)
            image = image // np.array([1, 2, 3, 100])[:bands, None, None]
        yield image.astype(dtype)


def of(images):
    statistics = BandStatistics.empty(len(images[0]))
    for image in images:
        statistics.update(image)
    return statistics


def assert_equal_to_two_passes(statistics, images):
    for band in range(len(images[0])):
        numbers = np.concatenate([np.asarray(image)[band].ravel() for image in images]).astype(np.float64)
        there = numbers[~np.isnan(numbers)]
        mean = there.sum() / len(there)
        std = np.sqrt(((there - mean) ** 2).sum() / len(there))
        assert abs(statistics.mean[band].item() - mean) <= 1e-6 * std, band
        np.testing.assert_allclose(statistics.std[band].item(), std, rtol=1e-6)
        assert statistics.minimum[band] == there.min() and statistics.maximum[band] == there.max()
        assert statistics.count[band] == len(there) and statistics.missing[band] == len(numbers) - len(there)
        np.testing.assert_allclose(statistics.missing_share[band].item(), 1 - len(there) / len(numbers), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("with_nodata", [False, True])
def test_one_pass_equals_two_passes_of_numpy(dtype, with_nodata):
    """From the numbers of a file through the form to the statistics; the last band reaches 1e22."""
    stored = list(random_images(dtype))
    form, pixels = BandForm(), []
    for number, image in enumerate(stored):
        nodata = None
        if with_nodata:
            nodata = -9999.0 if np.dtype(dtype).kind == "f" else float(np.iinfo(dtype).max)
            image[number % 4, 1:4] = nodata
            image[:, 0, 0] = nodata
        pixels.append(form.apply(BandImage(image, nodata)))
    expected = [np.where(image == nodata, np.nan, image) if with_nodata else image for image in stored]
    assert_equal_to_two_passes(of(pixels), expected)


@pytest.mark.parametrize(("offset", "scale"), [(33_000, 250), (-1e30, 1e29), (1e30, 3e29), (1e-30, 1e-31)])
def test_offsets_and_large_numbers_keep_their_digits(offset, scale):
    draw = np.random.default_rng(1)
    images = [(offset + scale * draw.normal(size=(2, 64, 64))).astype(np.float32) for _ in range(10)]
    images[3][1, :30] = np.nan
    assert_equal_to_two_passes(of(images), images)


def test_an_image_larger_than_a_part_and_tensors_of_every_layout():
    image = torch.randn(3, 400, 500, dtype=torch.float64)
    image[1, 17:90] = torch.nan
    assert_equal_to_two_passes(of([image.transpose(1, 2)]), [image.numpy()])


def test_merging_in_any_split_gives_the_same_and_nothing_adds_nothing():
    images = list(random_images(np.float32))
    images[2][:] = np.nan
    total, merged = of(images), BandStatistics.empty(4)
    for part in (images[:1], images[1:3], images[3:]):
        merged.merge(of(part))
    merged.merge(merged.without_content())
    assert torch.equal(merged.count, total.count) and torch.equal(merged.missing, total.missing)
    torch.testing.assert_close(merged.mean, total.mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(merged.std, total.std, rtol=1e-10, atol=0)
    at_once = BandStatistics.unpacked(torch.stack([of([image]).packed() for image in images]))
    for name in ("count", "missing", "minimum", "maximum"):
        assert torch.equal(getattr(at_once, name), getattr(total, name)), name
    torch.testing.assert_close(at_once.mean, total.mean, rtol=1e-10, atol=0)
    torch.testing.assert_close(at_once.std, total.std, rtol=1e-10, atol=0)


def test_a_constant_band_is_divided_by_one_and_named():
    image = torch.randn(3, 8, 8)
    image[1] = 0.1  # no deviation of 0 comes out of the sums
    statistics = of([image, image])
    statistics.metadata["bands"] = [4, 7, 2]
    assert statistics.std[1] == 0 and statistics.usable_std[1] == 1 and statistics.usable_std[0] == statistics.std[0]
    assert len(statistics.warnings()) == 1
    assert statistics.warnings()[0].startswith("Band 7 is constant: all of its pixels are 0.1.")


@pytest.mark.parametrize("number", [-9999.0, -32768.0, float(np.float32(-3.4e38)), 1e33])
def test_numbers_that_look_like_marks_of_missing_pixels_are_warned_of(number):
    image = torch.rand(8, 8, 8, dtype=torch.float64)
    image[1:, 0, :3] = number
    (warning,) = of([image]).warnings()
    assert warning.startswith(f"The number {number:.9g} in bands 1, 2, 3, 4, 5 and 2 more counts as a measurement.")
    assert f"--nodata {number:.9g}." in warning and float(f"{number:.9g}") == pytest.approx(number, rel=1e-8)
    image[image == number] = torch.nan
    assert not of([image]).warnings()


def test_a_band_without_any_number_is_refused_by_name():
    image = torch.randn(3, 8, 8)
    of([image]).check("photos (train)")
    image[2] = torch.nan
    statistics = of([image])
    assert not statistics.mean.isnan().any() and not statistics.std.isnan().any()
    with pytest.raises(DataError, match=r"photos \(train\): all pixels of band 2 are missing"):
        statistics.check("photos (train)")


def test_file_round_trip_alone_and_beside_patch_statistics(tmp_path):
    images = list(random_images(np.float32))
    images[0][2, :3] = np.nan
    images = [np.concatenate([image, np.full_like(image[:1], 5)]) for image in images]
    statistics = of(images)
    statistics.metadata = {"bands": [3, 2, 1, 0, 4], "num_images": 20}
    patches = PatchStatistics.empty(20)
    patches.update(torch.rand(10, 20))
    patches.metadata = {"num_images": 20, "bands": [3, 2, 1, 0, 4]}
    statistics.save(tmp_path / "bands.safetensors")
    patches.save(tmp_path / "both.safetensors", statistics.tensors())
    for name in ("bands", "both"):
        loaded = BandStatistics.load(tmp_path / f"{name}.safetensors", num_bands=5)
        for field in ("count", "missing", "mean", "minimum", "maximum"):
            assert torch.equal(getattr(loaded, field), getattr(statistics, field))
        torch.testing.assert_close(loaded.usable_std, statistics.usable_std, rtol=1e-12, atol=0)
        assert loaded.std[4] == 0 and loaded.metadata == statistics.metadata
    assert torch.equal(PatchStatistics.load(tmp_path / "both.safetensors", patch_dim=20).mean, patches.mean)


def test_wrong_files_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="hf_mae_robust statistics"):
        BandStatistics.load(tmp_path / "none.safetensors")
    patches = PatchStatistics.empty(12)
    patches.update(torch.rand(10, 12))
    patches.save(tmp_path / "patches.safetensors")
    with pytest.raises(UserError, match="holds no band statistics"):
        BandStatistics.load(tmp_path / "patches.safetensors")
    of([torch.rand(3, 4, 4)]).save(tmp_path / "bands.safetensors")
    with pytest.raises(UserError, match="of 3 bands, and the images have 4"):
        BandStatistics.load(tmp_path / "bands.safetensors", num_bands=4)
