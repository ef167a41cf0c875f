"""Signals outside of the training: before the first step, in the imports, and after the last step."""

import json
import os
import signal
import subprocess
import sys

import pytest

from hf_mae_robust.errors import EXIT_STOPPED, StopOutsideTraining, StopRequested
from hf_mae_robust.pretrain import main
from hf_mae_robust.training.signals import SIGNALS
from tests.processes import ROOT, environment, offline
from tests.runs import run, tiny_run

RUN, STATISTICS = "hf_mae_robust.training.run.", "hf_mae_robust.statistics.statistics_pass."
GLOBAL_PATCH = ("--target_normalization", "global_patch", "--target_statistics", "auto")


def signal_to(rank: int) -> str:
    return f"rank == {rank} and os.kill(os.getpid(), {int(signal.SIGTERM)})"


def test_a_signal_raises_at_once_only_where_that_is_asked_for():
    before = signal.getsignal(signal.SIGTERM)
    with SIGNALS.answered():
        with pytest.raises(StopOutsideTraining, match="SIGTERM"), SIGNALS.at_once():
            with SIGNALS.at_once(False):
                os.kill(os.getpid(), signal.SIGTERM)
                assert SIGNALS.received == signal.SIGTERM
            SIGNALS.check()
        with pytest.raises(StopOutsideTraining), SIGNALS.at_once():
            pytest.fail("a signal that came before was forgotten")
    assert SIGNALS.received == 0 and signal.getsignal(signal.SIGTERM) is before


def test_a_fork_ends_by_sigterm_and_leaves_ctrl_c_to_its_parent():
    with SIGNALS.answered():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("at", [RUN + "open_sources", STATISTICS + "compute_patch_statistics"])
def test_a_signal_before_the_first_step_ends_all_processes_and_the_run_can_start_again(
    photos_dir, tmp_path, processes, at
):
    """Only the last process gets it; the others are told."""
    words = tiny_run(photos_dir, *GLOBAL_PATCH, "--per_device_train_batch_size", "4", "--max_steps", "2")
    words += ["--crop_pct", f"0.9{processes}"]  # statistics that nobody has cached
    ended = run(words, tmp_path / "out", processes, signal_to(processes - 1), FAULT_AT=at)
    assert ended.codes == [EXIT_STOPPED] * processes, ended.output
    assert "Stopped by SIGTERM before the first step. The same command starts again." in ended.stdout
    stopped = json.loads((tmp_path / "out" / "stopped.json").read_text())
    assert stopped == {"signal": "SIGTERM", "step": 0, "checkpoint": None}
    assert "Traceback" not in ended.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"stopped.json"}


def test_a_signal_after_the_last_step_names_the_checkpoint_and_the_next_start_finishes(photos_dir, tmp_path):
    words = tiny_run(photos_dir, "--max_steps", "2", "--save_strategy", "steps", "--save_steps", "2")
    ended = run(words, tmp_path / "out", 2, signal_to(1), FAULT_AT=RUN + "evaluate_and_save")
    assert ended.codes == [EXIT_STOPPED] * 2, ended.output
    assert "Stopped by SIGTERM after the last step. The same command resumes from" in ended.stdout
    stopped = json.loads((tmp_path / "out" / "stopped.json").read_text())
    assert stopped["step"] == 2 and stopped["checkpoint"].endswith("checkpoint-2")
    assert not (tmp_path / "out" / "README.md").exists()
    again = run(words, tmp_path / "out", 2)
    assert again.codes == [0, 0] and (tmp_path / "out" / "README.md").exists(), again.output
    assert not (tmp_path / "out" / "stopped.json").exists()


@pytest.mark.parametrize(
    ("more", "advice"),
    [([], "The same command resumes"), (["--overwrite_output_dir"], "The same command without --overwrite_output_dir")],
)
def test_who_deletes_the_checkpoints_is_told_how_to_resume(photos_dir, tmp_path, monkeypatch, capsys, more, advice):
    def stop(*args):
        raise StopRequested(signal.SIGTERM, 3, str(tmp_path / "out" / "checkpoint-3"))

    monkeypatch.setattr("hf_mae_robust.training.run.prepare", stop)
    with pytest.raises(SystemExit) as ended:
        main([*tiny_run(photos_dir, *more), "--output_dir", str(tmp_path / "out")])
    assert ended.value.code == EXIT_STOPPED
    assert advice in capsys.readouterr().out


def test_torchrun_does_not_start_a_stopped_run_again(photos_dir, tmp_path):
    """It starts again whatever does not end with 0."""
    words = tiny_run(photos_dir)
    settings = {"FAULT_AT": RUN + "open_sources", "TORCHELASTIC_MAX_RESTARTS": "3"}
    ended = run(words, tmp_path / "out", 1, signal_to(0), **settings)
    assert ended.codes == [0] and (tmp_path / "out" / "stopped.json").exists(), ended.output


def test_a_signal_while_another_run_may_have_the_folder_leaves_nothing_in_it(photos_dir, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    lock = {"host": "another-machine", "pids": "", "pid": 7, "since": "2026-11-29T09:00:00+00:00"}
    (out / "_running.json").write_text(json.dumps(lock))
    at = "hf_mae_robust.training.run_lock._touched"
    ended = run(tiny_run(photos_dir), out, 1, signal_to(0), FAULT_AT=at)
    assert ended.codes == [EXIT_STOPPED] and "Waiting up to 60 s" in ended.stderr, ended.output
    assert [path.name for path in out.iterdir()] == ["_running.json"]


PROGRAM = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
from hf_mae_robust.pretrain import main
main()
"""


def test_a_signal_that_waits_since_the_imports_is_answered(photos_dir, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    words = tiny_run(photos_dir, "--output_dir", str(tmp_path / "out"))
    ended = offline().run([tmp_path / "program.py", *words], tmp_path)
    assert ended.codes == [EXIT_STOPPED] and (tmp_path / "out" / "stopped.json").exists(), ended.output


@pytest.mark.slow  # the imports themselves; the test above is quick
@pytest.mark.parametrize("script", ["run_pretrain.py", "run_finetune.py"])
def test_a_signal_during_the_imports_of_a_script(photos_dir, tmp_path, script):
    words = tiny_run(photos_dir) if script == "run_pretrain.py" else ["--dataset_name", str(photos_dir)]
    started = subprocess.Popen(
        [sys.executable, "-X", "importtime", str(ROOT / script), *words, "--output_dir", str(tmp_path / "out")],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    for line in started.stderr:
        if "numpy" in line:  # its imports have begun, and most of them are to come
            break
    started.send_signal(signal.SIGTERM)
    output = started.communicate(timeout=400)[1]
    assert started.returncode == EXIT_STOPPED, output[-3000:]
    assert (tmp_path / "out" / "stopped.json").exists()
