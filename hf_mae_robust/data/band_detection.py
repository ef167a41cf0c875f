"""Whether the images of a source hold more than 8-bit pictures show: more channels, more bits, fractions, missing
pixels. By the header of each file or the type of each array, before anything is trained."""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, ImageDecodingError
from ..model.band_headers_vit_mae_robust import read_band_header
from ..model.bands_vit_mae_robust import BandError, BandForm
from .arrays import as_picture
from .band_decoding import read_stored
from .decoding import contents_of, size_of, text_error
from .source import DataLocation, ImageSource, Share, StoredBands, alone

NUM_LOOKED_AT = 8


def find_stored_bands(source: ImageSource, location: DataLocation) -> StoredBands | None:
    """What is stored, by some of the images: rows all over a table, the first ones of what is read row by row. None
    where none could be looked at.

    Raises DataError where images have different numbers of bands, nothing chooses among them, and Pillow does not show
    all of them as pictures; or where it takes a flag to read them.
    """
    found: list[StoredBands] = []
    names: list[str] = []
    faults: list[BandError] = []
    for value in _some(source):
        try:
            found.append(_look_at(value, source.min_side, location))
            names.append(_name_of(value, source.root))
        except BandError as error:
            faults.append(error)  # a bad image is counted and named when it is trained on
        except (DataError, ImageDecodingError):
            continue
    if faults and not found:
        raise DataError(f"{source.description}: {faults[0]}.")
    if not found:
        return None
    is_8_bit = all(stored.is_8_bit for stored in found)
    numbers = Counter(stored.num_channels for stored in found)
    deep = [stored for stored in found if not stored.is_8_bit] or found
    example = next((stored for stored in deep if not stored.fault), deep[0])
    has_picture = all(stored.has_picture for stored in found)
    if len(numbers) > 1 and not is_8_bit and location.bands is None:
        fault = (
            f"its images have {' or '.join(map(str, sorted(numbers)))} bands. Choose those to train on with --bands "
            f"(0-based), such as --bands {' '.join(map(str, range(min(numbers))))}"
        )
        if not has_picture:
            raise DataError(f"{source.description}: {fault}.")
        example = replace(example, fault=f"{fault}, or train on them in 8 bits, with --image_statistics default")
    num_channels = numbers.most_common(1)[0][0]
    mixture = ""
    if len(deep) < len(found):
        first = names[next(i for i, stored in enumerate(found) if stored is deep[0])]
        numbers_of_both = f"{len(found) - len(deep)} and {len(deep)} of the {len(found)} images looked at"
        mixture = f"8-bit pictures, and {deep[0]}{first} ({numbers_of_both})"
    return replace(example, num_channels=num_channels, is_8_bit=is_8_bit, has_picture=has_picture, mixture=mixture)


def _name_of(value: Any, root: str) -> str:
    """ " in FILE", by its path from the folder of the data; "" where an image has none."""
    path = value.get("path") if isinstance(value, dict) else None
    if not path:
        return ""
    return f" in {Path(path).relative_to(root) if root and Path(path).is_relative_to(root) else Path(path).name}"


def stored_bands_of(source: ImageSource, location: DataLocation, share: Share = alone) -> StoredBands:
    """What is stored, found out now where nobody has looked so far, as at pictures on the Hub. share: as of
    `open_splits`. Raises DataError as `find_stored_bands`, and where no image can be decoded."""
    stored = source.stored or share(partial(find_stored_bands, source, location))
    if stored is None:
        raise DataError(f"{source.description}: none of the images that were looked at can be decoded.")
    return stored


def _some(source: ImageSource) -> Iterable[Any]:
    if source.row_groups is None:
        # The next ones of a stream take no longer: they have come with the first one.
        return (row["image"] for row in source.rows.take(NUM_LOOKED_AT))
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
        except DataError:
            continue


def _look_at(value: Any, min_side: int, location: DataLocation) -> StoredBands:
    """Raises BandError and ImageDecodingError."""
    try:
        contents = contents_of(value)
    except ImageDecodingError as error:
        if error.kind == "not_an_image":  # a pointer of Git LFS: so are the others
            raise BandError(str(error), error.kind) from error
        raise
    if isinstance(contents, str):  # so are the others
        raise BandError(str(text_error(contents)))
    named = {"bytes": contents, "path": value.get("path")} if isinstance(value, dict) else contents
    is_array = isinstance(contents, np.ndarray | list)
    header = None if contents is None or is_array else read_band_header(named)
    if header is not None and header.is_8_bit_picture:
        return StoredBands(header.num_channels or 3, "uint8", header.format, is_8_bit=True, has_picture=True)
    kind, is_8_bit = header.format if header is not None else "file", False
    if is_array:
        with suppress(ValueError):  # lists of different lengths, which are refused below
            kind = f"arrays of the shape {np.shape(contents)}"
        with suppress(ImageDecodingError):
            as_picture(contents, min_side)
            is_8_bit = True
    try:
        image = read_stored(value, BandForm(channel_axis=location.channel_axis, frame=location.frame))
    except BandError as error:
        if header is None or header.num_channels is None or header.dtype is None or not _has_picture(value):
            raise
        # Pillow shows something of it, and a model of 8-bit images needs no more.
        return StoredBands(header.num_channels, header.dtype, kind, has_picture=True, fault=str(error))
    return StoredBands(len(image.pixels), image.pixels.dtype.name, kind, is_8_bit, is_8_bit or _has_picture(value))


def _has_picture(value: Any) -> bool:
    """Whether Pillow opens it, be it as less than there is."""
    try:
        return isinstance(value, dict | bytes) and size_of(value) is not None
    except ImageDecodingError:
        return False
