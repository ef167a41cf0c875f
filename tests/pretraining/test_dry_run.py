"""--dry_run against the model and the Trainer that the same arguments give."""

import re

import pytest

from hf_mae_robust.pretrain import main, make_parser, prepare
from hf_mae_robust.pretraining.adapting import freeze_blocks
from hf_mae_robust.pretraining.cost import memory
from tests.helpers import TINY_OVERRIDES, as_flags
from tests.model_helpers import build


@pytest.fixture
def settings(photos_dir, tmp_path):
    return {
        "dataset_name": photos_dir,
        "config_overrides": TINY_OVERRIDES,
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 3,
        "num_train_epochs": 5,
        "warmup_epochs": 1,
        "mid_mask_ratio": 0.25,
        "dataloader_num_workers": 0,
        "report_to": "none",
    }


def plan_of(capsys, settings, *more):
    main(as_flags(settings, "--dry_run", *more))
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line for line in lines if line.startswith("  ")}


@pytest.mark.parametrize(
    "more", [[], ["--repeated_augmentation", 2], ["--max_steps", 7, "--warmup_steps", 2], ["--num_train_epochs", 1.3]]
)
def test_the_plan_is_that_of_the_run_and_leaves_nothing_behind(settings, capsys, more):
    plan = plan_of(capsys, settings, *more, "--images_per_second", 10)
    assert not settings["output_dir"].exists()
    trainer, _ = prepare(make_parser().parse(as_flags(settings, *more)))
    assert re.search(r"effective batch (\d+)", plan["steps"])[1] == str(
        trainer.get_total_train_batch_size(trainer.args)
    )
    assert f"{trainer.args.learning_rate:.3g}" in plan["rate"]
    trainer.train()
    steps = trainer.state.max_steps
    assert plan["steps"].split()[1] == f"{steps:,}"
    assert f"{steps * 12 / 10 / 3600:,.3g} h at 10 images/s" in plan["time"]
    parts = {
        "encoder": sum(p.numel() for p in trainer.model.vit.parameters()),
        "decoder": sum(p.numel() for name, p in trainer.model.named_parameters() if not name.startswith("vit.")),
    }
    assert all(f"{name} {number / 1e6:,.2f} M" in plan["parameters"] for name, number in parts.items())
    # 16 patches: 4 visible, 4 joined by 25%, 12 masked.
    assert "encoder 0: 5, encoder 1: 9, decoder 0: 17 (masked patches: 12)" in plan["tokens"]


def test_frozen_blocks_have_no_gradients(settings, tmp_path, capsys):
    model = build()
    model.save_pretrained(tmp_path / "encoder")
    settings = {**settings, "encoder_from": tmp_path / "encoder"}
    for name in ("config_overrides", "mid_mask_ratio"):
        settings.pop(name, None)
    freeze_blocks(model, 2)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    plan = plan_of(capsys, settings, "--freeze_blocks", 2)
    assert f"{trained / 1e6:,.2f} M of them trained" in plan["parameters"]
    assert memory(model.config, 1, frozen_blocks=2).optimizer == 2 * 4 * trained


def test_of_the_paper(settings, capsys):
    """111.9 M parameters of the official ViT-B with decoder; 50 tokens, 99 from block 8 on (section 3.4)."""
    plan = plan_of(capsys, {**settings, "config_overrides": "image_size=224"}, "--per_device_train_batch_size", 8)
    assert "encoder 85.80 M, decoder 26.11 M" in plan["parameters"]
    assert "encoder 0 to 7: 50, encoder 8 to 11: 99, decoder 0 to 7: 197 (masked patches: 147)" in plan["tokens"]
    half = plan_of(capsys, {**settings, "config_overrides": "image_size=224"}, "--decoder_keep_ratio", 0.5)
    assert "decoder 0 to 7: 124 (masked patches: 147, 74 of them reconstructed in a step)" in half["tokens"]
    operations = [float(re.search(r"([\d.]+) in training", each["operations"])[1]) for each in (half, plan)]
    assert operations[0] < 0.85 * operations[1]
    assert "h at 1,000 images/s" in plan["time"]


def test_smaller_images_cost_what_a_model_of_their_size_costs(settings, capsys):
    """8, 12 and 16 px in 30%, 40% and 30% of the steps, against plans of models that are made for these sizes."""

    def operations(size):
        overrides = TINY_OVERRIDES.replace("image_size=16", f"image_size={size}")
        plan = plan_of(capsys, {**settings, "config_overrides": overrides})
        return float(re.search(r"([\d.]+) in training", plan["operations"])[1])

    small, middle, large = map(operations, (8, 12, 16))
    without = plan_of(capsys, settings, "--images_per_second", 1)
    plan = plan_of(capsys, settings, "--images_per_second", 1, "--resolution_schedule", "8:0.3,12:0.7,16:1")
    assert f"8 px up to 30% (4 patches, {small:g} GFLOP an image in training), 12 px up to 70% (9" in plan["sizes"]
    share = (0.3 * small + 0.4 * middle + 0.3 * large) / large
    assert float(re.search(r": (\d+)% of the operations of 16 px", plan["sizes"])[1]) == pytest.approx(
        100 * share, abs=1
    )
    hours, full = (float(re.search(r"([\d.]+) h", each["time"])[1]) for each in (plan, without))
    assert hours == pytest.approx(full * share, rel=0.02)
    assert {name: plan[name] for name in ("steps", "rate", "memory", "operations")} == {
        name: without[name] for name in ("steps", "rate", "memory", "operations")
    }


def test_what_is_wrong_is_said_as_in_a_run(settings, capsys):
    with pytest.raises(SystemExit) as stop:
        main(as_flags(settings, "--dry_run", "--repeated_augmentation", 3))
    assert stop.value.code == 2 and "--repeated_augmentation 3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(as_flags(settings, "--dry_run", "--images_per_second", 0))
    assert "--images_per_second 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--statistics_samples", 10], "--statistics_samples 10: this run computes no statistics"),
        (["--freeze_blocks", 9], "--freeze_blocks 9: the encoder has"),
        (["--config_overrides", "hidden_size=96"], "there and 96 asked for"),
        (["--target_normalization", "global_patch"], "global_patch needs --target_statistics"),
        (["--target_statistics", "auto"], "--target_statistics auto is for --target_normalization global_patch, not"),
        (["--target_normalization", "global_patch", "--target_statistics", "nope.safetensors"], "nope.safetensors"),
        (["--lr_scheduler_kwargs", '{"nonsense": 1}'], "unexpected keyword argument 'nonsense'"),
        (["--optim_args", "nonsense=1"], "--optim_args nonsense"),
        (["--label_column_name", "nope", "--diagnostics_steps", 1], "has no column 'nope' (--label_column_name)"),
        (
            ["--activation_checkpointing", "--activation_checkpointing_kwargs", '{"nonsense": 1}'],
            "unknown 'nonsense'",
        ),
    ],
)
def test_a_plan_refuses_what_the_run_would_refuse(photos_dir, tmp_path, words, message, capsys):
    settings = {"dataset_name": photos_dir, "config_overrides": TINY_OVERRIDES, "output_dir": tmp_path / "out"}
    settings |= {"per_device_train_batch_size": 8, "report_to": "none"}
    if {"--freeze_blocks", "--config_overrides"} & set(words):
        build().save_pretrained(tmp_path / "encoder")
        settings["encoder_from"] = tmp_path / "encoder"
        del settings["config_overrides"]
    for more in ([], ["--dry_run"]):
        with pytest.raises(SystemExit):
            main(as_flags(settings, *words, *more))
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
