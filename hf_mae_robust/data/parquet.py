"""Parquet data sets with random access, from a disk or the Hub, row group by row group."""

import hashlib
import json
import math
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetBuilder, Features
from torch.utils.data import get_worker_info

from ..errors import DataError
from ..hub.faults import public
from .array_columns import arrays_of_chunk
from .footers import Footer, check_class_names, check_columns, check_unnamed_classes, read_footers
from .labels import Labels
from .order import NUM_SLOTS
from .parquet_files import DIRECT, ParquetAccess, open_parquet, parquet_errors, read_footer
from .row_groups import RowGroups
from .source import DataLocation, ImageSource, Share, alone, fingerprint_parts
from .stream_cache import StreamCache


class ParquetRowGroups(RowGroups):
    """The row groups of some files, one file after the other, without those that have no rows.

    Attributes:
        urls: of the files. file_ends: `(files,)` int64, number of row groups up to the end of each file, with the empty
            ones. filled: the numbers of the others among them; None where none is empty.
    """

    def __init__(self, urls: Sequence[str], groups_per_file: Any, num_rows: Any):
        """num_rows: of each row group."""
        num_rows = np.asarray(num_rows)
        self.filled = np.flatnonzero(num_rows) if (num_rows == 0).any() else None
        super().__init__(num_rows if self.filled is None else num_rows[self.filled])
        self.urls, self.file_ends = list(urls), np.cumsum(groups_per_file, dtype=np.int64)

    def place_of(self, group: int) -> tuple[str, int]:
        """The URL of the file that a row group is in, and its number in the file."""
        group = group if self.filled is None else int(self.filled[group])
        file = int(np.searchsorted(self.file_ends, group, side="right"))
        return self.urls[file], group - (int(self.file_ends[file - 1]) if file else 0)


class ParquetRows:
    """Random access to the image column of Parquet files, local or remote, and to labels.

    A row costs the reading of its row group, so the last ones are kept: for each slot of order.py that this process
    reads, the stretch of rows that is shuffled, and a row group more at either end. Over 1, 2, 4, 8 or 16 worker
    processes of a rank that makes `buffer_size` rows and 2 * NUM_SLOTS of the largest row groups at the most. With
    another number of workers several of them read each slot, and each keeps it.
    """

    def __init__(
        self,
        groups: ParquetRowGroups,
        column: str,
        buffer_size: int,
        access: ParquetAccess = DIRECT,
        labels: Labels | None = None,
    ):
        self.groups, self.column, self.buffer_size = groups, column, buffer_size
        self.access, self.labels = access, labels
        self.rows: OrderedDict[int, tuple[list[Any], Any]] = OrderedDict()
        self.num_held = 0  # rows in all of these
        self.files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self.process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open files of their own.
        return {**self.__dict__, "rows": OrderedDict(), "num_held": 0, "files": OrderedDict()}

    def _read(self, group: int) -> tuple[list[Any], Any]:
        url, index = self.groups.place_of(group)
        columns = [self.column] if self.labels is None else [self.column, self.labels.column]
        if self.process != os.getpid():  # forked: connections and event loops stayed behind
            self.files, self.process = OrderedDict(), os.getpid()
        if url not in self.files:
            self.files[url] = open_parquet(url, self.access)
        self.files.move_to_end(url)
        while len(self.files) > NUM_SLOTS:
            self.files.popitem(last=False)
        with parquet_errors(f"Row group {index} of {url}"):
            table = self.files[url].read_row_group(index, columns=columns)
        if table.num_rows != self.groups[group]:
            raise DataError(
                f"Row group {index} of {public(url)} has {table.num_rows:,} rows, and had {self.groups[group]:,} when "
                "the data set was opened. If a file _metadata lies beside it, that one is older: delete it, or "
                "write it again. Otherwise the file was changed while it was read: start again."
            )
        images, first_row = _values_of(table.column(self.column)), int(self.groups.starts_of(group))
        if self.labels is None:
            return images, None
        return images, self.labels.check(table.column(self.labels.column).to_pylist(), first_row)

    def __getitem__(self, row: int) -> Any:
        """Raises DataError where the row group cannot be read."""
        (images, _), i = self._find(row)
        return images[i]

    def label(self, row: int) -> Any:
        (_, labels), i = self._find(row)
        return labels[i]

    def _find(self, row: int) -> tuple[tuple[list[Any], Any], int]:
        group, place = self.groups.find(row)
        if group not in self.rows:
            self.rows[group] = self._read(group)
            self.num_held += self.groups[group]
            limit = self.max_held()
            while self.num_held > limit:
                oldest, _ = self.rows.popitem(last=False)
                self.num_held -= self.groups[oldest]
        self.rows.move_to_end(group)
        return self.rows[group], place

    def max_held(self) -> int:
        """How many rows this process may hold: what the stretches touch that it reads from at the same time."""
        workers = get_worker_info()
        slots = NUM_SLOTS // math.gcd(NUM_SLOTS, workers.num_workers if workers else 1)
        return slots * (-(-self.buffer_size // NUM_SLOTS) + 2 * self.groups.largest)


def _values_of(column: pa.ChunkedArray) -> list[Any]:
    """Encoded images as bytes or dicts, arrays as those of numpy."""
    stored = column.type.storage_type if isinstance(column.type, pa.ExtensionType) else column.type
    if pa.types.is_nested(stored) and not pa.types.is_struct(stored):
        return [array for chunk in column.chunks for array in arrays_of_chunk(chunk)]
    return column.to_pylist()


@dataclass(frozen=True, eq=False)
class Counted:
    """What one process finds out about the files of a split, for all. names: of the files, without their folders.
    groups_per_file, num_rows (of each row group): int64 and int32."""

    names: list[str]
    groups_per_file: np.ndarray
    num_rows: np.ndarray
    fingerprint: str


def access_of(location: DataLocation) -> ParquetAccess:
    """Raises DataError where the folder of --stream_cache cannot be written to."""
    token, seconds, cache = location.token, location.dataset_retry_seconds, None
    is_local = location.dataset_name is not None and Path(location.dataset_name).exists()
    if location.stream_cache is not None and location.dataset_streaming and not is_local:
        cache = StreamCache(Path(location.stream_cache), location.stream_cache_bytes, token, seconds)
    return ParquetAccess(token, seconds, cache)


def parquet_source(
    split: "ParquetSplit",
    column: str,
    location: DataLocation,
    buffer_size: int,
    description: str,
    labels: Labels | None,
    share: Share = alone,
) -> ImageSource:
    access, names = access_of(location), [url.rsplit("/", 1)[-1] for url in split.urls]

    def count() -> Counted:
        footers = read_footers(split.urls, access)
        of_files = [(footer.url, footer.schema) for footer in footers]
        check_columns(of_files, [column, *([] if labels is None else [labels.column])])
        if labels is not None:
            check_class_names(of_files, labels.column)
        num_rows = np.concatenate([footer.num_rows for footer in footers])
        groups_per_file = np.array([len(footer.num_rows) for footer in footers])
        return Counted(names, groups_per_file, num_rows.astype(np.int32), _fingerprint(column, names, footers, labels))

    counted = share(count)
    if counted.names != names:
        raise DataError(
            f"{description}: another process sees other files ({len(counted.names):,}, here {len(names):,}). All "
            "machines need the same data set."
        )
    groups = ParquetRowGroups(split.urls, counted.groups_per_file, counted.num_rows)
    return ImageSource(
        rows=ParquetRows(groups, column, buffer_size, access, labels),
        row_groups=groups,
        seekable_at_no_cost=False,
        description=description,
        fingerprint=counted.fingerprint,
        labels=labels,
    )


def _fingerprint(column: str, names: list[str], footers: list[Footer], labels: Labels | None) -> str:
    """`digest` of source.py, of (column, [(name, [(rows, bytes) of each row group]) of each file], ...), a file at a
    time: a data set of ten million row groups makes a text of hundreds of megabytes."""
    text = hashlib.sha256(f"[{json.dumps(column)}, [".encode())
    for i, (name, footer) in enumerate(zip(names, footers)):
        sizes = np.stack([footer.num_rows, footer.num_bytes], axis=1).tolist()
        text.update((", " * (i > 0) + json.dumps([name, sizes])).encode())
    rest = "".join(f", {json.dumps(part, default=str)}" for part in fingerprint_parts(labels))
    text.update(f"]{rest}]".encode())
    return text.hexdigest()[:16]


@dataclass(frozen=True)
class ParquetSplit:
    """A split of which the Parquet files are known; stands where `load_dataset` gives a data set."""

    urls: list[str]
    features: Features


def parquet_splits(builder: DatasetBuilder, location: DataLocation) -> dict[str, ParquetSplit] | None:
    """The files of a Parquet data set; None for other formats."""
    files = {str(split): [str(url) for url in urls] for split, urls in (builder.config.data_files or {}).items()}
    if builder.name != "parquet" or not any(files.values()):
        return None
    features = builder.info.features
    if features is None:
        # `as_streaming_dataset` would find out, too, but may try for ten minutes.
        first = next(urls[0] for urls in files.values() if urls)
        footer = read_footer(first, access_of(location))
        with parquet_errors(first):
            features = Features.from_arrow_schema(footer.schema.to_arrow_schema())
    return {split: ParquetSplit(urls, features) for split, urls in files.items()}


def check_splits(builder: DatasetBuilder, location: DataLocation) -> None:
    """Raise DataError where the Parquet files of a data set, of one split or several, name different classes, or
    where some hold numbers beyond the names of others."""
    splits = [[str(url) for url in urls] for urls in (builder.config.data_files or {}).values()]
    if builder.name != "parquet" or location.label_column_name is None:
        return
    # A split at a time, as they are read later on: a summary is that of one folder.
    footers = [footer for split in splits for footer in read_footers(split, access_of(location))]
    check_class_names([(footer.url, footer.schema) for footer in footers], location.label_column_name)
    check_unnamed_classes(footers, location.label_column_name, access_of(location))
