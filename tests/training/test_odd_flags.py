"""Command lines of valid flags with odd values: each runs, or ends in one sentence with exit code 2."""

import argparse
import random

import pytest

from hf_mae_robust import finetune, pretrain
from hf_mae_robust.errors import UserError
from hf_mae_robust.training.ranges import RANGES
from tests.helpers import TINY_OVERRIDES

PARSERS = {"pretrain": pretrain.make_parser(prog="run_pretrain.py"), "finetune": finetune.make_parser(prog="run")}
DOORS = {"pretrain": pretrain, "finetune": finetune}
# They ask the Hub for a repository, or change what all later tests of this process compute.
LEFT_OUT = {"help", "config", "push_to_hub", "full_determinism", "output_dir", "overwrite_output_dir"}
NUMBERS = ["0", "1", "-1", "3", "0.5", "-0.5", "1e-6", "1e30", "nan", "inf", "10000000000000000000000", "1,5", "two"]
TEXTS = [
    "none", "auto", "no", "true", "~/nowhere", "~nobody/x", "/dev/null", "./no/such/folder", "a/b", "a//b", ".", "{",
    '{"a": 1}', '{"min_lr": "1e-6"}', "[1", "a=b", "image_size=8", "patch_size=0", "image_size=-4,patch_size=3",
    "hidden_size=x", "1=2", "num_channels=2", "wandb", "loss", "é", "'", " ", "", "--", "0", "7",
]  # fmt: skip


def odd_value(action: argparse.Action, draw: random.Random) -> list[str]:
    if action.nargs == 0:
        return []
    if action.choices:
        return [draw.choice([*map(str, action.choices), "no", "other"])]
    if action.type in (int, float):
        return draw.choices(NUMBERS, k=draw.choice((1, 2)) if action.nargs == "+" else 1)
    if getattr(action.type, "__name__", "") == "string_to_bool":
        return draw.choice(([], ["true"], ["false"], ["maybe"]))
    return [draw.choice(TEXTS)]


def odd_words(parser: argparse.ArgumentParser, draw: random.Random, left_out: set[str] = LEFT_OUT) -> list[str]:
    """One to three flags of a parser with values of this kind. left_out: by name."""
    actions = [action for action in parser._actions if action.option_strings and action.dest not in left_out]
    words = []
    for action in draw.sample(actions, k=min(draw.choice((1, 1, 2, 3)), len(actions))):
        words += [action.option_strings[0], *odd_value(action, draw)]
    return words


@pytest.mark.parametrize("part", range(4))
def test_odd_values_end_in_a_sentence(part, photos_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    draw, ran = random.Random(part), 0
    for _ in range(50):
        script = draw.choice(("pretrain", "finetune"))
        base = {
            "dataset_name": photos_dir,
            "config_overrides": TINY_OVERRIDES,
            "output_dir": tmp_path / "out",
            "per_device_train_batch_size": 8,
            "max_steps": 2,
            "dataloader_num_workers": 0,
            "report_to": "none",
        }
        words = [str(word) for name, value in base.items() for word in (f"--{name}", value)]
        words += ["--from_scratch"] if script == "finetune" else []
        words += odd_words(PARSERS[script], draw)
        try:
            arguments = PARSERS[script].parse(words)
            DOORS[script].prepare(arguments)
            ran += 1
        except SystemExit as end:
            assert end.code == 2, words
        except UserError as error:
            assert str(error).strip(), words
        except Exception as error:
            raise AssertionError(f"{script} {' '.join(words)}") from error
    capsys.readouterr()
    assert ran > 5, "some values are good ones"


@pytest.mark.parametrize("script", PARSERS)
def test_every_number_has_a_range(script):
    numeric = {action.dest for action in PARSERS[script]._actions if action.type in (int, float)}
    assert numeric - RANGES.keys() == set()


def test_no_range_is_left_over():
    assert RANGES.keys() <= {action.dest for parser in PARSERS.values() for action in parser._actions}
