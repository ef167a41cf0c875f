"""The file of predictions: what is written is what is read, also by others."""

import csv

import numpy as np
import pytest

from hf_mae_robust.errors import DataError
from hf_mae_robust.training.predictions import Predictions

NAMES = ["cat", 'a "dog", wet']


def test_a_line_an_image_by_row_as_other_programs_read_it(tmp_path):
    rows, labels, predicted = np.array([5, 0, 2]), np.array([1, 0, 1]), np.array([1, 1, 0])
    found = Predictions.sorted_by_row(rows, labels, predicted, np.array([0.75, 0.5, 1 / 3], dtype=np.float32))
    assert found.hits.tolist() == [False, False, True]
    path = tmp_path / "predictions.csv"
    path.write_text("of another run")
    found.write(path, NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    names = [lines[0].pop(name) for name in ("label_name", "predicted_name")]
    assert names == NAMES and lines[0] == {"row": "0", "label": "0", "predicted": "1", "probability": "0.5"}
    assert [line["row"] for line in lines[1:]] == ["2", "5"]
    assert [line["label_name"] for line in lines[1:]] == [NAMES[1], NAMES[1]]
    again = Predictions.read(path)
    for written, read in zip(found, again):
        np.testing.assert_allclose(read, written, rtol=1e-5)
    assert again.rows.dtype == again.predicted.dtype == np.int64


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "predictions.csv"
    for content in ("", "image,class\n1,2\n"):
        path.write_text(content)
        with pytest.raises(DataError, match="its first line is"):
            Predictions.read(path)
