"""Encoded image -> uint8 tensor."""

import io
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.transforms.v2.functional import pil_to_tensor

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageDecodingError(ValueError):
    """An image of the data set cannot be decoded. The message says which row and why."""


def _open(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            value = value["bytes"]
        elif value.get("path"):
            with fsspec.open(value["path"], "rb") as file:
                value = file.read()
    if isinstance(value, bytes) and value:
        return Image.open(io.BytesIO(value))
    if isinstance(value, (np.ndarray, list)):
        return Image.fromarray(np.asarray(value, dtype=np.uint8))
    raise ValueError("the image is empty" if not value or isinstance(value, dict) else f"unknown type {type(value)}")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Pillow clips 16-bit and float images to 255 instead of scaling them; scale them."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "F":
        pixels = np.nan_to_num(np.asarray(image))
        return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    return image


def decode_image(value: Any, num_channels: int = 3, row: int | None = None) -> torch.Tensor:
    """Decode one image.

    EXIF orientation is applied; CMYK, palette and grayscale images are converted to the channels asked for; an alpha
    channel is dropped (unless 4 channels are asked for); of an animation the first frame counts; 16-bit images keep
    their upper 8 bits, float images are read as [0, 1].

    Args:
        value: encoded bytes, `{"bytes": ..., "path": ...}` as `datasets.Image(decode=False)` gives, a PIL image or
            an array of uint8 `(H, W)` / `(H, W, C)`.
        num_channels: 1 (grayscale), 3 (RGB) or 4 (RGBA).
        row: row number in the data set, for the error message.

    Returns:
        uint8 tensor `(num_channels, H, W)`.

    Raises:
        ImageDecodingError: the bytes are no image, are cut off, or are missing.
        ValueError: `num_channels` is none of these.
    """
    if num_channels not in PIL_MODES:
        raise ValueError(f"num_channels={num_channels}: image files are decoded to {sorted(PIL_MODES)} channels.")
    try:
        image = ImageOps.exif_transpose(_open(value))
        return pil_to_tensor(_to_8_bit(image).convert(PIL_MODES[num_channels]))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        path = value.get("path") if isinstance(value, dict) else None
        where = f"Row {row}" if row is not None else "Image"
        raise ImageDecodingError(
            f"{where}{f' ({path})' if path else ''} cannot be decoded: {type(error).__name__}: {error}. "
            "Remove or repair it and start again (finished checkpoints are kept)."
        ) from error
