"""Images in the tars of a WebDataset, at random access: each is read by its place in its tar."""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from tarfile import BLOCKSIZE, HeaderError, TarInfo
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError
from ..hub.faults import describe, public
from .folders import MAX_UNUSED
from .labels import Labels
from .row_groups import RowGroups
from .source import ImageSource, digest, fingerprint_parts
from .stream_cache import StreamCache
from .tar_files import open_tar
from .tar_table import Members, TarTable

# Images that are next to one another in a tar and come together in the order of streamed data, as those of a Parquet
# row group do.
GROUP = 100
MAX_OPEN = 64
# What the operating system is asked to fetch at once, at most.
MAX_AHEAD = 2**26
# Groups that are not asked for again.
MAX_HELD_AHEAD = 128


def _size_by_header(block: bytes) -> int | None:
    """The size of a member, None where the block is not a header. A tar that was written again often has its former
    size, because tars are filled up to 10 KiB."""
    try:
        return TarInfo.frombuf(block, "utf-8", "surrogateescape").size
    except HeaderError:
        return None


class TarReader:
    """The bytes of members. urls, sizes: of the tars. cache: where those of the Hub lie."""

    def __init__(self, urls: Sequence[str], sizes: Sequence[int], cache: StreamCache | None):
        self.urls, self.sizes, self.cache = list(urls), list(sizes), cache
        self.files: OrderedDict[int, BinaryIO] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes open files of their own. Forked ones share them, which `pread` allows.
        return {**self.__dict__, "files": OrderedDict()}

    def _file(self, tar: int) -> BinaryIO:
        """Raises DataError where it cannot be opened, or has another size than its index says."""
        if tar not in self.files:
            file = open_tar(self.urls[tar], self.cache)
            size = os.fstat(file.fileno()).st_size
            if size != self.sizes[tar]:
                file.close()
                raise DataError(
                    f"{public(self.urls[tar])} has {size:,} bytes, and had {self.sizes[tar]:,} when the data set was "
                    "opened. All machines need the same tars, and nobody may write them during a run: start again."
                )
            self.files[tar] = file
        self.files.move_to_end(tar)
        while len(self.files) > MAX_OPEN:
            self.files.popitem(last=False)[1].close()
        return self.files[tar]

    def read(self, tar: int, offset: int, size: int) -> bytes:
        """Raises DataError where they cannot be read, or no header of a member of this size stands before them."""
        try:
            content = os.pread(self._file(tar).fileno(), BLOCKSIZE + size, offset - BLOCKSIZE)
        except OSError as error:
            raise DataError(f"{public(self.urls[tar])} cannot be read ({describe(error)}).") from error
        if len(content) != BLOCKSIZE + size or _size_by_header(content[:BLOCKSIZE]) != size:
            raise DataError(
                f"{public(self.urls[tar])} does not hold the member at byte {offset:,} that it held when the data set "
                "was opened. Nobody may write it during a run: start again."
            )
        return content[BLOCKSIZE:]

    def will_need(self, tar: int, offset: int, size: int) -> None:
        """Let the operating system fetch a part of a tar at once, where it can be told."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file(tar).fileno(), offset, min(size, MAX_AHEAD), os.POSIX_FADV_WILLNEED)


class TarRows:
    """Random access to the images of tars, and to labels: `(N,)` images, with `classes` (int64) or, of joint labels,
    `maps` of as many.

    groups: the images that are read ahead together; None: each is read when it is wanted.
    """

    def __init__(
        self,
        reader: TarReader,
        images: Members,
        labels: Labels | None = None,
        classes: np.ndarray | None = None,
        maps: Members | None = None,
        groups: RowGroups | None = None,
    ):
        self.reader, self.images, self.labels = reader, images, labels
        self.classes, self.maps, self.groups = classes, maps, groups
        self._ahead: OrderedDict[int, None] = OrderedDict()

    def select(self, index: np.ndarray) -> "TarRows":
        """Some of the rows, `(N,)`, with random access."""
        classes = None if self.classes is None else self.classes[index]
        maps = None if self.maps is None else self.maps[index]
        return TarRows(self.reader, self.images[index], self.labels, classes, maps)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Raises DataError where the tar cannot be read."""
        if self.groups is not None:
            self._read_ahead(row, self.groups)
        return self._value(self.images, row)

    def _value(self, members: Members, row: int) -> dict[str, Any]:
        tar, name = int(members.tar[row]), members.names[row].as_py()
        content = self.reader.read(tar, int(members.offset[row]), int(members.size[row]))
        return {"bytes": content, "path": f"{self.reader.urls[tar].rpartition('/')[2]}/{name.removeprefix('./')}"}

    def _read_ahead(self, row: int, groups: RowGroups) -> None:
        group, _ = groups.find(row)
        if group in self._ahead:
            return
        first, last = int(groups.starts_of(group)), int(groups.ends[group]) - 1
        start, end = int(self.images.offset[first]), int(self.images.offset[last] + self.images.size[last])
        if end > start:  # links may lead backwards
            self.reader.will_need(int(self.images.tar[row]), start, end - start)
        self._ahead[group] = None
        while len(self._ahead) > MAX_HELD_AHEAD:
            self._ahead.popitem(last=False)

    def label(self, row: int) -> Any:
        if self.classes is not None:
            return self.classes[row]
        labels: Any = self.labels  # there are some where this is called
        return labels.check([None if self.maps is None else self._value(self.maps, row)], row)[0]


def tar_source(
    table: TarTable,
    column: str,
    streams: bool,
    description: str,
    labels: Labels | None,
    allows_unused: bool,
) -> ImageSource:
    """The images of a split. streams: in the order of data that are read row group by row group, for tars on a network
    or on spinning disks; otherwise any image is as near as the next one.

    Raises DataError where more than 1% of the samples have no image, or no map where the labels are maps, and
    `allows_unused` is False; or a label is missing.
    """
    indexed, found = table.indexed, table.members_of(column)
    is_used, missing = found >= 0, {f"have no image (column '{column}')": found < 0}
    is_joint = labels is not None and labels.is_joint
    of_maps = table.members_of(labels.column) if labels is not None and is_joint else None
    if of_maps is not None and labels is not None:
        missing[f"have no map (column '{labels.column}')"] = is_used & (of_maps < 0)
        is_used = is_used & (of_maps >= 0)
    for why, without in missing.items():
        if number := int(without.sum()):
            name = indexed.members.names[int(np.flatnonzero(indexed.sample == int(np.argmax(without)))[0])].as_py()
            sentence = f"{number:,} of {len(found):,} samples {why}, first that of {name}"
            if number > MAX_UNUSED * len(found) and not allows_unused:
                raise DataError(f"{description}: {sentence}. --allow_unused_files trains without them.")
            table.tell(f"{description}: left out: {sentence}")
    samples = np.flatnonzero(is_used)
    images = indexed.members[found[samples]]
    maps = None if of_maps is None else indexed.members[of_maps[samples]]
    classes = None
    if labels is not None and not is_joint:
        values = table.read_column(labels.column)
        classes = labels.check([values[sample] for sample in samples.tolist()])
    sizes = [len(images)]
    if streams:
        counts = np.bincount(images.tar, minlength=len(table.urls)).tolist()
        sizes = [min(GROUP, count - first) for count in counts for first in range(0, count, GROUP)]
    groups = RowGroups(sizes)
    reader = TarReader(table.urls, indexed.sizes, table.cache)
    places = hashlib.sha256()
    for part in (images, *([] if maps is None else [maps])):
        for numbers in (part.tar, part.offset, part.size):
            places.update(np.ascontiguousarray(numbers).tobytes())
    parts: list[Any] = [column, indexed.names, indexed.sizes, places.hexdigest(), *fingerprint_parts(labels)]
    if classes is not None:
        parts.append(hashlib.sha256(classes.tobytes()).hexdigest())
    return ImageSource(
        rows=TarRows(reader, images, labels, classes, maps, groups if streams else None),
        row_groups=groups,
        seekable_at_no_cost=not streams,
        description=description,
        fingerprint=digest(*parts),
        labels=labels,
    )
