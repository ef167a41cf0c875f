"""What a study found: Markdown, JSON and pictures."""

import json
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from scipy import stats

from .definitions import FEATURE_MEASURES, TOKEN_MEASURES, TRAINING_MEASURES, Study

# Of the runs of one kind: variant -> seed -> result.
Results = dict[str, dict[int, dict[str, Any]]]
PROBE = "linear_probe_accuracy"
# Differences of accuracies whose deviation is at most this are equal.
ROUNDING = 1e-12


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (n - 1; None for a single value)."""
    return {
        "values": list(values),
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
    }


def paired(values: Sequence[float], baseline: Sequence[float]) -> dict[str, Any]:
    """Differences by seed: their mean, its 95% interval and the p-value of the paired t-test (two-sided); interval and
    p-value are None where there are fewer than 2 pairs, or all differences are the same, but for rounding."""
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    found: dict[str, Any] = {"difference": statistics.fmean(differences), "interval": None, "p": None}
    if len(differences) > 1 and statistics.stdev(differences) > ROUNDING:
        test = stats.ttest_rel(values, baseline)
        interval = test.confidence_interval(0.95)
        found |= {"interval": [float(interval.low), float(interval.high)], "p": float(test.pvalue)}
    return found


def compare(study: Study, results: Results, measures: Iterable[str]) -> dict[str, Any]:
    """measure -> variant -> `summary`, and `paired` with the baseline over the seeds that both have."""
    found: dict[str, Any] = {}
    for measure in measures:
        values = {
            name: {seed: result["metrics"][measure] for seed, result in by_seed.items() if measure in result["metrics"]}
            for name, by_seed in results.items()
        }
        base = values.get(study.baseline.name, {})
        for variant in study.variants:
            own = values.get(variant.name)
            if not own:
                continue
            entry = summary([own[seed] for seed in sorted(own)])
            both = sorted(own.keys() & base.keys())
            if variant.name != study.baseline.name and both:
                entry["against_baseline"] = paired([own[s] for s in both], [base[s] for s in both])
            found.setdefault(measure, {})[variant.name] = entry
    return found


def epochs_to_reach(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """The first epoch of a curve of (epoch, value) with at least this value; None: never."""
    return next((epoch for epoch, value in curve if value >= level), None)


def headline(study: Study, pretrained: Results) -> dict[str, Any]:
    """Does a variant's linear probe reach what the baseline's has at the end in fewer epochs? variant -> by seed:
    epochs of the variant, None: not reached; and the last epoch of the baseline."""
    found: dict[str, Any] = {}
    for variant in study.variants:
        for seed, result in pretrained.get(variant.name, {}).items():
            base = pretrained.get(study.baseline.name, {}).get(seed)
            if base is None or PROBE not in base["curves"] or PROBE not in result["curves"]:
                continue
            last_epoch, level = base["curves"][PROBE][-1]
            entry = {"reached": epochs_to_reach(result["curves"][PROBE], level), "baseline": last_epoch, "level": level}
            found.setdefault(variant.name, {})[seed] = entry
    return found


def with_more(results: Results, derive: Callable[[dict[str, Any]], dict[str, float]]) -> Results:
    """Results, with metrics that follow from each."""
    return {
        variant: {seed: {**result, "metrics": result["metrics"] | derive(result)} for seed, result in by_seed.items()}
        for variant, by_seed in results.items()
    }


def last_block(analysis: dict[str, Any]) -> dict[str, float]:
    """The measures of the encoder's last block under that name."""
    metrics = analysis["metrics"]
    last = max(int(name.split("/")[0].split()[1]) for name in metrics if name.startswith("encoder "))
    start = f"encoder {last}/"
    return {
        f"last block/{name.removeprefix(start)}": value for name, value in metrics.items() if name.startswith(start)
    }


def mean_of_curve(pretraining: dict[str, Any]) -> dict[str, float]:
    """The mean of the probe's curve behind its first point: how early features are good."""
    values = [value for epoch, value in pretraining["curves"].get(PROBE, ()) if epoch > 0]
    return {"linear_probe_mean": statistics.fmean(values)} if values else {}


def write_report(study: Study, results: dict[str, Results], folder: Path, command: str, about: dict[str, Any]) -> Path:
    """`STUDY.md`, `STUDY.json` and PNGs.

    Args:
        results: "pretrain", "analyze" and "finetune" -> results of those runs. about: data, versions, machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pretrained = results["pretrain"]
    finetuned = compare(study, results["finetune"], [name for name, _ in study.metrics])
    probed = compare(study, with_more(pretrained, mean_of_curve), FEATURE_MEASURES)
    analyzed = token_measures(study, results["analyze"])
    trained = compare(study, pretrained, TRAINING_MEASURES) if study.same_target else {}
    reached = headline(study, pretrained)
    content = {"study": study.name, "command": command, "about": about}
    content |= {"trained": trained} if trained else {}
    content |= {"finetuned": finetuned, "probed": probed, "analyzed": analyzed, "probe_reached": reached}
    (folder / f"{study.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [f"# {study.title}", "", "```bash", command, "```", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    if finetuned:
        lines += ["", "## Fine-tuned"]
        for index, (metric, label) in enumerate(study.metrics):
            paper = {name: figures[index] for name, figures in study.paper.items()} or None
            lines += ["", *_table(study, label, finetuned.get(metric, {}), paper)]
        if study.paper:
            lines += [
                "",
                f"The paper's figures are of {study.paper_source}, and stand here to be compared in their order only: "
                "models, data and epochs are others.",
            ]
    if trained:
        lines += ["", "## Pre-training"]
        for measure, label in TRAINING_MEASURES.items():
            lines += ["", *_table(study, label, trained.get(measure, {}))]
    if probed:
        lines += ["", "## Features, frozen"]
        for measure, label in FEATURE_MEASURES.items():
            lines += ["", *_table(study, label, probed.get(measure, {})), *_untrained(pretrained, measure)]
    if reached:
        lines += ["", *_probe_by_epoch(study, pretrained), "", *_headline(study, reached)]
    if analyzed:
        measure, label = next(iter(TOKEN_MEASURES.items()))
        lines += [
            "",
            "## Tokens",
            "",
            *_table(study, label, analyzed.get(measure, {})),
            "",
            *overview(study, analyzed),
        ]
    if finetuned or probed or trained:
        lines += [
            "",
            "n runs differ in the seed of pre-training and fine-tuning; the differences and p are of a paired t-test "
            f"with {study.baseline.label} by seed, not corrected for the number of rows.",
        ]
    if study.task is None and not study.same_target:
        lines += ["", "## Losses", "", *_losses(study, pretrained)]
    for name, label in (("loss", "training loss"), (PROBE, "accuracy of the linear probe")):
        if write_curves(study, pretrained, name, label, folder / f"{study.name}_{name}.png"):
            lines += ["", f"![{label}]({study.name}_{name}.png)"]
    path = folder / f"{study.name}.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def token_measures(study: Study, analyzed: Results) -> dict[str, Any]:
    """`compare` of what analyses say of tokens."""
    return compare(study, with_more(analyzed, last_block), TOKEN_MEASURES)


def _table(study: Study, label: str, found: dict[str, Any], paper: dict[str, str] | None = None) -> list[str]:
    lines = [f"| {label} | n | mean | deviation | over {study.baseline.label} (95%) | p |", "|---" * 6 + "|"]
    if paper is not None:
        lines = [f"{lines[0]} paper's (%) |", f"{lines[1]}---|"]
    for variant in study.variants:
        if variant.name not in found:
            continue
        entry = found[variant.name]
        against = entry.get("against_baseline")
        difference = "" if against is None else f"{against['difference']:+.4f}"
        if against and against["interval"]:
            difference += f" ({against['interval'][0]:+.4f} to {against['interval'][1]:+.4f})"
        p = f"{against['p']:.3f}" if against and against["p"] is not None else ""
        deviation = "" if entry["deviation"] is None else f"{entry['deviation']:.4f}"
        cells = [variant.label, str(len(entry["values"])), f"{entry['mean']:.4f}", deviation, difference, p]
        cells += [] if paper is None else [paper.get(variant.name, "")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _untrained(pretrained: Results, measure: str) -> list[str]:
    """What the features are worth before the first step, over all runs: they differ in their seeds only."""
    values = [
        points[0][1]
        for by_seed in pretrained.values()
        for result in by_seed.values()
        if (points := result["curves"].get(measure)) and points[0][0] == 0
    ]
    return ["", f"Before the first step: {statistics.fmean(values):.4f}."] if values else []


def overview(study: Study, analyzed: dict[str, Any]) -> list[str]:
    """Means of many measures, one row a variant."""
    labels = [label for measure, label in TOKEN_MEASURES.items() if measure in analyzed]
    lines = [f"| mean over seeds | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for variant in study.variants:
        entries = [values[variant.name] for values in analyzed.values() if variant.name in values]
        if entries:
            cells = [
                f"{entry['mean']:.3f}" + (f" +- {entry['deviation']:.3f}" if entry["deviation"] is not None else "")
                for entry in entries
            ]
            lines.append(f"| {variant.label} | {' | '.join(cells)} |")
    return [*lines, "", "Definitions: `hf_mae_robust/analysis/measures.py`."]


def _headline(study: Study, reached: dict[str, Any]) -> list[str]:
    lines = [f"Epochs until the linear probe is where that of {study.baseline.label} is at its end:", ""]
    lines += ["| | by seed |", "|---|---|"]
    for variant in study.variants:
        if variant.name in reached:
            texts = [
                f"{'not' if entry['reached'] is None else format(entry['reached'], '.3g')} of {entry['baseline']:.3g}"
                for _, entry in sorted(reached[variant.name].items())
            ]
            lines.append(f"| {variant.label} | {', '.join(texts)} |")
    return lines


def _probe_by_epoch(study: Study, pretrained: Results) -> list[str]:
    lines: list[str] = []
    for variant in study.variants:
        curves = [points for r in pretrained.get(variant.name, {}).values() if (points := r["curves"].get(PROBE))]
        if curves:
            if not lines:
                epochs = [f"{epoch:.3g}" for epoch, _ in curves[0]]
                lines = [f"| linear probe by epoch | {' | '.join(epochs)} |", "|---" * (len(epochs) + 1) + "|"]
            means = [f"{statistics.fmean(value for _, value in points):.4f}" for points in zip(*curves)]
            longer = f" (to epoch {curves[0][-1][0]:.3g})" if variant.epochs else ""
            lines.append(f"| {variant.label}{longer} | {' | '.join(means)} |")
    return lines


def _losses(study: Study, pretrained: Results) -> list[str]:
    """Last losses; the step per patch against its counterpart, each relative to predicting the mean."""
    lines = [
        "The last loss of each target, and as a share of what predicting the mean gives: losses of different targets "
        "have different units, and only shares may be compared. Means over seeds.",
        "",
        "| target | evaluation loss | predicting the mean | share |",
        "|---|---|---|---|",
    ]
    for variant in study.variants:
        losses = [
            [result["metrics"].get(name, math.nan) for name in ("eval_loss", "eval_loss_of_mean")]
            for _, result in sorted(pretrained.get(variant.name, {}).items())
        ]
        if losses:
            loss, mean = (statistics.fmean(values) for values in zip(*losses))
            lines.append(f"| {variant.label} | {loss:.4f} | {mean:.4f} | {loss / mean:.3f} |")
    return lines


def write_curves(
    study: Study,
    results: Results,
    name: str,
    label: str,
    path: Path,
    panels: Mapping[str, Collection[str]] | None = None,
    after: float = -math.inf,
) -> bool:
    """One line a variant, the mean over seeds, and a band from the lowest to the highest.

    Args:
        panels: title -> names of the variants that it shows; default: all in one, without a title. after: only later
            epochs are drawn.

    Returns:
        whether there was something to draw.
    """
    drawn = {
        variant.name: curves
        for variant in study.variants
        if (curves := [r["curves"][name] for r in results.get(variant.name, {}).values() if name in r["curves"]])
    }
    panels = {"": drawn} if panels is None else panels
    panels = {title: names for title, names in panels.items() if drawn.keys() & set(names)}
    if not panels:
        return False
    figure, every_axes = plt.subplots(
        1, len(panels), figsize=(7 if len(panels) == 1 else 5.5 * len(panels), 4.5), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes, (title, names) in zip(every_axes[0], panels.items()):
        for number, variant in enumerate(study.variants):
            if variant.name in names and variant.name in drawn:
                _draw(axes, [dict(points) for points in drawn[variant.name]], after, f"C{number}", variant.label)
        axes.set(xlabel="epoch", ylabel=label, yscale="log" if "loss" in name else "linear", title=title)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def _draw(axes: Axes, curves: list[dict[float, float]], after: float, color: str, label: str) -> None:
    """curves: of the seeds, epoch -> value. Seeds log at the same epochs; one that was resumed may lack some."""
    epochs = [epoch for epoch in curves[0] if epoch > after and all(epoch in curve for curve in curves)]
    values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])
    marker = "o" if len(epochs) < 50 else None
    text = f"{label} (n = {len(curves)})"
    axes.plot(epochs, values.mean(axis=0), color=color, linewidth=1.4, label=text, marker=marker, markersize=3)
    axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
