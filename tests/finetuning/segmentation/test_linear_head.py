"""Segmentation by a linear layer on frozen features: what it computes, what it leaves behind, and that this is used as
its card says."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import interpolate
from transformers import BeitConfig, BeitModel, UperNetConfig

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.conversion.export import export
from hf_mae_robust.conversion.frozen import load_encoder
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.errors import CheckpointError
from hf_mae_robust.files import seal
from hf_mae_robust.finetune import finetune, main, make_parser, prepare
from hf_mae_robust.finetuning.segmentation.linear_head import has_linear_head, linear_segmenter
from hf_mae_robust.hub.uploads import files_left_behind
from tests.helpers import TINY, as_flags, losses

from .test_task import scene, write_set


@pytest.fixture(scope="module")
def scenes_dir(tmp_path_factory):
    rng = np.random.default_rng(0)
    splits = {"train": [scene(rng, 36, 48) for _ in range(24)], "validation": [scene(rng, 36, 48) for _ in range(3)]}
    return write_set(tmp_path_factory.mktemp("data") / "scenes", splits)


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    ViTMAERobustForPreTraining(ViTMAERobustConfig(**TINY)).save_pretrained(folder)
    return folder


@pytest.fixture
def words(scenes_dir, encoder_dir, tmp_path):
    """Flags of a run of 2 epochs of 3 steps; later ones win."""

    def build(*more):
        settings = {
            "config": "frozen_segmentation_small",
            "dataset_name": scenes_dir,
            "model_name_or_path": encoder_dir,
            "output_dir": tmp_path / "out",
            "image_size": 32,
            "ignore_index": 2,
            "num_train_epochs": 2,
            "base_learning_rate": 1.0,
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "eval_strategy": "no",
        }
        return as_flags(settings, *more)

    return build


@pytest.fixture
def arguments(words):
    return lambda *more: make_parser().parse(words(*more))


def test_logits_are_those_of_each_patch_token_of_the_encoder_upsampled(encoder_dir):
    model, _ = linear_segmenter(ModelSource(str(encoder_dir)), ["a", "b", "c"], 16, "sdpa", from_scratch=False)
    encoder, _ = load_encoder(str(encoder_dir), "patches")
    images = torch.randn(2, 3, 16, 16)
    weight, bias = torch.randn(3, 32), torch.randn(3)
    with torch.no_grad():
        model.head.weight.copy_(weight), model.head.bias.copy_(bias)
        found = model.eval()(images).logits
        maps = torch.stack([weight @ tokens.T + bias[:, None] for tokens in encoder(images)]).reshape(2, 3, 4, 4)
    expected = interpolate(maps, size=(16, 16), mode="bilinear")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    convolved = nn.functional.conv2d(
        encoder(images).detach().transpose(1, 2).reshape(2, 32, 4, 4), weight[..., None, None], bias
    )
    torch.testing.assert_close(maps, convolved, atol=1e-5, rtol=1e-5)


def test_only_the_head_trains_and_the_folder_is_evaluated_again(arguments, tmp_path, capsys):
    trainer, _ = prepare(arguments())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer = finetune(*arguments())
    trained = trainer.model.state_dict()
    assert {name for name, value in trained.items() if not torch.equal(value, before[name])} == {
        "head.weight", "head.bias"
    }  # fmt: skip
    assert losses(trainer)[-1] < losses(trainer)[0]
    said = capsys.readouterr().out.splitlines()
    assert any("a linear layer on the frozen encoder" in line for line in said)
    assert any("linear_head.safetensors, classes.png" in line for line in said)
    folder = tmp_path / "out"
    assert "linear_head.safetensors" in files_left_behind(folder)  # the model card loads it from the Hub
    encoder, info = BeitModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and encoder.config.id2label == {0: "ground", 1: "red", 2: "blue"}
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[f"encoder.{name}"]), name
    results = json.loads((folder / "all_results.json").read_text())
    assert 0 < results["eval_mean_iou"] < 1 and (folder / "classes.json").exists()
    evaluated = finetune(
        *make_parser().parse(
            as_flags(
                {
                    "task": "segmentation",
                    "dataset_name": arguments().data.dataset_name,
                    "model_name_or_path": folder,
                    "eval_only": True,
                    "output_dir": tmp_path / "again",
                    "ignore_index": 2,
                    "do_reduce_labels": "false",
                    "dataloader_num_workers": 0,
                    "report_to": "none",
                }
            )
        )
    )
    again = json.loads((tmp_path / "again" / "all_results.json").read_text())
    assert again["eval_mean_iou"] == results["eval_mean_iou"]
    assert np.array_equal(evaluated.confusion, trainer.confusion)
    assert "the linear head of the segmenter (linear_head.safetensors)" in export(folder, tmp_path / "stock", "beit")


def test_another_segmenter_in_the_folder_is_not_taken_for_a_frozen_one(tmp_path):
    (tmp_path / "linear_head.safetensors").write_bytes(b"")
    for config in (BeitConfig(), UperNetConfig()):
        config.save_pretrained(tmp_path)
        assert has_linear_head(ModelSource(str(tmp_path))) is (config.model_type == "beit")


def test_the_python_of_its_card_gives_what_the_trained_model_gives(arguments, tmp_path, monkeypatch):
    trainer = finetune(*arguments("--num_train_epochs", 1))
    card = (tmp_path / "out" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL).group(1)
    assert "pipeline_tag: image-feature-extraction" in card and "pipeline(" not in code and "trust_remote" not in code
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    with torch.no_grad():
        logits = trainer.model.eval()(names["inputs"]["pixel_values"]).logits
    assert torch.equal(names["classes"], logits.argmax(1)[0]) and names["classes"].shape == (32, 32)


def test_a_resumed_run_equals_the_uninterrupted_one(arguments, tmp_path):
    common = ["--save_strategy", "steps", "--save_steps", 2, "--eval_split_name", "none"]
    uninterrupted = finetune(*arguments(*common, "--output_dir", tmp_path / "other"))
    trainer, _ = prepare(arguments(*common))
    log = trainer.log

    def stop(*args, **kwargs):
        log(*args, **kwargs)
        trainer.control.should_training_stop = trainer.state.global_step == 3

    trainer.log = stop
    trainer.train()
    resumed = finetune(*arguments(*common))
    assert losses(resumed) == losses(uninterrupted) and len(losses(resumed)) == 6
    final, expected = (load_file(tmp_path / name / "linear_head.safetensors") for name in ("out", "other"))
    assert all(torch.equal(final[name], value) for name, value in expected.items())
    checkpoint = tmp_path / "out" / "checkpoint-4"
    (checkpoint / "linear_head.safetensors").unlink()
    seal(checkpoint)
    with pytest.raises(CheckpointError, match="linear_head.safetensors"):
        trainer.load_weights(str(checkpoint))


def test_the_flag_alone_has_the_recipe_of_vit_b_and_one_image_a_step_will_do(arguments):
    parse = make_parser().parse
    flags = ["--dataset_name", "x", "--output_dir", "y"]
    alone = parse(["--task", "segmentation", "--freeze_encoder", *flags])
    named = parse(["--config", "frozen_segmentation_vit_base", *flags])
    assert [str(part) for part in alone[:-1]] == [str(part) for part in named[:-1]] and named.model.freeze_encoder
    trainer, _ = prepare(arguments("--per_device_train_batch_size", 1))
    decays = [group["weight_decay"] for group in trainer.create_optimizer().param_groups]
    assert decays == [1e-4, 0] and trainer.args.train_batch_size == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "classification"], "--freeze_encoder is for --task segmentation"),
        (["--layer_decay", "0.75"], "--layer_decay 0.75 is not for --freeze_encoder"),
        (["--drop_path_rate", "0.2"], "--drop_path_rate 0.2 is not for --freeze_encoder"),
        (["--segmentation_channels", "64"], "--segmentation_channels 64 is not for --freeze_encoder"),
        (["--relative_position_bias", "true"], "--relative_position_bias True is not for --freeze_encoder"),
        (["--activation_checkpointing"], "--activation_checkpointing is not for --freeze_encoder"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(words, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        main(words(*flags))
    assert ended.value.code == 2 and message in capsys.readouterr().err
