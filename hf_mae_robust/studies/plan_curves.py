"""Curves of a study with a plan, by epoch: a table and pictures."""

import statistics
from pathlib import Path

from .definitions import Study
from .report import PROBE, Results, write_curves


def curves_of_plan(study: Study, pretrained: Results, folder: Path) -> list[str]:
    """Lines of the report; the pictures lie beside it. Training losses have a panel a target: those of different
    targets have different units."""
    table = _probe_by_epoch(study, pretrained)
    if not table:
        return []
    lines = [
        "## Curves",
        "",
        "The small linear probe that runs during the pre-training, the mean over n seeds. It learns from fewer images "
        "than the linear probe above. A schedule twice as long has a higher learning rate at the same epoch, so rows "
        "do not compare it with the others; nor do they compare variants of other seeds.",
        "",
        *table,
    ]
    first = study.answers_first()
    rest = {variant.name for variant in study.variants} - first | {study.baseline.name}
    probes = {"the primary comparison": first, "the other variants": rest}
    picture = f"{study.name}_{PROBE}.png"
    if write_curves(study, pretrained, PROBE, "accuracy, small linear probe", folder / picture, probes, after=0):
        lines += ["", f"![accuracy of the small linear probe after the first step]({picture})"]
    targets: dict[str, set[str]] = {}
    for variant in study.variants:
        targets.setdefault(f"target {variant.flags()['target_normalization']}", set()).add(variant.name)
    picture = f"{study.name}_loss.png"
    if write_curves(study, pretrained, "loss", "training loss", folder / picture, targets):
        lines += ["", "Training losses include the attention dropout, where a variant has it.", ""]
        lines.append(f"![training loss by target]({picture})")
    return lines


def _probe_by_epoch(study: Study, pretrained: Results) -> list[str]:
    """One row an epoch, because some variants train longer."""
    curves: dict[str, dict[float, float]] = {}
    for variant in study.variants:
        by_epoch: dict[float, list[float]] = {}
        of_seeds = [points for run in pretrained.get(variant.name, {}).values() if (points := run["curves"].get(PROBE))]
        for epoch, value in (point for points in of_seeds for point in points):
            by_epoch.setdefault(round(epoch, 2), []).append(value)
        if by_epoch:
            label = f"{variant.label} (n = {len(of_seeds)})"
            curves[label] = {epoch: statistics.fmean(values) for epoch, values in by_epoch.items()}
    if not curves:
        return []
    lines = [f"| epoch | {' | '.join(curves)} |", "|---" * (len(curves) + 1) + "|"]
    for epoch in sorted({epoch for curve in curves.values() for epoch in curve}):
        cells = [f"{curve[epoch]:.4f}" if epoch in curve else "" for curve in curves.values()]
        lines.append(f"| {epoch:g} | {' | '.join(cells)} |")
    return lines
