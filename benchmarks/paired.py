"""Ours and others in turns, in one process: rates, ratios with their spread, and what they were measured on.

The other benchmarks import this. On a shared machine the speed of everything goes up and down; two ways that alternate
meet the same weather, so that the ratio of a round says more than the rates of a day.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hf_mae_robust.hub.run_record import processor_name

PACKAGES = ("torch", "torchvision", "transformers", "accelerate", "datasets", "pillow", "simplejpeg", "timm")


def add_common_arguments(parser: argparse.ArgumentParser, repeats: int = 7) -> None:
    parser.add_argument("--repeats", type=int, default=repeats, help="Rounds, after one to warm up (%(default)s).")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch (%(default)s).")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all figures there.")


def current_device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def synchronize() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def measure(ways: dict[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Name -> units a second, one figure a round. A way does some work and returns how many units (images, steps) that
    was. Every round runs all ways, every other round in the opposite order."""
    rates = {name: [] for name in ways}
    for repeat in range(-1, repeats):
        order = list(ways.items())
        for name, work in order if repeat % 2 else reversed(order):
            synchronize()
            begun = time.perf_counter()
            units = work()
            synchronize()
            rate = units / (time.perf_counter() - begun)
            if repeat >= 0:
                rates[name].append(rate)
    return rates


def ratios(rates: dict[str, list[float]], base: str) -> dict[str, list[float]]:
    """Name -> its rate over that of `base`, one figure a round."""
    return {name: [a / b for a, b in zip(values, rates[base])] for name, values in rates.items()}


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "python": platform.python_version(),
        "versions": versions,
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}


def report(
    question: str,
    rates: dict[str, list[float]],
    base: str,
    unit: str = "images/s",
    path: Path | None = None,
    **more: Any,
) -> None:
    """Print a Markdown table of the rates and of their ratios to `base`; write everything to `path` as JSON."""
    compared = ratios(rates, base)
    print(f"\n| {question} | {unit}, median (smallest to largest) | ratio to {base} |\n|---|---|---|")
    for name in rates:
        rate, ratio = spread(rates[name]), spread(compared[name])
        print(
            f"| {name} | {rate['median']:,.4g} ({rate['smallest']:,.4g} to {rate['largest']:,.4g}) "
            f"| {ratio['median']:.2f} ({ratio['smallest']:.2f} to {ratio['largest']:.2f}) |"
        )
    if path is not None:
        content = {
            "question": question,
            "command": "python " + shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
            "date": date.today().isoformat(),
            "machine": machine(),
            "unit": unit,
            "base": base,
            "rates": rates,
            "ratios": {name: spread(values) for name, values in compared.items()},
            **more,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n")
