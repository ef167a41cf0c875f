import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.resume import CheckpointError, check_config, fault_of, newest_checkpoint, remove_checkpoints
from tests.helpers import TINY


def write_checkpoint(folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.zeros(3)}, checkpoint / "model.safetensors")
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    ViTMAERobustConfig(**TINY).save_pretrained(checkpoint)
    return checkpoint


def test_newest_by_number_not_by_name_or_time(tmp_path):
    for step in (100, 9, 20):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    (tmp_path / "checkpoint-999").write_text("a file")
    assert newest_checkpoint(tmp_path).name == "checkpoint-100"
    assert newest_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: (c / "model.safetensors").write_bytes((c / "model.safetensors").read_bytes()[:-4]),
        lambda c: (c / "model.safetensors").unlink(),
        lambda c: (c / "trainer_state.json").unlink(),
        lambda c: (c / "trainer_state.json").write_text('{"global_st'),
        lambda c: (c / "optimizer.pt").unlink(),
    ],
)
def test_a_broken_checkpoint_is_skipped_with_a_warning(tmp_path, caplog, damage):
    write_checkpoint(tmp_path, 10)
    damage(write_checkpoint(tmp_path, 20))
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path).name == "checkpoint-10"
    assert "checkpoint-20" in caplog.text
    assert fault_of(tmp_path / "checkpoint-20") and fault_of(tmp_path / "checkpoint-10") is None


def test_removing_takes_checkpoints_only(tmp_path):
    write_checkpoint(tmp_path, 10)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-best").mkdir()
    assert [path.name for path in remove_checkpoints(tmp_path)] == ["checkpoint-10"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-best", "notes.txt"]


def test_another_model_is_refused_with_what_differs(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 10)
    check_config(checkpoint, ViTMAERobustConfig(**TINY))
    with pytest.raises(CheckpointError, match="hidden_size: 32 there, 64 here; mask_ratio: 0.75 there, 0.5 here"):
        check_config(checkpoint, ViTMAERobustConfig(**{**TINY, "hidden_size": 64}, mask_ratio=0.5))
