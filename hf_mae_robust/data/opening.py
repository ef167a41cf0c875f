"""Image data sets: from a name, as `load_dataset` takes it, to an `ImageSource` of encoded images.

Two kinds: sources with random access (tables on disk, tars on disk, and Parquet files read row group by row group from
a disk or the Hub), whose order is a pure function of seed and epoch (order.py), and other `datasets` streams, which can
only be read from their beginning.

A Hub data set is read at one commit, `ImageSource.revision`, whatever happens to its branches meanwhile. Of Parquet,
only the image column is read. Memory: tables on disk are memory-mapped; of streamed Parquet, all workers of a rank
together keep at most `buffer_size` encoded images and 2 * NUM_SLOTS row groups of the image column (if they are 1, 2,
4, 8 or 16; see `ParquetRows`), and each worker beside that the row group it is reading (twice) and the footers of
NUM_SLOTS files.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from datasets import Dataset, IterableDataset

from ..errors import DataError
from .band_detection import find_stored_bands
from .brightness import describe_brightness
from .folders import FOLDER, MAX_UNUSED, open_folder, read_folder
from .image_columns import choose_column, holds_numbers, refuse_addresses
from .labels import LabelFinder, Labels, find_labels
from .layouts import split_of
from .loading import load_embedded_digits, load_splits
from .notes import note
from .parquet import ParquetSplit, access_of, parquet_source
from .row_groups import RowGroups
from .source import DataLocation, ImageSource, Share, TableRows, alone, digest, encoded, fingerprint_parts
from .tar_files import TarFiles
from .tar_table import TarTable, open_tars
from .tars import TarRows, tar_source

EMBEDDED = "digits"
EVAL_SPLITS = ("validation", "valid", "val", "test")
# A local folder -> functions that load its splits, by name; None where it is not of the kind that is recognised.
SplitFinder = Callable[[Path], dict[str, Callable[[], Dataset]] | None]


def open_splits(
    location: DataLocation,
    train_split: str | None = "train",
    eval_split: str | None = "auto",
    train_val_split: float | None = None,
    seed: int = 42,
    buffer_size: int = 8192,
    find_labels: LabelFinder = find_labels,
    find_splits: SplitFinder | None = None,
    tells: bool = True,
    share: Share = alone,
    train_flag: str = "--train_split_name",
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
        tells: print what a local folder's files were taken for, and warn of pictures that come out black or white.
        share: how one process finds out for all, where several open the same data set: the commit of a branch, and what
            is streamed from the Hub or counted in Parquet files. All of them must call this function.
        train_flag: the flag that chose `train_split`, for errors.

    Raises:
        MissingFileError: the folder does not exist.
        DataError: there is no such data set, split or column, a split is empty, the source cannot do what was
            asked, a local folder's files are not what is trained on, or the Hub refuses or cannot be reached for
            `dataset_retry_seconds`.
    """
    name = location.dataset_name or EMBEDDED
    tables, revision, check = _find_tables(location, find_splits, tells, share)
    only = next(iter(tables), None) if len(tables) == 1 else None
    if train_split == "train" and only not in (None, train_split, eval_split) and split_of(only) in (None, "train"):
        # CVAT calls it "default", others "all", "data", "full".
        train_split = only
        if tells:
            note(f"{name}: its only split, '{only}', is taken for the training split ({train_flag})")
    if eval_split == "auto":
        eval_split = next((split for split in EVAL_SPLITS if split in tables and split != train_split), None)
    if check is not None:
        check([split for split in (train_split, eval_split) if split is not None])
    sources: list[ImageSource | None] = []
    labels, data = None, None
    for split in (train_split, eval_split):
        if split is None:
            sources.append(None)
            continue
        flag = train_flag if split == train_split else "--eval_split_name"
        source, data = _open_split(
            tables,
            split,
            flag,
            location,
            find_labels=find_labels,
            known=labels,
            buffer_size=buffer_size,
            share=share,
            tells=tells,
        )
        labels = source.labels
        sources.append(replace(source, revision=revision))
    train, evaluation = _with_stored_bands(sources, location, share)
    # Of others on the Hub, the first row group would have to be fetched for it.
    is_told = tells and PartialState().is_main_process
    if train is not None and is_told and _is_on_disk(train, name):
        if train.needs_bands:
            note(f"{train.description} holds {train.stored}")
            if train.stored is not None and train.stored.is_mixed and not train.stored.fault:
                note(
                    f"{train.description}: Warning: some of its images are 8-bit pictures: of these the numbers from 0 "
                    f"to 255 are taken beside those of {train.stored.dtype}, as they are"
                )
        elif (warning := describe_brightness(train)) is not None:
            note(warning)
        if (name_of_class := _only_class(train)) is not None:
            note(
                f"{train.description}: Warning: all {train.num_rows:,} images are of the class '{name_of_class}', so "
                "there is nothing to tell apart"
            )
    if train_val_split and evaluation is None and train is not None:
        return _hold_out(train, data, train_val_split, seed)
    return train, evaluation


def _only_class(source: ImageSource) -> str | None:
    """The class of all images, where several are named and all labels are in memory and show that only one occurs."""
    classes = source.rows.classes if isinstance(source.rows, TableRows | TarRows) else None
    if source.labels is None or classes is None or not len(classes) or (classes != classes[0]).any():
        return None
    return source.labels.class_names[int(classes[0])]


def _is_on_disk(source: ImageSource, name: str) -> bool:
    """Whether looking at some of its images asks nothing of the network."""
    return source.seekable_at_no_cost or isinstance(source.rows, TarRows) or Path(name).exists()


def open_every_split(
    location: DataLocation,
    splits: Sequence[str] | None = None,
    *,
    find_labels: LabelFinder = find_labels,
    find_splits: SplitFinder | None = None,
    share: Share = alone,
    buffer_size: int = 8192,
    flag: str = "--splits",
) -> list[ImageSource]:
    """Open several splits of a data set, to go over them. The labels are those of the first split; a later one may be
    without any.

    Args:
        splits: their names; None: all there are, in the order of the data set, but "train" first. flag: that chose
            them, for errors. The others are those of `open_splits`, whose errors this raises.
    """
    tables, revision, check = _find_tables(location, find_splits, True, share)
    names = sorted(tables, key=lambda name: name != "train") if splits is None else list(splits)
    if check is not None:
        check(names)
    sources: list[ImageSource | None] = []
    labels = None
    for split in names:
        options: dict[str, Any] = {
            "find_labels": find_labels,
            "buffer_size": buffer_size,
            "share": share,
            "tells": True,
        }
        bare = location
        if labels is not None and not labels.is_joint and not _has_column(tables, split, labels.column):
            note(f"{location.dataset_name} ({split}): without labels")
            bare = replace(location, label_column_name=None)
        source, _ = _open_split(tables, split, flag, bare, known=None if bare is not location else labels, **options)
        labels = labels or source.labels
        sources.append(replace(source, revision=revision))
    return [source for source in _with_stored_bands(sources, location, share) if source is not None]


def _has_column(tables: Any, split: str, column: str) -> bool:
    """Whether a split has a column, or does not say which it has."""
    data = tables.get(split)
    features = getattr(data() if callable(data) else data, "features", None)
    return features is None or column in features


def _open_split(
    tables: Mapping[str, Any],
    split: str,
    flag: str,
    location: DataLocation,
    *,
    find_labels: LabelFinder,
    known: Labels | None,
    buffer_size: int,
    share: Share,
    tells: bool,
) -> tuple[ImageSource, Any]:
    """A split of what `_find_tables` found, and its data set. flag: that chose it, for errors. known: labels of
    another split. tells: notes."""
    name = location.dataset_name or EMBEDDED
    if split not in tables:
        raise DataError(
            f"{name} has no split '{split}'. It has: {', '.join(tables) or 'none'}. Choose one with {flag}."
        )
    data, description = tables[split], f"{name} ({split})"
    if callable(data):
        data = data()
    if isinstance(data, TarFiles):
        named = (location.image_column_name, location.label_column_name)
        data = open_tars(data, named, access_of(location).cache, description, tells, share)
    column = choose_column(data, location.image_column_name, name)
    if isinstance(data, Dataset):
        refuse_addresses(data, column, description)
    labels = _choose_labels(data, description, location, find_labels, known)
    if labels is not None and labels.is_joint and isinstance(data, Dataset):
        data = _annotated(data, labels.column, description, location)
    source = source_of(data, column, location, description, buffer_size, labels, share)
    # A stream from the Hub would be asked for twice.
    is_reachable = source.row_groups is not None or _is_on_disk(source, name)
    if is_reachable and (examine := getattr(labels, "examined", None)):
        # What is streamed may be far away.
        examined = (share if location.dataset_streaming else alone)(partial(examine, source))
        if examined != labels:
            source = source_of(data, column, location, description, buffer_size, examined, share)
    if source.num_rows == 0:
        raise DataError(f"Split '{split}' of {name} is empty.")
    found: dict[str, Any] = {"split": split, "root": root_of(location.dataset_name)}
    found["holds_numbers"] = holds_numbers((getattr(data, "features", None) or {}).get(column))
    return replace(source, **found, full_size_decoding=location.full_size_decoding), data


def _with_stored_bands(
    sources: Sequence[ImageSource | None], location: DataLocation, share: Share
) -> list[ImageSource | None]:
    """The sources, with what is known of their files. Of pictures on the Hub, nothing is fetched for it."""
    first = next((source for source in sources if source is not None), None)
    if first is None:
        return list(sources)
    is_local = _is_on_disk(first, location.dataset_name or "")
    if not (is_local or first.holds_numbers):
        return list(sources)
    find = partial(find_stored_bands, first, location)
    stored = find() if is_local else share(find)
    return [source and replace(source, stored=stored) for source in sources]


def _find_tables(
    location: DataLocation, find_splits: SplitFinder | None, tells: bool, share: Share
) -> tuple[Mapping[str, Any], str | None, Callable[[Sequence[str]], None] | None]:
    """Which splits there are: name -> data set, `ParquetSplit` or function that loads one; the commit of a data set on
    the Hub; and of a folder of image files a check of what the splits that were chosen leave out."""
    if location.dataset_name is None:
        return load_embedded_digits(), None, None
    path = Path(location.dataset_name)
    try:
        is_folder = path.is_dir() and list(os.scandir(path)) is not None
    except PermissionError as error:
        raise DataError(f"--dataset_name {path} may not be read (permission denied). Make it readable.") from error
    if is_folder:
        if find_splits is not None and (tables := find_splits(path)) is not None:
            return tables, None, None
        if location.dataset_config_name is None and (folder := read_folder(location.dataset_name)) is not None:
            tables, check = open_folder(folder, location.dataset_streaming, location.allow_unused_files, tells)
            return tables, None, check
    return *load_splits(location, share), None


def root_of(name: str | None) -> str:
    """The folder of a local data set, for a file the one that it lies in; "" for others."""
    path = Path(name) if name is not None else None
    if path is None or not path.exists():
        return ""
    return str(path if path.is_dir() else path.parent)


def _choose_labels(
    data: Any, description: str, location: DataLocation, find_labels: LabelFinder, known: Labels | None
) -> Labels | None:
    """The labels of a split: those that are known of another one, or what `find_labels` finds; None where none were
    asked for."""
    features = getattr(data, "features", None)
    if known is not None:
        return known.of_split(features, description)
    if location.label_column_name is None:
        return None
    read_column: Callable[[str], Iterable[Any]] | None = None
    if isinstance(data, TarTable):
        read_column = data.read_column
    elif isinstance(data, Dataset):
        read_column = partial(_read_column, data)
    elif isinstance(data, IterableDataset) and Path(location.dataset_name or "").exists():
        read_column = partial(_read_column_of_stream, data, description)
    return find_labels(features, location.label_column_name, description, read_column)


def _read_column(table: Dataset, column: str) -> Iterable[Any]:
    return table[column][:]


def _read_column_of_stream(stream: IterableDataset, description: str, column: str) -> set[Any]:
    """The different values of a column of local files, which have to be read to their end for it."""
    note(f"{description}: reading all of it once, for the classes in column '{column}'")
    return {row[column] for row in stream.select_columns([column])}


def _annotated(table: Dataset, column: str, description: str, location: DataLocation) -> Dataset:
    """The rows of a folder of images and maps that have a map; other tables as they are."""
    if not isinstance(table.features.get(column), datasets.Image) or table.info.builder_name != FOLDER:
        return table
    has_map = [value is not None for value in table.data.column(column).to_pylist()]
    missing = len(has_map) - sum(has_map)
    if not missing:
        return table
    if missing > MAX_UNUSED * len(has_map) and not location.allow_unused_files:
        path = table.data.column("image")[has_map.index(False)].as_py()["path"]
        raise DataError(
            f"{description}: {missing:,} of {len(has_map):,} images have no map of their name, first "
            f"{os.path.relpath(path, root_of(location.dataset_name))}. Draw them, or train without these images by "
            "--allow_unused_files."
        )
    note(f"{description}: left out: {missing:,} images without a map")
    return table.select([row for row, has in enumerate(has_map) if has])


def _hold_out(train: ImageSource, table: Any, share: float, seed: int) -> tuple[ImageSource, ImageSource]:
    """Two parts of the training images, at random: to train, and a share of them to evaluate on."""
    if not train.seekable_at_no_cost:
        raise DataError("--train_val_split needs a data set that is not streamed; name a split with --eval_split_name.")
    if not 0 < share < 1:
        raise DataError(f"--train_val_split {share}: must lie between 0 and 1.")
    num_held = math.ceil(share * len(train))  # as `train_test_split` counts
    if num_held == len(train):
        raise DataError(
            f"--train_val_split {share}: of {len(train):,} images none would be left to train on. Give a smaller share."
        )
    if isinstance(train.rows, TarRows):
        return _hold_out_rows(train, train.rows, num_held, share, seed)
    parts = table.train_test_split(test_size=share, seed=seed)
    kept, held_out = (
        replace(
            # Within the brackets: of a path, cards show the end only.
            table_source(
                parts[part], train.rows.column, f"{train.description.removesuffix(')')}, {name})", train.labels
            ),
            revision=train.revision,
            split=train.split,
            root=train.root,
            stored=train.stored,
            holds_numbers=train.holds_numbers,
            full_size_decoding=train.full_size_decoding,
        )
        for part, name in (("train", "not held out"), ("test", "held out"))
    )
    return kept, held_out


def _hold_out_rows(
    train: ImageSource, rows: TarRows, num_held: int, share: float, seed: int
) -> tuple[ImageSource, ImageSource]:
    """As `_hold_out`, of rows that are no table."""
    order = np.random.default_rng(seed).permutation(len(train))
    chosen = {"not held out": np.sort(order[num_held:]), "held out": np.sort(order[:num_held])}
    kept, held_out = (
        replace(
            train,
            rows=rows.select(index),
            row_groups=RowGroups([len(index)]),
            description=f"{train.description.removesuffix(')')}, {name})",
            fingerprint=digest(train.fingerprint, name, share, seed),
        )
        for name, index in chosen.items()
    )
    return kept, held_out


def source_of(
    data: Any,
    column: str,
    location: DataLocation,
    description: str,
    buffer_size: int,
    labels: Labels | None = None,
    share: Share = alone,
) -> ImageSource:
    """One split as `load_splits` gives it -> its images. column: of the images."""
    if isinstance(data, TarTable):
        return tar_source(data, column, location.dataset_streaming, description, labels, location.allow_unused_files)
    if isinstance(data, ParquetSplit):
        return parquet_source(data, column, location, buffer_size, description, labels, share)
    if isinstance(data, IterableDataset):
        return stream_source(data, column, description, labels, location.dataset_config_name)
    return table_source(data, column, description, labels)


def stream_source(
    stream: IterableDataset, column: str, description: str, labels: Labels | None, config_name: str | None
) -> ImageSource:
    used = [column] if labels is None else [column, labels.column]
    if stream.features is not None:
        stream = encoded(stream.select_columns(used))

    def columns(row: dict[str, Any]) -> dict[str, Any]:
        label = {} if labels is None else {"label": labels.check([row[labels.column]], None)[0]}
        return {"image": row[column], **label}

    rows = stream.map(columns, remove_columns=stream.column_names)
    return ImageSource(rows, None, False, description, digest(description, config_name, column), labels=labels)


def table_source(table: Dataset, column: str, description: str, labels: Labels | None) -> ImageSource:
    rows = TableRows(table, column, labels)
    fingerprint = _fingerprint(rows, len(table))
    if labels is not None:
        content = hashlib.sha256(rows.classes.tobytes()).hexdigest() if rows.classes is not None else ""
        fingerprint = digest(fingerprint, *fingerprint_parts(labels), content)
    return ImageSource(rows, RowGroups([len(table)]), True, description, fingerprint, labels=labels)


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
        elif isinstance(value, np.ndarray):
            value = value.tolist()
        some.append(value)
    return digest(num_rows, rows.column, some)
