"""What the first process finds, or fails at, reaches all: two real processes, and one alone."""

import json

import pytest

from hf_mae_robust.errors import CheckpointError
from hf_mae_robust.training.processes import all_processes, first_process
from tests.processes import offline

PROGRAM = """
import json, sys
from accelerate import PartialState
from hf_mae_robust.errors import CheckpointError, StopRequested
from hf_mae_robust.training.processes import all_processes, first_process

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
together = [all_processes(lambda: state.process_index * 10)]
try:
    all_processes(lambda: 1 // (1 - state.process_index))
except Exception as error:
    together.append([type(error).__name__, str(error)])
with open(sys.argv[1] + f"/{state.process_index}.json", "w") as file:
    json.dump({"calls": len(calls), "seen": seen, "together": together}, file)
state.destroy_process_group()
"""


def test_two_processes_get_the_value_or_the_error_of_the_first(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    both = offline().run([tmp_path / "program.py", tmp_path], tmp_path, processes=2)
    assert both.codes == [0, 0], both.output
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first["calls"], second["calls"]) == (5, 0)
    assert first["seen"][:4] == second["seen"][:4] == [
        [0, "found"],
        None,
        ["CheckpointError", "half written"],
        ["FileNotFoundError", "[Errno 2] No such file: 'x'"],
    ]  # fmt: skip
    # What all do: each gets the values of all, and the error of one ends all.
    assert first["together"] == [[0, 10], ["LostProcessError", first["together"][1][1]]]
    assert "Process 1 failed (ZeroDivisionError" in first["together"][1][1]
    assert second["together"][0] == [0, 10] and second["together"][1][0] == "ZeroDivisionError"
    # A class that takes more than a message: its nearest parent that does not, with the message all the same.
    assert [seen[4][0] for seen in (first["seen"], second["seen"])] == ["StopRequested", "Exception"]
    assert first["seen"][4][1] == second["seen"][4][1] and "after step 7" in first["seen"][4][1]


def test_alone_it_is_a_call():
    assert first_process(lambda: ("path", None)) == ("path", None)
    assert all_processes(lambda: "value") == ["value"]
    error = CheckpointError("half written")
    with pytest.raises(CheckpointError) as raised:
        first_process(lambda: (_ for _ in ()).throw(error))
    assert raised.value is error
