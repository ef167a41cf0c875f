"""The map: positions against scikit-learn, which images are shown, and a picture with content."""

import numpy as np
import pytest
from PIL import Image as PILImage
from sklearn.decomposition import PCA

from hf_mae_robust.__main__ import main
from hf_mae_robust.embedding.map import GRID, draw_map, positions_by_pca, positions_by_tsne, spread_out
from tests.helpers import photos


def test_principal_components_are_those_of_sklearn():
    vectors = np.random.default_rng(0).normal(size=(60, 8)) @ np.random.default_rng(1).normal(size=(8, 8)) + 3
    positions, shares = positions_by_pca(vectors.astype(np.float32))
    reference = PCA(2).fit(vectors)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, atol=1e-5)
    np.testing.assert_allclose(np.abs(positions), np.abs(reference.transform(vectors)), atol=1e-4)


def test_images_that_are_all_the_same_make_a_map_too(tmp_path):
    positions, shares = positions_by_pca(np.ones((5, 4), np.float32))
    assert np.isfinite(positions).all() and np.isfinite(shares).all()
    draw_map(
        positions, None, None, spread_out(positions), [np.zeros((8, 8, 3), np.uint8)], "", ("", ""), tmp_path / "a.png"
    )


def test_tsne_keeps_clusters_apart():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    vectors = (np.eye(3)[labels] * 5 + rng.normal(size=(60, 3)) * 0.1).astype(np.float32)
    positions = positions_by_tsne(vectors, seed=0)
    centres = np.stack([positions[labels == i].mean(axis=0) for i in range(3)])
    nearest = np.linalg.norm(positions[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == labels).all() and positions_by_tsne(vectors[:4], seed=0).shape == (4, 2)


def test_shown_images_are_spread_out():
    positions = np.random.default_rng(0).uniform(size=(3000, 2))
    shown = spread_out(positions)
    assert len(shown) == GRID[0] * GRID[1]
    cells = {tuple(cell) for cell in np.minimum((positions[shown] * GRID).astype(int), np.array(GRID) - 1).tolist()}
    assert len(cells) > 0.9 * len(shown)


def colours(path, at_least: int = 50) -> set[tuple[int, ...]]:
    """Of at least so many pixels."""
    found, counts = np.unique(packed(np.array(PILImage.open(path).convert("RGB"))), return_counts=True)
    return {(colour >> 16, colour >> 8 & 255, colour & 255) for colour in found[counts >= at_least].tolist()}


def packed(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(-1, 3).astype(np.int64) @ (1 << 16, 1 << 8, 1)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_command_draws_points_pictures_and_a_legend(method, encoder_dir, photos_dir, tmp_path, capsys):
    flags = ["--map", tmp_path / "new" / "map.png", "--map_method", method, "--map_samples", 12, "--crop_pct", 1]
    command = [
        "embed",
        encoder_dir,
        "--dataset_name",
        photos_dir,
        "--num_workers",
        0,
        "--output",
        tmp_path / "e.parquet",
    ]
    main([str(word) for word in [*command, *flags]])
    assert "of 12 images of 40, drawn at random" in capsys.readouterr().out
    drawn = colours(tmp_path / "new" / "map.png")
    assert {(31, 119, 180), (255, 127, 14)} <= drawn, "frames and legend of both classes"
    of_images = {tuple(pixel) for image in photos(40) for pixel in image.reshape(-1, 3).tolist()}
    assert len(colours(tmp_path / "new" / "map.png", 4) & of_images) > 1000, "pictures"


def test_many_classes_and_missing_labels_have_a_readable_legend(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.repeat(np.arange(30), 5), [-1] * 4])
    names = [f"class {i}" for i in range(30)]
    positions = rng.normal(size=(len(labels), 2))
    draw_map(positions, labels, names, np.array([0]), [np.zeros((8, 8, 3), np.uint8)], "", ("", ""), tmp_path / "a.png")
    assert (211, 211, 211) in colours(tmp_path / "a.png"), "other classes are light gray"
