"""From a name to the splits of a data set, by `datasets`, at one commit of the Hub."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import datasets
import numpy as np
from datasets import ClassLabel, DatasetBuilder, DatasetDict, Features, load_dataset_builder
from datasets.naming import camelcase_to_snakecase
from huggingface_hub.constants import HF_HUB_OFFLINE
from sklearn.datasets import load_digits

from ..errors import DataError, MissingFileError, UserError
from ..hub.network import NO_ADDRESS, hub_has_no_address, retry
from ..hub.paths import check_path, may_be_path, missing
from .loading_faults import sentence_of
from .parquet import check_splits, parquet_splits
from .single_files import LISTS, builder_of, read_list
from .source import DataLocation, Share, Value, alone
from .tar_files import TarFiles, named_tars, tar_splits


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


def load_splits(location: DataLocation, share: Share = alone) -> tuple[dict[str, Any], str | None]:
    """Split name -> data set (or `ParquetSplit`, or `TarFiles`), and the commit of a data set on the Hub.

    Args:
        share: how several processes open one data set. What is streamed from the Hub is looked up by one of them. What
            is downloaded each of them loads, because machines have caches of their own, but at the same commit.

    Raises DataError: there is no such data set, or it cannot be read, or the Hub refuses or cannot be reached for
    `dataset_retry_seconds`.
    """
    name = cast(str, location.dataset_name)  # without one nobody calls this
    with _sentences(name):
        if (tars := named_tars(name)) is not None:
            return {"train": TarFiles(tars)}, None
        check_path(name, "--dataset_name")
        if any((Path(name) / marker).exists() for marker in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(name)
            return (loaded if isinstance(loaded, DatasetDict) else {"train": loaded}), None
        if Path(name).is_file() and Path(name).suffix.lower() in LISTS:
            # Streamed or not: the paths are in memory, and a file is read when its image is wanted.
            return read_list(Path(name), location.image_column_name, location.allow_unused_files), None
        if not Path(name).exists() and "://" not in name and hub_has_no_address() and not _is_in_cache(location):
            raise MissingFileError(
                f"--dataset_name {missing(name)} The Hub cannot be asked for a data set of this name: {NO_ADDRESS}, "
                "and its cache has none."
            )
        if Path(name).exists():
            builder = _builder(location)
            share(lambda: check_splits(builder, location))
            return _tables(builder, location), None

        def look_up() -> tuple[DatasetBuilder, str | None]:
            with _sentences(name):
                builder = _builder(location)
                revision = _commit(builder, location)
                check_splits(builder, location)
                return builder, revision

        def look_up_and_open() -> tuple[dict[str, Any], str | None]:
            builder, revision = look_up()
            with _sentences(name):
                return _tables(builder, location), revision

        if location.dataset_streaming:
            return share(look_up_and_open)
        found: list[DatasetBuilder] = []  # by the process that looks it up

        def commit() -> str | None:
            builder, revision = look_up()
            found.append(builder)
            return revision

        revision = share(commit)
        if not found:
            found.append(_builder(replace(location, dataset_revision=revision or location.dataset_revision)))
        return _tables(found[0], location), revision


@contextmanager
def _sentences(name: str) -> Iterator[None]:
    """Turn whatever goes wrong, of whatever kind (loaders of many formats and the network stand behind it), into
    DataError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise DataError(f"--dataset_name {name}: {sentence_of(error, name)}") from error


def _is_in_cache(location: DataLocation) -> bool:
    """Whether `datasets` may have a copy of a data set of the Hub; a stream has none."""
    name = cast(str, location.dataset_name)
    *owner, own = name.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(own)])
    return not location.dataset_streaming and folder.exists()


def _persist(location: DataLocation, attempt: Callable[[], Value], **options: Any) -> Value:
    """`attempt()`, tried again where it asks the network."""
    name = cast(str, location.dataset_name)
    is_local = Path(name).exists()
    # Where the Hub cannot be reached, a misspelt folder must not take minutes.
    seconds = 0.0 if may_be_path(name) else location.dataset_retry_seconds
    dataset = None if is_local else name.removeprefix("hf://datasets/")
    return retry(f"--dataset_name {name}", attempt, seconds, dataset, **options)


def _builder(location: DataLocation) -> DatasetBuilder:
    """What knows the files of a data set, and how to read them."""
    name = kind = cast(str, location.dataset_name)
    options: dict[str, Any] = {"name": location.dataset_config_name, "token": location.token}
    if Path(name).is_file():
        kind, options["data_files"] = builder_of(Path(name)), {"train": str(Path(name).resolve())}
    if not Path(name).exists():
        options["revision"] = location.dataset_revision
    with TemporaryDirectory() as nothing:
        # Where the Hub does not answer, `datasets` turns to its cache, if there is anything in it. For a stream
        # that would be another order of the images, and not what was asked for while the Hub can still be tried.
        if location.dataset_streaming and not HF_HUB_OFFLINE:
            options["cache_dir"] = nothing
        return _persist(location, lambda: load_dataset_builder(kind, **options))


def _tables(builder: DatasetBuilder, location: DataLocation) -> dict[str, Any]:
    """Its splits."""
    if (tars := tar_splits(builder, location)) is not None:
        return tars
    if not location.dataset_streaming:
        _persist(location, builder.download_and_prepare, counts_attempts=False)
        return builder.as_dataset()
    return parquet_splits(builder, location) or _persist(location, builder.as_streaming_dataset)


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
