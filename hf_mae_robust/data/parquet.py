"""Parquet files with random access, from a disk or the Hub, row group by row group."""

import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetBuilder, Features
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol
from torch.utils.data import get_worker_info
from tqdm.auto import tqdm

from ..errors import DataError
from ..hub.faults import describe, public
from ..hub.network import RETRY_SECONDS
from .footers import check_class_names, check_columns
from .labels import Labels
from .order import NUM_SLOTS
from .remote_file import VerifiedFile
from .source import DataLocation, ImageSource, digest, fingerprint_parts


class ParquetRows:
    """Random access to the image column of Parquet files, local or remote, and to labels.

    A row costs the reading of its row group, so the last ones are kept: for each slot of order.py that this process
    reads, the stretch of rows that is shuffled, and a row group more at either end. Over 1, 2, 4, 8 or 16 worker
    processes of a rank that makes `buffer_size` rows and 2 * NUM_SLOTS of the largest row groups at the most. With
    another number of workers several of them read each slot, and each keeps it.
    """

    def __init__(
        self,
        groups: list[tuple[str, int, int]],
        column: str,
        token: str | None,
        buffer_size: int,
        retry_seconds: float = RETRY_SECONDS,
        labels: Labels | None = None,
    ):
        """groups: (URL, index of the row group in the file, number of rows)."""
        self.groups, self.column, self.token, self.buffer_size = groups, column, token, buffer_size
        self.retry_seconds, self.labels = retry_seconds, labels
        self.ends = np.cumsum([num_rows for *_, num_rows in groups])
        self.largest = max((num_rows for *_, num_rows in groups), default=1)
        self.rows: OrderedDict[int, tuple[list[Any], Any]] = OrderedDict()
        self.num_held = 0  # rows in all of these
        self.files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self.process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open files of their own.
        return {**self.__dict__, "rows": OrderedDict(), "num_held": 0, "files": OrderedDict()}

    def _read(self, group: int) -> tuple[list[Any], Any]:
        url, index, _ = self.groups[group]
        columns = [self.column] if self.labels is None else [self.column, self.labels.column]
        if self.process != os.getpid():  # forked: connections and event loops stayed behind
            self.files, self.process = OrderedDict(), os.getpid()
        if url not in self.files:
            self.files[url] = open_parquet(url, self.token, self.retry_seconds)
        self.files.move_to_end(url)
        while len(self.files) > NUM_SLOTS:
            self.files.popitem(last=False)
        with parquet_errors(f"Row group {index} of {url}"):
            table = self.files[url].read_row_group(index, columns=columns)
        images, first_row = table.column(self.column).to_pylist(), int(self.ends[group - 1]) if group else 0
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
        group = int(np.searchsorted(self.ends, row, side="right"))
        if group not in self.rows:
            self.rows[group] = self._read(group)
            self.num_held += self.groups[group][2]
            limit = self.max_held()
            while self.num_held > limit:
                oldest, _ = self.rows.popitem(last=False)
                self.num_held -= self.groups[oldest][2]
        self.rows.move_to_end(group)
        return self.rows[group], row - (int(self.ends[group - 1]) if group else 0)

    def max_held(self) -> int:
        """How many rows this process may hold: what the stretches touch that it reads from at the same time."""
        workers = get_worker_info()
        slots = NUM_SLOTS // math.gcd(NUM_SLOTS, workers.num_workers if workers else 1)
        return slots * (-(-self.buffer_size // NUM_SLOTS) + 2 * self.largest)


def parquet_source(
    split: "ParquetSplit",
    column: str,
    location: DataLocation,
    buffer_size: int,
    description: str,
    labels: Labels | None,
) -> ImageSource:
    urls, token, retry_seconds = split.urls, location.token, location.dataset_retry_seconds

    schemas: dict[str, pa.Schema] = {}

    def footer(url: str) -> tuple[str, list[tuple[int, int]]]:
        """Rows and bytes of each row group."""
        with open_parquet(url, token, retry_seconds) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            schemas[url] = file.schema_arrow
            return url, [(group.num_rows, group.total_byte_size) for group in groups]

    with ThreadPoolExecutor(max_workers=16) as pool:
        footers = list(
            tqdm(
                pool.map(footer, urls),
                total=len(urls),
                desc="Reading Parquet footers",
                leave=False,
                disable=len(urls) < 16,
            )
        )
    of_files = [(url, schemas[url]) for url in urls]
    check_columns(of_files, [column, *([] if labels is None else [labels.column])])
    if labels is not None:
        check_class_names(of_files, labels.column)
    groups = [(url, i, n) for url, sizes in footers for i, (n, _) in enumerate(sizes) if n]
    return ImageSource(
        rows=ParquetRows(groups, column, token, buffer_size, retry_seconds, labels),
        row_groups=tuple(n for *_, n in groups),
        seekable_at_no_cost=False,
        description=description,
        fingerprint=digest(
            column, [(url.rsplit("/", 1)[-1], sizes) for url, sizes in footers], *fingerprint_parts(labels)
        ),
        labels=labels,
    )


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
        with open_parquet(first, location.token, location.dataset_retry_seconds) as file:
            features = Features.from_arrow_schema(file.schema_arrow)
    return {split: ParquetSplit(urls, features) for split, urls in files.items()}


def check_splits(builder: DatasetBuilder, location: DataLocation) -> None:
    """Raise DataError where the Parquet files of a data set, of one split or several, name different classes."""
    files = [str(url) for urls in (builder.config.data_files or {}).values() for url in urls]
    if builder.name != "parquet" or location.label_column_name is None:
        return

    def schema(url: str) -> tuple[str, pa.Schema]:
        with open_parquet(url, location.token, location.dataset_retry_seconds) as file:
            return url, file.schema_arrow

    with ThreadPoolExecutor(max_workers=16) as pool:
        check_class_names(pool.map(schema, files), location.label_column_name)


@contextmanager
def parquet_errors(what: str) -> Iterator[None]:
    """Turn what pyarrow raises for files that are damaged or no Parquet into DataError. what: file and place."""
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{public(what)} cannot be read as Parquet ({describe(error)}). If the file is damaged, fetch or write it "
            "again."
        ) from error


def open_parquet(url: str, token: str | None = None, retry_seconds: float = RETRY_SECONDS) -> pq.ParquetFile:
    """A Parquet file at a path or any URL of fsspec; remote ones as `VerifiedFile`. Raises DataError."""
    with parquet_errors(url):
        is_local = get_protocol(url) in ("file", "local")
        source = LocalFileSystem._strip_protocol(url) if is_local else VerifiedFile(url, token, retry_seconds)
        return pq.ParquetFile(source, pre_buffer=True)
