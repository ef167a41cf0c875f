"""--encoder_from: encoders of every kind compute what they computed in their own class, and what was taken is said."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitModel,
    Data2VecVisionConfig,
    Data2VecVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
    ViTMSNConfig,
    ViTMSNModel,
)

from hf_mae_robust import ViTMAERobustForPreTraining
from hf_mae_robust.conversion.any_encoder import load_start, read_start
from hf_mae_robust.conversion.beit import mae_beit_config
from hf_mae_robust.conversion.original import to_original
from hf_mae_robust.conversion.pretraining_model import read_pretraining_config
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.model.modeling_vit_mae_robust import sincos_position_embedding
from tests.conversion.test_convert import PIXELS, SIZES, VIT, randomised, timm_folder
from tests.helpers import TINY
from tests.model_helpers import build

BEIT = {**VIT, "num_labels": 3}


def started(source, **options) -> tuple[ViTMAERobustForPreTraining, str]:
    """The model to pre-train, and what is said of it. Overrides are for the decoder: the source has the other sizes."""
    overrides = {name: value for name, value in TINY.items() if name.startswith("decoder_")}
    overrides |= options.pop("overrides", {})
    source = ModelSource(str(source), overrides, flag="--encoder_from", **options)
    return load_start(source, read_pretraining_config(source, read_start(source).config))


def last_tokens(model) -> torch.Tensor:
    """Of all patches, unmasked. Stock ViT-MAE shuffles what it does not mask; this noise leaves it in order."""
    model.eval()
    options = {}
    if isinstance(model, ViTMAEModel):
        model.config.mask_ratio, options["noise"] = 0.0, torch.arange(16.0).expand(2, -1)
    with torch.no_grad():
        return model(PIXELS, **options).last_hidden_state


def published_mae():
    """Its table is in the weights. A new stock model has zeros."""
    model = ViTMAEForPreTraining(ViTMAEConfig(**SIZES))
    model.vit.embeddings.position_embeddings.data = sincos_position_embedding((4, 4), SIZES["hidden_size"])
    return model


def learned(model):
    """As of a published ViT: its positions were trained."""
    return randomised(model)


SOURCES = {
    "stock ViT-MAE": lambda: published_mae(),
    "stock ViT": lambda: learned(ViTModel(ViTConfig(**VIT))),
    "stock ViT, a classifier without its head": lambda: learned(ViTForImageClassification(ViTConfig(**BEIT))),
    "stock MSN": lambda: learned(ViTMSNModel(ViTMSNConfig(**VIT))),
    "BEiT's layout": lambda: learned(BeitModel(mae_beit_config(**VIT, use_mean_pooling=False))),
    "BEiT's layout, a classifier without its head": lambda: learned(
        BeitForImageClassification(mae_beit_config(**BEIT, use_mean_pooling=False))
    ),
    "this package's format": lambda: build(image_size=16, patch_size=4, num_hidden_layers=2),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_transformers_classes(kind, tmp_path):
    there = SOURCES[kind]().eval()
    there.save_pretrained(tmp_path)
    ViTImageProcessor(size=16, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(tmp_path)
    has_decoder = "MAE" in kind or "package" in kind
    if not has_decoder:
        model, said = started(tmp_path)
    else:
        source = ModelSource(str(tmp_path))
        model, said = load_start(source, read_pretraining_config(source, read_start(source).config))
    encoder = there.vit if has_decoder else there.base_model
    assert_close(last_tokens(model.vit), last_tokens(encoder), rtol=0, atol=1e-5)
    assert said.startswith(f"Encoder from {tmp_path} ({kind}): ") and "\n" not in said
    assert ("kept" if has_decoder else "new") in said
    if has_decoder:
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in there.state_dict().items())
    trains = model.vit.embeddings.position_embeddings.requires_grad
    assert trains is not has_decoder and ("positions learned, and they train" in said) is trains
    if "package" not in kind:  # whose config says it
        assert "input mean 0.4 0.4 0.4 and deviation 0.3 0.3 0.3 (the source's)" in said
        assert list(model.config.image_mean) == pytest.approx([0.4] * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sine_cosine_table_is_known_in_half_precision_and_one_that_was_trained_a_little_is_not(dtype, tmp_path):
    there = published_mae().to(dtype)
    there.save_pretrained(tmp_path / "mae")
    source = ModelSource(str(tmp_path / "mae"))
    for size, positions in ((16, there.vit.embeddings.position_embeddings.float()), (32, sincos_of_the_paper(8, 32))):
        config = read_pretraining_config(ModelSource(source.name, {"image_size": size}), read_start(source).config)
        model, said = load_start(source, config)
        assert "positions fixed (sine-cosine)" in said
        found = model.vit.embeddings.position_embeddings
        assert not found.requires_grad
        assert_close(found.detach(), positions, rtol=0, atol=1e-5)

    there = published_mae()
    there.vit.embeddings.position_embeddings.data += 1e-3 * torch.randn(1, 17, SIZES["hidden_size"])
    there.to(dtype).save_pretrained(tmp_path / "tuned")
    assert read_start(ModelSource(str(tmp_path / "tuned"))).learns_positions


def sincos_of_the_paper(side: int, dim: int) -> torch.Tensor:
    """get_2d_sincos_pos_embed of the official util/pos_embed.py: a quarter each of the sines and cosines of the column,
    then of the row; zeros for CLS."""
    rates = 1 / 10000 ** (np.arange(dim // 4) / (dim / 4))
    rows, columns = (np.outer(place.flatten(), rates) for place in np.mgrid[0:side, 0:side])
    table = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1)
    return torch.from_numpy(np.concatenate([np.zeros((1, dim)), table])).float()[None]


def test_a_classifier_of_the_mean_keeps_its_blocks(tmp_path):
    """The norm after the pooling stands before it in the new model: what went into it is the same."""
    there = learned(BeitForImageClassification(mae_beit_config(**BEIT, use_mean_pooling=True)))
    there.save_pretrained(tmp_path)
    model, said = started(tmp_path)
    assert said.endswith("; last norm: the one after the pooling, now before it")
    with torch.no_grad():
        tokens = there.beit(PIXELS).last_hidden_state
    norm = there.beit.pooler.layernorm
    expected = torch.nn.functional.layer_norm(tokens, (32,), norm.weight, norm.bias, 1e-6)
    assert_close(last_tokens(model.vit), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_timm(prefix, num_classes, tmp_path):
    there = timm_folder(tmp_path / "there", num_classes=num_classes)
    model, said = started(f"{prefix}{tmp_path / 'there'}")
    with torch.no_grad():
        assert_close(last_tokens(model.vit), there.forward_features(PIXELS), rtol=0, atol=1e-5)
    assert ("without its head" in said) is bool(num_classes)
    assert "a plain ViT of timm" in said and "input mean 0.5" in said and "deviation 0.25" in said


def test_official_files(tmp_path):
    """With and without a decoder, and one of the models of a file as DINO writes it."""
    there = build(image_size=16, patch_size=4, num_hidden_layers=2)
    tensors = to_original(there)
    encoder = {name: tensor for name, tensor in tensors.items() if "decoder" not in name and name != "mask_token"}
    torch.save({"model": tensors}, tmp_path / "full.pth")
    torch.save({"student": {"head.w": torch.ones(2)}, "teacher": {"backbone": encoder}}, tmp_path / "dino.pth")
    heads = {"num_attention_heads": 4}
    source = ModelSource(str(tmp_path / "full.pth"), {**heads, "decoder_num_attention_heads": 4})
    model, said = load_start(source, read_pretraining_config(source, read_start(source).config))
    assert_close(last_tokens(model.vit), last_tokens(there.vit), rtol=0, atol=1e-5)
    assert "a file in the official layout" in said and "kept" in said
    dino, said = started(tmp_path / "dino.pth", overrides=heads, checkpoint_key="teacher.backbone")
    assert_close(last_tokens(dino.vit), last_tokens(there.vit), rtol=0, atol=1e-5)
    assert "new" in said
    with pytest.raises(
        ValueError, match=r"--encoder_from .*full.pth is an official checkpoint.*num_attention_heads=12"
    ):
        started(tmp_path / "full.pth")


FOREIGN = {
    "layer scale": lambda: Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)),
    "a distillation token": lambda: DeiTModel(DeiTConfig(**VIT)),
    "use_relative_position_bias=True": lambda: BeitModel(BeitConfig(**VIT, use_relative_position_bias=True)),
    "layer_scale_init_value=0.1": lambda: Data2VecVisionModel(Data2VecVisionConfig(**VIT)),
}


@pytest.mark.parametrize("part", FOREIGN)
def test_what_cannot_be_taken_exactly_is_refused_by_name(part, tmp_path):
    FOREIGN[part]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"^--encoder_from .*{part}"):
        started(tmp_path)


def test_a_norm_that_was_never_trained_is_refused(tmp_path):
    BeitModel(mae_beit_config(**VIT, use_mean_pooling=True)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Give the classifier it was taken from"):
        started(tmp_path)


def test_other_channels_and_sizes(tmp_path):
    there = learned(ViTModel(ViTConfig(**VIT), add_pooling_layer=False))
    there.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--encoder_from .* takes images of 3 channels, and 5 are wanted"):
        started(tmp_path, overrides={"num_channels": 5})
    model, said = started(tmp_path, overrides={"num_channels": 5, "image_size": 24}, inflate_channels="mean")
    weight = there.embeddings.patch_embeddings.projection.weight.detach().numpy()
    expected = np.repeat(weight.mean(axis=1, keepdims=True), 5, axis=1) * 3 / 5
    assert_close(model.vit.embeddings.patch_embeddings.projection.weight.detach().numpy(), expected)
    assert "inflated from 3 to 5 channels (mean)" in said and "interpolated for 24x24 px" in said
    positions = model.vit.embeddings.position_embeddings
    assert positions.shape == (1, 37, 32) and positions.requires_grad
