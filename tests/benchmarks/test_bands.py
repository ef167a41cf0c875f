"""benchmarks/bands.py: its runs have flags that exist, and its report says what was found."""

import json
import sys
from importlib import util
from pathlib import Path

import pytest

from hf_mae_robust.finetune import make_parser as make_finetune_parser
from hf_mae_robust.pretrain import make_parser

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bands.py"


@pytest.fixture(scope="module")
def bands():
    specification = util.spec_from_file_location("benchmark_of_bands", SCRIPT)
    module = util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where its dataclasses look themselves up
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


def test_the_flags_of_all_runs_exist(bands, tmp_path):
    runs = [bands.classification_runs(tmp_path, tmp_path, name, 1) for name in bands.SETS]
    runs.append(bands.nuclei_runs(tmp_path, 1))
    for before, after in (pair for found in runs for pair in found.values()):
        assert make_parser().parse(before.words()).training.seed == 1
        assert make_finetune_parser().parse(after.words()).training.seed == 1
        assert before.output.parts[-2:] == ("pretrain", "output") and after.after is before


def test_the_report_is_of_what_has_finished(bands, tmp_path, capsys):
    name = "landsat8-clouds"
    for seed, scratch, pretrained in [(0, 0.5, 0.6), (1, 0.6, 0.8)]:
        runs = bands.classification_runs(tmp_path, tmp_path, name, seed)
        found = {"train_runtime": 1.0, "eval_loss": 0.5, "eval_loss_of_mean": 1.0}
        for model, accuracy in ((bands.SCRATCH, scratch), ("global_rgb", pretrained)):
            for run in runs[model]:
                run.folder.mkdir(parents=True, exist_ok=True)
                content = {"settings": run.recorded(), "metrics": {**found, "eval_accuracy": accuracy}}
                (run.folder / "result.json").write_text(json.dumps(content))
    bands.report(tmp_path, tmp_path)
    printed = capsys.readouterr().out
    assert "0.550 ± 0.071" in printed and "0.700 ± 0.141" in printed  # statistics.stdev of two numbers
    assert "global_rgb against from scratch, by seed: 0.150 ± 0.071" in printed
    rows = json.loads((tmp_path / "bands.json").read_text())["runs"]
    assert [(row["model"], row["seed"], row["fine-tuned"]) for row in rows] == [
        ("global_rgb", 0, 0.6),
        ("scratch", 0, 0.5),
        ("global_rgb", 1, 0.8),
        ("scratch", 1, 0.6),
    ]
