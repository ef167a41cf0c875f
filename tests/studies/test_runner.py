"""Runs of a study: finished ones are kept, failed ones are told, models that are gone are trained again."""

import shutil

import pytest

from hf_mae_robust.errors import StudyError
from hf_mae_robust.studies.runner import Run, StudyRunner
from tests.helpers import TINY_OVERRIDES


@pytest.fixture
def tiny(photos_dir, tmp_path):
    settings = {
        "dataset_name": str(photos_dir),
        "config_overrides": TINY_OVERRIDES,
        "max_steps": 2,
        "report_to": "none",
    }
    return {**settings, "dataloader_num_workers": 0, "per_device_train_batch_size": 8, "logging_steps": 1}


def test_finished_runs_are_kept_and_failed_ones_told(tiny, tmp_path, monkeypatch):
    first = Run("pretrain", tmp_path / "mae-0", tiny, None, {"variant": "mae", "seed": 0})
    bad = Run("pretrain", tmp_path / "bad-0", {**tiny, "mask_ratio": 2}, None, {"variant": "bad", "seed": 0})
    needs_bad = Run("finetune", tmp_path / "bad-0-finetuned", tiny, bad)
    with pytest.raises(StudyError, match=r"1 of 3 runs failed(.|\n)*bad-0: exit code 2: .*mask_ratio"):
        StudyRunner([first, bad, needs_bad], 2).go()
    result = first.result()
    assert result["variant"] == "mae" and len(result["curves"]["loss"]) == 2
    assert result["metrics"]["eval_loss"] > 0
    assert bad.result() is None and not needs_bad.folder.exists()
    monkeypatch.setattr(StudyRunner, "_run", None)  # nothing is started
    StudyRunner([first], 1).go()
    with pytest.raises(ValueError, match="max_steps: 2 there, 3 here"):
        StudyRunner([Run("pretrain", first.folder, {**tiny, "max_steps": 3})], 1).go()
    (first.folder / "result.json").rename(first.folder / "result.partial")
    assert first.result() is None  # a half-written one counts for nothing


def test_a_model_that_is_gone_is_trained_again_where_it_is_needed(tiny, tmp_path):
    first = Run("pretrain", tmp_path / "mae-0", tiny, None, {"variant": "mae", "seed": 0})
    words = {"dataset_name": tiny["dataset_name"], "crop_pct": 1.0}
    second = Run("analyze", tmp_path / "analysis", words, first, {"variant": "mae", "seed": 0})
    StudyRunner([first, second], 1).go()
    before, found = first.result(), second.result()
    assert found["metrics"]["encoder 1/rank"] > 1
    shutil.rmtree(first.output)
    StudyRunner([first, second], 1).go()  # nothing needs it
    assert not first.output.exists()
    (second.folder / "result.json").unlink()
    StudyRunner([first, second], 1).go()
    assert second.result() == found and first.result()["curves"] == before["curves"]
