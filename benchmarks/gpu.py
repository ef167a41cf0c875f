"""How fast and how exact is this package on a GPU?

    python benchmarks/gpu.py --photos path/to/imagenet-sample --cifar10 path/to/cifar10 --output gpu_figures
    python benchmarks/gpu.py --rehearse ...      # tiny sizes on the CPU: every way that does not need a GPU

The parts run one after another, each in a process of its own with a time limit, at most 9 minutes together. A part that
fails or is out of time is reported, and the next one begins. `gpu.json` and `gpu.md` in the output folder are written
again after every figure. `python benchmarks/gpu.py --help` lists the parts; each file in benchmarks/gpu/ says what it
measures.

This file needs psutil only; torch and the others are imported by the parts.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
# Exit code of a part that cannot run on this machine, for a reason that its last line says.
CANNOT_RUN_HERE = 77
# Seconds that a part has to end by itself when it is asked to; below LEAST, none is started.
GRACE, LEAST = 3, 5


@dataclass(frozen=True)
class Part:
    """script: in benchmarks/gpu/. seconds: its limit; None: what is left."""

    name: str
    script: str
    seconds: float | None
    question: str


PARTS = (
    Part("environment", "environment.py", 30, "Card, driver, versions, and what a large matrix product reaches"),
    Part("smoke", "smoke.py", 70, "Is it right on this card? Loss, drop edge, statistics, a run killed and resumed"),
    Part("steps", "steps.py", 180, "Training steps of ViT-B and ViT-L against stock and the official structure"),
    Part("precision", "precision.py", 50, "bf16 against fp32 over 200 steps on photos"),
    Part("loading", "loading.py", 100, "Images/s from JPEG bytes to the card, and whether the card waits for them"),
    Part("fsdp", "fsdp.py", 40, "FSDP2 on one GPU against DDP, 20 steps"),
    Part("cifar10", "cifar10.py", None, "MAE against the robust recipe on CIFAR-10, 100 epochs, seeds in turn"),
)


def commit_of_checkout() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


class Report:
    """`gpu.json` and `gpu.md`: what the parts have found so far."""

    def __init__(self, folder: Path, rows: Path, about: dict[str, Any]):
        self.folder, self.rows, self.about = folder, rows, about
        self.parts: dict[str, dict[str, Any]] = {}
        self._size = -1

    def write(self) -> None:
        text = self.rows.read_text()
        found = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        content = {**self.about, "parts": self.parts, "rows": found}
        self._replace("gpu.json", json.dumps(content, indent=1) + "\n")
        self._replace("gpu.md", self._markdown(found))

    def write_if_grown(self) -> None:
        if (size := self.rows.stat().st_size) != self._size:
            self._size = size
            self.write()

    def _replace(self, name: str, text: str) -> None:
        partial = self.folder / f"{name}.partial"
        partial.write_text(text)
        partial.replace(self.folder / name)

    def _markdown(self, found: list[dict]) -> str:
        lines = [f"# GPU figures, {self.about['date']}", "", "```bash", self.about["command"], "```", ""]
        lines += [f"Commit {self.about['commit']}.", "", "| part | how it ended | seconds |", "|---|---|---|"]
        lines += [f"| {name} | {part['ended']} | {part['seconds']:.0f} |" for name, part in self.parts.items()]
        tables: dict[str, list[dict]] = {}
        for row in found:
            tables.setdefault(row["table"], []).append(row["figures"])
        for title, rows in tables.items():
            # Lists (curves, rounds) are in the JSON.
            columns = {name: None for row in rows for name, value in row.items() if not isinstance(value, list)}
            lines += ["", f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]
        return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def end_all(family: set[psutil.Process]) -> None:
    """End processes, first with SIGTERM, after a while with SIGKILL."""
    alive = list(family)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in alive:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        _, alive = psutil.wait_procs(alive, timeout=GRACE)


def run_part(part: Part, seconds: float, words: list[str], environment: dict[str, str], report: Report) -> dict:
    """How it ended, and how long it took. Its output goes to `gpu.log` in the output folder."""
    begun = time.monotonic()
    log = report.folder / "gpu.log"
    with log.open("a") as output:
        output.write(f"\n==== {part.name} (at most {seconds:.0f} s)\n")
        output.flush()
        place = output.tell()
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / "gpu" / part.script),
            "--seconds",
            f"{seconds:.0f}",
            *words,
        ]
        process = psutil.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
    # All that it has started, also where these have left its session (torchrun's workers have) or outlive it.
    family = {psutil.Process(process.pid)}
    try:
        while process.poll() is None and time.monotonic() - begun < seconds:
            time.sleep(0.2)
            with suppress(psutil.NoSuchProcess):
                family |= set(process.children(recursive=True))
            report.write_if_grown()
        in_time = process.poll() is not None
    finally:
        end_all(family)
    with log.open(errors="replace") as output:
        output.seek(place)
        last = [line.strip() for line in output.read().replace("\r", "\n").splitlines() if line.strip()][-1:]
    if not in_time:
        ended = "out of time"
    elif process.returncode == CANNOT_RUN_HERE:
        ended = f"left out: {' '.join(last)}"
    elif process.returncode:
        ended = f"failed (exit code {process.returncode}): {' '.join(last)}"[:300]
    else:
        ended = "done"
    return {"ended": ended, "seconds": time.monotonic() - begun, "limit": seconds}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    listed = "\n".join(f"  {part.name:<12} {part.question}" for part in PARTS)
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"parts:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="Folder with a few hundred JPEG photos or Parquet.")
    parser.add_argument("--cifar10", type=Path, help="Folder with CIFAR-10 as Parquet, for the last part.")
    parser.add_argument("--output", type=Path, default=Path("gpu_figures"), help="(%(default)s)")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="Only these.")
    parser.add_argument("--total_seconds", type=float, default=540, help="For all parts together (%(default)s).")
    parser.add_argument("--commit", help="Of this code, where the checkout has no .git.")
    parser.add_argument("--rehearse", action="store_true", help="Tiny sizes on the CPU; the figures mean nothing.")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    deadline = time.monotonic() + arguments.total_seconds
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = arguments.output / "gpu.jsonl"
    rows.write_text("")
    (arguments.output / "gpu.log").write_text("")
    command = shlex.join(["python", "benchmarks/gpu.py", *(sys.argv[1:] if argv is None else argv)])
    about = {"date": date.today().isoformat(), "commit": arguments.commit or commit_of_checkout(), "command": command}
    report = Report(arguments.output, rows, {**about, "rehearsal": arguments.rehearse})
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    failed = False
    # Checkpoints are written here: they are large, and nobody wants them afterwards.
    with tempfile.TemporaryDirectory(prefix="gpu-") as work:
        words = ["--rows", str(rows.resolve()), "--work", work, "--photos", str(arguments.photos.resolve())]
        words += ["--output", str(arguments.output.resolve())]
        words += ["--cifar10", str(arguments.cifar10.resolve())] if arguments.cifar10 else []
        words += ["--rehearse"] if arguments.rehearse else []
        path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(Path(work) / "huggingface")}
        for part in PARTS:
            if arguments.parts and part.name not in arguments.parts and part.name != "environment":
                continue
            left = deadline - time.monotonic() - 2 * GRACE
            # How long a rehearsal takes depends on what else the processor does.
            limit = left if part.seconds is None or arguments.rehearse else part.seconds
            seconds = min(limit, left)
            if seconds < LEAST:
                report.parts[part.name] = {"ended": "not begun: no time left", "seconds": 0.0, "limit": 0.0}
            else:
                report.parts[part.name] = run_part(part, seconds, words, environment, report)
            failed = failed or report.parts[part.name]["ended"].startswith("failed")
            report.write()
            print(f"{part.name}: {report.parts[part.name]['ended']}", flush=True)
    print((arguments.output / "gpu.md").read_text())
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
