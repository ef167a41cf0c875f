"""A file as --dataset_name: a table, an archive of WebDataset, or a list of image files."""

import csv
import re
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value

from ..errors import DataError
from .formats import PLUGINS, endings_alone, readable_endings, unread_array
from .layouts import split_of
from .notes import note

# Ending -> the builder of `datasets` that reads such a file.
BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".tar": "webdataset"}
LISTS = {".csv": ",", ".tsv": "\t", ".txt": " ", ".lst": "\t"}
TAB = "\t"
DELIMITERS = {",": "commas", TAB: "tabs", "|": "pipes (|)", ";": "semicolons", " ": "spaces"}
ARCHIVES = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
MAX_MISSING = 0.01
# The column of a list that says which split a row belongs to.
SPLIT = "split"
_NUMBER = re.compile("-?[0-9]{1,18}")
_DECIMAL = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def _endings() -> frozenset[str]:
    """Of files that a list may name."""
    return readable_endings() | endings_alone()


def builder_of(path: Path) -> str:
    """The builder for a file that is not a list. Raises DataError for files without a data set, saying what to give."""
    ending = path.suffix.lower()
    if ending in BUILDERS:
        return BUILDERS[ending]
    if ending in ARCHIVES:
        raise DataError(f"--dataset_name {path} is an archive: unpack it, and give the folder that it makes.")
    if ending in _endings() or ending in PLUGINS:
        raise DataError(f"--dataset_name {path} is one image file: give the folder that holds the images.")
    if ending == ".json":
        raise DataError(
            f"--dataset_name {path} is a file of annotations: give the folder that holds annotations/ and the images."
        )
    if (sentence := unread_array(path)) is not None:
        raise DataError(f"--dataset_name {path}: {sentence}, and give the folder of the images.")
    raise DataError(
        f"--dataset_name {path} is a file of no kind that holds images. Give a folder of images, a .parquet, .jsonl or "
        ".tar file, or a list of image files (.csv, .tsv, .txt)."
    )


def read_list(path: Path, image_column: str | None, allows_missing: bool) -> dict[str, Dataset]:
    """A list of image files, by split: .csv or .tsv with a header (the column of paths becomes of type Image, the
    others are numbers or strings), or lines "PATH" or "PATH LABEL". Relative paths count from the list's folder. A
    column called "split" says the splits; without one all images are "train".

    Raises DataError: the file cannot be read, no column holds paths of images, or more than 1% of the files are not
    there.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        found = "UTF-16" if error.object.startswith((b"\xff\xfe", b"\xfe\xff")) else "not UTF-8"
        raise DataError(
            f"--dataset_name {path} is {found} (byte {error.start:,}). Save the list as UTF-8: spreadsheets call it "
            "'CSV UTF-8', and iconv converts it."
        ) from error
    except OSError as error:
        raise DataError(f"--dataset_name {path} cannot be read as a list of image files: {error}.") from error
    delimiter = LISTS[path.suffix.lower()]
    names, rows = _parse(text, delimiter, path)
    if not rows:
        raise DataError(f"--dataset_name {path} lists no image.")
    endings = _endings()

    def holds_paths(column: int) -> bool:
        return Path(rows[0][column]).suffix.lower() in endings

    column = next((i for i in range(len(names)) if holds_paths(i)), None)
    if image_column is not None and image_column in names:
        column = names.index(image_column)
    if column is None:
        other = _delimiter_of(text) if len(names) == 1 else ""
        if other and other != delimiter:
            raise DataError(
                f"--dataset_name {path}: {DELIMITERS[other]} separate its columns. In a {path.suffix} list that is "
                f"done by {DELIMITERS[delimiter]}: write it with these{', or call it .tsv' * (other == TAB)}."
            )
        if image_column is not None:
            raise DataError(
                f"--dataset_name {path} has no column '{image_column}' (--image_column_name). It has: "
                f"{', '.join(names)}."
            )
        raise DataError(
            f"--dataset_name {path}: no column holds paths of image files (first row: {', '.join(rows[0])}). Name it "
            "with --image_column_name."
        )
    if any(remote := [row[column] for row in rows if "://" in row[column]]):
        raise DataError(
            f"--dataset_name {path} lists addresses, first {remote[0]}. Download the files, and list their paths."
        )
    files = [path.parent / row[column] for row in rows]
    if not any(file.is_file() for file in files):  # as Windows writes paths
        files = [path.parent / row[column].replace("\\", "/") for row in rows]
    if missing := [file for file in files if not file.is_file()]:
        if len(missing) > MAX_MISSING * len(files) and not allows_missing:
            raise DataError(
                f"--dataset_name {path}: {len(missing):,} of {len(files):,} files are not there, first {missing[0]}. "
                "Paths count from the list's folder; --allow_unused_files trains without them."
            )
        there = [file.is_file() for file in files]
        rows = [row for row, is_there in zip(rows, there) if is_there]
        files = [file for file, is_there in zip(files, there) if is_there]
    if not files:
        raise DataError(f"--dataset_name {path}: none of the files that it lists is there.")
    columns: dict[str, list[Any]] = {}
    features: dict[str, Any] = {}
    for i, name in enumerate(names):
        if i == column:
            columns[name], features[name] = [str(file) for file in files], datasets.Image()
            continue
        values = [row[i] or None for row in rows]  # a missing label is not a class called ""
        # Of numbers, -1 is a missing label, unless it is needed to make two classes.
        given = {value for value in values if value is not None}
        is_number = given != {"-1", "1"} and all(map(_NUMBER.fullmatch, given))
        convert: type = int if is_number else float if _are_measurements(given) else str
        columns[name] = [None if value is None else convert(value) for value in values]
        features[name] = Value({int: "int64", float: "float64", str: "string"}[convert])
    return _by_split(columns, Features(features), path)


def _by_split(columns: dict[str, list[Any]], features: Features, path: Path) -> dict[str, Dataset]:
    """The rows of each split, as the column "split" says. Where its values do not name splits, a note says so."""
    everything = {"train": Dataset.from_dict(columns, features=features)}
    column = next((name for name in columns if name.lower() == SPLIT), None)
    if column is None:
        return everything
    names = {value: split_of(str(value)) for value in columns[column]}
    if other := next((f"'{value or ''}'" for value, split in names.items() if split is None), None):
        note(
            f"{path}: Warning: the column '{column}' holds {other}, which names no split, so that all rows are taken "
            "for train. Write train, validation or test, or give the column another name"
        )
        return everything
    rows: dict[str, list[int]] = {}
    for row, value in enumerate(columns[column]):
        rows.setdefault(str(names[value]), []).append(row)
    found = ", ".join(f"{split} {len(rows[split]):,}" for split in rows)
    note(f"{path}: the column '{column}' says the splits: {found}")
    return {
        split: Dataset.from_dict({name: [values[i] for i in rows[split]] for name, values in columns.items()}, features)
        for split in rows
    }


def _are_measurements(values: set[str]) -> bool:
    """Whether they are numbers with fractions, which are no classes. Classes written as 1.0 and 2.0, as pandas does
    where a label is missing, are."""
    return all(map(_DECIMAL.fullmatch, values)) and any(not float(value).is_integer() for value in values)


def _delimiter_of(text: str) -> str:
    """What separates the columns, by the first lines; "" where nothing seems to. Names of files have spaces, too."""
    try:
        return csv.Sniffer().sniff("\n".join(text.splitlines()[:20]), "".join(DELIMITERS).strip(" ")).delimiter
    except csv.Error:
        return ""


def _parse(text: str, delimiter: str, path: Path) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and rows of as many values."""
    folder = path.parent
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    endings = _endings()
    if delimiter == "," and lines and ";" in lines[0] and "," not in lines[0]:
        delimiter = ";"  # as spreadsheets write them where the comma is in numbers
    if delimiter == " ":  # a path may have spaces in it
        rows = [[line.strip()] for line in lines]
        if lines and not (folder / lines[0].strip()).is_file():
            parts = [line.replace(",", " ").rsplit(None, 1) for line in lines]
            if all(len(part) == 2 and Path(part[0].strip()).suffix.lower() in endings for part in parts):
                rows = [[part[0].strip(), part[1]] for part in parts]
    else:
        rows = [[value.strip() for value in row] for row in csv.reader(lines, delimiter=delimiter)]
    if not rows:
        return [], []
    has_header = not any(Path(value).suffix.lower() in endings for value in rows[0])
    names = rows[0] if has_header else ["image", "label", *(f"column_{i}" for i in range(2, 99))][: len(rows[0])]
    rows = rows[1:] if has_header else rows
    wrong = next((i for i, row in enumerate(rows) if len(row) != len(names)), None)
    if wrong is not None:
        raise DataError(
            f"--dataset_name {path}: row {wrong + 1} has {len(rows[wrong])} value(s), not {len(names)} "
            f"({', '.join(names)}). Put values that hold a '{delimiter}' into quotes."
        )
    return names, rows
