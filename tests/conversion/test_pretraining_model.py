"""Checkpoints that pre-training starts from: which are taken, and what of them starts from scratch."""

import json

import pytest
import torch
from transformers import BertConfig, ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.analysis.analyze import load
from hf_mae_robust.conversion.any_encoder import load_start, read_start
from hf_mae_robust.conversion.checkpoint_file import read_original
from hf_mae_robust.conversion.original import from_original, to_original
from hf_mae_robust.conversion.pretraining_model import load_pretraining_model, read_pretraining_config
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.errors import UserError
from hf_mae_robust.model.configuration_vit_mae_robust import to_pair
from hf_mae_robust.model.modeling_vit_mae_robust import sincos_position_embedding
from tests.helpers import TINY
from tests.model_helpers import ALL_ON, build, tiny_config


def test_overrides_win_over_the_checkpoint_and_the_checkpoint_over_defaults(tmp_path):
    ViTMAEConfig(**TINY, mask_ratio=0.6, norm_pix_loss=False).save_pretrained(tmp_path)
    config = read_pretraining_config(ModelSource(str(tmp_path), {"mask_ratio": 0.5, "mid_mask_ratio": 0.25}))
    assert type(config) is ViTMAERobustConfig and config.hidden_size == TINY["hidden_size"]
    assert (config.mask_ratio, config.mid_mask_ratio, config.norm_pix_loss) == (0.5, 0.25, False)
    alone = read_pretraining_config(ModelSource(None, {"image_size": 64}))
    assert alone.to_dict() == ViTMAERobustConfig(image_size=64).to_dict()


def test_a_stock_checkpoint_says_by_its_image_processor_what_mean_its_images_have(tmp_path):
    """stock's config does not hold it. analyze, which loads a model in this way, sees the same pixels."""
    ViTMAEForPreTraining(ViTMAEConfig(**TINY)).save_pretrained(tmp_path)
    ViTImageProcessor(size=16, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(tmp_path)
    config = read_pretraining_config(ModelSource(str(tmp_path)))
    assert (config.image_mean, config.image_std) == ([0.4] * 3, [0.3] * 3)
    assert load(str(tmp_path), None, None).pixels.image_mean == (0.4,) * 3
    other = read_pretraining_config(ModelSource(str(tmp_path), {"image_mean": [0.1] * 3}))
    assert other.image_mean == [0.1] * 3 and other.image_std == [0.3] * 3


def test_other_architectures_and_unknown_settings_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'bert' model; pre-training starts from 'vit_mae_robust' or stock"):
        read_pretraining_config(ModelSource(str(tmp_path)))
    with pytest.raises(ValueError, match="ViTMAERobustConfig has no setting depth, heads"):
        read_pretraining_config(ModelSource(None, {"heads": 3, "depth": 2}))


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_all_tensors_of_a_complete_checkpoint_are_taken(kind, tmp_path):
    model = build(**ALL_ON) if kind == "ours" else ViTMAEForPreTraining(ViTMAEConfig(**TINY))
    model.save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path), {} if kind == "ours" else {"mid_mask_ratio": 0.25})
    loaded, note = load_pretraining_model(source, read_pretraining_config(source), "eager")
    assert loaded.config._attn_implementation == "eager"
    # A new stock model has zeros as positions.
    assert note is None if kind == "ours" else "positions are not sine-cosine" in note
    found = loaded.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())
    assert found.keys() - model.state_dict().keys() == (set() if kind == "ours" else {"vit.mid_mask_token"})


def test_a_decoder_that_starts_from_scratch_is_named(tmp_path):
    encoder = build().vit
    encoder.save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path))
    model, note = load_pretraining_model(source, read_pretraining_config(source))
    missing = sorted(name for name in model.state_dict() if not name.startswith("vit."))
    expected = f"{tmp_path} lacks {len(missing)} tensors, which start from scratch: {', '.join(missing[:4])}, ..."
    assert note == f"Note: {expected}"
    found = model.vit.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in encoder.state_dict().items())


OFFICIAL_HEADS = {"num_attention_heads": 4, "decoder_num_attention_heads": 4}


@pytest.fixture
def official(golden_dir):
    return str(golden_dir / "official_mae_tiny_normpix.pth")


def test_an_official_file_is_converted_on_the_way(official):
    source = ModelSource(official, {**OFFICIAL_HEADS, "mask_ratio": 0.5})
    config = read_pretraining_config(source)
    assert (config.image_size, config.patch_size, config.num_hidden_layers, config.mask_ratio) == (32, 8, 3, 0.5)
    model, note = load_pretraining_model(ModelSource(official), config)
    assert note is None and model.dtype == torch.float32
    expected = from_original(read_original(official), **OFFICIAL_HEADS).state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_an_official_encoder_gets_a_new_decoder(official, tmp_path):
    tensors = read_original(official)
    encoder = {key: value for key, value in tensors.items() if not key.startswith(("decoder_", "mask_token"))}
    torch.save(encoder, tmp_path / "encoder.pth")
    sizes = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    source = ModelSource(str(tmp_path / "encoder.pth"), {"num_attention_heads": 4, **sizes})
    model, note = load_pretraining_model(ModelSource(source.name), read_pretraining_config(source))
    assert "tensors, which start from scratch: decoder." in note
    assert model.config.decoder_hidden_size == 16
    assert torch.equal(model.vit.embeddings.cls_token, tensors["cls_token"])


def test_an_official_file_needs_its_heads_and_no_classifier(official, golden_dir):
    message = "--config_overrides num_attention_heads=12,decoder_num_attention_heads=16"
    with pytest.raises(ValueError, match=message):
        read_pretraining_config(ModelSource(official, {"num_attention_heads": 4}))
    with pytest.raises(ValueError, match="is a classifier in the official layout"):
        name = str(golden_dir / "official_cls_globalpool_tiny.pth")
        read_pretraining_config(ModelSource(name, {"num_attention_heads": 3}))


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.pth: no file, no folder with a config.json"):
        read_pretraining_config(ModelSource(str(tmp_path / "nowhere.pth")))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_sine_cosine_positions_are_computed_again_for_another_size(kind, official, tmp_path):
    if kind == "folder":
        before = ViTMAERobustForPreTraining(tiny_config(**ALL_ON))
        before.set_target_statistics(torch.rand(192), torch.rand(192) + 1)
        before.save_pretrained(tmp_path)
        source = ModelSource(str(tmp_path), {"image_size": 64})
    else:
        before = from_original(read_original(official), **OFFICIAL_HEADS)
        for table in (before.vit.embeddings.position_embeddings, before.decoder.decoder_pos_embed):
            assert torch.allclose(table, sincos_position_embedding((4, 4), table.shape[-1]), atol=1e-4)
        source = ModelSource(official, {**OFFICIAL_HEADS, "image_size": (64, 48)})
    config = read_pretraining_config(source)
    model, note = load_pretraining_model(ModelSource(source.name), config)
    assert len(note.splitlines()) == 1 and "its positions are computed again (sine-cosine) for" in note
    grid = config.grid_size
    tables = {
        "vit.embeddings.position_embeddings": config.hidden_size,
        "decoder.decoder_pos_embed": config.decoder_hidden_size,
    }
    found, expected = model.state_dict(), before.state_dict()
    for name, width in tables.items():
        assert torch.equal(found[name], sincos_position_embedding(grid, width))
    assert all(torch.equal(found[name], expected[name]) for name in expected if name not in tables)
    side = (1, config.num_channels, *to_pair(config.image_size))
    assert model(torch.randn(side)).loss.isfinite()
    model.save_pretrained(tmp_path / "saved")
    again, note = load_pretraining_model(ModelSource(str(tmp_path / "saved")), config)
    assert note is None and all(torch.equal(again.state_dict()[name], found[name]) for name in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sine_cosine_positions_in_half_precision_are_computed_again(dtype, tmp_path):
    build().to(dtype).save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path), {"image_size": 64})
    model, note = load_pretraining_model(ModelSource(source.name), read_pretraining_config(source))
    assert "computed again (sine-cosine)" in note
    for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert torch.equal(table, sincos_position_embedding((8, 8), table.shape[-1]))


def test_learnt_positions_are_interpolated_in_two_dimensions(tmp_path):
    before = build()
    table = torch.randn_like(before.vit.embeddings.position_embeddings)
    before.vit.embeddings.position_embeddings.data = table
    before.save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path), {"image_size": 2 * before.config.image_size})
    model, note = load_pretraining_model(source, read_pretraining_config(source))
    assert "its positions are interpolated for" in note
    side, _ = before.config.grid_size
    square = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, scale_factor=2, mode="bicubic", align_corners=False)
    found = model.vit.embeddings.position_embeddings
    torch.testing.assert_close(found[:, 1:], expected.permute(0, 2, 3, 1).flatten(1, 2))
    assert torch.equal(found[:, :1], table[:, :1])


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"hidden_size": 32}, "hidden_size is"),
        ({"image_size": 30, "patch_size": 5}, "patch_size is"),
        ({"decoder_hidden_size": 64}, "decoder_hidden_size is"),
        ({"num_hidden_layers": 9}, "num_hidden_layers is"),
        ({"num_hidden_layers": 1, "mid_mask_layer_idx": 0}, "num_hidden_layers is"),
        ({"decoder_num_hidden_layers": 9}, "decoder_num_hidden_layers is"),
        ({"decoder_num_hidden_layers": 1}, "decoder_num_hidden_layers is"),
    ],
)
def test_weights_of_another_size_are_refused_by_the_setting(overrides, words, tmp_path):
    build().save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path), overrides)
    with pytest.raises(ValueError, match=f"{words} .* there and .* asked for"):
        load_pretraining_model(source, read_pretraining_config(source))


@pytest.mark.parametrize(
    ("name", "more"), [("num_hidden_layers", 1), ("num_hidden_layers", -1), ("decoder_num_hidden_layers", 1)]
)
def test_a_config_of_another_number_of_blocks_than_the_weights_have_is_refused(name, more, tmp_path):
    """`analyze` would measure blocks that nothing was trained in."""
    model = build()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, name: config[name] + more}))
    source = ModelSource(str(tmp_path))
    with pytest.raises(ValueError, match="another number of blocks than its weights have: .*layers.*"):
        load_pretraining_model(source, read_pretraining_config(source))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", ["same", "other"])
def test_a_checkpoint_in_half_precision_is_trained_in_float32(dtype, size, tmp_path):
    model = build().to(dtype)
    model.save_pretrained(tmp_path)
    overrides = {} if size == "same" else {"image_size": 2 * model.config.image_size}
    source = ModelSource(str(tmp_path), overrides)
    loaded, _ = load_pretraining_model(source, read_pretraining_config(source))
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    assert torch.equal(loaded.vit.layernorm.weight, model.vit.layernorm.weight.float())


@pytest.mark.parametrize("setting", ["num_attention_heads", "decoder_num_attention_heads", "decoder_num_hidden_layers"])
def test_another_number_of_heads_or_blocks_is_refused_before_the_weights_are_read(setting, tmp_path):
    """Tensors have the same shapes with any number of heads, and would compute something else."""
    build().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"{setting} is \d there and 1 asked for|{setting} is 1 there"):
        other = 1 if getattr(tiny_config(), setting) != 1 else 2
        read_pretraining_config(ModelSource(str(tmp_path), {setting: other}))


def test_a_stock_checkpoint_that_masks_nothing(tmp_path):
    """So its features are got in stock classes."""
    ViTMAEForPreTraining(ViTMAEConfig(**TINY, mask_ratio=0.0)).save_pretrained(tmp_path)
    assert read_pretraining_config(ModelSource(str(tmp_path))).mask_ratio == 0.75
    assert read_pretraining_config(ModelSource(str(tmp_path), {"mask_ratio": 0.5})).mask_ratio == 0.5


@pytest.mark.parametrize("image_size", [(8, 32), (16, 32)], ids=["16 patches", "32 patches"])
def test_an_official_file_of_images_that_are_not_square(image_size, tmp_path):
    """Its 2 x 8 positions are as many as of 4 x 4."""
    model = build(image_size=image_size)
    torch.save({"model": to_original(model)}, tmp_path / "mae.pth")
    overrides = {"num_attention_heads": 2, "decoder_num_attention_heads": 2, "image_size": list(image_size)}
    source = ModelSource(str(tmp_path / "mae.pth"), overrides)
    loaded, note = load_pretraining_model(source, read_pretraining_config(source))
    assert note is None and all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))
    started, told = load_start(source, read_pretraining_config(source, read_start(source).config))
    assert "interpolated" not in told and torch.equal(
        started.vit.embeddings.position_embeddings, model.vit.embeddings.position_embeddings
    )
