"""Hits of images in a line of JSON: bit by bit, and only those of the same images."""

import base64
import json

import numpy as np
import pytest

from hf_mae_robust.studies.hits import packed, unpacked
from hf_mae_robust.training.predictions import Predictions


def predictions(count, seed=0):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(3, size=(2, count))
    return Predictions(np.arange(count), labels, predicted, rng.random(count))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 10_000])
def test_what_is_packed_is_unpacked(count):
    found = predictions(count)
    text = json.dumps(packed(found))
    again = unpacked(json.loads(text))
    assert again.dtype == bool and again.tolist() == (found.labels == found.predicted).tolist()
    assert len(text) < 60 + 4 * np.ceil(np.ceil(count / 8) / 3)  # a bit an image, in base64


def test_the_bits_are_in_the_order_of_the_rows():
    found = Predictions(np.arange(10), np.zeros(10), np.array([0, 1, 1, 1, 1, 1, 1, 0, 1, 0]), np.ones(10))
    assert base64.b64decode(packed(found)["bits"]) == bytes([0b10000001, 0b01000000])


def test_other_images_are_told_apart():
    found = predictions(50)
    assert packed(found)["of"] == packed(found._replace(predicted=found.labels))["of"]
    others = (found._replace(labels=(found.labels + 1) % 3), found._replace(rows=found.rows + 1), predictions(50, 1))
    assert all(packed(other)["of"] != packed(found)["of"] for other in others)
