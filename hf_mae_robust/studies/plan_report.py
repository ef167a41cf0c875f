"""What a study with a plan found: its one primary comparison first, then the secondary ones, cost and curves."""

import json
import statistics
from pathlib import Path
from typing import Any

from .comparisons import ALPHA, NOT_REACHED, REACHED, UNDECIDED, UNFINISHED, evaluate_plan, values_of
from .definitions import LEARNING_RATES, MEASURES, TRIED_RATES, Plan, Study
from .plan_conclusions import conclusions
from .plan_curves import curves_of_plan
from .report import Results, overview, summary, token_measures

# How each measure is taken: the plan has the figures.
HOW = {
    "linear": "BatchNorm and a linear layer are trained on the mean of the frozen patch tokens",
    "attentive": "attention pooling and a linear layer are trained on the frozen patch tokens",
    "knn": "the frozen mean of the patch tokens, and the labels of the nearest training images",
    "finetune": "all weights are trained on a part of the labels",
    "probe_mean": "a linear probe of few images, now and then during the pre-training",
    "uniformity": "of training images; lower is less collapsed",
}


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
    cost = costs(study, results)
    about = about | {"cost": f"{sum(entry['total'] for entry in cost.values()) / 3600:.1f} h of CPU time"}
    values = _summaries(study, results)
    content = {"study": study.name, "command": command, "about": about, **found, "values": values, "cost": cost}
    (folder / f"{study.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [f"# {study.title}", "", "```bash", command, "```", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", *_setup(study, plan, results)]
    lines += ["", *_primary(plan, found["primary"], labels)]
    lines += ["", *_secondary(found["secondary"], labels)]
    lines += ["", *conclusions(study, found)]
    lines += ["", *_values(study, values), *_tokens(study, results), "", *_costs(study, cost, results["pretrain"])]
    lines += ["", *curves_of_plan(study, results["pretrain"], folder)]
    path = folder / f"{study.name}.md"
    path.write_text("\n".join(lines).rstrip("\n") + "\n")
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


def _summaries(study: Study, results: dict[str, Results]) -> dict[str, dict[str, Any]]:
    """measure -> variant -> `summary`. A mean over a curve is left out where the variant has another number of epochs:
    it is of other epochs than theirs."""
    other_epochs = {variant.name for variant in study.variants if variant.epochs}
    found: dict[str, dict[str, Any]] = {}
    for measure in MEASURES:
        for name, by_seed in values_of(measure, results).items():
            if by_seed and not (measure == "probe_mean" and name in other_epochs):
                found.setdefault(measure, {})[name] = summary([value for _, value in sorted(by_seed.items())])
    return found


def _interval(ends: list[float] | None) -> str:
    """As reports print it."""
    return "" if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}"


def _p(value: float | None) -> str:
    """As reports print it: three digits, or four where three would hide on which side of ALPHA it lies."""
    if value is None:
        return ""
    if value < 0.001:
        return "< 0.001"
    return f"{value:.4f}" if f"{value:.3f}" == f"{ALPHA:.3f}" else f"{value:.3f}"


def _setup(study: Study, plan: Plan, results: dict[str, Results]) -> list[str]:
    pretrained = results["pretrain"]
    lines = ["## What was run", "", f"The plan, which was written before the first run: `{plan.document}`.", ""]
    lines += ["| variant | pre-training epochs | base learning rate | seeds |", "|---|---|---|---|"]
    rates = set()
    for variant in study.variants:
        runs, planned = list(pretrained.get(variant.name, {}).values()), len(study.seeds[variant.name])
        settings = [run.get("settings", {}) for run in runs]
        epochs = {f"{each['num_train_epochs']:g}" for each in settings if "num_train_epochs" in each}
        own_rates = {each["base_learning_rate"] for each in settings if "base_learning_rate" in each}
        rates |= own_rates
        texts = ["/".join(sorted(epochs)), "/".join(f"{rate:g}" for rate in sorted(own_rates))]
        seeds = f"{planned}" if len(runs) >= planned else f"{len(runs)} of {planned}"
        lines.append(f"| {variant.label} | {' | '.join(texts)} | {seeds} |")
    tried = ", ".join(f"{rate:g}" for rate in TRIED_RATES)
    ends = sorted(rates & set(LEARNING_RATES.values()) & {TRIED_RATES[0], TRIED_RATES[-1]})
    for rate in ends:
        which = "largest" if rate == TRIED_RATES[-1] else "smallest"
        lines += ["", f"{rate:g} is the {which} of the rates that were tried ({tried}): a better one may lie beyond."]
    lines += ["", "Measures:", ""]
    return [*lines, *(f"- {MEASURES[measure][2]}: {how}" for measure, how in HOW.items())]


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
        lines[-1] += f"; 95% by seed (t) {_interval(found['interval'])}"
    if "over_images" in found:
        lines[-1] += f"; 95% over images (bootstrap) {_interval(found['over_images'])}"
    if found["p"] is not None:
        lines[-1] += f"; two-sided p of no difference {_p(found['p'])}"
    rule = (
        f'The plan: "{REACHED}" where the lower end by seed is at least {-plan.margin:+.3f}, else "{NOT_REACHED}" '
        f'where the upper end is below 0, else "{UNDECIDED}".'
    )
    return [*lines[:-1], lines[-1] + ".", "", f"{rule} **{found['verdict']}**"]


def _secondary(found: list[dict[str, Any]], labels: dict[str, str]) -> list[str]:
    lines = [
        "## The secondary comparisons",
        "",
        f"All {len(found)} that were planned. p: paired t-test by seed, two-sided; Holm: corrected for all "
        f"{len(found)}, once all planned seeds are finished. A finding has a corrected p below {ALPHA:g}; "
        "what is not shown is not shown to be equal.",
        "",
        "| measure | variant | minus | seeds | difference | 95% by seed | 95% over images | p | Holm | |",
        "|---" * 10 + "|",
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
        cells += [_p(each["p"]), _p(each["p_holm"]), each["outcome"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _values(study: Study, values: dict[str, Any]) -> list[str]:
    measures = list(values)
    lines = [
        "## All variants",
        "",
        "Where variants have other seeds, their means differ by these too: the tables above compare the same seeds.",
        "",
        f"| mean +- deviation | n | {' | '.join(MEASURES[name][2] for name in measures)} |",
        "|---" * (len(measures) + 2) + "|",
    ]
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


def _costs(study: Study, cost: dict[str, dict[str, float]], pretrained: Results) -> list[str]:
    kinds = list(dict.fromkeys(kind for entry in cost.values() for kind in entry if kind != "total"))
    lines = [
        "## Cost",
        "",
        "CPU time is that of the machines that ran it, whose speed differs, so it does not compare variants: the range "
        "of the pre-trainings of one variant says by how much. Epochs do not depend on the machine. Runs that were "
        "killed and the tuning of the learning rates are not counted.",
        "",
        f"| CPU minutes of a run | range of pretrain | {' | '.join(kinds)} | all runs (h) |",
        "|---" * (len(kinds) + 3) + "|",
    ]
    for variant in study.variants:
        if (entry := cost.get(variant.name)) is not None:
            minutes = [run["cost"]["cpu_seconds"] / 60 for run in pretrained.get(variant.name, {}).values()]
            cells = [f"{min(minutes):.1f} to {max(minutes):.1f}" if minutes else ""]
            cells += [f"{entry[kind] / 60:.1f}" if kind in entry else "" for kind in kinds]
            lines.append(f"| {variant.label} | {' | '.join(cells)} | {entry['total'] / 3600:.2f} |")
    interrupted = [
        f"{variant.label}, seed {seed} ({run['cost']['attempts']} attempts)"
        for variant in study.variants
        for seed, run in pretrained.get(variant.name, {}).items()
        if run["cost"]["attempts"] > 1
    ]
    if interrupted:
        lines += ["", f"Interrupted pre-trainings, which resume from their last checkpoint: {'; '.join(interrupted)}."]
    return lines
