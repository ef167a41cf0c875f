"""The encoder as a backbone of transformers' kind, against the encoder, stock models and stock heads."""

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoBackbone,
    AutoConfig,
    DPTConfig,
    DPTForDepthEstimation,
    DPTForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTMAEForPreTraining,
    ViTMAEModel,
)

from hf_mae_robust import ViTMAERobustBackbone, ViTMAERobustConfig, ViTMAERobustModel
from hf_mae_robust.conversion.stock import to_stock
from hf_mae_robust.model.modeling_vit_mae_robust import sincos_position_embedding
from tests.model_helpers import ALL_ON, TINY, build, images, stock_of, tiny_config

ALL = [0, 1, 2, 3]  # hidden states of three blocks


def backbone_of(model, **settings) -> ViTMAERobustBackbone:
    """With the weights of an encoder or a pre-training model."""
    encoder = getattr(model, "vit", model)
    config = ViTMAERobustConfig.from_dict({**encoder.config.to_dict(), **settings})
    backbone = ViTMAERobustBackbone(config)
    tensors = {name: value for name, value in encoder.state_dict().items() if name != "mid_mask_token"}
    backbone.load_state_dict(tensors)
    return backbone.eval()


def as_maps(hidden_states, rows, columns):
    """`(B, 1 + L, d)` -> `(B, d, h, w)`, one patch after another."""
    batch, _, dim = hidden_states.shape
    maps = torch.empty(batch, dim, rows, columns)
    for row in range(rows):
        for column in range(columns):
            maps[:, :, row, column] = hidden_states[:, 1 + row * columns + column]
    return maps


def assert_all_close(actual, expected, tolerance):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 24), (8, 64)])
@torch.no_grad()
def test_feature_maps_are_the_encoders_hidden_states(height, width):
    model = build(**ALL_ON).eval()
    pixels = images(height=height, width=width)
    encoded = model.vit(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    expected = [as_maps(states, height // 8, width // 8) for states in encoded.hidden_states]
    outputs = backbone_of(model, out_indices=ALL, apply_layernorm=False)(pixels)
    assert outputs.hidden_states is outputs.attentions is None
    assert_all_close(outputs.feature_maps, expected, 1e-6)

    normed = backbone_of(model, out_indices=[1, 3])(pixels).feature_maps
    expected = [as_maps(model.vit.layernorm(encoded.hidden_states[i]), height // 8, width // 8) for i in (1, 3)]
    assert_all_close(normed, expected, 1e-6)
    assert_close(normed[1], as_maps(encoded.last_hidden_state, height // 8, width // 8), rtol=0, atol=1e-6)

    tokens = backbone_of(model, out_features=["stage3"], reshape_hidden_states=False)(pixels).feature_maps
    assert_all_close(tokens, [encoded.last_hidden_state], 1e-6)


@torch.no_grad()
def test_patches_that_are_not_square():
    model = build(image_size=(32, 48), patch_size=(8, 4)).eval()
    pixels = images(height=32, width=48)
    states = model.vit(pixels).last_hidden_state
    assert_all_close(backbone_of(model)(pixels).feature_maps, [as_maps(states, 4, 12)], 1e-6)


@pytest.mark.parametrize("target", ["vit", "beit"])
@torch.no_grad()
def test_feature_maps_are_those_of_the_exported_encoder(target):
    model, pixels = build().eval(), images()
    stock = to_stock(model.vit, target)
    expected = stock(pixels, output_hidden_states=True).hidden_states
    outputs = backbone_of(model, out_indices=ALL, apply_layernorm=False)(pixels)
    assert_all_close(outputs.feature_maps, [as_maps(states, 4, 4) for states in expected], 1e-5)


@torch.no_grad()
def test_a_stock_mae_checkpoint_loads(tmp_path):
    """As transformers writes it, with another epsilon than ours. Stock shuffles the patches even if it masks none."""
    stock = stock_of(build()).eval()
    stock.config.layer_norm_eps = 1e-12
    stock.save_pretrained(tmp_path)
    backbone, info = ViTMAERobustBackbone.from_pretrained(tmp_path, out_indices=ALL, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    backbone.eval()
    pixels, raster = images(), torch.arange(16.0).expand(2, -1)
    stock.config.mask_ratio = 0.0
    encoder = ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0).eval()
    states = encoder(pixels, noise=raster, output_hidden_states=True).hidden_states
    backbone.config.apply_layernorm = False
    assert_all_close(backbone(pixels).feature_maps, [as_maps(each, 4, 4) for each in states], 1e-5)
    assert isinstance(stock, ViTMAEForPreTraining)


@pytest.mark.parametrize("part", ["whole", "encoder", "backbone"])
@torch.no_grad()
def test_every_checkpoint_of_ours_loads_completely(tmp_path, part):
    model = build(**ALL_ON).eval()
    pixels = images()
    expected = model.vit(pixels).last_hidden_state
    {"whole": model, "encoder": model.vit, "backbone": backbone_of(model)}[part].save_pretrained(tmp_path)
    backbone, info = ViTMAERobustBackbone.from_pretrained(tmp_path, out_indices=[2, 3], output_loading_info=True)
    assert not any(info.values()), info
    assert backbone.out_features == ["stage2", "stage3"] and backbone.channels == [64, 64]
    assert_close(backbone.eval()(pixels).feature_maps[1], as_maps(expected, 4, 4))
    if part == "backbone":  # and what reads encoders reads a backbone
        encoder, info = ViTMAERobustModel.from_pretrained(tmp_path, output_loading_info=True)
        assert info["missing_keys"] == {"mid_mask_token"} and not info["unexpected_keys"]
        assert_close(encoder.eval()(pixels).last_hidden_state, expected)


def test_auto_class_makes_ours():
    config = tiny_config(out_indices=[1, 2])
    assert type(AutoBackbone.from_config(config)) is ViTMAERobustBackbone


@torch.no_grad()
def test_hidden_states_and_attentions_on_request():
    model = build().eval()
    model.set_attn_implementation("eager")
    backbone, pixels = backbone_of(model), images()
    backbone.set_attn_implementation("eager")
    expected = model.vit(pixels, output_hidden_states=True, output_attentions=True)
    outputs = backbone(pixels, output_hidden_states=True, output_attentions=True)
    assert_all_close(outputs.hidden_states, expected.hidden_states, 1e-6)
    assert_all_close(outputs.attentions, expected.attentions, 1e-6)
    as_tuple = backbone(pixels, output_hidden_states=True, return_dict=False)
    assert_all_close(as_tuple[0], outputs.feature_maps, 0)
    assert len(as_tuple) == 2 and len(as_tuple[1]) == 4


@torch.no_grad()
def test_missing_pixels_of_a_band_model_are_the_bands_mean():
    bands = {"num_channels": 4, "rescale_factor": 1.0, "image_mean": [900.0] * 4, "image_std": [300.0] * 4}
    backbone = backbone_of(build(**bands), out_indices=ALL)
    pixels = images(channels=4)
    pixels[0, 2, :20, 5:] = float("nan")
    pixels[1] = float("nan")
    maps = backbone(pixels).feature_maps
    assert_all_close(maps, backbone(pixels.nan_to_num(0.0)).feature_maps, 0)
    assert all(torch.isfinite(each).all() for each in maps)


@pytest.mark.parametrize(
    ("pixels", "options", "message"),
    [
        (images(height=36), {}, "36 x 32 pixels are not a multiple of patch_size=8"),
        (images(channels=4), {}, "4 channels, but the model has num_channels=3"),
        (images(height=40), {"interpolate_pos_encoding": False}, "40 x 32 pixels, but the model was built for image_"),
    ],
    ids=["size", "channels", "not asked to interpolate"],
)
def test_images_that_do_not_fit_are_refused(pixels, options, message):
    with pytest.raises(ValueError, match=message):
        ViTMAERobustBackbone(tiny_config())(pixels, **options)


def test_stages_follow_the_number_of_blocks_until_they_are_chosen(tmp_path):
    config = tiny_config()
    assert (config.out_features, config.out_indices) == (["stage3"], [3])
    config.num_hidden_layers = 2
    assert (config.out_features, config.out_indices) == (["stage2"], [2])
    assert ViTMAERobustBackbone(config).out_features == ["stage2"]
    config.save_pretrained(tmp_path)
    again = ViTMAERobustConfig.from_pretrained(tmp_path, num_hidden_layers=1)
    assert again.out_indices == [1] and again.stage_names == ["stem", "stage1"]

    chosen = tiny_config(out_indices=(-2, -1), apply_layernorm=False)
    assert chosen.out_features == ["stage2", "stage3"]
    chosen.save_pretrained(tmp_path / "chosen")
    loaded = AutoConfig.from_pretrained(tmp_path / "chosen")
    assert loaded.to_json_string() == chosen.to_json_string() and loaded.out_features == ["stage2", "stage3"]
    chosen.num_hidden_layers = 1
    with pytest.raises(ValueError, match="stage2"):
        ViTMAERobustBackbone(chosen)
    with pytest.raises(ValueError, match="subset of stage_names"):
        tiny_config(out_features=["stage4"])


@pytest.mark.parametrize("settings", [{}, {"out_indices": [3]}, {"out_features": ["stage3"], "apply_layernorm": True}])
def test_config_names_nothing_of_backbones_where_nothing_was_chosen(settings):
    own = {"out_features", "out_indices", "stage_names", "apply_layernorm", "reshape_hidden_states"}
    assert own.isdisjoint(tiny_config(**settings).to_dict())
    assert own.isdisjoint(json.loads(tiny_config(**settings).to_json_string()))


def test_positions_train_until_they_are_frozen(tmp_path):
    fresh = ViTMAERobustBackbone(tiny_config())
    assert_close(fresh.embeddings.position_embeddings.detach(), sincos_position_embedding((4, 4), 64))
    fresh.save_pretrained(tmp_path)
    for backbone in (fresh, ViTMAERobustBackbone.from_pretrained(tmp_path)):
        assert all(parameter.requires_grad for parameter in backbone.parameters())
        backbone.freeze_position_embeddings()
        frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
        assert frozen == ["embeddings.position_embeddings"]
    encoder = ViTMAERobustModel.from_pretrained(tmp_path)  # where they are fixed, as ever
    assert not encoder.embeddings.position_embeddings.requires_grad


def upernet(backbone_config):
    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone_config, hidden_size=16, num_labels=3, auxiliary_channels=8, pool_scales=[1, 2]
        )
    )


def dpt(backbone_config):
    backbone_config.reshape_hidden_states = False
    config = DPTConfig(
        backbone_config=backbone_config, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, readout_type="project"
    )
    return DPTForDepthEstimation(config)


def loss_of(model, pixels, levels):
    """Of the three grey values of `scenes` as classes, or as depths."""
    if isinstance(model, UperNetForSemanticSegmentation):
        return model(pixels, labels=levels).loss
    depth = torch.nn.functional.interpolate(model(pixels).predicted_depth.unsqueeze(1), levels.shape[-2:])
    return (depth[:, 0] - levels).abs().mean()  # transformers has no loss of depths


def scenes(height, width):
    """Images of three grey values, and where each of them is."""
    levels = torch.randint(3, (4, height // 8, width // 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    return (levels.float() - 1).unsqueeze(1).expand(-1, 3, -1, -1) + 0.1 * torch.randn(4, 3, height, width), levels


@pytest.mark.parametrize("make", [upernet, dpt])
def test_stock_heads_train_on_it_and_come_back(make, tmp_path):
    torch.manual_seed(0)
    encoder = build().vit
    encoder.save_pretrained(tmp_path / "encoder")
    backbone = ViTMAERobustBackbone.from_pretrained(tmp_path / "encoder", out_indices=ALL)
    model = make(backbone.config)
    model.backbone.load_state_dict(backbone.state_dict())
    model.train()
    pixels, levels = scenes(48, 32)  # not the size of the pre-training
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = loss_of(model, pixels, levels)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    without = [name for name, each in model.backbone.named_parameters() if each.grad is None or not each.grad.any()]
    # A key's bias shifts all scores of a query by the same number, which the softmax takes back.
    assert [name for name in without if not name.endswith("k_proj.bias")] == []

    model.eval().save_pretrained(tmp_path / "head")
    again, info = type(model).from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not any(info.values()), info
    assert again.backbone.out_indices == ALL
    assert {name for name, each in again.named_parameters() if not each.requires_grad} == {
        name for name, each in model.named_parameters() if not each.requires_grad
    }
    with torch.no_grad():
        assert torch.equal(again.eval()(pixels)[0], model(pixels)[0])


def test_dpts_segmenter_still_takes_no_backbone():
    """What the manual says of transformers: it builds an encoder of its own beside the configuration's."""
    config = dpt(tiny_config(out_indices=ALL)).config
    config.update({"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32})
    assert not any(isinstance(module, ViTMAERobustBackbone) for module in DPTForSemanticSegmentation(config).modules())


def test_checkpointed_activations_give_the_same_gradients():
    pixels, gradients = images(), []
    model = build()
    for is_checkpointed in (False, True):
        backbone = backbone_of(model, out_indices=[1, 3]).train()
        if is_checkpointed:
            backbone.activation_checkpointing_enable()
        sum(each.square().mean() for each in backbone(pixels).feature_maps).backward()
        gradients.append([parameter.grad for parameter in backbone.parameters()])
    assert_all_close(*gradients, 1e-6)


def test_it_compiles_without_a_break():
    backbone, pixels = backbone_of(build(), out_indices=[1, 3]), images()
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_all_close(compiled(pixels).feature_maps, backbone(pixels).feature_maps, 1e-6)


def test_sizes_are_those_of_the_helpers():
    assert TINY["num_hidden_layers"] == len(ALL) - 1 and TINY["patch_size"] == 8
