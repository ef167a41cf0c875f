"""Runs of a study: processes side by side, each finished one kept, interrupted ones resumed."""

import json
import multiprocessing
import os
import platform
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module, metadata
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from ..errors import StudyError, UserError, refused_by_library
from ..hub.run_record import processor_name
from ..training.predictions import PREDICTIONS, Predictions
from .hits import packed

RESULT, LOG = "result.json", "run.log"
# Of a run that is not finished: a line for each time that it was started, with its CPU time and its time in seconds.
ATTEMPTS = "attempts.jsonl"
# Of the log: what a result keeps over the epochs.
CURVES = ("loss", "eval_loss", "diagnostics/linear_probe_accuracy", "diagnostics/knn_accuracy")
# Points of a curve that a result keeps.
MAX_POINTS = 200
# Whose versions it names.
PACKAGES = ("torch", "transformers", "accelerate", "datasets")


# Of the modules that are not commands of `python -m hf_mae_robust`.
PROGRAMS = {"pretrain": "run_pretrain.py", "finetune": "run_finetune.py"}
KNN = "knn.json"


@dataclass(eq=False)
class Run:
    """A pre-training, an evaluation or analysis of what it gave, or a fine-tuning. module: "pretrain", "finetune",
    "analyze" (features) or "knn". folder: of its own; its name says what the run is for (`kind`). settings: its flags,
    but for folders. after: the run whose model it starts from."""

    module: str
    folder: Path
    settings: dict[str, Any]
    after: "Run | None" = None
    described: dict[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def kind(self) -> str:
        return self.folder.name

    @property
    def program(self) -> str:
        return PROGRAMS.get(self.module, "-m hf_mae_robust")

    def words(self) -> list[str]:
        """Of the command line, behind run_pretrain.py, run_finetune.py or `-m hf_mae_robust`."""
        words, folders = [], {"output_dir": str(self.output)}
        if self.module == "analyze":
            words += ["analyze", "features", str(cast(Run, self.after).output)]
        elif self.module == "knn":
            words += ["analyze", "knn", str(cast(Run, self.after).output)]
            folders = {"output": str(self.output / KNN), "predictions": str(self.output / PREDICTIONS)}
        elif self.after is not None:
            folders["model_name_or_path"] = str(self.after.output)
        for name, value in {**self.settings, **folders}.items():
            if value is True:
                words.append(f"--{name}")
                continue
            values = value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{name}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
        return words

    def recorded(self) -> dict[str, Any]:
        """What a finished run is known again by, wherever its folder lies."""
        return json.loads(json.dumps({**self.settings, "after": self.after and self.after.name}))

    @property
    def name(self) -> str:
        return "/".join(self.folder.parts[-2:])

    def has_model(self) -> bool:
        """Whether others can start from what it has left: models are large, and may have been deleted."""
        return self.result() is not None and (self.output / "model.safetensors").exists()

    def forget_result(self) -> None:
        for name in (RESULT, ATTEMPTS):
            (self.folder / name).unlink(missing_ok=True)

    def result(self) -> dict[str, Any] | None:
        """What a finished run has left; None where it is not finished. Raises ValueError where it had other flags."""
        path = self.folder / RESULT
        if not path.exists():
            return None
        with refused_by_library(f"{path} is damaged; remove it to run this again"):
            content = json.loads(path.read_text())
            here, there = self.recorded(), dict(content["settings"])
        differing = [name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name)]
        if differing:
            texts = [f"{name}: {there.get(name)!r} there, {here.get(name)!r} here" for name in differing]
            raise UserError(f"{path} is of other settings ({'; '.join(texts)}). Use those, or another --output_dir.")
        return content


def _thin(points: list[Any]) -> list[Any]:
    step = max(1, -(-len(points) // MAX_POINTS))
    return points[::step]


def _versions() -> str:
    return ", ".join(
        [f"Python {platform.python_version()}", *(f"{name} {metadata.version(name)}" for name in PACKAGES)]
    )


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({processor_name() or platform.machine()})"


def _collect(run: Run) -> dict[str, Any]:
    """Metrics and curves of a run's output folder."""
    found: dict[str, Any] = {**run.described, "module": run.module, "settings": run.recorded()}
    found |= {"versions": _versions(), "machine": _machine()}
    if run.module in ("analyze", "knn"):
        written = json.loads((run.output / (KNN if run.module == "knn" else "analysis.json")).read_text())
        values = written if run.module == "knn" else written["values"]
        found["metrics"] = {name: value for name, value in values.items() if isinstance(value, float)}
    else:
        history = json.loads((run.output / "trainer_state.json").read_text())["log_history"]
        curves = {
            name.removeprefix("diagnostics/"): [[entry["epoch"], entry[name]] for entry in history if name in entry]
            for name in CURVES
        }
        found["curves"] = {name: _thin(points) for name, points in curves.items() if points}
        found["metrics"] = json.loads((run.output / "all_results.json").read_text())
        found["metrics"] |= {name: points[-1][1] for name, points in curves.items() if points and "accuracy" in name}
    if (predictions := run.output / PREDICTIONS).exists():
        found["hits"] = packed(Predictions.read(predictions))
    return found | {"cost": _cost(run), "command": f"python {run.program} {shlex.join(run.words())}"}


def _cost(run: Run) -> dict[str, Any]:
    """CPU time and time of a run, interrupted attempts included; of those that were killed, nothing is known."""
    lines = [json.loads(line) for line in (run.folder / ATTEMPTS).read_text().splitlines()]
    return {"attempts": len(lines)} | {name: sum(line[name] for line in lines) for name in ("cpu_seconds", "seconds")}


@contextmanager
def _timed(path: Path) -> Iterator[None]:
    """Append what the block has cost this process, and the processes that it has waited for."""
    start = time.perf_counter(), sum(os.times()[:4])
    try:
        yield
    finally:
        spent = {"cpu_seconds": sum(os.times()[:4]) - start[1], "seconds": time.perf_counter() - start[0]}
        with path.open("a") as file:
            file.write(json.dumps({name: round(value, 2) for name, value in spent.items()}) + "\n")


# Each run is a fork of one process that has imported everything; imports can take longer than a small run.
_PROCESSES = multiprocessing.get_context("forkserver")
_PRELOADED = (
    "pretraining.task",
    "finetuning.classification.task",
    "analysis.analyze",
    "analysis.knn",
    "training.run",
    "__main__",
)
_PROCESSES.set_forkserver_preload([f"hf_mae_robust.{name}" for name in _PRELOADED])


def _become(module: str, words: list[str], log: Path, gpu: int | None, threads: int) -> None:
    """What a run's process does. gpu: the only one it sees."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    threadpool_limits(threads)
    torch.set_num_threads(threads)
    sys.argv = [f"run_{module}.py", *words]
    with _timed(log.with_name(ATTEMPTS)):
        import_module(f"hf_mae_robust.{module if module in PROGRAMS else '__main__'}").main()


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM, as schedulers send it, does what Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


class StudyRunner:
    """Runs what is not finished, `parallel` at a time, each on its share of the cores, or on a GPU of its own."""

    def __init__(self, runs: Sequence[Run], parallel: int):
        self.runs, self.parallel = list(runs), parallel
        self._children: set[BaseProcess] = set()
        self._lock, self._stopped = threading.Lock(), False
        self._places = list(range(parallel))

    def _waiting(self) -> list[Run]:
        """What is not finished, what has finished without a model that one of these needs, and what has started from a
        model that is trained again: its result is the former one's, which may differ on another machine."""
        unfinished = [run for run in self.runs if run.result() is None]
        lost = [run.after for run in unfinished if run.after is not None and not run.after.has_model()]
        again = [run for run in self.runs if run in unfinished or run in lost]
        return [run for run in self.runs if run in again or run.after in again]

    def go(self) -> None:
        """Raises StudyError where runs have failed; KeyboardInterrupt at SIGINT or SIGTERM: then runs have saved and
        ended, to be resumed later."""
        waiting = self._waiting()
        failed = []
        running: dict[Future[Any], Run] = {}
        with (
            _termination_as_interrupt(),
            tqdm(total=len(self.runs), initial=len(self.runs) - len(waiting), desc="Study", unit="run") as bar,
            ThreadPoolExecutor(self.parallel) as pool,
        ):
            try:
                while True:
                    # In their order, so that a model is looked at before the next one is trained.
                    ready = [run for run in waiting if run.after is None or run.after.has_model()]
                    for run in ready[: self.parallel - len(running)]:
                        waiting.remove(run)
                        running[pool.submit(self._run, run)] = run
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        run = running.pop(future)
                        if error := future.result():
                            failed.append(f"{run.folder}: {error}")
                        bar.set_postfix_str(run.name)
                        bar.update()
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
        with self._lock:
            place = self._places.pop(0)
        try:
            return self._run_at(run, place)
        finally:
            with self._lock:
                self._places.append(place)

    def _run_at(self, run: Run, place: int) -> str | None:
        run.folder.mkdir(parents=True, exist_ok=True)
        if (run.folder / RESULT).exists():  # its model is gone, and it begins again
            run.forget_result()
        for other in self.runs:
            if other.after is run:  # it has started from a former model: a checkpoint of it is not to be resumed
                other.forget_result()
                if other.output.exists():
                    shutil.rmtree(other.output)
        devices, share = torch.cuda.device_count(), max(1, (os.cpu_count() or 1) // self.parallel)
        threads = min(share, torch.get_num_threads())  # OMP_NUM_THREADS may allow fewer
        gpu = place % devices if devices else None
        child = _PROCESSES.Process(target=_become, args=(run.module, run.words(), run.folder / LOG, gpu, threads))
        with self._lock:
            if self._stopped:
                return "not started"
            child.start()
            self._children.add(child)
        try:
            child.join()
        finally:
            with self._lock:
                self._children.discard(child)
        exit_code = child.exitcode
        if exit_code:
            lines = (run.folder / LOG).read_text(errors="replace").replace("\r", "\n").strip().splitlines()
            return f"exit code {exit_code}: {' / '.join(lines[-3:])}"
        partial = (run.folder / RESULT).with_suffix(".partial")
        partial.write_text(json.dumps(_collect(run), indent=1) + "\n")
        partial.replace(run.folder / RESULT)
        return None
