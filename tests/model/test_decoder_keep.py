"""`decoder_keep_ratio`: in training the decoder reconstructs a random part of the masked patches."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from hf_mae_robust.model.configuration_vit_mae_robust import kept_patches
from tests.model_helpers import ALL_ON, OFF, TARGETS, assert_equal_tensors, build, gradients, images

# Share of mid-level tokens -> of 16 patches with 4 visible ones, the places in the order of the noise that half keeps.
KEPT = {0.0: range(4, 10), 0.25: [4, 5, 8, 9, 10, 11], 0.75: range(4, 10)}


def kept_by(noise: torch.Tensor, mid_mask_ratio: float) -> torch.Tensor:
    """`(B, L)`: True where a masked patch is kept."""
    order = np.argsort(noise.numpy(), axis=1)
    kept = np.zeros(noise.shape, dtype=bool)
    np.put_along_axis(kept, order[:, list(KEPT[mid_mask_ratio])], True, axis=1)
    return torch.tensor(kept)


@pytest.mark.parametrize("mid_mask_ratio", KEPT)
def test_what_is_left_out_is_seen_by_none_and_not_in_the_loss(mid_mask_ratio):
    """Against the model that keeps all, in whose decoder no token attends to those that are left out."""
    model = build(**OFF, mid_mask_ratio=mid_mask_ratio, decoder_keep_ratio=0.5).train()
    reference = build(**OFF, mid_mask_ratio=mid_mask_ratio)
    reference.load_state_dict(model.state_dict())
    pixel_values, noise = images(), torch.rand(2, 16)
    kept = kept_by(noise, mid_mask_ratio)
    visible = torch.tensor(np.argsort(np.argsort(noise.numpy(), axis=1), axis=1) < 4)
    # CLS, then the patches as the decoder has them.
    is_seen = (kept | visible).gather(1, noise.argsort(dim=1))
    is_seen = torch.cat([torch.ones(2, 1, dtype=torch.bool), is_seen], dim=1)[:, None, None]

    def hide(layer, args, kwargs):
        return args, {**kwargs, "attention_mask": torch.zeros(is_seen.shape).masked_fill(~is_seen, -torch.inf)}

    for layer in reference.decoder.decoder_layers:
        layer.register_forward_pre_hook(hide, with_kwargs=True)
    expected = reference(pixel_values, noise=noise)
    errors = (expected.logits - reference.compute_target(pixel_values)).square().mean(dim=-1)
    expected_loss = errors[kept].mean()
    expected_loss.backward()

    outputs = model(pixel_values, noise=noise)
    assert_close(outputs.loss, expected_loss)
    assert torch.equal(outputs.mask, expected.mask)  # 1 = masked, kept or not
    assert torch.equal(outputs.logits.isnan().any(dim=-1), ~(kept | visible))
    assert_close(outputs.logits[kept | visible], expected.logits[kept | visible], rtol=1e-4, atol=1e-5)
    for return_logits in (True, False):
        model.zero_grad()
        outputs = model(pixel_values, noise=noise, return_logits=return_logits)
        outputs.loss.backward()
        assert_close(outputs.loss, expected_loss)
        assert_close(gradients(model), gradients(reference), rtol=1e-4, atol=1e-6)
    assert outputs.logits is None


@pytest.mark.parametrize(
    ("num_mid", "num_missing", "ratio", "expected"),
    [
        (0, 147, 0.5, (0, 74)),
        (49, 98, 0.5, (25, 49)),  # the paper's mid-level tokens
        (49, 98, 0.25, (12, 25)),
        (147, 0, 0.5, (74, 0)),
        (0, 147, 1.0, (0, 147)),
        (1, 0, 0.01, (1, 0)),  # at least one
        (0, 2, 0.01, (0, 1)),
        (1, 1, 0.1, (1, 0)),
    ],
)
def test_how_many_are_kept(num_mid, num_missing, ratio, expected):
    assert kept_patches(num_mid, num_missing, ratio) == expected


def test_each_kind_of_masked_patch_keeps_its_share():
    for num_mid, num_missing, percent in np.ndindex(9, 9, 101):
        if num_mid + num_missing and percent:
            mid, missing = kept_patches(num_mid, num_missing, percent / 100)
            assert 0 <= mid <= num_mid and 0 <= missing <= num_missing
            assert mid + missing >= 1
            if mid + missing > 1:
                assert abs(mid - num_mid * percent / 100) <= 1 and abs(missing - num_missing * percent / 100) <= 1


def test_every_masked_patch_is_kept_as_often():
    model = build(mid_mask_ratio=0.25, decoder_keep_ratio=0.5, num_hidden_layers=2, decoder_num_hidden_layers=1).train()
    with torch.no_grad():
        outputs = model(images(600))
    kept = ~outputs.logits.isnan().any(dim=-1) & outputs.mask.bool()
    assert kept.sum(dim=1).unique().tolist() == [6]
    # 600 draws have a deviation of 0.02.
    assert_close(kept.float().mean(dim=0), torch.full((16,), 6 / 16), rtol=0, atol=0.1)


@pytest.mark.parametrize("return_logits", [True, False])
def test_evaluation_and_reconstruction_take_all(return_logits):
    model = build(**ALL_ON, decoder_keep_ratio=0.25)
    everything = build(**ALL_ON)
    everything.load_state_dict(model.state_dict())
    inputs = {"pixel_values": images(), "noise": torch.rand(2, 16)}
    assert torch.equal(model.train().reconstruct(**inputs), everything.reconstruct(**inputs))
    assert model.training
    outputs, expected = (m.eval()(**inputs, return_logits=return_logits) for m in (model, everything))
    assert torch.equal(outputs.loss, expected.loss) and torch.equal(outputs.mask, expected.mask)
    assert not return_logits or torch.equal(outputs.logits, expected.logits)


def test_with_all_of_them_every_bit_is_as_before_there_was_the_setting():
    """Loss, predictions, gradients, and the random numbers that are drawn, drop edge included."""
    model, pixel_values = build(**ALL_ON).train(), images()
    torch.manual_seed(0)
    encoded = model.vit(pixel_values, mask_ratio=0.75)
    predicted = model.decoder(encoded.last_hidden_state, encoded.ids_shuffle, (4, 4)).logits
    target = model.compute_target(pixel_values, encoded.ids_shuffle[:, 4:])
    expected_loss = torch.nn.functional.mse_loss(predicted[:, 4:], target)
    expected_loss.backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    state = torch.get_rng_state()
    predicted = predicted.gather(1, encoded.ids_restore.unsqueeze(-1).expand_as(predicted))

    model.zero_grad()
    torch.manual_seed(0)
    outputs = model(pixel_values)
    outputs.loss.backward()
    assert torch.equal(outputs.loss, expected_loss) and torch.equal(outputs.logits, predicted)
    assert_equal_tensors(gradients(model), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_more_is_drawn():
    """Which patches are kept follows from the noise: masks, and so later steps, are those of a model that keeps all."""
    model, pixel_values = build(**OFF, mid_mask_ratio=0.25).train(), images()
    found = []
    for ratio in (1.0, 0.5):
        model.config.decoder_keep_ratio = ratio
        torch.manual_seed(0)
        found.append((model(pixel_values).mask, torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_every_target_in_bf16_and_with_gradient_checkpointing(kind, norm_pix):
    settings = {"target_normalization": kind, "norm_pix_loss": norm_pix, "mid_mask_ratio": 0.25}
    model = build(**OFF, **settings, decoder_keep_ratio=0.5).train()
    pixel_values, noise = images(), torch.rand(2, 16)
    outputs = model(pixel_values, noise=noise)
    kept = kept_by(noise, 0.25)
    errors = (outputs.logits - model.compute_target(pixel_values))[kept].square()
    assert_close(outputs.loss, errors.mean())
    outputs.loss.backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    model.gradient_checkpointing_enable()
    model.zero_grad()
    model(pixel_values, noise=noise).loss.backward()
    assert_equal_tensors(gradients(model), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(pixel_values, noise=noise)
    assert low.loss.dtype == torch.float32 and low.logits.dtype == torch.bfloat16
    assert_close(low.loss, outputs.loss, rtol=0.05, atol=0)


@pytest.mark.slow  # test_training_step.py compiles it quickly, at one size
def test_compiles_without_a_graph_break_for_images_of_any_size():
    torch._dynamo.reset()
    model = build(**ALL_ON, **OFF, decoder_keep_ratio=0.5, num_hidden_layers=2, decoder_num_hidden_layers=1).train()
    settings = {"return_logits": False, "interpolate_pos_encoding": True}
    inputs = [
        {"pixel_values": images(height=size, width=size), "noise": torch.rand(2, size * size // 64)}
        for size in (48, 64)
    ]
    expected = [model(**each, **settings).loss for each in inputs]
    model.compile(fullgraph=True, backend="eager", dynamic=True)
    for each, loss in zip(inputs, expected):
        assert_close(model(**each, **settings).loss, loss, rtol=1e-5, atol=1e-6)
