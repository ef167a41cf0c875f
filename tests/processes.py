"""The one way in which tests start processes: forks of one that has imported everything (tests/forks.py).

Several processes of a run are started as SLURM would: one command each, told by environment variables who it is.
"""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT_S = 400
# With what these import, a tiny training takes less than a second of CPU; without, it takes three more.
EVERYTHING = (
    "hf_mae_robust.__main__",
    "hf_mae_robust.analysis.analyze",
    "hf_mae_robust.embedding.command",
    "hf_mae_robust.finetuning.classification.task",
    "hf_mae_robust.finetuning.detection.task",
    "hf_mae_robust.finetuning.segmentation.task",
    "hf_mae_robust.pretraining.task",
    "hf_mae_robust.training.profiling",
    "hf_mae_robust.training.run",
)


@dataclass
class Ended:
    """What became of the processes of a run."""

    codes: list[int]
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


@dataclass
class Started:
    """Processes that run."""

    parent: "Parent"
    ids: list[int]
    stdout: Path
    stderr: Path

    def read_until(self, text: str) -> str:
        """What was printed, as soon as `text` is in it."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.stdout.read_text():
            assert time.monotonic() < deadline, self.stdout.read_text() + self.stderr.read_text()
            time.sleep(0.02)
        return self.stdout.read_text()

    def wait(self) -> Ended:
        codes = self.parent.ask({"wait": self.ids})
        return Ended(codes, self.stdout.read_text(), self.stderr.read_text())


class Parent:
    """Forks processes. Use as a context manager, or end with the interpreter. environment: of the process; what
    libraries read when they are imported stays as it is there, HF_ENDPOINT and HF_HOME among it."""

    def __init__(self, environment: dict[str, str], modules=EVERYTHING, *, python=(), options=()):
        self.environment = environment
        command = [sys.executable, *python, str(ROOT / "tests" / "forks.py"), *options, *modules]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT, **pipes)

    def __enter__(self) -> "Parent":
        return self

    def __exit__(self, *_) -> None:
        self.process.communicate()

    def ask(self, order: dict) -> list[int]:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        words: list,
        logs: Path,
        processes: int | list[dict[str, str]] = 1,
        *,
        folder: Path = ROOT,
        limit_s: int = LIMIT_S,
        **settings: str,
    ) -> Started:
        """words: a script and its arguments, or -m, a module and its arguments. logs: the folder for what is printed.
        processes: how many, or what tells each of them who it is. settings: environment variables beside the parent's;
        FAULT: see tests/faults.py; IMPORT: a module to import first."""
        logs.mkdir(parents=True, exist_ok=True)
        started = Started(self, [], logs / "stdout.txt", logs / "stderr.txt")
        for path in (started.stdout, started.stderr):
            path.write_text("")
        order = {"words": list(map(str, words)), "folder": str(folder), "limit_s": limit_s}
        who = places(processes) if isinstance(processes, int) else processes
        order |= {"stdout": str(started.stdout), "stderr": str(started.stderr)}
        started.ids = self.ask({**order, "environments": [{**settings, **place} for place in who]})
        return started

    def run(self, words: list, logs: Path, processes: int = 1, *, folder: Path = ROOT, **settings: str) -> Ended:
        return self.start(words, logs, processes, folder=folder, **settings).wait()


def places(processes: int) -> list[dict[str, str]]:
    """What tells each of several processes who it is; nothing for a single one."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    common |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    found = [{**common, "RANK": rank, "LOCAL_RANK": rank} for rank in range(processes)]
    return [{name: str(value) for name, value in place.items()} for place in found]


def environment(**settings: str) -> dict[str, str]:
    """The one of the tests, without what would make a process part of a distributed run."""
    hidden = ("ACCELERATE_", "TORCHELASTIC", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return {**inherited, "PYTHONPATH": str(ROOT), **settings}


@cache
def offline() -> Parent:
    """The parent that most tests need; it is not connected to any Hub. It ends with the tests."""
    return Parent(environment())
