"""Pictures that come out nearly black or white: how numbers of more than 8 bits are read, before a run trains on it."""

import copy

import numpy as np

from ..errors import DataError, ImageDecodingError
from .decoding import stored_and_read
from .source import ImageSource

NUM_LOOKED_AT = 8
# Images of more pixels are not looked at, for their time.
MAX_PIXELS = 2**24
MAX_NUMBERS = 2**20
# Numbers of 8 bits that 99.9% of the pixels do not reach: of files with 8 bits, and of those that are scaled to them,
# where 12 bits in 16 end at 15, and 14 bits at 63.
DARK, DARK_IF_SCALED = 16, 64
WHITE = 240
# Where nearly all pixels are the smallest or the largest number, most of what is stored was cut off.
MAX_CUT_OFF = 0.9
_READ_AS = {
    "F": "numbers with a fraction are read as 0 to 1",
    "I": "whole numbers of 32 bits are read as 0 to 65,535 where one is above 255, otherwise as 0 to 255",
}


def describe_brightness(source: ImageSource, num_rows: int = NUM_LOOKED_AT, can_read_all: bool = True) -> str | None:
    """A sentence on pictures that come out nearly black or white, or cut off at both ends, with the range of the
    stored numbers; None where all is well, or nothing can be looked at. Looks at rows all over a table, and at the
    first ones of what is read row by row; at none of a stream that cannot seek. can_read_all: whether flags make a
    model of all that is stored."""
    if not source.num_rows:
        return None
    reach = source.num_rows if source.seekable_at_no_cost else (source.row_groups or (0,))[0]
    rows = np.unique(np.linspace(0, reach - 1, num=num_rows, dtype=int))
    # A copy keeps its row groups to itself.
    images = source.rows if source.seekable_at_no_cost else copy.copy(source.rows)
    modes, stored, read = set(), [], []
    for row in rows:
        try:
            mode, numbers, pixels = stored_and_read(images[int(row)], MAX_PIXELS)
        except (DataError, ImageDecodingError):
            continue  # counted and named when it is trained on
        modes.add(mode)
        # The stored numbers of a palette are not brightness.
        if mode in ("P", "1") or not numbers.size:
            return None
        stored.append((np.nanmin(numbers), np.nanmax(numbers)))
        flat = (pixels[..., :3] if pixels.ndim == 3 else pixels).ravel()
        read.append(flat[:: 1 + flat.size // MAX_NUMBERS])
    if not read:
        return None
    deep = [mode for mode in sorted(modes) if mode in ("I", "F") or mode.startswith("I;16")]
    pixels = np.concatenate(read)
    low, high = np.percentile(pixels, [0.1, 99.9])
    cut_off = np.isin(pixels, (0, 255)).mean()
    if high < (DARK_IF_SCALED if deep else DARK):
        what = f"come out nearly black (up to {high:.0f} of 255)"
    elif low >= WHITE:
        what = f"come out nearly white (from {low:.0f} of 255)"
    elif deep and cut_off > MAX_CUT_OFF:
        what = f"come out black and white ({cut_off:.0%} of the pixels are 0 or 255)"
    else:
        return None
    smallest, largest = min(lows for lows, _ in stored), max(highs for _, highs in stored)
    sentence = (
        f"Warning: {source.description}: {len(read):,} pictures looked at {what}; their files hold numbers from "
        f"{smallest:g} to {largest:g}"
    )
    if deep:
        rule = _READ_AS.get(deep[0], "whole numbers of 16 bits are read as 0 to 65,535")
        if not can_read_all:
            return (
                f"{sentence}, and {rule}. This task takes 8-bit pictures only: convert the files to 8 bits, so that "
                f"the range that matters becomes 0 to 255."
            )
        return (
            f"{sentence}, and {rule}. All of it is read without --image_statistics default, and from a checkpoint of "
            "8-bit images with --inflate_channels mean; or scale the files to 0 to 255 (8 bits)."
        )
    return f"{sentence}. Are they semantic maps, or do they need scaling to 0 to 255?"
