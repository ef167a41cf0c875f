"""What the results of a study with a plan show, and what they do not, in sentences."""

from typing import Any

import numpy as np
from scipy import stats

from ..paper import FIGURES
from .comparisons import (
    ALPHA,
    FINDING,
    NOT_REACHED,
    REACHED,
    UNDECIDED,
    UNFINISHED,
    WAITS,
    ends_by_seed,
    evaluate_verdict,
)
from .definitions import MEASURES, Plan, Study

# Studies that are simulated to see what a verdict is worth.
SIMULATED = 20_000


def conclusions(study: Study, found: dict[str, Any]) -> list[str]:
    """Lines of the report. found: what `evaluate_plan` gives."""
    assert study.plan is not None
    plan, labels = study.plan, {variant.name: variant.label for variant in study.variants}
    primary, secondary = found["primary"], found["secondary"]
    points = [_meaning(plan, primary, labels)]
    if primary["verdict"] != UNFINISHED:
        points += [*_resolution(plan, primary), *_finetuned(primary, secondary, labels)]
    points += [*_gain(study, plan, secondary, labels), _findings(secondary, labels), _power(secondary)]
    points += [
        f"All comparisons with {study.baseline.label} share its runs: a seed in which it is low lifts every variant "
        "that has this seed.",
        "Intervals by seed say how far other seeds would change a difference, those over images how far other test "
        "images would, between these very models. None covers both.",
        "One data set of small images, one small model and short schedules: what helps here may not help ViT-B on "
        "ImageNet, and the other way round. Learning rates are tuned for MAE and for the robust recipe, with one seed "
        "and at half the epochs; the other variants borrow them, and so does MAE in twice the epochs.",
    ]
    return ["## What this does and does not show", "", *(f"- {point}" for point in points)]


def _meaning(plan: Plan, primary: dict[str, Any], labels: dict[str, str]) -> str:
    mine, others, margin = labels[primary["variant"]], labels[primary["against"]], f"{plan.margin:g}"
    if primary["verdict"] == UNFINISHED:
        return "The primary comparison has no verdict yet: not all of its runs are finished."
    low, high = ends_by_seed(primary)
    if primary["verdict"] == REACHED:
        if low > 0:
            return f"{mine} reaches {others}, and lies above."
        return f"{mine} reaches {others} within {margin}" + (", though it lies below." if high < 0 else ".")
    if primary["verdict"] == NOT_REACHED:
        within = f" The interval still includes shortfalls of less than {margin}." if high > -plan.margin else ""
        return f"{mine} does not reach {others}.{within}"
    return (
        f"Whether {mine} reaches {others} is undecided: the interval includes both no shortfall and one of more than "
        f"{margin}. That is not evidence that it does."
    )


def _resolution(plan: Plan, primary: dict[str, Any]) -> list[str]:
    """How fine the comparison is, and what its rule would say of two equal recipes."""
    low, high = ends_by_seed(primary)
    table = FIGURES["Table 2"]["ViT-B"]
    (mae,), (mae_twice,), (robust,) = table["mae"], table["mae_1600"], table["robust"]
    differences = np.subtract(primary["values"], primary["values_against"])
    count, deviation = len(differences), float(differences.std(ddof=1))
    drawn = np.random.default_rng(0).normal(0, deviation, (SIMULATED, count))
    half = stats.t.ppf(0.975, count - 1) * drawn.std(axis=1, ddof=1) / count**0.5
    verdicts = evaluate_verdict(drawn.mean(axis=1) - half, drawn.mean(axis=1) + half, plan.margin)
    shares = {name: float(np.mean(verdicts == name)) for name in (REACHED, NOT_REACHED, UNDECIDED)}
    return [
        f"The interval of the primary comparison extends {(high - low) / 2:.4f} to each side. The paper's differences "
        f"are of {float(mae_twice) - float(mae):.1f} points (ImageNet, ViT-B, fine-tuned: MAE {mae}, in twice the "
        f"epochs {mae_twice}, the robust recipe {robust}); they are of another measure and another scale.",
        f"Of two recipes that are exactly equal, differences that vary by seed as these do (deviation {deviation:.4f}) "
        f'would give "{REACHED}" in {shares[REACHED]:.0%} of studies of {count} seeds, "{UNDECIDED}" in '
        f'{shares[UNDECIDED]:.0%} and "{NOT_REACHED}" in {shares[NOT_REACHED]:.0%} (simulated).',
    ]


def _finetuned(primary: dict[str, Any], secondary: list[dict[str, Any]], labels: dict[str, str]) -> list[str]:
    """What the paper's claim is about: the same pair, fine-tuned."""
    pair = primary["variant"], primary["against"]
    each = next((s for s in secondary if (s["variant"], s["against"]) == pair and s["measure"] == "finetune"), None)
    if each is None or each["outcome"] == WAITS:
        return []
    low, high = ends_by_seed(each)
    return [
        f"The paper's claim is about fine-tuned models. Fine-tuned, {labels[pair[0]]} minus {labels[pair[1]]} is "
        f"{each['difference']:+.4f} ({low:+.4f} to {high:+.4f})."
    ]


def _gain(study: Study, plan: Plan, secondary: list[dict[str, Any]], labels: dict[str, str]) -> list[str]:
    """Whether there is something to reach: what twice the epochs give MAE by themselves."""
    key = plan.primary.measure, plan.primary.against, study.baseline.name
    each = next((s for s in secondary if (s["measure"], s["variant"], s["against"]) == key), None)
    if each is None:
        return []
    if len(each["seeds"]) < max(2, each["planned"]):
        seeds = f"{len(each['seeds'])} of {each['planned']} seeds are finished"
        return [f"Whether twice the epochs give MAE anything to reach is not known yet: {seeds}."]
    low, high = ends_by_seed(each)
    if low < plan.margin:
        rest = f"That may be less than the margin of {plan.margin:g}, and then to reach it says little."
    else:
        rest = f"That is more than the margin of {plan.margin:g}, so there is something to reach."
    given = f"{each['difference']:+.4f} by themselves ({low:+.4f} to {high:+.4f})"
    return [f"Twice the epochs give {labels[each['against']]} {given}. {rest}"]


def _findings(secondary: list[dict[str, Any]], labels: dict[str, str]) -> str:
    tested = [each for each in secondary if each["p_holm"] is not None]
    below = sum(each["p"] < ALPHA for each in tested)
    kept = [each for each in tested if each["outcome"] == FINDING]
    names = "; ".join(
        f"{MEASURES[each['measure']][2]}, {labels[each['variant']]} minus {labels[each['against']]} "
        f"({each['difference']:+.4f})"
        for each in kept
    )
    return (
        f"Of {len(tested)} secondary comparisons that are finished {below} have p below {ALPHA:g}; "
        f"{ALPHA * len(tested):.1f} are expected where nothing differs. After Holm's "
        f"correction {len(kept)} remain{': ' + names if names else ''}. "
        "What does not remain is not shown to be equal: these seeds cannot tell."
    )


def _power(secondary: list[dict[str, Any]]) -> str:
    """How clear a difference has to be, by its number of seeds."""
    texts = []
    for count in sorted({each["planned"] for each in secondary if each["planned"] > 1}, reverse=True):
        needed = float(stats.t.ppf(1 - ALPHA / len(secondary) / 2, count - 1))
        texts.append(f"with {count} seeds |t| of at least {needed:.1f} ({needed / count**0.5:.1f} deviations)")
    return (
        f"To be the first finding of {len(secondary)}, a comparison must have {', '.join(texts)}, and a later one "
        "a little less. Deviations are those of the paired differences. A difference can be real and not shown."
    )
