"""UperNet sees what the encoder computes, with the encoder's weights, and learns at the published rates."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    UperNetForSemanticSegmentation,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
    ViTMSNConfig,
    ViTMSNModel,
)

from hf_mae_robust.conversion.original import to_original
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.errors import UserError
from hf_mae_robust.finetune import make_parser
from hf_mae_robust.finetuning.segmentation.linear_head import linear_segmenter
from hf_mae_robust.finetuning.segmentation.maps import IGNORED
from hf_mae_robust.finetuning.segmentation.models import (
    SegmenterSettings,
    segmenter_for_evaluation,
    segmenter_from_encoder,
    segmenter_from_scratch,
    tap_indices,
)
from hf_mae_robust.finetuning.segmentation.task import SegmentationTask
from hf_mae_robust.model import ViTMAERobustModel
from hf_mae_robust.training.optimization import param_groups_layer_decay
from tests.model_helpers import ALL_ON, build, images

EXACT = {"rtol": 1e-5, "atol": 3e-5}
CLASSES = ["sky", "road", "car"]
SMALL = {"image_size": 32, "channels": 8}
DEPTH = {"num_hidden_layers": 6}
SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    **DEPTH,
}
SOURCES = {
    "ours": lambda: build(**DEPTH),
    "ours, all three ingredients": lambda: build(**DEPTH, **ALL_ON),
    "our encoder": lambda: build(**DEPTH).vit,
    "stock MAE": lambda: ViTMAEForPreTraining(
        ViTMAEConfig(**SIZES, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
    ),
    "ViT": lambda: ViTModel(ViTConfig(**SIZES)),
    "ViT without biases": lambda: ViTModel(ViTConfig(**SIZES, qkv_bias=False)),
    "MSN": lambda: ViTMSNModel(ViTMSNConfig(**SIZES)),
}


@pytest.fixture
def saved(tmp_path):
    """A function that saves a source, all its weights random, and gives folder and model."""

    def save(source: str):
        model = SOURCES[source]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / "source")
        return str(tmp_path / "source"), model

    return save


@torch.no_grad()
def hidden_states(model, pixels: torch.Tensor, **options) -> tuple[torch.Tensor, ...]:
    """Of a ViT: the embeddings and the output of each block, `(B, 1 + L, d)`. MAE encoders are told to mask nothing, so
    their tokens keep their order where the noise ascends."""
    options["output_hidden_states"] = True
    if "MAE" in type(model).__name__:
        model.config.mask_ratio = 0.0
        length = (pixels.shape[-1] // 8) ** 2
        options["noise"] = torch.arange(float(length)).expand(len(pixels), -1)
    return model.base_model(pixels, **options).hidden_states


def maps_of(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """`(B, 1 + side * side, d)` -> `(B, d, side, side)`."""
    return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, side, side)


@torch.no_grad()
def taps_of(segmenter: UperNetForSemanticSegmentation, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the neck gets."""
    taken = []
    hook = segmenter.backbone.fpn.register_forward_hook(lambda module, inputs, outputs: taken.append(inputs[0]))
    segmenter.eval()(pixels)
    hook.remove()
    return taken[0]


@pytest.mark.parametrize("source", SOURCES)
def test_upernet_taps_the_blocks_of_the_encoder(saved, source):
    folder, model = saved(source)
    segmenter, pixels = segmenter_from_encoder(ModelSource(folder), CLASSES, SegmenterSettings(**SMALL))
    assert type(segmenter) is UperNetForSemanticSegmentation and segmenter.training
    batch = images()
    expected = hidden_states(model, batch)
    found = taps_of(segmenter, batch)
    assert len(found) == 4
    for block, tap in zip((2, 3, 4, 6), found, strict=True):
        torch.testing.assert_close(tap, maps_of(expected[block], 4), **EXACT)
    assert pixels.num_channels == 3 and all(parameter.isfinite().all() for parameter in segmenter.state_dict().values())


@pytest.mark.parametrize("from_scratch", [False, True])
def test_sizes_may_be_pairs_of_equal_numbers(tmp_path, from_scratch):
    """As in `--config_overrides image_size=[32,32],patch_size=[8,8]`; both heads compute what they do with numbers."""
    model, batch = build(**DEPTH), images()
    found = []
    for sizes in ({"image_size": 32, "patch_size": 8}, {"image_size": [32, 32], "patch_size": [8, 8]}):
        model.vit.config.update(sizes)
        model.save_pretrained(tmp_path)
        source = ModelSource(None, {**SIZES, **sizes}) if from_scratch else ModelSource(str(tmp_path))
        torch.manual_seed(0)
        make = segmenter_from_scratch if from_scratch else segmenter_from_encoder
        upernet, _ = make(source, CLASSES, SegmenterSettings(**SMALL, relative_position_bias=True))
        linear, _ = linear_segmenter(source, CLASSES, 32, "sdpa", from_scratch)
        found.append([segmenter.eval()(batch).logits for segmenter in (upernet, linear)])
    assert all(torch.equal(one, other) for one, other in zip(*found))


def test_patches_that_are_not_square_are_refused(tmp_path):
    build(patch_size=(8, 4), **DEPTH).save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path))
    with pytest.raises(UserError, match=r"Segmentation needs square patches, not \[8, 4\]\."):
        segmenter_from_encoder(source, CLASSES, SegmenterSettings(**SMALL))
    with pytest.raises(UserError, match=r"Segmentation needs square patches, not \[8, 4\]\."):
        linear_segmenter(source, CLASSES, 32, "sdpa", from_scratch=False)


def test_an_official_file_is_taken_too(tmp_path):
    model = build(**DEPTH).eval()
    path = tmp_path / "official.pth"
    torch.save({"model": to_original(model)}, path)
    with pytest.raises(ValueError, match="num_attention_heads=12"):
        segmenter_from_encoder(ModelSource(str(path)), CLASSES, SegmenterSettings(**SMALL))
    segmenter, _ = segmenter_from_encoder(
        ModelSource(str(path), {"num_attention_heads": 4}), CLASSES, SegmenterSettings(**SMALL)
    )
    batch = images()
    torch.testing.assert_close(taps_of(segmenter, batch)[3], maps_of(hidden_states(model, batch)[6], 4), **EXACT)


@pytest.mark.parametrize(
    ("depth", "mmsegmentation"), [(12, [3, 5, 7, 11]), (24, [7, 11, 15, 23]), (6, [1, 2, 3, 5]), (32, [10, 15, 20, 31])]
)
def test_taps_are_those_of_mmsegmentation(depth, mmsegmentation):
    """Which counts blocks from 0; for the last two it has no configuration."""
    assert tap_indices(depth) == [index + 1 for index in mmsegmentation]


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_an_encoder_of_too_few_blocks_is_an_error(depth):
    with pytest.raises(ValueError, match=f"encoder of {depth} has too few"):
        tap_indices(depth)


def test_positions_are_interpolated_and_train(saved):
    folder, model = saved("ours")
    segmenter, _ = segmenter_from_encoder(ModelSource(folder), CLASSES, SegmenterSettings(image_size=48, channels=8))
    batch = images(height=48, width=48)
    expected = hidden_states(model, batch, interpolate_pos_encoding=True)[6]
    torch.testing.assert_close(taps_of(segmenter, batch)[3], maps_of(expected, 6), **EXACT)
    positions = segmenter.backbone.beit.embeddings.position_embeddings
    assert positions.requires_grad and positions.shape == (1, 37, 64)


def test_the_neck_has_four_scales():
    segmenter, _ = segmenter_from_scratch(
        ModelSource(None, {**SIZES, "image_size": 64}), CLASSES, SegmenterSettings(image_size=64, channels=8)
    )
    with torch.no_grad():
        features = segmenter.eval().backbone(images(height=64, width=64)).feature_maps
        assert segmenter(images(height=64, width=64)).logits.shape == (2, 3, 64, 64)
    assert [tuple(feature.shape[1:]) for feature in features] == [(32, side, side) for side in (32, 16, 8, 4)]


def test_relative_positions_begin_at_zero(saved):
    folder, _ = saved("ours")
    batch = images()
    plain, biased = (
        segmenter_from_encoder(
            ModelSource(folder), CLASSES, SegmenterSettings(relative_position_bias=with_bias, **SMALL)
        )[0]
        for with_bias in (False, True)
    )
    for one, other in zip(taps_of(plain, batch), taps_of(biased, batch)):
        torch.testing.assert_close(one, other, **EXACT)
    names = {name for name, _ in biased.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert len(names) == 6 and all(name.endswith("relative_position_bias_table") for name in names)
    table = dict(biased.named_parameters())[min(names)]
    with torch.no_grad():
        table.add_(torch.randn_like(table))
    assert not torch.allclose(taps_of(plain, batch)[3], taps_of(biased, batch)[3], atol=1e-3)


def test_from_scratch_begins_as_mae_does(saved):
    folder, model = saved("ours")
    segmenter, _ = segmenter_from_scratch(ModelSource(folder), CLASSES, SegmenterSettings(**SMALL))
    positions = segmenter.backbone.beit.embeddings.position_embeddings
    fresh = ViTMAERobustModel(model.config).embeddings.position_embeddings
    assert torch.equal(positions, fresh) and positions.requires_grad and positions[:, 1:].std() > 0.3
    assert not torch.equal(positions, model.vit.embeddings.position_embeddings)
    weight = segmenter.backbone.beit.layers[0].mlp.fc1.weight
    assert weight.abs().max() <= (6 / sum(weight.shape)) ** 0.5  # Xavier


def test_settings_arrive(saved):
    folder, _ = saved("ours")
    segmenter, _ = segmenter_from_encoder(
        ModelSource(folder),
        CLASSES,
        SegmenterSettings(drop_path_rate=0.2, auxiliary_loss_weight=0.3, attn_implementation="eager", **SMALL),
    )
    config = segmenter.config
    assert config.id2label == dict(enumerate(CLASSES)) and config.label2id["car"] == 2
    assert (config.auxiliary_loss_weight, config.loss_ignore_index, config.hidden_size) == (0.3, IGNORED, 8)
    assert config.backbone_config._attn_implementation == segmenter.backbone.config._attn_implementation == "eager"
    rates = [getattr(layer.drop_path, "drop_prob", 0) or 0 for layer in segmenter.backbone.beit.layers]
    assert rates == pytest.approx([0.04 * i for i in range(6)])


def test_what_is_saved_is_a_stock_model(saved, tmp_path):
    segmenter, _ = segmenter_from_encoder(
        ModelSource(saved("ours")[0]), CLASSES, SegmenterSettings(relative_position_bias=True, **SMALL)
    )
    segmenter.save_pretrained(tmp_path / "segmenter")
    loaded, info = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "segmenter", output_loading_info=True)
    assert not any(info.values())
    batch = images()
    with torch.no_grad():
        expected = segmenter.eval()(batch).logits
        torch.testing.assert_close(loaded.eval()(batch).logits, expected, **EXACT)
    again, _ = segmenter_for_evaluation(ModelSource(str(tmp_path / "segmenter")), CLASSES)
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logits, expected, **EXACT)
    assert not again.training


# ---- what is refused ----


def test_a_missing_tensor_is_an_error(saved):
    folder, _ = saved("ours")
    tensors = load_file(f"{folder}/model.safetensors")
    del tensors["vit.encoder.layer.3.output.dense.weight"]
    save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 tensors: .*layers.3.mlp.fc2.weight"):
        segmenter_from_encoder(ModelSource(folder), CLASSES, SegmenterSettings(**SMALL))


def test_other_architectures_are_refused(tmp_path):
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'bert' model"):
        segmenter_from_encoder(ModelSource(str(tmp_path)), CLASSES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--model_name_or_path is needed"),
        (["--from_scratch", "--config_overrides", "heads=3"], "no setting heads"),
        (["--from_scratch", "--config_overrides", "patch_size=8", "--image_size", "36"], "image_size.*patch"),
        (["--from_scratch", "--config_overrides", "num_hidden_layers=3"], "too few"),
        (["--eval_only"], "--model_name_or_path is needed"),
        (["--eval_only", "--from_scratch"], "--eval_only needs a segmenter"),
        (["--eval_only", "--model_name_or_path", __file__], "--eval_only needs a segmenter"),
    ],
)
def test_settings_that_make_no_model_are_errors(words, message):
    arguments = make_parser().parse(["--task", "segmentation", *words])
    with pytest.raises(ValueError, match=message):
        SegmentationTask().build_model(arguments, CLASSES)


def test_a_size_or_overrides_that_do_not_fit_a_checkpoint(saved):
    folder, _ = saved("ours")
    with pytest.raises(ValueError, match="--image_size 36 is not a multiple of the patch size 8"):
        segmenter_from_encoder(ModelSource(folder), CLASSES, SegmenterSettings(image_size=36))
    with pytest.raises(ValueError, match="--config_overrides hidden_size: these are for --from_scratch"):
        segmenter_from_encoder(ModelSource(folder, {"hidden_size": 64}), CLASSES)


def test_only_a_segmenter_of_the_same_classes_is_evaluated(saved, tmp_path):
    folder, _ = saved("ours")
    with pytest.raises(ValueError, match="vit_mae_robust.*; needed here: upernet"):
        segmenter_for_evaluation(ModelSource(folder), CLASSES)
    segmenter_from_encoder(ModelSource(folder), CLASSES, SegmenterSettings(**SMALL))[0].save_pretrained(
        tmp_path / "segmenter"
    )
    for classes, message in ((CLASSES[:2], "3 classes, and the data have 2"), (["sky", "cat", "car"], "class 1 is")):
        with pytest.raises(ValueError, match=message):
            segmenter_for_evaluation(ModelSource(str(tmp_path / "segmenter")), classes)
    shutil.rmtree(tmp_path / "segmenter")


# ---- learning rates ----


@pytest.mark.parametrize("relative_position_bias", [False, True])
def test_every_parameter_learns_at_the_published_rate(relative_position_bias):
    """get_layer_id_for_vit of mmsegmentation's layer_decay_optimizer_constructor.py: embeddings 0, block i has i + 1,
    neck and heads depth + 1. Undecayed: what has one dimension, positions, CLS token; not relative positions."""
    segmenter, _ = segmenter_from_scratch(
        ModelSource(None, SIZES), CLASSES, SegmenterSettings(relative_position_bias=relative_position_bias, **SMALL)
    )
    groups = param_groups_layer_decay(segmenter, 1e-4, 0.65, 0.05)
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(list(segmenter.parameters()))
    layers = set()
    for name, parameter in segmenter.named_parameters():
        block = re.match(r"backbone\.beit\.layers\.(\d+)\.", name)
        layer = int(block[1]) + 1 if block else 0 if name.startswith("backbone.beit.embeddings.") else 7
        is_undecayed = parameter.ndim == 1 or name.endswith(("cls_token", "position_embeddings"))
        group = group_of[id(parameter)]
        assert group["lr"] == pytest.approx(1e-4 * 0.65 ** (7 - layer), rel=1e-12), name
        assert group["weight_decay"] == (0 if is_undecayed else 0.05), name
        layers.add(layer)
    assert layers == set(range(8))
    heads = [module for module in segmenter.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {group_of[id(module.weight)]["lr"] for module in heads} == {1e-4}
