"""Arrays and nested lists of numbers as pictures."""

from typing import Any

import numpy as np

from ..errors import ImageDecodingError

CHANNELS = (1, 3, 4)
# No picture is narrower, and a list of pixels, or of the bytes of a file, is one. A run takes its patches for it.
MIN_SIDE = 4
_MAGIC = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}


def as_picture(values: Any, min_side: int = MIN_SIDE) -> np.ndarray:
    """Whole numbers from 0 to 255 as `(H, W)` or `(H, W, C)` uint8, C being 3 or 4.

    values: `(H, W)`, `(H, W, C)` or `(C, H, W)`, C being 1, 3 or 4. Where both ends may be channels, the last one is.
    min_side: smallest height and width of a picture, such as the side of a patch.

    Raises ImageDecodingError: there are no pixels, other numbers, another layout, or a side below `min_side`.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ImageDecodingError("rows of pixels of different lengths", "unsupported") from error
    if array.size == 0:
        raise ImageDecodingError("no pixels", "empty")
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise ImageDecodingError(f"{_numbers(array)}, where whole numbers from 0 to 255 are wanted", "unsupported")
    array = array.astype(np.uint8)
    if array.ndim == 1:
        raise ImageDecodingError(_flat(array), "unsupported")
    if array.ndim == 3 and array.shape[-1] not in CHANNELS and array.shape[0] in CHANNELS:
        array = np.moveaxis(array, 0, -1)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in CHANNELS):
        raise ImageDecodingError(
            f"an array of the shape {array.shape}: pictures are (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels",
            "unsupported",
        )
    if min(array.shape[:2]) < min_side:
        raise ImageDecodingError(
            f"an array of the shape {array.shape}, which would be a picture with a side below {min_side} pixels",
            "unsupported",
        )
    return np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array)


def _numbers(array: np.ndarray) -> str:
    """Of which kind, and from where to where."""
    if array.dtype.kind not in "iuf":
        return f"an array of {array.dtype}"
    return f"an array of {array.dtype} from {np.nanmin(array):g} to {np.nanmax(array):g}"


def _flat(array: np.ndarray) -> str:
    start = array[:4].tobytes()
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if kind is not None:
        return f"the bytes of a {kind} file as a list of numbers: store them as binary, or cast the column to Image"
    return f"{array.size:,} numbers in a flat list, without height and width: store (H, W) or (H, W, C) arrays"
