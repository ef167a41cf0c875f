"""Checkpoints for images of another number of channels."""

import pytest
import torch
from timm.models import adapt_input_conv
from torch.testing import assert_close
from transformers import (
    BeitConfig,
    BeitModel,
    Data2VecVisionConfig,
    Data2VecVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from hf_mae_robust.conversion.encoders import encoder_from_scratch, note_of_inflation, read_encoder
from hf_mae_robust.conversion.inflation import INFLATIONS, inflate_projection
from hf_mae_robust.conversion.pretraining_model import load_pretraining_model, read_pretraining_config
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.finetuning.classification.models import classifier_from_checkpoint
from tests.helpers import TINY
from tests.model_helpers import ALL_ON, build, images

PROJECTION = "vit.embeddings.patch_embeddings.projection.weight"
TINY_VIT = {name: value for name, value in TINY.items() if not name.startswith("decoder")}


def bands(channels: int, **settings) -> dict:
    """Overrides for a band model."""
    statistics = {"image_mean": [1000.0] * channels, "image_std": [10.0] * channels}
    return {"num_channels": channels, "rescale_factor": 1.0, **statistics, **settings}


@pytest.mark.parametrize("how", INFLATIONS)
@pytest.mark.parametrize("channels", [3, 6, 13])
def test_gray_images_give_the_tokens_that_they_gave(how, channels):
    weight, gray = torch.randn(5, 3, 4, 2), torch.randn(7, 1, 4, 2)
    inflated = inflate_projection(weight, channels, how)
    assert inflated.shape == (5, channels, 4, 2)
    before = torch.einsum("dcpq,ncpq->nd", weight, gray.expand(-1, 3, -1, -1))
    after = torch.einsum("dcpq,ncpq->nd", inflated, gray.expand(-1, channels, -1, -1))
    if how != "repeat" or channels % 3 == 0:
        assert_close(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 4, 13])
def test_repeat_is_timms(channels):
    weight = torch.randn(5, 3, 4, 2)
    assert_close(inflate_projection(weight, channels, "repeat"), adapt_input_conv(channels, weight))


def test_mean_of_fewer_channels_and_what_zero_new_keeps():
    weight = torch.randn(5, 3, 4, 2)
    assert_close(inflate_projection(weight, 1, "mean"), adapt_input_conv(1, weight))  # timm's sum
    inflated = inflate_projection(weight, 5, "zero_new")
    assert torch.equal(inflated[:, :3], weight)
    assert not inflated[:, 3:].any()
    with pytest.raises(ValueError, match="keeps the 3 channels of the checkpoint, and 2 are wanted"):
        inflate_projection(weight, 2, "zero_new")
    with pytest.raises(ValueError, match="--inflate_channels copy: must be one of mean, repeat, zero_new"):
        inflate_projection(weight, 4, "copy")


REFUSAL = r"takes images of 3 channels, and 13 are wanted\. --inflate_channels \(mean, repeat, zero_new\)"


@pytest.mark.parametrize("how", INFLATIONS)
@pytest.mark.parametrize("kind", ["ours", "stock", "official", "larger images"])
def test_pretraining_from_an_rgb_checkpoint(kind, how, tmp_path, golden_dir):
    name, overrides = str(tmp_path), bands(13, target_normalization="global_patch")
    if kind == "official":
        name = str(golden_dir / "official_mae_tiny_normpix.pth")
        overrides |= {"num_attention_heads": 4, "decoder_num_attention_heads": 4}
        before, _ = load_pretraining_model(
            ModelSource(name),
            read_pretraining_config(ModelSource(name, {"num_attention_heads": 4, "decoder_num_attention_heads": 4})),
        )
    else:
        before = ViTMAEForPreTraining(ViTMAEConfig(**TINY)) if kind == "stock" else build(**ALL_ON)
        before.save_pretrained(tmp_path)
    if kind == "larger images":
        overrides["image_size"] = 64
    with pytest.raises(ValueError, match=REFUSAL):
        read_pretraining_config(ModelSource(name, overrides))
    source = ModelSource(name, overrides, inflate_channels=how)
    config = read_pretraining_config(source)
    with pytest.raises(ValueError, match=REFUSAL):
        load_pretraining_model(ModelSource(name), config)
    model, note = load_pretraining_model(source, config)
    left_out = "; patch statistics left out" if kind in ("ours", "larger images") else ""
    said = f"Note: {name}: patch projection inflated from 3 to 13 channels ({how}); prediction layer new{left_out}"
    # A stock model from scratch has an encoder without positions (zeros), which are not sine-cosine.
    of_positions = [f"Note: {name}: its positions are not sine-cosine, and pre-training trains them"]
    assert note.splitlines()[-1 - (kind == "stock") :] == [said] + of_positions * (kind == "stock")
    assert model.vit.embeddings.position_embeddings.requires_grad == (kind == "stock")

    expected, found = before.state_dict(), model.state_dict()
    assert_close(found.pop(PROJECTION), inflate_projection(expected.pop(PROJECTION), 13, how))
    prediction = found.pop("decoder.decoder_pred.weight")
    assert prediction.shape[0] == model.config.patch_dim and prediction.std() > 0.01
    assert not found.pop("decoder.decoder_pred.bias").any()
    assert not model.target_normalizer.ready and found["target_normalizer.mean"].isnan().all()
    positions = {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    changed = {"decoder.decoder_pred.weight", "decoder.decoder_pred.bias", "target_normalizer.mean"}
    changed |= {"target_normalizer.std"} | (positions if kind == "larger images" else set())
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items() if key not in changed)
    dim = model.config.patch_dim
    model.set_target_statistics(torch.full((dim,), 1000.0), torch.full((dim,), 10.0))
    size = config.image_size
    assert model(torch.randn(2, 13, size, size)).loss.isfinite()


def test_settings_of_the_old_channels_do_not_pass_for_those_of_the_new_ones(tmp_path):
    build().save_pretrained(tmp_path / "rgb")
    config = read_pretraining_config(ModelSource(str(tmp_path / "rgb"), {"num_channels": 4}, inflate_channels="mean"))
    assert config.image_mean == config.image_std == [0.5] * 4 and not config.is_band_model
    with pytest.raises(ValueError, match="image_mean=None with rescale_factor=1.0"):
        read_pretraining_config(ModelSource(str(tmp_path / "rgb"), {"rescale_factor": 1.0}))

    build(**bands(3, bands=[4, 5, 6], nodata=0.0)).save_pretrained(tmp_path / "bands")
    name = str(tmp_path / "bands")
    same = read_pretraining_config(ModelSource(name, {"bands": (6, 5, 4)}))  # files in another order
    assert same.is_band_model and list(same.bands) == [6, 5, 4]
    assert same.image_mean == [1000.0] * 3 and same.nodata == 0.0
    with pytest.raises(ValueError, match="image_mean=None with rescale_factor=1.0"):
        read_pretraining_config(ModelSource(name, {"num_channels": 5}, inflate_channels="mean"))
    of_8_bits = read_pretraining_config(ModelSource(name, {"rescale_factor": 1 / 255}))
    assert not of_8_bits.is_band_model and of_8_bits.image_mean == build().config.image_mean


@pytest.mark.parametrize("image_size", [32, 64])
def test_patch_statistics_in_other_units_are_left_out(image_size, tmp_path):
    before = build(**bands(3, target_normalization="global_patch"))
    before.save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path), {"image_size": image_size})
    model, _ = load_pretraining_model(source, read_pretraining_config(source))
    assert torch.equal(model.target_normalizer.mean, before.target_normalizer.mean)
    source = ModelSource(str(tmp_path), {"image_size": image_size, "image_mean": [900.0] * 3})
    model, note = load_pretraining_model(source, read_pretraining_config(source))
    assert "patch statistics left out; they are of pixels in other units" in note
    assert not model.target_normalizer.ready and model.target_normalizer.std.isnan().all()
    assert torch.equal(model.vit.layernorm.weight, before.vit.layernorm.weight)


KINDS = {
    "ours": lambda: build().vit,
    "vit": lambda: ViTForImageClassification(ViTConfig(**TINY_VIT)),
    "beit": lambda: BeitModel(BeitConfig(**TINY_VIT)),
    "data2vec": lambda: Data2VecVisionModel(Data2VecVisionConfig(**TINY_VIT)),
    "deit": lambda: DeiTModel(DeiTConfig(**TINY_VIT)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**TINY_VIT)),
    "dinov2 with registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY_VIT)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_for_fine_tuning(kind, tmp_path):
    """Gray images of more channels have the features of gray images."""
    KINDS[kind]().save_pretrained(tmp_path)
    before, _ = read_encoder(ModelSource(str(tmp_path)))
    with pytest.raises(ValueError, match=REFUSAL):
        read_encoder(ModelSource(str(tmp_path), num_channels=13))
    source = ModelSource(str(tmp_path), num_channels=13, inflate_channels="mean")
    encoder, pixels = read_encoder(source)
    assert encoder.config.num_channels == pixels.num_channels == 13
    assert pixels.image_mean == pixels.image_std == (0.5,) * 13
    gray = images(2, encoder.config.image_size, encoder.config.image_size, 1)
    with torch.no_grad():
        features = encoder(gray.expand(-1, 13, -1, -1)).last_hidden_state
        assert_close(features, before(gray.expand(-1, 3, -1, -1)).last_hidden_state, rtol=1e-4, atol=1e-4)

    assert note_of_inflation(source) == "patch projection inflated from 3 to 13 channels (mean)"
    assert note_of_inflation(ModelSource(str(tmp_path), num_channels=3)) is None

    classifier, _ = classifier_from_checkpoint(source, ["a", "b"])
    assert classifier.config.num_channels == 13
    classifier.save_pretrained(tmp_path / "classifier")
    loaded, info = type(classifier).from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert not any(info.values())
    assert loaded.eval()(gray.expand(-1, 13, -1, -1)).logits.shape == (2, 2)


def test_as_many_channels_change_nothing(tmp_path):
    before = build().vit
    before.save_pretrained(tmp_path)
    encoder, pixels = read_encoder(ModelSource(str(tmp_path), num_channels=3))
    assert all(torch.equal(encoder.state_dict()[key], tensor) for key, tensor in before.state_dict().items())
    assert list(pixels.image_mean) == before.config.image_mean


def test_official_file_for_fine_tuning(golden_dir):
    name, heads = str(golden_dir / "official_mae_tiny_normpix.pth"), {"num_attention_heads": 4}
    source = ModelSource(name, heads, num_channels=5, inflate_channels="zero_new")
    before, _ = read_encoder(ModelSource(name, heads))
    encoder, pixels = read_encoder(source)
    assert pixels.num_channels == 5
    assert note_of_inflation(source) == "patch projection inflated from 3 to 5 channels (zero_new)"
    values = images(2, channels=5)
    with torch.no_grad():
        expected = before(values[:, :3]).last_hidden_state
        assert_close(encoder(values).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


def test_from_scratch_takes_all_settings_of_the_channels(tmp_path):
    build(**bands(5, bands=[4, 3, 2, 1, 0], nodata=-1.0)).save_pretrained(tmp_path)
    encoder, _ = encoder_from_scratch(ModelSource(str(tmp_path)))
    assert encoder.config.is_band_model and encoder.config.bands == [4, 3, 2, 1, 0]
    assert encoder.config.image_mean == [1000.0] * 5 and encoder.config.nodata == -1.0
