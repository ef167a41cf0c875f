"""What a study with a plan found: its one primary comparison first, then the secondary ones, cost and curves."""

import json
import statistics
from pathlib import Path
from typing import Any

from .comparisons import NOT_REACHED, REACHED, UNDECIDED, UNFINISHED, compared, evaluate_plan, values_of
from .definitions import MEASURES, Comparison, Plan, Study
from .report import PROBE, Results, overview, summary, token_measures, write_curves

ALPHA = 0.05


def write_plan_report(
    study: Study, results: dict[str, Results], folder: Path, command: str, about: dict[str, Any]
) -> Path:
    """`STUDY.md`, `STUDY.json` and PNGs.

    Args:
        study: with a plan. results: kind of run -> results. about: data, versions, machine.
    """
    assert study.plan is not None
    folder.mkdir(parents=True, exist_ok=True)
    plan, labels = study.plan, {variant.name: variant.label for variant in study.variants}
    found = evaluate_plan(plan, results, study.seeds)
    gain = compared(Comparison(plan.primary.measure, plan.primary.against, study.baseline.name), results)
    values = {
        measure: {name: summary([v for _, v in sorted(by_seed.items())]) for name, by_seed in of.items() if by_seed}
        for measure in MEASURES
        if (of := values_of(measure, results))
    }
    cost = costs(study, results)
    about = about | {"cost": f"{sum(entry['total'] for entry in cost.values()) / 3600:.1f} h of CPU time"}
    content = {"study": study.name, "command": command, "about": about, **found, "values": values, "cost": cost}
    (folder / f"{study.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [f"# {study.title}", "", "```bash", command, "```", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", *_primary(plan, found["primary"], labels)]
    lines += ["", *_secondary(found["secondary"], labels)]
    lines += ["", *_values(study, values), *_tokens(study, results), "", *_costs(study, cost)]
    lines += ["", *_curve(study, results["pretrain"])]
    for name, label in (("loss", "training loss"), (PROBE, "accuracy of the small linear probe")):
        if write_curves(study, results["pretrain"], name, label, folder / f"{study.name}_{name}.png"):
            lines += ["", f"![{label}]({study.name}_{name}.png)"]
    lines += ["", *_what_it_shows(plan, found, gain, labels)]
    path = folder / f"{study.name}.md"
    path.write_text("\n".join(lines) + "\n")
    return path


def costs(study: Study, results: dict[str, Results]) -> dict[str, dict[str, float]]:
    """Variant -> kind of run -> mean CPU seconds of a run; and "total", over all runs."""
    found: dict[str, dict[str, float]] = {}
    for variant in study.variants:
        for kind, of in results.items():
            seconds = [result["cost"]["cpu_seconds"] for result in of.get(variant.name, {}).values()]
            if seconds:
                entry = found.setdefault(variant.name, {"total": 0.0})
                entry[kind] = statistics.fmean(seconds)
                entry["total"] += sum(seconds)
    return found


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}"


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _primary(plan: Plan, found: dict[str, Any], labels: dict[str, str]) -> list[str]:
    mine, others, measure = labels[found["variant"]], labels[found["against"]], MEASURES[found["measure"]][2]
    lines = ["## The primary comparison", "", f"{measure}: {mine} minus {others}, the same seeds.", ""]
    if not found["seeds"]:
        return [*lines, f"**{UNFINISHED}**"]
    lines += [f"| seed | {mine} | {others} | difference |", "|---|---|---|---|"]
    for seed, value, other in zip(found["seeds"], found["values"], found["values_against"]):
        lines.append(f"| {seed} | {value:.4f} | {other:.4f} | {value - other:+.4f} |")
    lines += ["", f"Mean difference {found['difference']:+.4f}"]
    if found["interval"]:
        lines[-1] += f"; 95% by seed (t) {_interval(found['interval'])}, p {_p(found['p'])}"
    if "over_images" in found:
        lines[-1] += f"; 95% over images (bootstrap) {_interval(found['over_images'])}"
    rule = (
        f'The plan: "{REACHED}" where the lower end by seed is at least {-plan.margin:+.3f}, else "{NOT_REACHED}" '
        f'where the upper end is below 0, else "{UNDECIDED}".'
    )
    return [*lines[:-1], lines[-1] + ".", "", f"{rule} **{found['verdict']}**"]


def _secondary(found: list[dict[str, Any]], labels: dict[str, str]) -> list[str]:
    lines = [
        "## The secondary comparisons",
        "",
        f"All {len(found)} that were planned. p: paired t-test by seed; Holm: corrected for all {len(found)}, once all "
        "planned seeds are finished.",
        "",
        "| measure | variant | minus | seeds | difference | 95% by seed | 95% over images | p | Holm |",
        "|---" * 9 + "|",
    ]
    for each in found:
        difference = "" if each["difference"] is None else f"{each['difference']:+.4f}"
        cells = [
            MEASURES[each["measure"]][2],
            labels[each["variant"]],
            labels[each["against"]],
            str(len(each["seeds"])) + (f" of {each['planned']}" if len(each["seeds"]) < each["planned"] else ""),
        ]
        cells += [difference, _interval(each["interval"]), _interval(each.get("over_images"))]
        lines.append(f"| {' | '.join([*cells, _p(each['p']), _p(each['p_holm'])])} |")
    return lines


def _values(study: Study, values: dict[str, Any]) -> list[str]:
    measures = list(values)
    lines = ["## All variants", "", f"| mean +- deviation | n | {' | '.join(MEASURES[name][2] for name in measures)} |"]
    lines.append("|---" * (len(measures) + 2) + "|")
    for variant in study.variants:
        entries = [values[name].get(variant.name) for name in measures]
        counts = [len(entry["values"]) for entry in entries if entry]
        if counts:
            n = str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
            lines.append(f"| {variant.label} | {n} | {' | '.join(map(_entry, entries))} |")
    return lines


def _entry(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    return f"{entry['mean']:.4f}" + ("" if entry["deviation"] is None else f" +- {entry['deviation']:.4f}")


def _tokens(study: Study, results: dict[str, Results]) -> list[str]:
    measured = token_measures(study, results["analyze"])
    return ["", *overview(study, measured)] if measured else []


def _costs(study: Study, cost: dict[str, dict[str, float]]) -> list[str]:
    kinds = list(dict.fromkeys(kind for entry in cost.values() for kind in entry if kind != "total"))
    lines = [
        "## Cost",
        "",
        f"| CPU minutes of a run | {' | '.join(kinds)} | all runs (h) |",
        "|---" * (len(kinds) + 2) + "|",
    ]
    for variant in study.variants:
        if (entry := cost.get(variant.name)) is not None:
            cells = [f"{entry[kind] / 60:.1f}" if kind in entry else "" for kind in kinds]
            lines.append(f"| {variant.label} | {' | '.join(cells)} | {entry['total'] / 3600:.2f} |")
    return lines


def _curve(study: Study, pretrained: Results) -> list[str]:
    """The mean over seeds of the probe that runs during the pre-training, by epoch: one row an epoch, because some
    variants train longer."""
    curves: dict[str, dict[float, float]] = {}
    for variant in study.variants:
        by_epoch: dict[float, list[float]] = {}
        for result in pretrained.get(variant.name, {}).values():
            for epoch, value in result["curves"].get(PROBE, ()):
                by_epoch.setdefault(round(epoch, 2), []).append(value)
        if by_epoch:
            curves[variant.label] = {epoch: statistics.fmean(values) for epoch, values in by_epoch.items()}
    if not curves:
        return []
    lines = [
        "## Curves",
        "",
        "The small linear probe that runs during the pre-training, the mean over the seeds. A schedule twice as long "
        "has a higher learning rate at the same epoch, so rows do not compare it with the others.",
        "",
        f"| epoch | {' | '.join(curves)} |",
        "|---" * (len(curves) + 1) + "|",
    ]
    for epoch in sorted({epoch for curve in curves.values() for epoch in curve}):
        cells = [f"{curve[epoch]:.4f}" if epoch in curve else "" for curve in curves.values()]
        lines.append(f"| {epoch:g} | {' | '.join(cells)} |")
    return lines


def _what_it_shows(plan: Plan, found: dict[str, Any], gain: dict[str, Any], labels: dict[str, str]) -> list[str]:
    primary, secondary = found["primary"], found["secondary"]
    lines = ["## What this does and does not show", "", f"- {_meaning(plan, primary, labels)}"]
    if primary["interval"]:
        half = (primary["interval"][1] - primary["interval"][0]) / 2
        lines.append(
            f"- The interval of the primary comparison reaches {half:.4f} to each side: that is its resolution."
        )
    if gain["interval"]:
        weak = gain["interval"][0] < plan.margin
        lines.append(
            f"- Twice the epochs give {labels[gain['against']]} {gain['difference']:+.4f} by themselves "
            f"({_interval(gain['interval'])}). "
            + (
                f"That may be less than the margin of {plan.margin:g}, and then to reach it says little."
                if weak
                else f"That is more than the margin of {plan.margin:g}, so there is something to reach."
            )
        )
    tested = [each for each in secondary if each["p_holm"] is not None]
    below = sum(each["p"] < ALPHA for each in tested)
    kept = [each for each in tested if each["p_holm"] < ALPHA]
    names = "; ".join(
        f"{MEASURES[each['measure']][2]}, {labels[each['variant']]} minus {labels[each['against']]} "
        f"({each['difference']:+.4f})"
        for each in kept
    )
    lines.append(
        f"- Of {len(tested)} secondary comparisons that are finished {below} have p below {ALPHA:g}; "
        f"{ALPHA * len(tested):.1f} are expected where nothing differs. After Holm's "
        f"correction {len(kept)} remain{': ' + names if names else ''}. "
        "What does not remain is not shown to be equal: these seeds cannot tell."
    )
    lines += [
        "- Intervals by seed say how far other seeds would change a difference, those over images how far other test "
        "images would, between these very models.",
        "- One data set of small images, one small model and short schedules: what helps here may not help ViT-B on "
        "ImageNet, and the other way round. Learning rates are tuned for MAE and for the robust recipe, at half the "
        "epochs; the other variants borrow them, and so does MAE in twice the epochs.",
    ]
    return lines


def _meaning(plan: Plan, primary: dict[str, Any], labels: dict[str, str]) -> str:
    mine, others = labels[primary["variant"]], labels[primary["against"]]
    if primary["verdict"] == REACHED:
        below = primary["interval"][1] < 0
        return f"{mine} reaches {others} within {plan.margin:g}" + (", though it lies below." if below else ".")
    if primary["verdict"] == NOT_REACHED:
        return f"{mine} does not reach {others}."
    if primary["verdict"] == UNDECIDED:
        return f"Whether {mine} reaches {others} is undecided: the interval holds both."
    return "The primary comparison has no verdict yet: not all of its runs are finished."
