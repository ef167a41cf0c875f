"""LoRA adapters: what trains, what is written, that peft and transformers load it, that runs resume exactly."""

import json

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification, pipeline

from hf_mae_robust import ViTMAERobustModel
from hf_mae_robust.errors import CheckpointError
from hf_mae_robust.files import seal
from hf_mae_robust.finetune import finetune, main, make_parser, prepare
from tests.helpers import as_flags, finetuning_settings, losses, photos

LORA = ["--lora_r", 3, "--lora_alpha", 6]


@pytest.fixture
def words(photos_dir, encoder_dir, tmp_path):
    """Flags of a run of 2 epochs of 5 steps; later ones win."""

    def build(*more):
        settings = finetuning_settings(photos_dir, encoder_dir, tmp_path / "out") | {"base_learning_rate": 0.5}
        return as_flags(settings, *LORA, *more)

    return build


@pytest.fixture
def arguments(words):
    return lambda *more: make_parser().parse(words(*more))


def logits(model, pixel_values):
    with torch.no_grad():
        return model.eval()(pixel_values).logits


def test_only_adapter_head_and_norm_train_and_all_of_them_do(arguments):
    trainer, _ = prepare(arguments())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    matrices = [f"q_proj.lora_{half}" for half in "AB"] + [f"v_proj.lora_{half}" for half in "AB"]
    names = [f"beit.layers.{i}.attention.{name}.default.weight" for i in (0, 1) for name in matrices]
    for module in ("classifier.modules_to_save.default", "beit.pooler.modules_to_save.default.layernorm"):
        names += [f"{module}.weight", f"{module}.bias"]
    assert changed == {f"base_model.model.{name}" for name in names}


def test_what_is_written_loads_in_peft_and_in_transformers(arguments, encoder_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the output folder lies outside, the base is named `base`: test_portable.py
    trainer = finetune(*arguments())
    out, pixel_values = tmp_path / "out", torch.randn(3, 3, 16, 16)
    expected = logits(trainer.model, pixel_values)
    merged, info = AutoModelForImageClassification.from_pretrained(out, output_loading_info=True)
    assert type(merged).__name__ == "BeitForImageClassification" and not any(info.values())
    assert merged.config.id2label == {0: "a", 1: "b"}
    base = AutoModelForImageClassification.from_pretrained(out / "base")
    assert (logits(base, pixel_values) - expected).abs().max() > 1e-3, "the adapter does nothing"
    by_peft = PeftModel.from_pretrained(base, out / "adapter")
    by_transformers = AutoModelForImageClassification.from_pretrained(out / "adapter")
    for model in (merged, by_peft, AutoPeftModel.from_pretrained(out / "adapter"), by_transformers):
        torch.testing.assert_close(logits(model, pixel_values), expected, rtol=0, atol=1e-5)
    settings = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "out/base" and settings["r"] == 3
    assert {path.name for path in (out / "adapter").iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "preprocessor_config.json"
    }  # fmt: skip
    assert not list(out.rglob("_staging"))

    # The formula of the LoRA paper, by hand.
    adapter, there = (
        load_file(out / "adapter" / "adapter_model.safetensors"),
        "base_model.model.beit.layers.0.attention",
    )
    product = adapter[f"{there}.q_proj.lora_B.weight"] @ adapter[f"{there}.q_proj.lora_A.weight"]
    started_from = ViTMAERobustModel.from_pretrained(encoder_dir).layers[0].attention.q_proj.weight
    update = merged.beit.layers[0].attention.q_proj.weight - started_from
    torch.testing.assert_close(update, product * 6 / 3, rtol=1e-4, atol=1e-6)


def test_the_pipeline_runs_the_adapter_and_eval_only_the_merged_model(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finetune(*arguments())
    out = tmp_path / "out"
    results = json.loads((out / "all_results.json").read_text())
    picture = Image.fromarray(photos(1)[0])
    found = [pipeline("image-classification", str(folder))(picture) for folder in (out, out / "adapter")]
    assert {one["label"]: one["score"] for one in found[0]} == pytest.approx(
        {one["label"]: one["score"] for one in found[1]}, abs=1e-5
    )
    once_more = ["--eval_only", "--model_name_or_path", out, "--output_dir", tmp_path / "again"]
    finetune(*arguments(*once_more))
    again = json.loads((tmp_path / "again" / "all_results.json").read_text())
    assert again["eval_loss"] == pytest.approx(results["eval_loss"], abs=1e-5)


@pytest.mark.slow  # that of the classifier is quick
def test_a_resumed_run_equals_the_uninterrupted_one(arguments, tmp_path):
    """With dropout in the adapter, mixup and drop path: bit by bit, from checkpoints that do not hold the encoder."""
    common = ["--save_strategy", "steps", "--save_steps", 3, "--lora_dropout", 0.2]
    whole = finetune(*arguments(*common, "--output_dir", tmp_path / "whole"))
    trainer, _ = prepare(arguments(*common))
    log = trainer.log

    def stop(*args, **kwargs):
        log(*args, **kwargs)
        trainer.control.should_training_stop = trainer.state.global_step == 7

    trainer.log = stop
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-6"
    assert not (checkpoint / "model.safetensors").exists() and trainer.state.global_step == 7
    resumed = finetune(*arguments(*common))
    assert losses(resumed) == losses(whole)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_best_adapter_is_the_one_that_is_saved(arguments, tmp_path):
    trainer = finetune(
        *arguments(
            "--load_best_model_at_end", "--save_strategy", "epoch", "--eval_strategy", "epoch", "--num_train_epochs", 3,
            "--metric_for_best_model", "loss", "--greater_is_better", "true", "--base_learning_rate", 2,
        )
    )  # fmt: skip
    evaluated = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    worst = max(evaluated, key=evaluated.get)
    kept = tmp_path / "out" / f"checkpoint-{worst}" / "adapter_model.safetensors"
    final = tmp_path / "out" / "adapter" / "adapter_model.safetensors"
    assert all(torch.equal(value, load_file(final)[name]) for name, value in load_file(kept).items())


def test_another_encoder_other_settings_or_a_missing_tensor_are_refused(arguments, encoder_dir, tmp_path):
    saving = ["--save_strategy", "steps", "--save_steps", 5, "--max_steps", 5]
    finetune(*arguments(*saving))
    other = ViTMAERobustModel.from_pretrained(encoder_dir)
    with torch.no_grad():
        other.layers[0].mlp.fc1.weight[0, 0] += 1e-3
    other.save_pretrained(tmp_path / "other")
    for change, message in (
        (["--model_name_or_path", tmp_path / "other"], r"weights of the encoder \(SHA-256\)"),
        (["--lora_alpha", 3], "'alpha': 6.0.*'alpha': 3.0"),
        (["--lora_target_modules", "fc1"], "target_modules"),
    ):
        with pytest.raises(CheckpointError, match=message):
            finetune(*arguments(*saving, *change))
    path = tmp_path / "out" / "checkpoint-5" / "adapter_model.safetensors"
    left = load_file(path)
    del left["base_model.model.beit.layers.1.attention.v_proj.lora_B.weight"]
    save_file(left, path)
    seal(path.parent)
    with pytest.raises(CheckpointError, match=r"layers\.1\.attention\.v_proj\.lora_B"):
        finetune(*arguments(*saving))


def test_a_run_without_an_adapter_does_not_go_on_from_one(arguments, words):
    finetune(*arguments("--save_strategy", "steps", "--save_steps", 5, "--max_steps", 5))
    plain = words("--save_strategy", "steps", "--save_steps", 5, "--max_steps", 5)
    del plain[plain.index("--lora_r") : plain.index("--lora_r") + 4]
    with pytest.raises(CheckpointError, match="lora: "):
        finetune(*make_parser().parse(plain))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_all_linear_layers_of_the_blocks(arguments, pooling):
    trainer, _ = prepare(arguments("--lora_target_modules", "all-linear", "--pooling", pooling))
    adapted = {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in trainer.model.named_parameters() if "lora_A" in name
    }
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"}
    trainer.create_optimizer()
    rates = {round(group["lr"] / trainer.args.learning_rate, 6) for group in trainer.optimizer.param_groups}
    assert rates == {round(0.65**2, 6), 0.65, 1.0}  # two blocks and the head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lora_r", 0], "--lora_r 0: must be at least 1"),
        (["--lora_alpha", 0], "--lora_alpha 0"),
        (["--lora_dropout", 1], "--lora_dropout 1"),
        (["--lora_target_modules", "query"], "has this name; there are fc1, fc2, k_proj, o_proj, q_proj, v_proj"),
        (["--linear_probe"], "not together with --linear_probe"),
        (["--task", "segmentation"], "--lora_r works only with --task classification"),
        (["--model_ema_decay", 0.9], "--model_ema_decay is not for --lora_r"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_settings_that_cannot_be_are_refused(words, capsys, tmp_path, change, message):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words(*change)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and "Traceback" not in error
    assert not list(tmp_path.glob("out/*"))


def test_without_peft_the_error_says_how_to_install_it(words, monkeypatch, capsys):
    monkeypatch.setattr("hf_mae_robust.finetuning.arguments.is_peft_available", lambda: False)
    with pytest.raises(SystemExit):
        main([str(word) for word in words()])
    assert 'pip install ".[peft]"' in capsys.readouterr().err


def test_the_encoder_takes_an_adapter_from_peft(encoder_dir, tmp_path):
    """As a peft user would: forward, backward, save, reload on the encoder."""
    encoder = ViTMAERobustModel.from_pretrained(encoder_dir)
    pixel_values = torch.randn(2, 3, 16, 16)
    plain = encoder.eval()(pixel_values).last_hidden_state.detach()
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(encoder, config)
    adapted(pixel_values).last_hidden_state.square().mean().backward()
    grown = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert grown and all("lora_" in name for name in grown)
    expected = adapted.eval()(pixel_values).last_hidden_state.detach()
    adapted.save_pretrained(tmp_path / "adapter")
    for model in (
        PeftModel.from_pretrained(AutoModel.from_pretrained(encoder_dir), tmp_path / "adapter"),
        AutoModel.from_pretrained(tmp_path / "adapter"),
    ):
        torch.testing.assert_close(model.eval()(pixel_values).last_hidden_state.detach(), expected)
    assert (expected - plain).abs().max() > 1e-3
