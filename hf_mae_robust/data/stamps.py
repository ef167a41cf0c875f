"""Whether the files behind a source are still those of before, on this machine: for what is kept in a cache."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from .parquet import ParquetRows
from .source import ChosenRows, ImageSource, TableRows, digest
from .tars import TarRows

# A file that was written again in place is one of many, as a rule: more are not looked at.
MAX_FILES = 4096


def stamp_of(source: ImageSource) -> str:
    """Changes when a file is written again, be it under its former name and in its former size, as uncompressed files
    and arrays are. `ImageSource.fingerprint` cannot tell: it has to be the same for a copy on another machine.

    Looks at names, sizes and times of at most MAX_FILES files, and reads none.
    """
    rows = _rows_of(source)
    own = rows.table._fingerprint if isinstance(rows, TableRows) else source.revision
    return digest(own, list(_times(_paths_behind(source))))


def _rows_of(source: ImageSource) -> Any:
    """Those of the files, where it is a sample."""
    rows = source.rows
    while isinstance(rows, ChosenRows):
        rows = rows.rows
    return rows


def _paths_behind(source: ImageSource) -> list[str]:
    """At most MAX_FILES of the files of a source."""
    rows = _rows_of(source)
    if isinstance(rows, TableRows):
        return _paths_of(rows.table, rows.column)
    if isinstance(rows, ParquetRows):
        return some(rows.groups.urls)
    if isinstance(rows, TarRows):
        return some(rows.reader.urls)
    return sorted(islice(_files_below(source.root), MAX_FILES)) if source.root else []


def stamp_of_stream(source: ImageSource, name: str | None, written: Path | None = None) -> str:
    """Changes when a file of a local stream is added, removed or written again, and with the commit of one on the Hub:
    its `fingerprint` is of its description alone. Looks at all files, because one more moves the rows behind it.

    name: of the data set, as --dataset_name. written: a file that the command writes; neither that one counts nor those
    that are named after it, which may lie among the images.
    """
    if not name or not source.root:
        return digest(source.revision)
    place = Path(name).resolve()
    paths = _files_below(str(place)) if place.is_dir() else [str(place)]
    own = None if written is None else f"{written.resolve().with_suffix('')}."
    return digest(source.revision, sorted(_times(path for path in paths if not own or not path.startswith(own))))


def changed_note(name: str | None, now: str | None, before: str | None, output: Path) -> str | None:
    """For an output that is there already: a sentence where local files that it was made of are not as they were then,
    by name, size and time; None: they are, or nothing is known of them. now, before: of `stamp_of_local`."""
    if None in (now, before) or now == before:
        return None
    return (
        f"Note: files of {name} were written again since {output} was made of them. Remove {output} to make it again."
    )


def stamp_of_local(sources: Iterable[ImageSource], name: str | None) -> str | None:
    """Of data sets in local files with random access (others have a commit, or `stamp_of_stream`): names within the
    data set, sizes and times. None: nothing is known of files."""
    if not name or not Path(name).exists():
        return None
    paths = (path for source in sources if source.num_rows is not None for path in _paths_behind(source))
    root = Path(name).resolve()
    found = {(os.path.relpath(os.path.realpath(path), root), *times) for path, *times in _times(paths)}
    return digest(sorted(found)) if found else None


def some(values: Any) -> list[Any]:
    """At most MAX_FILES of them, evenly spread."""
    if len(values) <= MAX_FILES:
        return list(values)
    return [values[int(i)] for i in np.linspace(0, len(values) - 1, num=MAX_FILES, dtype=int)]


def _paths_of(table: Any, column: str) -> list[str]:
    """Of images that lie in files of their own."""
    if not isinstance(table.features[column], datasets.Image):
        return []
    index = [int(row) for row in some(range(len(table)))]
    values = table.with_format("arrow")[index].column(column).to_pylist() if index else []
    return [value["path"] for value in values if value and value["bytes"] is None and value["path"]]


def _files_below(root: str) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        yield from (f"{folder}/{name}" for name in sorted(files))


def _times(paths: Iterable[str]) -> Iterator[tuple[str, int, int]]:
    for path in paths:
        try:
            state = Path(path).stat()
        except OSError:
            continue  # of the Hub, or gone: training says so
        yield path, state.st_size, state.st_mtime_ns
