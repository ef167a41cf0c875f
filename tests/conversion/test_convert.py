"""Checkpoints of transformers and timm become ours, and compute what they computed there. For the official layout see
test_checkpoints."""

import json
import re
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import vision_transformer
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    BeitForImageClassification,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from hf_mae_robust import ViTMAERobustForPreTraining, ViTMAERobustModel
from hf_mae_robust.__main__ import main
from hf_mae_robust.conversion.convert import convert
from hf_mae_robust.conversion.original import to_original
from hf_mae_robust.conversion.timm_format import from_timm
from hf_mae_robust.errors import UserError
from tests.helpers import TINY
from tests.model_helpers import build

SIZES = {key: value for key, value in TINY.items() if not key.startswith("mid_")}
VIT = {key: value for key, value in SIZES.items() if not key.startswith("decoder_")}
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
PLAIN = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}


def randomised(model):
    """Initialisations hide faults: biases are zero and norms one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.eval()


@pytest.fixture
def command(tmp_path, capsys):
    """Runs `convert` on a folder; returns the model, from what was written, and what was printed."""

    def run(source, *words, model_class=ViTMAERobustModel):
        main(["convert", str(source), str(tmp_path / "out"), *words])
        model, info = model_class.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(info.values()), info
        return model.eval(), capsys.readouterr().out

    return run


@pytest.mark.parametrize("form", ["of transformers 4", "of transformers 5"])
def test_stock_vit_mae(form, command, tmp_path):
    stock = randomised(ViTMAEForPreTraining(ViTMAEConfig(**SIZES, norm_pix_loss=True, layer_norm_eps=1e-12)))
    stock.save_pretrained(tmp_path / "there", save_original_format=form.endswith("4"))
    names = load_file(tmp_path / "there" / "model.safetensors").keys()
    assert any(".encoder.layer." in name for name in names) is form.endswith("4")
    ViTImageProcessor(size=16, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(tmp_path / "there")
    model, printed = command(tmp_path / "there", model_class=ViTMAERobustForPreTraining)
    noise = torch.rand(2, 16)
    with torch.no_grad():
        expected, ours = stock(PIXELS, noise=noise), model(PIXELS, noise=noise)
    assert_close(ours.logits, expected.logits)
    # The target's variance is the unbiased one, as in the official code and in stock.
    assert_close(ours.loss, expected.loss, rtol=1e-5, atol=0)
    assert "ViTMAERobustForPreTraining" in printed and "decoder 16 x 1 blocks x 2 heads" in printed
    assert model.config.image_mean == [0.4] * 3 and model.config.layer_norm_eps == 1e-12
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert list(processor.image_mean) == [0.4] * 3 and processor.crop_size["height"] == 16
    assert "auto_map" in json.loads((tmp_path / "out" / "config.json").read_text())


def test_settings_can_be_given(command, tmp_path):
    ViTMAEForPreTraining(ViTMAEConfig(**SIZES, norm_pix_loss=False)).save_pretrained(tmp_path / "there")
    model, _ = command(tmp_path / "there", "--norm_pix_loss", model_class=ViTMAERobustForPreTraining)
    assert model.config.norm_pix_loss is True


@pytest.mark.parametrize("kind", ["encoder of a ViT-MAE", "ViT", "ViT classifier", "ViT without biases"])
def test_stock_encoders(kind, command, tmp_path):
    config = {**VIT, "qkv_bias": "without" not in kind}
    if kind == "encoder of a ViT-MAE":
        stock = randomised(ViTMAEModel(ViTMAEConfig(**SIZES)))
    elif kind == "ViT classifier":
        stock = randomised(ViTForImageClassification(ViTConfig(**config, num_labels=3)))
    else:
        stock = randomised(ViTModel(ViTConfig(**config)))
    stock.save_pretrained(tmp_path / "there")
    model, printed = command(tmp_path / "there")
    encoder = getattr(stock, "vit", stock)
    encoder.config.mask_ratio = 0.0
    with torch.no_grad():
        # Stock shuffles the tokens that it does not mask; this noise leaves them in order.
        options = {"noise": torch.arange(16.0).expand(2, -1)} if "MAE" in kind else {}
        assert_close(model(PIXELS).last_hidden_state, encoder(PIXELS, **options).last_hidden_state)
    assert "ViTMAERobustModel" in printed


def timm_folder(folder, **settings):
    """A model of timm with random weights, and the folder as timm writes one."""
    architecture = settings.pop("architecture", "vit_base_patch16_224")
    model = randomised(timm.create_model(architecture, **{**PLAIN, **settings}))
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    description = {"architecture": architecture, "num_classes": model.num_classes, "model_args": {**PLAIN, **settings}}
    description["pretrained_cfg"] = {
        "input_size": [3, 16, 16],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "crop_pct": 0.8,
        "num_classes": model.num_classes,
    }
    (folder / "config.json").write_text(json.dumps(description))
    return model


def test_an_encoder_of_timm(command, tmp_path):
    there = timm_folder(tmp_path / "there", num_classes=0)
    model, _ = command(f"local-dir:{tmp_path / 'there'}")
    with torch.no_grad():
        assert_close(model(PIXELS).last_hidden_state, there.forward_features(PIXELS), rtol=1e-5, atol=1e-5)
    assert model.config.image_mean == [0.5] * 3 and model.config.layer_norm_eps == 1e-6
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert list(processor.image_std) == [0.25] * 3 and processor.size["shortest_edge"] == 20


@pytest.mark.parametrize("pooling", ["avg", "token"])
def test_a_classifier_of_timm(pooling, command, tmp_path):
    there = timm_folder(tmp_path / "there", num_classes=3, global_pool=pooling)
    model, printed = command(tmp_path / "there", model_class=BeitForImageClassification)
    with torch.no_grad():
        assert_close(model(PIXELS).logits, there(PIXELS), rtol=1e-5, atol=1e-5)
    assert "3 classes" in printed


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"reg_tokens": 2}, "register tokens"),
        ({"init_values": 0.1}, "layer scale"),
        ({"qk_norm": True}, "norm of queries and keys"),
        ({"pre_norm": True}, "norm before the blocks"),
        ({"class_token": False, "global_pool": "avg"}, "no CLS token"),
        ({"act_layer": "relu"}, "the activation ReLU"),
    ],
)
def test_other_transformers_of_timm_are_refused(settings, message, tmp_path):
    timm_folder(tmp_path / "there", num_classes=0, **settings)
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "there", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"global_pool": "avg", "fc_norm": False}, "the pooling 'avg' with the norm before it"),
        ({"global_pool": "token", "fc_norm": True}, "the pooling 'token' with the norm after it"),
        ({"global_pool": ""}, "the pooling '' with the norm before it"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "a mean that includes CLS"),
        ({"act_layer": partial(torch.nn.GELU, approximate="tanh")}, r"the activation GELU\(approximate='tanh'\)"),
    ],
)
def test_classifiers_of_timm_that_would_get_other_logits_are_refused(settings, message):
    model = timm.create_model("vit_base_patch16_224", **PLAIN, **settings, num_classes=3)
    with pytest.raises(UserError, match=message):
        from_timm(model)


@pytest.mark.parametrize("block", ["ResPostBlock", "ParallelScalingBlock", "ParallelThingsBlock"])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_other_blocks_of_timm_are_refused(block, num_classes):
    """ResPostBlock has the tensors of MAE's block, and norms after attention and MLP."""
    block_fn = getattr(vision_transformer, block)
    model = timm.create_model("vit_base_patch16_224", **PLAIN, block_fn=block_fn, num_classes=num_classes)
    with pytest.raises(UserError, match=rf"is not MAE's: it has blocks of the class {block}\.$"):
        from_timm(model)


def damaged(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(next(name for name in tensors if ".0." in name and name.endswith("weight")))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage, message", [(damaged, "lacks 1 tensor"), (truncated, "missing or damaged")])
def test_broken_checkpoints_are_refused(damage, message, tmp_path):
    ViTMAEForPreTraining(ViTMAEConfig(**SIZES)).save_pretrained(tmp_path / "there")
    damage(tmp_path / "there")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "there", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [damaged, truncated])
def test_broken_folders_of_timm_are_refused(damage, tmp_path):
    timm_folder(tmp_path / "there", num_classes=0)
    damage(tmp_path / "there")
    with pytest.raises(ValueError, match="cannot be loaded by timm"):
        convert(tmp_path / "there", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_vit_is_refused_by_name(tmp_path, capsys):
    Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path / "there"
    )
    refused = {"there": "'dinov2'", "nowhere": "nowhere: no such file or folder"}
    for source, message in ((tmp_path / name, message) for name, message in refused.items()):
        with pytest.raises(SystemExit) as ended:
            main(["convert", str(source), str(tmp_path / "out")])
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_flags_that_a_source_has_no_use_for_are_refused(tmp_path, capsys):
    ViTModel(ViTConfig(**VIT)).save_pretrained(tmp_path / "vit")
    timm_folder(tmp_path / "timm")
    for words, message in (
        ([tmp_path / "vit", "--num_attention_heads", "4"], "--num_attention_heads 4: .* is a folder or a model on the"),
        ([tmp_path / "vit", "--image_size", "8", "32"], r"--image_size \(8, 32\): .* is a folder"),
        ([tmp_path / "vit", "--checkpoint_key", "teacher"], "--checkpoint_key teacher: .* is a folder"),
        ([tmp_path / "timm", "--no-norm_pix_loss"], "--norm_pix_loss False: .* is a model of timm"),
        (["timm/vit_tiny", "--revision", "abc"], "--revision abc: .* is a model of timm"),
        ([tmp_path / "vit" / "model.safetensors"], "is a file of a model's folder. Give the folder"),
    ):
        with pytest.raises(SystemExit):
            main(["convert", *map(str, words[:1]), str(tmp_path / "out"), *words[1:]])
        assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_vit_without_a_pooler_is_not_said_to_lack_anything(tmp_path, capfd):
    ViTModel(ViTConfig(**VIT), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    main(["convert", str(tmp_path / "vit"), str(tmp_path / "out")])
    assert "pooler.dense" not in "".join(capfd.readouterr())


def test_an_official_file_of_wide_images(command, tmp_path):
    model = build(image_size=(8, 32))
    torch.save({"model": to_original(model)}, tmp_path / "mae.pth")
    words = ["--num_attention_heads", "2", "--decoder_num_attention_heads", "2", "--image_size", "8", "32"]
    found, _ = command(tmp_path / "mae.pth", *words, model_class=ViTMAERobustForPreTraining)
    assert list(found.config.image_size) == [8, 32]
    assert all(map(torch.equal, found.state_dict().values(), model.state_dict().values()))
