"""The report of a study with a plan, on made-up results, against numpy and scipy."""

import json

import numpy as np
import pytest
from scipy import stats

from hf_mae_robust.studies.comparisons import REACHED, UNFINISHED
from hf_mae_robust.studies.definitions import LEARNING_RATES, TRIED_RATES, studies
from hf_mae_robust.studies.hits import packed
from hf_mae_robust.studies.plan_report import write_plan_report
from hf_mae_robust.training.predictions import Predictions

STUDY = studies(4)["half_epochs"]
LABELS = {variant.name: variant.label for variant in STUDY.variants}
IMAGES = 200
RATE = LEARNING_RATES["mae"]
KINDS = ("pretrain", "analyze", "knn", "linear", "attentive", "finetune")


def made_up(shares, seeds=5, has_curves=False):
    """Results of all kinds, of at most that many of the planned seeds. shares: variant -> how much more often than 0.5
    it is right. has_curves: pictures of them take long."""
    rng = np.random.default_rng(5)
    hard = rng.random(IMAGES)
    results = {kind: {} for kind in KINDS}
    hits = {}
    for name, share in shares.items():
        for seed in STUDY.seeds[name][:seeds]:
            right = hard + rng.normal(size=IMAGES) * 0.1 < 0.5 + share
            hits[name, seed] = right
            none = np.zeros(IMAGES, dtype=int)
            found = packed(Predictions(np.arange(IMAGES), none, (~right).astype(int), none))
            last = 40 if name == "mae_2x" else 20
            noise = 0.0005 * len(name) * seed  # the differences of seeds are not all the same
            curve = [[epoch, 0.3 + share + 0.001 * epoch + noise] for epoch in range(0, last + 1, 2)]
            for kind in KINDS:
                attempts = 2 if (kind, name, seed) == ("pretrain", "robust", 1) else 1
                result = {"metrics": {}, "curves": {}, "cost": {"cpu_seconds": 60.0 * (1 + seed), "attempts": attempts}}
                if kind == "pretrain":
                    result["settings"] = {"num_train_epochs": float(last), "base_learning_rate": RATE}
                if kind in ("knn", "linear", "attentive", "finetune"):
                    metric = "accuracy" if kind == "knn" else "eval_accuracy"
                    result |= {"metrics": {metric: float(right.mean())}, "hits": found}
                elif kind == "analyze":
                    result["metrics"] = {"encoder 3/uniformity": -1.0 - share - noise, "mean/rank": 7.0}
                elif has_curves:
                    result["curves"] = {"linear_probe_accuracy": curve, "loss": [[1, 0.9], [last, 0.8]]}
                results[kind].setdefault(name, {})[seed] = result
    return results, hits


ALL = {"mae": 0.0, "drop_edge": 0.01, "global_patch": 0.0, "robust": 0.2, "mid_12": 0.1, "mae_2x": 0.05, "raw": 0.0}


def test_the_report_says_what_was_planned(tmp_path):
    results, hits = made_up(ALL, has_curves=True)
    path = write_plan_report(STUDY, results, tmp_path, "the command", {"data": "made up"})
    text, content = path.read_text(), json.loads((tmp_path / "half_epochs.json").read_text())
    means = {name: np.array([hits[name, seed].mean() for seed in STUDY.seeds[name]]) for name in ALL}
    expected = stats.ttest_rel(means["robust"], means["mae_2x"])
    primary = content["primary"]
    assert primary["p"] == pytest.approx(expected.pvalue) and primary["verdict"] == REACHED
    low, high = expected.confidence_interval(0.95)
    assert f"95% by seed (t) {low:+.4f} to {high:+.4f}" in text and "**reached**" in text
    images = np.mean([hits["robust", s].astype(float) - hits["mae_2x", s] for s in range(5)], axis=0)
    over_images = stats.bootstrap((images,), np.mean, method="percentile", n_resamples=4000, rng=0)
    assert primary["over_images"] == pytest.approx(tuple(over_images.confidence_interval), abs=0.005)
    assert text.index("## The primary comparison") < text.index("## The secondary") < text.index("## Cost")

    # Holm over all 35 planned, of which those with all_12, which has no runs, count with p = 1.
    secondary = content["secondary"]
    assert len(secondary) == 35 and sum(each["p"] is None for each in secondary) >= 4
    p = np.array([1.0 if each["p"] is None else each["p"] for each in secondary])
    smallest = secondary[int(p.argmin())]
    assert smallest["p_holm"] == pytest.approx(min(1, 35 * p.min()))
    uniformity = next(each for each in secondary if (each["measure"], each["variant"]) == ("uniformity", "robust"))
    assert uniformity["difference"] == pytest.approx(-0.2 - 0.0005 * 3 * 2) and "over_images" not in uniformity
    probe = next(each for each in secondary if each["measure"] == "probe_mean")
    assert probe["difference"] == pytest.approx(0.1 + 0.0005 * 3 * 1)

    # A run of seed s has cost s + 1 minutes: 3 in the mean, of each of six kinds.
    assert f"| {LABELS['mae']} | 1.0 to 5.0 | {' | '.join(['3.0'] * 6)} | 1.50 |" in text
    assert content["about"]["cost"] == "8.7 h of CPU time"
    assert f"resume from their last checkpoint: {LABELS['robust']}, seed 1 (2 attempts)." in text
    assert content["values"]["linear"]["mid_12"]["mean"] == pytest.approx(means["mid_12"].mean())
    # The probe by epoch, of which only one variant has more than 20.
    assert "| 40 |  |  |  |  |  | 0.3960 |  |" in text and "| 20 | 0.3230 |" in text
    assert (tmp_path / "half_epochs_linear_probe_accuracy.png").exists()
    # What was run: a rate at the end of those that were tried is told.
    assert f"| {LABELS['mae_2x']} | 40 | {RATE:g} | 5 |" in text and f"`{STUDY.plan.document}`" in text
    assert f"| {LABELS['all_12']} |  |  | 0 of 3 |" in text
    assert (f"{RATE:g} is the largest of the rates" in text) == (max(TRIED_RATES) == RATE)
    # The mean over 40 epochs is not one over 20.
    assert "mae_2x" not in content["values"]["probe_mean"] and "mae_2x" in content["values"]["linear"]
    assert (tmp_path / "half_epochs_loss.png").exists()
    gain = stats.ttest_rel(means["mae_2x"], means["mae"]).confidence_interval(0.95)
    assert f"({gain.low:+.4f} to {gain.high:+.4f})" in text and "so there is something to reach" in text
    below = sum(each["p"] is not None and each["p"] < 0.05 for each in secondary)
    kept = sum(each["p"] is not None and each["p_holm"] < 0.05 for each in secondary)
    tested = sum(each["p"] is not None for each in secondary)
    table = [line for line in text.splitlines() if line.count("|") == 11]
    assert len(table) == 2 + 35 and sum(line.endswith("| finding |") for line in table) == kept
    assert sum(line.endswith("| waits |") for line in table) == sum(len(c["seeds"]) < c["planned"] for c in secondary)
    assert f"Of {tested} secondary comparisons that are finished {below} have p below 0.05" in text and kept > 0
    assert f"After Holm's correction {kept} remain: " in text


def test_without_all_seeds_there_is_no_verdict(tmp_path):
    seeds = len(STUDY.seeds["robust"])
    results, _ = made_up({"mae": 0.0, "robust": 0.2, "mae_2x": 0.1}, seeds=seeds - 1)
    text = write_plan_report(STUDY, results, tmp_path / "some", "c", {}).read_text()
    assert f"**{UNFINISHED}**" in text and "has no verdict yet" in text
    # Nor is there a finding, however clear a secondary comparison is, or a sentence about what there is to reach.
    content = json.loads((tmp_path / "some" / "half_epochs.json").read_text())
    assert min(each["p"] for each in content["secondary"] if each["p"] is not None) < 0.001
    assert all(each["p_holm"] is None for each in content["secondary"]) and "| finding |" not in text
    assert f"| {seeds - 1} of {seeds} | " in text and "Of 0 secondary comparisons" in text
    assert f"not known yet: {seeds - 1} of {seeds} seeds are finished" in text
    assert "something to reach" not in text and "extends" not in text
    nothing = write_plan_report(STUDY, {kind: {} for kind in KINDS}, tmp_path / "none", "c", {}).read_text()
    assert f"**{UNFINISHED}**" in nothing and "Of 0 secondary comparisons that are finished 0 have" in nothing
