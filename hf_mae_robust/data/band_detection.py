"""Whether the images of a source hold more than 8-bit pictures show: more channels, more bits, fractions, missing
pixels. By the header of each file or the type of each array, before anything is trained."""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ..errors import DataError, ImageDecodingError
from ..model.band_files_vit_mae_robust import BandHeader, read_band_header
from ..model.bands_vit_mae_robust import BandError
from .arrays import as_picture
from .decoding import contents_of, size_of
from .source import DataLocation, ImageSource, StoredBands

NUM_LOOKED_AT = 8


def find_stored_bands(source: ImageSource, location: DataLocation) -> StoredBands | None:
    """What is stored, by some of the images: rows all over a table, the first ones of what is read row by row. None
    where none could be looked at.

    Raises DataError where images that are not 8-bit pictures have different numbers of bands and nothing chooses among
    them, or where it takes a flag to read them.
    """
    found: list[tuple[BandHeader, bool, bool]] = []
    faults: list[BandError] = []
    for value in _some(source):
        try:
            header, is_8_bit = _look_at(value, source.min_side, location.channel_axis)
        except BandError as error:
            faults.append(error)
            continue  # as a bad image, counted and named when it is trained on
        except (DataError, ImageDecodingError):
            continue
        if header is not None:
            found.append((header, is_8_bit, is_8_bit or _has_picture(value)))
    if faults and not found:
        raise DataError(f"{source.description}: {faults[0]}.")
    if not found:
        return None
    is_8_bit = all(fits for _, fits, _ in found)
    numbers = Counter(header.num_channels for header, _, _ in found)
    if len(numbers) > 1 and not is_8_bit and location.bands is None:
        raise DataError(
            f"{source.description}: its images have {' or '.join(map(str, sorted(numbers)))} bands. Choose those to "
            f"train on with --bands (0-based), such as --bands {' '.join(map(str, range(min(numbers))))}."
        )
    header = next(header for header, fits, _ in found if is_8_bit or not fits)
    num_channels, has_picture = numbers.most_common(1)[0][0], all(shown for _, _, shown in found)
    return StoredBands(num_channels, header.dtype, header.format, is_8_bit, has_picture)


def _some(source: ImageSource) -> Iterable[Any]:
    if source.row_groups is None:
        return (row["image"] for row in source.rows.take(1))
    if not source.num_rows:
        return ()
    reach = source.num_rows if source.seekable_at_no_cost else source.row_groups[0]
    rows = np.unique(np.linspace(0, reach - 1, num=NUM_LOOKED_AT, dtype=int))
    # A copy keeps its row groups to itself.
    images = source.rows if source.seekable_at_no_cost else copy.copy(source.rows)
    return _readable(images, rows.tolist())


def _readable(images: Any, rows: list[int]) -> Iterator[Any]:
    for row in rows:
        try:
            yield images[row]
        except (DataError, ValueError):
            continue


def _look_at(value: Any, min_side: int, channel_axis: str | None) -> tuple[BandHeader | None, bool]:
    """The header, and whether the image is an 8-bit picture."""
    contents = contents_of(value)
    if contents is None or (isinstance(contents, bytes) and not contents):
        return None, True
    if isinstance(contents, np.ndarray | list):
        try:
            as_picture(contents, min_side)
            return read_band_header(contents, channel_axis=channel_axis), True
        except ImageDecodingError:
            return read_band_header(contents, channel_axis=channel_axis), False
    named = {"bytes": contents, "path": value.get("path")} if isinstance(value, dict) else contents
    header = read_band_header(named, channel_axis=channel_axis)
    return header, header is None or header.is_8_bit_picture


def _has_picture(value: Any) -> bool:
    """Whether Pillow opens it, be it as less than there is."""
    try:
        return isinstance(value, dict | bytes) and size_of(value) is not None
    except ImageDecodingError:
        return False
