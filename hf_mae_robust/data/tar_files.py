"""Which tars a name stands for, and opening them: a tar, a folder of tars, train-{000..010}.tar, or a list of tars."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import BinaryIO

from datasets import DatasetBuilder, Features

from ..errors import DataError, MissingFileError
from ..hub.faults import describe, public
from ..hub.paths import has_braces
from .remote_file import local_path
from .source import DataLocation
from .stream_cache import ADDRESS, StreamCache

ENDING = ".tar"
# Endings of compressed tars, in which no member can be reached directly.
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
LISTS = (".txt", ".lst", ".csv", ".tsv")
MAX_TARS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class TarFiles:
    """The tars of a split, of which nothing has been read. features: that a card names; None: none."""

    urls: list[str]
    features: Features | None = None


def expand_braces(pattern: str) -> list[str]:
    """`a-{008..010}.tar` -> a-008.tar, a-009.tar, a-010.tar; `{train,extra}.tar` -> both. As bash does it, without
    braces in braces. Raises DataError where there are no such braces, or too many names."""
    parts = _BRACES.split(pattern)
    choices: list[Sequence[str]] = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    total = 1
    for choice in choices:
        total *= len(choice)
    if total > MAX_TARS or any("{" in part or "}" in part for choice in choices for part in choice):
        raise DataError(
            f"--dataset_name {pattern}: braces hold a range or names, such as train-{{000..010}}.tar or "
            "{train,extra}.tar, of at most a million tars, and no further braces."
        )
    return ["".join(words) for words in product(*choices)]


def _choices(text: str) -> Sequence[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        return text.split(",") if "," in text else ["{" + text + "}"]
    first, last = int(match[1]), int(match[2])
    is_padded = any(len(end) > 1 and end.startswith("0") for end in match.groups())
    width = max(map(len, match.groups())) if is_padded else 0
    numbers = range(first, last + 1) if first <= last else range(first, last - 1, -1)
    return [] if len(numbers) > MAX_TARS else [f"{number:0{width}d}" for number in numbers]


def named_tars(name: str) -> list[str] | None:
    """The local tars that a name with braces or a list file stands for; None for other names. Raises DataError where
    they are compressed, and MissingFileError where one of them is not there."""
    path = Path(name)
    if has_braces(name):
        _check_ending(name, [name])
        tars = expand_braces(name)
        if not tars:
            raise DataError(f"--dataset_name {name}: braces stand for at most a million tars.")
    elif path.is_file() and path.suffix.lower() in LISTS:
        lines = _lines_of(path)
        if not lines or not all(line.lower().endswith((ENDING, *COMPRESSED)) for line in lines[:2]):
            return None
        _check_ending(name, lines)
        tars = [str(path.parent / line) for line in lines]
    else:
        return None
    missing = [tar for tar in tars if not Path(tar).is_file()]
    if missing:
        raise MissingFileError(
            f"--dataset_name {name}: {len(missing):,} of {len(tars):,} tars are not there, first {missing[0]}."
        )
    return tars


def _lines_of(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip() and not line.startswith("#")), "")
            if not first.strip().lower().endswith((ENDING, *COMPRESSED)):
                return []  # of images, maybe millions
            rest = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError):
        return []  # who reads lists of images says so
    return [first.strip(), *(line for line in rest if line and not line.startswith("#"))]


def _check_ending(name: str, tars: Sequence[str]) -> None:
    wrong = next((tar for tar in tars if not tar.lower().endswith(ENDING)), None)
    if wrong is None:
        return
    if "://" in wrong:
        raise DataError(
            f"--dataset_name {name} names addresses, first {wrong}. Download the tars, and name their paths."
        )
    what = "is compressed: unpack it (gzip -d)" if wrong.lower().endswith(COMPRESSED) else "is no .tar"
    raise DataError(f"--dataset_name {name}: {wrong} {what}. Images are read from plain tars, by their place.")


def tar_splits(builder: DatasetBuilder, location: DataLocation) -> dict[str, TarFiles] | None:
    """The tars of a WebDataset of which all are on the disk, or will be with --stream_cache; None for others."""
    files = {str(split): [str(url) for url in urls] for split, urls in (builder.config.data_files or {}).items()}
    urls = [url for split in files.values() for url in split]
    if builder.name != "webdataset" or not urls or not all(url.lower().endswith(ENDING) for url in urls):
        return None
    is_kept = location.dataset_streaming and location.stream_cache is not None
    if not all(local_path(url) is not None or (is_kept and ADDRESS.fullmatch(url)) for url in urls):
        return None
    return {split: TarFiles(urls, builder.info.features) for split, urls in files.items() if urls}


def open_tar(url: str, cache: StreamCache | None) -> BinaryIO:
    """A tar, unbuffered; of the Hub from the cache, where it is fetched if it is not there. Raises DataError."""

    def unbuffered(path: str) -> BinaryIO:
        return Path(path).open("rb", buffering=0)

    local = local_path(url)
    try:
        if local is not None:
            return unbuffered(local)
        file = None if cache is None else cache.open_by(url, unbuffered)
    except OSError as error:
        raise DataError(f"{public(url)} cannot be opened ({describe(error)}).") from error
    if file is None:
        raise DataError(
            f"{public(url)} does not fit into --stream_cache, and tars have to lie on the disk for epochs and exact "
            "resume. Raise --stream_cache_size, or leave out both flags to stream them from their beginning."
        )
    return file
