"""Sentences about what a study with a plan shows: one for each case of its rule."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from hf_mae_robust.studies.comparisons import NOT_REACHED, REACHED, UNDECIDED, evaluate_plan
from hf_mae_robust.studies.definitions import studies
from hf_mae_robust.studies.plan_conclusions import conclusions

STUDY = studies(4)["half_epochs"]
LABELS = {variant.name: variant.label for variant in STUDY.variants}
# Differences of five seeds with a mean of 0 and a deviation of 1.
SPREAD = np.array([-1.2, -0.6, 0.1, 0.5, 1.2]) / np.std([-1.2, -0.6, 0.1, 0.5, 1.2], ddof=1)


def report_of(difference, deviation=0.002, gain=0.02, finetuned=-0.01):
    """The robust recipe minus MAE in twice the epochs, and the latter minus MAE."""
    mae = np.array([0.50, 0.52, 0.51, 0.53, 0.49])
    values = {"mae": mae, "mae_2x": mae + gain + 0.001 * SPREAD[::-1]}
    values["robust"] = values["mae_2x"] + difference + deviation * SPREAD
    tuned = {"mae": mae, "mae_2x": mae + gain, "robust": mae + gain + finetuned + 0.003 * SPREAD}
    results = {kind: {} for kind in ("pretrain", "analyze", "knn", "linear", "attentive", "finetune")}
    for kind, of in (("linear", values), ("finetune", tuned)):
        for name, row in of.items():
            results[kind][name] = {seed: {"metrics": {"eval_accuracy": value}} for seed, value in enumerate(row)}
    found = evaluate_plan(STUDY.plan, results, STUDY.seeds)
    return SimpleNamespace(found=found, text="\n".join(conclusions(STUDY, found)), values=values)


@pytest.mark.parametrize(
    ("difference", "deviation", "verdict", "sentence"),
    [
        (0.010, 0.002, REACHED, "reaches {other}, and lies above."),
        (0.000, 0.002, REACHED, "reaches {other} within 0.005."),
        (-0.003, 0.001, REACHED, "reaches {other} within 0.005, though it lies below."),
        (-0.010, 0.002, NOT_REACHED, "does not reach {other}.\n"),
        (-0.006, 0.003, NOT_REACHED, "does not reach {other}. The interval still includes shortfalls of less than"),
        (-0.002, 0.010, UNDECIDED, "is undecided: the interval includes both no shortfall and one of more than 0.005."),
    ],
)
def test_each_case_has_its_sentence(difference, deviation, verdict, sentence):
    found = report_of(difference, deviation)
    assert found.found["primary"]["verdict"] == verdict
    assert sentence.format(other=LABELS["mae_2x"]) in found.text


@pytest.mark.parametrize(("gain", "says"), [(0.02, "so there is something to reach"), (0.005, "it says little")])
def test_what_there_is_to_reach(gain, says):
    text = report_of(0.0, gain=gain).text
    assert says in text and f"Twice the epochs give MAE {gain:+.4f}" in text


def test_fine_tuned_stands_beside_it():
    half = stats.t.ppf(0.975, 4) * 0.003 / 5**0.5
    assert f"is -0.0100 ({-0.01 - half:+.4f} to {-0.01 + half:+.4f})" in report_of(0.0).text


def test_what_the_rule_says_of_equal_recipes():
    """Against the same simulation with scipy's test, by another generator."""
    found = report_of(0.0, deviation=0.008)
    drawn = np.random.default_rng(7).normal(0, 0.008, (5000, 5))
    interval = stats.ttest_1samp(drawn, 0, axis=1).confidence_interval(0.95)
    reached = (interval.low >= -0.005).mean()
    share = int(re.search(rf'"{REACHED}" in (\d+)% of studies of 5 seeds', found.text)[1])
    assert share == pytest.approx(100 * reached, abs=2) and 10 < share < 30
    half = stats.t.ppf(0.975, 4) * 0.008 / 5**0.5
    assert f"extends {half:.4f} to each side" in found.text


def test_how_clear_a_difference_has_to_be():
    """The smallest of 35 p-values is below 0.05 after the correction where it is below 0.05 / 35."""
    text = report_of(0.0).text
    for count in (3, 5):
        needed = float(re.search(rf"with {count} seeds \|t\| of at least ([\d.]+)", text)[1])
        assert stats.t.sf(needed + 0.06, count - 1) * 2 < 0.05 / 35 < stats.t.sf(needed - 0.06, count - 1) * 2
