"""Attentive probes: what they compute, that the encoder is frozen, and a folder that stock transformers runs."""

import json

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForImageClassification, Dinov2Config, Dinov2Model, pipeline

from hf_mae_robust.conversion.frozen import load_encoder
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.finetune import finetune, main, make_parser, prepare
from hf_mae_robust.finetuning.classification.attentive_probe import attentive_probe
from hf_mae_robust.finetuning.classification.models import ClassifierSettings, classifier_from_checkpoint


@pytest.fixture
def words(photos_dir, encoder_dir, tmp_path):
    def build(*more):
        words = ["--probe", "attentive", "--dataset_name", photos_dir, "--model_name_or_path", encoder_dir]
        words += ["--output_dir", tmp_path / "out", "--per_device_train_batch_size", 8, "--num_train_epochs", 3]
        words += ["--base_learning_rate", 0.1, "--dataloader_num_workers", 0, "--logging_steps", 1]
        words += ["--report_to", "none", "--crop_pct", 1, "--warmup_epochs", 1, "--save_strategy", "no"]
        return [str(word) for word in [*words, *more]]

    return build


@pytest.fixture
def arguments(words):
    return lambda *more: make_parser().parse(words(*more))


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def heads_of(tensor, num_heads):
    """`(N, d)` -> `(num_heads, N, d / num_heads)`"""
    return tensor.unflatten(-1, (num_heads, -1)).transpose(0, 1)


def test_logits_are_those_of_attention_written_out_on_the_patch_tokens_of_the_encoder(encoder_dir):
    settings = ClassifierSettings(pooling="cls")
    classifier, _ = classifier_from_checkpoint(ModelSource(str(encoder_dir)), ["a", "b", "c"], settings)
    probe = attentive_probe(classifier, 0.01).eval()
    encoder, _ = load_encoder(str(encoder_dir), "patches")
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    pool, num_heads = probe.timm_model.attn_pool, encoder.model.config.num_attention_heads
    with torch.no_grad():
        for name, parameter in probe.timm_model.named_parameters():
            if name.startswith(("attn_pool", "head")):
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        for image, logits in zip(images, probe(images).logits):
            tokens = encoder(image[None])[0]
            query = heads_of(pool.q(pool.latent[0]), num_heads)
            keys, values = (heads_of(part, num_heads) for part in pool.kv(tokens).chunk(2, dim=-1))
            weights = (query @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(dim=-1)
            pooled = pool.proj((weights @ values).transpose(0, 1).flatten(1))
            normed = nn.functional.layer_norm(pooled, pooled.shape[-1:], pool.norm.weight, pool.norm.bias, eps=1e-6)
            pooled = pooled + pool.mlp.fc2(nn.functional.gelu(pool.mlp.fc1(normed)))
            torch.testing.assert_close(probe.timm_model.head(pooled)[0], logits, atol=1e-4, rtol=1e-4)


def test_a_probe_learns_a_few_images(encoder_dir):
    torch.manual_seed(0)
    classifier, _ = classifier_from_checkpoint(
        ModelSource(str(encoder_dir)), ["a", "b"], ClassifierSettings(pooling="cls")
    )
    probe = attentive_probe(classifier, 0.01)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 2
    optimizer = torch.optim.AdamW([each for each in probe.parameters() if each.requires_grad], lr=0.01)
    for _ in range(40):
        loss = nn.functional.cross_entropy(probe(images).logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1


def test_only_the_head_trains_and_the_folder_runs_in_stock_transformers(arguments, tmp_path, photos_dir):
    trainer, _ = prepare(arguments())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer = finetune(*arguments())
    trained = trainer.model.state_dict()
    changed = {name for name, value in trained.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in trained if name.startswith(("timm_model.attn_pool.", "timm_model.head."))}
    assert "AdamW" in type(trainer.create_optimizer().optimizer).__name__
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and model.config.id2label == {0: "a", 1: "b"}
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.eval()(images).logits, trainer.model.cpu().eval()(images).logits)
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    classify = pipeline("image-classification", str(tmp_path / "out"))
    validation = Dataset.from_parquet(str(photos_dir / "data" / "validation-*.parquet"))
    right = [classify(row["image"])[0]["label"] == "ab"[row["label"]] for row in validation]
    assert results["eval_accuracy"] == pytest.approx(sum(right) / len(right))
    assert results["eval_accuracy_ci95_low"] <= results["eval_accuracy"] <= results["eval_accuracy_ci95_high"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'pipeline("image-classification", "out")' in card and "2 blocks of width 32" in card

    again = ["--eval_only", "--model_name_or_path", tmp_path / "out", "--output_dir", tmp_path / "again"]
    finetune(*arguments(*again))
    evaluated = json.loads((tmp_path / "again" / "all_results.json").read_text())
    for name in ("eval_loss", "eval_accuracy", "eval_accuracy_ci95_low"):
        assert evaluated[name] == pytest.approx(results[name], abs=1e-6)


@pytest.mark.slow  # test_linear_probe.py has its like
def test_a_resumed_probe_equals_the_uninterrupted_one(arguments, tmp_path):
    common = ["--save_strategy", "steps", "--save_steps", 2, "--eval_strategy", "no", "--num_train_epochs", 1]
    common += ["--warmup_epochs", 0.2, "--eval_split_name", "none"]
    uninterrupted = finetune(*arguments(*common, "--output_dir", tmp_path / "other"))
    trainer, _ = prepare(arguments(*common))
    log = trainer.log

    def stop(*args, **kwargs):
        log(*args, **kwargs)
        trainer.control.should_training_stop = trainer.state.global_step == 3

    trainer.log = stop
    trainer.train()
    resumed = finetune(*arguments(*common))
    assert losses(resumed) == losses(uninterrupted)
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, uninterrupted.model.state_dict()[name]), name


def test_linear_is_another_name_of_linear_probe(words):
    parse = make_parser().parse
    flags = words()[2:]
    assert parse(["--probe", "linear", *flags])[1:] == parse(["--linear_probe", *flags])[1:]
    assert parse(["--probe", "linear", *flags]).model.linear_probe


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--linear_probe"], "--probe attentive contradicts --linear_probe"),
        (["--config", "linear_probe_vit_base"], "--probe attentive contradicts --linear_probe"),
        (["--lora_r", "2"], "--lora_r is not for --probe attentive"),
        (["--task", "segmentation"], "--probe is for --task classification"),
        (["--layer_decay", "0.75"], "--layer_decay 0.75 is not for --probe attentive"),
        (["--drop_path_rate", "0.2"], "--drop_path_rate 0.2 is not for --probe attentive"),
        (["--pooling", "mean"], "--pooling mean is not for --probe attentive"),
        (["--attn_implementation", "eager"], "--attn_implementation eager is not for --probe attentive"),
        (["--activation_checkpointing"], "--activation_checkpointing is not for --probe attentive"),
        (["--model_ema_decay", "0.9"], "--model_ema_decay is not for --probe attentive"),
    ],
)
def test_flags_that_would_be_ignored_are_refused(words, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        main(words(*flags))
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_an_encoder_that_is_not_maes_vit_is_refused_by_name(words, tmp_path, capsys):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dino")
    with pytest.raises(SystemExit):
        main(words("--model_name_or_path", tmp_path / "dino"))
    assert "--probe attentive is for plain ViTs as MAE's, and this is a 'dinov2'" in capsys.readouterr().err


def test_another_model_of_timm_is_not_evaluated(words, tmp_path, capsys):
    folder = tmp_path / "timm"
    folder.mkdir()
    content = {"architecture": "resnet18", "num_classes": 2, "label_names": ["a", "b"], "model_type": "timm_wrapper"}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        main(words("--eval_only", "--model_name_or_path", folder))
    assert "what --probe attentive has written" in capsys.readouterr().err
