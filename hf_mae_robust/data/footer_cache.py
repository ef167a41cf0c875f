"""Footers of Parquet files, kept on disk: a run that reads the same files does not ask for them again. What is kept is
a Parquet file without rows, pyarrow's own way to store a footer."""

import logging

import pyarrow as pa
import pyarrow.parquet as pq

from .kept import keep, load_kept

logger = logging.getLogger(__name__)

KIND = ("parquet", "footers")


def load_footer(url: str) -> pq.FileMetaData | None:
    """The footer of a file, if it is there and complete."""
    content = load_kept(url, KIND)
    if content is None:
        return None
    try:
        return pq.read_metadata(pa.BufferReader(content))
    except (OSError, pa.ArrowException) as error:
        logger.debug("The footer that was kept of %s cannot be read: %s", url, error)
        return None


def keep_footer(url: str, footer: pq.FileMetaData) -> None:
    """Where it cannot be written, the next run reads it again."""
    sink = pa.BufferOutputStream()
    footer.write_metadata_file(sink)
    keep(url, KIND, sink.getvalue().to_pybytes())
