"""JPEG bytes -> the pixels of some of their rows, by libjpeg-turbo (simplejpeg).

For the plain files that photo collections consist of; whoever calls this turns to Pillow for all others. The pixels are
the same: Pillow's wheels decode with libjpeg-turbo, too.
"""

import re
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

try:
    import simplejpeg
except ImportError:  # no wheel for this platform; Pillow decodes everything then
    simplejpeg = None

START, END = b"\xff\xd8", b"\xff\xd9"
SOF_BASELINE, SOS, APP1, APP14 = 0xC0, 0xDA, 0xE1, 0xEE
# Segments that may stand before the pixels of a plain file: tables, restart intervals, application data, comments.
_PASSED_OVER = {0xDB, 0xC4, 0xDD, 0xFE, *range(0xE0, 0xF0)}
# Markers amid the compressed data, but for those that restart it. They end the decoding with an error, which cannot be
# told from a warning afterwards, and the rows that follow are left as they were in memory.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# Rows that are decoded together where colours have half the resolution.
_ROWS = 16


@dataclass(frozen=True)
class JpegHeader:
    """Sizes in pixels; `components`: 1 (grayscale) or 3 (YCbCr); `height_at`: where in the file the height stands."""

    height: int
    width: int
    components: int
    height_at: int


def read_header(content: bytes) -> JpegHeader | None:
    """None where the file is none of those that `decode_rows` takes: baseline, 8 bits, one scan, 1 or 3 components,
    complete and undamaged as far as its markers tell, not to be rotated, and of no other colours."""
    if simplejpeg is None or content[:2] != START or content[-2:] != END:
        return None
    place, header = 2, None
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == SOF_BASELINE and header is None:
            header = _frame(content[place : place + 2 + length], place)
            if header is None:
                return None
        elif marker == SOS:
            is_one_scan = header is not None and content[place + 4] == header.components
            is_clean = _MARKER.search(content, place + 2 + length, len(content) - 2) is None
            return header if is_one_scan and is_clean else None
        elif marker not in _PASSED_OVER or not _is_plain(marker, content[place + 4 : place + 2 + length]):
            return None
        place += 2 + length
    return None


def _is_plain(marker: int, segment: bytes) -> bool:
    """Whether a segment leaves the image upright and in YCbCr. EXIF's may not; Adobe's does if its last byte is 1."""
    if marker == APP1 and segment.startswith(b"Exif\0"):
        exif = Image.Exif()
        try:
            exif.load(segment)
            return exif.get(ExifTags.Base.Orientation, 1) == 1
        except Exception:  # of many kinds; Pillow's decoder says what to make of the image
            return False
    return marker != APP14 or not segment.startswith(b"Adobe") or (len(segment) == 12 and segment[-1] == 1)


def _frame(segment: bytes, place: int) -> JpegHeader | None:
    if len(segment) < 10 or segment[4] != 8 or segment[9] not in (1, 3):
        return None
    height, width = int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[7:9], "big")
    return JpegHeader(height, width, segment[9], place + 5) if height and width else None


def decode_rows(content: bytes, header: JpegHeader, end: int, num_channels: int) -> np.ndarray:
    """The rows up to `end` and some more, `(rows, width, num_channels)` uint8, for 1 or 3 channels.

    Decoders of JPEG work from the top. What is below the crop is not decoded, by telling the decoder in the header that
    the image ends there. Above the crop no library lets us skip anything.

    Raises ValueError where the file cannot be decoded.
    """
    # The colours of a row are interpolated from those of its neighbours.
    rows = min(header.height, -(-(end + 2) // _ROWS) * _ROWS)
    if rows < header.height:
        at = header.height_at
        content = b"".join([content[:at], rows.to_bytes(2, "big"), content[at + 2 :]])
    # Not strict: the rest of the data, and what Pillow does not mind either, are warnings.
    return simplejpeg.decode_jpeg(content, "RGB" if num_channels == 3 else "GRAY", strict=False)
