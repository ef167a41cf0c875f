"""python -m hf_mae_robust: bad input is a sentence and exit code 2; anything else is a bug of ours."""

import argparse
import errno
import json
import os
import random
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoConfig

from hf_mae_robust.__main__ import COMMANDS, Group, main, make_parser
from hf_mae_robust.data.preprocessing import default_processor
from hf_mae_robust.training.ranges import COMMAND_RANGES, RANGES
from tests.training.test_odd_flags import odd_words


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By the words that name a command, such as "analyze knn"."""
    choices = next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found = {}
    for command in COMMANDS:
        if isinstance(command, Group):
            inner = next(a for a in choices[command.name]._actions if isinstance(a, argparse._SubParsersAction))
            found |= {f"{command.name} {name}": each for name, each in inner.choices.items()}
        else:
            found[command.name] = choices[command.name]
    return found


def refusal(words: list, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    error = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in error, error
    return error


def test_convert_is_a_command(tmp_path, capsys):
    words = ["convert", str(tmp_path / "none.pth"), str(tmp_path / "out"), "--num_attention_heads", "4"]
    assert "none.pth" in refusal(words, capsys)


# They name what may be on the Hub.
ASKS_THE_HUB = {"dataset_name", "pretrain_dataset_name", "other"}
KNN = ["analyze", "knn", "MODEL", "--dataset_name", "SET", "--num_workers", "0"]
EMBED = ["embed", "MODEL", "--dataset_name", "SET", "--num_workers", "0"]
STATISTICS = ["statistics", "--dataset_name", "SET", "--image_size", "16", "--patch_size", "4", "--num_workers", "0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*STATISTICS, "--output", "FOLDER"], "is a folder; name a file"),
        ([*STATISTICS, "--output", "photo.jpg"], "--output photo.jpg: must end in .safetensors, such as photo.jpg.saf"),
        ([*KNN, "--output", "photo.jpg"], "--output photo.jpg: must end in .json"),
        ([*KNN, "--predictions", "photo.jpg"], "--predictions photo.jpg: must end in .csv"),
        ([*KNN, "--output", "a", "--predictions", "a"], "--output and --predictions both name a. Give two files."),
        ([*STATISTICS, "--output", "/dev/null/x"], "--output /dev/null/x: /dev/null is not a folder"),
        ([*STATISTICS, "--output", "s", "--patch_size", "5"], "--patch_size 5: image_size=16 is not a multiple"),
        ([*STATISTICS, "--output", "s", "--image_size", "16", "4", "2"], "--image_size 16 4 2 --patch_size 4: "),
        ([*STATISTICS, "--output", "s", "--image_size", "0"], "--image_size 0: must be at least 1"),
        ([*STATISTICS, "--output", "s", "--num_channels", "2"], "num_channels=2: image files are decoded to "),
        ([*STATISTICS, "--output", "s", "--batch_size", "0"], "--batch_size 0: must be at least 1"),
        ([*STATISTICS, "--output", "s", "--crop_pct", "nan"], "--crop_pct nan: must be at least 0.1"),
        (["convert", "MODEL", "/dev/null/x"], "OUT /dev/null/x: /dev/null is not a folder"),
        (["export", "FOLDER", "out", "--to", "beit"], "its config.json cannot be used: Unrecognized model"),
        (["export", "MODEL", "FOLDER", "--to", "original"], "is a folder; the official form is one file"),
        (["card", "FOLDER", "--model_id", ""], "--model_id is empty"),
        ([*EMBED, "--output", "FOLDER"], "is a folder; name a file, such as"),
        ([*EMBED, "--output", "e.csv"], "--output e.csv: the file is Parquet; name it e.parquet"),
        ([*EMBED, "--output", "/dev/null/x"], "--output /dev/null/x: /dev/null is not a folder"),
        ([*EMBED, "--output", "e", "--near_duplicates", "1.5"], "--near_duplicates 1.5: must be above 0 and at most 1"),
        (
            [*EMBED, "--output", "e", "--near_duplicates", "0.9", "--max_pairs", "0"],
            "--max_pairs 0: must be at least 1",
        ),
        ([*EMBED, "--output", "e", "--pooling", "patches", "--map", "m.png"], "--map needs one vector an image"),
        ([*EMBED, "--output", "e", "--pooling", "patches", "--near_duplicates", "1"], "_duplicates needs one vector"),
        ([*EMBED, "--output", "e", "--map", "map.txt"], "--map map.txt: name a picture that ends in .png"),
        ([*EMBED, "--output", "e", "--map", "/dev/null/m.png"], "--map /dev/null/m.png: /dev/null is not a folder"),
        ([*EMBED, "--output", "e", "--map", "m.png", "--map_samples", "3"], "--map_samples 3: must be at least 4"),
        ([*EMBED, "--output", "e", "--max_bad_images", "2"], "--max_bad_images 2: must be at least 0 and at most 1"),
        ([*EMBED, "--output", "e", "--batch_size", "0"], "--batch_size 0: must be at least 1"),
        ([*EMBED, "--output", "e", "--split", "testing"], "has no split 'testing'"),
        ([*EMBED, "--output", "e", "--model_revision", "v1"], "so it has no revision v1"),
        (["demo", "MODEL", "--server_port", "70000"], "--server_port 70000: must be at least 1 and at most 65535"),
        (["analyze", "knn", "MODEL", "--dataset_name", "SET", "--temperature", "inf"], "--temperature inf: must be"),
        (["analyze", "cka", "MODEL", "--dataset_name", "SET", "--output_dir", "/dev/null"], "null is not a folder"),
        (["reproduce", "table1", "--scale", "smoke", "--pretrain_flags", "'"], "': No closing quotation"),
        (["reproduce", "table1", "--scale", "smoke", "--num_train_epochs", "-1"], "--num_train_epochs -1: must be"),
        (["reproduce", "table1", "--scale", "paper", "--run"], "--run needs the command accelerate"),
    ],
)
def test_bad_input_is_a_sentence(words, message, photos_dir, encoder_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    places = {"SET": photos_dir, "MODEL": encoder_dir, "FOLDER": tmp_path / "full"}
    assert message in refusal([places.get(word, word) for word in words], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def change(file: str, **settings):
    """Of a JSON file, those that are given."""

    def edit(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))

    return edit


def write(file: str, content: bytes):
    return lambda folder: (folder / file).write_bytes(content)


def instead_of_weights(file: str, content: str):
    return lambda folder: (folder / "model.safetensors").rename(folder / file).write_text(content)


DAMAGES = {
    "config: a list": write("config.json", b"[]"),
    "config: a number": write("config.json", b"3"),
    "config: empty": write("config.json", b""),
    "config: Latin-1": write("config.json", b"\xff{}"),
    "config: a text for a size": change("config.json", hidden_size="x"),
    "config: an unknown activation": change("config.json", hidden_act="nope"),
    "config: an unknown type": change("config.json", dtype="nope"),
    "config: labels in a list": change("config.json", id2label=[1, 2]),
    "weights: cut off": lambda folder: os.truncate(folder / "model.safetensors", 5000),
    "weights: text": write("model.safetensors", b"Not found"),
    "weights: an index of nothing": instead_of_weights("model.safetensors.index.json", "{}"),
    "weights: no pickle": instead_of_weights("pytorch_model.bin", "x"),
    "pixels: a list": write("preprocessor_config.json", b"[]"),
    "pixels: text": write("preprocessor_config.json", b"Not found"),
    "pixels: an unknown class": change("preprocessor_config.json", image_processor_type="Nope"),
    "pixels: a deviation of 0": change("preprocessor_config.json", image_std=[0, 0, 0]),
    "pixels: an unknown size": change("preprocessor_config.json", size={"depth": 3}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_named(damage, photos_dir, encoder_dir, tmp_path, capsys):
    """By every command that reads what is damaged."""
    model = tmp_path / "the-model"
    shutil.copytree(encoder_dir, model)
    default_processor(AutoConfig.from_pretrained(model)).save_pretrained(model)
    DAMAGES[damage](model)
    reads_pixels = [
        ["export", model, tmp_path / "out", "--to", "timm"],
        *[["demo", model, "--space", tmp_path / "out"]] * (find_spec("gradio") is not None),
        ["analyze", "knn", model, "--dataset_name", photos_dir, "--num_workers", 0],
        ["embed", model, "--dataset_name", photos_dir, "--num_workers", 0, "--output", tmp_path / "out"],
    ]
    others = [
        ["convert", model, tmp_path / "out"],
        ["analyze", "loss_map", model, "--dataset_name", photos_dir, "--output_dir", tmp_path / "out"],
    ]
    for words in reads_pixels + others * (not damage.startswith("pixels")):
        assert "the-model" in refusal(words, capsys), words
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["config.json", "run.json", "trainer_state.json", "all_results.json"])
@pytest.mark.parametrize("content", ["", "[]", "Not found"])
def test_a_card_of_a_damaged_folder_names_the_file(file, content, tmp_path, capsys):
    for name in ("config.json", "trainer_state.json", "all_results.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "run.json").write_text('{"about": {"task": "classification"}}')
    (tmp_path / file).write_text(content)
    assert file in refusal(["card", tmp_path], capsys)


def test_home_is_meant_in_what_is_read_and_written(photos_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set").symlink_to(photos_dir)
    words = [*STATISTICS, "--num_workers", "0", "--output=~/found/s.safetensors"]
    main([word.replace("SET", "~/set") for word in words])
    assert (tmp_path / "found" / "s.safetensors").is_file()


def test_a_bug_of_ours_says_so_and_what_to_report(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("three is not four")

    monkeypatch.setattr("hf_mae_robust.hub.model_card.card_of_recipe", fail)
    with pytest.raises(SystemExit) as end:
        main(["card", "vit_base_mae_800ep"])
    error = capsys.readouterr().err
    assert end.value.code == 1 and "Traceback" in error
    sentence = error.strip().splitlines()[-1]
    assert "this is a bug of hf_mae_robust (ValueError)" in sentence and "report" in sentence and "torch" in sentence


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_forbidden_disk_is_no_bug(number, monkeypatch, capsys):
    def fail(*_):
        raise OSError(number, "Said by the system", "/disk/card.md")

    monkeypatch.setattr("hf_mae_robust.hub.model_card.card_of_recipe", fail)
    assert "/disk/card.md: Said by the system." in refusal(["card", "vit_base_mae_800ep"], capsys)


@pytest.mark.parametrize("part", range(2))
def test_odd_values_end_in_a_sentence(part, photos_dir, encoder_dir, tmp_path, monkeypatch, capsys):
    """60 command lines of valid flags with odd values, for all commands but those that wait or train."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    parsers, draw, ran = subparsers_of(make_parser()), random.Random(part), 0
    data = ["--dataset_name", photos_dir, "--num_workers", 0]
    analysis = [encoder_dir, *data[:2], "--max_samples", 8, "--output_dir"]
    goods = {
        "statistics": lambda out: [*data, "--image_size", 16, "--patch_size", 4, "--output", out],
        "prepare": lambda out: [photos_dir, "--num_workers", 0, "--short_side", 8, "--output_dir", out],
        "convert": lambda out: [encoder_dir, out],
        "export": lambda out: [encoder_dir, out, "--to", "beit"],
        "card": lambda out: ["vit_base_mae_800ep", "--output", out],
        "analyze cka": lambda out: [*analysis, out],
        "analyze knn": lambda out: [encoder_dir, *data, "--output", out],
        "analyze targets": lambda out: [*data, "--image_size", 16, "--patch_size", 4, "--output", f"{out}.json"],
        "embed": lambda out: [encoder_dir, *data, "--output", out],
        "reproduce": lambda out: ["table1", "--scale", "smoke", "--report_only", "--output_dir", out],
    }
    for run in range(30):
        command = draw.choice(list(goods))
        words = [*command.split(), *goods[command](tmp_path / f"out{run}")]
        words = [*map(str, words), *odd_words(parsers[command], draw, ASKS_THE_HUB | {"help", "run"})]
        try:
            main(words)
            ran += 1
        except SystemExit as end:
            assert end.code == 2, (words, capsys.readouterr().err)
        assert "Traceback" not in capsys.readouterr().err, words
    assert ran > 0, "some values are good ones"


def test_every_number_has_a_range():
    numeric = {
        action.dest
        for parser in subparsers_of(make_parser()).values()
        for action in parser._actions
        if action.type in (int, float)
    }
    assert numeric - RANGES.keys() - COMMAND_RANGES.keys() == set()
    assert COMMAND_RANGES.keys() <= numeric and not COMMAND_RANGES.keys() & RANGES.keys()


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (64, 4)])
def test_no_more_processes_decode_than_there_are_cores(monkeypatch, cores, workers):
    """PyTorch would warn of them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    for words in (
        ["analyze", "knn", "a", "--dataset_name", "b"],
        ["analyze", "targets", "--dataset_name", "b"],
        ["embed", "a", "--dataset_name", "b", "--output", "c"],
        ["statistics", "--dataset_name", "b", "--output", "c"],
    ):
        assert make_parser(words).parse_args(words).num_workers == workers
