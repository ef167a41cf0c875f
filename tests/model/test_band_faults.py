"""Image files of many bands that are broken, oversized or hostile: refused with their kind, and never read as zeros."""

import gzip
import importlib
import io
import logging
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from hf_mae_robust.data.decoding import KINDS
from hf_mae_robust.model import band_limits_vit_mae_robust
from hf_mae_robust.model.band_files_vit_mae_robust import read_band_image
from hf_mae_robust.model.bands_vit_mae_robust import BandError
from tests.band_writers import dicom, fits, nifti, png, tiff

PIXELS = np.random.default_rng(0).integers(0, 60_000, (3, 30, 40), dtype=np.uint16)


def kind_of(data, **options):
    with pytest.raises(BandError) as error:
        read_band_image(data, **options)
    assert error.value.kind in KINDS and "\n" not in str(error.value)
    return error.value.kind


@pytest.fixture
def tifffile():
    pytest.importorskip("imagecodecs")
    return pytest.importorskip("tifffile")


def packed(tifffile, compression, **options):
    file = io.BytesIO()
    options = {"photometric": "minisblack", "planarconfig": "separate", "metadata": None, **options}
    tifffile.imwrite(file, PIXELS, compression=compression, **options)
    return file.getvalue()


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd"])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"rowsperstrip": 8}])
def test_a_tiff_that_is_cut_is_refused_wherever_it_is_cut(tifffile, compression, layout):
    file = io.BytesIO()
    options = {"photometric": "minisblack", "planarconfig": "separate", "metadata": None}
    tifffile.imwrite(file, PIXELS, compression=compression, **options, **layout)
    data = file.getvalue()
    for share in (0.02, 0.2, 0.5, 0.9, 0.99):
        assert kind_of(data[: int(len(data) * share)]) in ("truncated", "corrupt")


def test_a_broken_strip_is_an_error_and_not_zeros(tifffile, caplog):
    data = bytearray(packed(tifffile, "zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        offset, count = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    data[offset + count // 2 : offset + count // 2 + 40] = bytes(40)
    with caplog.at_level(logging.DEBUG):
        assert kind_of(bytes(data)) == "corrupt"
    assert not caplog.records  # one error tells it


def test_tags_that_contradict_the_data(tifffile):
    page = {"pixels": PIXELS}
    sides = {256: ("I", [40]), 257: ("I", [30])}
    assert kind_of(tiff({**page, "tags": {**sides, 256: ("I", [0])}})) == "empty"
    assert kind_of(tiff({**page, "tags": {273: ("I", [10**6])}})) == "truncated"
    assert kind_of(tiff({**page, "tags": {279: ("I", [0])}})) == "corrupt"
    assert kind_of(tiff({**page, "tags": {259: ("H", [54321])}})) == "unsupported"
    assert kind_of(tiff({**page, "tags": {277: ("H", [65535])}})) == "bomb"
    assert kind_of(tiff({**page, "tags": {256: ("I", [31623]), 257: ("I", [31623])}})) == "bomb"
    assert kind_of(tiff({**page, "tags": {322: ("I", [65520]), 323: ("I", [65520])}})) == "bomb"
    assert kind_of(tiff({"pixels": PIXELS.astype(np.complex64)})) == "unsupported"
    assert kind_of(b"II*\0\x08\0\0\0") == "truncated"
    assert kind_of(b"II*\0 is text") == "truncated"


def test_pages_in_a_circle_end(tifffile):
    page = {"pixels": PIXELS}
    assert (read_band_image(tiff(page, loop=True)).pixels == PIXELS).all()
    assert kind_of(tiff(page, page, loop=True)) == "unsupported"  # two pages, as without the loop


def test_a_tile_that_unpacks_to_more_than_its_size_is_refused(tifffile):
    large = io.BytesIO()
    Image.fromarray(np.zeros((6000, 6000), np.uint8)).save(large, "JPEG")
    data = large.getvalue()
    page = {"pixels": np.frombuffer(data, np.uint8).reshape(1, 1, -1)}
    tags = {256: ("I", [40]), 257: ("I", [30]), 259: ("H", [7]), 278: ("I", [30])}
    tracemalloc.start()
    assert kind_of(tiff({**page, "tags": tags})) == "bomb"
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_other_files_that_ome_names_are_not_read(tifffile, tmp_path, monkeypatch):
    secret = tmp_path / "other.ome.tif"
    tifffile.imwrite(secret, PIXELS, photometric="minisblack")
    text = (
        b'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        b'<Pixels DimensionOrder="XYZCT" ID="Pixels:0" SizeC="2" SizeT="1" SizeX="40" SizeY="30" SizeZ="1" '
        b'Type="uint16">'
        b'<TiffData FirstC="0" IFD="0"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        b'<TiffData FirstC="1" IFD="0"><UUID FileName="other.ome.tif">urn:uuid:2</UUID></TiffData>'
        b"</Pixels></Image></OME>"
    )
    path = tmp_path / "a.ome.tif"
    path.write_bytes(tiff({"pixels": PIXELS[:1], "tags": {270: ("s", text)}}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BandError, match="names 2 channels and holds 1"):
        read_band_image(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_cut_png_of_16_bits(channels):
    if channels > 1:
        pytest.importorskip("imagecodecs")
    data = png(PIXELS[:channels].transpose(1, 2, 0))
    assert kind_of(data[: len(data) // 2]) in ("truncated", "corrupt")


def test_bombs_of_other_formats():
    assert kind_of(b"P5 60000 60000 65535\n" + bytes(100)) == "bomb"
    assert kind_of(b"P5 60 60 65535\n" + bytes(100)) == "truncated"
    header = png(PIXELS[:1].transpose(1, 2, 0))
    assert kind_of(header[:16] + b"\0\0\xea\x60\0\0\xea\x60" + header[24:]) == "bomb"
    with pytest.raises(BandError, match="a program: it is not run"):
        read_band_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")


def test_broken_dicom(monkeypatch):
    pytest.importorskip("pydicom")
    data = dicom(PIXELS[0])
    assert kind_of(data[: len(data) - 100]) == "truncated"
    assert kind_of(data[:-2412]) in ("truncated", "empty")
    assert kind_of(dicom(PIXELS[:2], frames=3)) == "unsupported"
    assert kind_of(dicom(PIXELS[:2], frames=3), frame=2) == "truncated"
    large = data.replace(b"\x28\0\x10\0US\x02\0" + b"\x1e\0", b"\x28\0\x10\0US\x02\0" + b"\xff\xff")
    assert kind_of(large) == "truncated"
    monkeypatch.setattr(band_limits_vit_mae_robust, "MAX_FILE_BYTES", 2**21)
    deflated = zlib.compressobj(wbits=-15)
    packed = deflated.compress(bytes(2**22)) + deflated.flush()
    assert (
        kind_of(dicom(PIXELS[0], syntax=b"1.2.840.10008.1.2.1.99")[:200].partition(b"\x28\0\x02\0")[0] + packed)
        == "bomb"
    )
    assert kind_of({"bytes": data[132:], "path": "scan.dcm"}) == "not_an_image"


def test_broken_fits():
    pytest.importorskip("astropy")
    data = fits(PIXELS.astype(np.int16))
    assert kind_of(gzip.compress(data)[:-20]) == "truncated"
    assert kind_of(data[: len(data) // 2]) == "truncated"
    assert kind_of(data.replace(b"NAXIS1  =                   40", b"NAXIS1  =           1000000000")) == "bomb"
    assert kind_of(fits(np.zeros((0,), np.int16))) == "empty"


def test_broken_nifti():
    pytest.importorskip("nibabel")
    data = nifti(PIXELS)
    assert kind_of(data[: len(data) // 2], frame=0) == "truncated"
    assert kind_of(gzip.compress(data)[:-20], frame=0) == "truncated"
    for length, kind in ((-1, "corrupt"), (32767, "bomb")):
        broken = data[:42] + np.array([length, length], "<i2").tobytes() + data[46:]
        assert kind_of(broken, frame=0) == kind


@pytest.mark.parametrize(
    "data, package",
    [
        (tiff({"pixels": PIXELS}), "tifffile"),
        (dicom(PIXELS[0]), "pydicom"),
        (fits(PIXELS.astype(np.int16)), "astropy"),
        (nifti(PIXELS), "nibabel"),
        (png(PIXELS.transpose(1, 2, 0)), "imagecodecs"),
    ],
)
def test_a_package_that_is_missing_is_named(monkeypatch, data, package):
    real = importlib.import_module

    def without(name, *rest):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(BandError, match=f"needs the package {package}: pip install {package}$"):
        read_band_image(data)


@pytest.mark.parametrize(
    "source, kind", [(None, "empty"), (b"", "empty"), (3, "unsupported"), (b"<html>", "not_an_image")]
)
def test_what_is_no_file(source, kind):
    assert kind_of(source) == kind


def test_large_files_are_not_read(tmp_path):
    path = tmp_path / "large.tif"
    with path.open("wb") as file:
        file.truncate(2**29)
    tracemalloc.start()
    assert kind_of(path) == "bomb"
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert kind_of(tmp_path) == "missing_file"
