"""Runs of a study: finished ones are kept, failed ones are told, models that are gone are trained again."""

import json
import os
import shutil
import time
from dataclasses import replace
from unittest.mock import Mock

import psutil
import pytest
import torch

from hf_mae_robust.__main__ import main
from hf_mae_robust.errors import EXIT_STOPPED, StudyError
from hf_mae_robust.studies import reproduce, runner
from hf_mae_robust.studies.definitions import studies
from hf_mae_robust.studies.hits import unpacked
from hf_mae_robust.studies.runner import Run, StudyRunner
from tests.helpers import TINY_OVERRIDES
from tests.processes import offline


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
    data = {"dataset_name": tiny["dataset_name"]}
    vote = Run(
        "knn", tmp_path / "knn", {**data, "num_workers": 0, "crop_pct": 1.0}, first, {"variant": "mae", "seed": 0}
    )
    with pytest.raises(StudyError, match=r"1 of 4 runs failed(.|\n)*bad-0: exit code 2: .*mask_ratio"):
        StudyRunner([first, vote, bad, needs_bad], 2).go()
    result, voted = first.result(), vote.result()
    hits = unpacked(voted["hits"])
    assert voted["metrics"]["accuracy"] == hits.mean() and len(hits) == 11
    assert voted["settings"]["after"] == first.name and "analyze knn" in voted["command"]
    assert "hits" not in result and result["cost"]["attempts"] == 1
    assert result["cost"]["cpu_seconds"] > 0 and result["cost"]["seconds"] > 0
    assert result["variant"] == "mae" and len(result["curves"]["loss"]) == 2
    assert result["metrics"]["eval_loss"] > 0
    assert bad.result() is None and not needs_bad.folder.exists()
    monkeypatch.setattr(StudyRunner, "_run", None)  # nothing is started
    StudyRunner([first], 1).go()
    with pytest.raises(ValueError, match="max_steps: 2 there, 3 here"):
        StudyRunner([Run("pretrain", first.folder, {**tiny, "max_steps": 3})], 1).go()
    (first.folder / "result.json").rename(first.folder / "result.partial")
    assert first.result() is None  # a half-written one counts for nothing


@pytest.mark.parametrize(("allowed", "expected"), [(1, 1), (16, 4)])
def test_runs_share_the_cores_and_take_no_more_threads_than_are_allowed(tmp_path, monkeypatch, allowed, expected):
    """OMP_NUM_THREADS=1 asks for one."""
    started = []

    def process(target, args):
        started.append(args)
        return Mock(exitcode=1)

    monkeypatch.setattr(runner, "_PROCESSES", Mock(Process=process))
    monkeypatch.setattr(torch, "get_num_threads", lambda: allowed)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    (tmp_path / "run.log").write_text("")
    with pytest.raises(StudyError):
        StudyRunner([Run("pretrain", tmp_path, {})], 2).go()
    assert started[0][-1] == expected


def test_what_a_former_model_gave_is_void_as_soon_as_the_model_is_trained_again(tmp_path, monkeypatch):
    """Also where the study stops in between: the next one would keep the results, and resume from the checkpoints."""
    first = Run("pretrain", tmp_path / "mae-0", {})
    tuned, analyzed = (Run(module, tmp_path / module, {}, first) for module in ("finetune", "analyze"))
    for run in (tuned, analyzed):
        (run.output / "checkpoint-2").mkdir(parents=True)
        (run.folder / "result.json").write_text(json.dumps({"settings": run.recorded()}))
    first.folder.mkdir()
    (first.folder / "run.log").write_text("")
    process = Mock(exitcode=1)  # it is stopped
    monkeypatch.setattr(runner, "_PROCESSES", Mock(Process=lambda target, args: process))
    with pytest.raises(StudyError, match="1 of 3 runs failed"):
        StudyRunner([first, tuned, analyzed], 1).go()
    for run in (tuned, analyzed):
        assert run.result() is None and not run.output.exists()


@pytest.mark.slow  # runs that are kept and told are tested above
def test_a_model_that_is_gone_is_trained_again_where_it_is_needed(tiny, tmp_path):
    first = Run("pretrain", tmp_path / "mae-0", tiny, None, {"variant": "mae", "seed": 0})
    words = {"dataset_name": tiny["dataset_name"], "crop_pct": 1.0}
    second = Run("analyze", tmp_path / "analysis", words, first, {"variant": "mae", "seed": 0})
    knn = Run("knn", tmp_path / "knn", {**words, "num_workers": 0}, first, {"variant": "mae", "seed": 0})
    StudyRunner([first, second, knn], 1).go()
    before, found = first.result(), second.result()
    assert found["metrics"]["encoder 1/rank"] > 1
    shutil.rmtree(first.output)
    StudyRunner([first, second, knn], 1).go()  # nothing needs it
    assert not first.output.exists()
    (second.folder / "result.json").unlink()
    (knn.output / "knn.json").unlink()
    StudyRunner([first, second, knn], 1).go()
    assert (knn.output / "knn.json").exists()  # of the new model, not of the former one
    again = second.result()
    assert again.pop("cost")["attempts"] == found.pop("cost")["attempts"]  # the former attempt was another model's
    assert again == found and first.result()["curves"] == before["curves"]


def two_variants(num_blocks):
    """MAE and another one of each study."""
    return {name: replace(study, variants=study.variants[1:3]) for name, study in studies(num_blocks).items()}


REPRODUCE = """
from hf_mae_robust.__main__ import main
from hf_mae_robust.studies import reproduce, runner
from tests.studies.test_runner import two_variants

reproduce.studies = two_variants
if __name__ == "__main__":  # the runs of the study import this file
    main()
"""


@pytest.mark.slow  # runs that are stopped by a signal are tested in training/
def test_a_study_that_is_terminated_goes_on(photos_dir, tmp_path, monkeypatch):
    flags = f"--config_overrides {TINY_OVERRIDES} --mid_mask_layer_idx 1 --per_device_train_batch_size 8"
    flags += " --max_steps 150 --save_steps 10"  # stopped long before its end
    words = ["table1", "--dataset_name", str(photos_dir), "--seeds", "1", "--parallel", "2", "--pretrain_flags", flags]
    words += ["--finetune_flags=--max_steps 2 --per_device_train_batch_size 8"]
    words += ["--output_dir", str(tmp_path)]
    (tmp_path / "reproduce.py").write_text(REPRODUCE)
    study = offline().start([tmp_path / "reproduce.py", "reproduce", *words], tmp_path / "printed")
    folder = tmp_path / "small" / "classification" / "mae-0" / "pretrain"
    deadline = time.monotonic() + 400
    while not list(folder.glob("output/checkpoint-*")):
        assert time.monotonic() < deadline, study.stderr.read_text()
        time.sleep(0.05)
    process = psutil.Process(study.ids[0])
    children = process.children(recursive=True)
    process.terminate()
    ended = study.wait()
    assert ended.codes == [EXIT_STOPPED] and "The same command resumes" in ended.output, ended.output
    psutil.wait_procs(children, timeout=300)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert "Stopped by SIGTERM after step" in (folder / "run.log").read_text()
    monkeypatch.setattr(reproduce, "studies", two_variants)
    main(["reproduce", *words])
    log = (folder / "run.log").read_text()
    assert "Resuming from" in log
    assert json.loads((folder / "result.json").read_text())["cost"]["attempts"] == 2
    assert (tmp_path / "small" / "reports" / "table1.md").exists()
