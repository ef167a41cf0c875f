"""--diagnostics_steps: numbers and pictures, and training that is what it was."""

import json

import pytest

from hf_mae_robust.__main__ import main
from hf_mae_robust.analysis.evaluators import EVALUATORS
from hf_mae_robust.pretrain import make_parser, prepare, pretrain
from hf_mae_robust.pretraining.arguments import DIAGNOSTICS
from tests.helpers import TINY_OVERRIDES, as_flags, losses
from tests.runs import run


@pytest.fixture
def settings(photos_dir, tmp_path):
    return {
        "dataset_name": photos_dir,
        "config_overrides": TINY_OVERRIDES,
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_train_epochs": 2,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "crop_pct": 1.0,
    }


def train(settings, *more):
    return pretrain(*make_parser().parse(as_flags(settings, *more)))


def test_numbers_and_pictures_come_and_training_is_the_same_bit_by_bit(settings, tmp_path):
    flags = ["--diagnostics_steps", 4, "--diagnostics_samples", 10]
    flags += ["--label_column_name", "label", "--probe_samples", 9]
    observed, plain = train(settings, *flags), train({**settings, "output_dir": tmp_path / "plain"})
    assert losses(observed) == losses(plain) and len(losses(plain)) == 10
    for name, value in plain.model.state_dict().items():
        assert value.equal(observed.model.state_dict()[name]), name
    entries = [entry for entry in observed.state.log_history if "diagnostics/loss" in entry]
    assert [entry["step"] for entry in entries] == [0, 4, 8, 10] and entries[0]["epoch"] == 0
    for entry in entries:
        assert {f"diagnostics/encoder {i}/{name}" for i in range(2) for name in ("similarity", "rank")} <= entry.keys()
        assert {"diagnostics/mean/alignment", "diagnostics/decoder 0/entropy"} <= entry.keys()
        assert 0 <= entry["diagnostics/knn_accuracy"] <= 1 and 0 <= entry["diagnostics/linear_probe_accuracy"] <= 1
        assert not any("head" in name for name in entry)
    names = {path.name for path in (tmp_path / "out" / "diagnostics" / "step-8").iterdir()}
    assert names == {"blocks.png", "loss_map.png", "reconstructions.png"}


@pytest.mark.slow  # all of it is quick
def test_only_what_is_asked_for_is_looked_at(settings, tmp_path):
    flags = ["--max_steps", 5, "--diagnostics_steps", 0.3]
    log = train(settings, *flags, "--diagnostics", "none", "--label_column_name", "auto").state.log_history
    found = {name for entry in log for name in entry if name.startswith("diagnostics/")}
    assert found == {"diagnostics/knn_accuracy", "diagnostics/linear_probe_accuracy"}
    assert [entry["step"] for entry in log if "diagnostics/knn_accuracy" in entry] == [0, 2, 4, 5]
    log = train({**settings, "output_dir": tmp_path / "map"}, *flags, "--diagnostics", "loss_map").state.log_history
    assert {name for entry in log for name in entry if name.startswith("diagnostics/")} == {"diagnostics/loss"}
    with pytest.raises(SystemExit):
        make_parser().parse(as_flags(settings, "--diagnostics", "attentoin"))


def test_the_probe_is_that_of_the_features(settings, photos_dir):
    """Against `analyze knn` on the model at its end, with the same images."""
    flags = ["--max_steps", 3, "--diagnostics_steps", 3, "--diagnostics", "none", "--label_column_name", "label"]
    train(settings, *flags, "--probe_samples", 30)
    log = json.loads((settings["output_dir"] / "trainer_state.json").read_text())["log_history"]
    logged = [entry["diagnostics/knn_accuracy"] for entry in log if "diagnostics/knn_accuracy" in entry]
    output = settings["output_dir"] / "knn.json"
    words = ["--dataset_name", photos_dir, "--pooling", "mean", "--max_train_samples", 30, "--crop_pct", 1.0]
    main(["analyze", "knn", str(settings["output_dir"]), *map(str, [*words, "--num_workers", 0, "--output", output])])
    assert json.loads(output.read_text())["accuracy"] == pytest.approx(logged[-1])


def test_every_diagnostic_that_can_be_asked_for_is_there():
    assert set(DIAGNOSTICS) == set(EVALUATORS) - {"cka"}  # between two models; a matrix is nothing to log


def test_what_is_wrong_is_said_before_the_training(settings, capsys):
    with pytest.raises(ValueError, match="no column 'kind'"):
        prepare(make_parser().parse(as_flags(settings, "--diagnostics_steps", 2, "--label_column_name", "kind")))
    nothing = ["--diagnostics_steps", 2, "--label_column_name", "label", "--eval_split_name", "none"]
    with pytest.raises(ValueError, match="no split to classify"):
        prepare(make_parser().parse(as_flags(settings, *nothing)))
    with pytest.raises(SystemExit):
        make_parser().parse(as_flags(settings, "--label_column_name", "label"))
    assert "--label_column_name is for --diagnostics_steps" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        make_parser().parse(as_flags(settings, "--diagnostics_steps", 1.5))
    assert "--diagnostics_steps 1.5: above 1, a whole number" in capsys.readouterr().err


@pytest.mark.slow  # classification is evaluated by two processes by default
def test_two_processes_see_what_one_sees(settings, tmp_path):
    """Before the first step the models are the same; training is what it was without."""
    flags = as_flags(
        {**settings, "max_steps": 3, "per_device_train_batch_size": 4, "decoder_attention_probs_dropout_prob": 0}
    )
    looking = ["--diagnostics_steps", "2", "--diagnostics_samples", "10", "--label_column_name", "label"]
    both, plain = (run([*flags, *more], tmp_path / f"two-{len(more)}", 2) for more in (looking, []))
    alone = run([*flags, "--per_device_train_batch_size", "8", *looking], tmp_path / "one")
    assert both.codes == plain.codes == [0, 0] and alone.codes == [0], both.output + plain.output + alone.output
    assert both.losses() == plain.losses() and both.weights() == plain.weights()
    starts = []
    for done in (both, alone):
        entries = [entry for entry in done.state()["log_history"] if "diagnostics/knn_accuracy" in entry]
        assert [entry["step"] for entry in entries] == [0, 2, 3]
        starts.append({name: value for name, value in entries[0].items() if name.startswith("diagnostics/")})
    assert len(starts[0]) > 20 and starts[0] == pytest.approx(starts[1], rel=1e-4)
