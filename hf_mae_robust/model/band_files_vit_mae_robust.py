"""Files and arrays as images of any number of bands: each format by the library that reads it exactly, and a sentence
for those that are not read."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .band_arrays_vit_mae_robust import as_array, bands_first, native, one_frame, read_npy, read_npz
from .band_dicom_vit_mae_robust import read_dicom
from .band_headers_vit_mae_robust import BandHeader, read_band_header, recognise
from .band_limits_vit_mae_robust import MAX_FILE_BYTES, check_size
from .band_packages_vit_mae_robust import as_band_error, optional_package, quiet
from .band_picture_headers_vit_mae_robust import (
    JPEG_LS,
    PNG_CHANNELS,
    check_jpeg_end,
    jpeg2000_header,
    jpeg_header,
    jpegxl_header,
    netpbm_header,
    png_header,
)
from .band_science_vit_mae_robust import read_fits, read_nifti
from .band_tiff_vit_mae_robust import read_tiff
from .bands_vit_mae_robust import BandError, BandImage

__all__ = ["BandHeader", "read_band_header", "read_band_image"]

_PYTHON = "python -c \"import {0}, numpy; numpy.save('image.npy', {1})\""
# Formats that are recognised and not read -> how to make a file of them that is.
WAYS = {
    "HDF5": _PYTHON.format("h5py", "h5py.File('image.h5')['NAME'][()]"),
    "netCDF": _PYTHON.format("xarray", "xarray.open_dataset('image.nc')['NAME'].values"),
    "NRRD": _PYTHON.format("SimpleITK", "SimpleITK.GetArrayFromImage(SimpleITK.ReadImage('image.nrrd'))"),
    "MetaImage": _PYTHON.format("SimpleITK", "SimpleITK.GetArrayFromImage(SimpleITK.ReadImage('image.mha'))"),
    "MATLAB": _PYTHON.format("scipy.io", "scipy.io.loadmat('image.mat')['NAME']"),
    "OpenEXR": _PYTHON.format("OpenEXR", "OpenEXR.File('image.exr').channels()['RGB'].pixels"),
    "ENVI": "gdal_translate image.img image.tif",
}
# Where the content does not tell.
_BY_NAME = {
    ".img": "ENVI",
    ".bil": "ENVI",
    ".bip": "ENVI",
    ".bsq": "ENVI",
    ".mat": "MATLAB",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".nc": "netCDF",
}


def read_band_image(source: Any, *, channel_axis: str | None = None, frame: int | None = None) -> BandImage:
    """The numbers of an image as they are stored, whatever their number of bands and their type.

    The format is told by the content. Packages of the extra `bands` of hf_mae_robust read TIFF
    (tifffile, imagecodecs), DICOM (pydicom), FITS (astropy), NIfTI (nibabel), and PNG of several channels of 16 bits,
    JPEG 2000, JPEG-LS, JPEG XL and Radiance (imagecodecs). Numbers are as stored, except that DICOM, FITS and NIfTI are
    scaled as they ask for (see `read_dicom`), and pictures of 8 bits are as Pillow decodes them.

    Args:
        source: encoded bytes, the path of a local file, a numpy array or nested lists of numbers, a PIL image, or
            `{"bytes": ..., "path": ...}` as `datasets` gives.
        channel_axis: "first" or "last", of arrays, which do not say it; None: by shape, see `bands_first`.
        frame: 0-based number of the frame (page, plane) of files that hold several.

    Returns:
        pixels `(C, H, W)`, with the file's own nodata and mask.

    Raises:
        BandError: no image, or none that can be used; `kind` says which kind of fault. More than MAX_BYTES of numbers
            or MAX_BANDS bands are refused by the header. No pickle is run, and no other file is read.
    """
    name = ""
    if isinstance(source, dict):
        name = str(source.get("path") or "")
        source = source.get("bytes") if source.get("bytes") is not None else source.get("path")
    if source is None or (isinstance(source, (bytes, str)) and not source):
        raise BandError("no image" if source is None else "no bytes", "empty")
    what = "an array"
    try:
        if isinstance(source, Image.Image):
            return BandImage(_pillow(source))
        if isinstance(source, (np.ndarray, list, tuple)):
            return BandImage(bands_first(as_array(source), channel_axis, frame))
        if isinstance(source, (str, Path)):
            name, source = str(source), _read_file(Path(source))
        if not isinstance(source, (bytes, bytearray, memoryview)):
            raise BandError(f"a value of type {type(source).__name__}, not an image")
        data = bytes(source)
        what = _format(data, name)
        return _READERS.get(what, _refuse(what))(data, channel_axis, frame)
    except Exception as error:
        # Broken bytes make the libraries raise anything.
        raise as_band_error(error, what) from error


def _read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise BandError(f"no file {str(path)[-100:]}", "missing_file")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise BandError(f"a file of {size:,} bytes, more than {MAX_FILE_BYTES:,}", "bomb")
        return path.read_bytes()
    except OSError as error:
        raise BandError(type(error).__name__, "missing_file") from error


def _format(data: bytes, name: str) -> str:
    if not data:
        raise BandError("no bytes", "empty")
    found = recognise(lambda start, count: data[start : start + count])
    suffix = Path(name).suffix.lower()
    if found == "JPEG" and jpeg_header(lambda start, count: data[start : start + count])[0] == JPEG_LS:
        return "JPEG-LS"
    if found is None and suffix in (".dcm", ".dicom"):
        raise BandError("a DICOM file without its preamble and its transfer syntax", "not_an_image")
    if found == "pickle":
        raise BandError("a pickle, which is never run", "not_an_image")
    return found or _BY_NAME.get(suffix) or "picture"


def _refuse(what: str) -> Callable[[bytes, str | None, int | None], BandImage]:
    def refuse(data: bytes, channel_axis: str | None, frame: int | None) -> BandImage:
        raise BandError(
            f"a file of the format {what}, which is not read: convert it to TIFF or .npy, as in {WAYS[what]}"
        )

    return refuse


def _pillow(image: Image.Image) -> np.ndarray:
    """A picture as Pillow has it, as `(C, H, W)`."""
    width, height = image.size
    check_size((height, width, len(image.getbands())), 4 if image.mode in ("I", "F") else 1, "a picture")
    image.load()
    values = np.asarray(image)
    values = values.astype(np.uint8) if values.dtype == bool else values
    return native(values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0))


def _read_picture(data: bytes, channel_axis: str | None, frame: int | None) -> BandImage:
    try:
        with quiet():
            image = Image.open(io.BytesIO(data))
            if image.format == "EPS":
                raise BandError("a PostScript file, which is a program: it is not run")
            if frame is not None:
                image.seek(frame)
            return BandImage(_pillow(image))
    except Image.UnidentifiedImageError as error:
        raise BandError("no image format recognised", "not_an_image") from error
    except EOFError as error:
        if frame is None:
            raise
        raise BandError(f"--frame {frame} of a picture that has fewer (0-based)") from error


def _read_png(data: bytes, channel_axis: str | None, frame: int | None) -> BandImage:
    width, height, bits, color = png_header(lambda start, count: data[start : start + count])
    check_size((height, width, PNG_CHANNELS.get(color, 1)), 1 + (bits > 8), "a PNG image")
    # Pillow keeps the high bytes only where there is more than one channel of 16 bits.
    if bits == 16 and color != 0:
        codecs = optional_package("imagecodecs", "a PNG file of several channels of 16 bits")
        values = np.asarray(codecs.png_decode(data))
        return BandImage(native(values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)))
    pixels = _read_picture(data, channel_axis, frame).pixels
    if bits == 16:
        pixels = pixels.astype(np.uint16, copy=False)
    elif color == 0 and bits in (2, 4):
        pixels = pixels // (255 // (2**bits - 1))  # Pillow spreads them to 255
    return BandImage(pixels)


def _read_netpbm(data: bytes, channel_axis: str | None, frame: int | None) -> BandImage:
    if data[:2] in (b"P1", b"P2", b"P3", b"P4"):
        return _read_picture(data, channel_axis, frame)
    header = netpbm_header(lambda start, count: data[start : start + count])
    shape = (header.height, header.width, header.channels)
    check_size(shape, header.dtype.itemsize, "a Netpbm image", header.channels)
    count = header.height * header.width * header.channels
    if len(data) - header.start < count * header.dtype.itemsize:
        raise BandError(f"a Netpbm file that ends after {len(data):,} bytes", "truncated")
    values = np.frombuffer(data, header.dtype, count, header.start).reshape(shape)
    return BandImage(native(np.moveaxis(values[::-1] if header.is_flipped else values, -1, 0)))


def _by_imagecodecs(what: str, decoder: str, header: Callable[[bytes], tuple[tuple[int, ...], int]]) -> Any:
    """header: gives the shape and the bytes a number."""

    def read(data: bytes, channel_axis: str | None, frame: int | None) -> BandImage:
        shape, item = header(data)
        check_size(shape, item, f"a {what} image", shape[2] if len(shape) > 2 else None)
        values = np.asarray(getattr(optional_package("imagecodecs", f"a {what} file"), decoder)(data))
        if values.ndim == 4:
            values = one_frame(values, frame)
        if values.shape[:2] != shape[:2]:
            raise BandError(f"a {what} file whose data have another size than its header", "corrupt")
        return BandImage(native(values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)))

    return read


def _jpeg2000_shape(data: bytes) -> tuple[tuple[int, ...], int]:
    height, width, channels, bits, _ = jpeg2000_header(lambda start, count: data[start : start + count])
    return (height, width, channels), (bits + 7) // 8


def _jpeg_shape(data: bytes) -> tuple[tuple[int, ...], int]:
    marker, bits, height, width, channels = jpeg_header(lambda start, count: data[start : start + count])
    if marker == JPEG_LS:
        check_jpeg_end(data)
    return (height, width, channels), (bits + 7) // 8


def _read_jpeg(data: bytes, channel_axis: str | None, frame: int | None) -> BandImage:
    bits = jpeg_header(lambda start, count: data[start : start + count])[1]
    read = _read_picture if bits == 8 else _by_imagecodecs("JPEG", "jpeg_decode", _jpeg_shape)
    return read(data, channel_axis, frame)


def _radiance_shape(data: bytes) -> tuple[tuple[int, ...], int]:
    lines = data[:4096].split(b"\n\n", 1)
    words = lines[1].split(b"\n", 1)[0].split() if len(lines) > 1 else []
    if len(words) != 4 or words[0] not in (b"-Y", b"+Y"):
        raise BandError("a Radiance file without its size", "corrupt")
    return (int(words[1]), int(words[3]), 3), 4


_READERS: dict[str, Callable[[bytes, str | None, int | None], BandImage]] = {
    "TIFF": read_tiff,
    "DICOM": lambda data, channel_axis, frame: read_dicom(data, frame),
    "NPY": lambda data, channel_axis, frame: BandImage(bands_first(read_npy(data), channel_axis, frame)),
    "NPZ": lambda data, channel_axis, frame: BandImage(bands_first(read_npz(data), channel_axis, frame)),
    "PNG": _read_png,
    "Netpbm": _read_netpbm,
    "FITS": read_fits,
    "NIfTI": read_nifti,
    "JPEG": _read_jpeg,
    "JPEG 2000": _by_imagecodecs("JPEG 2000", "jpeg2k_decode", _jpeg2000_shape),
    "JPEG-LS": _by_imagecodecs("JPEG-LS", "jpegls_decode", _jpeg_shape),
    "JPEG XL": _by_imagecodecs("JPEG XL", "jpegxl_decode", lambda data: (jpegxl_header(data), 4)),
    "Radiance": _by_imagecodecs("Radiance", "rgbe_decode", _radiance_shape),
    "picture": _read_picture,
}
