import os
import shutil
import stat

import pytest

from hf_mae_robust.files import allow_group, broken_file_of, replace_files, seal
from hf_mae_robust.training.checkpoints import STAGING, checkpoints_in, publish, recover, rotate


def staged(folder, step, content="weights"):
    path = folder / STAGING / f"checkpoint-{step}"
    (path / "shards").mkdir(parents=True)
    (path / "model.safetensors").write_text(content)
    (path / "shards" / "0.distcp").write_text("shard")
    return path


def checkpoint(folder, step, content="weights"):
    path = staged(folder, step, content)
    seal(path)
    publish(path, folder / path.name)
    return folder / path.name


def test_a_sealed_folder_is_whole_shards_included(tmp_path):
    path = checkpoint(tmp_path, 10)
    assert broken_file_of(path) is None
    (path / "shards" / "0.distcp").write_text("other")
    assert "shards/0.distcp has changed" in broken_file_of(path)


@pytest.mark.parametrize("killed_in", ["seal", "rename", "rename of the old one", "rmtree"])
def test_a_kill_at_any_instant_of_publishing_leaves_a_whole_checkpoint(tmp_path, monkeypatch, killed_in):
    """The same step written again, as after a resume from an older checkpoint: one of both must be there in the end."""

    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    checkpoint(tmp_path, 10, "first")
    path = staged(tmp_path, 10, "second")
    calls = []
    rename = type(path).rename

    def rename_once(self, target):
        calls.append(self)
        if killed_in == "rename of the old one" or len(calls) == 2:
            raise Killed
        return rename(self, target)

    if killed_in == "seal":
        monkeypatch.setattr("hf_mae_robust.files.sha256_of", kill)
    elif killed_in == "rmtree":
        monkeypatch.setattr("hf_mae_robust.files.shutil.rmtree", kill)
    else:
        monkeypatch.setattr(type(path), "rename", rename_once)
    with pytest.raises(Killed):
        seal(path)
        publish(path, tmp_path / path.name)
    monkeypatch.undo()
    recover(tmp_path)
    assert broken_file_of(tmp_path / "checkpoint-10") is None
    expected = {"seal": ["first"], "rename of the old one": ["first"], "rmtree": ["second"]}
    content = (tmp_path / "checkpoint-10" / "model.safetensors").read_text()
    assert content in expected.get(killed_in, ["first", "second"])
    assert not (tmp_path / STAGING).exists()


def test_what_is_half_written_is_cleared_away(tmp_path):
    checkpoint(tmp_path, 10)
    staged(tmp_path, 20)
    recover(tmp_path)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10"]
    assert not (tmp_path / STAGING).exists()


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    for step in (5, 10, 15, 20):
        newest = checkpoint(tmp_path, step)
    rotate(newest, None)
    assert len(checkpoints_in(tmp_path)) == 4
    rotate(newest, 2, keep=("elsewhere/checkpoint-5", None))
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-20", "checkpoint-15", "checkpoint-5"]


def test_rotation_never_deletes_what_was_just_written(tmp_path):
    """Higher numbers are there after a resume from an older checkpoint, or with larger batches. The next start would
    take them for the newest."""
    for step in (50, 60):
        checkpoint(tmp_path, step)
    rotate(checkpoint(tmp_path, 10), None)
    assert len(checkpoints_in(tmp_path)) == 3
    rotate(checkpoint(tmp_path, 10), 2)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10"]
    rotate(checkpoint(tmp_path, 20), 1)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-20"]


def test_a_file_that_a_reader_holds_open_stops_neither_rotation_nor_the_next_run(tmp_path, hold_open, caplog):
    hold_open("0.distcp")
    checkpoint(tmp_path, 5)
    for _ in range(2):  # the second time after a resume from an older checkpoint
        rotate(checkpoint(tmp_path, 10), 1)
        rotate(checkpoint(tmp_path, 20), 1)
        assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-20"]
    assert "checkpoint-10 is removed, but not all of it can be deleted" in caplog.text
    for _ in range(2):
        recover(tmp_path)
        assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-20"]
    assert all(path.name.startswith(".nfs") for path in (tmp_path / STAGING).rglob("*") if path.is_file())


def test_what_cannot_be_deleted_does_not_come_back_as_a_checkpoint(tmp_path, monkeypatch):
    """Complete ones among it: of one that was replaced, and of one that was about to get its name."""

    def refuse(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    final = checkpoint(tmp_path, 10, "new")
    for name in ("replaced-checkpoint-10", "checkpoint-10"):
        shutil.copytree(final, tmp_path / STAGING / name)
    monkeypatch.setattr(os, "unlink", refuse)
    recover(tmp_path)
    shutil.move(final, tmp_path / "elsewhere")
    recover(tmp_path)
    assert checkpoints_in(tmp_path) == []


def test_files_are_replaced_as_a_whole_and_others_stay(tmp_path):
    (tmp_path / "model.safetensors").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    path = staged(tmp_path, 1, "new") / ".."
    (path / "out").mkdir()
    (path / "out" / "model.safetensors").write_text("new")
    replace_files(path / "out", tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "new" and (tmp_path / "notes.txt").exists()


def test_permissions_are_those_of_any_new_file(tmp_path):
    private = tmp_path / "model.safetensors"
    private.write_text("weights")
    private.chmod(0o600)
    mask = os.umask(0o027)
    try:
        allow_group(tmp_path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(private.stat().st_mode) == 0o640
