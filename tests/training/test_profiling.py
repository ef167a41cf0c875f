"""--profile: parts add up, waiting is seen, and training is what it was."""

import json
import time

import pytest

from hf_mae_robust.pretrain import make_parser, pretrain
from hf_mae_robust.training import profiling
from tests.helpers import TINY_OVERRIDES, as_flags, losses


@pytest.fixture
def settings(photos_dir, tmp_path):
    return {
        "dataset_name": photos_dir,
        "config_overrides": TINY_OVERRIDES,
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 4,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "report_to": "none",
        "crop_pct": 1.0,
    }


def train(settings, *more):
    return pretrain(*make_parser().parse(as_flags(settings, *more)))


def profile_of(settings):
    return json.loads((settings["output_dir"] / "profile.json").read_text())


def test_parts_add_up_to_the_steps_and_training_is_the_same(settings, tmp_path, capsys):
    profiled = train(settings, "--profile", 8)
    content = profile_of(settings)
    parts = content["milliseconds_a_step"]
    assert content["steps"] == 8 and tuple(parts) == profiling.PARTS
    assert all(parts[name] > 0 for name in profiling.PARTS)
    assert 8 / content["images_per_second"] * 1000 == pytest.approx(sum(parts.values()))  # batch of 2 x 4
    printed = capsys.readouterr().out
    assert "Profile of 8 steps" in printed and all(f"  {name} " in printed for name in profiling.PARTS)
    plain = train({**settings, "output_dir": tmp_path / "plain"})
    assert losses(plain) == losses(profiled) and len(losses(plain)) == 20
    assert not (tmp_path / "plain" / "profile.json").exists()
    for name in ("get_batch_samples", "_prepare_inputs", "compute_loss", "_maybe_log_save_evaluate"):
        assert name not in vars(profiled)


@pytest.mark.slow  # it waits
def test_waiting_for_data_is_seen_and_said(settings, capsys, monkeypatch):
    from hf_mae_robust.data.dataset import ImageDataset

    original = ImageDataset.__getitems__

    def slow(self, keys):
        time.sleep(0.1)
        return original(self, keys)

    monkeypatch.setattr(ImageDataset, "__getitems__", slow)
    train(settings, "--profile", 4)
    parts = profile_of(settings)["milliseconds_a_step"]
    assert parts[profiling.DATA] >= 200  # two batches a step
    assert "The step waits for data" in capsys.readouterr().out


def test_a_short_run_reports_what_there_is(settings, capsys):
    train(settings, "--profile", 50, "--max_steps", profiling.WARM_UP + 3)
    assert profile_of(settings)["steps"] == 2  # from the beginning of one to that of another
    (settings["output_dir"] / "profile.json").unlink()
    capsys.readouterr()
    train(settings, "--profile", 50, "--max_steps", 3, "--overwrite_output_dir")
    assert "nothing was measured" in capsys.readouterr().out
    assert not (settings["output_dir"] / "profile.json").exists()


def test_a_negative_number_is_refused(settings, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse(as_flags(settings, "--profile", -3))
    assert "--profile -3" in capsys.readouterr().err
