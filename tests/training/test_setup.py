"""Learning rate and warm-up, which follow from flags, batch and number of images; what a run refuses then."""

import pytest
import torch

from hf_mae_robust.errors import CheckpointError, UserError
from hf_mae_robust.pretrain import make_parser, prepare, pretrain
from hf_mae_robust.training.setup import set_schedule
from tests.runs import tiny_run


def training_of(photos_dir, folder, *words):
    """The settings of a run, filled in."""
    trainer, _ = prepare(make_parser().parse(tiny_run(photos_dir, "--output_dir", str(folder), *words)))
    return trainer.args


def test_a_warm_up_longer_than_the_run_is_said(photos_dir, tmp_path, capsys):
    words = tiny_run(photos_dir, "--max_steps", "20", "--output_dir", str(tmp_path))
    prepare(make_parser().parse([*words, "--warmup_steps", "1500"]))
    output = capsys.readouterr().out
    assert "Warning: the warm-up (1,500 steps)" in output and "Give --warmup_steps 1, 5% of the run" in output
    prepare(make_parser().parse([*words, "--warmup_steps", "19"]))
    assert "Warning" not in capsys.readouterr().out


def test_a_warm_up_that_leaves_no_step_for_a_polynomial_decay(photos_dir, tmp_path):
    """The schedule would divide by 0, at the end."""
    words = [*tiny_run(photos_dir, "--output_dir", str(tmp_path)), "--lr_scheduler_type", "polynomial"]
    with pytest.raises(UserError, match="--warmup_steps 3 is as long as the run .*--lr_scheduler_type polynomial"):
        prepare(make_parser().parse([*words, "--max_steps", "3", "--warmup_steps", "3"]))
    trainer, _ = prepare(make_parser().parse([*words, "--max_steps", "1"]))
    assert trainer.args.warmup_steps == 0


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ([], 5),
        (["--warmup_steps", "0"], 0),
        (["--warmup_steps", "0", "--warmup_epochs", "3"], 0),
        (["--warmup_steps", "0.1"], 10),
        (["--warmup_steps", "7"], 7),
        (["--lr_scheduler_type", "constant"], 0),
        (["--lr_scheduler_type", "constant", "--warmup_epochs", "0"], 0),
        (["--lr_scheduler_type", "constant_with_warmup"], 5),
    ],
)
def test_steps_of_the_warm_up(photos_dir, tmp_path, capsys, words, steps):
    training = training_of(photos_dir, tmp_path, "--max_steps", "100", *words)
    assert training.warmup_steps == training.get_warmup_steps(100) == steps
    assert f" after {steps} steps of warm-up" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["warmup_steps", "warmup_epochs"])
def test_a_warm_up_is_refused_where_the_schedule_has_none(photos_dir, tmp_path, flag):
    words = ["--max_steps", "100", "--lr_scheduler_type", "constant", f"--{flag}", "3"]
    with pytest.raises(UserError, match=f"--{flag} 3: .* constant has no warm-up. Use constant_with_warmup"):
        training_of(photos_dir, tmp_path, *words)


def test_the_rate_is_of_a_batch_that_the_images_fill(photos_dir, tmp_path, capsys):
    """An epoch's last step takes no image of the next epoch."""
    training = training_of(photos_dir, tmp_path, "--per_device_train_batch_size", "4")
    batches = 40 // 4
    assert training.learning_rate == pytest.approx(1.5e-4 * 4 / 256)
    words = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps"]
    training = training_of(photos_dir, tmp_path, *words, str(batches))
    assert training.learning_rate == pytest.approx(1.5e-4 * 40 / 256)
    lowered = training_of(photos_dir, tmp_path, *words, str(batches + 1))
    assert "--gradient_accumulation_steps 11 is lowered to 10, because an epoch of" in capsys.readouterr().out
    assert lowered.gradient_accumulation_steps == batches
    assert lowered.learning_rate == training.learning_rate and lowered.warmup_steps == training.warmup_steps


def test_a_batch_holds_at_most_all_images(photos_dir, tmp_path, capsys):
    training = training_of(photos_dir, tmp_path, "--per_device_train_batch_size", "512")
    assert "--per_device_train_batch_size 512 is lowered to 40, because" in capsys.readouterr().out
    assert training.train_batch_size == 40 and training.learning_rate == pytest.approx(1.5e-4 * 40 / 256)
    words = ["--per_device_train_batch_size", "512", "--repeated_augmentation", "4"]
    assert training_of(photos_dir, tmp_path, *words).train_batch_size == 160


def test_deepspeed_names_the_accumulation_and_the_batch_so_they_are_not_lowered(photos_dir, tmp_path, monkeypatch):
    arguments = make_parser().parse(tiny_run(photos_dir, "--output_dir", str(tmp_path), "--max_steps", "5"))
    trainer, _ = prepare(arguments)
    monkeypatch.setattr(type(trainer.args), "uses_deepspeed", True)
    trainer.args.gradient_accumulation_steps = 100
    with pytest.raises(UserError, match=r"steps 100: .* a step takes none of the next epoch. Give at most \d+\."):
        set_schedule(trainer.train_source, arguments.recipe, trainer.args)
    trainer.args.per_device_train_batch_size = 100
    with pytest.raises(UserError, match="fewer than one batch of 100 .* Give at most --per_device_train_batch_size 40"):
        set_schedule(trainer.train_source, arguments.recipe, trainer.args)


def test_arguments_that_are_taken_twice_are_filled_in_twice(photos_dir, tmp_path):
    arguments = make_parser().parse(tiny_run(photos_dir, "--output_dir", str(tmp_path / "a"), "--max_steps", "1"))
    first = pretrain(*arguments).args
    arguments.training.output_dir = str(tmp_path / "b")
    arguments.training.per_device_train_batch_size, arguments.training.max_steps = 8, 100
    again, _ = prepare(arguments)
    assert arguments.training.learning_rate is None
    assert again.args.learning_rate == pytest.approx(first.learning_rate * 8 / first.per_device_train_batch_size)
    assert (first.warmup_steps, again.args.warmup_steps) == (0, 5)


def test_the_folder_of_a_run_is_told_from_a_broken_checkpoint(photos_dir, tmp_path):
    words = tiny_run(photos_dir, "--output_dir", str(tmp_path / "run"), "--max_steps", "1")
    words += ["--save_strategy", "steps"]
    pretrain(*make_parser().parse(words))
    arguments = make_parser().parse([*words, "--resume_from_checkpoint", str(tmp_path / "run")])
    with pytest.raises(CheckpointError, match="is the folder of a run. Name one of its checkpoints, such as .*point-1"):
        prepare(arguments)
    checkpoint = prepare(make_parser().parse([*words, "--resume_from_checkpoint", str(tmp_path / "run/checkpoint-1")]))
    assert checkpoint[1] == str(tmp_path / "run" / "checkpoint-1")


def test_other_options_of_the_optimizer_are_refused_on_a_resume(photos_dir, tmp_path):
    words = tiny_run(photos_dir, "--output_dir", str(tmp_path), "--max_steps", "1", "--optim", "sgd")
    words += ["--save_strategy", "steps"]
    pretrain(*make_parser().parse([*words, "--optim_args", "momentum=0.9"]))
    with pytest.raises(CheckpointError, match="optim_args: 'momentum=0.9' there, 'momentum=0.1' here"):
        prepare(make_parser().parse([*words, "--optim_args", "momentum=0.1"]))
    with pytest.raises(CheckpointError, match="optim_args: 'momentum=0.9' there, None here"):
        prepare(make_parser().parse(words))
    trainer, checkpoint = prepare(make_parser().parse([*words, "--optim_args", "momentum=0.9"]))
    trainer.create_optimizer()
    assert checkpoint is not None and isinstance(trainer.optimizer, torch.optim.SGD)
