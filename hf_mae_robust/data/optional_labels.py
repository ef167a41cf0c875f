"""Labels that may be there: of a data set without any, and of images whose label is missing or withheld."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from datasets import Features

from ..errors import DataError
from .labels import Labels, find_labels
from .notes import note

# As `datasets` marks labels that are withheld.
MISSING = -1


class OptionalLabels(Labels):
    """Labels of which some are missing: MISSING instead of a class."""

    def check(self, values: Sequence[Any], first_row: int | None = 0) -> np.ndarray:
        """The classes `(N,)` int64 of consecutive rows, MISSING where the value is None or -1. Raises DataError where
        it is not a class."""
        values = values[:]
        is_there = np.array([value is not None and value != MISSING for value in values], dtype=bool)
        stand_in = 0 if self.numbers is None else next(iter(self.numbers))
        classes = super().check([value if there else stand_in for value, there in zip(values, is_there)], first_row)
        return np.where(is_there, classes, MISSING)

    def of_split(self, features: Features | None, description: str) -> "OptionalLabels":
        """As that of `Labels`; there, too, labels may be missing."""
        found = super().of_split(features, description)
        return OptionalLabels(found.column, found.class_names, found.numbers, found.description)


def find_labels_if_any(
    features: Features | None, wanted: str, description: str, read_column: Callable[[str], Iterable[Any]] | None
) -> OptionalLabels | None:
    """As `find_labels`; where `wanted` is "auto", a data set may also be without labels: a note says why."""
    try:
        found = find_labels(features, wanted, description, read_column)
    except DataError as error:
        if wanted != "auto":
            raise
        note(f"Without labels: {error}")
        return None
    return OptionalLabels(found.column, found.class_names, found.numbers, found.description)
