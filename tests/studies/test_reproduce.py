"""The paper's studies: what is run, how it resumes, and what the report says."""

import argparse
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from hf_mae_robust import ViTMAERobustConfig, finetune, pretrain
from hf_mae_robust.__main__ import main
from hf_mae_robust.__main__ import make_parser as main_parser
from hf_mae_robust.pretraining.cost import training_flops
from hf_mae_robust.pretraining.model_config import config_of
from hf_mae_robust.pretraining.resolution import ResolutionSchedule
from hf_mae_robust.studies import reproduce
from hf_mae_robust.studies.definitions import (
    LEARNING_RATES,
    MEASURES,
    SEEDS_HALF_EPOCHS,
    STUDIES,
    TRIED_RATES,
    studies,
)
from hf_mae_robust.studies.hits import unpacked
from hf_mae_robust.studies.reproduce import add_reproduce_arguments, in_order, paper_commands, runs_of
from tests.helpers import TINY_OVERRIDES

PARSERS = {"pretrain": pretrain.make_parser, "finetune": finetune.make_parser}


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_reproduce_arguments(parser)
    return parser.parse_args(list(map(str, words)))


@pytest.mark.parametrize("name", sorted(set(STUDIES) - {"learning_rates"}))
def test_every_command_of_the_paper_is_one_that_the_scripts_take(name, capsys):
    commands = paper_commands(studies(12)[name], arguments(name, "--scale", "paper"))
    outputs = [words[-1] for words in commands]
    assert len(set(outputs)) == len(outputs)
    votes = [words for words in commands if words[0] == "python"]
    assert len(votes) == (8 if name == "half_epochs" else 0)
    for words in votes:
        assert main_parser().parse_args(words[3:]).checkpoint in outputs[:8]
    for words in (words for words in commands if words not in votes):
        script = next(word for word in words if word.endswith(".py"))
        PARSERS[script.removeprefix("run_").removesuffix(".py")]().parse(words[words.index(script) + 1 :])
    starts = [words[words.index("--model_name_or_path") + 1] for words in commands if "--model_name_or_path" in words]
    assert all(outputs.index(start) < len(outputs) - len(starts) - len(votes) for start in starts)
    main(["reproduce", name, "--scale", "paper"])
    assert capsys.readouterr().out.splitlines() == [shlex.join(words) for words in commands]


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_of_a_small_study_is_one_that_the_scripts_take(name):
    args = arguments(name, "--dataset_name", "path/to/data", "--seeds", 2, "--finetune_flags=--max_steps 3")
    blocks = 6 if name in ("table3", "table4") else 4
    study = studies(blocks)[name]
    runs = runs_of(study, args)
    for run in runs:
        if run.module in ("analyze", "knn"):
            taken = main_parser().parse_args(run.words())
            assert taken.checkpoint == str(run.after.output)
            written = taken.output_dir if run.module == "analyze" else taken.predictions.parent
            assert written == run.output
            continue
        groups = PARSERS[run.module]().parse(run.words())
        if run.module == "pretrain":
            config = config_of(groups[0])
            assert config.num_hidden_layers == blocks
            variant = next(v for v in study.variants if v.name == run.described["variant"])
            is_patch = config.target_normalization == "global_patch"
            assert groups[0].target_statistics == ("auto" if is_patch else None)
            for flag, value in variant.flags().items():
                if flag != "target_statistics":
                    assert getattr(config, flag) == value
        elif run.kind == "finetune":
            assert groups[-1].max_steps == 3
        else:
            assert groups[0].linear_probe is (run.kind == "linear")
            assert groups[0].probe == ("attentive" if run.kind == "attentive" else None)
    names = {run.described["variant"] for run in runs}
    assert names == {variant.name for variant in study.variants}
    assert ("mae" in names) is (name != "learning_rates")


def test_what_is_to_take_as_long_has_more_epochs_whoever_chose_them():
    study = studies(4)["decoder_keep"]
    as_long = next(variant for variant in study.variants if variant.epochs)
    for more, of_others in (([], 5), (["--num_train_epochs", 10], 10), (["--pretrain_flags=--num_train_epochs 2"], 2)):
        runs = runs_of(study, arguments("decoder_keep", "--dataset_name", "path/to/data", "--seeds", 1, *more))
        epochs = {
            run.described["variant"]: pretrain.make_parser().parse(run.words()).training.num_train_epochs
            for run in runs
            if run.module == "pretrain"
        }
        assert epochs.pop(as_long.name) == pytest.approx(of_others * as_long.epochs["small"], abs=1e-3)
        assert as_long.epochs["small"] > 1 and set(epochs.values()) == {of_others}
    commands = paper_commands(studies(12)["decoder_keep"], arguments("decoder_keep", "--scale", "paper"))
    epochs = [float(words[words.index("--num_train_epochs") + 1]) for words in commands]
    assert epochs[:3] == [100, 100, 100] and 100 < epochs[3] < 150


def test_what_takes_less_time_a_step_gets_more_epochs_and_its_sizes():
    """The paper's 800 epochs over the operations of --dry_run: 58% of those of 224 px throughout."""
    args = arguments("resolution", "--scale", "small", "--dataset_name", "path/to/data", "--num_train_epochs", 10)
    args.seeds = 1
    runs = {run.described["variant"]: run.settings for run in runs_of(studies(4)["resolution"], args)
            if run.module == "pretrain"}  # fmt: skip
    assert runs["mae"]["num_train_epochs"] == 10 < runs["rising"]["num_train_epochs"]
    assert runs["rising"]["resolution_schedule"] == "16:0.5,24:0.8,32:1.0" and "resolution_schedule" not in runs["mae"]
    commands = paper_commands(studies(12)["resolution"], arguments("resolution", "--scale", "paper"))
    words = next(words for words in commands if "--resolution_schedule" in words)
    config = ViTMAERobustConfig(image_size=224)
    schedule = ResolutionSchedule.parse(words[words.index("--resolution_schedule") + 1])
    share = schedule.share_of([training_flops(each) / training_flops(config) for each in schedule.configs(config)])
    assert float(words[words.index("--num_train_epochs") + 1]) == pytest.approx(800 / share, rel=0.01)


def at_medium(name, *more):
    return runs_of(studies(4)[name], arguments(name, "--scale", "medium", "--dataset_name", "path/to/data", *more))


def parsed(run):
    return PARSERS[run.module]().parse(run.words())


def test_half_the_epochs_has_the_runs_of_its_plan():
    """Seeds by variant, what differs between them, and that each finished pre-training is evaluated."""
    runs = at_medium("half_epochs", "--seeds", 5)
    seeds, kinds = {}, {}
    for run in runs:
        kinds.setdefault(run.folder.parent, set()).add(run.kind)
        if run.kind == "pretrain":
            seeds.setdefault(run.described["variant"], []).append(run.described["seed"])
    assert seeds == {name: list(range(count)) for name, count in SEEDS_HALF_EPOCHS.items()}
    assert seeds.keys() >= {"mae", "drop_edge", "global_patch", "robust", "mid_12", "all_12", "mae_2x", "raw"}
    evaluations = {"pretrain", "analyze", "knn", "linear", "attentive", "finetune"}
    assert all(found == evaluations for found in kinds.values()) and len(kinds) == sum(SEEDS_HALF_EPOCHS.values())
    assert 7 not in {run.described["seed"] for run in runs}
    groups = {run.described["variant"]: parsed(run) for run in runs if run.kind == "pretrain"}
    assert {name: each.training.num_train_epochs for name, each in groups.items()} == {
        name: 40 if name == "mae_2x" else 20 for name in groups
    }
    for name, each in groups.items():
        # Probed after the same epochs, which is every second one.
        assert each.training.diagnostics_steps * each.training.num_train_epochs == pytest.approx(2)
        tuned = "robust" if name in ("robust", "all_12") else "mae"
        assert each.recipe.base_learning_rate == LEARNING_RATES[tuned]
        assert each.data.max_train_samples is None and each.data.eval_split_name == "auto"
    by_kind = {run.kind: run for run in runs}
    for kind in ("linear", "attentive"):
        data = parsed(by_kind[kind]).data
        assert data.max_train_samples is None and data.max_eval_samples is None
    tuning = parsed(by_kind["finetune"])
    assert (tuning.data.max_train_samples, tuning.data.max_eval_samples) == (5_000, None)
    # Of fewer seeds, the first ones; rates that are given are those of all.
    few = at_medium("half_epochs", "--seeds", 2, "--base_learning_rate", 0.5)
    assert {run.described["seed"] for run in few} == {0, 1}
    assert {parsed(run).recipe.base_learning_rate for run in few if run.kind == "pretrain"} == {0.5}


def test_the_primary_question_is_answered_first():
    """By all its seeds, each evaluated before the next is trained; and what it does not need comes after it."""
    ordered = in_order(at_medium("half_epochs", "--seeds", 5), [studies(4)["half_epochs"]])
    trained = [(run.described["variant"], run.described["seed"]) for run in ordered if run.kind == "pretrain"]
    assert trained[:15] == [(name, seed) for seed in range(5) for name in ("mae", "robust", "mae_2x")]
    assert [seed for _, seed in trained[15:]] == sorted(seed for _, seed in trained[15:])
    places = {run.folder: place for place, run in enumerate(ordered)}
    assert all(places[run.folder] - places[run.after.folder] <= 5 for run in ordered if run.after)
    # Of other studies: complete seeds.
    table = runs_of(studies(4)["table1"], arguments("table1", "--dataset_name", "path/to/data", "--seeds", 2))
    seeds = [run.described["seed"] for run in in_order(reversed(table), [studies(4)["table1"]])]
    assert seeds == sorted(seeds)


def test_learning_rates_are_tuned_alike_and_never_on_test_images():
    runs = at_medium("learning_rates", "--seeds", 5)
    tried = {}
    for run in runs:
        assert run.kind in ("pretrain", "linear") and run.described["seed"] == run.settings["seed"] == 7
        groups = parsed(run)
        assert (groups.data.eval_split_name, groups.data.train_val_split, groups.training.seed) == ("none", 0.1, 7)
        if run.kind == "pretrain":
            edge = groups.model.decoder_attention_probs_dropout_prob
            tried.setdefault((edge, groups.model.target_normalization), []).append(
                (groups.recipe.base_learning_rate, groups.training.num_train_epochs)
            )
    both = [(rate, 10) for rate in TRIED_RATES]
    assert tried == {(0.0, "global_rgb"): both, (0.3, "global_patch"): both}
    assert set(LEARNING_RATES.values()) <= set(TRIED_RATES)


def test_the_plan_compares_variants_that_are_there():
    study = studies(4)["half_epochs"]
    plan, names = study.plan, {variant.name for variant in study.variants}
    assert vars(plan.primary) == {"measure": "linear", "variant": "robust", "against": "mae_2x"}
    assert plan.primary not in plan.secondary and len(set(plan.secondary)) == len(plan.secondary)
    for comparison in (plan.primary, *plan.secondary):
        assert {comparison.variant, comparison.against} <= names and comparison.measure in MEASURES
    text = (Path(__file__).parents[2] / "benchmarks/reproduce/medium/PLAN.md").read_text()
    assert f"{len(plan.secondary)} secondary comparisons" in text and f"{-plan.margin:.3f}" in text
    for name, count in SEEDS_HALF_EPOCHS.items():
        assert re.search(rf"^\| `{name}` \|.*\| {count} \|", text, flags=re.MULTILINE), name


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


def the_pair(num_blocks):
    """Of the plan's study the pair of its primary comparison, one seed each, and of the learning rates two."""
    found = studies(num_blocks)
    half, rates = found["half_epochs"], found["learning_rates"]
    seeds = {name: (1,) if name in ("robust", "mae_2x") else () for name in half.seeds}
    return {"half_epochs": replace(half, seeds=seeds), "learning_rates": replace(rates, variants=rates.variants[:2])}


@pytest.mark.slow  # its runs are parsed above, and runs of each kind are started in test_runner.py
def test_studies_with_a_plan_run_and_report(photos_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "studies", the_pair)
    words = ["--scale", "medium", "--dataset_name", photos_dir, "--seeds", 2, "--parallel", 2, "--output_dir", tmp_path]
    tiny = f"--config_overrides {TINY_OVERRIDES} --mid_mask_layer_idx 1 --per_device_train_batch_size 8 --max_steps 2"
    few = "--max_steps 2 --per_device_train_batch_size 8"
    words += [f"--pretrain_flags={tiny} --probe_samples 16", f"--probe_flags={few}", f"--finetune_flags={few}"]
    main(["reproduce", "half_epochs", *map(str, words)])
    content = json.loads((tmp_path / "medium/reports/half_epochs.json").read_text())
    assert content["primary"]["seeds"] == [1] and len(content["primary"]["over_images"]) == 2
    folder = tmp_path / "medium/classification/robust-1"
    accuracies = {}
    for kind in ("knn", "linear", "attentive", "finetune"):
        result = json.loads((folder / kind / "result.json").read_text())
        accuracies[kind] = result["metrics"]["accuracy" if kind == "knn" else "eval_accuracy"]
        assert unpacked(result["hits"]).mean() == accuracies[kind]
        assert content["values"][kind]["robust"]["values"] == [accuracies[kind]]
    assert content["cost"]["robust"]["pretrain"] > 0
    main(["reproduce", "learning_rates", *map(str, words)])
    result = json.loads((tmp_path / "medium/classification/mae_0.002-7/linear/result.json").read_text())
    assert result["hits"]["images"] == 4  # a tenth of 40, which are held out
    assert json.loads((tmp_path / "medium/reports/learning_rates.json").read_text())["tried"]["mae"].keys() == {
        "0.002",
        "0.004",
    }


def test_what_is_missing_is_said(capsys, tmp_path):
    for words, message in (
        (["table1"], "--scale small needs --dataset_name"),
        (["table3", "--scale", "smoke"], "--scale smoke is on scikit-learn's digits"),
        (["figure2", "--scale", "smoke", "--seeds", "0"], "--seeds 0"),
        (["half_epochs", "--scale", "smoke"], "--scale smoke is not for half_epochs"),
        (["half_epochs", "--scale", "medium"], "--scale medium needs --dataset_name"),
        (["table3", "--scale", "medium", "--dataset_name", "x"], "--scale medium is not for table3"),
        (["learning_rates", "--scale", "paper"], "--scale paper is not for learning_rates"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["reproduce", *words, "--output_dir", str(tmp_path / "out")])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
