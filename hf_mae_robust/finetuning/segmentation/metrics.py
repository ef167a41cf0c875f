"""Metrics of semantic segmentation from a confusion matrix, and what is drawn of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Patch

from .maps import IGNORED

# More classes than these make an unreadable legend, or a bar chart too high.
MAX_IN_LEGEND = 24
MAX_BARS = 60


def confusion_of(predicted: torch.Tensor, classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts `(num_classes, num_classes)` int64 of pixels by truth (rows) and prediction, of class maps of one shape;
    pixels whose truth is IGNORED are left out. Matrices of images and processes add up."""
    counted = classes != IGNORED
    index = classes[counted].long() * num_classes + predicted[counted].long()
    return torch.bincount(index, minlength=num_classes**2).view(num_classes, num_classes)


def segmentation_metrics(confusion: np.ndarray) -> dict[str, float]:
    """`mean_iou`, `mean_accuracy` and `pixel_accuracy`, fractions.

    IoU of a class: |truth and prediction| / |truth or prediction|; accuracy of a class: the share of its pixels that
    are found. Classes that are neither in the truth nor predicted are left out of the mean of IoU, classes that are not
    in the truth out of the mean of accuracy (as mmsegmentation does).
    """
    hit, truth, union = _counts(confusion)
    iou, accuracy = _shares(hit, union), _shares(hit, truth)
    return {
        "mean_iou": float(np.nanmean(iou)) if union.any() else 0.0,
        "mean_accuracy": float(np.nanmean(accuracy)) if truth.any() else 0.0,
        "pixel_accuracy": float(hit.sum() / max(truth.sum(), 1)),
    }


def _counts(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hit, truth = confusion.diagonal(), confusion.sum(axis=1)
    return hit, truth, truth + confusion.sum(axis=0) - hit


def _shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to have a share of."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def shown_name(name: str) -> str:
    """Short enough for a legend, and without formulas."""
    return (name if len(name) <= 24 else f"{name[:23]}…").replace("$", r"\$")


def save_classes(confusion: np.ndarray, class_names: Sequence[str], folder: str | Path) -> None:
    """Write `classes.json` (IoU, accuracy and pixels of each class; null where it does not occur; the confusion matrix)
    and `classes.png`, bars of IoU."""
    hit, truth, union = _counts(confusion)
    iou, accuracy = _shares(hit, union), _shares(hit, truth)
    rows = [
        {
            "class": name,
            "iou": None if np.isnan(iou[i]) else float(iou[i]),
            "accuracy": None if np.isnan(accuracy[i]) else float(accuracy[i]),
            "pixels": int(truth[i]),
        }
        for i, name in enumerate(class_names)
    ]
    content = {"classes": rows, "confusion_matrix": confusion.tolist()}
    (Path(folder) / "classes.json").write_text(json.dumps(content) + "\n")
    shown = [i for i in np.argsort(-truth, kind="stable") if not np.isnan(iou[i])][:MAX_BARS][::-1]
    figure, axes = plt.subplots(figsize=(7, 1.5 + 0.25 * len(shown)), layout="constrained")
    names = [shown_name(class_names[i]) for i in shown]
    axes.barh(range(len(shown)), [iou[i] for i in shown], tick_label=names)
    axes.margins(y=0.01)
    limit = f" of the {MAX_BARS} commonest classes" if len(class_names) > MAX_BARS else ""
    mean = f"{segmentation_metrics(confusion)['mean_iou']:.4f}" if union.any() else "none, as no pixel counts"
    axes.set(xlim=(0, 1), xlabel=f"IoU{limit} (the commonest above); mean {mean}")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(Path(folder) / "classes.png", dpi=110)
    plt.close(figure)


def save_overlays(
    pictures: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], class_names: Sequence[str], path: str | Path
) -> None:
    """Write rows of image, truth and prediction as a PNG. pictures: (image `(h, w, 3)` uint8, truth `(h, w)`,
    prediction `(h, w)`). Ignored pixels show the image."""
    colours = np.array([plt.get_cmap("hsv")(i * 0.618 % 1)[:3] for i in range(len(class_names))])
    colours *= np.where(np.arange(len(class_names)) % 2, 0.65, 1.0)[:, None]
    figure, rows = plt.subplots(
        len(pictures), 3, figsize=(12, 3.2 * len(pictures)), layout="constrained", squeeze=False
    )
    for axes, (image, truth, predicted) in zip(rows, pictures):
        for ax, classes, title in zip(axes, (None, truth, predicted), ("image", "truth", "prediction")):
            ax.imshow(image)
            if classes is not None:
                overlay = np.zeros((*classes.shape, 4))
                overlay[..., :3] = colours[np.maximum(classes, 0)]
                overlay[..., 3] = np.where(classes == IGNORED, 0.0, 0.65)
                ax.imshow(overlay, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            if ax in rows[0]:
                ax.set_title(title)
    maps = [classes[classes != IGNORED] for _, *both in pictures for classes in both]
    pixels: Any = sum(np.bincount(classes, minlength=len(colours)) for classes in maps)
    seen = [i for i in np.argsort(-pixels, kind="stable") if pixels[i]]
    patches = [Patch(color=colours[i], label=shown_name(class_names[i])) for i in seen[:MAX_IN_LEGEND]]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize="small")
    figure.savefig(path, dpi=90)
    plt.close(figure)
