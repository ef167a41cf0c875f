"""What analyses found, as tables and as pictures."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .targets import PER_PATCH, TARGETS, Comparison

# Curves by block in a picture: measure -> axis.
CURVES = {
    "similarity": "cosine similarity of tokens",
    "rank": "effective rank of tokens",
    "uniformity": "uniformity of tokens",
    "entropy": "entropy of attention (nats)",
    "distance": "distance of attention (patches)",
}


# What `save_pictures` may write.
PICTURES = ("blocks.png", "loss_map.png", "cka.png")


def _by_block(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Block -> measure -> value."""
    blocks: dict[str, dict[str, float]] = {}
    for name, value in found.items():
        block, _, measure = name.partition("/")
        if measure in CURVES and block.startswith(("encoder ", "decoder ")):
            blocks.setdefault(block, {})[measure] = value
    return blocks


def table(found: dict[str, Any]) -> str:
    """The numbers in Markdown; those of single heads are in the file."""
    blocks, lines = _by_block(found), []
    if blocks:
        measures = [measure for measure in CURVES if any(measure in values for values in blocks.values())]
        lines += [f"| block | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
        lines += [
            f"| {block} | {' | '.join(f'{values[measure]:.3f}' for measure in measures)} |"
            for block, values in blocks.items()
        ]
    lines += [
        f"{name}: {value:.4f}"
        for name, value in found.items()
        if isinstance(value, float) and not name.startswith(("encoder ", "decoder "))
    ]
    return "\n".join(lines)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown that can be read as it is: columns of one width, all but the first to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(cells, widths))
        )
        return f"| {' | '.join([first, *others])} |"

    marks = ["-" * (width - 1) + (":" if number else "-") for number, width in enumerate(widths)]
    return "\n".join(map(line, [header, marks, *rows]))


def _curves(axes: Axes, blocks: dict[str, dict[str, float]], measure: str) -> None:
    for part, style in (("encoder", "o-"), ("decoder", "s--")):
        values = [found[measure] for block, found in blocks.items() if block.startswith(part)]
        axes.plot(range(len(values)), values, style, label=part, markersize=4)
    axes.set(xlabel="block", ylabel=CURVES[measure])
    axes.grid(alpha=0.3)
    axes.legend()


def _heatmap(figure: Figure, axes: Axes, values: torch.Tensor, title: str, **labels: str) -> None:
    figure.colorbar(axes.imshow(values.numpy(), cmap="viridis"), ax=axes)
    axes.set(title=title, **labels)


def save_pictures(found: dict[str, Any], folder: Path, other: str) -> None:
    """Those of PICTURES for which something was found."""
    blocks = _by_block(found)
    drawn: dict[str, list[Callable[..., None]]] = {}
    for measure in CURVES:
        if any(measure in values for values in blocks.values()):
            drawn.setdefault("blocks.png", []).append(lambda _, axes, measure=measure: _curves(axes, blocks, measure))
    if "loss_map" in found:
        title = f"loss by place of the patch (mean {found['loss']:.4f})"
        drawn["loss_map.png"] = [partial(_heatmap, values=found["loss_map"], title=title)]
    if "cka" in found:
        labels: dict[str, Any] = {"xlabel": f"block of {Path(other).name}", "ylabel": "block"}
        drawn["cka.png"] = [partial(_heatmap, values=found["cka"], title="linear CKA", **labels)]
    for name, panels in drawn.items():
        figure, all_axes = plt.subplots(
            1, len(panels), figsize=(1 + 4 * len(panels), 4), layout="constrained", squeeze=False
        )
        for draw, axes in zip(panels, all_axes[0]):
            draw(figure, axes)
        figure.savefig(folder / name, dpi=120)
        plt.close(figure)


def save_target_pictures(found: Comparison, path: Path) -> None:
    """Correlations of the targets, what of each is a constant, and how its variance is spread over the channels."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(17, 5), layout="constrained")
    places = range(len(TARGETS))
    _heatmap(figure, left, found.correlation, "correlation of the targets")
    left.set_xticks(places, TARGETS, rotation=30, ha="right")
    left.set_yticks(places, TARGETS)
    middle_value = (float(found.correlation.min()) + 1) / 2
    for row, values in enumerate(found.correlation.tolist()):
        for column, r in enumerate(values):
            color = "black" if r > middle_value else "white"  # on yellow or on blue
            left.text(column, row, f"{r:.3f}", ha="center", va="center", color=color)
    middle.barh(places, found.constant.tolist(), color="tab:blue", label="other constants")
    middle.barh(places, found.channel_offset.tolist(), color="tab:orange", label="offset between channels")
    middle.set_yticks(places, TARGETS)
    middle.invert_yaxis()
    middle.set(title="the same in every patch", xlabel="share of the target's variance")
    middle.legend()
    for name, shares in zip(TARGETS, found.by_channel.tolist()):
        style = "o-" if name in PER_PATCH else "o--"
        right.plot(range(len(shares)), shares, style, label=name, markersize=3)
    right.set(title="by channel", xlabel="channel (0-based)", ylabel="share of the target's variance", ylim=(0, None))
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(fontsize="small")
    for axes in (middle, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
