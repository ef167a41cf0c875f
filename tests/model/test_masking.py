"""Mid-level mask tokens (paper, section 2.3), and the encoder by itself."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForPreTraining, ViTMAEConfig, ViTMAEModel

from hf_mae_robust import ViTMAERobustForPreTraining, ViTMAERobustModel
from tests.model_helpers import (
    ALL_ON,
    OFF,
    TINY,
    build,
    images,
    tiny_config,
)


def test_mid_level_tokens():
    """A 14 x 14 grid as in the paper: 49 patches visible, 49 more tokens from block 1 on, 98 left to the decoder."""
    model = build(image_size=224, patch_size=16, mid_mask_ratio=0.25, **OFF)
    seen = {}

    def record(name, module):
        """The tokens that a block attends to, its own residual stream included."""
        module.register_forward_pre_hook(lambda module, args: seen.__setitem__(name, args[0].detach()))

    for index, layer in enumerate(model.vit.layers):
        # What goes into the second norm is the residual stream, and what attention adds to it.
        record(index, layer.layernorm_after)
        layer.attention.o_proj.register_forward_hook(
            lambda module, args, output, index=index: seen.__setitem__(("attended", index), output.detach())
        )
    first = model.decoder.decoder_layers[0]
    record("decoder", model.decoder)
    record("decoder block", first.layernorm_after)
    first.attention.o_proj.register_forward_hook(
        lambda module, args, output: seen.__setitem__("attended", output.detach())
    )
    pixel_values, noise = images(height=224, width=224), torch.rand(2, 196)
    outputs = model(pixel_values, noise=noise)
    for index in range(3):
        seen[index] = seen[index] - seen["attended", index]
    seen["decoder block"] = seen["decoder block"] - seen["attended"]

    assert [seen[index].shape[1] for index in range(3)] == [50, 99, 99]
    assert seen["decoder"].shape[1] == 99
    assert seen["decoder block"].shape[1] == 197

    # The smallest noise stays visible, the next gets mid-level tokens.
    order = torch.tensor(np.argsort(noise.numpy(), axis=1))
    visible, mid, rest = order[:, :49], order[:, 49:98], order[:, 98:]
    positions = model.vit.embeddings.position_embeddings[0, 1:]
    assert_close(seen[1][:, 50:], model.vit.mid_mask_token + positions[mid], rtol=1e-5, atol=1e-5)
    expected_mask = torch.ones(2, 196).scatter(1, visible, 0.0)
    assert torch.equal(outputs.mask, expected_mask)

    # The decoder puts both kinds of encoder outputs back where they belong, and its mask token everywhere else.
    embedded = model.decoder.decoder_embed(seen["decoder"])
    positions = model.decoder.decoder_pos_embed[0, 1:]
    for image in range(2):
        tokens = seen["decoder block"][image, 1:]
        assert_close(tokens[:49] - positions[visible[image]], embedded[image, 1:50], rtol=1e-5, atol=1e-5)
        assert_close(tokens[49:98] - positions[mid[image]], embedded[image, 50:], rtol=1e-5, atol=1e-5)
        mask_token = model.decoder.mask_token[0].expand(98, -1)
        assert_close(tokens[98:] - positions[rest[image]], mask_token, rtol=1e-5, atol=1e-5)

    assert expected_mask.sum() == 2 * 147
    error = (outputs.logits - model.compute_target(pixel_values)) ** 2
    assert_close(outputs.loss, error[expected_mask.bool()].mean())
    outputs.loss.backward()
    assert model.vit.mid_mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("layer", [0, 2])
def test_mid_level_tokens_join_before_the_block_of_the_config(layer):
    model = build(mid_mask_ratio=0.5, mid_mask_layer_idx=layer)
    lengths = []
    for block in model.vit.layers:
        block.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    model(images())
    assert lengths == [5] * layer + [13] * (3 - layer)


def test_mid_level_tokens_at_every_masked_patch():
    model = build(mid_mask_ratio=0.75)
    assert model.vit(images(), mask_ratio=0.75).last_hidden_state.shape[1] == 17
    assert torch.isfinite(model(images()).loss)


def test_without_mid_level_tokens_there_is_no_such_parameter():
    assert not [name for name in build().state_dict() if "mid_mask" in name]
    assert "vit.mid_mask_token" in build(mid_mask_ratio=0.25).state_dict()


def test_mid_level_token_is_initialised_on_top_of_a_checkpoint_without_one(tmp_path):
    build().save_pretrained(tmp_path)
    model = ViTMAERobustForPreTraining.from_pretrained(tmp_path, mid_mask_ratio=0.25)
    assert 0.01 < model.vit.mid_mask_token.std() < 0.03


def test_features_equal_those_of_stock_without_masking():
    model = build().eval()
    stock = ViTMAEModel(ViTMAEConfig(**TINY, layer_norm_eps=1e-6, mask_ratio=0.0)).eval()
    stock.load_state_dict(model.vit.state_dict())
    pixel_values = images()
    expected = stock(pixel_values, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    outputs = model.vit(pixel_values)
    assert_close(outputs.last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(outputs.last_hidden_state, model.vit(pixel_values).last_hidden_state)
    assert not outputs.mask.any()
    assert torch.equal(outputs.ids_restore, torch.arange(16).expand(2, -1))


def test_features_take_no_mid_level_tokens():
    model = build(mid_mask_ratio=0.25).eval()
    plain = ViTMAERobustModel(tiny_config()).eval()
    plain.load_state_dict(model.vit.state_dict(), strict=False)
    pixel_values = images()
    assert_close(model.vit(pixel_values).last_hidden_state, plain(pixel_values).last_hidden_state)


def test_auto_model_gives_the_encoder(tmp_path):
    model = build(**ALL_ON).eval()
    model.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is ViTMAERobustModel
    pixel_values = images()
    assert_close(encoder(pixel_values).last_hidden_state, model.vit(pixel_values).last_hidden_state)
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is ViTMAERobustForPreTraining


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5, 0.75])
def test_mask_ratio_masks(mask_ratio):
    encoder, noise = build().vit, torch.rand(2, 16)
    outputs = encoder(images(), noise=noise, mask_ratio=mask_ratio)
    assert outputs.last_hidden_state.shape == (2, 1 + int(16 * (1 - mask_ratio)), 64)
    assert outputs.mask.sum(dim=1).tolist() == [16 * mask_ratio] * 2
    assert torch.equal(outputs.ids_restore, noise.argsort(dim=1).argsort(dim=1))


def test_masks_are_drawn_each_time_without_noise():
    encoder = build().vit
    assert not torch.equal(encoder(images(), mask_ratio=0.75).mask, encoder(images(), mask_ratio=0.75).mask)


def test_wrong_inputs_are_refused():
    model = build()
    with pytest.raises(ValueError, match="mask_ratio=1.0"):
        model.vit(images(), mask_ratio=1.0)
    with pytest.raises(ValueError, match=r"noise has shape \(2, 15\).*\(2, 16\)"):
        model(images(), noise=torch.rand(2, 15))
    with pytest.raises(ValueError, match="channel"):
        model(images(channels=1))
    with pytest.raises(ValueError, match="40 x 32.*image_size=32.*interpolate_pos_encoding=True"):
        model(images(height=40))
