"""Processes that do not find each other, and those that are lost on the way."""

import os
import re
import signal
import socket
import time

import psutil
import pytest

from hf_mae_robust.errors import UserError
from hf_mae_robust.training import peers
from tests.processes import ROOT, offline, places
from tests.runs import run, tiny_run


@pytest.mark.parametrize(
    ("error", "is_loss"),
    [
        (RuntimeError("Application timeout caused pair closure"), True),
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), True),
        (RuntimeError("Timed out waiting 4000ms for recv operation to complete"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_errors_of_the_network_are_told_from_bugs(error, is_loss):
    assert peers.is_loss(error) is is_loss


@pytest.fixture
def two_machines(monkeypatch):
    """This one is named as Debian does it: its name resolves to 127.0.1.1."""
    addresses = {"mae-0": "10.77.0.1", "mae-1": "127.0.1.1"}
    monkeypatch.setattr(socket, "gethostname", lambda: "mae-1")
    monkeypatch.setattr(peers, "address_of", addresses.get)
    monkeypatch.setattr(peers, "interface_towards", lambda host: "ens5" if host == "mae-0" else None)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "mae-0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)


def test_a_host_name_that_only_the_machine_itself_can_reach_says_what_to_set(two_machines, monkeypatch):
    said = (
        r"mae-1, resolves to 127.0.1.1, .* Set GLOO_SOCKET_IFNAME=ens5 and NCCL_SOCKET_IFNAME=ens5 .*MASTER_ADDR mae-0"
    )
    with pytest.raises(UserError, match=said):
        peers.check_can_be_reached()
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ens5")
    peers.check_can_be_reached()
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # one machine, which reaches itself
    peers.check_can_be_reached()


def test_the_interface_towards_a_host_is_the_one_with_its_own_address():
    name = peers.interface_towards("127.0.0.1")
    assert any(each.address == "127.0.0.1" for each in psutil.net_if_addrs()[name])


def test_a_port_in_use_is_a_sentence(photos_dir, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        words = [*tiny_run(photos_dir), "--ddp_timeout", "5"]
        place = {**places(2)[0], "MASTER_PORT": str(other.getsockname()[1])}
        ended = run(words, tmp_path / "out", 1, **place)
    assert ended.codes == [2], ended.output
    assert f"Port {place['MASTER_PORT']} of this machine is in use, perhaps by another run." in ended.stderr
    assert "Traceback" not in ended.output


def test_processes_that_do_not_come_are_waited_for_as_long_as_the_flag_says(photos_dir, tmp_path):
    began = time.monotonic()
    ended = run([*tiny_run(photos_dir), "--ddp_timeout", "3"], tmp_path / "out", 1, **places(2)[0])
    assert ended.codes == [6], ended.output
    assert re.search(
        r"The 2 processes of this run did not find each other at .* within 3 s \(--ddp_timeout\)", ended.stderr
    )
    assert time.monotonic() - began < 300


@pytest.mark.parametrize(
    ("number", "said"),
    [  # killed: test_two_machines.py has a quick one
        pytest.param(signal.SIGKILL, "ended, or did not answer", marks=pytest.mark.slow),
        (signal.SIGSTOP, "did not answer for 4 s"),
    ],
)
def test_a_process_that_is_killed_or_silent_is_named_by_the_others(photos_dir, tmp_path, number, said):
    out = tmp_path / "out"
    words = tiny_run(photos_dir, "--per_device_train_batch_size", "4", "--save_strategy", "steps", "--save_steps", "2")
    words = [ROOT / "run_pretrain.py", *words, "--ddp_timeout", "4", "--output_dir", str(out)]
    fault = f"rank == 1 and trainer.state.global_step == 3 and os.kill(os.getpid(), {int(number)})"
    started = offline().start(words, tmp_path / "printed", 2, FAULT=fault)
    printed = started.stderr
    deadline = time.monotonic() + 300
    while "lost process 1" not in printed.read_text():  # not only when the other one is gone
        assert time.monotonic() < deadline, printed.read_text()
        time.sleep(0.05)
    os.kill(started.ids[1], signal.SIGKILL)
    ended = started.wait()
    assert ended.codes == [6, -signal.SIGKILL], ended.output
    assert said in ended.stderr and f"The same command resumes from {out / 'checkpoint-2'}" in ended.stderr
    assert "Traceback" not in ended.stderr
