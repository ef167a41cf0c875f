"""The report of tuned learning rates: which one is chosen, and whether it is the one that is used."""

import json
from dataclasses import replace

from hf_mae_robust.studies import rates_report
from hf_mae_robust.studies.definitions import TRIED_RATES, studies
from hf_mae_robust.studies.rates_report import best_rate, write_rates_report

STUDY = studies(4)["learning_rates"]


def made_up(accuracies):
    return {
        f"{name}_{rate:g}": {7: {"metrics": {"eval_accuracy": value}, "curves": {}}}
        for name, values in accuracies.items()
        for rate, value in zip(TRIED_RATES, values)
    }


def written(folder, linear):
    path = write_rates_report(STUDY, {"linear": linear, "pretrain": {}}, folder, "the command", {"data": "made up"})
    return path.read_text(), json.loads(path.with_suffix(".json").read_text())


def test_the_best_of_each_is_chosen_and_compared_with_what_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(rates_report, "LEARNING_RATES", {"mae": TRIED_RATES[1], "robust": TRIED_RATES[0]})
    text, content = written(tmp_path, made_up({"mae": (0.5, 0.52, 0.51, 0.4), "robust": (0.5, 0.5, 0.52, 0.53)}))
    assert content["chosen"] == {"mae": TRIED_RATES[1], "robust": TRIED_RATES[3]}
    assert content["tried"]["mae"] == {str(rate): v for rate, v in zip(TRIED_RATES, (0.5, 0.52, 0.51, 0.4))}
    assert "| mae | 0.5000 | 0.5200 | 0.5100 | 0.4000 |" in text
    assert f"- mae: {TRIED_RATES[1]:g}, which `--scale medium` has.\n" in text
    assert f"- robust: {TRIED_RATES[3]:g}, and `--scale medium` has {TRIED_RATES[0]:g}. It is at the end" in text


def test_nothing_is_chosen_before_all_are_tried(tmp_path):
    text, content = written(tmp_path, made_up({"mae": (0.5, 0.52), "robust": (0.1, 0.2, 0.3, 0.1)}))
    assert list(content["chosen"]) == ["robust"] and "- mae: not all rates are tried yet." in text


def test_of_equal_ones_the_lowest():
    assert best_rate({0.02: 0.5, 0.01: 0.5, 0.001: 0.4}) == 0.01


def test_both_recipes_are_the_studys():
    tried = {variant.tuned: variant for variant in STUDY.variants}
    for name, variant in tried.items():
        of_study = next(each for each in studies(4)["half_epochs"].variants if each.name == name)
        assert variant.flags() == of_study.flags()
        as_named = replace(variant, name=name, label=of_study.label, learning_rate=None, epochs=of_study.epochs)
        assert as_named == of_study
    assert {variant.tuned for variant in STUDY.variants} == {"mae", "robust"}
