"""DICOM files as images of many bands, by pydicom, and by imagecodecs where pydicom has no decoder of its own."""

import io
from typing import Any

import numpy as np

from .band_arrays_vit_mae_robust import native
from .band_limits_vit_mae_robust import check_size, unpacked
from .band_packages_vit_mae_robust import optional_package, quiet
from .band_picture_headers_vit_mae_robust import check_jpeg_end, jpeg2000_header, jpeg_header, packed_size
from .bands_vit_mae_robust import BandError, BandImage

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
# These, JPEG of 12 bits and lossless JPEG.
_BY_IMAGECODECS = (*_JPEG_LS, "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")


def read_dicom(data: bytes, frame: int | None = None) -> BandImage:
    """The numbers in the units of the modality, high is bright.

    Where the file gives a rescale slope and intercept other than 1 and 0 (Hounsfield units of CT), or a table for it,
    the numbers are float32 after it; otherwise they are of the stored type. MONOCHROME1 shows low numbers bright: it is
    inverted before that, within its stored bits, as viewers do. YBR becomes RGB; of a palette the indices stay. The
    pixel padding value is the number of missing pixels.

    Raises:
        BandError: pydicom is missing; no pixels; several frames and no choice; a broken or an oversized file.
    """
    _check_deflated(data)
    pydicom = optional_package("pydicom", "a DICOM file")
    with quiet("pydicom"):
        dataset = pydicom.dcmread(io.BytesIO(data))
        frame = _frame(dataset, frame)
        stored = _stored(pydicom, dataset, frame)
        return _meaning(pydicom, dataset, stored)


def _check_deflated(data: bytes) -> None:
    """pydicom unpacks the deflated transfer syntax without a limit."""
    if _DEFLATED not in data[:4096] or data[132:136] != b"\2\0\0\0":
        return
    for _ in unpacked(data[144 + int.from_bytes(data[140:144], "little") :], -15):
        pass


def _frame(dataset: Any, frame: int | None) -> int:
    """Which one is read. Nothing has been decoded yet."""
    pixels = next((name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in dataset), None)
    if pixels is None and "Rows" in dataset:
        raise BandError("a DICOM file that ends before its pixels", "truncated")
    if pixels is None or not dataset[pixels].value:
        raise BandError("a DICOM file without pixels (a plan, a report, ...)", "empty")
    if not getattr(dataset, "file_meta", None) or "TransferSyntaxUID" not in dataset.file_meta:
        raise BandError("a DICOM file that does not name its transfer syntax", "corrupt")
    samples = int(dataset.get("SamplesPerPixel", 1) or 1)
    frames = int(dataset.get("NumberOfFrames", 1) or 1)
    item = max(1, int(dataset.get("BitsAllocated", 8)) // 8)
    height, width = int(dataset.get("Rows", 0) or 0), int(dataset.get("Columns", 0) or 0)
    check_size((height, width, samples), item, "a DICOM image", samples)
    if frames > 1 and frame is None:
        raise BandError(f"{frames:,} frames of {height} x {width}: say --frame N (0-based) for one of them")
    if frame is not None and not 0 <= frame < frames:
        raise BandError(f"--frame {frame} of a DICOM file that has {frames:,} (0-based)")
    return frame or 0


def _stored(pydicom: Any, dataset: Any, frame: int) -> np.ndarray:
    """`(H, W)` or `(H, W, C)` of the stored type."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return np.asarray(pydicom.pixels.pixel_array(dataset, index=frame))
    content = pydicom.encaps.get_frame(
        dataset.PixelData, frame, number_of_frames=int(dataset.get("NumberOfFrames", 1) or 1)
    )
    shape = (int(dataset.Rows), int(dataset.Columns))
    sides = packed_size(content)
    if sides is not None and sides != shape:
        raise BandError(
            f"a DICOM image of {shape[0]} x {shape[1]} whose data are {sides[0]} x {sides[1]}",
            "bomb" if max(sides) > max(shape) else "corrupt",
        )
    single = int(dataset.get("SamplesPerPixel", 1)) == 1
    deep = syntax in _JPEG_2000 and int(dataset.get("BitsStored", 8)) > 8
    if not deep and not (single and syntax in _BY_IMAGECODECS):
        try:
            return np.asarray(pydicom.pixels.pixel_array(dataset, index=frame))
        except RuntimeError as error:  # of one kind only: no package for this compression
            way = "decompress it first (dcmdjpeg, gdcmconv --raw)"
            raise BandError(f"a DICOM file in {syntax.name}, which is not read: {way}") from error
    codecs = optional_package("imagecodecs", f"a DICOM file in {syntax.name}")

    def read(start: int, count: int) -> bytes:
        return content[start : start + count]

    if syntax in _JPEG_2000:
        _, _, _, bits, signed = jpeg2000_header(read)
        decode = codecs.jpeg2k_decode
    else:
        bits, signed = jpeg_header(read)[1], False
        decode = codecs.jpegls_decode if syntax in _JPEG_LS else codecs.jpeg_decode
    if syntax in _JPEG_LS:
        check_jpeg_end(content)
    values = np.asarray(decode(content))
    if int(dataset.get("PixelRepresentation", 0)) and not signed:
        # The bits are those of a signed number, and the code stream does not know it.
        spare = values.dtype.itemsize * 8 - min(bits, int(dataset.get("BitsStored", bits)))
        kind = np.dtype(f"i{values.dtype.itemsize}")
        values = (values << spare).view(kind) >> spare
    return values


def _meaning(pydicom: Any, dataset: Any, stored: np.ndarray) -> BandImage:
    kind = str(dataset.get("PhotometricInterpretation", ""))
    padding = dataset.get("PixelPaddingValue")
    nodata = None if padding is None or isinstance(padding, bytes) else float(padding)
    values = stored
    if kind == "MONOCHROME1" and stored.dtype.kind in "iu":
        # The largest number of the stored bits becomes the smallest: with a sign -1 - x.
        top = -1 if stored.dtype.kind == "i" else 2 ** int(dataset.BitsStored) - 1
        values = (top - stored.astype(np.int64)).astype(stored.dtype)
        nodata = nodata if nodata is None else top - nodata
    if dataset.get("ModalityLUTSequence"):
        values = pydicom.pixels.apply_modality_lut(values, dataset).astype(np.float32)
        nodata = None  # the table may give it to pixels that are not missing
    elif values.ndim == 2:
        slope = float(dataset.get("RescaleSlope", 1) or 1)
        intercept = float(dataset.get("RescaleIntercept", 0) or 0)
        if (slope, intercept) != (1, 0):
            values = (values.astype(np.float64) * slope + intercept).astype(np.float32)
            nodata = nodata if nodata is None else float(np.float32(nodata * slope + intercept))
    pixels = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    return BandImage(native(pixels), nodata)
