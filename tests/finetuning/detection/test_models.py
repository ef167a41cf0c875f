import pytest
import torch
from transformers import ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from hf_mae_robust.conversion.pixels import Pixels
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.finetune import make_parser
from hf_mae_robust.finetuning.detection.models import (
    DetectorSettings,
    detector_for_evaluation,
    detector_from_encoder,
    detector_from_scratch,
    vit_to_vitdet,
)
from hf_mae_robust.finetuning.detection.task import DetectionTask
from hf_mae_robust.model import ViTMAERobustModel
from hf_mae_robust.model.modeling_vit_mae_robust import sincos_position_embedding
from tests.helpers import TINY

NAMES = ["nucleus", "debris"]
HEADS = {"fpn_channels": 16, "box_fc_dim": 32, "box_num_convs": 1, "mask_num_convs": 1}
PLAIN = {"window_size": 0, "use_relative_position_embeddings": False}
SIZES = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints of four blocks: ours (from stock's weights), stock MAE, and ViTs with learned positions."""
    torch.manual_seed(0)
    found = {}
    sizes = {**SIZES, "image_size": 16, "patch_size": 4}
    decoder = {name: value for name, value in TINY.items() if name.startswith("decoder_")}
    for name, model in {
        "stock": ViTMAEForPreTraining(ViTMAEConfig(**sizes, **decoder)),
        "vit": ViTModel(ViTConfig(**sizes), add_pooling_layer=False),
        "vit_relu": ViTModel(ViTConfig(**sizes, hidden_act="relu"), add_pooling_layer=False),
    }.items():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, std=0.1)
        if name == "stock":
            table = sincos_position_embedding((4, 4), 32)
            model.vit.embeddings.position_embeddings.data.copy_(table)
        else:
            torch.nn.init.normal_(model.embeddings.position_embeddings, std=0.5)
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
    found["ours"] = tmp_path_factory.mktemp("ours")
    ViTMAERobustModel.from_pretrained(found["stock"]).save_pretrained(found["ours"])
    return found


def source(name, overrides=HEADS):
    return ModelSource(None if name is None else str(name), overrides)


def settings(image_size=16, **fields):
    return DetectorSettings(image_size, fields={**PLAIN, **fields})


def build(name, overrides=HEADS, **options):
    return detector_from_encoder(source(name, overrides), NAMES, settings(**options))


@pytest.mark.parametrize("kind", ["stock", "ours", "vit", "vit_relu"])
def test_features_are_those_of_the_encoder_without_cls(folders, kind):
    """transformers' own blocks, run on the patch tokens alone."""
    model, pixels = build(folders[kind])
    assert isinstance(pixels, Pixels)
    encoder = (ViTModel if kind.startswith("vit") else ViTMAERobustModel).from_pretrained(folders[kind]).eval()
    images = torch.randn(2, 3, 16, 16)
    embeddings = encoder.embeddings
    tokens = embeddings.patch_embeddings(images) + embeddings.position_embeddings[:, 1:]
    for layer in encoder.layers:
        tokens = layer(tokens)
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    found = model.eval().backbone(images).feature_maps[-1]
    assert torch.allclose(found.flatten(2).transpose(1, 2), tokens, atol=1e-5)


def test_positions_of_mae_are_computed_again_for_the_size_and_others_interpolated(folders, tmp_path):
    large = {"image_size": 32}
    halved = tmp_path / "ours in bfloat16"
    ViTMAERobustModel.from_pretrained(folders["ours"], dtype=torch.bfloat16).save_pretrained(halved)
    for folder in (folders["ours"], halved):
        model, _ = build(folder, **large)
        assert torch.equal(model.backbone.embeddings.position_embeddings, sincos_position_embedding((8, 8), 32))
    model, _ = build(folders["vit"], **large)
    table = ViTModel.from_pretrained(folders["vit"]).embeddings.position_embeddings[:, 1:]
    table = table.reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(table, (8, 8), mode="bicubic", align_corners=False)
    found = model.backbone.embeddings.position_embeddings[:, 1:].reshape(1, 8, 8, 32).permute(0, 3, 1, 2)
    assert torch.allclose(found, expected, atol=1e-5)
    assert model.backbone.embeddings.position_embeddings.requires_grad


def test_windows_and_relative_positions_start_as_nothing(folders):
    """Zero relative positions change nothing; windows as large as the image neither."""
    images = torch.randn(1, 3, 16, 16)
    plain, _ = build(folders["ours"])
    other, _ = build(folders["ours"], window_size=4, use_relative_position_embeddings=True)
    same = [model.eval().backbone(images).feature_maps[-1] for model in (plain, other)]
    assert torch.allclose(*same, atol=1e-5)


def test_from_scratch_starts_as_mae_does(folders):
    model, _ = detector_from_scratch(source(folders["ours"]), NAMES, settings())
    trained, _ = build(folders["ours"])
    name = "encoder.layer.0.attention.qkv.weight"
    weight = model.backbone.get_parameter(name)
    assert not torch.equal(weight, trained.backbone.get_parameter(name))
    assert abs(weight.std() - (2 / (32 + 3 * 32)) ** 0.5) < 0.01  # Xavier, of query, key and value together
    overrides = {**HEADS, **SIZES, "image_size": 16, "patch_size": 4}
    alone, _ = detector_from_scratch(source(None, overrides), NAMES, settings())
    assert alone.config.num_hidden_layers == 4 and alone.config.fpn_channels == 16
    assert all(tensor.isfinite().all() for tensor in alone.state_dict().values())


def test_a_tensor_without_a_place_or_missing_is_an_error(folders):
    tensors = ViTMAERobustModel.from_pretrained(folders["ours"]).state_dict()
    positions = tensors["embeddings.position_embeddings"]
    with pytest.raises(ValueError, match="'layers.0.scale.weight' of the encoder has no place"):
        vit_to_vitdet({**tensors, "layers.0.scale.weight": torch.ones(1)}, positions)
    model, _ = build(folders["ours"])
    del tensors["layers.2.mlp.fc1.weight"]
    with pytest.raises(RuntimeError, match="encoder.layer.2.mlp.fc1.weight"):
        model.backbone.load_state_dict(vit_to_vitdet(tensors, positions))


def test_a_trained_detector_is_loaded_as_it_is_and_its_classes_are_checked(folders, tmp_path):
    model, _ = build(folders["ours"])
    model.save_pretrained(tmp_path)
    again, pixels = detector_for_evaluation(source(tmp_path), NAMES)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert pixels.image_mean == tuple(model.config.image_mean) and not again.training
    with pytest.raises(ValueError, match="2 classes, and the data have 3"):
        detector_for_evaluation(ModelSource(str(tmp_path)), [*NAMES, "more"])
    with pytest.raises(ValueError, match="'vit_mae_robust' model; needed here: "):
        detector_for_evaluation(source(folders["ours"]), NAMES)
    with pytest.raises(ValueError, match="'vit_mae_robust_detection' model; needed here: "):
        build(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": None}, "--model_name_or_path is needed, or --from_scratch"),
        ({"image_size": 18}, "image_size=18 is not a multiple of patch_size=4"),
        ({"overrides": {"hidden_size": 64}}, "--config_overrides hidden_size: these are for --from_scratch"),
        ({"pyramid": "pyramid"}, "pyramid"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folders, options, message):
    name = options.pop("name", folders["ours"])
    with pytest.raises(Exception, match=message) as error:
        build(name, **options)
    assert type(error.value).__name__ in ("UserError", "ValueError", "StrictDataclassFieldValidationError")


def test_a_model_from_scratch_is_not_a_detector_to_evaluate(folders):
    words = ["--task", "detection", "--model_name_or_path", folders["ours"], "--eval_only", "--from_scratch"]
    with pytest.raises(ValueError, match="--eval_only needs a detector"):
        DetectionTask().build_model(make_parser().parse([str(word) for word in words]), NAMES)
