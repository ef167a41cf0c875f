"""Class labels of a data set: which column, which names, and that every image has one.

Semantic maps and objects have classes of the same interface, with `is_joint`: what they decode belongs to places in the
image, so that the transform gets both.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Features, Value

from ..errors import DataError, UserError
from .notes import note

MAX_NAMED_IN_ERRORS = 5
# Columns of a WebDataset: the name of a sample, what a file with this ending holds, and a field of its JSON.
WEBDATASET_KEY, WEBDATASET_CLASS, WEBDATASET_JSON = "__key__", "cls", "json.label"
# (features, column or "auto", description, function that reads a column, or None) -> labels; see `find_labels`.
LabelFinder = Callable[[Features | None, str, str, Callable[[str], Iterable[Any]] | None], Any]


@dataclass(frozen=True)
class Labels:
    """The label column of a data set.

    Attributes:
        column: its name. class_names: of the classes 0, 1, ...
        numbers: value in the column -> class, where the column does not hold the classes' numbers themselves.
        description: of the data set, for errors.
    """

    column: str
    class_names: tuple[str, ...]
    numbers: dict[Any, int] | None
    description: str
    is_joint = False

    def check(self, values: Sequence[Any], first_row: int | None = 0) -> np.ndarray:
        """The classes `(N,)` int64 of consecutive rows. Raises DataError, naming the first row, where a label is
        missing (None, or the -1 of splits whose labels are withheld) or is not a class. first_row: None: unknown."""
        values = values[:]  # a `datasets.Column` is slow to go through
        classes: Sequence[Any]
        if self.numbers is not None:
            classes = [-1 if value is None else self.numbers.get(value, -1) for value in values]
        else:
            classes = [-1 if value is None else value for value in values] if None in values else values
        try:
            array = np.asarray(classes, dtype=np.int64)
        except (TypeError, ValueError) as error:  # a shard that holds names where others hold numbers
            value = next(value for value in values if not isinstance(value, (int, np.integer)) and value is not None)
            raise DataError(
                f"{self.description}: column '{self.column}' holds {value!r} where the number of a class is wanted. "
                "Write all files with the same type of labels (Dataset.cast_column)."
            ) from error
        wrong = np.flatnonzero((array < 0) | (array >= len(self.class_names)))
        if len(wrong):
            value = values[int(wrong[0])]
            where = "an image" if first_row is None else f"row {first_row + int(wrong[0]):,}"
            what = "has no label" if value is None or value == -1 else f"has the label {value!r}"
            raise DataError(
                f"{self.description}: {where} {what} in column '{self.column}' (classes: "
                f"{_shortened(self.class_names)}). Leave out such rows, or choose another split or --label_column_name."
            )
        return array

    def decode(self, value: Any, image: torch.Tensor, row: int) -> int:
        """A checked value -> what the model is trained with. image: `(C, h, w)`, to which it belongs."""
        return int(value)

    def filler(self) -> int:
        """For a place of a batch where there is no image."""
        return 0

    def of_split(self, features: Features | None, description: str) -> "Labels":
        """The same classes for another split. Raises DataError where that one has no such column, or names other
        classes."""
        feature = (features or {}).get(self.column)
        if features is not None and feature is None:
            raise DataError(f"{description} has no column '{self.column}', the labels of {self.description}.")
        kind = getattr(feature, "dtype", "int64")
        if self.numbers is None and not kind.startswith(("int", "uint")):
            raise DataError(f"{description}: column '{self.column}' is {kind}, in {self.description} ClassLabel.")
        if isinstance(feature, ClassLabel) and self.numbers is None and tuple(feature.names) != self.class_names:
            other = tuple(feature.names)
            first = next((i for i, pair in enumerate(zip(self.class_names, other)) if pair[0] != pair[1]), None)
            difference = f"{len(self.class_names)} and {len(other)} classes"
            if first is not None:
                difference = f"class {first} is '{self.class_names[first]}' and '{other[first]}'"
            raise DataError(f"{self.description} and {description} name different classes: {difference}.")
        if self.numbers is None and feature is not None and not isinstance(feature, ClassLabel):
            note(
                f"Warning: {description} has plain numbers in column '{self.column}', and {self.description} names its "
                f"classes: 0 is taken for '{self.class_names[0]}'"
            )
        return Labels(self.column, self.class_names, self.numbers, description)


def find_labels(
    features: Features | None, wanted: str, description: str, read_column: Callable[[str], Iterable[Any]] | None
) -> Labels:
    """Choose the label column and find out its classes.

    Args:
        wanted: a column, or "auto": "label", or the only one of type ClassLabel, or a WebDataset's "cls" or
            "json.label".
        read_column: gives all values of a column, for one of plain numbers, strings or booleans, whose classes are the
            different values in it, sorted. None: this cannot be afforded (a stream).

    Raises DataError: no such column, none to choose, or one that holds no classes.
    """
    columns = ", ".join(f"{name} ({getattr(feature, 'dtype', feature)})" for name, feature in (features or {}).items())
    if features is None:
        raise DataError(f"{description} does not say which columns it has; its labels cannot be used.")
    if wanted == "auto":
        classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        if "label" in features:
            wanted = "label"
        elif len(classes) == 1:
            wanted = classes[0]
        elif WEBDATASET_KEY in features and WEBDATASET_CLASS in features:
            wanted = WEBDATASET_CLASS
        elif WEBDATASET_KEY in features and WEBDATASET_JSON in features:
            wanted = WEBDATASET_JSON
        else:
            found = f"{len(classes)} columns of type ClassLabel" if classes else "no column of labels"
            hint = " A folder of images needs a folder for each class: train/cat/, train/dog/." if not classes else ""
            if WEBDATASET_KEY in features:
                hint = (
                    f" In a WebDataset a file beside each image, 1.{WEBDATASET_CLASS}, holds the number of its class."
                )
            raise DataError(f"{description} has {found}: choose one with --label_column_name. It has: {columns}.{hint}")
    if wanted not in features:
        raise DataError(f"{description} has no column '{wanted}' (--label_column_name). It has: {columns}.")
    feature = features[wanted]
    if isinstance(feature, ClassLabel):
        return _of_classes(Labels(wanted, tuple(feature.names), None, description))
    kind = getattr(feature, "dtype", None) if isinstance(feature, Value) else None
    if kind is None or not (kind.startswith(("int", "uint", "string", "large_string")) or kind == "bool"):
        raise DataError(
            f"{description}: column '{wanted}' is of type {kind or type(feature).__name__}, which are not class "
            f"labels. Choose another one with --label_column_name (ClassLabel, integers or strings). It has: {columns}."
        )
    if read_column is None:
        raise DataError(
            f"{description}: column '{wanted}' ({kind}) does not tell which classes there are, and they cannot be "
            "looked for in a stream. Leave out --dataset_streaming, or store the column as ClassLabel "
            "(Dataset.class_encode_column)."
        )
    present: set[Any] = set(read_column(wanted))
    values = sorted(value for value in present if value is not None and value != -1)
    if not values:
        raise DataError(f"{description}: column '{wanted}' holds no label.")
    numbers = {value: i for i, value in enumerate(values)}
    labels = Labels(wanted, tuple(str(value) for value in values), numbers, description)
    return _of_classes(labels) if len(present) == len(values) else labels  # a missing label is the graver fault


def _of_classes(labels: Labels) -> Labels:
    """Raises DataError where there is one class only."""
    if len(labels.class_names) < 2:
        raise DataError(
            f"{labels.description}: column '{labels.column}' has one class, '{labels.class_names[0]}'; at least two "
            "are needed to tell apart. A folder of images needs a folder for each class: train/cat/, train/dog/."
        )
    return labels


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED_IN_ERRORS])
    return f"{shown}, ... {len(names):,} in all" if len(names) > MAX_NAMED_IN_ERRORS else shown


MAX_VALUE = 2**16 - 1


def read_id2label(source: str) -> dict[int, str]:
    """Names by value, from a JSON file `{"0": "sky", ...}`, or from a number of classes without names.

    Raises ValueError: no such file, or something else in it.
    """
    if str(source).isdigit():
        if not 1 <= int(source) <= MAX_VALUE:
            raise UserError(f"--id2label {source}: a number of classes from 1 to {MAX_VALUE:,}.")
        return {i: f"class_{i}" for i in range(int(source))}
    try:
        content = json.loads(Path(source).read_text(encoding="utf-8"))
        names = {int(value): str(name) for value, name in content.items()}
    except OSError as error:
        raise UserError(
            f"--id2label {source}: cannot be read ({error.strerror}). Give a JSON file or a number of classes."
        ) from error
    except (ValueError, AttributeError) as error:
        raise UserError(f'--id2label {source}: must hold {{"0": "name", "1": "name", ...}} ({error}).') from error
    if not names or min(names) < 0 or max(names) > MAX_VALUE:
        raise UserError(
            f"--id2label {source}: the values of a map go from 0 to {MAX_VALUE:,}; got {sorted(names)[:4]}."
        )
    return names
