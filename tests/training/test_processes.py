"""What the first process finds, or fails at, reaches all: two real processes, and one alone."""

import json
import subprocess
import sys

import pytest

from hf_mae_robust.errors import CheckpointError
from hf_mae_robust.training.processes import first_process
from tests.runs import ROOT, environment, free_port

PROGRAM = """
import json, os, sys
from accelerate import PartialState
from hf_mae_robust.errors import CheckpointError, StopRequested
from hf_mae_robust.training.processes import first_process

state, calls, seen = PartialState(cpu=True), [], []

def fail(error):
    calls.append(str(error))
    raise error

def give(value):
    calls.append(value)
    return value

for function in (
    lambda: give([state.process_index, "found"]),
    lambda: give(None),
    lambda: fail(CheckpointError("half written")),
    lambda: fail(FileNotFoundError(2, "No such file", "x")),
    lambda: fail(StopRequested(15, 7, "out/checkpoint-7")),
):
    try:
        seen.append(first_process(function))
    except Exception as error:
        seen.append([type(error).__name__, str(error)])
print(json.dumps({"rank": state.process_index, "calls": len(calls), "seen": seen}))
state.destroy_process_group()
"""


def test_two_processes_get_the_value_or_the_error_of_the_first():
    port, started = str(free_port()), []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = [sys.executable, "-c", PROGRAM]
        started.append(subprocess.Popen(words, env=environment(**place), stdout=subprocess.PIPE, text=True, cwd=ROOT))
    try:
        first, second = (json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in started)
    finally:
        for process in started:
            process.kill()
    assert (first["calls"], second["calls"]) == (5, 0)
    assert first["seen"][:4] == second["seen"][:4] == [
        [0, "found"],
        None,
        ["CheckpointError", "half written"],
        ["FileNotFoundError", "[Errno 2] No such file: 'x'"],
    ]  # fmt: skip
    # A class that takes more than a message: its nearest parent that does not, with the message all the same.
    assert [seen[4][0] for seen in (first["seen"], second["seen"])] == ["StopRequested", "Exception"]
    assert first["seen"][4][1] == second["seen"][4][1] and "after step 7" in first["seen"][4][1]


def test_alone_it_is_a_call():
    assert first_process(lambda: ("path", None)) == ("path", None)
    error = CheckpointError("half written")
    with pytest.raises(CheckpointError) as raised:
        first_process(lambda: (_ for _ in ()).throw(error))
    assert raised.value is error
