"""Confusion matrix and the metrics from it, against scikit-learn and by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score

from hf_mae_robust.finetuning.segmentation.maps import IGNORED
from hf_mae_robust.finetuning.segmentation.metrics import (
    confusion_of,
    save_classes,
    save_overlays,
    segmentation_metrics,
)


def maps(num_classes: int, count: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth, some of it ignored, and predictions that are somewhat right, `(count, 20, 30)`."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, (count, 20, 30))
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, num_classes, truth.shape))
    return np.where(rng.random(truth.shape) < 0.2, IGNORED, truth), predicted


def confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    return confusion_of(torch.from_numpy(predicted), torch.from_numpy(truth), num_classes).numpy()


@pytest.mark.parametrize("num_classes", [2, 7, 150])
def test_metrics_are_those_of_sklearn(num_classes):
    truth, predicted = maps(num_classes)
    matrix = confusion(truth, predicted, num_classes)
    counted = truth != IGNORED
    expected = truth[counted], predicted[counted]
    assert np.array_equal(matrix, confusion_matrix(*expected, labels=range(num_classes)))
    assert segmentation_metrics(matrix) == {
        "mean_iou": pytest.approx(jaccard_score(*expected, average="macro"), abs=1e-12),
        "mean_accuracy": pytest.approx(recall_score(*expected, average="macro"), abs=1e-12),
        "pixel_accuracy": pytest.approx(accuracy_score(*expected), abs=1e-12),
    }


def test_matrices_of_images_add_up():
    truth, predicted = maps(5)
    parts = [confusion(one, other, 5) for one, other in zip(truth, predicted)]
    assert np.array_equal(sum(parts), confusion(truth, predicted, 5))
    averages = [segmentation_metrics(part)["mean_iou"] for part in parts]
    assert segmentation_metrics(sum(parts))["mean_iou"] != pytest.approx(np.mean(averages), abs=1e-6)


def test_by_hand_with_classes_that_do_not_occur():
    """Four classes: 0 and 1 occur, 2 is only predicted, 3 is nowhere."""
    truth, predicted = np.array([[0, 0, 0, 1, 1, IGNORED]]), np.array([[0, 0, 1, 1, 2, 3]])
    assert segmentation_metrics(confusion(truth, predicted, 4)) == pytest.approx(
        {"mean_iou": (2 / 3 + 1 / 3 + 0) / 3, "mean_accuracy": (2 / 3 + 1 / 2) / 2, "pixel_accuracy": 3 / 5}
    )


def test_without_a_pixel_there_is_nothing_to_divide_by(tmp_path):
    matrix = confusion(np.full((4, 4), IGNORED), np.zeros((4, 4), int), 3)
    assert segmentation_metrics(matrix) == {"mean_iou": 0, "mean_accuracy": 0, "pixel_accuracy": 0}
    save_classes(matrix, ["a", "b", "c"], tmp_path)
    assert json.loads((tmp_path / "classes.json").read_text())["classes"][0]["iou"] is None


def test_every_class_is_written(tmp_path):
    truth, predicted = np.array([[0, 0, 0, 1, 1]]), np.array([[0, 0, 1, 1, 0]])
    matrix = confusion(truth, predicted, 3)
    save_classes(matrix, ["sky", "$road$", "no such"], tmp_path)
    content = json.loads((tmp_path / "classes.json").read_text())
    assert content["confusion_matrix"] == matrix.tolist()
    assert content["classes"] == [
        {"class": "sky", "iou": 0.5, "accuracy": pytest.approx(2 / 3), "pixels": 3},
        {"class": "$road$", "iou": pytest.approx(1 / 3), "accuracy": 0.5, "pixels": 2},
        {"class": "no such", "iou": None, "accuracy": None, "pixels": 0},
    ]
    assert Image.open(tmp_path / "classes.png").size[0] > 300


def test_bars_of_many_classes_stay_a_picture(tmp_path):
    matrix = confusion(*maps(150), 150)
    save_classes(matrix, [f"{'long ' * 20}{i}" for i in range(150)], tmp_path)
    width, height = Image.open(tmp_path / "classes.png").size
    assert height < 3 * width


def test_overlays_are_drawn_alike_each_time(tmp_path):
    rng = np.random.default_rng(0)
    pictures = [
        (rng.integers(0, 256, (height, 12, 3), dtype=np.uint8), truth[:height, :12], predicted[:height, :12])
        for height, truth, predicted in zip((8, 10), *maps(40, 2))
    ]
    for name in ("one.png", "two.png"):
        save_overlays(pictures, [f"class {i}" for i in range(40)], tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert Image.open(tmp_path / "one.png").size[0] > 800
    ignored = np.full((8, 12), IGNORED)
    save_overlays([(pictures[0][0], ignored, ignored)], ["a"], tmp_path / "nothing.png")
