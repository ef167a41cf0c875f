"""What the parts of benchmarks/gpu.py share: arguments, the time left, figures, and runs of run_pretrain.py."""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
# As in gpu.py, which imports nothing from here.
CANNOT_RUN_HERE = 77
# Of a model to rehearse with.
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
    "mid_mask_layer_idx": 1,
}


class Part:
    """rehearse: tiny sizes on the CPU. work: a folder that is deleted at the end, output: one that is not."""

    def __init__(self, doc: str):
        self._begun = time.monotonic()
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--rows", type=Path, required=True, help="Figures are added to this file, one line each.")
        parser.add_argument("--work", type=Path, required=True)
        parser.add_argument("--output", type=Path, required=True)
        parser.add_argument("--photos", type=Path, required=True)
        parser.add_argument("--cifar10", type=Path)
        parser.add_argument("--seconds", type=float, default=600)
        parser.add_argument("--rehearse", action="store_true")
        given = parser.parse_args()
        self.rows, self.work, self.output = given.rows, given.work, given.output
        self.photos, self.cifar10, self.rehearse = given.photos, given.cifar10, given.rehearse
        self._limit = given.seconds
        self._failed: list[str] = []
        # gpu.py asks with SIGTERM: `finally` blocks get their turn.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

    @property
    def device(self):
        """torch's; a part that is not a rehearsal ends here without a GPU."""
        import torch

        if self.rehearse:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            self.leave_out("needs a GPU (or --rehearse)")
        return torch.device("cuda")

    def left(self) -> float:
        """Seconds."""
        return self._limit - (time.monotonic() - self._begun)

    def record(self, table: str, /, **figures: Any) -> None:
        """A row of a table; the columns are the names, with `_` for spaces."""
        figures = {name.replace("_", " "): value for name, value in figures.items() if value is not None}
        with self.rows.open("a") as file:
            file.write(json.dumps({"table": table, "figures": figures}) + "\n")
        print(f"{table}: {figures}", flush=True)

    def recorded(self, table: str) -> list[dict[str, Any]]:
        """What an earlier part has found."""
        rows = [json.loads(line) for line in self.rows.read_text().splitlines()]
        return [row["figures"] for row in rows if row["table"] == table]

    def check(self, table: str, name: str, passed: bool, found: Any, wanted: str) -> None:
        self.record(table, check=name, passed="yes" if passed else "NO", found=found, wanted=wanted)
        if not passed:
            self._failed.append(name)

    def end(self) -> NoReturn:
        if self._failed:
            print(f"not passed: {', '.join(self._failed)}", flush=True)
        sys.exit(1 if self._failed else 0)

    def leave_out(self, why: str) -> NoReturn:
        print(why, flush=True)
        sys.exit(CANNOT_RUN_HERE)


def words_of(settings: dict[str, Any]) -> list[str]:
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
    return words


def overrides(sizes: dict[str, Any]) -> str:
    """For --config_overrides."""
    return ",".join(f"{name}={value}" for name, value in sizes.items())


def start_pretraining(settings: dict[str, Any], launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """run_pretrain.py, by itself or under a launcher, with these flags."""
    settings = {"report_to": "none", "disable_tqdm": True, **settings}
    command = [sys.executable, *launcher, str(ROOT / "run_pretrain.py"), *words_of(settings)]
    return subprocess.Popen(command, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen, seconds: float) -> None:
    """Raises RuntimeError where it fails, TimeoutExpired where it takes longer."""
    if process.wait(timeout=seconds):
        raise RuntimeError(f"run_pretrain.py: exit code {process.returncode}")


def losses_of(folder: Path) -> dict[int, float]:
    """Step -> loss, as a finished run has logged them."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
