"""The six targets (paper, section 2.2)."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForPreTraining

from hf_mae_robust import ViTMAERobustForPreTraining
from tests.model_helpers import OFF, TARGETS, build, gradients, images, patches_of, tiny_config


def expected_target(model, pixel_values) -> np.ndarray:
    config = model.config
    pixels = pixel_values.double().numpy()
    if config.target_normalization != "global_rgb":
        shape = (-1, 1, 1)
        pixels = pixels * np.reshape(config.image_std, shape) + np.reshape(config.image_mean, shape)
    target = patches_of(pixels, 8, 8)
    if config.target_normalization == "global_patch":
        mean, std = model.target_normalizer.mean.double().numpy(), model.target_normalizer.std.double().numpy()
        target = (target - mean) / np.sqrt(std**2 + 1e-6)
    if config.norm_pix_loss:
        variance = target.var(axis=-1, keepdims=True, ddof=1 if config.norm_pix_unbiased else 0)
        target = (target - target.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-6)
    return target


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_target(kind, norm_pix, unbiased):
    model = build(target_normalization=kind, norm_pix_loss=norm_pix, norm_pix_unbiased=unbiased, **OFF)
    pixel_values = images()
    target = model.compute_target(pixel_values)
    expected = torch.tensor(expected_target(model, pixel_values))
    assert target.dtype == torch.float32
    assert_close(target.double(), expected, rtol=1e-5, atol=1e-5)
    outputs = model(pixel_values)
    masked = outputs.mask.bool()
    assert_close(
        outputs.loss.double(), ((outputs.logits.double() - expected) ** 2)[masked].mean(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_target_of_low_precision_images_is_computed_in_float32(kind, norm_pix):
    model = build(target_normalization=kind, norm_pix_loss=norm_pix)
    pixel_values = images().to(torch.bfloat16)
    target = model.compute_target(pixel_values)
    assert target.dtype == torch.float32
    assert torch.equal(target, model.compute_target(pixel_values.float()))


def test_target_uses_the_image_statistics_of_the_config():
    model = build(target_normalization="none", norm_pix_loss=False, image_mean=[0.1, 0.2, 0.3], image_std=[0.4] * 3)
    pixel_values = torch.zeros(1, 3, 32, 32)
    assert_close(model.compute_target(pixel_values)[0, 0, :3], torch.tensor([0.1, 0.2, 0.3]))


def test_global_patch_without_statistics_says_what_to_do():
    model = ViTMAERobustForPreTraining(tiny_config(target_normalization="global_patch"))
    with pytest.raises(ValueError) as error:
        model(images())
    for part in ("hf_mae_robust statistics", "--target_statistics", "set_target_statistics"):
        assert part in str(error.value)


def test_global_patch_on_top_of_a_checkpoint_without_statistics_is_refused_too(tmp_path):
    build().save_pretrained(tmp_path)
    model = ViTMAERobustForPreTraining.from_pretrained(tmp_path, target_normalization="global_patch")
    assert model.target_normalizer.mean.isnan().all()  # not whatever lay in the memory
    assert model.target_normalizer.std.isnan().all()
    with pytest.raises(ValueError, match="--target_statistics"):
        model(images())
    model.set_target_statistics(torch.zeros(192), torch.ones(192))
    assert torch.isfinite(model(images()).loss)


def test_wrong_statistics_are_refused():
    model = ViTMAERobustForPreTraining(tiny_config(target_normalization="global_patch"))
    good = torch.ones(192)
    for mean, std in [(torch.ones(3), good), (good, torch.ones(1)), (good[None], good)]:
        with pytest.raises(ValueError, match=r"\(192,\)"):
            model.set_target_statistics(mean, std)
    for mean, std in [(good * float("nan"), good), (good, good * float("inf")), (good, -good)]:
        with pytest.raises(ValueError, match="not finite or negative"):
            model.set_target_statistics(mean, std)
    with pytest.raises(ValueError, match="global_rgb"):
        build().set_target_statistics(good, good)


def test_statistics_are_saved_in_float32_and_come_back(tmp_path):
    model = build(target_normalization="global_patch")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for name in ("mean", "std"):
        buffer = getattr(model.target_normalizer, name)
        assert saved[f"target_normalizer.{name}"].dtype == torch.float32
        assert torch.equal(saved[f"target_normalizer.{name}"], buffer)

    pixel_values = images()
    expected = model.compute_target(pixel_values)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = ViTMAERobustForPreTraining.from_pretrained(tmp_path, dtype=dtype)
        assert loaded.decoder.decoder_pred.weight.dtype == dtype
        assert loaded.target_normalizer.mean.dtype == loaded.target_normalizer.std.dtype == torch.float32
        assert torch.equal(loaded.compute_target(pixel_values), expected)
        assert loaded(pixel_values.to(dtype)).loss.dtype == torch.float32


def test_a_model_built_in_low_precision_keeps_the_statistics_in_float32(tmp_path):
    config, mean, std = tiny_config(target_normalization="global_patch"), torch.rand(192), 0.1 + torch.rand(192)
    model = AutoModelForPreTraining.from_config(config, dtype=torch.bfloat16)
    assert model.decoder.decoder_pred.weight.dtype == torch.bfloat16
    model.set_target_statistics(mean, std)
    assert torch.equal(model.target_normalizer.mean, mean) and torch.equal(model.target_normalizer.std, std)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_file(tmp_path / "model.safetensors")["target_normalizer.mean"], mean)


def test_only_a_model_with_statistics_has_a_module_to_keep_in_float32():
    assert build(target_normalization="global_patch")._keep_in_fp32_modules_strict == {"target_normalizer"}
    assert build()._keep_in_fp32_modules_strict == build().vit._keep_in_fp32_modules_strict == set()


@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_constant_patches_give_a_finite_loss_and_gradient(kind, norm_pix):
    model = build(target_normalization=kind, norm_pix_loss=norm_pix).train()
    if kind == "global_patch":
        model.set_target_statistics(torch.zeros(192), torch.zeros(192))
    loss = model(torch.full((2, 3, 32, 32), -1.5)).loss
    loss.backward()
    assert torch.isfinite(loss)
    for name, gradient in gradients(model).items():
        assert torch.isfinite(gradient).all(), name


def test_casting_the_model_does_not_lower_the_statistics():
    """As Trainer does with --bf16_full_eval."""
    model = build(target_normalization="global_patch")
    mean, pixels = model.target_normalizer.mean.clone(), images()
    target = model.compute_target(pixels)
    model.to(torch.bfloat16)
    assert model.decoder.decoder_pred.weight.dtype == torch.bfloat16
    assert model.target_normalizer.mean.dtype == torch.float32 and torch.equal(model.target_normalizer.mean, mean)
    assert torch.equal(model.compute_target(pixels), target)
