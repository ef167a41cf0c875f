"""TIFF files (GeoTIFF, BigTIFF, COG, OME, ImageJ) as images of many bands, by tifffile and imagecodecs."""

import inspect
import io
import math
from typing import Any

import numpy as np

from .band_arrays_vit_mae_robust import COMPLEX, bands_first, native, one_frame
from .band_limits_vit_mae_robust import MAX_PAGES, check_size
from .band_packages_vit_mae_robust import optional_package, quiet
from .band_picture_headers_vit_mae_robust import packed_size
from .band_tiff_tags_vit_mae_robust import TiffPage, described_channels, tiff_pages
from .bands_vit_mae_robust import BandError, BandImage

# None, LZW, deflate, PackBits, LZMA, ZSTD: bytes, whose first ones may be those of any picture format.
_OF_BYTES = (1, 5, 8, 32773, 32946, 34925, 50000)


def read_tiff(data: bytes, channel_axis: str | None = None, frame: int | None = None) -> BandImage:
    """The numbers as they are stored: not inverted, not scaled by GDAL's metadata, of a palette the indices, alpha as a
    band. GDAL's nodata tag and internal mask come with them; overviews and thumbnails are left alone.

    Pages are bands where OME or ImageJ says that they are channels, where Python wrote an array page by page (tifffile;
    then as an array), or where channel_axis is "first". Otherwise `frame` chooses one.

    Raises:
        BandError: tifffile or imagecodecs is missing; several pages and no choice; a broken or an oversized file.
    """
    pages, in_circles = tiff_pages(lambda start, count: data[start : start + count])
    pictures = [number for number, page in enumerate(pages) if not page.is_mask and not page.is_reduced]
    masks = [number for number, page in enumerate(pages) if page.is_mask]
    if not pictures:
        pictures = [0]
    first = pages[pictures[0]]
    for number in pictures:
        _check(pages[number])
    if len(pages) >= MAX_PAGES:
        raise BandError(f"a TIFF file of {MAX_PAGES:,} images or more", "bomb")
    tifffile = optional_package("tifffile", "a TIFF file")
    limits = {"_multifile": False} if "_multifile" in inspect.signature(tifffile.TiffFile).parameters else {}
    # From memory: the metadata of OME and of MicroManager name other files, which are not looked for then.
    with quiet("tifffile") as errors, tifffile.TiffFile(io.BytesIO(data), **limits) as file:
        text = first.tags.get("description") or b""
        described = text.startswith((b"ImageJ=", b'{"shape"')) or b"<OME" in text[:2000]
        if described and not in_circles:
            pixels = _series(file, channel_axis, frame)
            named = described_channels(first)
            if frame is None and named not in (None, len(pixels)):
                raise BandError(
                    f"a TIFF file that names {named} channels and holds {len(pixels)}: others are elsewhere"
                )
        else:
            pixels = _pages(file, pages, pictures, channel_axis, frame)
        valid = None
        if masks and len(pictures) == 1 and pages[masks[0]].size == first.size:
            valid = _page(file, pages, masks[0])[0] != 0
        if errors and not in_circles:
            raise BandError(f"TIFF: {errors[0][:160]}", "corrupt")
    check_size(pixels.shape, pixels.dtype.itemsize, "a TIFF file", len(pixels))
    return BandImage(pixels, _nodata(first, pixels.dtype), valid)


def _check(page: TiffPage) -> None:
    height, width = page.size
    check_size((height, width, page.samples), 1, "a TIFF image", page.samples)
    check_size((page.num_bytes,), 1, "a TIFF image")
    if "complex" in page.dtype:
        raise BandError(COMPLEX)


def _page(file: Any, pages: list[TiffPage], number: int) -> np.ndarray:
    """One page as `(C, H, W)`."""
    page = file.pages[number]
    size = file.filehandle.size
    needed = math.prod(page.chunked)
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) < needed or len(counts) < needed:
        raise BandError(f"a TIFF image with {len(offsets)} of {needed} strips or tiles", "corrupt")
    for offset, count in zip(offsets, counts):
        # Both are 0 where GDAL left a tile without a number out.
        if offset + count > size:
            raise BandError("a TIFF image whose strips or tiles lie beyond the end of the file", "truncated")
        if (offset == 0) != (count == 0):
            raise BandError("a TIFF image with a strip or tile of no bytes", "corrupt")
        if offset and page.compression not in _OF_BYTES:
            file.filehandle.seek(offset)
            sides = packed_size(file.filehandle.read(count if count < 65536 else 65536))
            if sides is not None and max(sides) > max(page.chunks):
                raise BandError(f"a TIFF image with a strip or tile of {sides[0]:,} x {sides[1]:,} pixels", "bomb")
    if not any(counts):
        raise BandError("a TIFF image without data", "corrupt")
    # (samples in planes, depth, height, width, samples side by side), in this thread, whose errors are listened to.
    values = page.asarray(squeeze=False, maxworkers=1)
    planes, depth, height, width, samples = values.shape
    if depth != 1:
        raise BandError(f"a TIFF image of {depth} layers")
    pixels = values[:, 0, :, :, 0] if samples == 1 else np.moveaxis(values[0, 0], -1, 0)
    if planes > 1 and samples > 1:
        raise BandError("a TIFF image with samples in planes and side by side", "corrupt")
    if (height, width) != pages[number].size:
        raise BandError("a TIFF image whose data have another size than its tags", "corrupt")
    return native(pixels.astype(np.uint8, copy=False) if pixels.dtype == bool else pixels)


def _pages(
    file: Any, pages: list[TiffPage], pictures: list[int], channel_axis: str | None, frame: int | None
) -> np.ndarray:
    first = pages[pictures[0]]
    same = [number for number in pictures if _shape(pages[number]) == _shape(first)]
    if frame is not None:
        if not 0 <= frame < len(pictures):
            raise BandError(f"--frame {frame} of a TIFF file that has {len(pictures):,} pages (0-based)")
        return _page(file, pages, pictures[frame])
    if len(same) == 1:
        larger = [number for number in pictures if pages[number].size > first.size]
        if larger:
            raise BandError(f"{len(pictures):,} pages of different sizes: say --frame N (0-based) for one of them")
        return _page(file, pages, pictures[0])  # a pyramid that does not say so
    if channel_axis == "first" and len(same) == len(pictures):
        height, width = first.size
        check_size((len(same) * first.num_bytes,), 1, "a TIFF file")
        return np.concatenate([_page(file, pages, number) for number in pictures])
    height, width = first.size
    raise BandError(
        f"{len(same):,} pages of {height} x {width}: say --frame N (0-based) for one of them, "
        "or --channel_axis first where they are the bands"
    )


def _shape(page: TiffPage) -> tuple[object, ...]:
    return (page.size, page.samples, page.dtype)


def _series(file: Any, channel_axis: str | None, frame: int | None) -> np.ndarray:
    """What metadata describe as one array over several pages, as `(C, H, W)`."""
    series = file.series[0]
    axes, shape = series.get_axes(False), series.get_shape(False)
    check_size(tuple(shape), series.dtype.itemsize, "a TIFF file")
    for page in series.pages:
        if page is None:
            raise BandError("a TIFF file that lacks pages, or has them in other files", "missing_file")
    if len(series.pages) > 1 or len(file.pages) == 1:
        _check_pages(file, series)
    values = series.asarray(squeeze=False, maxworkers=1)
    if values.shape != tuple(shape):
        raise BandError("a TIFF file whose data have another size than its description", "corrupt")
    if series.kind == "shaped" and frame is None and not {"C", "S"} & set(axes):
        # An array that Python wrote, page by page: the same rules as of .npy.
        return bands_first(values.reshape([length for length in shape if length > 1] or [1, 1]), channel_axis)
    order = sorted(range(len(axes)), key=lambda axis: "CSYX".find(axes[axis]))
    values = values.transpose(order)
    lengths = dict(zip(axes, shape))
    channels = lengths.get("C", 1) * lengths.get("S", 1)
    values = values.reshape(-1, channels, lengths["Y"], lengths["X"])
    return native(one_frame(values, frame, "planes"))


def _check_pages(file: Any, series: Any) -> None:
    size = file.filehandle.size
    for page in series.pages:
        for offset, count in zip(page.dataoffsets, page.databytecounts):
            if offset + count > size:
                raise BandError("a TIFF image whose strips or tiles lie beyond the end of the file", "truncated")


def _nodata(page: TiffPage, dtype: np.dtype) -> float | None:
    """GDAL's tag, which is text, as a number of the file's type. None: there is none, or text of another kind."""
    try:
        value = float((page.tags.get("nodata") or b"").decode("ascii", "replace").strip())
    except ValueError:
        return None
    if dtype.kind == "f" and math.isfinite(value):
        # -3.40282346638529e+38 is meant as the lowest number of float32, which it misses by a rounding.
        with np.errstate(over="ignore"):
            cast = float(dtype.type(value))
        return cast if math.isfinite(cast) else value
    return value
