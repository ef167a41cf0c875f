"""Which column of a data set holds its images, and what is said of columns that hold something else."""

from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, Value

from ..errors import DataError
from .array_columns import holds_arrays
from .decoding import TEXT_ADVICE, is_web_address, shortened
from .formats import readable_endings
from .source import encoded
from .tar_files import TarFiles
from .tar_table import TarTable

# Types of `datasets` that are not read -> what to do. By name, because not every version has them.
UNREAD = {
    "Video": "videos, which are not read. Extract frames as image files: ffmpeg -i video.mp4 -vf fps=1 frames/%05d.jpg",
    "Pdf": "PDF files, which are not read. Draw their pages as image files: pdftoppm -png file.pdf pages/page",
}
# Columns that are meant as images by their name, where their values cannot be looked at.
_NAMES = ("image", "img", "photo", "picture", "path", "file", "file_name", "filename")


def choose_column(data: Any, wanted: str | None, name: str) -> str:
    """The column of images. Raises DataError where none can be chosen, or what was chosen holds no images."""
    features = getattr(data, "features", None)
    if features is None:
        if wanted is None:
            raise DataError(f"{name} does not say which columns it has: name the one to use with --image_column_name.")
        return wanted
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    others = [column for column, feature in features.items() if holds_numbers(feature)]
    columns = ", ".join(f"{column} ({getattr(feature, 'dtype', feature)})" for column, feature in features.items())
    if wanted is not None:
        if wanted not in features:
            raise DataError(f"{name} has no column '{wanted}' (--image_column_name). It has: {columns}.")
        if (fault := _fault(data, wanted, name)) is not None:
            raise fault
        return wanted
    if "image" in images + others:
        return "image"
    found = images or others
    if len(found) == 1:
        return found[0]
    for column in features:
        if (first := _first_text(data, column)) is not None and is_web_address(first):
            raise _address_error(name, column, first)
    if isinstance(data, TarFiles | TarTable) and not images:
        raise DataError(f"{name}: no member of its tars is an image (such as 000.jpg). It has: {columns}.")
    if found:
        kinds = "image columns" if images else "columns of arrays or bytes"
        raise DataError(f"{name} has {len(found)} {kinds}: choose one with --image_column_name. It has: {columns}.")
    likely = (column for column, feature in features.items() if _is_meant(data, column, feature))
    fault = next((fault for column in likely if (fault := _fault(data, column, name)) is not None), None)
    raise fault or DataError(
        f"{name} has no column of type Image, of arrays, or of the bytes of files. It has: {columns}. If one of them "
        "holds images in another form, name it with --image_column_name."
    )


def holds_numbers(feature: Any) -> bool:
    """Whether a column holds arrays, or files as bytes, rather than pictures that `datasets` knows as such."""
    return holds_arrays(feature) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def refuse_addresses(table: Dataset, column: str, description: str) -> None:
    """Raises DataError where images are URLs."""
    stored = encoded(table.select_columns([column])).select(range(min(1, len(table))))
    for row in stored:
        value = row[column]
        path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
        if isinstance(path, str) and is_web_address(path):
            raise _address_error(description, column, path)


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _is_meant(data: Any, column: str, feature: Any) -> bool:
    """Whether a column that cannot be read is the one that a user takes for the images."""
    first = _first_text(data, column)
    is_path = first is not None and Path(first).suffix.lower() in readable_endings()
    return type(feature).__name__ in UNREAD or (_is_text(feature) and (is_path or column.lower() in _NAMES))


def _fault(data: Any, column: str, name: str) -> DataError | None:
    """What is said of a column without images; None where it may hold some."""
    feature = data.features[column]
    if (unread := UNREAD.get(type(feature).__name__)) is not None:
        return DataError(f"{name}: column '{column}' holds {unread}")
    if _is_text(feature):
        first = _first_text(data, column)
        if is_web_address(first):
            return _address_error(name, column, str(first))
        shown = f", first {shortened(first)}," if first is not None else ","
        lists = sorted(Path(name).glob("*.[ct]sv")) if Path(name).is_dir() else []
        advice = f"Give the list itself: --dataset_name {lists[0]}." if lists else TEXT_ADVICE
        return DataError(f"{name}: column '{column}' holds text{shown} not images. {advice}")
    if (isinstance(feature, Value) and not holds_numbers(feature) and feature.dtype != "null") or isinstance(
        feature, ClassLabel
    ):
        return DataError(
            f"{name}: column '{column}' holds {feature.dtype}, not images. Choose another with --image_column_name."
        )
    return None


def _first_text(data: Any, column: str) -> str | None:
    """What a table's column of strings begins with; of what is streamed nothing is read for it."""
    if not isinstance(data, Dataset) or not len(data) or not _is_text(data.features[column]):
        return None
    first: str | None = data.data.column(column)[0].as_py()
    return first


def _address_error(description: str, column: str, first: str) -> DataError:
    return DataError(
        f"{description}: column '{column}' holds URLs, first {first}, and images are not fetched while a model trains. "
        "Download them (img2dataset does it for many), and give the folder, or a list of their paths."
    )
