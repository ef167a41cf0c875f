"""Which learning rate is the best of those that were tried, on images that were held out of the training."""

import json
import statistics
from pathlib import Path
from typing import Any

from .definitions import LEARNING_RATES, MEASURES, Study
from .report import Results, write_curves

KIND, METRIC, _ = MEASURES["linear"]


def tried_rates(study: Study, results: Results) -> dict[str, dict[float, float]]:
    """What was tuned -> learning rate -> accuracy, the mean over the seeds. results: of the linear probes."""
    found: dict[str, dict[float, float]] = {}
    for variant in study.variants:
        by_seed = results.get(variant.name)
        if by_seed and variant.learning_rate is not None:
            accuracy = statistics.fmean(result["metrics"][METRIC] for result in by_seed.values())
            found.setdefault(variant.tuned, {})[variant.learning_rate] = accuracy
    return found


def best_rate(accuracies: dict[float, float]) -> float:
    """The learning rate of the highest accuracy; of equal ones the lowest."""
    return min(accuracies, key=lambda rate: (-accuracies[rate], rate))


def write_rates_report(
    study: Study, results: dict[str, Results], folder: Path, command: str, about: dict[str, Any]
) -> Path:
    """`STUDY.md`, `STUDY.json` and PNGs. Args: as `write_report`, with "linear" among the results."""
    folder.mkdir(parents=True, exist_ok=True)
    tried = tried_rates(study, results[KIND])
    planned = {variant.tuned: 0 for variant in study.variants}
    for variant in study.variants:
        planned[variant.tuned] += 1
    chosen = {name: best_rate(rates) for name, rates in tried.items() if len(rates) == planned[name]}
    content = {"study": study.name, "command": command, "about": about, "tried": tried, "chosen": chosen}
    (folder / f"{study.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    rates = sorted({variant.learning_rate for variant in study.variants if variant.learning_rate is not None})
    lines = [f"# {study.title}", "", "```bash", command, "```", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += [
        "",
        f"| held-out accuracy | {' | '.join(f'{rate:g}' for rate in rates)} |",
        "|---" * (len(rates) + 1) + "|",
    ]
    for name, accuracies in tried.items():
        cells = [f"{accuracies[rate]:.4f}" if rate in accuracies else "" for rate in rates]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    for name in tried:
        lines += [f"- {name}: {_choice(name, chosen, rates)}"]
    for curve, label in (("loss", "training loss"), ("linear_probe_accuracy", "accuracy of the small linear probe")):
        if write_curves(study, results["pretrain"], curve, label, folder / f"{study.name}_{curve}.png"):
            lines += ["", f"![{label}]({study.name}_{curve}.png)"]
    path = folder / f"{study.name}.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def _choice(name: str, chosen: dict[str, float], rates: list[float]) -> str:
    if name not in chosen:
        return "not all rates are tried yet."
    rate = chosen[name]
    at_end = " It is at the end of those that were tried." if rate in (rates[0], rates[-1]) else ""
    stands = LEARNING_RATES[name]
    agrees = "which `--scale medium` has" if stands == rate else f"and `--scale medium` has {stands:g}"
    return f"{rate:g}, {agrees}.{at_end}"
