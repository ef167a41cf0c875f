"""The images in a TIFF file, by their tags: sizes and types, before any pixel is decoded."""

import re
import struct
from dataclasses import dataclass, field
from math import prod
from typing import Any

from .band_limits_vit_mae_robust import MAX_BANDS, MAX_PAGES, Read
from .bands_vit_mae_robust import BandError

# Sizes of the types of numbers in TIFF, and their letters for `struct`.
_TIFF_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_TIFF_TAGS = {
    254: "subfile",
    256: "width",
    257: "height",
    258: "bits",
    259: "compression",
    262: "photometric",
    270: "description",
    277: "samples",
    284: "planar",
    322: "tile_width",
    323: "tile_height",
    338: "extra",
    339: "sample_format",
    42113: "nodata",
}
# Compressions of TIFF that every Pillow has: none, CCITT, LZW, JPEG, deflate, PackBits, LZMA, ZSTD.
_PILLOW_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000)


@dataclass
class TiffPage:
    """The tags of one image of a TIFF file that say what its numbers are; each a list, as TIFF stores them."""

    tags: dict[str, Any] = field(default_factory=dict)

    def number(self, name: str, default: int) -> int:
        values = self.tags.get(name) or [default]
        return int(values[0])

    @property
    def size(self) -> tuple[int, int]:
        return self.number("height", 0), self.number("width", 0)

    @property
    def samples(self) -> int:
        return self.number("samples", 1)

    @property
    def bits(self) -> int:
        return self.number("bits", 1)

    @property
    def dtype(self) -> str:
        kind = {2: "int", 3: "float", 5: "complex", 6: "complex"}.get(self.number("sample_format", 1), "uint")
        size = next((bits for bits in (8, 16, 32, 64, 128) if bits >= self.bits), 128)
        return f"{kind}{size}"

    @property
    def is_mask(self) -> bool:
        return bool(self.number("subfile", 0) & 4) or self.number("photometric", 0) == 4

    @property
    def is_reduced(self) -> bool:
        return bool(self.number("subfile", 0) & 1)

    @property
    def num_bytes(self) -> int:
        """Of the decoded numbers, or of the tile in which they come, if that is larger."""
        height, width = self.size
        item = int(re.sub(r"\D", "", self.dtype)) // 8
        tile = self.number("tile_height", 0) * self.number("tile_width", 0)
        return max(height * width, tile) * self.samples * item

    @property
    def is_8_bit_picture(self) -> bool:
        formats = set(self.tags.get("sample_format") or [1])
        if set(self.tags.get("bits") or [1]) - {1, 2, 4, 8} or formats - {1, 4}:
            return False
        if self.number("compression", 1) not in _PILLOW_COMPRESSIONS:
            return False
        photometric, extra = self.number("photometric", 1), list(self.tags.get("extra") or [])
        if self.samples == 1:
            return photometric in (0, 1, 3)
        # Of alpha in planes Pillow knows one case only.
        planar = self.number("planar", 1) == 2
        if self.samples == 2:
            return photometric in (0, 1) and extra == [2] and not planar
        if self.samples == 3:
            return photometric in (2, 6, 8)
        return self.samples == 4 and (
            photometric == 5 or (photometric == 2 and (extra == [2] or (extra == [1] and not planar)))
        )


def tiff_pages(read: Read) -> tuple[list[TiffPage], bool]:
    """The images of a TIFF file in their order, and whether their chain leads back into itself.

    Raises BandError: no image, or a broken list of tags."""
    head = read(0, 16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    if len(head) < (16 if big else 8):
        raise BandError("a TIFF file that ends in its header", "truncated")
    (offset,) = struct.unpack(f"{order}{'Q' if big else 'I'}", head[8:16] if big else head[4:8])
    number, count_size, entry_size = ("Q", 8, 20) if big else ("I", 2, 12)
    pages: list[TiffPage] = []
    seen: set[int] = set()
    while offset and len(pages) < MAX_PAGES:
        if offset in seen:
            return pages, True
        seen.add(offset)
        start = read(offset, count_size)
        count = int.from_bytes(start, "little" if order == "<" else "big")
        table = read(offset + count_size, count * entry_size + struct.calcsize(number)) if count <= MAX_BANDS else b""
        if len(start) < count_size or len(table) < count * entry_size or not count:
            raise BandError("a TIFF file whose list of tags is missing", "truncated" if len(start) < 2 else "corrupt")
        page = TiffPage()
        for place in range(0, count * entry_size, entry_size):
            tag, kind = struct.unpack(f"{order}HH", table[place : place + 4])
            if tag in _TIFF_TAGS:
                page.tags[_TIFF_TAGS[tag]] = _tag(read, order, kind, number, table[place + 4 : place + entry_size])
        pages.append(page)
        end = table[count * entry_size :]
        if len(end) < struct.calcsize(number):
            break
        (offset,) = struct.unpack(f"{order}{number}", end)
    if not pages:
        raise BandError("a TIFF file without an image", "truncated")
    return pages, False


def _tag(read: Read, order: str, kind: int, number: str, entry: bytes) -> Any:
    size = struct.calcsize(number)
    (count,) = struct.unpack(f"{order}{number}", entry[:size])
    letter = _TIFF_TYPES.get(kind)
    if letter is None:
        return None
    count = min(count, 65536)
    length = count * struct.calcsize(f"{order}{letter}")
    data = entry[size : size + length] if length <= size else b""
    if length > size:
        data = read(struct.unpack(f"{order}{number}", entry[size:])[0], length)
    if letter == "s":
        return data.split(b"\0")[0]
    if len(data) < length:
        raise BandError("a TIFF file whose tags lie beyond its end", "truncated")
    return list(struct.unpack(f"{order}{count}{letter}", data))


def described_channels(page: TiffPage) -> int | None:
    """Microscopes and tifffile write channels as pages, of which Pillow shows the first. None: any number of them."""
    text = page.tags.get("description") or b""
    if text.startswith(b'{"shape"'):
        lengths = [int(number) for number in re.findall(rb"\d+", text.partition(b"]")[0])]
        return page.samples if prod(lengths) == prod(page.size) * page.samples else None
    named = re.search(rb"channels=(\d+)", text) if text.startswith(b"ImageJ=") else re.search(rb'SizeC="(\d+)"', text)
    return max(page.samples, int(named[1]) if named else 1)
