"""JPEG bytes -> the pixels of some of their rows, at full size or a fraction of it, by libjpeg-turbo (simplejpeg).

For the plain files that photo collections consist of; whoever calls this turns to Pillow for all others. The pixels are
the same: Pillow's wheels decode with libjpeg-turbo, too.
"""

import re
from dataclasses import dataclass, replace

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
# EXIF orientations whose stored rows, or columns, run backwards; from SWAPPED on, rows and columns are also swapped.
_ROWS_BACKWARDS, _COLUMNS_BACKWARDS, _SWAPPED = {3, 4, 6, 7}, {2, 3, 7, 8}, 5
_XMP = b"http://ns.adobe.com/xap/1.0/\0"

# Top, left, height and width, in pixels.
Part = tuple[int, int, int, int]


@dataclass(frozen=True)
class JpegHeader:
    """Sizes in pixels, as stored; `components`: 1 (grayscale) or 3 (YCbCr); `height_at`: where in the file the height
    stands; `orientation`: EXIF's, 1 to 8."""

    height: int
    width: int
    components: int
    height_at: int
    orientation: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width of the image as it is looked at."""
        return (self.width, self.height) if self.orientation >= _SWAPPED else (self.height, self.width)

    def stored(self, part: Part) -> Part:
        """Where a part of the upright image is stored."""
        top, left, height, width = part
        if self.orientation >= _SWAPPED:
            top, left, height, width = left, top, width, height
        if self.orientation in _ROWS_BACKWARDS:
            top = self.height - (top + height)
        if self.orientation in _COLUMNS_BACKWARDS:
            left = self.width - (left + width)
        return top, left, height, width

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """Stored pixels of a part, `(h, w, C)`, as they are looked at."""
        if self.orientation == 1:
            return pixels
        pixels = pixels[:: -1 if self.orientation in _ROWS_BACKWARDS else 1]
        pixels = pixels[:, :: -1 if self.orientation in _COLUMNS_BACKWARDS else 1]
        return np.ascontiguousarray(pixels.swapaxes(0, 1) if self.orientation >= _SWAPPED else pixels)


def read_header(content: bytes) -> JpegHeader | None:
    """None where the file is none of those that `decode_rows` takes: baseline, 8 bits, one scan, 1 or 3 components,
    complete and undamaged as far as its markers tell, and of no other colours."""
    if simplejpeg is None or content[:2] != START or content[-2:] != END:
        return None
    place, header, orientation, asks_xmp = 2, None, None, False
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        segment = content[place + 4 : place + 2 + length]
        if marker == SOF_BASELINE and header is None:
            header = _frame(content[place : place + 2 + length], place)
            if header is None:
                return None
        elif marker == SOS:
            is_one_scan = header is not None and content[place + 4] == header.components
            is_clean = _MARKER.search(content, place + 2 + length, len(content) - 2) is None
            if header is None or not (is_one_scan and is_clean) or (asks_xmp and orientation in (None, _UNSAID)):
                return None
            return replace(header, orientation=orientation) if orientation not in (None, _UNSAID, 1) else header
        elif marker == APP1 and segment.startswith(b"Exif\0"):
            if orientation is not None or (orientation := _orientation(segment)) is None:
                return None
        elif marker not in _PASSED_OVER or (marker == APP14 and not _is_ycbcr(segment)):
            return None
        elif marker == APP1 and segment.startswith(_XMP):
            asks_xmp |= b"Orientation" in segment  # which counts for Pillow where EXIF does not say it
        place += 2 + length
    return None


_UNSAID = 0  # an EXIF block without an orientation


def _orientation(segment: bytes) -> int | None:
    """Of an EXIF block, 1 to 8 or _UNSAID; None where Pillow's decoder has to say what to make of it."""
    exif = Image.Exif()
    try:
        exif.load(segment)
        orientation = exif.get(ExifTags.Base.Orientation, _UNSAID)
    except Exception:  # of many kinds
        return None
    return orientation if type(orientation) is int and _UNSAID <= orientation <= 8 else None


def _is_ycbcr(segment: bytes) -> bool:
    """Whether the segment APP14 leaves the image in YCbCr; Adobe's does if its last byte is 1."""
    return not segment.startswith(b"Adobe") or (len(segment) == 12 and segment[-1] == 1)


def _frame(segment: bytes, place: int) -> JpegHeader | None:
    if len(segment) < 10 or segment[4] != 8 or segment[9] not in (1, 3):
        return None
    height, width = int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[7:9], "big")
    return JpegHeader(height, width, segment[9], place + 5) if height and width else None


def decode_rows(content: bytes, header: JpegHeader, end: int, num_channels: int, reduction: int = 1) -> np.ndarray:
    """The stored rows up to `end` and some more, `(rows, width, num_channels)` uint8, for 1 or 3 channels.

    Decoders of JPEG work from the top. What is below the crop is not decoded, by telling the decoder in the header that
    the image ends there. Above the crop no library lets us skip anything.

    Args:
        reduction: 2, 4 or 8: rows and width are divided by it, rounded up; `end` still counts pixels of the full size.
            A pixel is nearly the mean of that many in both directions: the decoder leaves out the high frequencies of
            each block of 8 x 8.

    Raises ValueError where the file cannot be decoded.
    """
    # The colours of a row are interpolated from those of its neighbours.
    rows = min(header.height, -(-(end + 2) // _ROWS) * _ROWS)
    if rows < header.height:
        at = header.height_at
        content = b"".join([content[:at], rows.to_bytes(2, "big"), content[at + 2 :]])
    size = -(-rows // reduction), -(-header.width // reduction)
    # Otherwise the library would look for a fraction between this one and the full size.
    fraction = {"min_height": size[0], "min_width": size[1], "min_factor": reduction} if reduction > 1 else {}
    # Not strict: the rest of the data, and what Pillow does not mind either, are warnings.
    pixels = simplejpeg.decode_jpeg(content, "RGB" if num_channels == 3 else "GRAY", strict=False, **fraction)
    if pixels.shape[:2] != size:
        raise ValueError(f"decoded to {pixels.shape[:2]} pixels, not to {size}")
    return pixels
