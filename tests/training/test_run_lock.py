"""Two runs do not work in one folder; what a dead run has left does not stop the next one."""

import json
import multiprocessing
import os
import threading
import time
from contextlib import contextmanager

import psutil
import pytest

from hf_mae_robust.__main__ import main
from hf_mae_robust.errors import UserError
from hf_mae_robust.training.run_lock import LOCK_FILE, run_lock
from tests.processes import ROOT, offline
from tests.runs import run, tiny_run


def lock_of(**changes):
    return {"host": "elsewhere", "pids": "", "pid": 7, "since": "2026-11-28T10:00:00+00:00", **changes}


@contextmanager
def alive(folder):
    """While entered, another machine touches the lock."""
    ended = threading.Event()

    def live():
        while not ended.wait(0.05):
            os.utime(folder / LOCK_FILE)

    threading.Thread(target=live).start()
    try:
        yield
    finally:
        ended.set()


def test_it_names_its_process_and_goes_with_it(tmp_path):
    with run_lock(tmp_path / "out"):
        content = json.loads((tmp_path / "out" / LOCK_FILE).read_text())
        assert content["pid"] == os.getpid() and content["host"]
        with run_lock(tmp_path / "out"):
            pass  # the same process again
    assert not (tmp_path / "out").exists()  # it stayed empty


def test_a_folder_with_files_stays(tmp_path):
    with run_lock(tmp_path / "out"):
        (tmp_path / "out" / "config.json").write_text("{}")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_a_second_run_is_told_of_the_first(photos_dir, tmp_path):
    out = tmp_path / "out"
    fault = "trainer.state.global_step == 2 and (print('REACHED', flush=True), time.sleep(600))"
    words = [ROOT / "run_pretrain.py", *tiny_run(photos_dir, "--output_dir", str(out))]
    first = offline().start(words, tmp_path / "printed", FAULT=fault)
    first.read_until("REACHED")
    (out / "_staging").mkdir()
    (out / "_staging" / "half").write_text("what the first run is writing")
    second = run(tiny_run(photos_dir), out)
    assert second.codes == [2], second.output
    assert f"another run writes there (process {first.ids[0]} on " in second.stderr
    assert (out / "_staging" / "half").exists()
    os.kill(first.ids[0], 9)
    first.wait()
    assert (out / LOCK_FILE).exists()
    third = run(tiny_run(photos_dir, "--max_steps", "1"), out)
    assert third.codes == [0], third.output
    assert not (out / LOCK_FILE).exists()


def test_a_machine_that_is_silent_is_taken_for_dead_and_one_that_writes_is_not(tmp_path):
    (tmp_path / LOCK_FILE).write_text(json.dumps(lock_of()))
    with run_lock(tmp_path, heartbeat_s=0.1):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    (tmp_path / LOCK_FILE).write_text(json.dumps(lock_of()))
    said = r"\(process 7 on elsewhere, since 2026-11-28T10"
    with alive(tmp_path), pytest.raises(UserError, match=said), run_lock(tmp_path, heartbeat_s=60):
        pass
    assert json.loads((tmp_path / LOCK_FILE).read_text()) == lock_of()


def test_another_machine_of_the_same_name_is_another_machine(tmp_path):
    """The namespace of processes has the same number on each machine; only the boot tells them apart."""
    with run_lock(tmp_path):
        mine = json.loads((tmp_path / LOCK_FILE).read_text())
    if not mine["pids"]:
        pytest.skip("needs Linux' namespaces")
    boot, namespace = mine["pids"].split(" ")
    assert namespace.startswith("pid:[")
    other = mine | {"pids": f"{boot[::-1]} {namespace}", "pid": 2**22 + 1}  # no process here has that number
    (tmp_path / LOCK_FILE).write_text(json.dumps(other))
    said = f"process {2**22 + 1} on "
    with alive(tmp_path), pytest.raises(UserError, match=said), run_lock(tmp_path, heartbeat_s=60):
        pass


def test_its_own_heartbeat_shows_that_it_lives(tmp_path):
    with run_lock(tmp_path, heartbeat_s=0.05):
        before, deadline = (tmp_path / LOCK_FILE).stat().st_mtime_ns, time.monotonic() + 300
        while (tmp_path / LOCK_FILE).stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_lock_that_was_not_written_to_its_end_is_taken_over(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with run_lock(tmp_path, heartbeat_s=0.05):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def _hold_in(zone, folder, held):
    os.environ["TZ"] = zone
    time.tzset()
    with run_lock(folder):
        held.send(json.loads((folder / LOCK_FILE).read_text())["since"])
        held.recv()


def test_a_run_in_another_time_zone_of_the_same_machine_is_alive(tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    other = context.Process(target=_hold_in, args=("UTC", tmp_path, there))
    other.start()
    since = here.recv()
    assert since.endswith("+00:00")  # for people
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        with pytest.raises(UserError, match=rf"process {other.pid} on .*since"), run_lock(tmp_path, heartbeat_s=0.05):
            pass
    finally:
        here.send("end")
        other.join(300)
        monkeypatch.undo()
        time.tzset()
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_step_of_the_clock_neither_ends_a_lock_nor_leaves_it_behind(tmp_path, monkeypatch):
    """psutil counts from the boot and adds when that was, by the clock of now."""
    started = psutil.Process.create_time
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    with run_lock(tmp_path, heartbeat_s=0.05):
        monkeypatch.setattr(psutil.Process, "create_time", lambda process: started(process) + 3600)
        other = context.Process(target=_refused, args=(tmp_path, there))
        other.start()
        assert here.recv() == "refused"
        other.join(300)
    assert not (tmp_path / LOCK_FILE).exists()


def _refused(folder, said):
    try:
        with run_lock(folder, heartbeat_s=0.5):
            said.send("taken")
    except UserError:
        said.send("refused")


@pytest.mark.parametrize("is_own_number", [True, False])
def test_a_later_process_of_the_same_number_does_not_keep_a_dead_lock(tmp_path, is_own_number):
    with run_lock(tmp_path):
        mine = json.loads((tmp_path / LOCK_FILE).read_text())
    pid = mine["pid"] if is_own_number else os.getppid()
    (tmp_path / LOCK_FILE).write_text(json.dumps(mine | {"pid": pid, "since": "2026-01-01T10:00:00+00:00"}))
    with run_lock(tmp_path, heartbeat_s=60 if is_own_number else 0.05):
        assert json.loads((tmp_path / LOCK_FILE).read_text()) == mine


def _try(folder, barrier, taken):
    barrier.wait()
    try:
        with run_lock(folder, heartbeat_s=0.05):
            taken.put(os.getpid())
            barrier.wait()
    except UserError:
        barrier.wait()


def test_of_several_that_find_a_dead_lock_one_gets_it(tmp_path):
    (tmp_path / LOCK_FILE).write_text(json.dumps(lock_of()))
    context = multiprocessing.get_context("fork")
    barrier, taken = context.Barrier(4), context.SimpleQueue()
    several = [context.Process(target=_try, args=(tmp_path, barrier, taken)) for _ in range(4)]
    for each in several:
        each.start()
    for each in several:
        each.join(300)
    assert taken.get() and taken.empty()


@pytest.mark.parametrize("command", ["embed", "prepare"])
def test_two_commands_do_not_write_the_same_parts(command, encoder_dir, photos_dir, tmp_path, capsys):
    output = tmp_path / ("vectors.parquet" if command == "embed" else "prepared")
    words = {
        "embed": [command, encoder_dir, "--dataset_name", photos_dir, "--num_workers", 0, "--output", output],
        "prepare": [command, photos_dir, "--num_workers", 0, "--output_dir", output],
    }[command]
    words = [str(word) for word in words]
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    other = context.Process(target=_hold_in, args=("UTC", parts := tmp_path / f"{output.name}.parts", there))
    other.start()
    here.recv()
    try:
        with pytest.raises(SystemExit):
            main(words)
        said = f"{words[-2]} {output}: another run writes there (process {other.pid} on "
        assert said in capsys.readouterr().err and [path.name for path in parts.iterdir()] == [LOCK_FILE]
    finally:
        here.send("end")
        other.join(300)
    assert not parts.exists()
    main(words)
    assert output.exists() and not parts.exists()
