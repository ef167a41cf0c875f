"""benchmarks/adapting.py: its runs have flags that exist, and its report says what was found."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest

from hf_mae_robust.finetune import make_parser as make_finetune_parser
from hf_mae_robust.pretrain import make_parser

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def adapting():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)  # as of a script there
        yield import_module("adapting")
    for name in ("adapting", "bands"):
        del sys.modules[name]


def finish(run, **metrics):
    run.folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": run.recorded(), "metrics": {"train_runtime": 1.0, **metrics}}
    (run.folder / "result.json").write_text(json.dumps(content))


def test_the_flags_of_all_runs_exist(adapting, tmp_path):
    source = adapting.source_run(tmp_path, tmp_path)
    assert make_parser().parse(source.words()).training.num_train_epochs == 10
    for name in adapting.TRAINING:
        runs = adapting.pretraining_runs(tmp_path, tmp_path, name, 2)
        adapted, scratch = (make_parser().parse(runs[model].words()) for model in ("adapted", "from scratch"))
        assert adapted.model.encoder_from == str(source.output) and scratch.model.encoder_from is None
        assert adapted.training.max_steps == scratch.training.max_steps == 300
        assert adapted.training.layer_decay < 1 and scratch.training.layer_decay == 1
    for name in adapting.HEADS:
        runs = adapting.segmentation_runs(tmp_path, tmp_path, name, 0)
        assert set(runs) == {"no adaptation", "adapted", "from scratch", "untrained"}
        for model, run in runs.items():
            parsed = make_finetune_parser().parse(run.words())
            assert parsed.training.seed == 0 and parsed.model.from_scratch is (model == adapting.UNTRAINED)
            assert parsed.model.freeze_encoder is (name != adapting.FINETUNED)


def test_the_report_is_of_what_has_finished(adapting, tmp_path, capsys):
    probes = {"adapted": (0.5, 0.6), "no adaptation": (0.45,), "from scratch": (0.4, 0.3)}
    for model, values in probes.items():
        for seed, value in enumerate(values):
            path = adapting.frozen_file(tmp_path, model, seed)
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps({"knn": 0.25, "probe": value}))
    finish(adapting.segmentation_runs(tmp_path, tmp_path, adapting.CAMVID, 0)["no adaptation"], eval_mean_iou=0.2)
    for seed, adapted in {0: 0.3, 7: 0.9}.items():
        runs = adapting.segmentation_runs(tmp_path, tmp_path, adapting.CAMVID, seed)
        finish(runs["adapted"], eval_mean_iou=adapted)
        finish(adapting.pretraining_runs(tmp_path, tmp_path, adapting.CAMVID, seed)["adapted"], eval_loss=0.75)
    adapting.report(tmp_path, tmp_path)
    printed = capsys.readouterr().out
    assert "0.550 ± 0.071" in printed and "0.350 ± 0.071" in printed  # statistics.stdev of two numbers
    # One source for all seeds, each model from scratch for its own; seed 7 is in no mean.
    assert "linear probe, adapted minus no adaptation, by seed: 0.100 ± 0.071 (+0.050, +0.150)" in printed
    assert "linear probe, adapted minus from scratch, by seed: 0.200 ± 0.141 (+0.100, +0.300)" in printed
    assert "mean IoU, frozen, adapted minus no adaptation, by seed: 0.100 (1 seed) (+0.100)" in printed
    assert "mean IoU, frozen, adapted, seed 7 (for tuning): 0.900" in printed and "0.750 (1 seed)" in printed
    rows = json.loads((tmp_path / "adapting.json").read_text())["runs"]
    found = [(row["seed"], row["eval_mean_iou"]) for row in rows if row["model"] == "adapted" and "probe" not in row]
    assert found == [(0, 0.3), (7, 0.9)]
