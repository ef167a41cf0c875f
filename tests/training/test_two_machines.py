"""Two machines: the same curve as one, and what becomes of the run when one of them or the cable fails."""

import os
import signal
import time

import pytest

from tests.network import two_machines, why_not
from tests.processes import ROOT, offline
from tests.runs import Run, run, tiny_run

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture
def network():
    with two_machines() as network:
        yield network


class Training:
    """On both machines, each with caches of its own. FAULT: see tests/faults.py; what it prints is waited for."""

    def __init__(self, network, words, folder, fault="None", **settings):
        command = [ROOT / "run_pretrain.py", *words, "--output_dir", folder]
        self.folder = folder
        self.started = offline().start(command, folder.with_name("printed"), network.places, FAULT=fault, **settings)

    def wait(self) -> Run:
        ended = self.started.wait()
        return Run(ended.codes, ended.stdout, ended.stderr, self.folder)

    def read_errors_until(self, text: str) -> None:
        deadline = time.monotonic() + 300
        while text not in self.started.stderr.read_text():
            assert time.monotonic() < deadline, self.started.stderr.read_text()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def words(photos_dir):
    """Dropout depends on the number of processes, so it is off. 12 steps."""
    return tiny_run(photos_dir, "--decoder_attention_probs_dropout_prob", "0", "--num_train_epochs", "2")


@pytest.fixture(scope="module")
def alone(words, tmp_path_factory):
    return run([*words, "--per_device_train_batch_size", "8"], tmp_path_factory.mktemp("alone") / "out")


def test_they_train_as_one(words, network, tmp_path, alone):
    both = Training(network, [*words, "--per_device_train_batch_size", "4"], tmp_path / "out").wait()
    assert both.codes == [0, 0], both.output
    assert [loss for _, loss in both.losses()] == pytest.approx([loss for _, loss in alone.losses()], rel=1e-5)


@pytest.mark.slow  # it waits
def test_they_train_as_one_also_when_the_cable_is_out_for_ten_seconds(words, network, tmp_path, alone):
    fault = "trainer.state.global_step == 4 and rank == 0 and (print('REACHED', flush=True), time.sleep(2))"
    training = Training(network, [*words, "--per_device_train_batch_size", "4"], tmp_path / "out", fault)
    training.started.read_until("REACHED")
    network.cut(True)
    time.sleep(10)
    network.cut(False)
    both = training.wait()
    assert both.codes == [0, 0], both.output
    assert [loss for _, loss in both.losses()] == pytest.approx([loss for _, loss in alone.losses()], rel=1e-5)


# The slow one waits; test_peers.py has its like on one machine.
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_the_machine_that_is_left_ends_and_names_the_other(words, network, tmp_path, number):
    fault = f"rank == 1 and trainer.state.global_step == 3 and os.kill(os.getpid(), {int(number)})"
    limit = ["--per_device_train_batch_size", "4", "--ddp_timeout", "6"]
    training = Training(network, [*words, *limit], tmp_path / "out", fault)
    training.read_errors_until("lost process 1")
    os.kill(training.started.ids[1], signal.SIGKILL)
    ended = training.wait()
    assert ended.codes == [6, -signal.SIGKILL], ended.output


@pytest.mark.slow  # it waits
def test_a_cable_that_stays_out_ends_both(words, network, tmp_path):
    fault = "trainer.state.global_step == 3 and rank == 0 and (print('REACHED', flush=True), time.sleep(1))"
    limit = ["--per_device_train_batch_size", "4", "--ddp_timeout", "6"]
    training = Training(network, [*words, *limit], tmp_path / "out", fault)
    training.started.read_until("REACHED")
    network.cut(True)
    ended = training.wait()
    assert ended.codes == [6, 6], ended.output
    assert "lost process 1" in ended.stderr and "lost the machine of the first process (10.77.0.1)" in ended.stderr


def test_a_signal_to_one_machine_stops_both_at_the_same_step(words, network, tmp_path):
    fault = f"rank == 1 and trainer.state.global_step == 3 and os.kill(os.getpid(), {int(signal.SIGTERM)})"
    training = Training(network, [*words, "--per_device_train_batch_size", "4"], tmp_path / "out", fault)
    ended = training.wait()
    assert ended.codes == [75, 75], ended.output
    assert "Stopped by SIGTERM after step 4" in ended.stdout
