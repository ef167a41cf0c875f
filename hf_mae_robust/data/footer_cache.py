"""Footers of Parquet files, kept on disk: a run that reads the same files does not ask for them again.

In the assets folder of HF_HOME, where huggingface_hub lets libraries keep what they derive. A file holds a SHA-256 and
a Parquet file without rows, pyarrow's own way to store a footer.
"""

import hashlib
import logging
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import cached_assets_path

from .remote_file import local_path
from .stream_cache import ADDRESS

logger = logging.getLogger(__name__)


def _identity(url: str) -> str | None:
    """What changes whenever the file does: of a file on the Hub its address, which holds the commit; of a local one
    path, size and time of its last change. None for other files, which are not kept."""
    if ADDRESS.fullmatch(url):
        return url
    local = local_path(url)
    if local is None:
        return None
    path = Path(local).resolve()
    return f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}"


def _place(url: str) -> Path | None:
    try:
        identity = _identity(url)
        if identity is None:
            return None
        folder = cached_assets_path("hf_mae_robust", namespace="parquet", subfolder="footers")
    except OSError as error:  # no such file, or no place to write to; whoever reads the file itself will say so
        logger.debug("No footer is kept of %s: %s", url, error)
        return None
    return folder / hashlib.sha256(identity.encode()).hexdigest()


def load_footer(url: str) -> pq.FileMetaData | None:
    """The footer of a file, if it is there and complete."""
    place = _place(url)
    try:
        content = place.read_bytes() if place is not None else b""
        if content[:32] != hashlib.sha256(content[32:]).digest():
            return None
        return pq.read_metadata(pa.BufferReader(content[32:]))
    except (OSError, pa.ArrowException) as error:
        logger.debug("The footer that was kept of %s cannot be read: %s", url, error)
        return None


def keep_footer(url: str, footer: pq.FileMetaData) -> None:
    """Where it cannot be written, the next run reads it again."""
    place = _place(url)
    if place is None:
        return
    sink = pa.BufferOutputStream()
    footer.write_metadata_file(sink)
    content = sink.getvalue().to_pybytes()
    try:
        # Renaming is atomic: others see all of it or nothing.
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            complete = Path(folder) / place.name
            complete.write_bytes(hashlib.sha256(content).digest() + content)
            complete.replace(place)
    except OSError as error:
        logger.debug("The footer of %s cannot be kept: %s", url, error)
