"""What a training step goes through: checkpointing, autocast, compilation, the optimiser."""

import pytest
import torch
from torch.testing import assert_close

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from tests.model_helpers import ALL_ON, OFF, TARGETS, build, gradients, images, stock_of


def test_gradient_checkpointing_changes_nothing():
    model = build(**ALL_ON, **OFF).train()
    pixel_values, noise = images(), torch.rand(2, 16)
    results = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        model.zero_grad()
        loss = model(pixel_values, noise=noise).loss
        loss.backward()
        results.append((loss, {name: gradient.clone() for name, gradient in gradients(model).items()}))
    assert all(layer.gradient_checkpointing for layer in [*model.vit.layers, *model.decoder.decoder_layers])
    assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("mid_mask_ratio", [0.0, 0.25, 0.75])
def test_without_logits_loss_and_gradients_stay(blocks, mid_mask_ratio):
    model = build(
        **{**ALL_ON, **OFF, "mid_mask_ratio": mid_mask_ratio, "decoder_num_hidden_layers": blocks},
    ).train()
    inputs = {"pixel_values": images(), "noise": torch.rand(2, 16)}
    results = []
    for return_logits in (True, False):
        model.zero_grad()
        outputs = model(**inputs, return_logits=return_logits)
        outputs.loss.backward()
        results.append((outputs.loss.detach(), {name: value.clone() for name, value in gradients(model).items()}))
    assert outputs.logits is None
    assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_bf16_autocast_leaves_target_and_loss_in_float32(kind, norm_pix):
    model = build(target_normalization=kind, norm_pix_loss=norm_pix, mid_mask_ratio=0.25).train()
    pixel_values = images()
    expected = model.compute_target(pixel_values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = model.compute_target(pixel_values)
        outputs = model(pixel_values)
    assert target.dtype == outputs.loss.dtype == torch.float32
    assert outputs.logits.dtype == torch.bfloat16
    assert torch.equal(target, expected)
    outputs.loss.backward()
    assert torch.isfinite(model.vit.mid_mask_token.grad).all()


@pytest.mark.slow  # the quick one drops edges as well
def test_compiles_without_a_graph_break():
    model = build(**ALL_ON, **OFF).train()
    pixel_values, noise = images(), torch.rand(2, 16)

    def step(model):
        model.zero_grad()
        loss = model(pixel_values, noise=noise).loss
        loss.backward()
        return loss.detach(), {name: gradient.clone() for name, gradient in gradients(model).items()}

    expected = step(model)
    model.compile(fullgraph=True, backend="aot_eager")
    assert_close(step(model), expected, rtol=1e-5, atol=1e-6)


def test_compiles_with_dropped_edges_drawn_masks_and_patches_left_out():
    model = build(**ALL_ON, decoder_keep_ratio=0.5).train()
    model.compile(fullgraph=True, backend="aot_eager")
    pixel_values = images()
    first, second = model(pixel_values).loss, model(pixel_values).loss
    first.backward()
    assert torch.isfinite(first)
    assert first != second


def test_the_trainer_is_told_that_the_loss_is_a_mean():
    """Otherwise it would not divide it by the accumulation steps, since forward takes **kwargs."""
    assert ViTMAERobustForPreTraining.accepts_loss_kwargs is False


def test_config_of_another_family_keeps_the_ingredients_at_their_defaults(tmp_path):
    stock_of(build(**OFF)).save_pretrained(tmp_path)
    config = ViTMAERobustForPreTraining.from_pretrained(tmp_path).config
    assert type(config) is ViTMAERobustConfig
    assert config.decoder_attention_probs_dropout_prob == 0.3
