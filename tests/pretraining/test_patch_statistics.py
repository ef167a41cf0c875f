import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.pretraining.patch_statistics import PatchStatistics, compute_patch_statistics, patches_of


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


def test_wrong_files_are_refused_with_what_to_do(tmp_path):
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
