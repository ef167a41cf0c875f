"""What a header says, without the extra's packages: whether Pillow shows all of a file."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from hf_mae_robust.model.band_files_vit_mae_robust import BandHeader, read_band_header
from hf_mae_robust.model.band_picture_headers_vit_mae_robust import jpegxl_header, packed_size
from tests.band_writers import dicom, fits, png, tiff

RGB = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
WIDE = np.arange(5 * 7, dtype=np.uint16).reshape(1, 5, 7) * 900


def by_pillow(pixels, name, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name, **options)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000"])
def test_what_pillow_shows_is_a_picture(name):
    data = by_pillow(RGB, name)
    found = read_band_header(data)
    assert found.is_8_bit_picture
    if found.height is not None:
        assert (found.height, found.width, found.num_channels, found.dtype) == (5, 7, 3, "uint8")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_the_modes_of_8_bits_are_pictures(mode, name):
    if (mode, name) == ("CMYK", "PNG"):
        return
    file = io.BytesIO()
    Image.fromarray(RGB).convert("L" if mode == "LA" else mode).convert(mode).save(file, name)
    assert read_band_header(file.getvalue()).is_8_bit_picture


@pytest.mark.parametrize(
    "data, shape, dtype",
    [
        (png(WIDE.transpose(1, 2, 0)), (5, 7, 1), "uint16"),
        (png(WIDE.repeat(3, 0).transpose(1, 2, 0)), (5, 7, 3), "uint16"),
        (tiff({"pixels": WIDE}), (5, 7, 1), "uint16"),
        (tiff({"pixels": WIDE.repeat(13, 0), "planar": True}), (5, 7, 13), "uint16"),
        (tiff({"pixels": WIDE.repeat(13, 0).astype(np.float32)}, order=">"), (5, 7, 13), "float32"),
        (tiff({"pixels": WIDE.astype(np.int8)}), (5, 7, 1), "int8"),
        (tiff({"pixels": WIDE.repeat(5, 0).astype(np.uint8)}), (5, 7, 5), "uint8"),
        # Four samples of which the last is not alpha.
        (
            tiff({"pixels": WIDE.repeat(4, 0).astype(np.uint8), "tags": {262: ("H", [2]), 338: ("H", [0])}}),
            (5, 7, 4),
            "uint8",
        ),
        # Channels as pages.
        (
            tiff({"pixels": WIDE.astype(np.uint8), "tags": {270: ("s", b"ImageJ=1.5\nchannels=3\n")}}),
            (5, 7, 3),
            "uint8",
        ),
        (
            tiff({"pixels": WIDE.astype(np.uint8), "tags": {270: ("s", b'{"shape": [13, 5, 7]}')}}),
            (5, 7, None),
            "uint8",
        ),
        (b"P5 # comment\n7 5\n4095\n" + bytes(70), (5, 7, 1), "uint16"),
        (b"Pf\n7 5\n-1.0\n" + bytes(140), (5, 7, 1), "float32"),
        (npy(WIDE), (None, None, None), "uint16"),
    ],
)
def test_what_holds_more_than_pillow_shows_is_not(data, shape, dtype):
    found = read_band_header(data)
    assert not found.is_8_bit_picture
    assert (found.height, found.width, found.num_channels) == shape and found.dtype == dtype


@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize(
    "channels, photometric, extra",
    [
        (1, 1, []),
        (2, 1, [2]),
        (2, 1, [1]),
        (3, 2, []),
        (3, 1, [0, 0]),
        (4, 2, [2]),
        (4, 2, [0]),
        (4, 5, []),
        (4, 1, [0] * 3),
    ],
)
def test_a_tiff_of_8_bits_is_a_picture_where_pillow_gives_its_numbers(channels, photometric, extra, planar):
    pixels = np.arange(channels * 35, dtype=np.uint8).reshape(channels, 5, 7)
    tags = {262: ("H", [photometric])} | ({338: ("H", extra)} if extra else {})
    data = tiff({"pixels": pixels, "planar": planar, "tags": tags})
    try:
        shown = np.atleast_3d(np.asarray(Image.open(io.BytesIO(data)))).transpose(2, 0, 1)
    except (OSError, ValueError):
        shown = np.zeros(0)
    # Some versions of Pillow show a fourth channel that is not alpha, such as near infrared, and others leave it out.
    is_shown = np.array_equal(shown, pixels) and (photometric, extra) != (2, [0])
    assert read_band_header(data).is_8_bit_picture == is_shown


@pytest.mark.parametrize(
    "data, name",
    [
        (dicom(WIDE[0]), "DICOM"),
        (b"II*\0" + dicom(WIDE[0])[4:], "DICOM"),  # the first 128 bytes are free
        (fits(WIDE[0].astype(np.int16)), "FITS"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"),
    ],
)
def test_formats_that_pillow_does_not_know(data, name):
    assert read_band_header(data) == BandHeader(name)


def test_sources_of_every_kind(tmp_path):
    data = tiff({"pixels": WIDE})
    path = tmp_path / "named.png"
    path.write_bytes(data)
    found = read_band_header(data)
    for source in (path, str(path), {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}):
        assert read_band_header(source) == found
    assert read_band_header(Image.fromarray(RGB)).is_8_bit_picture
    assert not read_band_header(Image.fromarray(WIDE[0])).is_8_bit_picture


@pytest.mark.parametrize(
    "source",
    [b"", None, b"no image at all", RGB, [[1, 2]], "no/such/file.tif", b"II*\0\xff\xff\xff\xff", b"\xff\xd8\xff\xe0"],
)
def test_what_is_not_recognised_is_left_to_the_decoder(source):
    assert read_band_header(source) is None


def test_headers_of_pictures_take_microseconds():
    for data in (by_pillow(RGB, "JPEG"), by_pillow(RGB, "PNG"), by_pillow(RGB, "PNG") + bytes(10**7)):
        start = time.perf_counter()
        for _ in range(100):
            read_band_header(data)
        assert time.perf_counter() - start < 0.1  # 1 ms each; it takes about 10 us


def test_sizes_inside_other_files():
    assert packed_size(by_pillow(RGB, "JPEG")) == packed_size(by_pillow(RGB, "PNG")) == (5, 7)
    assert packed_size(by_pillow(RGB, "JPEG2000")) == (5, 7)
    assert packed_size(by_pillow(RGB, "WEBP")) == packed_size(by_pillow(RGB, "WEBP", lossless=True)) == (5, 7)
    assert packed_size(bytes(100)) is None


def test_sizes_of_jpeg_xl():
    imagecodecs = pytest.importorskip("imagecodecs")
    for height, width in ((5, 7), (64, 64), (256, 512), (300, 1000), (16, 20)):
        assert jpegxl_header(imagecodecs.jpegxl_encode(np.zeros((height, width, 3), np.uint8))) == (height, width)
