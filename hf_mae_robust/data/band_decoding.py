"""Images of any number of bands -> normalised float tensors, in which NaN marks missing pixels."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import ImageDecodingError
from ..model.band_files_vit_mae_robust import read_band_image
from ..model.bands_vit_mae_robust import BandError, BandForm, BandImage
from .decoding import contents_of, located, text_error


def decode_band_regions(
    value: Any,
    form: BandForm,
    choose: Callable[[int, int], Sequence[tuple[int, int, int, int]]],
    row: int | None = None,
    min_side: int = 1,
    num_channels: int | None = None,
) -> list[torch.Tensor]:
    """Decode parts of an image, with all that its file holds.

    Args:
        value: encoded bytes, `{"bytes": ..., "path": ...}`, an array or a PIL image.
        form: which bands, and how their numbers become pixel values.
        choose: gets height and width, says top, left, height and width of each part.
        row: row number in the data set, for the error message. min_side: smallest height and width of an array.
        num_channels: how many bands the parts must have, of a form that does not say it; None: any number.

    Returns:
        for each part a float32 tensor `(C, height, width)`, NaN where a pixel is missing (see `BandForm.apply`).

    Raises:
        ImageDecodingError: no image, one that cannot be decoded or used with this form, or all its pixels are missing.
        Exception: a path that is a URL could not be read, other than for want of the file.
    """
    try:
        image = read_stored(value, form, min_side)
        parts = [form.apply(image, *part) for part in choose(*image.pixels.shape[-2:])]
        for part in parts:  # a generator for `any` would take longer than these looks
            if num_channels is not None and len(part) != num_channels:
                raise BandError(f"an image of {len(part)} bands, where {num_channels} are wanted", "mismatch")
            if _is_missing(part) and _is_missing(form.apply(image)):
                raise ImageDecodingError("every pixel is missing (nodata)", "empty")
    except ImageDecodingError as error:
        raise located(error, value, row) from error
    except BandError as error:
        raise located(ImageDecodingError(str(error), error.kind), value, row) from error
    return [torch.from_numpy(part) for part in parts]


def _is_missing(pixels: np.ndarray) -> bool:
    """Whether no pixel is valid. A look at the first one (NaN is unlike itself) is enough for nearly all images."""
    first = pixels.item(0)
    return first != first and bool(np.isnan(pixels).all())


def read_stored(value: Any, form: BandForm, min_side: int = 1) -> BandImage:
    """What is stored of an image. Raises ImageDecodingError and BandError, without saying which image."""
    contents = contents_of(value)
    if contents is None or (isinstance(contents, bytes) and not contents):
        raise ImageDecodingError("no image" if contents is None else "no bytes", "empty")
    if isinstance(contents, str):  # a path of a table would count from wherever the run was started
        raise text_error(contents)
    named = {"bytes": contents, "path": value.get("path")} if isinstance(value, dict) else contents
    image = read_band_image(named, channel_axis=form.channel_axis, frame=form.frame)
    height, width = image.pixels.shape[-2:]
    if not image.pixels.size:
        raise ImageDecodingError(f"{height} x {width} pixels", "empty")
    if isinstance(contents, (np.ndarray, list)) and min(height, width) < min_side:
        raise ImageDecodingError(
            f"an array of {height} x {width} pixels, a side of which is below {min_side}", "unsupported"
        )
    return image
