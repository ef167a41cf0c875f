"""The paper's studies: what is run, how it is gone on with, and what the report says."""

import argparse
import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from hf_mae_robust import finetune, pretrain
from hf_mae_robust.__main__ import main
from hf_mae_robust.__main__ import make_parser as main_parser
from hf_mae_robust.errors import StudyError
from hf_mae_robust.pretraining.task import build_config
from hf_mae_robust.studies.definitions import STUDIES, studies
from hf_mae_robust.studies.report import compare, epochs_to_reach, headline, paired, write_report
from hf_mae_robust.studies.reproduce import add_reproduce_arguments, paper_commands, runs_of
from hf_mae_robust.studies.runner import Run, StudyRunner
from tests.helpers import TINY_OVERRIDES

REPORTS = sorted((Path(__file__).parents[2] / "benchmarks" / "reproduce").glob("*/reports/*.json"))
PARSERS = {"pretrain": pretrain.make_parser, "finetune": finetune.make_parser}


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_reproduce_arguments(parser)
    return parser.parse_args(list(map(str, words)))


@pytest.mark.parametrize("name", STUDIES)
def test_every_command_of_the_paper_is_one_that_the_scripts_take(name, capsys):
    commands = paper_commands(studies(12)[name], arguments(name, "--scale", "paper"))
    for words in commands:
        script = next(word for word in words if word.endswith(".py"))
        PARSERS[script.removeprefix("run_").removesuffix(".py")]().parse(words[words.index(script) + 1 :])
    outputs = [words[words.index("--output_dir") + 1] for words in commands]
    starts = [words[words.index("--model_name_or_path") + 1] for words in commands if "--model_name_or_path" in words]
    assert len(set(outputs)) == len(outputs)
    assert all(outputs.index(start) < len(outputs) - len(starts) for start in starts)
    main(["reproduce", name, "--scale", "paper"])
    assert capsys.readouterr().out.splitlines() == [shlex.join(words) for words in commands]


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_a_small_study_is_one_that_the_scripts_take(name):
    args = arguments(name, "--dataset_name", "path/to/data", "--seeds", 2, "--finetune_flags=--max_steps 3")
    blocks = 6 if name in ("table3", "table4") else 4
    study = studies(blocks)[name]
    runs = runs_of(study, args)
    for run in runs:
        if run.module == "analyze":
            taken = main_parser().parse_args(run.words())
            assert taken.checkpoint == str(run.after.output) and taken.output_dir == run.output
            continue
        groups = PARSERS[run.module]().parse(run.words())
        if run.module == "pretrain":
            config = build_config(groups[0])
            assert config.num_hidden_layers == blocks
            variant = next(v for v in study.variants if v.name == run.described["variant"])
            is_patch = config.target_normalization == "global_patch"
            assert groups[0].target_statistics == ("auto" if is_patch else None)
            for flag, value in variant.flags().items():
                if flag != "target_statistics":
                    assert getattr(config, flag) == value
        else:
            assert groups[-1].max_steps == 3
    names = {run.described["variant"] for run in runs}
    assert names == {variant.name for variant in study.variants}
    assert name == "figure2" or {"scratch", "mae"} <= names


def test_tables_share_runs():
    args = arguments("table1", "table2", "table5", "--dataset_name", "path/to/data", "--seeds", 3)
    found = {}
    for name in ("table1", "table2", "table5"):
        for run in runs_of(studies(4)[name], args):
            assert found.setdefault(run.folder, run.words()) == run.words()
    # Pre-training, analysis and fine-tuning of 10 variants of the three tables, and scratch.
    assert len(found) == 3 * (3 * 10 + 1)
    figure = runs_of(studies(4)["figure2"], args)
    assert {run.folder: run.words() for run in figure if run.folder in found}.items() <= found.items()
    assert len([run for run in figure if run.folder in found]) == 3 * 2 * 3  # the three targets with the step per patch
    words = ["--dataset_name", "path/to/data", "--pretrain_dataset_name", "path/to/images", "--seeds", 3]
    args = arguments("table3", *words)
    pretrained = [
        [run.folder for run in runs_of(studies(6)[name], args) if run.module == "pretrain"]
        for name in ("table3", "table4")
    ]
    assert pretrained[0] == pretrained[1] and len(pretrained[0]) == 3 * 2


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


def test_a_study_that_is_terminated_goes_on(tiny, photos_dir, tmp_path):
    flags = f"--config_overrides {TINY_OVERRIDES} --mid_mask_layer_idx 1 --per_device_train_batch_size 8"
    flags += " --max_steps 400 --save_steps 40"  # stopped long before its end
    words = ["table1", "--dataset_name", str(photos_dir), "--seeds", "1", "--parallel", "2", "--pretrain_flags", flags]
    words += ["--finetune_flags=--max_steps 2 --per_device_train_batch_size 8"]
    words += ["--output_dir", str(tmp_path)]
    study = subprocess.Popen(
        [sys.executable, "-m", "hf_mae_robust", "reproduce", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    folder = tmp_path / "small" / "classification" / "mae-0" / "pretrain"
    deadline = time.monotonic() + 120
    while not list(folder.glob("output/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    children = psutil.Process(study.pid).children(recursive=True)
    study.terminate()
    output = study.communicate(timeout=60)[0].decode()
    assert study.returncode == 75 and "The same command goes on" in output
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert "Stopped by SIGTERM after step" in (folder / "run.log").read_text()
    main(["reproduce", *words])
    log = (folder / "run.log").read_text()
    assert "Resuming from" in log and (folder / "result.json").exists()
    assert (tmp_path / "small" / "reports" / "table1.md").exists()


def test_the_paired_test_is_students():
    values, base = [0.52, 0.55, 0.50, 0.58], [0.50, 0.51, 0.49, 0.53]
    differences = np.subtract(values, base)
    mean, error = differences.mean(), differences.std(ddof=1) / 2
    found = paired(values, base)
    assert found["difference"] == pytest.approx(mean)
    assert found["interval"] == pytest.approx(
        [mean - 3.182446 * error, mean + 3.182446 * error], rel=1e-4
    )  # t of 3, 97.5%
    t = mean / error  # Student's distribution with 3 degrees of freedom, in closed form
    one_sided = 0.5 - (math.atan(t / math.sqrt(3)) + t * math.sqrt(3) / (t * t + 3)) / math.pi
    assert found["p"] == pytest.approx(2 * one_sided)
    assert paired([0.5], [0.4])["p"] is None and paired([0.5, 0.6], [0.4, 0.5])["difference"] == pytest.approx(0.1)


def made_up(variant, seed, accuracy, probe):
    curves = {"loss": [[1, 0.9], [2, 0.8]], "linear_probe_accuracy": [[i, v] for i, v in enumerate(probe)]}
    metrics = {"eval_accuracy": accuracy, "linear_probe_accuracy": probe[-1]}
    metrics |= {"encoder 0/rank": 50.0, "encoder 1/rank": 10 * accuracy, "mean/rank": 7.0}
    return {"variant": variant, "seed": seed, "metrics": metrics, "curves": curves}


def test_the_report_says_what_was_found(tmp_path):
    study = studies(4)["table1"]
    values = {"scratch": (0.3, 0.32), "mae": (0.5, 0.52), "global_patch": (0.55, 0.56)}
    results = {
        name: {
            seed: made_up(name, seed, value, [0.1 + seed / 10, 0.2, 0.3, 0.4 if name == "mae" else 0.5])
            for seed, value in enumerate(row)
        }
        for name, row in values.items()
    }
    results["global_patch"][0]["curves"]["linear_probe_accuracy"] = [[0, 0.1], [1, 0.3], [2, 0.41], [3, 0.5]]
    pretrained = {name: result for name, result in results.items() if name != "scratch"}
    by_module = {"pretrain": pretrained, "analyze": pretrained, "finetune": results}
    path = write_report(study, by_module, tmp_path, "the command", {"data": "made up"})
    text, content = path.read_text(), json.loads((tmp_path / "table1.json").read_text())
    entry = content["finetuned"]["eval_accuracy"]["global_patch"]
    assert entry["mean"] == pytest.approx(0.555)
    assert entry["against_baseline"]["difference"] == pytest.approx(0.045)
    assert "| MAE + global patch statistics | 2 | 0.5550 | 0.0071 | +0.0450" in text and "| 83.28 |" in text
    assert "raw" not in content["finetuned"]["eval_accuracy"]  # not run yet
    assert "| MAE + global patch statistics | 2 | 0.5000 | 0.0000 | +0.1000 |  |" in text  # the probe
    assert "Before the first step: 0.1500." in text
    assert "| MAE + global patch statistics | 0.1500 | 0.2500 | 0.3550 | 0.5000 |" in text  # the probe by epoch
    assert content["probed"]["linear_probe_mean"]["mae"]["values"] == pytest.approx([0.3, 0.3])
    assert "| MAE + global patch statistics | 2 of 3, 3 of 3 |" in text
    assert "| MAE + global patch statistics | 5.550 +- 0.071 | 7.000 +- 0.000 |" in text  # of the last block; of images
    assert (tmp_path / "table1_loss.png").exists() and (tmp_path / "table1_linear_probe_accuracy.png").exists()
    assert compare(study, {}, ["eval_accuracy"]) == {} and headline(study, {}) == {}


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_the_reports_in_benchmarks_are_those_of_the_results_beside_them(path, tmp_path):
    results = path.parents[1]
    shutil.copytree(results, tmp_path / results.name, ignore=shutil.ignore_patterns("reports"))
    content = json.loads(path.read_text())
    words = shlex.split(content["command"])
    main([*words[words.index("reproduce") :], "--report_only", "--output_dir", str(tmp_path)])
    written = (tmp_path / results.name / "reports" / path.name).with_suffix(".md")
    assert written.read_text() == path.with_suffix(".md").read_text()


def test_epochs_to_reach():
    curve = [(0.5, 0.1), (1, 0.3), (1.5, 0.2), (2, 0.4)]
    assert epochs_to_reach(curve, 0.3) == 1 and epochs_to_reach(curve, 0.5) is None
    assert math.isfinite(epochs_to_reach(curve, 0.0))


def test_what_is_missing_is_said(capsys, tmp_path):
    for words, message in (
        (["table1"], "--scale small needs --dataset_name"),
        (["table3", "--scale", "smoke"], "--scale smoke is on scikit-learn's digits"),
        (["figure2", "--scale", "smoke", "--seeds", "0"], "--seeds 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["reproduce", *words, "--output_dir", str(tmp_path / "out")])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
