"""How much of an image file is decoded at most, refused by its header; and how parts of a file are read."""

import zlib
from collections.abc import Callable, Iterator
from math import prod

from .bands_vit_mae_robust import BandError

# Gives so many bytes from a place on; fewer at the end.
Read = Callable[[int, int], bytes]

# Of the decoded numbers of one image: 16,384 x 16,384 pixels of 8 bits.
MAX_BYTES = 2**28
MAX_BANDS = 4096
MAX_PAGES = 10_000
# A file without compression, with overviews.
MAX_FILE_BYTES = MAX_BYTES * 5 // 4


def check_size(shape: tuple[int, ...], itemsize: int, what: str = "an image", bands: int | None = None) -> None:
    """Raises BandError: no pixels, or more than are decoded. bands: how many of them are in the shape."""
    if not shape or min(shape) < 0:
        raise BandError(f"{what} of the shape {shape}", "corrupt")
    if prod(shape) == 0:
        raise BandError(f"{what} without pixels, of the shape {shape}", "empty")
    if prod(shape) * itemsize > MAX_BYTES:
        shown = " x ".join(f"{length:,}" for length in shape)
        raise BandError(f"{what} of {shown} numbers, more than {MAX_BYTES:,} bytes: cut it into tiles", "bomb")
    if bands is not None and bands > MAX_BANDS:
        raise BandError(f"{what} of {bands:,} bands, more than {MAX_BANDS:,}", "bomb")


def unpacked(data: bytes, wbits: int) -> Iterator[bytes]:
    """The parts of zlib's data. Raises BandError: they end early, or are more than the largest file."""
    unpacker, total = zlib.decompressobj(wbits=wbits), 0
    for start in range(0, len(data), 65536):
        packed = data[start : start + 65536]
        while packed and not unpacker.eof:
            part = unpacker.decompress(packed, 2**20)
            packed = unpacker.unconsumed_tail
            total += len(part)
            if total > MAX_FILE_BYTES:
                raise BandError(f"a file that unpacks to more than {MAX_FILE_BYTES:,} bytes", "bomb")
            yield part
    if not unpacker.eof:
        raise BandError("packed data that end early", "truncated")
