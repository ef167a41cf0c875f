import numpy as np
import torch
from PIL import Image

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.data.shown import MISSING_GRAY, to_shown
from hf_mae_robust.training.pictures import (
    MASK_GRAY,
    reconstruction_errors,
    reconstruction_grid,
    save_errors_by_band,
    save_loss_plot,
    save_reconstructions,
)
from tests.helpers import TINY


def test_rows_are_original_masked_and_reconstruction(tmp_path):
    model = ViTMAERobustForPreTraining(ViTMAERobustConfig(**{**TINY, "image_size": [96, 128], "patch_size": [32, 32]}))
    images, noise = torch.randn(3, 3, 96, 128) * 0.3, torch.rand(3, 12)
    grid = reconstruction_grid(model, images, noise)
    assert grid.shape == (3, 3 * 96 + 4 * 2, 3 * 128 + 4 * 2)
    rows = [grid[:, 2 + i * 98 : 98 + i * 98, 2:130] for i in range(3)]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (model.config.image_mean, model.config.image_std))
    torch.testing.assert_close(rows[0], (images[0] * std + mean).clamp(0, 1))
    mask = model.unpatchify(model(images, noise=noise).mask.unsqueeze(-1).expand(-1, -1, 32 * 32 * 3))[0].bool()
    assert (rows[1][mask] == MASK_GRAY).all() and torch.equal(rows[1][~mask], rows[0][~mask])
    torch.testing.assert_close(rows[2], model.reconstruct(images, noise=noise)[0].clamp(0, 1))
    save_reconstructions(model, images, noise, tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size == (grid.shape[2], grid.shape[1])


def test_small_gray_images_are_enlarged_without_smoothing():
    config = ViTMAERobustConfig(**{**TINY, "num_channels": 1})
    grid = reconstruction_grid(ViTMAERobustForPreTraining(config), torch.zeros(1, 1, 16, 16), torch.rand(1, 16))
    assert grid.shape[2] == 6 * 16 + 2 * 6  # six-fold, with a border on both sides


def test_loss_plot_is_a_picture(tmp_path):
    history = [{"epoch": e / 2, "loss": 1 / (e + 1)} for e in range(6)]
    history += [{"epoch": e, "eval_loss": 0.5, "eval_loss_of_mean": 1.0} for e in (1, 2)]
    save_loss_plot(history, tmp_path / "loss.png", "mean squared error")
    pixels = np.asarray(Image.open(tmp_path / "loss.png").convert("L"))
    assert pixels.std() > 5
    save_loss_plot([], tmp_path / "empty.png", "mean squared error")


def band_model() -> ViTMAERobustForPreTraining:
    statistics = {"image_mean": [900.0, -3.0, 5e4, 0.2, 10.0], "image_std": [300.0, 0.5, 1e4, 0.01, 2.0]}
    config = ViTMAERobustConfig(**{**TINY, "num_channels": 5}, rescale_factor=1.0, **statistics)
    return ViTMAERobustForPreTraining(config)


def test_bands_are_shown_with_the_contrast_of_the_original():
    model = band_model()
    size = model.config.image_size
    images, noise = torch.randn(2, 5, size, size), torch.rand(2, model.config.num_patches)
    images[:, :, :3, :3] = torch.nan
    grid = reconstruction_grid(model, images, noise, (4, 0, 1))
    scale = 96 // size
    tops = [scale + i * (size + 1) * scale for i in range(3)]
    rows = [grid[:, y : y + scale * size : scale, scale : scale + scale * size : scale] for y in tops]
    std, mean = (torch.tensor(value).view(-1, 1, 1) for value in (model.config.image_std, model.config.image_mean))
    original = images[0] * std + mean
    torch.testing.assert_close(rows[0], to_shown(original, (4, 0, 1)))
    assert (rows[0][:, :3, :3] == MISSING_GRAY).all()
    rebuilt = model.reconstruct(images, noise=noise)[0].detach()
    torch.testing.assert_close(rows[2], to_shown(rebuilt, (4, 0, 1), like=original))
    hidden = (rows[1] == MASK_GRAY).all(0)
    assert abs(hidden.float().mean() - model.config.mask_ratio) < 0.1
    assert torch.equal(rows[1][:, ~hidden], rows[0][:, ~hidden])


def test_errors_by_band_are_in_units_of_the_deviation_and_leave_out_what_is_missing():
    model = band_model()
    size = model.config.image_size
    images, noise = torch.randn(2, 5, size, size), torch.rand(2, model.config.num_patches)
    images[:, 1:3, :, :5] = torch.nan
    sums, counts = reconstruction_errors(model, images, noise)
    with torch.no_grad():
        mask = model(images, noise=noise).mask.unsqueeze(-1).expand(-1, -1, model.config.patch_dim)
        rebuilt = model.reconstruct(images, noise=noise)
    mask = model.unpatchify(mask, images.shape[-2:]).bool().numpy()
    for band in range(5):
        std, mean = np.float64(model.config.image_std[band]), np.float64(model.config.image_mean[band])
        error = (rebuilt[:, band].numpy() - mean) / std - images[:, band].numpy()
        counted = mask[:, band] & ~np.isnan(error)
        assert counts[band] == counted.sum() and (band in (1, 2)) == (counted.sum() < mask[:, band].sum())
        np.testing.assert_allclose(sums[band], (error[counted] ** 2).sum(), rtol=1e-3)


def test_the_plot_of_errors_is_a_picture(tmp_path):
    for count in (1, 13, 200):
        errors = [0.1 + i / count for i in range(count)]
        save_errors_by_band(errors, tmp_path / f"{count}.png", list(range(count)), norm_pix_loss=count == 13)
        assert np.asarray(Image.open(tmp_path / f"{count}.png").convert("L")).std() > 5
