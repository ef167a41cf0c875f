"""Image data sets: from a name, as `load_dataset` takes it, to an `ImageSource` of encoded images.

Two kinds: sources with random access (tables on disk, and Parquet files read row group by row group from a disk or
the Hub), whose order is a pure function of seed and epoch (plan.py), and other `datasets` streams, which can only be
read from their beginning.

A Hub data set is read at one commit, `ImageSource.revision`, whatever happens to its branches meanwhile. Of Parquet,
only the image column is read. Memory: tables on disk are memory-mapped; of streamed Parquet, all workers of a rank
together keep at most `buffer_size` encoded images and 2 * NUM_SLOTS row groups of the image column, and each worker
beside that the row group it is reading (twice) and the footers of NUM_SLOTS files.
"""

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetBuilder, DatasetDict, Features, IterableDataset, load_dataset_builder
from huggingface_hub.constants import HF_HUB_OFFLINE
from sklearn.datasets import load_digits
from torch.utils.data import get_worker_info
from tqdm.auto import tqdm

from .plan import NUM_SLOTS
from .remote import RETRY_SECONDS, DataError, describe, open_parquet, parquet_errors, retry

EMBEDDED = "digits"
EVAL_SPLITS = ("validation", "valid", "val", "test")


@dataclass(frozen=True)
class DataLocation:
    """Where images come from; the fields are named after the command line's.

    dataset_retry_seconds: how long to go on trying where something on the network cannot be read.
    """

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    image_column_name: str | None = None
    dataset_streaming: bool = False
    token: str | None = field(default=None, repr=False)
    dataset_retry_seconds: float = RETRY_SECONDS

    @classmethod
    def of(cls, arguments: Any, token: str | None) -> "DataLocation":
        """From parsed flags of the same names; a command that lacks one gets its default."""
        flags = [setting for setting in fields(cls) if setting.name != "token"]
        return cls(**{flag.name: getattr(arguments, flag.name, flag.default) for flag in flags}, token=token)


@dataclass(frozen=True)
class ImageSource:
    """One split of a data set.

    Attributes:
        rows: encoded images: something with `rows[i]`, or an iterable data set where `row_groups` is None.
        row_groups: numbers of rows that are read at once, in order; None for a stream that cannot seek.
        seekable_at_no_cost: whether any row is as quick to reach as the next one (a memory-mapped table).
        description: for people. fingerprint: changes when the data does, but not with where it lies.
        revision: commit (40 hexadecimal digits) of a data set on the Hub, at which everything is read; None for local
            ones, and where a copy in the cache does not tell.
    """

    rows: Any
    row_groups: tuple[int, ...] | None
    seekable_at_no_cost: bool
    description: str
    fingerprint: str
    revision: str | None = None

    @property
    def num_rows(self) -> int | None:
        return None if self.row_groups is None else sum(self.row_groups)

    def __len__(self) -> int:
        """The Trainer asks for it."""
        if self.row_groups is None:
            raise TypeError(f"{self.description} is a stream of unknown length.")
        return sum(self.row_groups)

    def head(self, num_rows: int | None) -> "ImageSource":
        """The first `num_rows` rows; all of them where None."""
        if num_rows is None or (self.num_rows is not None and self.num_rows <= num_rows):
            return self
        if num_rows < 1:
            raise DataError(f"At least one image has to be left, got a limit of {num_rows}.")
        if self.row_groups is None:
            return replace(self, rows=self.rows.take(num_rows), fingerprint=f"{self.fingerprint}[:{num_rows}]")
        starts = np.cumsum((0, *self.row_groups[:-1]))
        row_groups = tuple(int(min(n, num_rows - s)) for n, s in zip(self.row_groups, starts) if s < num_rows)
        return replace(
            self,
            row_groups=row_groups,
            description=f"first {num_rows:,} of {self.description}",
            fingerprint=f"{self.fingerprint}[:{num_rows}]",
        )


class TableRows:
    """Random access to the image column of a memory-mapped `datasets.Dataset`."""

    def __init__(self, table: datasets.Dataset, column: str):
        table = table.select_columns([column])
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        self.table, self.column = table, column

    def __getitem__(self, row: int) -> Any:
        return self.table[row][self.column]


class ParquetRows:
    """Random access to one column of Parquet files, local or remote.

    A row costs the reading of its row group, so the last ones are kept: for each slot of plan.py that this process
    reads, the stretch of rows that is shuffled, and a row group more at either end. Over all worker processes of a
    rank that makes `buffer_size` rows and 2 * NUM_SLOTS row groups at the most.
    """

    def __init__(
        self,
        groups: list[tuple[str, int, int]],
        column: str,
        token: str | None,
        buffer_size: int,
        retry_seconds: float = RETRY_SECONDS,
    ):
        """groups: (URL, index of the row group in the file, number of rows)."""
        self.groups, self.column, self.token, self.buffer_size = groups, column, token, buffer_size
        self.retry_seconds = retry_seconds
        self.ends = np.cumsum([num_rows for *_, num_rows in groups])
        self.largest = max((num_rows for *_, num_rows in groups), default=1)
        self.rows: OrderedDict[int, list] = OrderedDict()
        self.files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self.process = os.getpid()

    def __getstate__(self):
        # Worker processes open files of their own.
        return {**self.__dict__, "rows": OrderedDict(), "files": OrderedDict()}

    def _read(self, group: int) -> list:
        url, index, _ = self.groups[group]
        if self.process != os.getpid():  # forked: connections and event loops stayed behind
            self.files, self.process = OrderedDict(), os.getpid()
        file = _recent(self.files, url, NUM_SLOTS, lambda: open_parquet(url, self.token, self.retry_seconds))
        with parquet_errors(f"Row group {index} of {url}"):
            return file.read_row_group(index, columns=[self.column]).column(self.column).to_pylist()

    def __getitem__(self, row: int) -> Any:
        """Raises DataError where the row group cannot be read."""
        group = int(np.searchsorted(self.ends, row, side="right"))
        workers = get_worker_info()
        slots = -(-NUM_SLOTS // (workers.num_workers if workers else 1))
        groups_a_slot = -(-self.buffer_size // (NUM_SLOTS * self.largest)) + 1
        rows = _recent(self.rows, group, slots * groups_a_slot, lambda: self._read(group))
        return rows[row - (int(self.ends[group - 1]) if group else 0)]


def _recent(cache: OrderedDict, key: Any, limit: int, make: Callable) -> Any:
    """`cache[key]`, made where it is not there; the `limit` entries used last are kept."""
    if key not in cache:
        cache[key] = make()
    cache.move_to_end(key)
    while len(cache) > limit:
        cache.popitem(last=False)
    return cache[key]


def _parquet_source(
    split: "_ParquetSplit", column: str, location: DataLocation, buffer_size: int, description: str
) -> ImageSource:
    urls, token, retry_seconds = split.urls, location.token, location.dataset_retry_seconds

    def footer(url: str) -> tuple[str, list[tuple[int, int]]]:
        """Rows and bytes of each row group."""
        with open_parquet(url, token, retry_seconds) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
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
    groups = [(url, i, n) for url, sizes in footers for i, (n, _) in enumerate(sizes) if n]
    return ImageSource(
        rows=ParquetRows(groups, column, token, buffer_size, retry_seconds),
        row_groups=tuple(n for *_, n in groups),
        seekable_at_no_cost=False,
        description=description,
        fingerprint=_digest(column, [(url.rsplit("/", 1)[-1], sizes) for url, sizes in footers]),
    )


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def load_embedded_digits() -> DatasetDict:
    """scikit-learn's handwritten digits (1,797 real images of 8 x 8 pixels), 1,500 to train and 297 to test."""
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    features = Features({"image": datasets.Image(), "label": ClassLabel(names=[str(name) for name in range(10)])})

    def table(part: slice) -> datasets.Dataset:
        return datasets.Dataset.from_dict(
            {"image": list(pixels[part]), "label": digits.target[part].tolist()}, features=features
        )

    return DatasetDict(train=table(slice(0, 1500)), test=table(slice(1500, None)))


def _choose_split(available: list[str], wanted: str, name: str) -> str:
    if wanted not in available:
        raise DataError(f"{name} has no split '{wanted}'. It has: {', '.join(available) or 'none'}.")
    return wanted


def _choose_column(features: Features | None, wanted: str | None, name: str) -> str:
    if features is None:
        if wanted is None:
            raise DataError(f"{name} does not say which columns it has: name the one to use with --image_column_name.")
        return wanted
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    columns = ", ".join(f"{column} ({getattr(feature, 'dtype', feature)})" for column, feature in features.items())
    if wanted is not None:
        if wanted not in features:
            raise DataError(f"{name} has no column '{wanted}' (--image_column_name). It has: {columns}.")
        return wanted
    if "image" in images:
        return "image"
    if len(images) != 1:
        found = f"{len(images)} image columns" if images else "no column of type Image"
        raise DataError(f"{name} has {found}: choose one with --image_column_name. It has: {columns}.")
    return images[0]


def open_splits(
    location: DataLocation,
    train_split: str | None = "train",
    eval_split: str | None = "auto",
    train_val_split: float | None = None,
    seed: int = 42,
    buffer_size: int = 8192,
) -> tuple[ImageSource | None, ImageSource | None]:
    """Open the training split and the one to evaluate on.

    Args:
        location: which data set. `dataset_name` is a Hub id, a folder (of images, of Parquet files, or written by
            `save_to_disk`), or None for scikit-learn's digits.
        eval_split: a name; "auto": the first there is of validation, valid, val, test; None: none.
        train_val_split: share of the training images to hold out where there is no split to evaluate on.
        buffer_size: rows that a streamed source may hold in memory (`--shuffle_buffer_size`).

    Raises:
        DataError: there is no such data set, split or column, a split is empty, the source cannot do what was
            asked, or the Hub refuses or cannot be reached for `dataset_retry_seconds`.
    """
    name = location.dataset_name or EMBEDDED
    tables, revision = (load_embedded_digits(), None) if location.dataset_name is None else _load(location)
    splits = list(tables)
    if eval_split == "auto":
        eval_split = next((split for split in EVAL_SPLITS if split in splits and split != train_split), None)
    sources = []
    for split in (train_split, eval_split):
        if split is None:
            sources.append(None)
            continue
        data = tables[_choose_split(splits, split, name)]
        if callable(data):
            data = data()
        column = _choose_column(getattr(data, "features", None), location.image_column_name, name)
        source = _source(data, column, location, f"{name} ({split})", buffer_size)
        if source.num_rows == 0:
            raise DataError(f"Split '{split}' of {name} is empty.")
        sources.append(replace(source, revision=revision))
    train, evaluation = sources
    if train_val_split and evaluation is None and train is not None:
        if not train.seekable_at_no_cost:
            raise DataError(
                "--train_val_split needs a data set that is not streamed; name a split with --eval_split_name."
            )
        if not 0 < train_val_split < 1:
            raise DataError(f"--train_val_split {train_val_split}: must lie between 0 and 1.")
        parts = train.rows.table.train_test_split(test_size=train_val_split, seed=seed)
        train, evaluation = (
            replace(
                _source(parts[part], train.rows.column, location, f"{part} part of {train.description}", buffer_size),
                revision=revision,
            )
            for part in ("train", "test")
        )
    return train, evaluation


@dataclass(frozen=True)
class _ParquetSplit:
    """A split of which the Parquet files are known; stands where `load_dataset` gives a data set."""

    urls: list[str]
    features: Features


def _load(location: DataLocation) -> tuple[dict, str | None]:
    """Split name -> data set (or `_ParquetSplit`), and the commit of a data set on the Hub."""
    name = location.dataset_name
    try:
        if any((Path(name) / marker).exists() for marker in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(name)
            return (loaded if isinstance(loaded, DatasetDict) else {"train": loaded}), None
        is_local = Path(name).exists()
        options = {"name": location.dataset_config_name, "token": location.token}
        if not is_local:
            options["revision"] = location.dataset_revision

        def persist(attempt: Callable, **retry_options) -> Any:
            dataset = None if is_local else name.removeprefix("hf://datasets/")
            return retry(f"--dataset_name {name}", attempt, location.dataset_retry_seconds, dataset, **retry_options)

        with TemporaryDirectory() as nothing:
            # Where the Hub does not answer, `datasets` turns to its cache, if there is anything in it. For a stream
            # that would be another order of the images, and not what was asked for while the Hub can still be tried.
            if location.dataset_streaming and not HF_HUB_OFFLINE:
                options["cache_dir"] = nothing
            builder = persist(lambda: load_dataset_builder(name, **options))
        revision = None if is_local else _commit(builder, location)
        if not location.dataset_streaming:
            persist(builder.download_and_prepare, counts_attempts=False)
            return builder.as_dataset(), revision
        return _parquet_splits(builder, location) or persist(builder.as_streaming_dataset), revision
    except DataError:
        raise
    except Exception as error:  # of whatever kind: loaders of many formats and the network stand behind it
        raise DataError(
            f"--dataset_name {name}: {describe(error)}. Give a Hub id (gated ones need `hf auth login`), or a folder "
            "with images, Parquet files or a data set written by save_to_disk."
        ) from error


def _commit(builder: DatasetBuilder, location: DataLocation) -> str | None:
    """The commit that a builder of a Hub data set is bound to. Where the Hub does not answer, `datasets` takes the
    newest copy in its cache, whose folder is named after the commit, and forgets which revision was asked for."""
    sha = "[0-9a-f]{40}"
    match = re.match(f"hf://datasets/[^@]+@({sha})", builder.base_path or "") or re.fullmatch(f"({sha})", builder.hash)
    revision, wanted = match and match[1], location.dataset_revision
    is_another = wanted and wanted != revision and (re.fullmatch(sha, wanted) or not HF_HUB_OFFLINE)
    if builder.name == "cache" and is_another:
        raise DataError(
            f"--dataset_name {location.dataset_name}: --dataset_revision {wanted} cannot be had from the Hub now, and "
            f"the copy in the cache is of {revision or 'an unknown commit'}."
        )
    return revision


def _parquet_splits(builder: DatasetBuilder, location: DataLocation) -> dict[str, _ParquetSplit] | None:
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
    return {split: _ParquetSplit(urls, features) for split, urls in files.items()}


def _source(data: Any, column: str, location: DataLocation, description: str, buffer_size: int) -> ImageSource:
    if isinstance(data, _ParquetSplit):
        return _parquet_source(data, column, location, buffer_size, description)
    if isinstance(data, IterableDataset):
        features = data.features
        if features is not None and isinstance(features[column], datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
        rows = data.map(lambda row: {"image": row[column]}, remove_columns=data.column_names)
        return ImageSource(rows, None, False, description, _digest(description))
    rows = TableRows(data, column)
    return ImageSource(rows, (len(data),), True, description, _fingerprint(rows, len(data)))


def _fingerprint(rows: TableRows, num_rows: int) -> str:
    """Of the number of rows and the content of some. That of `datasets` changes with the time at which a cache was
    written, and so from machine to machine."""
    some = []
    for row in np.unique(np.linspace(0, num_rows - 1, num=16, dtype=int)) if num_rows else ():
        value = rows[int(row)]
        if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
            path = Path(value["path"])
            value = (path.name, path.stat().st_size if path.exists() else None)
        elif isinstance(value, dict):
            value = hashlib.sha256(value.get("bytes") or b"").hexdigest()
        some.append(value)
    return _digest(num_rows, rows.column, some)


def load_head_of_stream(source: ImageSource, num_rows: int) -> ImageSource:
    """The first images of a stream, held (encoded) in memory, as a source with random access."""
    rows = [row["image"] for row in source.rows.take(num_rows)]
    if not rows:
        raise DataError(f"{source.description} is empty.")
    return ImageSource(
        rows, (len(rows),), True, f"first {len(rows):,} of {source.description}", source.fingerprint, source.revision
    )
