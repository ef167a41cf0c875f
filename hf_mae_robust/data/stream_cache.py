"""--stream_cache: Parquet files and tars of the Hub that were read once stay on the machine's disk.

The store is huggingface_hub's: its layout, its locks (processes that want the same file share one download), and its
way to write (a file appears when all of it is there). Here it is decided which files are fetched and which ones make
room for others, and what was fetched is compared with the checksum that the Hub gives.
"""

import errno
import hashlib
import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock
from huggingface_hub import (
    CachedRepoInfo,
    DeleteCacheStrategy,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    scan_cache_dir,
    try_to_load_from_cache,
)
from huggingface_hub.utils import disable_progress_bars

from ..errors import DataError
from ..hub.faults import describe, public
from ..hub.network import RETRY_SECONDS, T, retry

logger = logging.getLogger(__name__)

# Files on the Hub at one commit, as `datasets` writes their addresses.
ADDRESS = re.compile(r"hf://datasets/([^@]+)@([0-9a-f]{40})/(.+)")
# With room for this many more files, processes fetch side by side; with less, one at a time, so that they do not fill
# the same room together.
ROOM_FOR_ALL = 64
# A partial download that nobody has written to for so long is one that was killed.
ABANDONED_SECONDS = 3600


def parse_size(text: str) -> int:
    """ "200GB", "1.5TB", "64GiB" -> bytes. Raises ValueError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGTP])(I?)B\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise ValueError(f"'{text}' is not a size: write a number above 0 and a unit, such as 200GB or 1.5TiB.")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** ("KMGTP".index(match[2].upper()) + 1))


@dataclass(frozen=True)
class StreamCache:
    """Files of the Hub in a folder.

    A file is fetched completely when it is opened for the first time. Where it does not fit into `max_bytes`, files of
    other data sets and other commits make room, the least recently used ones first. Files of the data set that is
    being read stay: every epoch needs all of them, so the one to go would be fetched again before long, for one of its
    row groups. What does not fit beside them is read from the Hub, row group by row group.

    Args:
        folder: of the cache; made where it is missing. max_bytes: None: as much as the disk holds.
        token, retry_seconds: as of `DataLocation`.
    """

    folder: Path
    max_bytes: int | None = None
    token: str | None = field(default=None, repr=False)
    retry_seconds: float = RETRY_SECONDS
    _too_large: set[str] = field(default_factory=set, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises DataError where the folder cannot be made or written to."""
        try:
            self._notes.mkdir(parents=True, exist_ok=True)
            (self._notes / f"writable-{os.getpid()}").touch()
            (self._notes / f"writable-{os.getpid()}").unlink(missing_ok=True)
        except OSError as error:
            raise DataError(
                f"--stream_cache {self.folder}: cannot be written to ({describe(error)}). Choose another folder."
            ) from error

    @property
    def _notes(self) -> Path:
        return self.folder / ".locks" / "hf_mae_robust"  # huggingface_hub leaves this place out when it looks for files

    def find(self, url: str) -> pa.NativeFile | None:
        """A file that is there and was verified, opened; None otherwise. Nothing is asked of the network."""
        return self._find(url, pa.OSFile)

    def _find(self, url: str, open_path: Callable[[str], T]) -> T | None:
        match = ADDRESS.fullmatch(url)
        if match is None:
            return None
        repo, commit, name = match.groups()
        path = try_to_load_from_cache(repo, name, cache_dir=self.folder, revision=commit, repo_type="dataset")
        if not isinstance(path, str) or not self._is_verified(Path(path)):
            return None
        try:
            blob = Path(path).resolve()
            file, status = open_path(path), blob.stat()
            # Disks are often mounted such that reading does not count as an access.
            with suppress(PermissionError):  # another user fetched it
                os.utime(blob, ns=(time.time_ns(), status.st_mtime_ns))
        except FileNotFoundError:  # made room for another one in this moment
            return None
        return file

    def open(self, url: str) -> pa.NativeFile | None:
        """A file, fetched if it is not there; None for files that are not on the Hub and those that do not fit.

        Raises DataError where the Hub refuses, cannot be reached for `retry_seconds`, or gives another content than it
        says.
        """
        return self.open_by(url, pa.OSFile)

    def open_by(self, url: str, open_path: Callable[[str], T]) -> T | None:
        """As `open`, by a function that opens a path."""
        match = ADDRESS.fullmatch(url)
        if match is None:
            return None
        for _ in range(2):
            if (file := self._find(url, open_path)) is not None:
                return file
            if url in self._too_large:
                return None
            try:
                is_there = self._fetch(url, *match.groups())
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise DataError(f"Fetching {public(url)} into {self.folder}: {describe(error)}") from error
                logger.warning("--stream_cache %s: the disk is full; no further file is kept.", self.folder)
                is_there = False
            if not is_there:
                self._too_large.add(url)
                return None
        file = self._find(url, open_path)
        if file is None:
            raise DataError(f"{public(url)}: its copy in --stream_cache {self.folder} disappears again and again.")
        return file

    # ---- fetching ----

    def _fetch(self, url: str, repo: str, commit: str, name: str) -> bool:
        """Whether there was room."""
        disable_progress_bars()

        def size() -> int:
            address = hf_hub_url(repo, name, repo_type="dataset", revision=commit)
            return get_hf_file_metadata(address, token=self.token or None).size or 0

        def download(again: bool = False) -> Path:
            return Path(
                hf_hub_download(
                    repo,
                    name,
                    repo_type="dataset",
                    revision=commit,
                    cache_dir=self.folder,
                    token=self.token or None,
                    force_download=again,
                )
            )

        def persist(attempt: Callable[[], T], counts_attempts: bool = True) -> T:
            return retry(f"Fetching {url}", attempt, self.retry_seconds, repo, counts_attempts=counts_attempts)

        def fetch() -> None:
            path = persist(download, counts_attempts=False)
            if not self._is_verified(path) and not self._verify(path):
                logger.warning("%s: what came differs from the Hub's checksum. Fetching it again.", public(url))
                path = persist(lambda: download(again=True), counts_attempts=False)
                if not self._verify(path):
                    self._remove({path.resolve(): [path]})
                    raise DataError(f"{public(url)} differs from the checksum that the Hub gives, twice. Try later.")

        if self.max_bytes is None:
            fetch()
            return True
        needed = persist(size)
        lock = FileLock(self._notes / "room.lock")
        with lock:
            if not self._make_room(needed, repo, commit):
                return False
            if not self._has_room(ROOM_FOR_ALL * needed):
                fetch()
                return True
        fetch()
        return True

    def _verify(self, path: Path) -> bool:
        """Compare a file with the name of its blob, which is the checksum of the Hub (SHA-256 of large files, git's
        SHA-1 of others), and take note that it is right. huggingface_hub itself compares the size."""
        blob = path.resolve()
        named_after = path.readlink().name if path.is_symlink() else ""
        digest = {64: hashlib.sha256(), 40: hashlib.sha1(b"blob %d\0" % blob.stat().st_size)}.get(len(named_after))
        if digest is not None:
            with blob.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != named_after:
                return False
        self._note(path).write_text(self._state(blob))
        return True

    def _note(self, path: Path) -> Path:
        return self._notes / hashlib.sha256(str(path.resolve()).encode()).hexdigest()

    @staticmethod
    def _state(blob: Path) -> str:
        return f"{blob.stat().st_size} {blob.stat().st_mtime_ns}"

    def _is_verified(self, path: Path) -> bool:
        try:
            return self._note(path).read_text() == self._state(path.resolve())
        except FileNotFoundError:
            return False

    # ---- room ----

    def _data_sets(self) -> list[CachedRepoInfo]:
        """Not the models, which lie in the same folder where that is huggingface_hub's own cache."""
        return [cached for cached in scan_cache_dir(self.folder).repos if cached.repo_type == "dataset"]

    def _partial(self) -> list[Path]:
        return list(self.folder.glob("datasets--*/blobs/*.incomplete"))

    def _has_room(self, num_bytes: int) -> bool:
        partial = sum(path.stat().st_size for path in self._partial() if path.exists())
        complete = sum(cached.size_on_disk for cached in self._data_sets())
        return complete + partial + num_bytes <= (self.max_bytes or 0)

    def _make_room(self, num_bytes: int, repo: str, commit: str) -> bool:
        """Remove files, the least recently used first, until `num_bytes` more fit; none of the data set at `commit`."""
        for path in self._partial():
            if path.exists() and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        if num_bytes > (self.max_bytes or 0):
            return False
        used: dict[Path, float] = {}
        links, kept = defaultdict(list), set()
        for cached in self._data_sets():
            for revision in cached.revisions:
                for file in revision.files:
                    used[file.blob_path] = file.blob_last_accessed
                    links[file.blob_path].append(file.file_path)
                    if cached.repo_id == repo and revision.commit_hash == commit:
                        kept.add(file.blob_path)
        for blob in sorted(used.keys() - kept, key=lambda blob: used[blob]):
            if self._has_room(num_bytes):
                return True
            self._remove({blob: links[blob]})
        return self._has_room(num_bytes)

    def _remove(self, blobs: dict[Path, list[Path]]) -> None:
        """blobs: with the links to each."""
        for path in (path for links in blobs.values() for path in links):
            path.unlink(missing_ok=True)
        parts: dict[str, Any] = {name: frozenset() for name in ("refs", "repos", "snapshots")}
        if "cache_dir" in {each.name for each in fields(DeleteCacheStrategy)}:  # huggingface_hub 2; what blobs share
            parts["cache_dir"] = self.folder
        DeleteCacheStrategy(expected_freed_size=0, blobs=frozenset(blobs), **parts).execute()
