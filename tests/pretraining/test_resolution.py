"""--resolution_schedule: sizes by step, exact resume in every stage, and what is refused."""

import pytest
import torch
from PIL import Image

from hf_mae_robust.errors import CheckpointError
from hf_mae_robust.pretrain import main, make_parser, prepare, pretrain
from tests.helpers import TINY_OVERRIDES, as_flags, photos

SCHEDULE = "8:0.3,12:0.7,16:1.0"
# 40 images in batches of 8: 10 steps in 2 epochs.
SIZES = [8] * 3 + [12] * 4 + [16] * 3
ALL_ON = ["--target_normalization", "global_patch", "--target_statistics", "auto", "--mid_mask_ratio", "0.25"]


@pytest.fixture
def settings(photos_dir, tmp_path):
    return {
        "dataset_name": photos_dir,
        "config_overrides": TINY_OVERRIDES,
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "report_to": "none",
        "crop_pct": 1.0,
        "save_strategy": "no",
    }


def parsed(settings, *words):
    return make_parser(prog="run_pretrain.py").parse(as_flags(settings, *words))


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


def test_sizes_rise_at_their_steps_and_nothing_else_changes(settings, capsys):
    plain = pretrain(*parsed(settings, *ALL_ON))
    assert "image_size" not in plain.state.log_history[0]
    words = [*ALL_ON, "--resolution_schedule", SCHEDULE, "--output_dir", settings["output_dir"].with_name("staged")]
    arguments = parsed(settings, *words)
    trainer, _ = prepare(arguments)
    shapes, evaluated, original = [], [], trainer.model.forward

    def spied(pixel_values, **kwargs):
        (shapes if trainer.model.training else evaluated).append(tuple(pixel_values.shape[-2:]))
        return original(pixel_values, **kwargs)

    trainer.model.forward = spied
    positions = trainer.model.vit.embeddings.position_embeddings.clone()
    trainer.train()
    trainer.evaluate()
    assert [height for height, _ in shapes] == [width for _, width in shapes] == SIZES == logged(trainer, "image_size")
    assert set(evaluated) == {(16, 16)}
    assert logged(trainer, "learning_rate") == logged(plain, "learning_rate")
    assert torch.equal(trainer.model.vit.embeddings.position_embeddings, positions)
    assert "8 px in the first 30% of the steps, then 12 px up to 70%, then 16 px" in capsys.readouterr().out


# Within the second stage; the others are slow: within the first and the last, and between two.
@pytest.mark.parametrize("cuts", [(7,), pytest.param((2, 4, 10), marks=pytest.mark.slow)])
def test_resumes_exactly_in_every_stage_and_with_this_schedule_only(settings, tmp_path, cuts):
    """With accumulation, whose last step of an epoch is short."""
    common = [*ALL_ON, "--resolution_schedule", SCHEDULE, "--gradient_accumulation_steps", "2"]
    common += ["--num_train_epochs", "4", "--dataset_streaming", "true", "--save_strategy", "steps"]
    common += ["--save_steps", str(cuts[0]), "--save_total_limit", "20"]  # 12 steps
    whole = pretrain(*parsed(settings, *common))
    assert logged(whole, "image_size") == [8] * 4 + [12] * 4 + [16] * 4
    weights = whole.model.state_dict()
    for step in cuts:
        checkpoint = settings["output_dir"] / f"checkpoint-{step}"
        words = ["--resume_from_checkpoint", str(checkpoint), "--output_dir", str(tmp_path / f"from-{step}")]
        resumed = pretrain(*parsed(settings, *common, *words))
        assert logged(resumed, "loss") == logged(whole, "loss")
        assert all(torch.equal(value, weights[name]) for name, value in resumed.model.state_dict().items())
    for other in ("none", "8:0.5,16:1.0"):
        with pytest.raises(CheckpointError, match="resolution_schedule: '8:0.3,12:0.7,16:1' there"):
            prepare(parsed(settings, *common, "--resolution_schedule", other))


def test_positions_of_an_encoder_that_learned_them_train_at_a_smaller_size(settings):
    trainer, _ = prepare(parsed(settings, "--resolution_schedule", SCHEDULE, "--learning_rate", "1e-3"))
    table = trainer.model.vit.embeddings.position_embeddings.requires_grad_(True)
    before, step_of = table.clone(), trainer.training_step

    def stops_after_three(*args, **kwargs):
        trainer.control.should_training_stop = trainer.state.global_step == 2
        return step_of(*args, **kwargs)

    trainer.training_step = stops_after_three
    trainer.train()
    assert logged(trainer, "image_size") == [8, 8, 8]
    assert (table != before).any(dim=-1).all(), "positions of all patches"


@pytest.mark.slow
def test_each_size_is_compiled_once(settings):
    from torch._dynamo.utils import counters

    words = ["--torch_compile", "--torch_compile_backend", "eager", "--resolution_schedule", SCHEDULE]
    trainer, _ = prepare(parsed(settings, *words))
    before = counters["stats"]["unique_graphs"]
    trainer.train()
    assert logged(trainer, "image_size") == SIZES
    assert counters["stats"]["unique_graphs"] - before == 3


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("8:0.5,10:0.8,16:1.0", "10 is not a multiple of patch_size 4"),
        ("8:0.8,12:0.5,16:1.0", "the shares must rise, and 0.5 follows 0.8"),
        ("8:0.5,16:0.9", "the last share must be 1.0, not 0.9"),
        ("8:0.5,32:0.8,16:1.0", "32 is larger than image_size 16"),
        ("8:0.5,12:1.0", "the last size must be image_size 16, not 12"),
        ("8:0.5;16:1.0", "write it as SIZE:SHARE,SIZE:SHARE, such as 128:0.5,192:0.8,224:1.0"),
        ("8:0,16:1.0", "0 is not a share above 0"),
        ("4:0.5,16:1.0", "at 4 pixels: "),
        ("8:0.001,16:1.0", "none of the 10 steps"),
    ],
)
def test_wrong_schedules_are_refused_in_a_sentence(settings, capsys, schedule, message):
    for more in ([], ["--dry_run"]):
        with pytest.raises(SystemExit) as stop:
            main(as_flags(settings, "--resolution_schedule", schedule, *more))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and "Traceback" not in error
        assert f"--resolution_schedule {schedule}: " in error and message in error
    assert not list(settings["output_dir"].glob("*")), "nothing was written"


def test_a_stream_that_cannot_seek_is_refused(settings, tmp_path, capsys):
    (tmp_path / "images" / "train").mkdir(parents=True)
    for i, pixels in enumerate(photos(8)):
        Image.fromarray(pixels).save(tmp_path / "images" / "train" / f"{i}.png")
    words = ["--dataset_name", tmp_path / "images", "--dataset_streaming", "--max_steps", "5", "--warmup_steps", "1"]
    for more in ([], ["--dry_run"]):
        with pytest.raises(SystemExit) as stop:
            main(as_flags(settings, *words, "--resolution_schedule", SCHEDULE, *more))
        assert stop.value.code == 2 and "can only be read from its beginning" in capsys.readouterr().err


def test_none_undoes_that_of_a_recipe(settings, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"resolution_schedule: {SCHEDULE}\n")
    arguments = parsed(settings, "--config", recipe)
    assert str(arguments.training.resolution) == "8:0.3,12:0.7,16:1"
    assert parsed(settings, "--config", recipe, "--resolution_schedule", "none").training.resolution is None
