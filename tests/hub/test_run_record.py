"""What a run was, for its card."""

import json
import os
import platform
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from hf_mae_robust import __version__
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation, ImageSource
from hf_mae_robust.hub.run_record import (
    about_run,
    hardware_of,
    portable,
    processor_name,
    read_record,
    short_name,
    write_record,
)


def trainer_on(evaluation=None, world_size=1):
    return SimpleNamespace(
        args=SimpleNamespace(device=torch.device("cpu"), world_size=world_size),
        eval_dataset=evaluation,
        model=torch.nn.Linear(3, 2),
    )


def about(trainer, dataset_name=None, **more):
    settings = {"task": "pre-training", "start": None, "start_commit": None, "built_in_dataset": "digits"}
    return about_run(trainer, dataset_name=dataset_name, recipe=None, model_license="mit", **{**settings, **more})


def test_paths_of_this_machine_are_shortened_and_names_of_the_hub_are_not(tmp_path):
    (tmp_path / "ours").mkdir()
    assert short_name(str(tmp_path / "ours")) == "ours" and short_name("ada/encoder") == "ada/encoder"
    assert short_name(None) is None
    local, remote, built_in = (about(trainer_on(), name) for name in (str(tmp_path / "ours"), "ada/waves", None))
    assert (local["dataset"], local["is_dataset_on_hub"]) == ("ours", False)
    assert (remote["dataset"], remote["is_dataset_on_hub"]) == ("ada/waves", True)
    named, elsewhere = (about(trainer_on(), name) for name in ("hf://datasets/ada/waves", "s3://bucket/waves"))
    assert (named["dataset"], named["is_dataset_on_hub"]) == ("ada/waves", True)
    assert (elsewhere["dataset"], elsewhere["is_dataset_on_hub"]) == ("s3://bucket/waves", False)
    assert (built_in["dataset"], built_in["is_dataset_on_hub"]) == ("digits", False)


def test_it_says_on_which_split_and_how_many_images_it_was_evaluated():
    source = ImageSource(None, (5, 3), True, "/some/where/set (test (2))", "", split="test (2)").head(6)
    said = about(trainer_on(source))
    assert (said["evaluated_on"], said["split"], said["num_evaluated"]) == ("set (test (2))", "test (2)", 6)
    assert said["num_parameters"] == 8 and said["software"]["hf_mae_robust"] == __version__
    nothing = about(trainer_on())
    assert nothing["evaluated_on"] is nothing["split"] is nothing["num_evaluated"] is None


def test_images_held_out_of_a_split_are_not_the_split(photos_dir):
    _, held_out = open_splits(DataLocation(str(photos_dir)), "train", None, train_val_split=0.25)
    for source in (held_out, held_out.head(3), held_out.sample(3, 0)):
        assert about(trainer_on(source))["split"] == "train, held out"


def test_paths_from_elsewhere_are_shortened_and_those_below_the_current_folder_are_not():
    content = {
        "a": ["/data/set (train)", r"C:\Users\ada\set", "ada/set", "outputs/run", 3],
        "b": {"c": "/x", "d": "../../ada/clinic/scans", "e": "data/../ada/set", "f": r"..\ada\set"},
        "c": ["train-{000..010}.tar", "1..2", "Done.. / so"],
    }
    assert portable(content) == {
        "a": ["set (train)", "set", "ada/set", "outputs/run", 3],
        "b": {"c": "x", "d": "scans", "e": "set", "f": "set"},
        "c": ["train-{000..010}.tar", "1..2", "Done.. / so"],
    }


@pytest.mark.parametrize(("count", "words"), [(1, "1 x CPU process ("), (2, "2 x CPU processes (")])
def test_the_machine_is_named(count, words):
    assert hardware_of(trainer_on(world_size=count)).startswith(words)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("lscpu") is None, reason="where lscpu reads the same file"
)
def test_the_processor_is_named_as_lscpu_does():
    text = subprocess.run(["lscpu"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}).stdout
    name = re.search(r"(?m)^Model name:\s*(.+?)\s*$", text)[1]
    assert processor_name() == name and hardware_of(trainer_on()).endswith(f", {name})")


def test_a_record_comes_back(tmp_path):
    record = {"seed": 3, "about": about(trainer_on())}
    write_record(tmp_path, record)
    assert read_record(tmp_path) == json.loads(json.dumps(record))
