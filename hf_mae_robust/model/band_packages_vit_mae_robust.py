"""The optional packages that read image files of many bands: imported where a file needs them, kept quiet, and their
errors turned into one kind."""

import importlib
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .bands_vit_mae_robust import BandError

_OURS = r"(tifffile|pydicom|astropy|imagecodecs|PIL)(\.|$)"
_CURRENT = threading.local()


def optional_package(name: str, what: str) -> Any:
    """A module of the extra `bands`. what: the file that needs it, with its article.

    Raises BandError: it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing_package(name.partition(".")[0], what) from error


def missing_package(name: str, what: str) -> BandError:
    return BandError(f"{what} needs the package {name}: pip install {name}")


class _Listener(logging.Filter):
    """Takes what a library logs while it reads for us: tifffile logs an error and goes on where a file is broken."""

    def filter(self, record: logging.LogRecord) -> bool:
        errors: list[str] | None = getattr(_CURRENT, "errors", None)
        if errors is None:
            return True
        if record.levelno >= logging.ERROR:
            errors.append(record.getMessage())
        return False


_LISTENER = _Listener()


@contextmanager
def quiet(*loggers: str) -> Iterator[list[str]]:
    """Without the warnings and the log of the libraries in this thread; gives the list of the errors that they log."""
    # A filter that stays: see data/decoding.py.
    if not warnings.filters or getattr(warnings.filters[0][3], "pattern", None) != _OURS:
        warnings.filterwarnings("ignore", module=_OURS)
    for name in loggers:
        logging.getLogger(name).addFilter(_LISTENER)  # once, however often it is added
    before, _CURRENT.errors = getattr(_CURRENT, "errors", None), []
    try:
        yield _CURRENT.errors
    finally:
        _CURRENT.errors = before


def as_band_error(error: Exception, what: str) -> BandError:
    """Broken files make the libraries raise anything; the text tells the faults apart. what: the kind of file."""
    if isinstance(error, BandError):
        return error
    # The rest of a long text is addresses in memory and dumps of headers.
    text = str(error).strip().split("\n")[0][:160]
    reason = f"{what}: {type(error).__name__}{f': {text}' if text else ''}"
    text = text.lower()
    if "imagecodecs" in text and ("require" in text or "no module" in text):
        return missing_package("imagecodecs", f"this {what} file")
    if isinstance(error, MemoryError) or "decompression bomb" in text:
        return BandError(reason, "bomb")
    if isinstance(error, EOFError) or any(
        words in text
        for words in (
            "truncated",
            "unexpected end",
            "end of file",
            "not enough data",
            "less than expected",
            "too small",
            "bytes, got",
        )
    ):
        return BandError(reason, "truncated")
    if isinstance(error, NotImplementedError) or any(
        words in text for words in ("not supported", "unsupported", "not available", "not implemented", "not a known")
    ):
        return BandError(reason, "unsupported")
    return BandError(reason, "corrupt")
