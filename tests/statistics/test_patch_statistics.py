import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.errors import DataError
from hf_mae_robust.statistics.patch_statistics import PatchStatistics, compute_patch_statistics, patches_of


def two_pass(images: np.ndarray, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent of the code under test: slice out every patch, then mean and deviation over all of them."""
    _, channels, height, width = images.shape
    patches = [
        image[:, i : i + p, j : j + q].transpose(1, 2, 0).ravel()
        for image in images.astype(np.float64) / 255
        for i in range(0, height, p)
        for j in range(0, width, q)
    ]
    return np.mean(patches, axis=0), np.std(patches, axis=0)


def batches(images: torch.Tensor, size: int):
    for i in range(0, len(images), size):
        part = images[i : i + size]
        yield {"pixel_values": part, "row": torch.arange(i, i + len(part))}


@pytest.mark.parametrize(("p", "q", "channels"), [(4, 4, 3), (8, 2, 1), (2, 4, 4)])
def test_one_pass_equals_two_pass_numpy(p, q, channels):
    images = torch.randint(0, 256, (37, channels, 16, 8), dtype=torch.uint8)
    statistics = compute_patch_statistics(batches(images, 10), (p, q), channels)
    mean, std = two_pass(images.numpy(), p, q)
    np.testing.assert_allclose(statistics.mean.numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(statistics.std.numpy(), std, rtol=1e-6)
    assert statistics.count == 37 * (16 // p) * (8 // q)
    assert statistics.metadata["num_images"] == 37


def test_small_variance_on_a_large_mean_keeps_its_digits():
    """Sums of squares minus squared sums would lose them."""
    patches = torch.full((10_000, 3), 0.999, dtype=torch.float64) + 1e-6 * torch.randn(10_000, 3, dtype=torch.float64)
    statistics = PatchStatistics.empty(3)
    for part in patches.split(100):
        statistics.update(part)
    torch.testing.assert_close(statistics.std, patches.std(dim=0, unbiased=False), rtol=1e-6, atol=0)


def test_merging_in_any_split_gives_the_same():
    patches = torch.rand(500, 6)
    whole = PatchStatistics.empty(6)
    whole.update(patches)
    merged = PatchStatistics.empty(6)
    for part in patches.split([1, 99, 400]):
        piece = PatchStatistics.empty(6)
        piece.update(part)
        merged.merge(piece)
    merged.merge(PatchStatistics.empty(6))
    assert merged.count == whole.count
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(merged.std, whole.std, rtol=1e-12, atol=0)


def test_patches_have_the_order_of_the_model():
    config = ViTMAERobustConfig(image_size=[16, 32], patch_size=[4, 8])
    images = torch.rand(2, 3, 16, 32)
    expected = ViTMAERobustForPreTraining(config).patchify(images).flatten(0, 1)
    assert torch.equal(patches_of(images, (4, 8)), expected)


def test_constant_images_have_zero_deviation_and_still_train():
    images = torch.full((4, 3, 16, 16), 77, dtype=torch.uint8)
    statistics = compute_patch_statistics(batches(images, 4), (4, 4), 3)
    assert statistics.std.max() < 1e-12
    model = ViTMAERobustForPreTraining(
        ViTMAERobustConfig(image_size=16, patch_size=4, target_normalization="global_patch")
    )
    model.set_target_statistics(statistics.mean, statistics.std)
    assert torch.isfinite(model(torch.randn(2, 3, 16, 16)).loss)


def test_fillers_do_not_count():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    padded = {"pixel_values": images, "row": torch.tensor([0, 1, 2, 3, -1, -1])}
    statistics = compute_patch_statistics([padded], (4, 4), 3)
    mean, std = two_pass(images[:4].numpy(), 4, 4)
    np.testing.assert_allclose(statistics.mean.numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(statistics.std.numpy(), std, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 33_000.0])
def test_missing_pixels_are_left_out_of_their_place(dtype, offset):
    """Against numpy, place by place; batches with and without missing pixels, in any split."""
    patches = (offset + 250 * torch.randn(700, 6, dtype=torch.float64)).to(dtype)
    patches[torch.rand(700, 6) < torch.tensor([0.0, 0.1, 0.5, 0.9, 0.99, 0.3])] = torch.nan
    patches[:300, 5] = torch.nan  # the first part has none of it
    patches = torch.cat([patches, (offset + 250 * torch.randn(100, 6, dtype=torch.float64)).to(dtype)])
    numbers = patches.double().numpy()
    for sizes in ([800], [1, 299, 400, 100], [700, 100]):
        statistics = PatchStatistics.empty(6)
        for part in patches.split(sizes):
            piece = PatchStatistics.empty(6)
            piece.update(part)
            statistics.merge(piece)
        np.testing.assert_allclose(statistics.mean.numpy(), np.nanmean(numbers, axis=0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(statistics.std.numpy(), np.nanstd(numbers, axis=0), rtol=1e-9)
        assert statistics.count.tolist() == (~np.isnan(numbers)).sum(axis=0).tolist()
        assert statistics.num_patches == 800
        statistics.check("photos")


def test_counts_beyond_the_integers_of_a_product_are_merged():
    """10**10 x 10**10 is more than int64 holds."""
    parts = [
        PatchStatistics(torch.tensor([10**10, 10**10]), torch.tensor([value, 1.0]).double(), torch.zeros(2).double())
        for value in (0.0, 2.0)
    ]
    parts[0].merge(parts[1])
    assert parts[0].mean.tolist() == [1.0, 1.0] and parts[0].std.tolist() == [1.0, 0.0]


def test_a_place_that_is_always_missing_is_refused_in_one_sentence():
    images = torch.rand(3, 2, 8, 8)
    images[:, 1] = torch.nan
    statistics = compute_patch_statistics(batches(images, 2), (4, 4), 2)
    assert not statistics.mean.isnan().any() and not statistics.std.isnan().any()
    with pytest.raises(DataError, match=r"16 of the 32 numbers of a patch are missing in every patch of photos"):
        statistics.check("photos")


def test_floats_count_in_their_own_units():
    images = 33_000 + 250 * torch.randn(5, 2, 8, 8)
    statistics = compute_patch_statistics(batches(images, 2), (4, 4), 2)
    mean, std = two_pass(images.double().numpy() * 255, 4, 4)
    np.testing.assert_allclose(statistics.mean.numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(statistics.std.numpy(), std, rtol=1e-6)


def test_file_round_trip_with_a_count_of_each_place(tmp_path):
    statistics = PatchStatistics.empty(3)
    statistics.update(torch.tensor([[1.0, torch.nan, 3.0], [2.0, 5.0, torch.nan], [4.0, 7.0, 3.0]]))
    statistics.save(tmp_path / "stats.safetensors")
    loaded = PatchStatistics.load(tmp_path / "stats.safetensors", patch_dim=3)
    assert loaded.count.tolist() == [3, 2, 2] and loaded.num_patches == 3 and loaded.metadata == {}
    assert torch.equal(loaded.mean, statistics.mean)
    torch.testing.assert_close(loaded.sum_of_squares, statistics.sum_of_squares, rtol=1e-12, atol=0)


def test_file_round_trip_with_metadata(tmp_path):
    statistics = PatchStatistics.empty(12)
    statistics.update(torch.rand(100, 12))
    statistics.metadata = {"dataset": "photos (train)", "num_images": 25, "patch_size": [2, 2], "num_channels": 3}
    path = tmp_path / "new" / "stats.safetensors"
    statistics.save(path)
    loaded = PatchStatistics.load(path, patch_dim=12)
    assert torch.equal(loaded.mean, statistics.mean) and loaded.count == 100
    torch.testing.assert_close(loaded.std, statistics.std, rtol=1e-12, atol=0)
    assert loaded.metadata == statistics.metadata
    assert [file.name for file in path.parent.iterdir()] == ["stats.safetensors"]


def test_two_machines_whose_processes_have_the_same_number_write_one_file(tmp_path, monkeypatch):
    """Both write to a shared folder; the other one, in the moment before this one gives the file its name."""
    statistics = PatchStatistics.empty(12)
    statistics.update(torch.rand(100, 12))
    path, replace = tmp_path / "stats.safetensors", Path.replace

    def replace_later(temporary, target):
        monkeypatch.setattr(Path, "replace", replace)
        statistics.save(path)
        return replace(temporary, target)

    monkeypatch.setattr(Path, "replace", replace_later)
    statistics.save(path)
    assert PatchStatistics.load(path, patch_dim=12).count == 100
    assert [file.name for file in tmp_path.iterdir()] == ["stats.safetensors"]


def test_a_full_disk_leaves_nothing_of_a_file(tmp_path, monkeypatch):
    write_bytes = Path.write_bytes

    def write_half(path, content):
        write_bytes(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left"):
        PatchStatistics.empty(12).save(tmp_path / "stats.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_wrong_files_are_refused_with_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="hf_mae_robust statistics"):
        PatchStatistics.load(tmp_path / "none.safetensors")
    statistics = PatchStatistics.empty(12)
    statistics.update(torch.rand(10, 12))
    path = tmp_path / "stats.safetensors"
    statistics.save(path)
    with pytest.raises(ValueError, match="patches of 12 numbers.*patches of 48"):
        PatchStatistics.load(path, patch_dim=48)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="not a complete one"):
        PatchStatistics.load(path)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no patch statistics"):
        PatchStatistics.load(tmp_path / "other.safetensors")
    statistics.save(path)

    def refuse(path, *arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)  # that of another user
    with pytest.raises(ValueError, match=r"stats.safetensors cannot be read \(PermissionError.*Permission denied"):
        PatchStatistics.load(path)


BANDS = {"num_channels": 3, "rescale_factor": 1.0, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}


@pytest.mark.parametrize(
    ("metadata", "settings", "message"),
    [
        ({"patch_size": [8, 8]}, {"patch_size": (4, 16)}, r"patch_size \[8, 8\] instead of \[4, 16\]"),
        ({"patch_size": [8, 8]}, {"patch_size": 4, "num_channels": 12}, r"patch_size \[8, 8\] instead of \[4, 4\]"),
        ({"num_channels": 12}, {}, "num_channels 12 instead of 3"),
        ({"units": "numbers of the files"}, {}, "units numbers of the files instead of pixels from 0 to 1"),
        ({"units": "pixels from 0 to 1"}, BANDS, "units pixels from 0 to 1 instead of numbers of the files"),
        ({"bands": [2, 1, 0], "hf_mae_robust": "0.1.0"}, BANDS, r"bands \[2, 1, 0\] instead of None"),
        ({"hf_mae_robust": "0.1.0"}, {**BANDS, "nodata": 0.0}, "nodata None instead of 0.0"),
        ({"value_range": [[0, 9]] * 3, "hf_mae_robust": "0.1.0"}, BANDS, r"value_range \[\[0, 9\].* instead of None"),
    ],
)
def test_statistics_of_another_form_are_refused(metadata, settings, message):
    statistics = PatchStatistics.empty(192)
    statistics.metadata = metadata
    with pytest.raises(ValueError, match=f"^x does not fit this run: {message}. Compute the file"):
        statistics.check_form(ViTMAERobustConfig(**{"image_size": 64, "patch_size": 8, **settings}), "x")


def test_statistics_that_do_not_name_their_form_are_refused_by_their_numbers_alone():
    statistics, config = PatchStatistics.empty(192), ViTMAERobustConfig(image_size=64, patch_size=8)
    statistics.mean += 0.5
    statistics.check_form(config, "x")
    statistics.mean += 2
    with pytest.raises(ValueError, match="units numbers of the files instead of pixels from 0 to 1"):
        statistics.check_form(config, "x")
    statistics.check_form(ViTMAERobustConfig(image_size=64, patch_size=8, **BANDS), "x")


def test_limits_of_percentiles_may_be_those_of_other_images():
    statistics = PatchStatistics.empty(192)
    statistics.metadata = {"value_range": [[0, 9]] * 3, "hf_mae_robust": "0.1.0"}
    config = ViTMAERobustConfig(image_size=64, patch_size=8, value_range=[[0, 8]] * 3, **BANDS)
    statistics.check_form(config, "x", with_clipping=False)
    with pytest.raises(ValueError, match="value_range"):
        statistics.check_form(config, "x")
