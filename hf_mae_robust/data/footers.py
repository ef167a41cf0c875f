"""What the footers of a data set's Parquet files say of their columns. `datasets` gives every file the features of the
first one, so that a class number of another file may stand for another name."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
from datasets import ClassLabel, Features

from ..errors import DataError
from ..hub.faults import public


def class_names_in(feature: Any, place: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """(column, class names) of each ClassLabel, however deep in lists and structs; of those, "column.field"."""
    if isinstance(feature, ClassLabel):
        yield place, tuple(feature.names or ())
    elif isinstance(feature, (datasets.List, datasets.LargeList)):
        yield from class_names_in(feature.feature, place)
    elif isinstance(feature, Mapping):
        for name, inner in feature.items():
            yield from class_names_in(inner, f"{place}.{name}" if place else name)


def check_columns(schemas: Iterable[tuple[str, pa.Schema]], columns: Sequence[str]) -> None:
    """Raise DataError where a file lacks one of `columns`. schemas: (URL, schema) of each file."""
    for url, schema in schemas:
        for column in columns:
            if column not in schema.names:
                raise DataError(
                    f"{public(url)} has no column '{column}', which other files of the data set have. It has: "
                    f"{', '.join(schema.names)}. Write all files with the same columns."
                )


def check_class_names(schemas: Iterable[tuple[str, pa.Schema]], column: str) -> None:
    """Raise DataError where a file names other classes in `column`, or the same in another order, than the first file
    that names any. "auto": "label" where a file has it, otherwise every column."""
    known: dict[str, tuple[str, tuple[str, ...]]] = {}
    for url, schema in schemas:
        features = Features.from_arrow_schema(schema)
        wanted = "label" if column == "auto" and "label" in features else column
        chosen = features if wanted == "auto" else {name: features[name] for name in (wanted,) if name in features}
        for place, names in class_names_in(chosen):
            first, expected = known.setdefault(place, (url, names))
            if names == expected:
                continue
            pairs = enumerate(zip(expected, names))
            number = next((i for i, (one, other) in pairs if one != other), None)
            difference = f"{len(expected)} and {len(names)} classes"
            if number is not None:
                difference = f"class {number} is '{expected[number]}' and '{names[number]}'"
            raise DataError(
                f"{public(first)} and {public(url)} name different classes in column '{place}': {difference}. Give "
                "all files the same ClassLabel (Dataset.cast_column), or store the names as strings."
            )
