"""What it means that `datasets` cannot load a data set, and what to do, in a sentence."""

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError
from datasets.table import CastError
from huggingface_hub.constants import HF_HOME, HF_HUB_OFFLINE

from ..errors import fault_of_place
from ..files import lfs_pointer
from ..hub.faults import chain, describe
from .formats import unread_array
from .tree import read_tree


def sentence_of(error: Exception, name: str) -> str:
    """Of an error of any kind: loaders of many formats and the network stand behind it. name: --dataset_name."""
    while isinstance(error, DatasetGenerationError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # it says only that something went wrong
    if (sentence := _sentence_on_place(error)) is not None:
        return sentence
    if isinstance(error, CastError):
        return (
            f"one of its files has the columns {', '.join(error.table_column_names)}, and another "
            f"{', '.join(error.requested_column_names)}. Write all files with the same columns."
        )
    is_local = Path(name).exists()
    if HF_HUB_OFFLINE and isinstance(error, ConnectionError) and not is_local:
        return "no such file or folder. The Hub cannot be asked (offline mode), and its cache has no such data set."
    sentence = _sentence_on_files(error, Path(name)) if is_local else None
    if sentence is not None:
        return sentence
    advice = "Give a folder" if is_local else "Give a Hub id (gated ones need `hf auth login`), or a folder"
    return f"{describe(error)}. {advice} with images, Parquet files or a data set written by save_to_disk."


def _sentence_on_place(error: Exception) -> str | None:
    """Of a disk that is full, or of a file that cannot be read or written: what to do depends on whose it is."""
    for cause in chain(error):
        if isinstance(cause, OSError) and "Not enough disk space" in str(cause):  # as datasets says it
            return f"{str(cause).rstrip('.')}. Make room, or set HF_HOME to a folder that has it."
        if (fault := fault_of_place(cause)) is None:
            continue
        file = Path(getattr(cause, "filename", None) or HF_HOME)
        if any(file.is_relative_to(cache) for cache in (HF_HOME, datasets.config.HF_DATASETS_CACHE)):
            return f"{fault} What is read is kept there: HF_HOME sets that to a writable folder."
        return str(fault)
    return None


def _sentence_on_files(error: Exception, place: Path) -> str | None:
    """Of the files of a local data set."""
    if (sentence := lfs_pointer(place)) is not None:
        return f"{sentence}."
    if isinstance(error, pa.ArrowInvalid):
        if (damaged := _damaged_parquet(place)) is not None:
            return f"{damaged} is damaged ({describe(error)}). Copy it again, or remove it."
        if str(error).startswith("Schema at index"):
            lists = sorted(place.glob("*.[ct]sv"))
            advice = f" Give a list of image files by itself: --dataset_name {lists[0]}." if lists else ""
            return f"its files have different columns ({describe(error)}). Write all with the same ones.{advice}"
    names = read_tree(place).names if place.is_dir() else []
    is_of_tables = any(file.endswith((".parquet", ".arrow")) for file in names)
    for file in () if is_of_tables else names:
        if (sentence := unread_array(place / file)) is not None:
            return f"{file}: {sentence}, and give their folder."
    archive = next(place.glob("**/*.zip"), None) if place.is_dir() else None
    if archive is not None:
        return (
            f"{archive} cannot be read as a data set ({describe(error)}). Unpack it, and give the folder that it makes."
        )
    return None


def _damaged_parquet(place: Path) -> Path | None:
    """The first Parquet file without a footer that can be read."""
    for file in sorted(place.rglob("*.parquet")) if place.is_dir() else [place]:
        try:
            pq.read_metadata(file)
        except (OSError, pa.ArrowException):
            return file
    return None
