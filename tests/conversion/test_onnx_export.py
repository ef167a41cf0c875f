"""Exported graphs give in onnxruntime what the models give in torch, without this package."""

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BeitForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_mae_robust.__main__ import main
from hf_mae_robust.conversion import onnx_export
from hf_mae_robust.conversion.beit import mae_beit_config
from hf_mae_robust.conversion.export import export
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.data.preprocessing import evaluation_processor
from hf_mae_robust.finetuning.detection.models import detector_from_scratch
from hf_mae_robust.finetuning.segmentation.models import SegmenterSettings, backbone_config
from hf_mae_robust.model.configuration_vit_mae_robust import to_pair
from tests.helpers import photos
from tests.model_helpers import ALL_ON, build, stock_of

SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 72}
GRAY = {"num_channels": 1, "image_size": (16, 24), "patch_size": (4, 8), "image_mean": [0.5], "image_std": [0.5]}
GRAY |= {"num_hidden_layers": 1}
NAMES = {"id2label": dict(enumerate(["ant", "bee", "cat"])), "label2id": {"ant": 0, "bee": 1, "cat": 2}}


def perturb(model, scale=0.2):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def saved(model, folder):
    perturb(model).save_pretrained(folder)
    return folder


def run(folder, pixel_values):
    """Name and value of the output, by onnxruntime alone."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [there.name for there in session.get_inputs()] == ["pixel_values"]
    (output,) = session.get_outputs()
    return output.name, torch.from_numpy(session.run(None, {"pixel_values": pixel_values.numpy()})[0])


@pytest.mark.parametrize("form", ["ours", pytest.param("stock", marks=pytest.mark.slow), "gray, no squares"])
def test_encoders_give_the_features_of_the_unmasked_image(form, tmp_path, capsys):
    settings = {"ours": {**ALL_ON, "num_hidden_layers": 2}, "stock": {}, "gray, no squares": GRAY}[form]
    model = perturb(build(**settings))
    (stock_of(model) if form == "stock" else model).save_pretrained(tmp_path / "model")
    main(["export", str(tmp_path / "model"), str(tmp_path / "onnx"), "--to", "onnx"])
    assert f"{tmp_path / 'onnx'}: onnx; left out: the decoder" in capsys.readouterr().out
    for count in (1, 3):
        pixel_values = torch.randn(count, model.config.num_channels, *to_pair(model.config.image_size))
        with torch.no_grad():
            expected = model.vit(pixel_values).last_hidden_state
        for _ in range(2):  # nothing is masked at random
            name, found = run(tmp_path / "onnx", pixel_values)
            assert name == "last_hidden_state"
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["mean", "cls", "dinov2"])
def test_classifiers(form, tmp_path):
    if form == "dinov2":
        model = Dinov2ForImageClassification(Dinov2Config(**{**SIZES, "mlp_ratio": 2}, **NAMES))
    else:
        model = BeitForImageClassification(mae_beit_config(**SIZES, **NAMES, use_mean_pooling=form == "mean"))
    saved(model, tmp_path / "model")
    evaluation_processor(32, 0.8, 3, [0.4, 0.5, 0.6], [0.3, 0.2, 0.1]).save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "onnx", "onnx")
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {
        "model.onnx", "config.json", "preprocessor_config.json"
    }  # fmt: skip
    config = AutoConfig.from_pretrained(tmp_path / "onnx")
    assert config.id2label == NAMES["id2label"] and config.architectures == [type(model).__name__]

    # From a picture, as whoever serves it would; the other side is what was exported, loaded again.
    picture = photos(1, size=50)[0]
    inputs = AutoImageProcessor.from_pretrained(tmp_path / "onnx")(picture, return_tensors="np")["pixel_values"]
    assert inputs.shape == (1, 3, 32, 32) and abs(inputs).max() > 1
    reference = AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    for batch in (inputs, np.concatenate([inputs, inputs[..., ::-1], -inputs])):
        pixel_values = torch.from_numpy(np.ascontiguousarray(batch, dtype=np.float32))
        name, found = run(tmp_path / "onnx", pixel_values)
        with torch.no_grad():
            torch.testing.assert_close(found, reference(pixel_values).logits, rtol=0, atol=1e-4)
        assert name == "logits" and found.std() > 0.01


@pytest.mark.slow  # encoders are quick
def test_a_graph_names_no_folder_of_this_machine(tmp_path):
    build().save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), tmp_path / "out", "onnx")
    content = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert not any(str(Path(file).parents[1]).encode() in content for file in (onnx_export.__file__, torch.__file__))


@pytest.mark.slow  # encoders are quick
def test_a_segmenter(tmp_path):
    encoder = build(**{**SIZES, "num_hidden_layers": 4}).config
    config = UperNetConfig(
        backbone_config=backbone_config(encoder, 32, SegmenterSettings(drop_path_rate=0.1)),
        hidden_size=8,
        pool_scales=[1, 2],
        **NAMES,
    )
    model = UperNetForSemanticSegmentation(config)
    saved(model, tmp_path / "model")
    left_out = export(tmp_path / "model", tmp_path / "onnx", "onnx")
    assert "the auxiliary head" in left_out
    for count in (1, 3):
        pixel_values = torch.randn(count, 3, 32, 32)
        name, found = run(tmp_path / "onnx", pixel_values)
        with torch.no_grad():
            expected = model(pixel_values).logits
        assert name == "logits" and found.shape == (count, 3, 32, 32)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * max(1, expected.abs().max().item()))


def test_a_detector_is_refused(tmp_path):
    model, _ = detector_from_scratch(ModelSource(None, {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 4,
        "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8, "fpn_channels": 8}), ["a"])  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="ViTMAERobustForInstanceSegmentation; one of .* can be exported to onnx"):
        export(tmp_path / "model", tmp_path / "onnx", "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_graph_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    saved(build(num_hidden_layers=1), tmp_path / "model")
    run_session = onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda *args: [value + 1e-2 for value in run_session(*args)]
    )
    with pytest.raises(ValueError, match="does not compute what ViTModel does: last_hidden_state of 1"):
        export(tmp_path / "model", tmp_path / "onnx", "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("absent", ["onnx", "onnxscript", "onnxruntime"])
def test_without_a_package_the_error_says_how_to_install_it(absent, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == absent else find(name, *args))
    with pytest.raises(SystemExit) as stop:
        main(["export", str(tmp_path / "model"), str(tmp_path / "onnx"), "--to", "onnx"])
    assert stop.value.code == 2
    assert f'--to onnx needs {absent}: pip install ".[onnx]"' in capsys.readouterr().err
