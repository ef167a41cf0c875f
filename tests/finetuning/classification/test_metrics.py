"""Accuracies and the confusion matrix, against scikit-learn."""

import json
import socket
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score, top_k_accuracy_score

from hf_mae_robust.finetuning.classification.metrics import TopKAccuracy, classification_metrics, save_confusion


def predictions(num_images: int, num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores `(N, classes)`, somewhat right; classes by score, the likeliest first; labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_classes, num_images)
    scores = rng.normal(size=(num_images, num_classes))
    scores[np.arange(num_images), labels] += 1
    return scores, np.argsort(-scores, axis=1), labels


@pytest.mark.parametrize("num_classes", [6, 10, 100])
def test_accuracies_are_those_of_sklearn(num_classes):
    scores, ranked, labels = predictions(700, num_classes)
    found = classification_metrics(ranked[:, :5], labels)
    expected = [top_k_accuracy_score(labels, scores, k=k, labels=range(num_classes)) for k in (1, 5)]
    assert list(found.values()) == pytest.approx(expected, abs=1e-12)
    assert list(found) == ["accuracy", "top5_accuracy"] and 0 < found["accuracy"] < found["top5_accuracy"] < 1
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, ranked[:, 0]), abs=1e-12)


@pytest.mark.parametrize("num_classes", [1, 2, 4])
def test_of_fewer_than_five_classes_each_is_among_the_first_five(num_classes):
    _, ranked, labels = predictions(50, num_classes)
    found = classification_metrics(ranked, labels)
    assert found == {"accuracy": pytest.approx(np.mean(ranked[:, 0] == labels)), "top5_accuracy": 1.0}


def test_accuracies_by_hand():
    ranked = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 4, 3, 2, 1], [2, 3, 4, 5, 6]])
    labels = np.array([0, 0, 0, 6])
    assert classification_metrics(ranked, labels) == {"accuracy": 0.25, "top5_accuracy": 0.75}
    assert TopKAccuracy(2, "top2").compute(predictions=ranked, references=labels) == {"top2": 0.5}
    assert classification_metrics(ranked[:1], labels[:1]) == {"accuracy": 1.0, "top5_accuracy": 1.0}


def test_batches_can_be_added_one_by_one():
    _, ranked, labels = predictions(60, 8)
    metric = TopKAccuracy(3, "top3")
    for part in range(0, 60, 25):
        metric.add_batch(predictions=ranked[part : part + 25, :3], references=labels[part : part + 25])
    assert metric.compute() == {"top3": pytest.approx(np.mean((ranked[:, :3] == labels[:, None]).any(axis=1)))}


def test_neither_the_network_nor_the_working_folder_is_touched(tmp_path, monkeypatch):
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    _, ranked, labels = predictions(20, 6)
    classification_metrics(ranked, labels)
    assert tried == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("num_classes", "num_images"), [(3, 60), (60, 500), (1000, 3000)])
def test_the_confusion_matrix_is_that_of_sklearn_and_is_drawn(tmp_path, num_classes, num_images):
    _, ranked, labels = predictions(num_images, num_classes)
    labels[labels == 1] = 0  # a class without images
    predicted, names = ranked[:, 0], [f"class {i}" for i in range(num_classes)]
    start = time.process_time()
    save_confusion(predicted, labels, names, tmp_path)
    assert time.process_time() - start < 30  # a few seconds
    content = json.loads((tmp_path / "confusion_matrix.json").read_text())
    expected = confusion_matrix(labels, predicted, labels=range(num_classes))
    assert content["confusion_matrix"] == expected.tolist()
    assert content["classes"] == names and content["images"] == np.bincount(labels, minlength=num_classes).tolist()
    recalls = recall_score(labels, predicted, labels=range(num_classes), average=None, zero_division=np.nan)
    assert content["accuracy"][1] is None and content["images"][1] == 0
    assert content["accuracy"] == [None if np.isnan(r) else pytest.approx(r) for r in recalls]
    with Image.open(tmp_path / "confusion_matrix.png") as image:
        image.load()
        assert min(image.size) > 400 and max(image.size) < 2000
        assert len(image.convert("RGB").getcolors(2**24)) > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion_matrix.json", "confusion_matrix.png"]
    assert plt.get_fignums() == []


def test_class_names_are_written_as_they_are_and_drawn_whatever_they_are(tmp_path):
    """Between two dollars, matplotlib expects a formula."""
    names = ["$^$", "under_score $1$", "a" * 60, ""]
    save_confusion(np.array([0, 1, 2, 3]), np.array([0, 1, 2, 2]), names, tmp_path)
    content = json.loads((tmp_path / "confusion_matrix.json").read_text())
    assert content["classes"] == names and content["accuracy"] == [1, 1, 0.5, None]
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 1000
