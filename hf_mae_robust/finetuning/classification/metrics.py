"""Metrics of classification, as `evaluate.Metric`s that need no network, and what is written of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

# More classes than these cannot be told apart in a picture of the matrix.
MAX_LABELLED_CLASSES = 40


class TopKAccuracy(evaluate.Metric):
    """Share of the images whose class is among the first k predicted ones.

    `compute(predictions=..., references=...)`: predictions `(N, >= k)`, classes, the likeliest first; references
    `(N,)`. Gives `{name: fraction in [0, 1]}`. It knows nothing of processes: hand it what all of them have predicted.
    """

    def __init__(self, k: int, name: str, **options: Any):
        self.k, self.key = k, name
        super().__init__(keep_in_memory=True, **options)

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Sequence(datasets.Value("int64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=f"Top-{self.k} accuracy", citation="", features=datasets.Features(features)
        )

    def _compute(self, predictions: Sequence[Sequence[int]], references: Sequence[int]) -> dict[str, float]:
        first = np.asarray(predictions)[:, : self.k]
        return {self.key: float((first == np.asarray(references)[:, None]).any(axis=1).mean())}


def classification_metrics(top_classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`accuracy` and `top5_accuracy`. top_classes `(N, k)`: the likeliest first; of fewer than 5 classes, all."""
    metrics = evaluate.combine([TopKAccuracy(1, "accuracy"), TopKAccuracy(5, "top5_accuracy")])
    return metrics.compute(predictions=top_classes.tolist(), references=labels.tolist())


def save_confusion(predicted: np.ndarray, labels: np.ndarray, class_names: Sequence[str], folder: str | Path) -> None:
    """Write `confusion_matrix.json` (rows: truth, columns: prediction, and the accuracy of each class) and
    `confusion_matrix.png`. predicted, labels `(N,)`: classes."""
    folder = Path(folder)
    matrix = confusion_matrix(labels, predicted, labels=range(len(class_names)))
    counts = matrix.sum(axis=1)
    content = {
        "classes": list(class_names),
        "images": counts.tolist(),
        "accuracy": [int(hit) / int(n) if n else None for hit, n in zip(matrix.diagonal(), counts)],
        "confusion_matrix": matrix.tolist(),
    }
    (folder / "confusion_matrix.json").write_text(json.dumps(content) + "\n")
    labelled = len(class_names) <= MAX_LABELLED_CLASSES
    side = min(4 + 0.3 * len(class_names), 14) if labelled else 10
    figure, axes = plt.subplots(figsize=(side + 1.5, side), layout="constrained")
    shares = matrix / np.maximum(counts, 1)[:, None]
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in class_names] if labelled else None
    names = names and [name.replace("$", r"\$") for name in names]  # no formulas
    ConfusionMatrixDisplay(shares, display_labels=names).plot(
        ax=axes, include_values=len(class_names) <= 12, xticks_rotation="vertical", values_format=".2f", cmap="Blues"
    )
    if not labelled:
        axes.set(xticks=[], yticks=[])
    axes.set_title(f"Share of each class's images; accuracy {matrix.trace() / max(matrix.sum(), 1):.4f}")
    figure.savefig(folder / "confusion_matrix.png", dpi=110)
    plt.close(figure)
