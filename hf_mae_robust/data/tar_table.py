"""A split of a WebDataset in tars on the disk, by their indexes: stands where `load_dataset` gives a data set.

One process reads the indexes and tells the others, as with the footers of Parquet files.
"""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features
from tqdm.auto import tqdm

from ..errors import DataError
from ..hub.faults import public
from .kept import keep, load_kept
from .labels import WEBDATASET_KEY
from .notes import note
from .source import Share
from .stream_cache import StreamCache
from .tar_columns import IMAGE, NUM_LOOKED_AT, find_features, is_text, picture_kinds, reader_of
from .tar_files import TarFiles, open_tar
from .tar_index import TarIndex, load_index, make_index

# Of columns of texts and numbers.
VALUES = ("webdataset", "columns-1")
NUM_THREADS = 8


@dataclass(frozen=True, eq=False)
class Members:
    """Some members of tars: `(N,)` each. tar: number of the tar, int32. offset, size: in it, int64. names: strings."""

    tar: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    names: pa.Array

    def __getitem__(self, index: np.ndarray) -> "Members":
        return Members(self.tar[index], self.offset[index], self.size[index], self.names.take(pa.array(index)))

    def __len__(self) -> int:
        return len(self.tar)


@dataclass(frozen=True, eq=False)
class Indexed:
    """What one process finds out about the tars of a split, for all.

    Attributes:
        names, sizes: of the tars. members: of all of them, by sample. sample: `(members,)`, counted through all tars.
        kinds: what members hold, in the order of their numbers `kind`: `(members,)`.
        num_samples: of each tar. features: the columns. remarks: for people.
    """

    names: list[str]
    sizes: list[int]
    members: Members
    sample: np.ndarray
    kind: np.ndarray
    kinds: list[str]
    num_samples: np.ndarray
    features: Features
    remarks: list[str]

    def of_kind(self, kind: str) -> np.ndarray:
        """`(samples,)` int64: the member of each that holds this; -1 where it has none."""
        found = np.full(int(self.num_samples.sum()), -1, dtype=np.int64)
        rows = np.flatnonzero(self.kind == self.kinds.index(kind))
        found[self.sample[rows]] = rows
        return found


class TarTable:
    """The samples of a split, in the order of the tars.

    Attributes:
        features: columns that there are. urls: of the tars. indexed: what they hold. cache: where those of the Hub lie.
    """

    def __init__(self, files: TarFiles, indexed: Indexed, cache: StreamCache | None, share: Share):
        self.urls, self.indexed, self.cache, self._share = files.urls, indexed, cache, share
        self.features = indexed.features
        self._values: dict[str, list[Any]] = {}
        self._told: set[str] = set()

    def tell(self, sentence: str) -> None:
        """Print it, once."""
        if sentence not in self._told:
            self._told.add(sentence)
            note(sentence)

    def members_of(self, column: str) -> np.ndarray:
        """As `Indexed.of_kind`, of a column of images or maps."""
        indexed = self.indexed
        if column != IMAGE:
            return indexed.of_kind(column)
        found = np.full(int(indexed.num_samples.sum()), -1, dtype=np.int64)
        for kind in picture_kinds(indexed.kinds):
            found = np.maximum(found, indexed.of_kind(kind))
        return found

    def read_column(self, column: str) -> list[Any]:
        """The values of a column of texts or numbers, None where a sample has none. To be called by all processes.
        Raises DataError, with the member, where one cannot be read."""
        if column not in self._values:
            self._values[column] = self._share(partial(self._read, column))
        return self._values[column]

    def _read(self, column: str) -> list[Any]:
        indexed = self.indexed
        if column == WEBDATASET_KEY:
            first = np.unique(indexed.sample, return_index=True)[1]
            names = indexed.members.names.take(pa.array(first)).to_pylist()
            endings = [len(indexed.kinds[kind]) + 1 for kind in indexed.kind[first]]
            return [name.removeprefix("./")[:-length] for name, length in zip(names, endings)]
        kind, value_of = reader_of(column, indexed.kinds, self.features[column])
        rows = indexed.of_kind(kind)
        ends = np.cumsum(indexed.num_samples)
        places = [rows[end - number : end] for end, number in zip(ends, indexed.num_samples)]
        about = f"{column} {getattr(self.features[column], 'dtype', '')}"

        def read(tar: int) -> list[Any]:
            url = self.urls[tar]
            if (content := load_kept(url, VALUES, about)) is not None:
                return pq.read_table(pa.BufferReader(content))["value"].to_pylist()
            values = self._read_values(tar, places[tar], column, value_of)
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table({"value": values}), sink)
            keep(url, VALUES, sink.getvalue().to_pybytes(), about)
            return values

        parts = _of_each(read, len(self.urls), f"Reading column {column}")
        return [value for part in parts for value in part]

    def _read_values(self, tar: int, rows: np.ndarray, column: str, value_of: Callable[[bytes], Any]) -> list[Any]:
        members = self.indexed.members
        values: list[Any] = []
        with open_tar(self.urls[tar], self.cache) as file:
            for row in rows.tolist():
                if row < 0:
                    values.append(None)
                    continue
                content = os.pread(file.fileno(), int(members.size[row]), int(members.offset[row]))
                try:
                    values.append(value_of(content))
                except ValueError as error:
                    place = f"{members.names[row].as_py()} of {public(self.urls[tar])}"
                    raise DataError(
                        f"{place} holds no value for column '{column}' ({type(error).__name__}: {error})."
                    ) from error
        return values


def _of_each(function: Callable[[int], Any], number: int, description: str) -> list[Any]:
    """`function(i)` of each, by threads."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = pool.map(function, range(number))
        return list(tqdm(results, total=number, desc=description, unit="tar", leave=False, disable=number < 8))


def index_tars(files: TarFiles, wanted: Sequence[str | None], cache: StreamCache | None) -> Indexed:
    """The indexes of tars, together. wanted: columns that the user names. Raises DataError as `walk` of tar_index.py,
    and where no sample is in any of them."""

    def index(tar: int) -> TarIndex:
        url = files.urls[tar]
        if (kept := load_index(url)) is not None:
            return kept
        with open_tar(url, cache) as file:
            return make_index(url, file)

    indexes = _of_each(index, len(files.urls), "Looking up what the tars hold")
    num_samples = np.array([each.num_samples for each in indexes], dtype=np.int64)
    if not num_samples.sum():
        raise DataError(
            f"{public(files.urls[0])} holds no sample of a WebDataset: files such as 0001.jpg, and 0001.cls beside it. "
            f"{' '.join(_left_out(indexes)) or 'It is empty.'} Unpack other tars, and give the folder that comes of it."
        )
    before = np.repeat(np.cumsum(num_samples) - num_samples, [len(each.members) for each in indexes])
    table = pa.concat_tables([each.members for each in indexes]).unify_dictionaries().combine_chunks()
    kind = table["kind"].combine_chunks()
    kind = kind.chunk(0) if isinstance(kind, pa.ChunkedArray) else kind
    members = Members(
        np.repeat(np.arange(len(indexes), dtype=np.int32), [len(each.members) for each in indexes]),
        table["offset"].to_numpy(),
        table["size"].to_numpy(),
        pa.concat_arrays(table["name"].chunks),
    )
    found = Indexed(
        [url.rpartition("/")[2] for url in files.urls],
        [each.size for each in indexes],
        members,
        table["sample"].to_numpy() + before,
        kind.indices.to_numpy(),
        kind.dictionary.to_pylist(),
        num_samples,
        Features(),
        _remarks(files.urls, indexes),
    )
    of_kind = {each: found.of_kind(each) for each in found.kinds}
    texts = {each: _first_contents(files.urls, found, of_kind[each], cache) for each in found.kinds if is_text(each)}
    found.features.update(find_features(of_kind, texts, wanted, files.features))
    return found


def _first_contents(urls: Sequence[str], found: Indexed, rows: np.ndarray, cache: StreamCache | None) -> list[bytes]:
    contents = []
    for row in rows[rows >= 0][:NUM_LOOKED_AT].tolist():
        with open_tar(urls[int(found.members.tar[row])], cache) as file:
            file.seek(int(found.members.offset[row]), io.SEEK_SET)
            contents.append(file.read(int(found.members.size[row])))
    return contents


def _left_out(indexes: Sequence[TarIndex]) -> list[str]:
    together: dict[str, tuple[int, str]] = {}
    for each in indexes:
        for why, (number, first) in each.left_out.items():
            before, member = together.get(why, (0, first))
            together[why] = (before + number, member)
    return [f"left out: {number:,} members ({first}) {why}" for why, (number, first) in together.items()]


def _remarks(urls: Sequence[str], indexes: Sequence[TarIndex]) -> list[str]:
    remarks = _left_out(indexes)
    cut = [url for url, each in zip(urls, indexes) if not each.has_end]
    if cut:
        remarks.append(
            f"Warning: {len(cut):,} of {len(urls):,} tars have no end mark, first {Path(cut[0]).name}: they may have "
            "been cut off between two members"
        )
    return remarks


def open_tars(
    files: TarFiles,
    wanted: Sequence[str | None],
    cache: StreamCache | None,
    description: str,
    tells: bool,
    share: Share,
) -> TarTable:
    """What some tars hold. To be called by all processes. tells: print what was left out. Raises DataError."""
    indexed = share(partial(index_tars, files, wanted, cache))
    names = [url.rpartition("/")[2] for url in files.urls]
    if indexed.names != names:
        raise DataError(
            f"{description}: another process sees other tars ({len(indexed.names):,}, here {len(names):,}). All "
            "machines need the same data set."
        )
    for remark in indexed.remarks if tells else ():
        note(f"{description}: {remark}")
    return TarTable(files, indexed, cache, share)
