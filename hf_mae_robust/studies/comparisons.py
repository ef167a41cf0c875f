"""Comparisons that were planned before the first run: paired by seed, over images, corrected for their number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import StudyError
from ..training.intervals import LEVELS
from .definitions import MEASURES, Comparison, Plan
from .hits import unpacked
from .report import Results, last_block, mean_of_curve, paired, with_more

# Verdicts on the primary comparison.
REACHED, NOT_REACHED, UNDECIDED, UNFINISHED = "reached", "not reached", "undecided", "not all planned runs are finished"
# Outcomes of a secondary comparison. A finding has a corrected p below ALPHA.
FINDING, NOT_SHOWN, WAITS = "finding", "not shown", "waits"
ALPHA = 0.05
RESAMPLES = 10_000


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): the i-th smallest of m times m + 1 - i, at least that of the one before, at most
    1. Of those below alpha, the probability that any is false is at most alpha, whatever depends on what."""
    p = np.asarray(p_values, dtype=float)
    order = p.argsort(kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted.tolist()


def bootstrap_over_images(
    hits: np.ndarray, others: np.ndarray, *, num_resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of the difference of two mean accuracies, over resamples of the images: each image keeps
    its answers of all seeds and of both sides. It says how far another sample of images would change the difference
    between these very models.

    Args:
        hits, others: `(S, N)` bool: S seeds of each side, N images.
    """
    differences = hits.astype(np.int64).sum(axis=0) - others.astype(np.int64).sum(axis=0)
    values, counts = np.unique(differences, return_counts=True)
    # Images with the same difference are alike, so a resample is how often each difference is drawn.
    drawn = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), size=num_resamples)
    low, high = np.quantile(drawn @ values / (len(differences) * len(hits)), LEVELS)
    return float(low), float(high)


def values_of(measure: str, results: dict[str, Results]) -> dict[str, dict[int, float]]:
    """Variant -> seed -> value. results: kind of run -> variant -> seed -> result."""
    kind, metric, _ = MEASURES[measure]
    derive = {"analyze": last_block, "pretrain": mean_of_curve}.get(kind)
    found = results.get(kind, {})
    found = with_more(found, derive) if derive is not None else found
    return {
        variant: {seed: result["metrics"][metric] for seed, result in by_seed.items() if metric in result["metrics"]}
        for variant, by_seed in found.items()
    }


def _hits_of(comparison: Comparison, seeds: Sequence[int], results: dict[str, Results]) -> list[np.ndarray] | None:
    """Of both sides, `(S, N)`; None where runs of this kind classify no images. Raises StudyError for other images."""
    kind = MEASURES[comparison.measure][0]
    names = comparison.variant, comparison.against
    runs = [[results[kind][name][seed] for seed in seeds] for name in names]
    if not all("hits" in run for side in runs for run in side):
        return None
    sides: list[list[dict[str, Any]]] = [[run["hits"] for run in side] for side in runs]
    every = [hits for side in sides for hits in side]
    if len({(hits["images"], hits["of"]) for hits in every}) > 1:
        raise StudyError(
            f"{MEASURES[comparison.measure][2]} of {comparison.variant} and {comparison.against}: the runs have "
            "classified different images, so they cannot be compared image by image."
        )
    return [np.stack([unpacked(hits) for hits in side]) for side in sides]


def compared(comparison: Comparison, results: dict[str, Results]) -> dict[str, Any]:
    """What `report.paired` gives over the seeds that both have, these seeds and the values, and `over_images`,
    the interval of the bootstrap, where there are images."""
    values = values_of(comparison.measure, results)
    mine, others = (values.get(name, {}) for name in (comparison.variant, comparison.against))
    seeds = sorted(mine.keys() & others.keys())
    found: dict[str, Any] = {**vars(comparison), "seeds": seeds, "difference": None, "interval": None, "p": None}
    if not seeds:
        return found
    found |= {"values": [mine[seed] for seed in seeds], "values_against": [others[seed] for seed in seeds]}
    found |= paired(found["values"], found["values_against"])
    if (hits := _hits_of(comparison, seeds, results)) is not None:
        found["over_images"] = list(bootstrap_over_images(*hits))
    return found


def ends_by_seed(found: dict[str, Any]) -> tuple[float, float]:
    """Of the interval of a comparison of at least two seeds. Both ends are the difference where all seeds have the same
    one: the t-test has no interval then."""
    low, high = found["interval"] or (found["difference"], found["difference"])
    return low, high


def evaluate_verdict(low: np.ndarray, high: np.ndarray, margin: float) -> np.ndarray:
    """Of intervals by seed (`(N,)` ends): REACHED where the lower end is at least -margin, else NOT_REACHED where the
    upper end is below 0, else UNDECIDED."""
    return np.where(low >= -margin, REACHED, np.where(high < 0, NOT_REACHED, UNDECIDED))


def verdict(found: dict[str, Any], margin: float) -> str:
    """On the primary comparison, by `evaluate_verdict`; UNFINISHED before all planned seeds are there, and for one."""
    if len(found["seeds"]) < max(2, found["planned"]):
        return UNFINISHED
    low, high = ends_by_seed(found)
    return str(evaluate_verdict(np.array(low), np.array(high), margin))


def evaluate_plan(plan: Plan, results: dict[str, Results], seeds: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The primary comparison with its verdict, and the secondary ones with p-values corrected by Holm over all that
    are planned: one that cannot be tested, or whose seeds are not all there, counts with p = 1.

    Args:
        seeds: planned, by variant. What is returned has as "planned" how many both sides of a comparison share.
            Secondary comparisons have their "outcome", too: FINDING, NOT_SHOWN, or WAITS for seeds.
    """

    def of(comparison: Comparison) -> dict[str, Any]:
        planned = set(seeds[comparison.variant]) & set(seeds[comparison.against])
        return compared(comparison, results) | {"planned": len(planned)}

    primary = of(plan.primary)
    primary |= {"margin": plan.margin, "verdict": verdict(primary, plan.margin)}
    secondary = [of(comparison) for comparison in plan.secondary]
    tested = [found["p"] is not None and len(found["seeds"]) >= found["planned"] for found in secondary]
    adjusted = holm([found["p"] if is_tested else 1.0 for found, is_tested in zip(secondary, tested)])
    for found, is_tested, p in zip(secondary, tested, adjusted):
        found["p_holm"] = p if is_tested else None
        found["outcome"] = FINDING if is_tested and p < ALPHA else NOT_SHOWN
        if len(found["seeds"]) < found["planned"]:
            found["outcome"] = WAITS
    return {"primary": primary, "secondary": secondary}
