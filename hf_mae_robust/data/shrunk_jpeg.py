"""Parts of a large JPEG at the size that is wanted of them, decoded at 1/2, 1/4 or 1/8 of the full size.

A photo of 12 megapixels that is resized to 224 pixels need not be decoded at full size. At least twice the pixels that
are wanted are left to the antialiased resize, and the result is more than 40 dB (PSNR) from the one at full size
(benchmarks/large_photos.py).
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .jpeg import JpegHeader, Part, decode_rows

REDUCTIONS = (8, 4, 2)
# Pixels that are left for each one that is wanted, in both directions.
MARGIN = 2


def reduction_for(parts: Sequence[Part], targets: Sequence[tuple[int, int] | None]) -> int:
    """The largest reduction that leaves enough of each part; 1: the full size is needed.

    Args:
        targets: height and width that each part is resized to; None: nobody knows.
    """
    if None in targets:
        return 1
    room = min(
        min(part[2] / target[0], part[3] / target[1]) for part, target in zip(parts, targets) if target is not None
    )
    return next((reduction for reduction in REDUCTIONS if room >= MARGIN * reduction), 1)


def decode_shrunk(
    content: bytes,
    header: JpegHeader,
    parts: Sequence[Part],
    targets: Sequence[tuple[int, int]],
    num_channels: int,
    reduction: int,
) -> list[np.ndarray]:
    """Each part of the upright image, resized to its target: `(height, width, num_channels)` uint8. Bicubic with
    antialiasing, at the very place of the part, which may lie between the pixels of the reduced image.

    Raises ValueError where the file cannot be decoded.
    """
    stored = [header.stored(part) for part in parts]
    pixels = decode_rows(content, header, max(top + height for top, _, height, _ in stored), num_channels, reduction)
    shrunk = []
    for part, target in zip(stored, targets):
        # As `upright_size`: orientations that swap rows and columns do so with the target, too.
        size = header.stored((0, 0, *target))[2:]
        shrunk.append(header.upright(_resized(pixels, part, size, reduction)))
    return shrunk


def _resized(pixels: np.ndarray, part: Part, size: tuple[int, int], reduction: int) -> np.ndarray:
    """part: in pixels of the full size. torch's resize is faster, and takes no parts that begin within a pixel: shifted
    by half of one the result would be 30 dB away. Pillow's has the same filter."""
    top, left, height, width = (length / reduction for length in part)
    first, start = int(top), int(left)
    cut = pixels[first : math.ceil(top + height), start : math.ceil(left + width)]
    box = left - start, top - first, left - start + width, top - first + height
    image = Image.fromarray(cut[..., 0] if cut.shape[2] == 1 else cut)
    resized = np.array(image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box))
    return resized[..., None] if resized.ndim == 2 else resized
