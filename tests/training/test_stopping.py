import os
import signal

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_mae_robust.errors import StopRequested
from hf_mae_robust.training.signals import SIGNALS
from hf_mae_robust.training.stopping import StopOnSignal, agreed_signal
from tests.processes import offline


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_remembered_and_handlers_are_restored(number):
    before = signal.getsignal(number)
    with SIGNALS.answered():
        assert agreed_signal() == 0
        os.kill(os.getpid(), number)
        assert agreed_signal() == number
    assert signal.getsignal(number) is before
    assert number.name in str(StopRequested(number, 7, "out/checkpoint-7"))


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end"])
def test_a_signal_asks_for_a_checkpoint_and_ends_the_training_when_it_is_written(tmp_path, event):
    args, state = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"), TrainerState(global_step=7)
    control, stop = TrainerControl(should_log=True, should_evaluate=True), StopOnSignal()
    with SIGNALS.answered():
        getattr(stop, event)(args, state, control)
        stop.on_save(args, state, control)
        assert control == TrainerControl(should_log=True, should_evaluate=True)
        os.kill(os.getpid(), signal.SIGTERM)
        getattr(stop, event)(args, state, control)
        assert control == TrainerControl(should_log=True, should_save=True)
        assert stop.state()["attributes"] == {"evaluation_due": True}
        with pytest.raises(StopRequested, match=rf"Stopped by SIGTERM after step 7; {tmp_path / 'checkpoint-7'} holds"):
            stop.on_save(args, state, control)


PROGRAM = """
import os, signal, time
from hf_mae_robust.training.signals import SIGNALS
with SIGNALS.answered():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({pause})
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here", flush=True)
"""


@pytest.mark.parametrize(
    ("launcher", "pause", "survives"),
    [({}, 0, False), ({"TORCHELASTIC_RUN_ID": "x"}, 0, True), ({"TORCHELASTIC_RUN_ID": "x"}, 2.2, False)],
)
def test_a_second_signal_ends_the_process_unless_a_launcher_echoed_the_first(tmp_path, launcher, pause, survives):
    (tmp_path / "program.py").write_text(PROGRAM.format(pause=pause))
    done = offline().run([tmp_path / "program.py"], tmp_path, **launcher)
    assert done.codes == [0 if survives else -signal.SIGTERM], done.output
    assert ("still here" in done.stdout) is survives
