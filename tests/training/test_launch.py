"""The real launchers, torchrun and `accelerate launch`."""

import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hf_mae_robust.training.checkpoints import fault_of
from hf_mae_robust.training.launch import check_launch
from tests.processes import ROOT, environment
from tests.runs import tiny_run


def read_until_reached(process):
    """The output up to the point where a fault prints REACHED."""
    output = ""
    for line in process.stdout:
        output += line
        if "REACHED" in line:
            return output
    raise AssertionError(output)


@pytest.mark.slow  # two processes and signals to them: test_interruptions.py, test_signals.py
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_launchers_start_two_processes_and_a_signal_to_them_saves(photos_dir, tmp_path, launcher):
    script = tmp_path / "with_fault.py"
    lines = ["from tests.faults import install_fault", "from hf_mae_robust.pretrain import main"]
    script.write_text("\n".join([*lines, "install_fault()", "main()"]))
    out = tmp_path / "out"
    words = tiny_run(photos_dir, "--per_device_train_batch_size", "4", "--output_dir", str(out), "--use_cpu")
    launch = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    }[launcher]
    fault = "rank == 0 and trainer.state.global_step == 5 and (print('REACHED', flush=True), time.sleep(2))"
    launched = subprocess.Popen(
        [sys.executable, "-m", *launch, str(script), *words],
        env=environment(FAULT=fault),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    output = read_until_reached(launched)
    launched.send_signal(signal.SIGTERM)
    output += launched.communicate(timeout=400)[0]
    assert "(4 x 2 processes x 1 accumulated)" in output, output
    assert launched.returncode != 0
    assert json.loads((out / "stopped.json").read_text())["step"] == 6
    assert fault_of(out / "checkpoint-6") is None


@pytest.mark.slow  # the warning by itself is tested below
def test_asking_accelerate_for_two_cpu_processes_and_getting_one_is_said(photos_dir, tmp_path):
    words = tiny_run(photos_dir, "--max_steps", "1", "--output_dir", str(tmp_path / "out"))
    done = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
            str(ROOT / "run_pretrain.py"), *words,
        ],
        env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert "asked for 2 processes and started one" in done.stderr, done.stderr
    assert "torchrun --nproc_per_node 2" in done.stderr


@pytest.mark.parametrize(
    ("words", "warns"),
    [
        (["accelerate", "launch", "--cpu", "--num_processes", "2", "run_finetune.py"], True),
        (["accelerate", "launch", "--cpu", "--num_processes=4", "run_finetune.py"], True),
        (["accelerate", "launch", "--num_processes", "1", "run_finetune.py"], False),
        (["python", "run_finetune.py"], False),
    ],
)
def test_one_process_where_several_were_asked_for_is_said(monkeypatch, caplog, words, warns):
    """What `accelerate launch` was asked for stands in the command line of the parent process."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr("psutil.Process.parent", lambda process: SimpleNamespace(cmdline=lambda: words))
    monkeypatch.setattr("sys.argv", ["path/to/run_finetune.py"])
    check_launch(SimpleNamespace(world_size=1, n_gpu=0))
    assert ("torchrun --nproc_per_node" in caplog.text) is warns
    assert ("run_finetune.py ..." in caplog.text) is warns  # the script that was started
