import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_mae_robust import ViTMAERobustForPreTraining
from hf_mae_robust.errors import CheckpointError
from hf_mae_robust.files import seal
from hf_mae_robust.pretrain import make_parser, prepare, pretrain
from tests.helpers import TINY_OVERRIDES

ALL_ON = ["--target_normalization", "global_patch", "--target_statistics", "auto", "--mid_mask_ratio", "0.25"]


@pytest.fixture
def arguments(photos_dir, tmp_path):
    def build(*words):
        defaults = {
            "dataset_name": str(photos_dir),
            "config_overrides": TINY_OVERRIDES,
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": "8",
            "num_train_epochs": "2",
            "dataloader_num_workers": "0",
            "logging_steps": "1",
            "report_to": "none",
            "crop_pct": "1.0",
        }
        words_of_defaults = [word for name, value in defaults.items() for word in (f"--{name}", value)]
        return make_parser(prog="run_pretrain.py").parse(words_of_defaults + list(words))

    return build


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_every_parameter_trains_and_positions_and_statistics_do_not(arguments, streaming):
    trainer, checkpoint = prepare(arguments(*ALL_ON, "--dataset_streaming", streaming))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train(resume_from_checkpoint=checkpoint)
    fixed = {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    fixed |= {"target_normalizer.mean", "target_normalizer.std"}
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]) is (name in fixed), name
    assert trainer.state.global_step == 10 and trainer.state.epoch == 2


def test_accumulated_steps_equal_one_large_batch(arguments, tmp_path):
    off = ["--decoder_attention_probs_dropout_prob", "0", "--max_grad_norm", "0", "--num_train_epochs", "1"]
    large = pretrain(*arguments(*off))
    accumulated = pretrain(
        *arguments(
            *off, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4",
            "--output_dir", str(tmp_path / "accumulated"),
        )
    )  # fmt: skip
    assert losses(accumulated) == pytest.approx(losses(large), rel=1e-5)
    expected = dict(large.model.named_parameters())
    for name, parameter in accumulated.model.named_parameters():
        # Softmax does not feel the bias of the keys: its gradient is rounding, which Adam makes as large as any other.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-5)


def train_until(trainer, step):
    def stop():
        if trainer.state.global_step == step:
            trainer.control.should_training_stop = True

    log = trainer.log
    trainer.log = lambda *args, **kwargs: (log(*args, **kwargs), stop())
    trainer.train()
    assert trainer.state.global_step == step


# Within a later epoch, streamed; the others are slow.
@pytest.mark.parametrize(
    ("cut", "streaming"),
    [
        (8, "true"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [(3, "false"), (3, "true"), (5, "false"), (5, "true"), (8, "false")]
        ),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(arguments, tmp_path, streaming, cut):
    """In the middle of the first and second epoch and between them, with dropout and augmentation on: bit by bit."""
    common = [*ALL_ON, "--dataset_streaming", streaming, "--save_strategy", "steps", "--save_steps", str(cut)]
    whole = pretrain(*arguments(*common, "--output_dir", str(tmp_path / "whole")))
    interrupted = arguments(*common)
    trainer, _ = prepare(interrupted)
    trainer.args.save_total_limit = None

    train_until(trainer, cut)
    resumed = pretrain(*arguments(*common))
    assert losses(resumed) == losses(whole)
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def test_repeated_augmentation_resumes_exactly_and_only_with_as_many_views(arguments, tmp_path, capsys):
    """40 images in batches of 8: an epoch has 10 steps with 2 views of each, 5 without."""
    steps = ["--save_strategy", "steps", "--save_steps", "7"]
    common = [*steps, "--repeated_augmentation", "2"]
    whole = pretrain(*arguments(*common, "--output_dir", str(tmp_path / "whole")))
    assert whole.state.global_step == 20 and whole.state.epoch == 2
    assert "2 views of each" in capsys.readouterr().out
    trainer, _ = prepare(arguments(*common))
    train_until(trainer, 7)
    with pytest.raises(CheckpointError, match="repeated_augmentation: 2 there, None here"):
        prepare(arguments(*steps))
    assert losses(pretrain(*arguments(*common))) == losses(whole)


def test_a_checkpoint_with_a_missing_tensor_is_refused_by_name(arguments, tmp_path):
    from safetensors.torch import save_file

    pretrain(*arguments("--save_strategy", "steps", "--save_steps", "5"))
    path = tmp_path / "out" / "checkpoint-10" / "model.safetensors"
    tensors = load_file(path)
    missing = next(name for name in tensors if "layer.1.output.dense.weight" in name)
    del tensors[missing]
    save_file(tensors, path, metadata={"format": "pt"})
    seal(path.parent)
    with pytest.raises(CheckpointError, match=r"vit\.layers\.1\.mlp\.fc2\.weight"):
        pretrain(*arguments("--save_strategy", "steps", "--save_steps", "5"))


def test_the_trainers_own_way_to_resume_passes_over_a_broken_checkpoint(arguments, tmp_path):
    words = ["--save_strategy", "steps", "--save_steps", "4"]
    whole = pretrain(*arguments(*words))
    (tmp_path / "out" / "checkpoint-10" / "optimizer.pt").unlink()
    trainer, _ = prepare(arguments(*words, "--output_dir", str(tmp_path / "other")))
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        trainer.train(resume_from_checkpoint=True)
    trainer.args.output_dir = str(tmp_path / "out")
    trainer.train(resume_from_checkpoint=True)
    assert losses(trainer) == losses(whole)


def test_evaluation_is_the_mean_over_images_with_fixed_masks(arguments):
    """Against a loop over single images; the last batch is short, and the batch size must not matter."""
    trainer, _ = prepare(arguments("--per_device_eval_batch_size", "4"))
    first = trainer.evaluate()
    assert trainer.evaluate()["eval_loss"] == first["eval_loss"]
    other, _ = prepare(arguments("--per_device_eval_batch_size", "11"))
    assert other.evaluate()["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-6)
    singles, means = [], []
    model = trainer.model.eval()
    for batch in trainer.get_eval_dataloader():
        images = trainer._prepare_inputs({"pixel_values": batch["pixel_values"]})["pixel_values"]
        for row, image, noise in zip(batch["row"], images, batch["noise"]):
            if row >= 0:
                with torch.no_grad():
                    output = model(image[None], noise=noise[None])
                singles.append(output.loss.item())
                target = model.compute_target(image[None])
                means.append(((target**2).mean(-1) * output.mask).sum().item() / output.mask.sum().item())
    assert len(singles) == 11
    assert first["eval_loss"] == pytest.approx(np.mean(singles), rel=1e-5)
    assert first["eval_loss_of_mean"] == pytest.approx(np.mean(means), rel=1e-5)


def test_batches_are_normalised_as_the_image_processor_does(arguments):
    trainer, _ = prepare(arguments())
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    ours = trainer._prepare_inputs({"pixel_values": pixels})["pixel_values"]
    expected = trainer.processing_class(images=list(pixels), return_tensors="pt").pixel_values
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_learning_rate_rule_warm_up_and_schedule(arguments):
    trainer = pretrain(*arguments("--base_learning_rate", "0.256", "--num_train_epochs", "4", "--warmup_epochs", "1"))
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    peak, warmup, total = 0.256 * 8 / 256, 5, 20
    for step, rate in enumerate(rates):
        expected = (
            step / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        )
        assert rate == pytest.approx(peak * expected, abs=1e-12)


def test_an_explicit_learning_rate_wins(arguments):
    trainer, _ = prepare(arguments("--learning_rate", "0.123"))
    assert trainer.args.learning_rate == 0.123


def test_output_folder(arguments, tmp_path):
    trainer = pretrain(*arguments(*ALL_ON))
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "reconstructions.png", "loss.png"} <= names
    assert {"all_results.json", "target_statistics.safetensors", "modeling_vit_mae_robust.py"} <= names
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in out.iterdir() if path.is_file()} == {(tmp_path / "new").stat().st_mode}
    assert not any(path.suffix in (".bin", ".pkl", ".pth") for path in out.iterdir())
    results = json.loads((out / "all_results.json").read_text())
    assert {"train_loss", "eval_loss", "eval_loss_of_mean", "epoch"} <= set(results)
    model, info = ViTMAERobustForPreTraining.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name
    assert "vit.encoder.layer.0.attention.attention.query.weight" in load_file(out / "model.safetensors")


def test_bf16_and_activation_checkpointing_train(arguments):
    trainer = pretrain(*arguments(*ALL_ON, "--bf16", "--activation_checkpointing", "--num_train_epochs", "1"))
    assert all(np.isfinite(losses(trainer)))
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_statistics_of_some_images_are_told_and_part_of_the_record(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    words = [*ALL_ON, "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]
    trainer = pretrain(*arguments(*words, "--statistics_samples", "16"))
    assert "Statistics of 16 random of 40 images: standard error of the mean" in capsys.readouterr().out
    some = load_file(tmp_path / "out" / "target_statistics.safetensors")["mean"].float()
    assert torch.equal(trainer.model.target_normalizer.mean, some)
    with pytest.raises(CheckpointError, match="statistics_samples: 16 there, None here"):
        prepare(arguments(*words))
    prepare(arguments(*words, "--overwrite_output_dir"))
    everything = load_file(tmp_path / "out" / "target_statistics.safetensors")["mean"].float()
    assert "random of" not in capsys.readouterr().out and not torch.equal(everything, some)
