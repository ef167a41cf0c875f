"""Linear probes: frozen features, BatchNorm, LARS, and a stock model at the end."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.errors import CheckpointError
from hf_mae_robust.files import seal
from hf_mae_robust.finetune import finetune, make_parser, prepare
from hf_mae_robust.finetuning.classification.linear_probe import LinearProbe
from hf_mae_robust.finetuning.classification.models import (
    PROBE_HEAD_STD,
    ClassifierSettings,
    classifier_from_checkpoint,
)


@pytest.fixture
def arguments(photos_dir, encoder_dir, tmp_path):
    def build(*more):
        words = ["--linear_probe", "--dataset_name", photos_dir, "--model_name_or_path", encoder_dir]
        words += ["--output_dir", tmp_path / "out", "--per_device_train_batch_size", 8, "--num_train_epochs", 3]
        words += ["--gradient_accumulation_steps", 1, "--dataloader_num_workers", 0, "--logging_steps", 1]
        words += ["--report_to", "none", "--crop_pct", 1, "--warmup_epochs", 1, "--save_strategy", "no"]
        return make_parser().parse([str(word) for word in [*words, *more]])

    return build


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def probe_of(encoder_dir):
    torch.manual_seed(0)
    model, _ = classifier_from_checkpoint(
        ModelSource(str(encoder_dir)), ["a", "b", "c"], ClassifierSettings(pooling="cls", head_std=PROBE_HEAD_STD)
    )
    return LinearProbe(model)


def test_batch_norm_folds_into_a_stock_classifier(encoder_dir):
    probe = probe_of(encoder_dir)
    with torch.no_grad():
        for _ in range(5):
            probe(torch.randn(16, 3, 16, 16) * 2 + 1)
        probe.head[1].bias.normal_()
        images = torch.randn(6, 3, 16, 16)
        expected = probe.eval()(images).logits
        folded = probe.folded()
        torch.testing.assert_close(folded(images).logits, expected, atol=1e-6, rtol=1e-5)
        norm = torch.nn.functional.batch_norm(
            folded.beit(images).last_hidden_state[:, 0], *(probe.head[0].running_mean, probe.head[0].running_var),
            eps=1e-6,
        )  # fmt: skip
        torch.testing.assert_close(probe.head[1](norm), expected)
    assert type(folded).__name__ == "BeitForImageClassification"


def test_the_recipe_is_the_official_one(arguments):
    trainer, _ = prepare(arguments())
    optimizer = trainer.create_optimizer()
    assert type(optimizer).__name__ == "Lars" and optimizer.defaults["momentum"] == 0.9
    assert optimizer.defaults["trust_coeff"] == 0.001
    assert [group["always_adapt"] for group in optimizer.param_groups] == [True, False]
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)
    assert trainer.args.learning_rate == pytest.approx(0.1 * 8 / 256) and trainer.args.label_smoothing_factor == 0
    assert trainer.mixup is None and trainer.model.config.use_mean_pooling is False
    assert trainer.model.head[0].eps == 1e-6 and not trainer.model.head[0].affine
    assert trainer.model.head[1].weight.std() < 2 * PROBE_HEAD_STD and not trainer.model.head[1].bias.any()
    transform = repr(trainer.train_transform)
    assert "RandomResizedCrop" in transform and "RandAugment" not in transform and "RandomErasing" not in transform


def test_only_the_head_trains_and_the_result_is_a_stock_model(arguments, tmp_path, encoder_dir):
    trainer, _ = prepare(arguments())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    trainer.save_model()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        "head.0.running_mean", "head.0.running_var", "head.0.num_batches_tracked", "head.1.weight", "head.1.bias"
    }  # fmt: skip
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and model.config.id2label == {0: "a", 1: "b"}
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = trainer.model.eval()(images).logits
        torch.testing.assert_close(model(images).logits, expected, atol=1e-6, rtol=1e-5)


def test_features_that_are_computed_once_train_the_same_probe(arguments, tmp_path):
    """Without augmentation; batches, losses and evaluation are those of images that go through the encoder."""
    once = finetune(*arguments("--augmentation", "false"))
    assert set(once.cached) == {"train", "eval"} and once.cached["train"][0].shape == (40, 32)
    trainer, _ = prepare(arguments("--augmentation", "false", "--output_dir", tmp_path / "other"))
    trainer.cached = {}
    trainer.train()
    assert losses(trainer) == pytest.approx(losses(once), rel=1e-5)
    expected = json.loads((tmp_path / "out" / "all_results.json").read_text())
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    assert metrics["eval_accuracy"] == expected["eval_accuracy"]
    for mine, cached in zip(trainer.predictions, once.predictions):
        assert mine == pytest.approx(cached, rel=1e-5)


@pytest.mark.parametrize("augmentation", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_resumed_probe_equals_the_uninterrupted_one(arguments, tmp_path, augmentation):
    common = ["--augmentation", augmentation, "--save_strategy", "steps", "--save_steps", 4]
    whole = finetune(*arguments(*common, "--output_dir", tmp_path / "whole"))
    trainer, _ = prepare(arguments(*common))
    log = trainer.log

    def stop(*args, **kwargs):
        log(*args, **kwargs)
        trainer.control.should_training_stop = trainer.state.global_step == 9

    trainer.log = stop
    trainer.train()
    resumed = finetune(*arguments(*common))
    assert losses(resumed) == losses(whole)
    for name, value in resumed.model.head.state_dict().items():
        assert torch.equal(value, whole.model.head.state_dict()[name]), name


def test_a_checkpoint_is_a_whole_classifier_too_and_needs_its_head_to_go_on(arguments, tmp_path):
    saving = ["--save_strategy", "steps", "--save_steps", 15]
    trainer = finetune(*arguments(*saving))
    checkpoint = tmp_path / "out" / "checkpoint-15"
    model, info = AutoModelForImageClassification.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(model.classifier.weight, load_file(tmp_path / "out" / "model.safetensors")["classifier.weight"])
    (checkpoint / "linear_probe.safetensors").unlink()
    seal(checkpoint)
    with pytest.raises(CheckpointError, match="linear_probe.safetensors"):
        finetune(*arguments(*saving))
    assert trainer.state.global_step == 15
