import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.errors import CheckpointError
from hf_mae_robust.files import seal
from hf_mae_robust.hub.run_record import write_record
from hf_mae_robust.training.checkpoints import (
    check_all_have_written,
    check_config,
    differences_from_record,
    explain_differences,
    fault_of,
    newest_checkpoint,
    remove_checkpoints,
)
from tests.helpers import TINY

RECORD = {"world_size": 1, "seed": 42, "dataset_revision": None, "crop_scale": [0.2, 1.0]}


def write_checkpoint(folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weight": torch.zeros(3)}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).write_bytes(b"state of " + name.encode())
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    ViTMAERobustConfig(**TINY).save_pretrained(checkpoint)
    write_record(checkpoint, RECORD)
    seal(checkpoint)
    return checkpoint


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_newest_by_number_not_by_name_or_time(tmp_path):
    for step in (100, 9, 20):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    (tmp_path / "checkpoint-999").write_text("a file")
    assert newest_checkpoint(tmp_path).name == "checkpoint-100"
    assert newest_checkpoint(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: (c / "model.safetensors").write_bytes(b"half"), "model.safetensors has 4 bytes"),
        (lambda c: (c / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda c: flip_a_bit(c / "model.safetensors"), "model.safetensors has changed"),
        (lambda c: flip_a_bit(c / "optimizer.pt"), "optimizer.pt has changed"),
        (lambda c: (c / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda c: (c / "scheduler.pt").unlink(), "scheduler.pt is missing"),
        (lambda c: (c / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (lambda c: (c / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda c: (c / "trainer_state.json").write_text('{"global_st'), "trainer_state.json has"),
        (lambda c: (c / "manifest.json").unlink(), "no manifest.json"),
        (lambda c: (c / "manifest.json").write_text('{"files": {'), "manifest.json cannot be read"),
    ],
)
def test_a_broken_checkpoint_is_skipped_with_a_warning(tmp_path, caplog, damage, said):
    write_checkpoint(tmp_path, 10)
    damage(write_checkpoint(tmp_path, 20))
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path).name == "checkpoint-10"
    assert "checkpoint-20" in caplog.text and said in caplog.text
    assert fault_of(tmp_path / "checkpoint-20") and fault_of(tmp_path / "checkpoint-10") is None


def test_nothing_but_broken_ones_does_not_look_like_a_fresh_start(tmp_path):
    (write_checkpoint(tmp_path, 10) / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match="None of the 1 checkpoint.*--overwrite_output_dir"):
        newest_checkpoint(tmp_path)


def test_weights_alone_cannot_be_resumed_from(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 10)
    (checkpoint / "optimizer.pt").unlink()
    seal(checkpoint)
    assert "--save_only_model" in fault_of(checkpoint)


@pytest.mark.parametrize("is_sharded", [False, True])
def test_a_state_that_another_process_did_not_write_is_noticed_when_saving(tmp_path, is_sharded):
    checkpoint = write_checkpoint(tmp_path, 10)
    if is_sharded:  # FSDP2 and DeepSpeed keep the optimizer elsewhere
        (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(OSError, match="1 of 2 processes did not arrive.*all machines must share --output_dir"):
        check_all_have_written(checkpoint, num_processes=2)


def test_removing_takes_checkpoints_only(tmp_path):
    write_checkpoint(tmp_path, 10)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-best").mkdir()
    assert [path.name for path in remove_checkpoints(tmp_path)] == ["checkpoint-10"]
    assert {path.name for path in tmp_path.iterdir()} - {"_staging"} == {"checkpoint-best", "notes.txt"}


def test_another_model_is_refused_with_what_differs(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 10)
    check_config(checkpoint, ViTMAERobustConfig(**TINY))
    with pytest.raises(CheckpointError, match="hidden_size: 32 there, 64 here; mask_ratio: 0.75 there, 0.5 here"):
        check_config(checkpoint, ViTMAERobustConfig(**{**TINY, "hidden_size": 64}, mask_ratio=0.5))


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("norm_pix_axis", ("channel", "patch")),
        ("norm_pix_axis", ("patch", "channel")),
        ("decoder_keep_ratio", (0.5, 1.0)),
        ("decoder_keep_ratio", (1.0, 0.5)),
    ],
)
def test_a_setting_that_is_as_usual_on_one_side_is_compared(tmp_path, setting, values):
    checkpoint = write_checkpoint(tmp_path, 10)
    there, here = (ViTMAERobustConfig(**TINY, **{setting: value}) for value in values)
    there.save_pretrained(checkpoint)
    check_config(checkpoint, there)
    with pytest.raises(CheckpointError, match=f"{setting}: {values[0]!r} there, {values[1]!r} here"):
        check_config(checkpoint, here)


def test_another_run_is_told_by_what_differs(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 10)
    assert differences_from_record(checkpoint, {**RECORD, "crop_scale": (0.2, 1.0)}) == []
    differences = differences_from_record(checkpoint, {**RECORD, "world_size": 2, "bf16": True})
    assert differences == ["bf16: None there, True here", "world_size: 1 there, 2 here"]
    assert "--allow_elastic_resume" in explain_differences(checkpoint, differences)
