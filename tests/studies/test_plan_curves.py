"""Curves of a study with a plan: variants of other lengths and numbers of seeds, and losses of other targets."""

import matplotlib.pyplot as plt

from hf_mae_robust.studies.definitions import studies
from hf_mae_robust.studies.plan_curves import curves_of_plan

STUDY = studies(4)["half_epochs"]
LABELS = {variant.name: variant.label for variant in STUDY.variants}


def run(values, last=20):
    probe = [[last * number / (len(values) - 1), value] for number, value in enumerate(values)]
    return {"curves": {"linear_probe_accuracy": probe, "loss": [[1, 2.0], [last, 1.0]]}}


def test_curves_of_some_variants(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    pretrained = {
        "mae": {0: run([0.1, 0.3, 0.4]), 1: run([0.1, 0.5, 0.6])},
        "mae_2x": {0: run([0.1, 0.3, 0.4, 0.5, 0.6], last=40)},
        "robust": {0: run([0.1, 0.2, 0.7])},
        "raw": {0: run([0.1, 0.2, 0.3])},
    }
    lines = curves_of_plan(STUDY, pretrained, tmp_path)
    names = [f"{LABELS[name]} (n = {n})" for name, n in (("mae", 2), ("robust", 1), ("mae_2x", 1), ("raw", 1))]
    assert f"| epoch | {' | '.join(names)} |" in lines
    assert "| 10 | 0.4000 | 0.2000 | 0.3000 | 0.2000 |" in lines
    assert "| 40 |  |  | 0.6000 |  |" in lines
    probe, loss = figures
    # What the primary comparison is of has a panel; MAE stands in both. The untrained encoder would hide the rest.
    assert [len(axes.lines) for axes in probe.axes] == [3, 2]
    first = probe.axes[0].lines[0]
    assert list(first.get_xdata()) == [10, 20] and list(first.get_ydata()) == [0.4, 0.5]
    # Losses of different targets have different units.
    panels = {axes.get_title(): [line.get_label() for line in axes.lines] for axes in loss.axes}
    assert panels == {
        "target global_rgb": [names[0], names[2]],
        "target global_patch": [names[1]],
        "target none": [names[3]],
    }
    assert {path.name for path in tmp_path.iterdir()} == {
        "half_epochs_linear_probe_accuracy.png",
        "half_epochs_loss.png",
    }


def test_a_resumed_run_that_lacks_a_point(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    short = run([0.1, 0.5, 0.6])
    del short["curves"]["linear_probe_accuracy"][1]
    curves_of_plan(STUDY, {"mae": {0: run([0.1, 0.3, 0.4]), 1: short}}, tmp_path)
    line = figures[0].axes[0].lines[0]
    assert list(line.get_xdata()) == [20] and list(line.get_ydata()) == [0.5] and "n = 2" in line.get_label()


def test_nothing_is_finished(tmp_path):
    assert curves_of_plan(STUDY, {}, tmp_path) == [] and not list(tmp_path.iterdir())
