"""Single Parquet files, local or remote: opening them, and what their footers say."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from ..files import lfs_pointer
from ..hub.faults import describe, public
from ..hub.network import RETRY_SECONDS
from .footer_cache import keep_footer, load_footer
from .remote_file import VerifiedFile, local_path
from .stream_cache import StreamCache


@contextmanager
def parquet_errors(what: str) -> Iterator[None]:
    """Turn what pyarrow raises for files that are damaged or no Parquet into DataError. what: file and place."""
    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError) as error:
        path = local_path(what)
        if path is not None and (sentence := lfs_pointer(path)) is not None:
            raise DataError(f"{sentence}.") from error
        raise DataError(
            f"{public(what)} cannot be read as Parquet ({describe(error)}). If the file is damaged, fetch or write it "
            "again."
        ) from error


@dataclass(frozen=True)
class ParquetAccess:
    """How files are reached. token: of the Hub. retry_seconds: as of `retry`. cache: where files of the Hub are kept
    that were read; None: nowhere."""

    token: str | None = field(default=None, repr=False)
    retry_seconds: float = RETRY_SECONDS
    cache: StreamCache | None = None


# Without a token of its own, and with nothing kept.
DIRECT = ParquetAccess()


def open_parquet(url: str, access: ParquetAccess = DIRECT) -> pq.ParquetFile:
    """A Parquet file at a path or any URL of fsspec; remote ones from the cache, or else as `VerifiedFile`. Raises
    DataError."""
    with parquet_errors(url):
        if (path := local_path(url)) is not None:
            return pq.ParquetFile(path, pre_buffer=True)
        cached = access.cache.open(url) if access.cache is not None else None
        return pq.ParquetFile(cached or VerifiedFile(url, access.token, access.retry_seconds), pre_buffer=True)


def read_footer(url: str, access: ParquetAccess = DIRECT) -> pq.FileMetaData:
    """From the disk where it was read before. Of a file that is not in the cache, the footer alone is read. Raises
    DataError."""
    footer = load_footer(url)
    if footer is None:
        with parquet_errors(url):
            cached = access.cache.find(url) if access.cache is not None else None
            footer = pq.read_metadata(cached) if cached is not None else None
        if footer is None:
            with open_parquet(url, ParquetAccess(access.token, access.retry_seconds)) as file:
                footer = file.metadata
        keep_footer(url, footer)
    return footer
