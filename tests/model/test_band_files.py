"""Image files of many bands: the numbers that were written, byte by byte or by another library, are the ones read."""

import gzip
import io

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from hf_mae_robust.model.band_files_vit_mae_robust import WAYS, read_band_image
from hf_mae_robust.model.bands_vit_mae_robust import BandError, BandForm
from tests.band_writers import dicom, fits, nifti, png, tiff

RNG = np.random.default_rng(0)


def numbers(*shape, dtype="u2"):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return RNG.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


@pytest.fixture
def tifffile():
    pytest.importorskip("imagecodecs")
    return pytest.importorskip("tifffile")


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("planar", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_every_type(tifffile, dtype, planar, order):
    pixels = numbers(5, 6, 8, dtype=dtype)
    image = read_band_image(tiff({"pixels": pixels, "planar": planar}, order=order))
    assert_array_equal(image.pixels, pixels)
    assert image.pixels.dtype == pixels.dtype and image.nodata is None and image.valid is None


@pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd", "packbits", "lzma", "lerc", None])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"rowsperstrip": 7}, {"bigtiff": True}, {"byteorder": ">"}])
def test_tiff_in_every_layout(tifffile, compression, layout):
    if compression == "lerc" and "byteorder" in layout:
        return  # has none
    pixels = numbers(13, 40, 50)
    file = io.BytesIO()
    options = {"planarconfig": "separate"} if compression == "lerc" else {}
    with_predictor = {"predictor": True} if compression in ("lzw", "zlib", "zstd") else {}
    byteorder = {"byteorder": layout.pop("byteorder")} if "byteorder" in (layout := dict(layout)) else {}
    with tifffile.TiffWriter(file, **byteorder, bigtiff=layout.pop("bigtiff", False)) as writer:
        contig = pixels if options else np.moveaxis(pixels, 0, -1)
        writer.write(
            contig,
            photometric="minisblack",
            planarconfig="separate" if options else "contig",
            compression=compression,
            metadata=None,
            **with_predictor,
            **layout,
        )
    assert_array_equal(read_band_image(file.getvalue()).pixels, pixels)


def test_tiff_written_by_pillow(tifffile):
    for pixels in (numbers(6, 8), numbers(6, 8, dtype="f4"), numbers(6, 8, 3, dtype="u1")):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "TIFF", compression="tiff_lzw")
        expected = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        assert_array_equal(read_band_image(file.getvalue()).pixels, expected)


@pytest.mark.parametrize(
    "dtype, text, nodata",
    [
        ("u2", b"0", 0),
        ("i2", b"-9999 ", -9999),
        ("f4", b"-9999", -9999),
        ("f4", b"nan", np.nan),
        ("f4", b"-3.40282346638529e+38", float(np.finfo(np.float32).min)),  # rounded, as GDAL writes it
        ("f4", b"0.1", float(np.float32(0.1))),
        ("u2", b"none", None),
    ],
)
def test_the_nodata_tag_of_gdal(tifffile, dtype, text, nodata):
    pixels = numbers(2, 6, 8, dtype=dtype)
    missing = np.zeros(pixels.shape, bool)
    missing[0, 2], missing[1, :, 3] = True, True
    if nodata is not None:
        pixels[missing] = nodata
    image = read_band_image(tiff({"pixels": pixels, "tags": {42113: ("s", text)}}))
    assert image.nodata is None if nodata is None else image.nodata == nodata or np.isnan(nodata)
    if nodata is not None:
        found = np.isnan(BandForm().apply(image))
        assert found[missing].all() and (dtype == "u2" or not found[~missing].any())


def test_the_mask_of_gdal_and_overviews(tifffile):
    pixels, mask = numbers(4, 6, 8), RNG.integers(0, 2, (1, 6, 8), dtype=np.uint8) * 255
    overview = {"pixels": pixels[:, ::2, ::2], "tags": {254: ("I", [1])}}
    image = read_band_image(
        tiff({"pixels": pixels}, overview, {"pixels": mask, "tags": {254: ("I", [4]), 262: ("H", [4])}})
    )
    assert_array_equal(image.pixels, pixels)
    assert_array_equal(image.valid, mask[0] == 255)
    assert_array_equal(np.isnan(BandForm().apply(image))[2], mask[0] == 0)


def test_pages_are_bands_only_where_that_is_said(tifffile):
    pages = numbers(5, 6, 8)
    data = tiff(*({"pixels": page[None]} for page in pages))
    with pytest.raises(BandError, match=r"5 pages of 6 x 8: say --frame N .* or --channel_axis first"):
        read_band_image(data)
    assert_array_equal(read_band_image(data, frame=3).pixels, pages[3:4])
    assert_array_equal(read_band_image(data, channel_axis="first").pixels, pages)
    with pytest.raises(BandError, match="--frame 5 of a TIFF file that has 5 pages"):
        read_band_image(data, frame=5)


@pytest.mark.parametrize(
    "options", [{"imagej": True, "metadata": {"axes": "CYX"}}, {"ome": True, "metadata": {"axes": "CYX"}}]
)
def test_channels_of_microscopes(tifffile, options):
    pixels, file = numbers(3, 6, 8), io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="minisblack", **options)
    assert_array_equal(read_band_image(file.getvalue()).pixels, pixels)


def test_depths_of_microscopes_need_a_choice(tifffile):
    pixels, file = numbers(4, 2, 6, 8), io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="minisblack", ome=True, metadata={"axes": "ZCYX"})
    with pytest.raises(BandError, match="say --frame N"):
        read_band_image(file.getvalue())
    assert_array_equal(read_band_image(file.getvalue(), frame=2).pixels, pixels[2])


@pytest.mark.parametrize("shape", [(13, 20, 24), (20, 24, 13)])
def test_an_array_that_tifffile_wrote_page_by_page(tifffile, shape):
    pixels, file = numbers(*shape), io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="minisblack")
    expected = pixels if shape[0] == 13 else pixels.transpose(2, 0, 1)
    assert_array_equal(read_band_image(file.getvalue()).pixels, expected)


@pytest.mark.parametrize(
    "channels, bits", [(1, 16), (2, 16), (3, 16), (4, 16), (1, 1), (1, 2), (1, 4), (1, 8), (3, 8), (4, 8)]
)
def test_png(channels, bits):
    if bits == 16 and channels > 1:
        pytest.importorskip("imagecodecs")
    pixels = RNG.integers(0, 2**bits, (6, 8, channels))
    image = read_band_image(png(pixels, bits))
    assert_array_equal(image.pixels, pixels.transpose(2, 0, 1))
    assert image.pixels.dtype == (np.uint16 if bits == 16 else np.uint8)


def test_netpbm():
    gray, color, real = numbers(6, 8), numbers(6, 8, 3), numbers(6, 8, dtype="f4")
    files = {
        b"P5\n# a comment\n8 6\n4095\n" + (gray % 4096).astype(">u2").tobytes(): gray[None] % 4096,
        b"P6 8 6 65535\n" + color.astype(">u2").tobytes(): color.transpose(2, 0, 1),
        b"P5 8 6 255\n" + gray.astype("u1").tobytes(): gray.astype("u1")[None],
        # From the bottom up, in the order of bytes that the sign says.
        b"Pf\n8 6\n-1.0\n" + real[::-1].astype("<f4").tobytes(): real[None],
        b"Pf\n8 6\n1.0\n" + real[::-1].astype(">f4").tobytes(): real[None],
        b"P7\nWIDTH 8\nHEIGHT 6\nDEPTH 3\nMAXVAL 65535\nENDHDR\n" + color.astype(">u2").tobytes(): color.transpose(
            2, 0, 1
        ),
    }
    for data, expected in files.items():
        assert_array_equal(read_band_image(data).pixels, expected)


@pytest.mark.parametrize("codec, options", [("jpegls", {}), ("jpegxl", {"lossless": True}), ("jpeg2k", {"level": 0})])
def test_other_codecs_of_16_bits(codec, options):
    imagecodecs = pytest.importorskip("imagecodecs")
    pixels = numbers(16, 20)
    data = getattr(imagecodecs, f"{codec}_encode")(pixels, **options)
    assert_array_equal(read_band_image(data).pixels, pixels[None])


class TestDicom:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("pydicom")

    @pytest.mark.parametrize("dtype", ["u2", "i2"])
    def test_numbers_without_a_scale_are_as_stored(self, dtype):
        pixels = numbers(6, 8, dtype=dtype)
        image = read_band_image(dicom(pixels, x00281052="0", x00281053="1"))
        assert_array_equal(image.pixels, pixels[None])
        assert image.pixels.dtype == pixels.dtype

    def test_hounsfield_units(self):
        pixels = numbers(6, 8, dtype="i2")
        image = read_band_image(dicom(pixels, x00281052="-1024", x00281053="0.5", x00280120=-2000))
        assert_allclose(image.pixels[0], pixels * 0.5 - 1024, rtol=1e-6)
        assert image.pixels.dtype == np.float32 and image.nodata == -2024

    @pytest.mark.parametrize("dtype, bits, top", [("u2", 12, 4095), ("u2", 16, 65535), ("i2", 16, -1)])
    def test_high_is_bright(self, dtype, bits, top):
        pixels = numbers(6, 8, dtype=dtype)
        pixels = pixels % 4096 if bits == 12 else pixels
        image = read_band_image(dicom(pixels, b"MONOCHROME1", bits=bits))
        assert_array_equal(image.pixels[0], top - pixels.astype(int))

    def test_colours(self):
        pixels = numbers(6, 8, 3)
        assert_array_equal(read_band_image(dicom(pixels, b"RGB")).pixels, pixels.transpose(2, 0, 1))

    def test_one_of_several_frames(self):
        pixels = numbers(3, 6, 8)
        with pytest.raises(BandError, match=r"3 frames of 6 x 8: say --frame N"):
            read_band_image(dicom(pixels, frames=3))
        assert_array_equal(read_band_image(dicom(pixels, frames=3), frame=1).pixels, pixels[1:2])

    @pytest.mark.parametrize(
        "codec, syntax", [("jpegls", "1.2.840.10008.1.2.4.80"), ("jpeg2k", "1.2.840.10008.1.2.4.90")]
    )
    @pytest.mark.parametrize("dtype", ["u2", "i2"])
    def test_compressed(self, codec, syntax, dtype):
        imagecodecs, pydicom = pytest.importorskip("imagecodecs"), pytest.importorskip("pydicom")
        pixels = numbers(16, 20, dtype=dtype)
        dataset = pydicom.dcmread(io.BytesIO(dicom(pixels)))
        level = {"level": 0} if codec == "jpeg2k" else {}
        packed = getattr(imagecodecs, f"{codec}_encode")(pixels.view("u2"), **level)
        dataset.PixelData = pydicom.encaps.encapsulate([packed])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
        file = io.BytesIO()
        dataset.save_as(file)
        assert_array_equal(read_band_image(file.getvalue()).pixels, pixels[None])


class TestFits:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("astropy")

    @pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
    @pytest.mark.parametrize("shape", [(6, 8), (5, 6, 8)])
    def test_images_and_cubes(self, dtype, shape):
        pixels = numbers(*shape, dtype=dtype)
        for data in (fits(pixels), gzip.compress(fits(pixels))):
            assert_array_equal(read_band_image(data).pixels, pixels.reshape(-1, 6, 8))

    def test_missing_pixels_and_scales(self):
        pixels = numbers(6, 8, dtype="f4")
        pixels[0, 0], pixels[1, 1] = np.nan, np.finfo(np.float32).min
        found = np.isnan(BandForm().apply(read_band_image(fits(pixels))))
        assert found[0, 0, 0] and found[0, 1, 1] and found.sum() == 2
        whole = numbers(6, 8, dtype="i2")
        whole[2, 3] = -32768
        for cards in ({}, {"BZERO": 32768, "BSCALE": 1}, {"BZERO": 5.0, "BSCALE": 0.01}):
            found = np.isnan(BandForm().apply(read_band_image(fits(whole, BLANK=-32768, **cards))))
            assert_array_equal(found[0], whole == -32768)
        assert_array_equal(read_band_image(fits(whole, BZERO=32768, BSCALE=1)).pixels[0], whole.astype(int) + 32768)
        assert_allclose(read_band_image(fits(whole, BZERO=5.0, BSCALE=0.01)).pixels[0], whole * 0.01 + 5, rtol=1e-5)


class TestNifti:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("nibabel")

    @pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "f4"])
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_one_of_several_slices(self, dtype, order):
        pixels = numbers(3, 6, 8, dtype=dtype)
        for data in (nifti(pixels, order), gzip.compress(nifti(pixels, order))):
            with pytest.raises(BandError, match="3 slices of 6 x 8: say --frame N"):
                read_band_image(data)
            assert_array_equal(read_band_image(data, frame=1).pixels, pixels[1:2])
            assert_array_equal(read_band_image(data, channel_axis="first").pixels, pixels)

    def test_scales(self):
        pixels = numbers(1, 6, 8, dtype="i2")
        found = read_band_image(nifti(pixels, slope=0.5, intercept=100)).pixels
        assert_allclose(found, pixels * 0.5 + 100)
        assert found.dtype == np.float32


def test_pictures_of_8_bits_are_as_pillow_decodes_them():
    pixels = numbers(6, 8, 3, dtype="u1")
    for name in ("PNG", "BMP", "WEBP", "JPEG"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, name, **({"lossless": True} if name == "WEBP" else {}))
        expected = np.asarray(Image.open(io.BytesIO(file.getvalue())))
        assert_array_equal(read_band_image(file.getvalue()).pixels, expected.transpose(2, 0, 1))
    assert_array_equal(read_band_image(Image.fromarray(pixels)).pixels, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    "data, name",
    [
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"),
        (b"CDF\x01" + bytes(600), "netCDF"),
        (b"NRRD0004\n", "NRRD"),
        (b"ObjectType = Image\nNDims = 3\n", "MetaImage"),
        (b"MATLAB 5.0 MAT-file, Platform: nt", "MATLAB"),
        (b"\x76\x2f\x31\x01" + bytes(100), "OpenEXR"),
    ],
)
def test_formats_that_are_not_read_name_the_way(data, name):
    with pytest.raises(
        BandError, match=f"the format {name}, which is not read: convert it to TIFF or .npy, as in "
    ) as error:
        read_band_image(data)
    assert error.value.kind == "unsupported"
    if WAYS[name].startswith("python"):
        compile(WAYS[name].split('"')[1], name, "exec")


def test_raw_files_name_the_way_by_their_ending():
    with pytest.raises(BandError, match="ENVI.*gdal_translate"):
        read_band_image({"bytes": bytes(range(1, 201)), "path": "scene.bsq"})


@pytest.mark.parametrize("first", [b"\xff\x0a", b"\xff\xd8\xff", b"RIFF", b"\x89PNG"])
def test_numbers_of_a_tiff_that_begin_as_a_picture_would(tifffile, first):
    pixels = numbers(1, 32, 32)
    pixels[0, 0, :3] = np.frombuffer(first.ljust(6, b"\0"), "<u2")
    assert_array_equal(read_band_image(tiff({"pixels": pixels})).pixels, pixels)
