"""What the footers of a data set's Parquet files say: how many rows their row groups have, and of their columns.
`datasets` gives every file the features of the first one, so that a class number of another file may stand for another
name."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features
from fsspec.core import url_to_fs
from fsspec.utils import get_protocol
from tqdm.auto import tqdm

from ..errors import DataError
from ..hub.faults import public
from .notes import note
from .parquet_files import DIRECT, ParquetAccess, parquet_errors, read_footer

logger = logging.getLogger(__name__)

# Beside the files of a data set, the footers of all of them: pyarrow, Dask and Spark write it.
SUMMARY = "_metadata"
# Footers that are read where there is a summary, to see whether it is true.
NUM_CHECKED = 8


@dataclass(frozen=True, eq=False)
class Footer:
    """Of a Parquet file. num_rows, num_bytes: `(row groups,)` int64. schema: of its columns."""

    url: str
    num_rows: np.ndarray
    num_bytes: np.ndarray
    schema: pa.Schema

    @classmethod
    def of(cls, url: str, groups: Sequence[Any], schema: pa.Schema) -> "Footer":
        """groups: the row groups, as pyarrow describes them."""
        counts = np.array([(group.num_rows, group.total_byte_size) for group in groups], dtype=np.int64).reshape(-1, 2)
        return cls(url, counts[:, 0], counts[:, 1], schema)

    def equals(self, other: "Footer") -> bool:
        """Whether the counts and the types of the columns are the same."""
        counts = ((self.num_rows, other.num_rows), (self.num_bytes, other.num_bytes))
        return all(np.array_equal(*pair) for pair in counts) and self.schema.equals(other.schema)


def read_footers(urls: Sequence[str], access: ParquetAccess = DIRECT) -> list[Footer]:
    """Of all of these files, in their order. Where a summary (`_metadata`) lies beside them that names them all, the
    footers of NUM_CHECKED are read, and what it says of the others is believed if it is right about these. A summary
    that is wrong all the same is found out when a row group with another number of rows is read (parquet.py).

    The numbers of images in a data set's card are of no use here: they do not tell where the row groups are.

    Raises DataError where a file cannot be read as Parquet.
    """
    if len(urls) <= NUM_CHECKED or (summary := _read_summary(urls, access)) is None:
        return _read_each(urls, access)
    checked = {urls[i] for i in np.linspace(0, len(urls) - 1, NUM_CHECKED, dtype=int)}
    read = {footer.url: footer for footer in _read_each(sorted(checked), access)}
    wrong = next((url for url, footer in read.items() if not footer.equals(summary[url])), None)
    if wrong is not None:
        logger.warning("%s does not fit the %s beside it: reading all footers.", public(wrong), SUMMARY)
        return _read_each(urls, access)
    return [read.get(url, summary[url]) for url in urls]


def _read_each(urls: Sequence[str], access: ParquetAccess) -> list[Footer]:
    def footer(url: str) -> Footer:
        found = read_footer(url, access)
        with parquet_errors(url):
            return Footer.of(url, _row_groups(found), found.schema.to_arrow_schema())

    with ThreadPoolExecutor(max_workers=16) as pool:
        footers = pool.map(footer, urls)
        is_short = len(urls) < 16
        return list(tqdm(footers, total=len(urls), desc="Reading Parquet footers", leave=False, disable=is_short))


def _row_groups(footer: pq.FileMetaData) -> list[Any]:
    return [footer.row_group(i) for i in range(footer.num_row_groups)]


def _read_summary(urls: Sequence[str], access: ParquetAccess) -> dict[str, Footer] | None:
    """URL -> footer by the summary beside the files; None where there is none, or where it lacks one of them."""
    folders = {url.rpartition("/")[0] for url in urls}
    if len(folders) > 1:
        return None
    (folder,) = folders
    options = {"token": access.token} if access.token and get_protocol(folder) == "hf" else {}
    fs, path = url_to_fs(f"{folder}/{SUMMARY}", **options)
    if not fs.exists(path):
        return None
    summary = read_footer(f"{folder}/{SUMMARY}", access)
    of_file = defaultdict(list)
    with parquet_errors(f"{folder}/{SUMMARY}"):
        for group in _row_groups(summary):
            of_file[f"{folder}/{group.column(0).file_path}"].append(group)
        schema = summary.schema.to_arrow_schema()
    if not set(urls) <= of_file.keys():
        return None
    return {url: Footer.of(url, of_file[url], schema) for url in urls}


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


def check_unnamed_classes(footers: Iterable[Footer], column: str, access: ParquetAccess = DIRECT) -> None:
    """Say so where a file has numbers in `column` and another names its classes there; `datasets` takes the first
    file's word for all. Raises DataError where a number goes beyond the names. column: as of `check_class_names`."""
    footers = list(footers)
    all_features = [Features.from_arrow_schema(footer.schema) for footer in footers]
    wanted = "label" if column == "auto" and any("label" in features for features in all_features) else column
    named: dict[str, tuple[str, list[str]]] = {}
    for footer, features in zip(footers, all_features):
        for name, feature in features.items():
            if isinstance(feature, ClassLabel) and wanted in ("auto", name):
                named.setdefault(name, (footer.url, feature.names))
    told = set()
    for footer, features in zip(footers, all_features):
        for name, (url, names) in named.items():
            kind = features.get(name)
            if isinstance(kind, ClassLabel) or not str(getattr(kind, "dtype", "")).startswith(("int", "uint")):
                continue
            largest = _largest(footer.url, name, access)
            if largest is not None and largest >= len(names):
                raise DataError(
                    f"{public(footer.url)} has the number {largest} in column '{name}', and {public(url)} names "
                    f"{len(names)} classes there, 0 to {len(names) - 1}. Give all files the same ClassLabel "
                    "(Dataset.cast_column)."
                )
            if name not in told:
                told.add(name)
                is_named = isinstance(all_features[0].get(name), ClassLabel)
                effect = f"0 is taken for '{names[0]}'" if is_named else "the numbers are taken for the names"
                shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                note(
                    f"Warning: {public(footer.url)} has plain numbers in column '{name}', and {public(url)} names its "
                    f"classes ({shown}): {effect}. If that is not so, give all files the same ClassLabel "
                    "(Dataset.cast_column)"
                )


def _largest(url: str, column: str, access: ParquetAccess) -> int | None:
    """The largest number in a column, by the statistics in a file's footer; None where a row group has none."""
    footer = read_footer(url, access)
    with parquet_errors(url):
        paths = [footer.schema.column(i).path for i in range(len(footer.schema))]
        leaf = paths.index(column)
        found = [footer.row_group(i).column(leaf).statistics for i in range(footer.num_row_groups)]
    if any(each is None or not each.has_min_max for each in found):
        return None
    return max((int(each.max) for each in found), default=None)
