"""What the header of an image file says of its numbers, without a package and before any pixel is decoded."""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .band_arrays_vit_mae_robust import npy_header
from .band_limits_vit_mae_robust import Read
from .band_picture_headers_vit_mae_robust import (
    JPEG_LS,
    PNG_CHANNELS,
    jpeg2000_header,
    jpeg_header,
    netpbm_header,
    netpbm_tokens,
    png_header,
)
from .band_tiff_tags_vit_mae_robust import described_channels, tiff_pages
from .bands_vit_mae_robust import BandError

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"\x93NUMPY", "NPY"),
    (b"PK\x03\x04", "NPZ"),
    (b"PK\x05\x06", "NPZ"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"SIMPLE  =", "FITS"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"MATLAB 5.0 MAT-file", "MATLAB"),
    (b"NRRD000", "NRRD"),
    (b"CDF\x01", "netCDF"),
    (b"CDF\x02", "netCDF"),
    (b"CDF\x05", "netCDF"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance"),
    (b"#?RGBE", "Radiance"),
)
_GZIP = b"\x1f\x8b"
# Of Pillow, and of 8 bits at most.
_PICTURES = (b"GIF8", b"BM", b"RIFF", b"\x00\x00\x01\x00", b"qoif")


@dataclass(frozen=True)
class BandHeader:
    """What is known of an image before it is decoded.

    Attributes:
        format: "TIFF", "PNG", "NPY", ...
        height, width, num_channels, dtype: as they are stored; None: the header was not asked, or a package is needed.
        is_8_bit_picture: Pillow shows all that the file holds: 1, 3 or 4 channels of at most 8 bits.
    """

    format: str
    height: int | None = None
    width: int | None = None
    num_channels: int | None = None
    dtype: str | None = None
    is_8_bit_picture: bool = False


@contextmanager
def reader(source: bytes | str | Path) -> Iterator[Read]:
    """A function of an offset and a number of bytes, over bytes or a local file. Raises BandError: no such file."""
    if isinstance(source, bytes):
        yield lambda start, count: source[start : start + count]
        return
    if not Path(source).is_file():
        raise BandError(f"no file {str(source)[-100:]}", "missing_file")
    with Path(source).open("rb") as file:

        def read(start: int, count: int) -> bytes:
            file.seek(start)
            return file.read(count)

        yield read


def recognise(read: Read) -> str | None:
    """The format of a file by its content; "picture": one of Pillow's that knows no more than 8 bits; None: unknown."""
    head = read(0, 32)
    for magic, name in _MAGIC:
        if head.startswith(magic):
            # The first bytes of a DICOM file are free, and some begin as a TIFF file does.
            return "DICOM" if name == "TIFF" and read(128, 4) == b"DICM" else name
    if head.startswith(_GZIP):
        # Only these are packed so. Of others nothing is known.
        inside = zlib.decompressobj(wbits=31).decompress(read(0, 65536), 352)
        inner = recognise(lambda start, count: inside[start : start + count]) if inside[:2] != _GZIP else None
        return inner if inner in ("FITS", "NIfTI", "NRRD") else None
    if head.startswith(_PICTURES) or head[4:8] == b"ftyp":
        return "picture"
    if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"1234567Ff" and head[2:3].isspace():
        return "Netpbm"
    if read(128, 4) == b"DICM":
        return "DICOM"
    if head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c") and read(344, 3) in (b"n+1", b"ni1"):
        return "NIfTI"
    if head[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") and head[4:6] in (b"n+", b"ni"):
        return "NIfTI"
    if re.match(rb"(ObjectType|NDims|Comment)\s*=", head):
        return "MetaImage"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 1:
        return "pickle"
    return None


def read_band_header(source: Any) -> BandHeader | None:
    """What the first bytes of an image say of it: microseconds for JPEG and PNG, and no package is needed.

    Args:
        source: encoded bytes, the path of a local file, a PIL image, or `{"bytes": ..., "path": ...}`.

    Returns:
        None: nothing that is recognised (arrays too), or a header that is broken: decoding says what is wrong with it.
    """
    if isinstance(source, dict):
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
    if isinstance(source, Image.Image):
        wide = source.mode.startswith(("I", "F"))
        return BandHeader(
            source.format or "PIL", source.height, source.width, len(source.getbands()), None, is_8_bit_picture=not wide
        )
    if not isinstance(source, (bytes, str, Path)) or not source or (isinstance(source, str) and "://" in source):
        return None
    try:
        with reader(source) as read:
            name = recognise(read)
            return None if name is None else _HEADERS.get(name, lambda _: BandHeader(name))(read)
    except (BandError, ValueError, struct.error, zlib.error, OSError, SyntaxError, OverflowError):
        return None


def _png_header(read: Read) -> BandHeader:
    width, height, bits, color = png_header(read)
    return BandHeader("PNG", height, width, PNG_CHANNELS.get(color), f"uint{max(8, bits)}", bits <= 8)


def _jpeg_header(read: Read) -> BandHeader:
    marker, bits, height, width, channels = jpeg_header(read)
    name = "JPEG-LS" if marker == JPEG_LS else "JPEG"
    return BandHeader(name, height, width, channels, f"uint{8 if bits <= 8 else 16}", name == "JPEG" and bits == 8)


def _jpeg2000_header(read: Read) -> BandHeader:
    height, width, channels, bits, signed = jpeg2000_header(read)
    dtype = f"{'int' if signed else 'uint'}{8 if bits <= 8 else 16 if bits <= 16 else 32}"
    return BandHeader("JPEG 2000", height, width, channels, dtype, bits <= 8 and not signed and channels <= 4)


def _npy_header(read: Read) -> BandHeader:
    shape, _, dtype, _ = npy_header(read)
    # Which axis is which is not known yet.
    return BandHeader("NPY", dtype=dtype.name, num_channels=1 if len(shape) == 2 else None)


def _netpbm_header(read: Read) -> BandHeader:
    kind = read(0, 2)
    if kind in (b"P1", b"P2", b"P3"):
        wide = kind != b"P1" and int(netpbm_tokens(read, 4)[0][3]) > 255
        return BandHeader("Netpbm", is_8_bit_picture=not wide)
    form = netpbm_header(read)
    picture = form.dtype.itemsize == 1 and form.channels in (1, 3, 4)
    return BandHeader("Netpbm", form.height, form.width, form.channels, form.dtype.name, picture)


def _tiff_header(read: Read) -> BandHeader:
    pages, _ = tiff_pages(read)
    page = pages[0]
    height, width = page.size
    channels = described_channels(page)
    picture = page.is_8_bit_picture and channels == page.samples
    return BandHeader("TIFF", height, width, channels, page.dtype, picture)


_HEADERS: dict[str, Callable[[Read], BandHeader]] = {
    "PNG": _png_header,
    "JPEG": _jpeg_header,
    "TIFF": _tiff_header,
    "JPEG 2000": _jpeg2000_header,
    "NPY": _npy_header,
    "Netpbm": _netpbm_header,
    "picture": lambda read: BandHeader("picture", is_8_bit_picture=True),
    # Pillow opens it with a plugin only, and then in 8 bits, as ever.
    "JPEG XL": lambda read: BandHeader("JPEG XL", is_8_bit_picture=".jxl" in Image.registered_extensions()),
}
