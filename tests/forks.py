"""A process that has imported everything and forks: most of the time of a small run would be imports.

    python tests/forks.py [--without-the-package] MODULE ...

It imports the modules, then reads orders, a line of JSON each, and answers in a line each. {"words", "folder",
"stdout", "stderr", "environments", "limit_s"}: as many processes as environments, each running a script (or
`-m MODULE`) with its arguments; the answer is their ids. {"wait": ids}: the answer is their exit codes. It imports
nothing of the tests before it forks, so that it also runs where this package is said to be absent.
"""

import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace


class Absent:
    """Stands for a machine without this package, even where it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_mae_robust":
            raise ModuleNotFoundError(f"{name} is not installed here")


def shorten_waits(factor: float) -> None:
    """Of the Hub's client, between its attempts."""
    import huggingface_hub.file_download as file_download
    import huggingface_hub.utils._http as http
    import tenacity.nap

    shorter = SimpleNamespace(**{name: value for name, value in vars(time).items() if name[0] != "_"})
    shorter.sleep = lambda seconds: time.sleep(seconds / factor)
    http.time = file_download.time = tenacity.nap.time = shorter


def enter_network_namespace(name: str) -> None:
    """Into one that `ip netns add` has made; os.setns is not in Python 3.11."""
    with Path(f"/run/netns/{name}").open() as file:
        libc, of_network = ctypes.CDLL(None, use_errno=True), 0x40000000  # CLONE_NEWNET
        if libc.setns(file.fileno(), of_network):
            raise OSError(ctypes.get_errno(), f"setns {name}")


def become(order: dict, settings: dict[str, str]) -> int:
    """What a fork does; its exit code. A run that takes longer than its limit is killed."""
    signal.alarm(order["limit_s"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    os.chdir(order["folder"])
    os.environ.update(settings)
    if "NETWORK_NAMESPACE" in settings:
        enter_network_namespace(settings["NETWORK_NAMESPACE"])
    sys.argv = order["words"]
    try:
        if "IMPORT" in settings:
            importlib.import_module(settings["IMPORT"])
        if "FAULT" in settings:
            importlib.import_module("tests.faults").install_fault()
        if sys.argv[0] == "-m":
            _, name, *sys.argv[1:] = sys.argv
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(order: dict, settings: dict[str, str]) -> int:
    child = os.fork()
    if child == 0:
        code = become(order, settings)
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)  # taking down all that was imported takes seconds, too
    return child


def main(words: list[str]) -> None:
    if words[:1] == ["--without-the-package"]:
        sys.meta_path.insert(0, Absent())
        words = words[1:]
    sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]
    for name in words:
        module, _, attribute = name.partition(":")
        found = importlib.import_module(module)
        if attribute:
            getattr(found, attribute)
    if factor := os.environ.get("SHORTEN_WAITS"):
        shorten_waits(float(factor))
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in order["wait"]]
        else:
            answer = [fork(order, settings) for settings in order["environments"]]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
