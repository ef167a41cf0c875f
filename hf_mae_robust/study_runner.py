"""Runs of a study: processes side by side, each finished one kept, interrupted ones gone on with."""

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

RESULT, LOG = "result.json", "run.log"
# Points of a curve that a result keeps.
MAX_POINTS = 200


@dataclass
class Run:
    """A pre-training or a fine-tuning. module: "pretrain" or "finetune". folder: of its own. settings: its flags, but
    for --output_dir. after: the run that has to be finished before."""

    module: str
    folder: Path
    settings: dict[str, Any]
    after: "Run | None" = None
    described: dict[str, Any] = field(default_factory=dict)

    def words(self) -> list[str]:
        words = []
        for name, value in {**self.settings, "output_dir": str(self.folder / "output")}.items():
            if value is True:
                words.append(f"--{name}")
                continue
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{name}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
        return words

    def result(self) -> dict[str, Any] | None:
        """What a finished run has left; None where it is not finished. Raises ValueError where it had other flags."""
        path = self.folder / RESULT
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        here, there = json.loads(json.dumps(self.settings)), content["settings"]
        differing = [name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]
        if differing:
            texts = [f"{name}: {there.get(name)!r} there, {here.get(name)!r} here" for name in differing]
            raise ValueError(f"{path} is of other settings ({'; '.join(texts)}). Use those, or another --output_dir.")
        return content


class StudyError(RuntimeError):
    """Runs of a study failed; the others are finished."""


def _thin(points: list) -> list:
    step = max(1, -(-len(points) // MAX_POINTS))
    return points[::step]


def _collect(run: Run) -> dict[str, Any]:
    """Metrics and curves of a run's output folder."""
    output = run.folder / "output"
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    curves = {
        name: _thin([[entry["epoch"], entry[name]] for entry in history if name in entry])
        for name in ("loss", "eval_loss", "diagnostics/linear_probe_accuracy", "diagnostics/knn_accuracy")
    }
    return {
        **run.described,
        "module": run.module,
        "settings": run.settings,
        "metrics": json.loads((output / "all_results.json").read_text()),
        "curves": {name: points for name, points in curves.items() if points},
        "command": f"run_{run.module}.py {shlex.join(run.words()[:-2])}",
    }


class StudyRunner:
    """Runs what is not finished, `parallel` at a time, each on its share of the cores, or on a GPU of its own."""

    def __init__(self, runs: Sequence[Run], parallel: int):
        self.runs, self.parallel = list(runs), parallel
        self._children: set[subprocess.Popen] = set()
        self._lock, self._stopped = threading.Lock(), False
        self._places = list(range(parallel))

    def go(self) -> None:
        """Raises StudyError where runs have failed. When interrupted, runs save and end, and are gone on with later."""
        waiting = [run for run in self.runs if run.result() is None]
        with (
            tqdm(total=len(self.runs), initial=len(self.runs) - len(waiting), desc="Study", unit="run") as bar,
            ThreadPoolExecutor(self.parallel) as pool,
        ):
            failed, started = [], {}

            def start_ready() -> None:
                for run in waiting:
                    is_ready = run.after is None or run.after.result() is not None
                    if is_ready and run not in [*started.values()]:
                        started[pool.submit(self._run, run)] = run

            try:
                start_ready()
                done: set = set()
                while pending := [future for future in started if future not in done]:
                    future = next(as_completed(pending))
                    done.add(future)
                    run, error = started[future], future.result()
                    if error:
                        failed.append(f"{run.folder}: {error}")
                    bar.set_postfix_str(run.folder.name)
                    bar.update()
                    start_ready()
            except BaseException:
                self._stop()
                raise
        if failed:
            raise StudyError(
                f"{len(failed)} of {len(self.runs)} runs failed, and what needs them was left out. The same command "
                "tries them again.\n" + "\n".join(failed)
            )

    def _stop(self) -> None:
        self._stopped = True
        with self._lock:
            for child in self._children:
                child.terminate()  # they save

    def _run(self, run: Run) -> str | None:
        """The end of the log, where a run fails."""
        if self._stopped:
            return "not started"
        with self._lock:
            place = self._places.pop(0)
        try:
            return self._run_at(run, place)
        finally:
            with self._lock:
                self._places.append(place)

    def _run_at(self, run: Run, place: int) -> str | None:
        run.folder.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if torch.cuda.is_available():
            environment["CUDA_VISIBLE_DEVICES"] = str(place % torch.cuda.device_count())
        else:
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.parallel))
        code = f"from hf_mae_robust.{run.module} import main; main()"
        with (run.folder / LOG).open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-c", code, *run.words()], env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            with self._lock:
                self._children.add(child)
            try:
                exit_code = child.wait()
            finally:
                with self._lock:
                    self._children.discard(child)
        if exit_code:
            lines = (run.folder / LOG).read_text(errors="replace").replace("\r", "\n").strip().splitlines()
            return f"exit code {exit_code}: {' / '.join(lines[-3:])}"
        partial = (run.folder / RESULT).with_suffix(".partial")
        partial.write_text(json.dumps(_collect(run), indent=1) + "\n")
        partial.replace(run.folder / RESULT)
        return None
