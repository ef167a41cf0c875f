"""--diagnostics_steps: numbers and pictures, and training that is what it was."""

import pytest

from hf_mae_robust.pretrain import make_parser, prepare, pretrain
from tests.helpers import TINY_OVERRIDES, as_flags, losses


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
    flags = ["--diagnostics_steps", 4, "--diagnostics_samples", 10, "--label_column_name", "label"]
    observed, plain = train(settings, *flags), train({**settings, "output_dir": tmp_path / "plain"})
    assert losses(observed) == losses(plain) and len(losses(plain)) == 10
    for name, value in plain.model.state_dict().items():
        assert value.equal(observed.model.state_dict()[name]), name
    entries = [entry for entry in observed.state.log_history if "diagnostics/loss" in entry]
    assert [entry["step"] for entry in entries] == [4, 8]
    for entry in entries:
        assert {f"diagnostics/encoder {i}/{name}" for i in range(2) for name in ("similarity", "rank")} <= entry.keys()
        assert {"diagnostics/mean/alignment", "diagnostics/decoder 0/entropy"} <= entry.keys()
        assert 0 <= entry["diagnostics/knn_accuracy"] <= 1 and 0 <= entry["diagnostics/linear_probe_accuracy"] <= 1
        assert not any("head" in name for name in entry)
    names = {path.name for path in (tmp_path / "out" / "diagnostics" / "step-8").iterdir()}
    assert names == {"blocks.png", "loss_map.png", "reconstructions.png"}


def test_what_is_wrong_is_said_before_the_training(settings, capsys):
    with pytest.raises(ValueError, match="no column 'kind'"):
        prepare(*make_parser().parse(as_flags(settings, "--diagnostics_steps", 2, "--label_column_name", "kind")))
    nothing = ["--diagnostics_steps", 2, "--label_column_name", "label", "--eval_split_name", "none"]
    with pytest.raises(ValueError, match="no split to classify"):
        prepare(*make_parser().parse(as_flags(settings, *nothing)))
    with pytest.raises(SystemExit):
        make_parser().parse(as_flags(settings, "--label_column_name", "label"))
    assert "--label_column_name is for --diagnostics_steps" in capsys.readouterr().err
