"""What evaluators found, as a table and as pictures."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Curves by block in a picture: measure -> axis.
CURVES = {
    "similarity": "cosine similarity of tokens",
    "rank": "effective rank of tokens",
    "uniformity": "uniformity of tokens",
    "entropy": "entropy of attention (nats)",
    "distance": "distance of attention (patches)",
}


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
    """`blocks.png`, `loss_map.png`, `cka.png`, for what was found."""
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
