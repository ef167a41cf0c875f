"""Planned comparisons: Holm, the bootstrap over images and the verdict, against other ways to compute them."""

import numpy as np
import pytest
from scipy import stats

from hf_mae_robust.errors import StudyError
from hf_mae_robust.studies.comparisons import (
    NOT_REACHED,
    REACHED,
    UNDECIDED,
    UNFINISHED,
    bootstrap_over_images,
    compared,
    evaluate_plan,
    holm,
    verdict,
)
from hf_mae_robust.studies.definitions import Comparison, Plan
from hf_mae_robust.studies.hits import packed
from hf_mae_robust.studies.report import paired
from hf_mae_robust.training.predictions import Predictions


def test_holm_is_that_of_published_examples():
    # Four hypotheses at 0.05: those with 0.005 and 0.01 are rejected, the others are not (Wikipedia, "Holm-Bonferroni
    # method", example).
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_holm_rejects_what_its_steps_reject():
    """Step down from the smallest: reject while p is at most alpha / (m - how many were rejected before)."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        p = rng.random(12) ** 3
        rejected = np.zeros(12, dtype=bool)
        for before, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (12 - before):
                break
            rejected[index] = True
        assert ((np.array(holm(p)) <= 0.05) == rejected).all()


def sides(seeds=4, images=400):
    rng = np.random.default_rng(0)
    hard = rng.random(images)
    return tuple(hard + rng.normal(size=(seeds, images)) * 0.3 < share for share in (0.55, 0.5))


def test_the_bootstrap_is_that_of_scipy():
    mine, others = sides()
    found = bootstrap_over_images(mine, others)
    differences = (mine.astype(float) - others).mean(axis=0)
    expected = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=10_000, rng=1)
    assert found == pytest.approx(tuple(expected.confidence_interval), abs=0.002)
    assert found[0] < differences.mean() < found[1] and found[1] - found[0] > 0.02
    assert bootstrap_over_images(mine, mine) == (0, 0)


def results_of(hits, kind="linear"):
    """Variant -> (S, N) bool, as results of a kind."""
    labels = np.zeros(next(iter(hits.values())).shape[1], dtype=int)
    return {
        kind: {
            name: {
                seed: {
                    "metrics": {"eval_accuracy": float(row.mean())},
                    "hits": packed(Predictions(np.arange(len(labels)), labels, (~row).astype(int), labels)),
                }
                for seed, row in enumerate(rows)
            }
            for name, rows in hits.items()
        }
    }


def test_a_comparison_is_paired_by_the_seeds_that_both_have():
    mine, others = sides()
    found = compared(Comparison("linear", "a", "b"), results_of({"a": mine[:3], "b": others}))
    expected = stats.ttest_rel(mine[:3].mean(axis=1), others[:3].mean(axis=1))
    assert found["seeds"] == [0, 1, 2] and found["p"] == pytest.approx(expected.pvalue)
    assert found["interval"] == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found["difference"] == pytest.approx(mine[:3].mean() - others[:3].mean())
    assert found["over_images"] == pytest.approx(bootstrap_over_images(mine[:3], others[:3]))
    assert compared(Comparison("linear", "a", "c"), results_of({"a": mine}))["seeds"] == []


def test_other_images_are_refused():
    mine, others = sides()
    results = results_of({"a": mine, "b": others})
    results["linear"]["b"][1]["hits"]["of"] = "00000000"
    with pytest.raises(StudyError, match="linear probe of a and b: the runs have classified different images"):
        compared(Comparison("linear", "a", "b"), results)


@pytest.mark.parametrize(
    ("interval", "seeds", "expected"),
    [
        ((-0.005, 0.02), 5, REACHED),
        ((-0.004, -0.001), 5, REACHED),  # within the margin, though below
        ((0.001, 0.02), 5, REACHED),
        ((-0.006, 0.001), 5, UNDECIDED),
        ((-0.006, 0.0), 5, UNDECIDED),
        ((-0.02, -0.001), 5, NOT_REACHED),
        ((-0.004, 0.02), 4, UNFINISHED),
    ],
)
def test_the_verdict_follows_the_plan(interval, seeds, expected):
    assert verdict({"interval": interval, "seeds": list(range(seeds)), "planned": 5}, 0.005) == expected


@pytest.mark.parametrize(("difference", "expected"), [(-0.005, REACHED), (-0.0051, NOT_REACHED)])
def test_equal_differences_of_all_seeds_are_an_interval_of_their_own(difference, expected):
    """The t-test has none. 0.57 - 0.56 is not 0.58 - 0.57 in binary, which would give a p of 1e-29."""
    found = paired([0.57, 0.58, 0.59], [0.56, 0.57, 0.58])
    assert found["p"] is None and found["interval"] is None
    found = {"interval": None, "difference": difference, "seeds": [0, 1, 2, 3, 4], "planned": 5}
    assert verdict(found, 0.005) == expected
    assert verdict(found | {"seeds": [0], "planned": 1}, 0.005) == UNFINISHED  # one seed says nothing of others


def test_the_correction_counts_all_that_are_planned():
    mine, others = sides(seeds=4)
    secondary = (Comparison("linear", "a", "b"), Comparison("linear", "c", "b"), Comparison("knn", "a", "b"))
    plan = Plan(Comparison("linear", "b", "a"), 0.005, secondary, "PLAN.md")
    found = evaluate_plan(plan, results_of({"a": mine, "b": others}), dict.fromkeys("abc", range(4)))
    first, *missing = found["secondary"]
    assert first["p_holm"] == pytest.approx(min(1, 3 * first["p"])) and 0 < first["p"] < 0.3
    assert all(each["p"] is each["p_holm"] is None for each in missing)
    assert found["primary"]["difference"] == pytest.approx(-first["difference"])
    unfinished = evaluate_plan(plan, results_of({"a": mine, "b": others}), dict.fromkeys("abc", range(5)))
    assert unfinished["secondary"][0]["p"] == first["p"] and unfinished["secondary"][0]["p_holm"] is None
    assert found["primary"]["margin"] == 0.005 and found["primary"]["verdict"] in (NOT_REACHED, UNDECIDED)
