"""Arrays as images of many bands: which axis holds the bands, and the files of numpy, read without pickle."""

import ast
import io
import re
import zipfile
import zlib
from typing import Any

import numpy as np

from .band_limits_vit_mae_robust import MAX_BYTES, Read, check_size
from .bands_vit_mae_robust import BandError

# In a .npz file of several arrays, the image is called so.
_IMAGES = ("image", "arr_0")
COMPLEX = "complex numbers: store their magnitude, or real and imaginary parts as two bands"
_NPY_TYPE = re.compile(r"[<>|=]?[biufc]\d{1,2}")


def native(values: np.ndarray) -> np.ndarray:
    """In the byte order of the machine."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def bands_first(values: np.ndarray, channel_axis: str | None = None, frame: int | None = None) -> np.ndarray:
    """An array of the shape `(H, W)`, `(H, W, C)`, `(C, H, W)`, or with an axis of frames before these, as `(C, H, W)`.

    Args:
        channel_axis: "first" or "last"; None: by shape. Two equal lengths beside another are height and width;
            otherwise the shortest axis holds the bands, if it is the first or the last and no other is as short.
        frame: 0-based number of the frame of an array of four axes.

    Raises:
        BandError: another number of axes, no numbers, or a shape that does not tell.
    """
    if values.dtype.kind not in "biufc":
        raise BandError(f"an array of {values.dtype}, not of numbers")
    if values.dtype.kind == "c":
        raise BandError(COMPLEX)
    if values.size == 0:
        raise BandError(f"an array without pixels, of the shape {values.shape}", "empty")
    if values.ndim == 4:
        values = one_frame(values, frame)
    if values.ndim == 2:
        return native(values[None])
    if values.ndim != 3:
        raise BandError(f"an array of the shape {values.shape}: images are (H, W), (H, W, C) or (C, H, W)")
    axis = channel_axis or _axis(values.shape)
    if axis is None:
        raise BandError(
            f"an array of the shape {values.shape}, which does not tell which axis holds the bands: "
            "say --channel_axis first or --channel_axis last"
        )
    result = native(values if axis == "first" else np.moveaxis(values, -1, 0))
    check_size(result.shape, result.dtype.itemsize, "an array", len(result))
    return result


def _axis(shape: tuple[int, ...]) -> str | None:
    first, middle, last = shape
    if first == middle != last:
        return "last"
    if middle == last != first:
        return "first"
    if first < min(middle, last):
        return "first"
    return "last" if last < min(first, middle) else None


def one_frame(values: np.ndarray, frame: int | None, what: str = "frames") -> np.ndarray:
    """Of an array whose first axis counts frames. Raises BandError: several and no choice, or a number beyond them."""
    if frame is None and len(values) > 1:
        size = " x ".join(map(str, values.shape[1:]))
        raise BandError(f"{len(values):,} {what} of {size}: say --frame N (0-based) for one of them")
    if frame is not None and not 0 <= frame < len(values):
        raise BandError(f"--frame {frame} of a file that has {len(values):,} (0-based)")
    return values[frame or 0]


def npy_header(read: Read) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether in Fortran's order, type, and where the numbers begin. Nothing in the file is run.

    Raises BandError: other than numbers, or no such header."""
    start = read(0, 12)
    if not start.startswith(b"\x93NUMPY") or len(start) < 12:
        raise BandError("no header of .npy", "truncated" if b"\x93NUMPY".startswith(start[:6]) else "not_an_image")
    wide = start[6] >= 2
    length = int.from_bytes(start[8 : 12 if wide else 10], "little")
    begin = 12 if wide else 10
    if length > 10_000:
        raise BandError(f"a .npy header of {length:,} bytes", "corrupt")
    text = read(begin, length)
    if len(text) < length:
        raise BandError("a .npy file that ends in its header", "truncated")
    try:
        header = ast.literal_eval(text.decode("latin1" if start[6] < 3 else "utf-8").strip())
        kind, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise BandError("a .npy header that is not one", "corrupt") from error
    if not isinstance(shape, tuple) or not all(isinstance(item, int) and item >= 0 for item in shape):
        raise BandError(f"a .npy file of the shape {shape!r:.60}", "corrupt")
    if not isinstance(kind, str) or not _NPY_TYPE.fullmatch(kind):
        pickled = isinstance(kind, str) and kind.endswith("O")
        shown = "Python objects (a pickle, which is never run)" if pickled else repr(kind)[:60]
        raise BandError(f"an array of {shown}, not of numbers")
    return shape, bool(fortran), np.dtype(kind), begin + length


def read_npy(data: bytes) -> np.ndarray:
    """The array of a .npy file; what lies behind it is left alone. Raises BandError."""
    shape, fortran, dtype, start = npy_header(lambda place, count: data[place : place + count])
    if len(shape) not in (2, 3, 4):
        raise BandError(f"an array of the shape {shape}: images are (H, W), (H, W, C) or (C, H, W)")
    check_size(shape, dtype.itemsize, "an array")
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) - start < count * dtype.itemsize:
        raise BandError(f"a .npy file that ends after {len(data):,} bytes", "truncated")
    return np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if fortran else "C")


def read_npz(data: bytes) -> np.ndarray:
    """The array of a .npz file: its only one, or the one called image or arr_0. Raises BandError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            chosen = names if len(names) == 1 else [name for name in _IMAGES if name in names][:1]
            if not names:
                raise BandError("a zip file without an array (.npy) inside", "empty")
            if not chosen:
                shown = ", ".join(sorted(names)[:10])
                raise BandError(f"several arrays ({shown}): store one, or call the image {_IMAGES[0]}")
            member = archive.getinfo(f"{chosen[0]}.npy")
            limit = MAX_BYTES + 20_000  # with its header
            if member.file_size > limit:
                raise BandError(f"an array of {member.file_size:,} bytes, more than {MAX_BYTES:,}", "bomb")
            with archive.open(member) as file:
                content = file.read(limit + 1)
            if len(content) > limit:
                raise BandError(f"an array of more than {MAX_BYTES:,} bytes", "bomb")
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise BandError(f".npz: {str(error)[:100] or type(error).__name__}", "truncated") from error
    return read_npy(content)


def as_array(values: Any) -> np.ndarray:
    """Nested lists of numbers as an array. Raises BandError."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise BandError("rows of pixels of different lengths") from error
    return array
