import numpy as np
import torch
from PIL import Image

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.training.pictures import MASK_GRAY, reconstruction_grid, save_loss_plot, save_reconstructions
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
