"""Remote files that give exactly the bytes that were asked for, or raise."""

import io
import re
import threading
from collections.abc import Callable
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from ..errors import DataError
from ..hub.faults import describe, public
from ..hub.network import RETRY_SECONDS, T, retry


def _dataset_of(url: str) -> str | None:
    """Its id, of a file on the Hub."""
    match = re.match(r"hf://datasets/([^/@]+/[^/@]+)", url)
    return match and match[1]


def local_path(url: str) -> str | None:
    """The path of a local file, given as one or as file://...; None for remote ones."""
    return LocalFileSystem._strip_protocol(url) if get_protocol(url) in ("file", "local") else None


class UnexpectedLengthError(OSError):
    """A read gave fewer or more bytes than were asked for."""


class VerifiedFile(io.RawIOBase):
    """A read-only, seekable file at any URL of fsspec. Every `read` gives exactly the bytes that the file has there:
    reads of another length (a server that ignores Range, a body cut short) count as errors, and errors are retried.

    One file may be used by several threads that agree on its position, as pyarrow's do.

    Raises DataError where the file cannot be read for `retry_seconds`, is not there, or may not be read.
    """

    def __init__(self, url: str, token: str | None = None, retry_seconds: float = RETRY_SECONDS):
        super().__init__()
        self.url, self._token, self._retry_seconds = url, token, retry_seconds
        self._lock, self._position = threading.RLock(), 0
        self._file: Any = None
        self._size: Any = None  # a number, as soon as the file has been opened
        with self._lock:
            self._retry(f"Opening {url}", self._opened)

    def _retry(self, what: str, attempt: Callable[[], T]) -> T:
        try:
            return retry(what, attempt, self._retry_seconds, _dataset_of(self.url))
        except OSError as error:  # not transient, such as a file that is gone
            raise DataError(f"{public(what)}: {describe(error)}") from error

    def _opened(self) -> Any:
        if self._file is None:
            options = {"token": self._token} if self._token and get_protocol(self.url) == "hf" else {}
            fs, path = url_to_fs(self.url, **options)
            file = fs.open(path, "rb", cache_type="none")
            size = getattr(file, "size", None)
            if not isinstance(size, int):  # such as a method of that name, or a file of fsspec's memory
                size = fs.info(path)["size"]
            if size is None:
                raise DataError(f"{public(self.url)}: the server does not tell the size, which random access needs.")
            if self._size not in (None, size):
                raise DataError(f"{public(self.url)} has changed: it had {self._size:,} bytes and now has {size:,}.")
            self._file, self._size = file, size
        return self._file

    def _fetch(self, start: int, length: int) -> bytes:
        file = self._opened()
        try:
            file.seek(start)
            data = file.read(length)
            if len(data) != length:
                raise UnexpectedLengthError(f"{length:,} bytes were asked for, {len(data):,} came")
            return data
        except ValueError as error:  # fsspec's http, of a server that ignores Range
            self._file = None
            raise UnexpectedLengthError(str(error)) from error
        except Exception:
            self._file = None  # whatever state it is in
            raise

    def read(self, size: int | None = -1) -> bytes:
        with self._lock:
            if self.closed:
                raise ValueError("I/O operation on closed file.")
            rest = max(self._size - self._position, 0)
            length = rest if size is None or size < 0 else min(size, rest)
            if length == 0:
                return b""
            start = self._position
            what = f"Reading bytes {start}-{start + length - 1} of {self.url}"
            data = self._retry(what, lambda: self._fetch(start, length))
            self._position += length
            return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with self._lock:
            position = offset + (0, self._position, self._size)[whence]
            if position < 0:
                raise ValueError(f"Cannot seek to {position}.")
            self._position = position
            return position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        file, self._file = getattr(self, "_file", None), None
        if file is not None and not self.closed:
            file.close()
        super().close()
