"""Encoded image -> uint8 tensor; encoded semantic map -> class numbers."""

import io
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import fsspec
import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torchvision.transforms.v2.functional import pil_to_tensor

from ..errors import ImageDecodingError, UserError
from ..files import GIT_LFS
from .arrays import MIN_SIDE, as_picture
from .jpeg import JpegHeader, Part, decode_rows, read_header
from .shrunk_jpeg import decode_shrunk, reduction_for

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# Pillow's own limit for an error (twice its default MAX_IMAGE_PIXELS). A program may have moved or lifted that; which
# images a run sees must not depend on it.
MAX_PIXELS = 178_956_970

KINDS = {
    "empty": "null, no bytes, or no pixels",
    "missing_file": "no bytes, and a path that cannot be read",
    "truncated": "the bytes end early",
    "not_an_image": "no image format that Pillow recognises",
    "bomb": "more than MAX_PIXELS pixels, or text that unpacks to more than Pillow allows",
    "corrupt": "the bytes contradict the format",
    "unsupported": "an image that Pillow cannot decode or convert, or a value that is not an image",
    "mismatch": "an annotation that does not fit its image",
    "not_finite": "infinite numbers",
}

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

PILLOW = r"PIL\."


@contextmanager
def _pillow() -> Iterator[None]:
    """Pillow with our limit of pixels and without its warnings (of large images, odd palettes, broken EXIF blocks)."""
    # A filter that stays rather than `catch_warnings`, which makes Python forget each time which warnings of anyone it
    # has shown: with images decoded in the training process, those would come again in every step.
    if not warnings.filters or getattr(warnings.filters[0][3], "pattern", None) != PILLOW:
        warnings.filterwarnings("ignore", module=PILLOW)
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS // 2
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


# Of strings in a table, where images are wanted.
TEXT_ADVICE = "Write paths as a .csv list, or cast their column to Image (Dataset.cast_column); decode base64 to bytes."


def shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."


def text_error(text: str) -> ImageDecodingError:
    """Of a string in the place of an image."""
    return ImageDecodingError(f"the text '{shortened(text)}', not an image. {TEXT_ADVICE}".rstrip("."), "unsupported")


def is_web_address(text: Any) -> bool:
    return isinstance(text, str) and text.lower().startswith(("http://", "https://", "ftp://"))


def contents_of(value: Any) -> Any:
    """Bytes, PIL image or array, read from its path where there are no bytes."""
    if isinstance(value, dict):
        path = value.get("path")
        if value.get("bytes") is not None or not path:
            return value.get("bytes")
        try:
            with fsspec.open(path, "rb") as file:
                content = file.read()
        except (zipfile.BadZipFile, zlib.error) as error:  # of an archive that lies here, or was fetched
            raise ImageDecodingError(f"{type(error).__name__}: {error}", "corrupt") from error
        except Exception as error:
            if "://" in path and not isinstance(error, FileNotFoundError):
                raise  # the network's fault, not the image's: the next attempt may read it
            reason = type(error).__name__
            if is_web_address(path):
                reason += ": a URL, which is not fetched from here; download the files, and give their paths"
            raise ImageDecodingError(reason, "missing_file") from error
        if content.startswith(GIT_LFS):
            raise ImageDecodingError(
                "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`", "not_an_image"
            )
        return content
    return value


def _open(contents: Any, min_side: int = MIN_SIDE) -> Image.Image:
    """Reads no more than the header of encoded bytes. min_side: of arrays."""
    if isinstance(contents, (np.ndarray, list)):
        return Image.fromarray(as_picture(contents, min_side))
    if isinstance(contents, Image.Image):
        image = contents
    elif contents is None or contents == b"":
        raise ImageDecodingError("no image" if contents is None else "no bytes", "empty")
    elif isinstance(contents, bytes):
        image = Image.open(io.BytesIO(contents))
    elif isinstance(contents, str):
        raise text_error(contents)
    else:
        raise ImageDecodingError(f"a value of type {type(contents).__name__}", "unsupported")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageDecodingError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}", "bomb")
    if width * height == 0:
        raise ImageDecodingError(f"{width} x {height} pixels", "empty")
    return image


def orientation_of(image: Image.Image) -> int:
    """The EXIF tag; 1 (as stored) where the EXIF block is broken, which says nothing about the pixels."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # of many kinds, as in `_decode`
        return 1


def to_8_bit(image: Image.Image) -> Image.Image:
    """Pillow clips numbers above 255 instead of scaling them, and reads floats as if they went to 255."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I":
        pixels = np.asarray(image)
        # PNG (in older versions of Pillow) and PNM have 16 bits here, whatever the largest number is.
        if image.format in ("PNG", "PPM") or pixels.max() > 255:
            pixels = pixels >> 8
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        pixels = np.nan_to_num(np.asarray(image))
        return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
    return image


def _kind_and_reason(error: Exception) -> tuple[str, str]:
    """Pillow tells most faults apart in the text of an OSError only."""
    if isinstance(error, ImageDecodingError):
        return error.kind, str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not_an_image", "no image format recognised"  # Pillow's own text has an address in memory
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    text = str(error).lower()
    if isinstance(error, Image.DecompressionBombError) or "decompressed data too large" in text:
        return "bomb", reason
    if isinstance(error, EOFError) or "truncated" in text or "unexpected end" in text:
        return "truncated", reason
    if isinstance(error, NotImplementedError) or any(
        words in text for words in ("not supported", "unsupported", "not available", "cannot find loader")
    ):
        return "unsupported", reason
    return "corrupt", reason


def _decode(contents: Any, convert: Callable[[Image.Image], Image.Image], min_side: int = MIN_SIDE) -> torch.Tensor:
    """Raises ImageDecodingError whatever goes wrong."""
    try:
        with _pillow():
            image = _open(contents, min_side)
            image.load()
            pixels = convert(image)
            transposition = TRANSPOSITIONS.get(orientation_of(image))
            return pil_to_tensor(pixels if transposition is None else pixels.transpose(transposition))
    except Exception as error:
        # Broken bytes make Pillow's plugins raise anything: OSError, SyntaxError, struct.error, IndexError, ...
        kind, reason = _kind_and_reason(error)
        raise ImageDecodingError(reason, kind) from error


@contextmanager
def opened(value: Any, row: int | None = None, min_side: int = MIN_SIDE) -> Iterator[tuple[Any, Image.Image]]:
    """The encoded bytes of an image (or the array, or Pillow image, that stands for them), and the image as Pillow
    opens it: no pixel is decoded yet. Whatever goes wrong in the block is an ImageDecodingError. Arguments and other
    errors as of `decode_image`."""
    try:
        contents = contents_of(value)
    except ImageDecodingError as error:
        raise located(error, value, row) from error
    try:
        with _pillow():
            yield contents, _open(contents, min_side)
    except Exception as error:  # of many kinds, as in `_decode`
        kind, reason = _kind_and_reason(error)
        raise located(ImageDecodingError(reason, kind), value, row) from error


def decode_image(value: Any, num_channels: int = 3, row: int | None = None, min_side: int = MIN_SIDE) -> torch.Tensor:
    """Decode one image.

    The pixels, in this order: of an animation the first frame counts; 16-bit images keep their upper 8 bits; 32-bit
    integers are taken as they are where none exceeds 255, else as 16-bit; floats are read as [0, 1], NaN as 0, and
    clipped; palette, CMYK, YCbCr, grayscale and 1-bit images are converted to the channels asked for; alpha is dropped
    unless 4 channels are asked for, so that a transparent pixel shows the colour stored under it; EXIF orientation is
    applied, and a broken EXIF block is ignored.

    Images of more than MAX_PIXELS pixels are refused by their header, before any pixel is decoded.

    Args:
        value: encoded bytes, `{"bytes": ..., "path": ...}` as `datasets.Image(decode=False)` gives, a PIL image or
            an array of integers from 0 to 255: `(H, W)`, `(H, W, C)` or `(C, H, W)` (see arrays.py).
        num_channels: 1 (grayscale), 3 (RGB) or 4 (RGBA).
        row: row number in the data set, for the error message.
        min_side: smallest height and width of an array; files may be smaller.

    Returns:
        uint8 tensor `(num_channels, H, W)`.

    Raises:
        ImageDecodingError: there is no image, or none that can be decoded; `kind` says which of KINDS it is.
        ValueError: `num_channels` is none of these.
        Exception: a path that is a URL could not be read, other than for want of the file.
    """
    if num_channels not in PIL_MODES:
        raise UserError(f"num_channels={num_channels}: image files are decoded to {sorted(PIL_MODES)} channels.")
    mode = PIL_MODES[num_channels]
    return _decode_value(value, lambda image: to_8_bit(image).convert(mode), row, min_side)


def decode_regions(
    value: Any,
    num_channels: int,
    choose: Callable[[int, int], Sequence[tuple[int, int, int, int]]],
    row: int | None = None,
    min_side: int = MIN_SIDE,
    target: Callable[[int, int], tuple[int, int] | None] | None = None,
) -> list[torch.Tensor]:
    """Decode parts of an image: the same pixels as `decode_image`, and of JPEG files only the rows that are needed.

    Args:
        value, num_channels, row, min_side: as of `decode_image`.
        choose: gets height and width, says top, left, height and width of each part. Called once, for an image that can
            be opened.
        target: gets height and width of a part, says to which height and width it is resized before anything else
            (bicubic, with antialiasing); None where something else comes first. JPEG files of which all parts are much
            larger are decoded at 1/2, 1/4 or 1/8 of the size, and the parts come resized (shrunk_jpeg.py). None: every
            part comes as it is.

    Returns:
        for each part a uint8 tensor `(num_channels, height, width)`, or of its target's size; they may share memory.

    Raises as `decode_image`.
    """
    try:
        contents = contents_of(value)
    except ImageDecodingError:
        contents = None  # `decode_image` says it
    header = read_header(contents) if isinstance(contents, bytes) and num_channels in (1, 3) else None
    if header is None or header.height * header.width > MAX_PIXELS or header.components > num_channels:
        if isinstance(value, dict) and contents is not None:
            value = {**value, "bytes": contents}  # a file is read once
        image = decode_image(value, num_channels, row, min_side)
        return _parts_of(image, choose(*image.shape[-2:]))
    parts = choose(*header.upright_size)
    targets = [None if target is None else target(*part[2:]) for part in parts]
    try:
        return [
            torch.from_numpy(part).permute(2, 0, 1)
            for part in _decode_jpeg(contents, header, parts, targets, num_channels)
        ]
    except ValueError:
        return _parts_of(decode_image(value, num_channels, row), parts)  # Pillow may do it, and knows why if not


def _decode_jpeg(
    content: bytes, header: JpegHeader, parts: Sequence[Part], targets: Sequence[tuple[int, int] | None], channels: int
) -> list[np.ndarray]:
    """Parts, `(h, w, channels)`. Raises ValueError where the file cannot be decoded."""
    if (reduction := reduction_for(parts, targets)) > 1:
        known = [target for target in targets if target is not None]  # all of them are
        return decode_shrunk(content, header, parts, known, channels, reduction)
    stored = [header.stored(part) for part in parts]
    pixels = decode_rows(content, header, max(top + height for top, _, height, _ in stored), channels)
    return [header.upright(pixels[top : top + height, left : left + width]) for top, left, height, width in stored]


def _parts_of(image: torch.Tensor, parts: Sequence[Part]) -> list[torch.Tensor]:
    return [image[:, top : top + height, left : left + width] for top, left, height, width in parts]


def stored_and_read(value: Any, max_pixels: int = MAX_PIXELS) -> tuple[str, np.ndarray, np.ndarray]:
    """What is stored of an image, and what `decode_image` makes of it: Pillow's mode, the numbers, and these in 8 bits
    before channels are made equal. Raises ImageDecodingError, also for more than `max_pixels`."""
    try:
        with _pillow():
            image = _open(contents_of(value))
            if image.width * image.height > max_pixels:
                raise ImageDecodingError(f"{image.width} x {image.height} pixels", "bomb")
            image.load()
            return image.mode, np.asarray(image), np.asarray(to_8_bit(image))
    except Exception as error:  # of many kinds, as in `_decode`
        kind, reason = _kind_and_reason(error)
        raise ImageDecodingError(reason, kind) from error


def size_of(value: Any) -> tuple[int, int]:
    """Height and width of an image as `decode_image` gives it, from its header. Raises ImageDecodingError."""
    try:
        with _pillow():
            image = _open(contents_of(value))
            width, height = image.size
            return (width, height) if orientation_of(image) >= 5 else (height, width)
    except Exception as error:  # of many kinds, as in `_decode`
        kind, reason = _kind_and_reason(error)
        raise ImageDecodingError(reason, kind) from error


def decode_map(value: Any, row: int | None = None) -> torch.Tensor:
    """Decode a semantic map: the numbers that are stored (of a palette image the indices) as int32 `(H, W)`. Takes what
    `decode_image` takes, and raises ImageDecodingError also for images of colours."""
    return _decode_value(value, _as_numbers, row)[0].to(torch.int32)


def _as_numbers(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # in the order of bytes that torch takes
        return Image.fromarray(np.asarray(image).astype(np.int32))
    if image.mode not in ("1", "L", "P", "I"):
        raise ImageDecodingError(f"its mode is {image.mode}: colours, not numbers of classes", "unsupported")
    return image.convert("L").point(bool) if image.mode == "1" else image


def _decode_value(
    value: Any, convert: Callable[[Image.Image], Image.Image], row: int | None, min_side: int = MIN_SIDE
) -> torch.Tensor:
    try:
        return _decode(contents_of(value), convert, min_side)
    except ImageDecodingError as error:
        raise located(error, value, row) from error


def located(error: ImageDecodingError, value: Any, row: int | None) -> ImageDecodingError:
    """The same error, saying which image it is of. value: as of `decode_image`."""
    path = value.get("path") if isinstance(value, dict) else None
    # The end of a path tells more than its beginning.
    detail = f"{path[-100:]}: {error}"[:200] if path else str(error)[:200]
    where = f"Row {row}" if row is not None else "Image"
    return ImageDecodingError(
        f"{where}{f' ({path})' if path else ''} cannot be decoded ({error.kind}): {error}.",
        error.kind,
        detail,
        path or "",
    )
