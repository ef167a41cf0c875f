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
from collections.abc import Callable, Sequence
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

from .errors import DataError
from .hub.network import RETRY_SECONDS, describe, open_parquet, parquet_errors, retry
from .labels import LabelFinder, Labels, find_labels
from .plan import NUM_SLOTS

EMBEDDED = "digits"
EVAL_SPLITS = ("validation", "valid", "val", "test")


@dataclass(frozen=True)
class DataLocation:
    """Where images come from; the fields are named after the command line's.

    label_column_name: column of labels to read as well, or "auto" for the only one there is; None: no labels.
    dataset_retry_seconds: how long to go on trying where something on the network cannot be read.
    """

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    image_column_name: str | None = None
    dataset_streaming: bool = False
    token: str | None = field(default=None, repr=False)
    dataset_retry_seconds: float = RETRY_SECONDS
    label_column_name: str | None = None

    @classmethod
    def of(cls, arguments: Any, token: str | None) -> "DataLocation":
        """From parsed flags of the same names; a command that lacks one gets its default."""
        flags = [setting for setting in fields(cls) if setting.name != "token"]
        return cls(**{flag.name: getattr(arguments, flag.name, flag.default) for flag in flags}, token=token)


@dataclass(frozen=True)
class ImageSource:
    """One split of a data set.

    Attributes:
        rows: encoded images: something with `rows[i]`, or an iterable data set of `{"image": ...}` where `row_groups`
            is None. With labels also `rows.label(i)`, or a key "label".
        row_groups: numbers of rows that are read at once, in order; None for a stream that cannot seek.
        seekable_at_no_cost: whether any row is as quick to reach as the next one (a memory-mapped table).
        description: for people. fingerprint: changes when the data does, but not with where it lies.
        revision: commit (40 hexadecimal digits) of a data set on the Hub, at which everything is read; None for local
            ones, and where a copy in the cache does not tell.
        labels: what `rows.label(i)` is, with the names of its classes; None where no labels were asked for.
    """

    rows: Any
    row_groups: tuple[int, ...] | None
    seekable_at_no_cost: bool
    description: str
    fingerprint: str
    revision: str | None = None
    labels: Labels | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return None if self.labels is None else self.labels.class_names

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
    """Random access to the image column of a memory-mapped `datasets.Dataset`, and to labels."""

    def __init__(self, table: datasets.Dataset, column: str, labels: Labels | None = None):
        self.labels = labels
        # All classes are looked at before the training; semantic maps and objects are too large for it.
        self.classes = labels.check(table[labels.column]) if labels is not None and not labels.is_joint else None
        self.column, self.table = column, _encoded(table.select_columns([column]))
        if labels is not None and labels.is_joint:
            self.annotations = _encoded(table.select_columns([labels.column]))

    def __getitem__(self, row: int) -> Any:
        return self.table[row][self.column]

    def label(self, row: int) -> Any:
        if self.classes is not None:
            return self.classes[row]
        return self.labels.check([self.annotations[row][self.labels.column]], row)[0]


def _encoded(data: Any) -> Any:
    """A table or stream that gives its images as encoded bytes."""
    for column, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return data


class HeldRows(list):
    """Encoded images in memory, and their labels."""

    def __init__(self, images: list, labels: Sequence[Any] = ()):
        super().__init__(images)
        self.labels = labels

    def label(self, row: int) -> Any:
        return self.labels[row]


class ParquetRows:
    """Random access to the image column of Parquet files, local or remote, and to labels.

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
        labels: Labels | None = None,
    ):
        """groups: (URL, index of the row group in the file, number of rows)."""
        self.groups, self.column, self.token, self.buffer_size = groups, column, token, buffer_size
        self.retry_seconds, self.labels = retry_seconds, labels
        self.ends = np.cumsum([num_rows for *_, num_rows in groups])
        self.largest = max((num_rows for *_, num_rows in groups), default=1)
        self.rows: OrderedDict[int, tuple[list, Sequence | None]] = OrderedDict()
        self.files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self.process = os.getpid()

    def __getstate__(self):
        # Worker processes open files of their own.
        return {**self.__dict__, "rows": OrderedDict(), "files": OrderedDict()}

    def _read(self, group: int) -> tuple[list, Sequence | None]:
        url, index, _ = self.groups[group]
        columns = [self.column] if self.labels is None else [self.column, self.labels.column]
        if self.process != os.getpid():  # forked: connections and event loops stayed behind
            self.files, self.process = OrderedDict(), os.getpid()
        file = _recent(self.files, url, NUM_SLOTS, lambda: open_parquet(url, self.token, self.retry_seconds))
        with parquet_errors(f"Row group {index} of {url}"):
            table = file.read_row_group(index, columns=columns)
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

    def _find(self, row: int) -> tuple[tuple[list, Sequence | None], int]:
        group = int(np.searchsorted(self.ends, row, side="right"))
        workers = get_worker_info()
        slots = -(-NUM_SLOTS // (workers.num_workers if workers else 1))
        groups_a_slot = -(-self.buffer_size // (NUM_SLOTS * self.largest)) + 1
        columns = _recent(self.rows, group, slots * groups_a_slot, lambda: self._read(group))
        return columns, row - (int(self.ends[group - 1]) if group else 0)


def _recent(cache: OrderedDict, key: Any, limit: int, make: Callable) -> Any:
    """`cache[key]`, made where it is not there; the `limit` entries used last are kept."""
    if key not in cache:
        cache[key] = make()
    cache.move_to_end(key)
    while len(cache) > limit:
        cache.popitem(last=False)
    return cache[key]


def _parquet_source(
    split: "_ParquetSplit",
    column: str,
    location: DataLocation,
    buffer_size: int,
    description: str,
    labels: Labels | None,
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
        rows=ParquetRows(groups, column, token, buffer_size, retry_seconds, labels),
        row_groups=tuple(n for *_, n in groups),
        seekable_at_no_cost=False,
        description=description,
        fingerprint=_digest(column, [(url.rsplit("/", 1)[-1], sizes) for url, sizes in footers], *_parts(labels)),
        labels=labels,
    )


def _parts(labels: Labels | None) -> tuple:
    """What of the labels belongs into a fingerprint."""
    return () if labels is None else (labels.column, labels.class_names)


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
    find_labels: LabelFinder = find_labels,
    find_splits: Callable[[Path], dict[str, Callable] | None] | None = None,
) -> tuple[ImageSource | None, ImageSource | None]:
    """Open the training split and the one to evaluate on.

    Args:
        location: which data set. `dataset_name` is a Hub id, a folder (of images, of Parquet files, or written by
            `save_to_disk`), or None for scikit-learn's digits.
        eval_split: a name; "auto": the first there is of validation, valid, val, test; None: none.
        train_val_split: share of the training images to hold out where there is no split to evaluate on.
        buffer_size: rows that a streamed source may hold in memory (`--shuffle_buffer_size`).
        find_labels: as that of labels.py. find_splits: recognises a local folder that `load_dataset` does not
            understand, and gives functions that load its splits; None for others.

    Raises:
        DataError: there is no such data set, split or column, a split is empty, the source cannot do what was
            asked, or the Hub refuses or cannot be reached for `dataset_retry_seconds`.
    """
    name = location.dataset_name or EMBEDDED
    tables, revision = None, None
    if find_splits is not None and location.dataset_name is not None and Path(name).is_dir():
        tables = find_splits(Path(name))
    if tables is None:
        tables, revision = (load_embedded_digits(), None) if location.dataset_name is None else _load(location)
    splits = list(tables)
    if eval_split == "auto":
        eval_split = next((split for split in EVAL_SPLITS if split in splits and split != train_split), None)
    sources, labels, data = [], None, None
    for split in (train_split, eval_split):
        if split is None:
            sources.append(None)
            continue
        data = tables[_choose_split(splits, split, name)]
        if callable(data):
            data = data()
        features, description = getattr(data, "features", None), f"{name} ({split})"
        column = _choose_column(features, location.image_column_name, name)
        if labels is not None:
            labels = labels.of_split(features, description)
        elif location.label_column_name is not None:
            read_column = (lambda column, data=data: data[column][:]) if isinstance(data, datasets.Dataset) else None
            labels = find_labels(features, location.label_column_name, description, read_column)
        source = _source(data, column, location, description, buffer_size, labels)
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
        parts = data.train_test_split(test_size=train_val_split, seed=seed)
        train, evaluation = (
            replace(
                _source(
                    parts[part], train.rows.column, location, f"{part} part of {train.description}", buffer_size, labels
                ),
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


def _source(
    data: Any,
    column: str,
    location: DataLocation,
    description: str,
    buffer_size: int,
    labels: Labels | None = None,
) -> ImageSource:
    if isinstance(data, _ParquetSplit):
        return _parquet_source(data, column, location, buffer_size, description, labels)
    if isinstance(data, IterableDataset):
        used = [column] if labels is None else [column, labels.column]
        if data.features is not None:
            data = _encoded(data.select_columns(used))

        def columns(row: dict) -> dict:
            label = {} if labels is None else {"label": labels.check([row[labels.column]], None)[0]}
            return {"image": row[column], **label}

        rows = data.map(columns, remove_columns=data.column_names)
        return ImageSource(rows, None, False, description, _digest(description), labels=labels)
    rows = TableRows(data, column, labels)
    fingerprint = _fingerprint(rows, len(data))
    if labels is not None:
        content = hashlib.sha256(rows.classes.tobytes()).hexdigest() if rows.classes is not None else ""
        fingerprint = _digest(fingerprint, *_parts(labels), content)
    return ImageSource(rows, (len(data),), True, description, fingerprint, labels=labels)


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
    rows = list(source.rows.take(num_rows))
    if not rows:
        raise DataError(f"{source.description} is empty.")
    return replace(
        source,
        rows=HeldRows([row["image"] for row in rows], [row.get("label") for row in rows]),
        row_groups=(len(rows),),
        seekable_at_no_cost=True,
        description=f"first {len(rows):,} of {source.description}",
    )
