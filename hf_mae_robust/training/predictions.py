"""What a classifier says of each image, as a file: row, class, predicted class, probability."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import DataError

# In the output folder of a run.
PREDICTIONS = "predictions.csv"
COLUMNS = ("row", "label", "predicted", "probability", "label_name", "predicted_name")


class Predictions(NamedTuple):
    """Of N images, `(N,)` each, by ascending row.

    Attributes:
        rows: of the images that are evaluated, from 0: those of the split, or what is left of it by a limit or by
            holding images out. Images that cannot be decoded are left out. labels, predicted: classes, as numbers.
            probabilities: of the predicted class, in [0, 1].
    """

    rows: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def sorted_by_row(
        cls, rows: np.ndarray, labels: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray
    ) -> "Predictions":
        order = rows.argsort()
        return cls(rows[order], labels[order], predicted[order], probabilities[order])

    @property
    def hits(self) -> np.ndarray:
        """`(N,)` bool: whether each image is classified rightly."""
        return self.predicted == self.labels

    def write(self, path: Path, class_names: Sequence[str]) -> None:
        """As CSV, a line an image, over what may be there. class_names: of the classes 0, 1, ..."""
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for row, label, predicted, probability in zip(*(column.tolist() for column in self)):
                names = class_names[label], class_names[predicted]
                writer.writerow((row, label, predicted, f"{probability:.6g}", *names))
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """What `write` has written. Raises DataError for other files."""
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            if (header := tuple(next(reader, ()))) != COLUMNS:
                raise DataError(f"{path}: its first line is {','.join(header)!r} instead of {','.join(COLUMNS)!r}.")
            lines = list(reader)
        numbers = np.array([line[:4] for line in lines], dtype=np.float64).reshape(-1, 4)
        rows, labels, predicted = numbers[:, :3].astype(np.int64).T
        return cls(rows, labels, predicted, numbers[:, 3])
