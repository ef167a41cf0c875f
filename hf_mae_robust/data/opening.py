"""Image data sets: from a name, as `load_dataset` takes it, to an `ImageSource` of encoded images.

Two kinds: sources with random access (tables on disk, and Parquet files read row group by row group from a disk or
the Hub), whose order is a pure function of seed and epoch (order.py), and other `datasets` streams, which can only be
read from their beginning.

A Hub data set is read at one commit, `ImageSource.revision`, whatever happens to its branches meanwhile. Of Parquet,
only the image column is read. Memory: tables on disk are memory-mapped; of streamed Parquet, all workers of a rank
together keep at most `buffer_size` encoded images and 2 * NUM_SLOTS row groups of the image column, and each worker
beside that the row group it is reading (twice) and the footers of NUM_SLOTS files.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, DatasetBuilder, DatasetDict, Features, IterableDataset, load_dataset_builder
from huggingface_hub.constants import HF_HUB_OFFLINE
from sklearn.datasets import load_digits

from ..errors import DataError
from ..hub.faults import describe
from ..hub.network import retry
from .labels import LabelFinder, Labels, find_labels
from .parquet import ParquetSplit, parquet_source, parquet_splits
from .source import DataLocation, ImageSource, TableRows, digest, encoded, fingerprint_parts

EMBEDDED = "digits"
EVAL_SPLITS = ("validation", "valid", "val", "test")


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


def _load(location: DataLocation) -> tuple[dict, str | None]:
    """Split name -> data set (or `ParquetSplit`), and the commit of a data set on the Hub."""
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
        return parquet_splits(builder, location) or persist(builder.as_streaming_dataset), revision
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


def _source(
    data: Any,
    column: str,
    location: DataLocation,
    description: str,
    buffer_size: int,
    labels: Labels | None = None,
) -> ImageSource:
    if isinstance(data, ParquetSplit):
        return parquet_source(data, column, location, buffer_size, description, labels)
    if isinstance(data, IterableDataset):
        used = [column] if labels is None else [column, labels.column]
        if data.features is not None:
            data = encoded(data.select_columns(used))

        def columns(row: dict) -> dict:
            label = {} if labels is None else {"label": labels.check([row[labels.column]], None)[0]}
            return {"image": row[column], **label}

        rows = data.map(columns, remove_columns=data.column_names)
        return ImageSource(rows, None, False, description, digest(description), labels=labels)
    rows = TableRows(data, column, labels)
    fingerprint = _fingerprint(rows, len(data))
    if labels is not None:
        content = hashlib.sha256(rows.classes.tobytes()).hexdigest() if rows.classes is not None else ""
        fingerprint = digest(fingerprint, *fingerprint_parts(labels), content)
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
    return digest(num_rows, rows.column, some)
