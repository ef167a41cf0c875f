"""Band models: images of any number of channels and any type of number, with missing pixels."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers.models.vit_mae import modeling_vit_mae as stock_code

from hf_mae_robust import ViTMAERobustForPreTraining
from hf_mae_robust.model.bands_vit_mae_robust import BandForm, BandImage
from tests.model_helpers import OFF, TARGETS, build, gradients, images, patches_of

AXES = ("patch", "channel")
# Sensors as there are: counts far from 0, reflectances of 1e-4, and deviations that differ by 1000 and more.
MEAN, STD = [33144.0, 3e-4, 1200.0, -5.0], [254.0, 1e-4, 700.0, 0.5]
BANDS = {"num_channels": 4, "rescale_factor": 1.0, "image_mean": MEAN, "image_std": STD}
COLUMN = (-1, 1, 1)


def band_model(**settings) -> ViTMAERobustForPreTraining:
    model = build(**{**BANDS, **OFF, **settings})
    if model.config.target_normalization == "global_patch":
        random, (mean, std) = np.random.default_rng(1), (np.tile(values, 64) for values in (MEAN, STD))
        model.set_target_statistics(mean + 0.2 * std * random.standard_normal(256), std * (0.5 + random.random(256)))
    return model


def stored(missing: bool = True, batch: int = 2) -> np.ndarray:
    """Images `(B, 4, 32, 32)` in the units of the files, float64; NaN: missing pixels."""
    random = np.random.default_rng(0)
    pixels = np.reshape(MEAN, COLUMN) + np.reshape(STD, COLUMN) * random.standard_normal((batch, 4, 32, 32))
    if missing:
        pixels[random.random(pixels.shape) < 0.2] = np.nan
        pixels[0, :, :8, :8] = np.nan  # a patch without any number
        pixels[0, :, :8, 8:16] = np.nan  # one with a single number
        pixels[0, 2, 3, 9] = 1000.0
        pixels[1, 1, 8:16, 8:16] = np.nan  # one without a band
    return pixels


def pixel_values(model, pixels: np.ndarray) -> torch.Tensor:
    form = BandForm(**model.config.band_settings())
    return torch.tensor(np.stack([form.apply(BandImage(image)) for image in pixels]))


def expected_target(model, pixels: np.ndarray) -> np.ndarray:
    """From the units of the files, in float64, number by number."""
    config = model.config
    mean, std = np.array(MEAN), np.array(STD)
    if config.target_normalization == "none":
        pooled = mean.mean()
        scale = np.full(4, np.sqrt((std**2 + (mean - pooled) ** 2).mean()))
        target = patches_of((pixels - pooled) / scale[0], 8, 8)
    elif config.target_normalization == "global_rgb":
        scale = std
        target = patches_of((pixels - mean.reshape(COLUMN)) / std.reshape(COLUMN), 8, 8)
    else:
        scale = std
        statistics = model.target_normalizer
        shift, spread = (statistics.mean.double().numpy(), statistics.std.double().numpy())
        target = patches_of((pixels - mean.reshape(COLUMN)) / std.reshape(COLUMN), 8, 8)
        target = (target - shift) / np.sqrt(spread**2 + 1e-6)
    if not config.norm_pix_loss:
        return target
    result = np.full_like(target, np.nan)
    for patch, out in zip(target.reshape(-1, 256), result.reshape(-1, 256)):
        groups = [slice(None)] if config.norm_pix_axis == "patch" else [slice(band, None, 4) for band in range(4)]
        for band, group in enumerate(groups):
            valid = patch[group][~np.isnan(patch[group])]
            if not len(valid):
                continue
            ddof = 1 if config.norm_pix_unbiased else 0
            variance = valid.var(ddof=ddof) if len(valid) > ddof else 0.0
            # The epsilon is relative to the deviation of the band: 1e-6 in normalised units.
            relative = std[band] / scale[band] if config.norm_pix_axis == "channel" else 1.0
            epsilon = 1e-6 * relative**2
            out[group] = (patch[group] - valid.mean()) / np.sqrt(variance + epsilon)
    return result


@pytest.mark.parametrize("missing", [True, False])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_target_equals_a_float64_computation_in_the_units_of_the_files(kind, norm_pix, axis, unbiased, missing):
    model = band_model(
        target_normalization=kind, norm_pix_loss=norm_pix, norm_pix_axis=axis, norm_pix_unbiased=unbiased
    )
    pixels = stored(missing)
    values = pixel_values(model, pixels)
    target, expected = model.compute_target(values), torch.tensor(expected_target(model, pixels))
    assert target.dtype == torch.float32 and bool(target.isnan().any()) == missing
    assert_close(target.double(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
    ids = torch.tensor([[3, 0, 5], [1, 15, 2]])
    rows = torch.arange(2).unsqueeze(1)
    assert_close(model.compute_target(values, ids), target[rows, ids], equal_nan=True)


def test_per_channel_statistics_cancel_a_population_step_per_channel():
    """In nearly flat patches too: the epsilon is relative to the band's deviation."""
    std = [1000.0, 1.0, 1e-3, 1.0]
    pixels = stored(missing=False)
    pixels[:, :, :16] = np.reshape(MEAN, COLUMN) + 3.0 * np.reshape(std, COLUMN)
    pixels[:, :, :16] += 1e-4 * np.reshape(std, COLUMN) * np.random.default_rng(1).standard_normal((2, 4, 16, 32))
    targets = []
    for kind in ("none", "global_rgb"):
        model = band_model(target_normalization=kind, norm_pix_axis="channel", image_std=std)
        values = pixel_values(model, pixels)
        targets.append(model.compute_target(values))
    assert_close(targets[0], targets[1], rtol=0, atol=1e-5)
    # The structure is there, and is that of the pixel values.
    patches = patches_of(values.double().numpy(), 8, 8).reshape(2, 16, 64, 4)
    centered = patches - patches.mean(axis=2, keepdims=True)
    expected = centered / np.sqrt(patches.var(axis=2, ddof=1, keepdims=True) + 1e-6)
    assert expected[:, 0].std() > 0.05
    assert_close(targets[0].double(), torch.tensor(expected.reshape(2, 16, 256)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["none", "global_rgb", "global_patch"])
def test_per_channel_statistics_of_8_bit_images(kind):
    """As VideoMAE takes them, with the epsilon under the root."""
    model = build(target_normalization=kind, norm_pix_axis="channel")
    values = images()
    patches = patches_of(values.double().numpy(), 8, 8).reshape(2, 16, 64, 3)
    if kind == "global_patch":
        raw = patches * model.config.image_std + model.config.image_mean
        mean, std = (getattr(model.target_normalizer, name).double().numpy().reshape(64, 3) for name in ("mean", "std"))
        patches = (raw - mean) / np.sqrt(std**2 + 1e-6)
    expected = patches - patches.mean(axis=2, keepdims=True)
    expected /= np.sqrt(patches.var(axis=2, ddof=1, keepdims=True) + 1e-6)
    assert_close(model.compute_target(values).double(), torch.tensor(expected.reshape(2, 16, 192)), rtol=0, atol=1e-5)


def test_missing_pixels_are_the_mean_of_their_band_to_the_encoder():
    model = band_model(mid_mask_ratio=0.25).eval()
    values = pixel_values(model, stored())
    filled, noise = torch.where(values.isnan(), 0.0, values), torch.rand(2, 16)
    for inputs in ({"mask_ratio": None}, {"mask_ratio": 0.75, "noise": noise}):
        states = model.vit(values, **inputs).last_hidden_state
        assert torch.equal(states, model.vit(filled, **inputs).last_hidden_state)
    assert torch.equal(model(values, noise=noise).logits, model(filled, noise=noise).logits)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_a_patch_counts_by_its_valid_numbers(kind, norm_pix, axis):
    model = band_model(target_normalization=kind, norm_pix_loss=norm_pix, norm_pix_axis=axis).train()
    pixels = stored()
    outputs = model(pixel_values(model, pixels))
    expected, masked = expected_target(model, pixels), outputs.mask.bool().numpy()
    errors = (outputs.logits.detach().double().numpy() - expected)[masked] ** 2
    assert_close(outputs.loss.double(), torch.tensor(np.nanmean(errors)), rtol=1e-4, atol=1e-5)
    outputs.loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_of_the_kept_patches_too(kind, norm_pix):
    model = band_model(target_normalization=kind, norm_pix_loss=norm_pix, decoder_keep_ratio=0.5).train()
    pixels, noise = stored(), torch.rand(2, 16)
    outputs = model(pixel_values(model, pixels), noise=noise)
    kept = outputs.mask.bool() & ~outputs.logits.isnan().any(dim=-1)
    assert kept.sum(dim=1).tolist() == [6, 6]
    errors = (outputs.logits.detach().double().numpy() - expected_target(model, pixels))[kept.numpy()] ** 2
    assert_close(outputs.loss.double(), torch.tensor(np.nanmean(errors)), rtol=1e-4, atol=1e-5)
    outputs.loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def test_where_nothing_is_missing_the_loss_is_the_mean_over_masked_patches():
    model = band_model()
    values = pixel_values(model, stored(missing=False))
    outputs = model(values)
    error = (outputs.logits - model.compute_target(values)).square().mean(dim=-1)
    assert_close(outputs.loss, (error * outputs.mask).sum() / outputs.mask.sum(), rtol=1e-6, atol=0)


def test_a_batch_without_any_number_has_no_loss_and_no_gradient():
    model = band_model(target_normalization="none").train()
    outputs = model(torch.full((2, 4, 32, 32), float("nan")))
    outputs.loss.backward()
    assert outputs.loss == 0
    assert gradients(model)
    assert all((gradient == 0).all() for gradient in gradients(model).values())


def test_nan_in_8_bit_images_is_not_taken_for_a_missing_pixel():
    values = images()
    values[0, 0] = float("nan")
    assert build()(values).loss.isnan()


def test_compiles_without_a_graph_break_whatever_is_missing():
    torch._dynamo.reset()
    model = band_model(target_normalization="none", num_hidden_layers=1, decoder_num_hidden_layers=1).train()
    batches = [pixel_values(model, stored(missing)) for missing in (True, False)]
    noise = torch.rand(2, 16)
    expected = [model(values, noise=noise).loss for values in batches]
    model.compile(fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for values, loss in zip(batches, expected):
            compiled = model(values, noise=noise).loss
            compiled.backward()
            assert_close(compiled, loss, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing_and_autocast_leave_the_loss_of_missing_pixels():
    model = band_model(target_normalization="global_patch").train()
    values, noise = pixel_values(model, stored()), torch.rand(2, 16)
    plain = model(values, noise=noise).loss
    model.gradient_checkpointing_enable()
    loss = model(values, noise=noise).loss
    loss.backward()
    assert_close(loss, plain, rtol=1e-6, atol=1e-7)
    target = model.compute_target(values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.compute_target(values).nan_to_num(), target.nan_to_num())
        loss = model(values, noise=noise).loss
    assert loss.dtype == torch.float32
    assert_close(loss, plain, rtol=0.05, atol=0.05)


def test_images_cast_to_the_type_of_the_model_keep_what_is_missing():
    """As DeepSpeed and FSDP2 cast them."""
    model = band_model().to(torch.bfloat16)
    values = pixel_values(model, stored()).to(torch.bfloat16)
    assert torch.equal(model.compute_target(values).isnan(), model.patchify(values).isnan())
    loss = model(values).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_target_statistics_are_given_in_the_units_of_the_files(tmp_path):
    model = build(**BANDS, target_normalization="global_patch", norm_pix_loss=False)
    mean, std = np.tile(MEAN, 64), np.tile(STD, 64)
    model.set_target_statistics(mean + 2 * std, torch.tensor(3 * std))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert_close(saved["target_normalizer.mean"], torch.full((256,), 2.0), rtol=0, atol=1e-6)
    assert_close(saved["target_normalizer.std"], torch.full((256,), 3.0), rtol=0, atol=1e-6)
    values = pixel_values(model, stored(missing=False))
    loaded = ViTMAERobustForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(loaded.compute_target(values), model.compute_target(values))
    with pytest.raises(ValueError, match=r"mean has shape \(3,\), but the model needs \(256,\)"):
        model.set_target_statistics(torch.zeros(3), torch.ones(256))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_a_perfect_prediction_reconstructs_the_units_of_the_files(monkeypatch, kind, norm_pix, axis):
    model = band_model(target_normalization=kind, norm_pix_loss=norm_pix, norm_pix_axis=axis)
    pixels, noise = stored(), torch.rand(2, 16)
    values = pixel_values(model, pixels)
    target = model.compute_target(values).nan_to_num()

    def perfect(hidden_states, ids_shuffle, *args):
        return stock_code.ViTMAEDecoderOutput(logits=target.gather(1, ids_shuffle.unsqueeze(-1).expand(target.shape)))

    monkeypatch.setattr(model.decoder, "forward", perfect)
    rebuilt = model.reconstruct(values, noise=noise).double().numpy()
    mask = model.unpatchify(model(values, noise=noise).mask.unsqueeze(-1).expand(-1, -1, 256)).bool().numpy()
    missing = np.isnan(pixels)
    assert np.array_equal(np.isnan(rebuilt), missing & ~mask)
    deviations = ((rebuilt - pixels) / np.reshape(STD, COLUMN))[~missing]
    # "none" measures all bands in one unit, so a band of small numbers is known to fewer digits.
    tolerance = 1e-3 if kind != "none" or (norm_pix and axis == "channel") else np.inf
    assert np.abs(deviations).max() < tolerance
    assert np.abs((rebuilt - pixels)[:, [0, 2]][~missing[:, [0, 2]]]).max() < 0.1


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_target_of_mean(kind, norm_pix, axis):
    """Of raw targets it is that of an image of the mean; the others have it at 0."""
    for model in (band_model, build):
        model = model(target_normalization=kind, norm_pix_loss=norm_pix, norm_pix_axis=axis)
        channels = model.config.num_channels
        target = model.target_of_mean()
        assert target.shape == (64 * channels,)
        if kind == "none" and not norm_pix:
            expected = model.compute_target(torch.zeros(1, channels, 32, 32))[0, 0]
            assert_close(target, expected)
        else:
            assert (target == 0).all()
