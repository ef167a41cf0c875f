"""What the report of a study says, and the statistics behind it."""

import json
import math
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from hf_mae_robust.__main__ import main
from hf_mae_robust.studies.definitions import studies
from hf_mae_robust.studies.report import compare, epochs_to_reach, headline, paired, write_report

REPORTS = sorted((Path(__file__).parents[2] / "benchmarks" / "reproduce").glob("**/reports/*.json"))


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


def test_losses_of_one_target_are_compared(tmp_path):
    study = studies(4)["decoder_keep"]
    pretrained = {
        name: {seed: made_up(name, seed, 0.5, [0.1, 0.2, 0.3]) for seed in range(2)}
        for name in ("mae", "keep_50", "keep_50_time")
    }
    for name, losses in {"mae": (0.60, 0.62), "keep_50": (0.61, 0.64), "keep_50_time": (0.58, 0.61)}.items():
        for seed, loss in enumerate(losses):
            pretrained[name][seed]["metrics"] |= {"eval_loss": loss}
    results = {"pretrain": pretrained, "analyze": {}, "finetune": {}}
    path = write_report(study, results, tmp_path, "the command", {"data": "made up"})
    text, content = path.read_text(), json.loads((tmp_path / "decoder_keep.json").read_text())
    assert content["trained"]["eval_loss"]["keep_50"]["against_baseline"]["difference"] == pytest.approx(0.015)
    assert "| 50% | 2 | 0.6250 | 0.0212 | +0.0150" in text
    assert "different units" not in text
    assert "| 50%, for as long (to epoch " in text  # the probe by epoch


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
