"""Headers of PNG, JPEG, JPEG-LS, JPEG 2000, JPEG XL and Netpbm: sizes, and bits a number."""

import re
import struct
from dataclasses import dataclass

import numpy as np

from .band_limits_vit_mae_robust import Read
from .bands_vit_mae_robust import BandError

# Type of colour -> channels.
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# The marker of a frame of JPEG-LS.
JPEG_LS = 0xF7


def png_header(read: Read) -> tuple[int, int, int, int]:
    """Width, height, bits a sample, type of colour."""
    width, height, bits, color = struct.unpack(">IIBB", read(16, 10))
    return width, height, bits, color


def jpeg_header(read: Read) -> tuple[int, int, int, int, int]:
    """Marker of the frame, bits a sample, height, width, channels."""
    place = 2
    for _ in range(1000):
        start = read(place, 4)
        if len(start) < 4 or start[0] != 0xFF:
            raise BandError("a JPEG without a frame", "truncated" if len(start) < 4 else "corrupt")
        if start[1] == 0xFF:
            place += 1
        elif 0xC0 <= start[1] <= 0xCF and start[1] not in (0xC4, 0xC8, 0xCC) or start[1] == JPEG_LS:
            bits, height, width, channels = struct.unpack(">BHHB", read(place + 4, 6))
            return start[1], bits, height, width, channels
        else:
            place += 2 + int.from_bytes(start[2:], "big")
    raise BandError("a JPEG without a frame", "corrupt")


def check_jpeg_end(data: bytes) -> None:
    """Decoders of JPEG-LS take seconds over a file that is cut. Raises BandError."""
    if not data[-64:].rstrip(b"\0").endswith(b"\xff\xd9"):
        raise BandError("JPEG-LS data without their end", "truncated")


def jpeg2000_header(read: Read) -> tuple[int, int, int, int, bool]:
    """Height, width, channels, bits a sample, whether there is a sign."""
    start = read(0, 65536).find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise BandError("a JPEG 2000 file without a code stream", "corrupt")
    right, bottom, left, top = struct.unpack(">IIII", read(start + 8, 16))
    channels = int.from_bytes(read(start + 40, 2), "big")
    depths = read(start + 42, 3 * channels)[::3]
    if len(depths) < channels or not channels:
        raise BandError("a JPEG 2000 file that ends in its header", "truncated")
    return bottom - top, right - left, channels, max(depth & 127 for depth in depths) + 1, bool(depths[0] & 128)


def webp_header(read: Read) -> tuple[int, int]:
    """Height and width."""
    head = read(0, 30)
    if head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[27:30], "little"), 1 + int.from_bytes(head[24:27], "little")
    if head[12:16] == b"VP8L":
        sides = int.from_bytes(head[21:25], "little")
        return 1 + (sides >> 14 & 0x3FFF), 1 + (sides & 0x3FFF)
    return int.from_bytes(head[28:30], "little") & 0x3FFF, int.from_bytes(head[26:28], "little") & 0x3FFF


def packed_size(data: bytes) -> tuple[int, int] | None:
    """Height and width that compressed pixels inside another file (TIFF, DICOM) give themselves; None: they give none.
    A decoder believes these. Raises BandError: a broken header."""

    def read(start: int, count: int) -> bytes:
        return data[start : start + count]

    if data.startswith(b"\xff\xd8\xff"):
        return jpeg_header(read)[2:4]
    if data.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")):
        return jpeg2000_header(read)[:2]
    if data.startswith(b"\x89PNG"):
        return png_header(read)[1::-1]
    if data.startswith(b"RIFF"):
        return webp_header(read)
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return jpegxl_header(data)
    if data.startswith(b"Lerc2 "):
        (version,) = struct.unpack("<i", data[6:10])
        height, width = struct.unpack("<ii", data[14:22] if version >= 3 else data[10:18])
        return height, width
    return None


def jpegxl_header(data: bytes) -> tuple[int, int]:
    """Height and width (ISO/IEC 18181-1, SizeHeader)."""
    place = 0
    if not data.startswith(b"\xff\x0a"):
        # Boxes: the code stream is in the first of jxlc or jxlp, which has 4 bytes before it.
        while data[place + 4 : place + 8] not in (b"jxlc", b"jxlp"):
            length = int.from_bytes(data[place : place + 4], "big")
            if length < 8 or place + length >= len(data):
                raise BandError("a JPEG XL file without a code stream", "corrupt")
            place += length
        place += 12 if data[place + 4 : place + 8] == b"jxlp" else 8
        place += 8 if data[place : place + 2] != b"\xff\x0a" else 0  # a box with a long size
    bits = int.from_bytes(data[place + 2 : place + 14], "little")

    def take(count: int) -> int:
        nonlocal bits
        value = bits & ((1 << count) - 1)
        bits >>= count
        return value

    small = take(1)

    def side() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    shares = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
    width = height * shares[ratio - 1][0] // shares[ratio - 1][1] if ratio else side()
    return height, width


@dataclass(frozen=True)
class NetpbmHeader:
    """height, width, channels; the type of the stored numbers; the largest of them; where they begin; whether it is a
    PAM; whether rows go from the bottom up."""

    height: int
    width: int
    channels: int
    dtype: np.dtype
    maximum: float
    start: int
    is_pam: bool = False
    is_flipped: bool = False


def netpbm_tokens(read: Read, count: int) -> tuple[list[bytes], int]:
    """The first words of a header without comments, and where they end."""
    head = read(0, 4096)
    words = []
    place = 0
    for found in re.finditer(rb"#[^\n]*\n?|\S+", head):
        if not found[0].startswith(b"#"):
            words.append(found[0])
            place = found.end() + 1  # one white space
        if len(words) == count:
            return words, place
    raise BandError("a Netpbm file that ends in its header", "truncated")


def netpbm_header(read: Read) -> NetpbmHeader:
    """Of P4 to P7, PF and Pf, whose numbers are binary."""
    kind = read(0, 2)
    if kind == b"P7":
        head, found, _ = read(0, 4096).partition(b"ENDHDR\n")
        if not found:
            raise BandError("a PAM file without the end of its header", "truncated")
        lines = [line.split() for line in head.splitlines()[1:] if line.strip() and not line.startswith(b"#")]
        values = {line[0]: line[-1] for line in lines}
        height, width, channels = (int(values[name]) for name in (b"HEIGHT", b"WIDTH", b"DEPTH"))
        maximum, place = float(int(values[b"MAXVAL"])), len(head) + 7
    else:
        (_, *words), place = netpbm_tokens(read, 3 if kind == b"P4" else 4)
        width, height = int(words[0]), int(words[1])
        channels = 3 if kind in (b"P6", b"PF") else 1
        maximum = 1.0 if kind == b"P4" else float(words[2])
    if kind in (b"PF", b"Pf"):
        dtype: np.dtype = np.dtype("<f4" if maximum < 0 else ">f4")
    elif not 0 < maximum < 65536:
        raise BandError(f"a Netpbm file whose largest number is {maximum:g}", "corrupt")
    else:
        dtype = np.dtype(">u2" if maximum > 255 else "u1")
    return NetpbmHeader(height, width, channels, dtype, maximum, place, kind == b"P7", kind in (b"PF", b"Pf"))
