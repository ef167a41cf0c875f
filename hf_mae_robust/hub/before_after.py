"""What a run that starts from an encoder has made of it: measures before the first step and after the last, of the log
of --diagnostics_steps."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_PREFIX = "diagnostics/"
# As a share: less is the noise of a measure's sample.
_NOTICEABLE = 0.005
# Key, name, and whether more of it is better (1), worse (-1), or neither by itself (0).
_BY_LABELS = (
    ("knn_accuracy", "Nearest neighbours, accuracy", 1),
    ("linear_probe_accuracy", "Linear probe, accuracy", 1),
)
_WITHOUT = (
    ("mean/rank", "Effective rank of the images' features", 1),
    ("mean/uniformity", "Uniformity of the images' features", 0),
    ("{last}/similarity", "Similarity of the tokens of an image, last block", -1),
)
_BLOCK = re.compile(rf"{_PREFIX}(encoder (\d+))/similarity")


@dataclass(frozen=True)
class BeforeAfter:
    """A table of two columns.

    Attributes:
        rows: (name, before, after).
        steps: between the two.
        verdict: a sentence where it got worse; else empty.
    """

    rows: tuple[tuple[str, float, float], ...]
    steps: int
    verdict: str

    def __str__(self) -> str:
        width = max(len(name) for name, *_ in self.rows)
        title = f"after {self.steps:,} steps"
        lines = [f"{'The encoder':{width}}  {'before':>10}  {title:>{max(10, len(title))}}"]
        for name, before, after in self.rows:
            lines.append(f"{name:{width}}  {before:>10.4g}  {after:>{max(10, len(title))}.4g}")
        return "\n".join([*lines, *([self.verdict] if self.verdict else [])])


def before_and_after(history: Sequence[Mapping[str, Any]]) -> BeforeAfter | None:
    """Of a Trainer's log: its measures at step 0 and the last ones. None where it has not both."""
    entries = [entry for entry in history if any(name.startswith(_PREFIX) for name in entry)]
    if len(entries) < 2 or entries[0]["step"] != 0 or entries[-1]["step"] == 0:
        return None
    first, final = entries[0], entries[-1]
    blocks = [(int(match[2]), match[1]) for name in first if (match := _BLOCK.fullmatch(name))]
    last = max(blocks)[1] if blocks else ""
    rows: list[tuple[str, float, float]] = []
    worse: list[str] = []
    for measures in (_BY_LABELS, _WITHOUT):
        is_judge = not rows  # where there are labels, they alone tell
        for key, name, better in measures:
            name_in_log = _PREFIX + key.format(last=last)
            if name_in_log not in first or name_in_log not in final:
                continue
            before, after = float(first[name_in_log]), float(final[name_in_log])
            rows.append((name, before, after))
            if is_judge and better * (after - before) < -_NOTICEABLE * abs(before):
                worse.append(f"{name[0].lower()}{name[1:]} {before:.4g} -> {after:.4g}")
    if not rows:
        return None
    verdict = ""
    if worse and f"{_PREFIX}knn_accuracy" in first:
        verdict = (
            f"The features got worse on these labels ({'; '.join(worse)}): the encoder as it was may serve better."
        )
    elif worse:
        verdict = f"The features may have got worse ({'; '.join(worse)}). --label_column_name measures accuracies, too."
    return BeforeAfter(tuple(rows), int(final["step"]), verdict)
