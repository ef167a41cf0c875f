"""The record of images that cannot be decoded: counted, listed in a file, limited."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from ..errors import DataError, ImageDecodingError, UserError

FILE_NAME = "skipped_images.jsonl"

# The folders before the last name of an absolute path, in a description such as "first 9 of /home/me/photos (train)".
_ABSOLUTE = re.compile(r"(?:^|(?<= ))/(?:[^/]*/)*")

# Of a stream of unknown length, one bad image among the first few says nothing about the rest.
MIN_SEEN = 1000


@dataclass(frozen=True)
class SkippedImage:
    """One image that could not be decoded.

    Attributes:
        split: `portable_description` of its source. row: its row number there; for a stream see `ImageStream`.
        kind: one of `decoding.KINDS`. detail: its path, if it has one, counted from the folder of the data set, and the
            reason, at most 200 characters.
    """

    split: str
    row: int
    kind: str
    detail: str


def portable_description(description: str) -> str:
    """`ImageSource.description` without the folders of this machine: the list lies beside the weights."""
    return _ABSOLUTE.sub("", description)


def skipped_image(description: str, root: str, row: int, error: ImageDecodingError) -> SkippedImage:
    """The record of an image. description, root: of its source (`ImageSource`)."""
    detail = error.detail
    if error.path and "://" not in error.path:
        reason = detail.removeprefix(f"{error.path[-100:]}: ")
        detail = f"{path_within(error.path, root)[-100:]}: {reason}"[:200]
    return SkippedImage(portable_description(description), row, error.kind, detail)


@lru_cache(maxsize=16)
def _folders_of(root: str) -> tuple[Path, ...]:
    """A folder as it is named, and where it lies. To find out where takes longer than to decode a small image."""
    return (Path(root), Path(root).resolve()) if root else ()


def path_within(path: str, root: str) -> str:
    """A path counted from `root`; of an absolute one elsewhere the last part."""
    # As pathlib would tell, in a tenth of the time: it is asked for every image.
    is_absolute = os.path.isabs(path)  # noqa: PTH117
    for folder in _folders_of(root):
        start = f"{folder}{os.sep}"
        if is_absolute != os.path.isabs(start):  # noqa: PTH117
            continue
        if path.startswith(start) and os.path.normpath(path) == path:
            return path[len(start) :].replace(os.sep, "/")
        if Path(path).is_relative_to(folder):
            return Path(path).relative_to(folder).as_posix()
    return Path(path).name if is_absolute else path


class SkippedImages:
    """All images that were skipped, each once, kept in a file that a resumed run continues.

    Args:
        path: JSON lines, `{"split", "row", "kind", "detail"}`; None keeps no file.
        max_fraction: see `check`; 0 allows no bad image, 1 any number.

    Raises:
        ValueError: `max_fraction` does not lie in [0, 1]. OSError: the file is there and cannot be read.
    """

    def __init__(self, path: str | Path | None, max_fraction: float):
        if not 0 <= max_fraction <= 1:
            raise UserError(f"max_bad_images={max_fraction!r}: must lie in [0, 1], a share of the images.")
        self.path, self.max_fraction = Path(path) if path is not None else None, max_fraction
        self._records: dict[tuple[str, int], SkippedImage] = {}
        self._unwritten: list[SkippedImage] = []
        self._torn_at: int | None = None
        if self.path is not None and self.path.exists():
            self._read_back(self.path.read_bytes())

    def _read_back(self, content: bytes) -> None:
        whole, newline, torn = content.rpartition(b"\n")
        if torn:  # the process was killed while it wrote
            self._torn_at = len(whole) + len(newline)
        for line in whole.splitlines():
            try:
                record = SkippedImage(**json.loads(line))
                # Older lists have absolute paths.
                record = replace(record, split=portable_description(record.split))
                self._records[record.split, record.row] = record
            except (ValueError, TypeError):
                continue  # somebody else's line stays, and counts for nothing

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[SkippedImage]:
        return iter(self._records.values())

    def add(self, records: Iterable[SkippedImage]) -> list[SkippedImage]:
        """Take in records; those that were not known yet are returned."""
        new = []
        for record in records:
            if (record.split, record.row) not in self._records:
                self._records[record.split, record.row] = record
                new.append(record)
        self._unwritten += new
        return new

    def counts(self, split: str | None = None) -> dict[str, int]:
        """Kind -> number of images, the most frequent first; of all splits where None."""
        wanted = split and portable_description(split)
        counts = Counter(record.kind for record in self if wanted in (None, record.split))
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def write(self) -> None:
        """Append what is new to the file, on disk when this returns."""
        if self.path is None or not self._unwritten:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._torn_at is not None and self.path.exists():
            os.truncate(self.path, self._torn_at)
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in self._unwritten)
        with self.path.open("ab") as file:
            self._torn_at = file.tell()  # until all of it is there: the disk may be full
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())
        self._torn_at, self._unwritten = None, []

    def exceeds(self, split: str, num_rows: int | None, num_seen: int = 0) -> bool:
        """Whether `check` would raise."""
        num_bad = sum(self.counts(split).values())
        if num_rows is None:
            if num_seen < MIN_SEEN and self.max_fraction > 0:
                return False
            num_rows = num_seen
        return num_bad / max(num_rows, 1) > self.max_fraction

    def check(self, split: str, num_rows: int | None, num_seen: int = 0) -> None:
        """Raise DataError where more than `max_fraction` of the images of a split are bad.

        Args:
            num_rows: images in the split; None for a stream of unknown length, of which
            num_seen: images read, the bad ones included. Below 1000, only a limit of 0 applies.
        """
        if not self.exceeds(split, num_rows, num_seen):
            return
        counts = self.counts(split)
        of = f"{num_rows:,}" if num_rows is not None else f"the first {num_seen:,}"
        if self.path is not None:
            where, and_list = f"They are listed in {self.path}", " (and that list)"
        else:
            of_split = [record for record in self if record.split == portable_description(split)]
            first = sorted(of_split, key=lambda record: record.row)[:3]
            where, and_list = "The first: " + "; ".join(f"row {record.row}: {record.detail}" for record in first), ""
        raise DataError(
            f"So far {sum(counts.values()):,} of {of} images of {split} cannot be decoded ({describe(counts)}), and "
            f"--max_bad_images {self.max_fraction:g} allows a share of {self.max_fraction:.2%}. {where}. Repair or "
            f"remove them{and_list}, or raise --max_bad_images."
        )


def describe(counts: dict[str, int]) -> str:
    """Counts per kind, for people."""
    return ", ".join(f"{number:,} {kind}" for kind, number in counts.items())
