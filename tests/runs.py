"""Real runs of the two scripts in processes of their own, which can be made to fail at a chosen step."""

import json
import shutil
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import TINY_OVERRIDES
from tests.processes import ROOT, Ended, offline


@dataclass
class Run(Ended):
    """A training that has ended."""

    folder: Path

    def state(self) -> dict:
        return json.loads((self.folder / "trainer_state.json").read_text())

    def losses(self) -> list[tuple[int, float]]:
        return [(entry["step"], entry["loss"]) for entry in self.state()["log_history"] if "loss" in entry]

    def weights(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()


def run(
    words: list[str],
    folder: Path,
    processes: int = 1,
    fault: str | None = None,
    script: str = "pretrain",
    **settings: str,
) -> Run:
    """One run to its end, or to what `fault` (see tests/faults.py) makes of it. script: "pretrain" or "finetune".
    settings: further environment variables, FAULT_AT among them."""
    command = [ROOT / f"run_{script}.py", *words, "--output_dir", folder]
    settings |= {} if fault is None else {"FAULT": fault}
    printed, fresh = folder.with_name(f"{folder.name}-printed"), not folder.exists()
    ended = offline().run(command, printed, processes, **settings)
    if fault is None and _died_of_fsdp_on_a_cpu(ended, settings):
        warnings.warn(f"Run again: its processes ended with {ended.codes}.\n{ended.output}", stacklevel=2)
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        ended = offline().run(command, printed, processes, **settings)
    return Run(ended.codes, ended.stdout, ended.stderr, folder)


def _died_of_fsdp_on_a_cpu(ended: Ended, settings: dict[str, str]) -> bool:
    """Whether native code has ended a process that had FSDP on a CPU, which accelerate does not offer (fsdp_on_cpu).
    It was seen once in some hundred runs: glibc found a heap that something had written over ("malloc(): unaligned
    tcache chunk detected") after the last step. Checked allocations (glibc's malloc.check, and blocks that were kept
    back and compared after they were freed) found nothing, so the cause is not known."""
    crashes = {-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS}
    return "fsdp_on_cpu" in settings.get("IMPORT", "") and not crashes.isdisjoint(ended.codes)


def largest_difference(run: Run, other: Run) -> float:
    """Of a logged loss, between two runs that have logged the same steps."""
    pairs = list(zip(run.losses(), other.losses(), strict=True))
    assert pairs and all(step == of_other for (step, _), (of_other, _) in pairs)
    return max(abs(loss - of_other) for (_, loss), (_, of_other) in pairs)


def tiny_run(dataset: Path, *words: str) -> list[str]:
    """Flags of a run of a tiny model that logs every step."""
    settings = {
        "dataset_name": dataset,
        "config_overrides": TINY_OVERRIDES,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "report_to": "none",
        "crop_pct": 1.0,
        "save_strategy": "no",
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)] + list(words)
