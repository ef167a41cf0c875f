"""One process does something, and all get its result; all do something, and all learn what became of it."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..errors import LostProcessError, StopOutsideTraining
from .signals import SIGNALS

Value = TypeVar("Value")


def first_process(function: Callable[[], Value]) -> Value:
    """Call `function` in the first process only; all processes return its value. To be called by all of them.

    Whatever it raises is raised in all processes, so that none waits for the others: in the first process as it is, in
    the others as an error of the same class with the same message. A class that takes more than a message is replaced
    by the nearest parent class that does not. A signal to the first process ends the call: StopOutsideTraining.

    The value travels as a pickle.
    """
    outcome: list[Any] = [None, None, ""]
    if PartialState().is_main_process:
        try:
            with SIGNALS.at_once():  # the others wait for what is broadcast, and learn of the signal by it
                outcome[0] = function()
        except (Exception, StopOutsideTraining) as error:
            broadcast_object_list([None, type(error), str(error)])
            raise
    value, kind, message = broadcast_object_list(outcome)
    if kind is not None:
        raise _error_of(kind, message)
    return value


def all_processes(function: Callable[[], Value]) -> list[Value]:
    """Call `function` in every process; all of them meet at the end, and get the values of all, in the order of the
    processes. `function` must not wait for the other processes.

    Where it fails, that process raises its error, and the others LostProcessError, so that none waits. What travels
    does so as a pickle.
    """
    failure: Exception | None = None
    value: Value | None = None
    try:
        value = function()
    except Exception as error:
        failure = error  # the others wait where all meet
    outcomes = gather_object([(value, failure and f"{type(failure).__name__}: {failure}")])
    if failure is not None:
        raise failure
    for rank, (_, message) in enumerate(outcomes):
        if message is not None:
            raise LostProcessError(f"Process {rank} failed ({message}). What is finished is kept for a resume.")
    return [value for value, _ in outcomes]


def _error_of(kind: type[BaseException], message: str) -> BaseException:
    for each in kind.__mro__:
        try:
            return each(message)
        except TypeError:
            continue
    raise AssertionError(f"{kind} is not an error")  # BaseException takes any message
