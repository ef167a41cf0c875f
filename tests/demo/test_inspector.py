"""One image through checkpoints of several kinds."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BeitForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from hf_mae_robust import ViTMAERobustForPreTraining, ViTMAERobustModel
from hf_mae_robust.conversion.original import to_original
from hf_mae_robust.data.decoding import decode_image
from hf_mae_robust.data.preprocessing import band_processor
from hf_mae_robust.data.shown import to_shown
from hf_mae_robust.demo.inspector import load_inspector
from hf_mae_robust.errors import ImageDecodingError
from hf_mae_robust.model.bands_vit_mae_robust import BandForm
from tests.demo_models import DECODER, SIZES, save_model
from tests.helpers import photos


def photo(height=90, width=120, seed=0) -> Image.Image:
    return Image.fromarray(photos(1, 120, seed=seed)[0][:height, :width])


def decoded(image: Image.Image, channels: int = 3) -> torch.Tensor:
    file = io.BytesIO()
    image.save(file, "PNG")
    return decode_image(file.getvalue(), channels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "decoder")


def test_preprocessing_is_that_of_the_checkpoints_processor(folder):
    inspector, image = load_inspector(str(folder)), photo()
    expected = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    pixels = inspector.prepare(decoded(image))
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 64, 64)
    torch.testing.assert_close(inspector.normalize(pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"mid_mask_ratio": 0.25}, {"image_size": [48, 64]}], ids=str)
def test_reconstruction_of_a_random_mask_is_the_models_own(tmp_path, settings):
    inspector = load_inspector(str(save_model(tmp_path / "model", **settings)))
    pixels = inspector.prepare(decoded(photo()))
    grid, seed = inspector.grid_of(pixels), 3
    mask = inspector.random_mask(grid, 0.6, seed)
    model = ViTMAERobustForPreTraining.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    model.config.mask_ratio = 0.6
    values, noise = inspector.normalize(pixels), inspector.noise(grid[0] * grid[1], seed)
    assert torch.equal(mask.flatten().float(), model(values, noise=noise).mask[0])
    assert torch.equal(inspector.reconstruct(pixels, mask, seed), model.reconstruct(values, noise=noise)[0])
    assert inspector.model.config.mask_ratio == 0.75


@pytest.mark.parametrize("count", [0, 1, 7, 49, 63, 64])
def test_any_mask_is_masked_and_nothing_else(folder, count):
    inspector = load_inspector(str(folder))
    pixels = inspector.prepare(decoded(photo()))
    mask = torch.zeros(64, dtype=torch.bool)
    mask[torch.randperm(64)[:count]] = True
    rebuilt = inspector.reconstruct(pixels, mask.reshape(8, 8), seed=0)
    changed = (rebuilt - pixels / 255).abs().amax(dim=0).reshape(8, 8, 8, 8).amax(dim=(1, 3)) > 1e-5
    assert torch.equal(changed.flatten(), mask)


def test_attention_and_features_are_the_encoders(folder):
    inspector = load_inspector(str(folder))
    pixels = inspector.prepare(decoded(photo()))
    seen = inspector.observe(pixels)
    encoder = ViTMAERobustModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        outputs = encoder(inspector.normalize(pixels), output_attentions=True)
    assert torch.equal(seen.features, outputs.last_hidden_state[0, 1:])
    torch.testing.assert_close(seen.attention.flatten(), outputs.attentions[1][0, :, 0, 1:].mean(dim=0))
    assert seen.probabilities is None


@pytest.mark.parametrize("uses_mean", [True, False])
def test_classes_are_the_classifiers_and_attention_that_of_what_it_pools(tmp_path, uses_mean):
    folder = save_model(tmp_path / "model", "classifier", use_mean_pooling=uses_mean)
    inspector = load_inspector(str(folder))
    pixels = inspector.prepare(decoded(photo()))
    seen = inspector.observe(pixels)
    model = BeitForImageClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        outputs = model(inspector.normalize(pixels), output_attentions=True)
    torch.testing.assert_close(seen.probabilities, outputs.logits[0].softmax(dim=0))
    weights = outputs.attentions[-1][0].mean(dim=0)
    expected = weights[1:, 1:].mean(dim=0) if uses_mean else weights[0, 1:]
    torch.testing.assert_close(seen.attention.flatten(), expected)
    assert inspector.class_names[2] == "cat" and inspector.is_classifier and not inspector.has_decoder


def test_stock_and_official_checkpoints_have_their_decoder(tmp_path):
    config = ViTMAEConfig(**SIZES, **DECODER, layer_norm_eps=1e-6, norm_pix_loss=True)
    stock = ViTMAEForPreTraining(config).eval()
    torch.nn.init.normal_(stock.decoder.decoder_pos_embed)
    stock.save_pretrained(tmp_path / "stock")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "stock")
    torch.save({"model": to_original(stock)}, tmp_path / "official.pth")
    one = load_inspector(str(tmp_path / "stock"))
    other = load_inspector(str(tmp_path / "official.pth"), num_attention_heads=2, decoder_num_attention_heads=2)
    assert one.has_decoder and other.has_decoder
    # 0.5 is the mean in ViTImageProcessor, and no part of stock's config.
    assert list(one.model.config.image_mean) == [0.5] * 3
    pixels = one.prepare(decoded(photo(64, 64)))
    mask = one.random_mask((8, 8), 0.75, 0)
    with torch.no_grad():
        expected = stock(one.normalize(pixels), noise=one.noise(64, 0))
    values = one.normalize(pixels)
    filled = one.model.invert_target(expected.logits, values)
    picture = one.reconstruct(pixels, mask, 0)
    hidden = mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
    torch.testing.assert_close(picture[:, hidden], filled[0][:, hidden], rtol=0, atol=1e-4)
    assert other.reconstruct(other.prepare(decoded(photo())), mask, 0).shape == (3, 64, 64)


def test_other_encoders_show_their_patches(tmp_path):
    """The tokens before the patches are left out; images may be smaller than the config says."""
    config = Dinov2WithRegistersConfig(**{**SIZES, "image_size": 96, "mlp_ratio": 2}, num_register_tokens=3)
    Dinov2WithRegistersModel(config).save_pretrained(tmp_path / "dinov2")
    ViTImageProcessor(size={"height": 64, "width": 48}).save_pretrained(tmp_path / "dinov2")
    inspector = load_inspector(str(tmp_path / "dinov2"))
    pixels = inspector.prepare(decoded(photo()))
    seen = inspector.observe(pixels)
    assert seen.attention.shape == (8, 6) and seen.features.shape == (48, 32) and not inspector.has_decoder
    model = Dinov2WithRegistersModel.from_pretrained(tmp_path / "dinov2", attn_implementation="eager").eval()
    with torch.no_grad():
        outputs = model(inspector.normalize(pixels), output_attentions=True)
    torch.testing.assert_close(seen.attention.flatten(), outputs.attentions[-1][0, :, 0, 4:].mean(dim=0))
    torch.testing.assert_close(seen.features, outputs.last_hidden_state[0, 4:])

    ViTForImageClassification(ViTConfig(**SIZES, num_labels=3)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "vit")
    inspector = load_inspector(str(tmp_path / "vit"))
    assert inspector.observe(inspector.prepare(decoded(photo()))).probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(tmp_path, channels):
    statistics = {"image_mean": [0.5] * channels, "image_std": [0.25] * channels}
    inspector = load_inspector(str(save_model(tmp_path / "model", num_channels=channels, **statistics)))
    pixels = inspector.prepare(decoded(photo(), channels))
    rebuilt = inspector.reconstruct(pixels, inspector.random_mask((8, 8), 0.75, 0), 0)
    assert rebuilt.shape == pixels.shape == (channels, 64, 64)


def test_what_cannot_be_shown_is_refused_with_a_sentence(tmp_path, folder):
    with pytest.raises(ValueError, match="image files have"):
        load_inspector(str(save_model(tmp_path / "two", num_channels=2, image_mean=[0.5] * 2, image_std=[0.5] * 2)))
    with pytest.raises(ValueError, match="no patch statistics"):
        load_inspector(str(save_model(tmp_path / "statistics", target_normalization="global_patch")))
    (tmp_path / "resnet").mkdir()
    (tmp_path / "resnet" / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ValueError, match="model; needed here: vit_mae_robust"):
        load_inspector(str(tmp_path / "resnet"))
    # A decoder that the config promises, and that is not there.
    save_model(tmp_path / "lost", "encoder")
    text = (tmp_path / "lost" / "config.json").read_text()
    (tmp_path / "lost" / "config.json").write_text(
        text.replace('ViTMAERobustModel"\n', 'ViTMAERobustForPreTraining"\n')
    )
    with pytest.raises(ValueError, match="lacks .*decoder"):
        load_inspector(str(tmp_path / "lost"))
    save_model(tmp_path / "size")
    ViTImageProcessor(size={"height": 40, "width": 40}).save_pretrained(tmp_path / "size")
    with pytest.raises(ValueError, match="does not take what its image processor"):
        load_inspector(str(tmp_path / "size"))


def test_masks_of_a_seed_stay_the_same(folder):
    """Whoever writes a seed down gets the picture again, also with a later version."""
    mask = load_inspector(str(folder)).random_mask((2, 3), 0.5, 1)
    noise = torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).numpy()
    assert np.flatnonzero(mask.flatten()).tolist() == sorted(np.argsort(noise)[3:].tolist())


@pytest.mark.parametrize("kind", ["decoder", "encoder", "classifier"])
def test_files_of_many_bands(tmp_path, kind):
    """Read as the image processor of the model reads them, with a hole; shown with the contrast of the image."""
    form = BandForm(nodata=0, image_mean=(4500.0,) * 5, image_std=(2500.0,) * 5)
    settings = {"num_channels": 5}
    if kind != "classifier":
        settings |= {"rescale_factor": 1.0, "nodata": 0, "image_mean": [4500.0] * 5, "image_std": [2500.0] * 5}
    folder = save_model(tmp_path / "model", kind, **settings)
    processor = band_processor(form, 64, 0.8, show_bands=[3, 2, 1])
    processor.save_pretrained(folder)
    stored = np.random.default_rng(0).integers(1, 9000, (5, 90, 120)).astype(np.uint16)
    stored[:, 30:60, 40:60] = 0
    np.save(tmp_path / "image.npy", stored)
    inspector = load_inspector(str(folder))
    pixels = inspector.prepare(inspector.decode(tmp_path / "image.npy"))
    expected = processor(tmp_path / "image.npy", fill_missing=kind != "decoder", return_tensors="pt").pixel_values
    assert inspector.normalize(pixels).numpy().tobytes() == expected.numpy().tobytes()
    assert torch.equal(inspector.picture(pixels), to_shown(pixels, (3, 2, 1)))
    observed = inspector.observe(pixels)
    assert observed.attention.isfinite().all() and (observed.probabilities is not None) == (kind == "classifier")
    if kind == "decoder":
        mask = inspector.random_mask(inspector.grid_of(pixels), 0.5, 0)
        shown = inspector.picture_of(inspector.reconstruct(pixels, mask, 0), pixels)
        visible = ~mask.repeat_interleave(8, 0).repeat_interleave(8, 1)
        torch.testing.assert_close(shown[:, visible], inspector.picture(pixels)[:, visible], atol=1e-4, rtol=0)
    with pytest.raises(ImageDecodingError, match="broken.npy"):
        (tmp_path / "broken.npy").write_bytes(b"no image")
        inspector.decode(tmp_path / "broken.npy")
