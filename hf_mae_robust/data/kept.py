"""What was found out about a file, kept on disk until the file changes: a run that reads the same files does not look
again.

In the assets folder of HF_HOME, where huggingface_hub lets libraries keep what they derive. What is kept begins with
its SHA-256.
"""

import hashlib
import logging
import tempfile
from pathlib import Path

from huggingface_hub import cached_assets_path

from .remote_file import local_path
from .stream_cache import ADDRESS

logger = logging.getLogger(__name__)


def _identity(url: str) -> str | None:
    """What changes whenever the file does: of a file on the Hub its address, which holds the commit; of a local one
    path, size and time of its last change. None for other files, of which nothing is kept."""
    if ADDRESS.fullmatch(url):
        return url
    local = local_path(url)
    if local is None:
        return None
    path = Path(local).resolve()
    return f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}"


def _place(url: str, kind: tuple[str, str], about: str) -> Path | None:
    try:
        identity = _identity(url)
        if identity is None:
            return None
        folder = cached_assets_path("hf_mae_robust", namespace=kind[0], subfolder=kind[1])
    except OSError as error:  # no such file, or no place to write to; whoever reads the file itself will say so
        logger.debug("Nothing is kept of %s: %s", url, error)
        return None
    return folder / hashlib.sha256(f"{identity} {about}".rstrip().encode()).hexdigest()


def load_kept(url: str, kind: tuple[str, str], about: str = "") -> bytes | None:
    """What was kept of a file, if it is there and complete.

    kind: names of a folder and of one in it. about: tells apart several things that are kept of one file.
    """
    place = _place(url, kind, about)
    try:
        content = place.read_bytes() if place is not None else b""
    except OSError as error:
        logger.debug("What was kept of %s cannot be read: %s", url, error)
        return None
    return content[32:] if content[:32] == hashlib.sha256(content[32:]).digest() else None


def keep(url: str, kind: tuple[str, str], content: bytes, about: str = "") -> None:
    """Where it cannot be written, the next run finds it out again."""
    place = _place(url, kind, about)
    if place is None:
        return
    try:
        # Renaming is atomic: others see all of it or nothing.
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            complete = Path(folder) / place.name
            complete.write_bytes(hashlib.sha256(content).digest() + content)
            complete.replace(place)
    except OSError as error:
        logger.debug("Nothing can be kept of %s: %s", url, error)
