"""Patches, reconstructions, other image sizes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers.models.vit_mae import modeling_vit_mae as stock_code

from hf_mae_robust import ViTMAERobustForPreTraining
from tests.model_helpers import ALL_ON, TARGETS, build, images, patches_of, stock_of, tiny_config


@pytest.mark.parametrize(
    ("image_size", "patch_size", "channels"),
    [(32, 8, 3), ((24, 40), 8, 3), ([32, 24], (8, 4), 1), ((16, 32), [4, 8], 5)],
)
def test_patchify_and_back(image_size, patch_size, channels):
    model = ViTMAERobustForPreTraining(tiny_config(image_size=image_size, patch_size=patch_size, num_channels=channels))
    (height, width), (p, q) = np.broadcast_to(image_size, 2), np.broadcast_to(patch_size, 2)
    pixel_values = images(height=height, width=width, channels=channels)
    patches = model.patchify(pixel_values)
    np.testing.assert_array_equal(patches.numpy(), patches_of(pixel_values.numpy(), p, q))
    assert torch.equal(model.unpatchify(patches), pixel_values)
    outputs = model(pixel_values)
    assert outputs.logits.shape == patches.shape
    assert torch.isfinite(outputs.loss)

    larger = images(height=2 * height, width=width + q, channels=channels)
    assert torch.equal(model.unpatchify(model.patchify(larger), larger.shape[-2:]), larger)


def test_patchify_equals_stock():
    model = build()
    stock, pixel_values = stock_of(model), images()
    patches = model.patchify(pixel_values)
    assert torch.equal(patches, stock.patchify(pixel_values))
    assert torch.equal(model.unpatchify(patches), stock.unpatchify(patches))


def test_patchify_refuses_what_does_not_fit():
    model = build()
    with pytest.raises(ValueError, match="1 channels.*num_channels=3"):
        model.patchify(images(channels=1))
    with pytest.raises(ValueError, match="32 x 36.*patch_size=8"):
        model.patchify(images(width=36))
    with pytest.raises(ValueError, match="16 patches.*32 x 40"):
        model.unpatchify(torch.zeros(1, 16, 192), (32, 40))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("image_size", [32, (24, 40)])
@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_a_perfect_prediction_reconstructs_the_image(monkeypatch, kind, norm_pix, image_size, unbiased):
    model = build(target_normalization=kind, norm_pix_loss=norm_pix, norm_pix_unbiased=unbiased, image_size=image_size)
    raw = torch.rand(2, 3, *np.broadcast_to(image_size, 2))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.config.image_mean, model.config.image_std))
    pixel_values = (raw - mean) / std
    target = model.compute_target(pixel_values)

    def perfect(hidden_states, ids_shuffle, *args):
        shuffled = target.gather(1, ids_shuffle.unsqueeze(-1).expand(target.shape))
        return stock_code.ViTMAEDecoderOutput(logits=shuffled)

    monkeypatch.setattr(model.decoder, "forward", perfect)
    assert_close(model.reconstruct(pixel_values), raw, rtol=0, atol=1e-5)
    assert_close(model.invert_target(target, pixel_values), raw, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_reconstruct_keeps_visible_patches_and_the_mode(training):
    model = build(image_size=(24, 40)).train(training)
    pixel_values, noise = images(height=24, width=40), torch.rand(2, 15)
    picture = model.reconstruct(pixel_values, noise=noise)
    assert torch.equal(picture, model.reconstruct(pixel_values, noise=noise))  # no dropout
    assert all(module.training == training for module in model.modules())
    assert picture.dtype == torch.float32
    assert not picture.requires_grad

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.config.image_mean, model.config.image_std))
    same = (model.patchify(picture) == model.patchify(pixel_values * std + mean)).all(dim=-1)
    assert torch.equal(same, ~model.eval()(pixel_values, noise=noise).mask.bool())


def test_reconstruct_restores_the_mode_after_an_error():
    model = build().train()
    with pytest.raises(ValueError):
        model.reconstruct(images(height=40))
    assert model.training


def bicubic_1d(old: int, new: int) -> torch.Tensor:
    """The (new, old) matrix of 1-D bicubic interpolation."""
    return nn.functional.interpolate(torch.eye(old)[None, None], size=(new, old), mode="bicubic")[0, 0]


def positions_used(model, pixel_values):
    """What encoder and decoder add to their patch tokens, `(L, dim)` each."""
    seen = {}
    with torch.no_grad():
        model.decoder.decoder_embed.weight.zero_()
        model.decoder.decoder_embed.bias.zero_()
        model.decoder.mask_token.zero_()
    hooks = [
        model.decoder.register_forward_pre_hook(lambda module, args: seen.update(ids=args[1])),
        model.decoder.decoder_layers[0].layernorm_before.register_forward_pre_hook(
            lambda module, args: seen.setdefault("encoded" if "encoded" not in seen else "table", args[0])
        ),
    ]
    model(pixel_values, interpolate_pos_encoding=True)
    for hook in hooks:
        hook.remove()
    # The encoded patches of the first image have the positions that the table of mask tokens has for them.
    encoded = seen["encoded"][0, 1:]
    assert_close(encoded, seen["table"][seen["ids"][0, : len(encoded)]])
    return model.vit.embeddings(pixel_values, True)[2], seen["table"]


@pytest.mark.parametrize(("native", "new"), [((4, 4), (6, 6)), ((4, 4), (5, 8)), ((3, 5), (6, 4)), ((4, 4), (2, 8))])
def test_position_embeddings_are_interpolated_in_two_dimensions(native, new):
    model = build(image_size=[8 * size for size in native])
    tables = model.vit.embeddings.position_embeddings[:, 1:], model.decoder.decoder_pos_embed[:, 1:]
    used = positions_used(model, images(height=8 * new[0], width=8 * new[1]))
    vertical, horizontal = bicubic_1d(native[0], new[0]), bicubic_1d(native[1], new[1])
    for table, actual in zip(tables, used):
        expected = torch.einsum("ia,jb,abd->ijd", vertical, horizontal, table.reshape(*native, -1))
        assert_close(actual, expected.reshape(new[0] * new[1], -1), rtol=0, atol=1e-5)


def test_interpolation_changes_nothing_at_the_native_size():
    model = build().eval()
    pixel_values, noise = images(), torch.rand(2, 16)
    plain = model(pixel_values, noise=noise)
    interpolated = model(pixel_values, noise=noise, interpolate_pos_encoding=True)
    assert torch.equal(plain.logits, interpolated.logits)
    assert torch.equal(plain.loss, interpolated.loss)


def test_larger_image_that_is_not_square():
    model = build(**ALL_ON)
    pixel_values = images(height=40, width=64)
    outputs = model(pixel_values, interpolate_pos_encoding=True)
    assert outputs.logits.shape == (2, 40, 192)
    assert outputs.mask.sum(dim=1).tolist() == [30, 30]
    assert torch.isfinite(outputs.loss)
    assert model.reconstruct(pixel_values, interpolate_pos_encoding=True).shape == pixel_values.shape
    assert model.vit(pixel_values, interpolate_pos_encoding=True).last_hidden_state.shape == (2, 41, 64)


@pytest.mark.parametrize(("height", "width"), [(36, 32), (32, 4)])
def test_sizes_that_are_no_multiple_of_the_patch_are_refused(height, width):
    for model in (build(), build().vit):
        with pytest.raises(ValueError, match=f"{height} x {width} pixels are not a multiple of patch_size=8"):
            model(images(height=height, width=width), interpolate_pos_encoding=True)
