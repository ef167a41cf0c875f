"""FITS and NIfTI files as images of bands, by astropy and nibabel."""

import io

import numpy as np

from .band_arrays_vit_mae_robust import COMPLEX, bands_first, native, one_frame
from .band_limits_vit_mae_robust import check_size, unpacked
from .band_packages_vit_mae_robust import optional_package, quiet
from .bands_vit_mae_robust import BandError, BandImage


def _unzipped(data: bytes) -> bytes:
    return b"".join(unpacked(data, 31)) if data.startswith(b"\x1f\x8b") else data


def read_fits(data: bytes, channel_axis: str | None, frame: int | None) -> BandImage:
    """The first image of the file, in physical units where it is scaled (BSCALE, BZERO); BLANK is its nodata; rows as
    stored, which viewers of the sky show from the bottom up."""
    fits = optional_package("astropy.io.fits", "a FITS file")
    with quiet("astropy"), fits.open(io.BytesIO(_unzipped(data)), memmap=False) as file:
        for part in file:
            shape = tuple(getattr(part, "shape", ()))
            if part.is_image and len(shape) >= 2:
                break
        else:
            raise BandError("a FITS file without an image", "empty")
        check_size(shape, abs(int(part.header["BITPIX"])) // 8, "a FITS image")
        blank = part.header.get("BLANK")
        offset = part.header.get("BZERO", 0)
        values = np.asarray(part.data)
    if values.shape != shape:
        raise BandError("a FITS file that ends before its image does", "truncated")
    if values.ndim > 3:
        values = one_frame(values.reshape(-1, *values.shape[-3:]), frame)
    # astropy makes it NaN, except where an offset makes the numbers unsigned.
    nodata = float(blank + offset) if blank is not None and values.dtype.kind in "iu" else None
    return BandImage(bands_first(values, "first"), nodata)


def read_nifti(data: bytes, channel_axis: str | None = None, frame: int | None = None) -> BandImage:
    """One slice of a volume, `(1, Y, X)`, in the scale that the file asks for (then float32). Slices are counted along
    Z, then along time; channel_axis="first" takes them for bands.

    Raises:
        BandError: nibabel is missing; several slices and no choice; numbers that are not real; a broken file.
    """
    nibabel = optional_package("nibabel", "a NIfTI file")
    data = _unzipped(data)
    kind = nibabel.Nifti1Image if b"\x5c\x01" in (data[:2], data[3:1:-1]) else nibabel.Nifti2Image
    with quiet("nibabel", "nibabel.global"):
        image = kind.from_bytes(data)
        dtype = np.dtype(image.get_data_dtype())
        if dtype.kind not in "iuf":
            raise BandError(COMPLEX if dtype.kind == "c" else "a NIfTI file of colours, not of numbers")
        if len(image.shape) < 2:
            raise BandError(f"a NIfTI file of the shape {image.shape}")
        check_size(tuple(image.shape), dtype.itemsize, "a NIfTI file")
        values = np.asanyarray(image.dataobj)
    if values.dtype != dtype:
        values = values.astype(np.float32)
    slices = values.T.reshape(-1, values.shape[1], values.shape[0])
    if channel_axis != "first" or frame is not None:
        slices = one_frame(slices, frame, "slices")[None]
    return BandImage(native(slices))
