"""The paper's studies: what is run, how it resumes, and what the report says."""

import argparse
import shlex

import pytest

from hf_mae_robust import ViTMAERobustConfig, finetune, pretrain
from hf_mae_robust.__main__ import main
from hf_mae_robust.__main__ import make_parser as main_parser
from hf_mae_robust.pretraining.cost import training_flops
from hf_mae_robust.pretraining.model_config import config_of
from hf_mae_robust.pretraining.resolution import ResolutionSchedule
from hf_mae_robust.studies.definitions import STUDIES, studies
from hf_mae_robust.studies.reproduce import add_reproduce_arguments, paper_commands, runs_of
from tests.helpers import TINY_OVERRIDES

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
            config = config_of(groups[0])
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
    assert ({"mae"} if study.task is None else {"scratch", "mae"}) <= names


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
