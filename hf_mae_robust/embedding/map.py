"""A map of embeddings: a point an image, in two dimensions, coloured by label, with some of the images as pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from ..data.dataset import ImageDataset
from ..data.preprocessing import EvaluationTransform, Normalization
from ..data.row_groups import RowGroups
from ..data.source import HeldRows, ImageSource
from .table import EmbeddingFile

# Classes with a colour and a line of the legend; the most frequent ones, where there are more.
MAX_CLASSES = 20
# Columns and rows that the map is divided into; the image nearest to the middle of each cell is shown.
GRID = (9, 7)
PICTURE_PIXELS = 40
MIN_IMAGES = 4


def positions_by_pca(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(N, d)` -> the first two principal components `(N, 2)`, and the share of the variance of each. Of the two
    directions of a component, the one in which its largest number is positive."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[:2][np.arange(2), np.abs(right[:2]).argmax(axis=1)])
    variance = values**2
    return left[:, :2] * values[:2] * signs, variance[:2] / max(variance.sum(), 1e-12)


def positions_by_tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """`(N, d)` -> `(N, 2)`: scikit-learn's t-SNE by cosine distance, which begins with the principal components."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=seed)
    return tsne.fit_transform(vectors)


def spread_out(positions: np.ndarray) -> np.ndarray:
    """Which images to show: of each cell of GRID that has any, the one nearest to its middle. `(N, 2)` -> `(M,)`."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    scaled = (positions - low) / np.maximum(high - low, 1e-12) * GRID
    cells = np.minimum(scaled.astype(int), np.array(GRID) - 1)
    distance = np.linalg.norm(scaled - cells - 0.5, axis=1)
    order = np.argsort(distance, kind="stable")
    _, first = np.unique(cells[order] @ (1, GRID[0]), return_index=True)
    return np.sort(order[first])


def pictures_of(
    source: ImageSource, positions: list[int], transform: EvaluationTransform, num_channels: int
) -> list[np.ndarray]:
    """Images as the model sees them, `(H, W, 3)` uint8 each; of bands by `to_shown`. positions: in the source,
    ascending."""
    if source.row_groups is None:
        wanted, last = set(positions), positions[-1]
        rows = [row for i, row in zip(range(last + 1), source.rows) if i in wanted]
        source = _held(source, rows)
        positions = list(range(len(rows)))
    normalization = Normalization(transform.processor, torch.device("cpu"), keeps_missing=True)
    dataset = ImageDataset(source, transform, num_channels, replace_bad_images=False)
    images = (dataset[0, position]["pixel_values"] for position in positions)
    return [normalization.undo(normalization(image[None])[0]).permute(1, 2, 0).numpy() for image in images]


def _held(source: ImageSource, rows: list[Any]) -> ImageSource:
    held = HeldRows([row["image"] for row in rows], [row.get("label") for row in rows])
    return replace(source, rows=held, row_groups=RowGroups([len(rows)]))


def sample_places(file: EmbeddingFile, num_samples: int, seed: int) -> np.ndarray:
    """Places of at most `num_samples` images in the file, drawn at random, ascending."""
    if file.num_rows <= num_samples:
        return np.arange(file.num_rows)
    return np.sort(np.random.default_rng(seed).choice(file.num_rows, num_samples, replace=False))


def draw_map(
    positions: np.ndarray,
    labels: np.ndarray | None,
    class_names: list[str] | None,
    shown: np.ndarray,
    pictures: list[np.ndarray],
    title: str,
    axis_names: tuple[str, str],
    path: Path,
) -> None:
    """Draw `(N, 2)` positions, coloured by labels `(N,)` (-1: without), with pictures of those of number `shown`."""
    figure, axes = plt.subplots(figsize=(13, 9), layout="constrained")
    size = float(np.clip(30_000 / len(positions), 6, 40))
    edges = _points(axes, positions, labels, class_names, size)
    low, high = positions.min(axis=0), positions.max(axis=0)
    margin = np.maximum((high - low) * 0.06, 1e-9)
    axes.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
    for number, picture in zip(shown.tolist(), pictures):
        image = OffsetImage(picture, zoom=PICTURE_PIXELS / max(picture.shape[:2]), interpolation="nearest")
        frame = {"edgecolor": edges[number], "linewidth": 2.0, "boxstyle": "square,pad=0.05"}
        axes.add_artist(AnnotationBbox(image, tuple(positions[number]), pad=0.05, bboxprops=frame))
    axes.set(title=title, xlabel=axis_names[0], ylabel=axis_names[1], xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _points(
    axes: Axes, positions: np.ndarray, labels: np.ndarray | None, class_names: list[str] | None, size: float
) -> list[Any]:
    """All points, and a legend; the colour of each point."""
    edges: list[Any] = ["tab:blue"] * len(positions)
    if labels is None or class_names is None:
        axes.scatter(positions[:, 0], positions[:, 1], s=size, color="tab:blue", alpha=0.6, linewidths=0)
        return edges
    counts = np.bincount(labels[labels >= 0], minlength=len(class_names))
    chosen = np.sort(np.argsort(-counts, kind="stable")[:MAX_CLASSES])
    chosen = chosen[counts[chosen] > 0]
    colors = plt.get_cmap("tab10" if len(chosen) <= 10 else "tab20")
    is_other = ~np.isin(labels, chosen)
    if is_other.any():
        is_unlabelled = bool((labels[is_other] < 0).all())
        num_others = int((counts > 0).sum()) - len(chosen)
        name = "without a label" if is_unlabelled else f"{num_others:,} other classes"
        axes.scatter(
            positions[is_other, 0], positions[is_other, 1], s=size, color="lightgray", linewidths=0, label=name
        )
    for i, label in enumerate(chosen.tolist()):
        mine = np.flatnonzero(labels == label)
        axes.scatter(
            positions[mine, 0],
            positions[mine, 1],
            s=size,
            color=colors(i),
            alpha=0.7,
            linewidths=0,
            label=class_names[label],
        )
        for number in mine.tolist():
            edges[number] = colors(i)
    for number in np.flatnonzero(is_other).tolist():
        edges[number] = "lightgray"
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize="small", frameon=False)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
            handle.set_sizes([40])  # type: ignore[attr-defined]  # of a scatter
    return edges
