import gzip
import io
import pickle
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageFile

from hf_mae_robust.data import decoding
from hf_mae_robust.data.decoding import KINDS, MAX_PIXELS, decode_image, decode_map, size_of
from hf_mae_robust.errors import ImageDecodingError
from tests.helpers import photos


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


GRADIENT = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (8, 1))  # (8, 24)
PHOTO = Image.fromarray(photos(1, size=64)[0])
JPEG, PNG = encode(PHOTO, "JPEG"), encode(PHOTO, "PNG")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int) -> bytes:
    """Signature, header (8-bit RGB) and a little data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def with_flipped_byte(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


def with_exif(block: bytes) -> bytes:
    """A JPEG with this as its APP1 segment."""
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\x00\x00" + block + JPEG[2:]


def bad_images() -> dict[str, tuple[object, str]]:
    """Name -> (value of the image column, kind)."""
    return {
        "null": (None, "empty"),
        "null struct": ({"bytes": None, "path": None}, "empty"),
        "no bytes": ({"bytes": b"", "path": "zero_byte.jpg"}, "empty"),
        "no pixels": ([], "empty"),
        "missing file": ({"bytes": None, "path": "no/such/file.jpg"}, "missing_file"),
        "a folder": ({"bytes": None, "path": "/"}, "missing_file"),
        "half a JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
        "JPEG tail": (JPEG[:-60], "truncated"),
        "JPEG header": (JPEG[:200], "truncated"),
        "no EOI": (JPEG[:-2], "truncated"),
        "progressive": (encode(PHOTO, "JPEG", progressive=True)[:-300], "truncated"),
        "half a PNG": (PNG[: len(PNG) // 2], "truncated"),
        "text": (b"This is not an image, whatever its name says.", "not_an_image"),
        "html": (b"<!DOCTYPE html><html><title>404</title></html>", "not_an_image"),
        "gzip": (gzip.compress(JPEG), "not_an_image"),
        "bomb": (png_header(50_000, 50_000), "bomb"),
        "text bomb": (PNG[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3_000_000))) + PNG[33:], "bomb"),
        "bad CRC": (with_flipped_byte(PNG, PNG.index(b"IDAT") + 40), "corrupt"),
        "a number": (7, "unsupported"),
        "floats": ([[0.5, 0.25]], "unsupported"),
    }


BAD = bad_images()


def test_rgb_png_gives_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    decoded = decode_image({"bytes": encode(Image.fromarray(pixels), "PNG"), "path": None})
    assert decoded.dtype == torch.uint8
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("source_mode", ["L", "RGB", "RGBA", "LA", "1", "P"])
def test_any_mode_is_converted_to_the_channels_asked_for(channels, mode, source_mode):
    image = Image.fromarray(GRADIENT).convert(source_mode)
    decoded = decode_image(encode(image, "PNG"), channels)
    assert decoded.shape == (channels, 8, 24)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(image.convert(mode)).reshape(8, 24, channels)
    assert np.array_equal(decoded.permute(1, 2, 0).numpy(), expected)


def test_cmyk_jpeg_is_converted_not_misread():
    image = Image.new("RGB", (16, 16), (200, 40, 90))
    decoded = decode_image(encode(image.convert("CMYK"), "JPEG", quality=95))
    assert decoded.shape == (3, 16, 16)
    assert (decoded.float().mean(dim=(1, 2)) - torch.tensor([200.0, 40, 90])).abs().max() < 6


@pytest.mark.parametrize(
    ("tag", "stored_as"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_exif_orientation_is_applied(tag, stored_as):
    upright = PHOTO.crop((0, 0, 64, 40))
    exif = Image.Exif()
    exif[0x0112] = tag
    decoded = decode_image(encode(upright.transpose(stored_as), "JPEG", quality=95, subsampling=0, exif=exif))
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    assert decoded.shape == expected.shape == (3, 40, 64)
    assert (decoded.float() - expected.float()).abs().mean() < 2


@pytest.mark.parametrize(
    "block",
    [
        b"garbage",  # no TIFF header
        b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", 40) + bytes(range(30)),  # 40 entries claimed, data ends early
        b"MM\x00*\xff\xff\xff\xff",  # the directory lies beyond the end
        # One entry, orientation, of the wrong type and with a value far away.
        b"II*\x00\x08\x00\x00\x00" + struct.pack("<HHHIII", 1, 0x0112, 5, 9, 0xFFFF, 0),
        b"",
    ],
)
def test_a_broken_exif_block_is_no_broken_image(block):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(decode_image(with_exif(block)), decode_image(JPEG))


def test_16_bit_and_float_images_are_scaled_not_clipped():
    pixels = (GRADIENT.astype(np.uint16) << 8) + 17
    deep = Image.fromarray(pixels)
    # By hand: Pillow 10.3, the oldest that is allowed, reads it and cannot write it.
    ppm = b"P5 %d %d 65535 " % deep.size + pixels.astype(">u2").tobytes()
    for encoded in (encode(deep, "PNG"), encode(deep, "TIFF"), ppm):
        assert np.array_equal(decode_image(encoded, 1)[0].numpy(), GRADIENT)
    floating = Image.fromarray(GRADIENT.astype(np.float32) / 255)
    assert np.array_equal(decode_image(encode(floating, "TIFF"), 1)[0].numpy(), GRADIENT)
    odd = Image.fromarray(np.array([[np.nan, np.inf, -np.inf, 2, -1, 0.5]], dtype=np.float32))
    assert decode_image(encode(odd, "TIFF"), 1).flatten().tolist() == [0, 255, 0, 255, 0, 128]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_16_bit_in_any_byte_order(mode):
    pixels = (GRADIENT.astype(np.uint16) << 8) + 17
    order = ">u2" if mode == "I;16B" else "<u2"
    image = Image.frombytes(mode, (24, 8), pixels.astype(order).tobytes())
    assert image.mode == mode
    assert np.array_equal(decode_image(image, 1)[0].numpy(), GRADIENT)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_maps_of_16_bit_in_any_byte_order(mode):
    """ImageJ writes big-endian TIFF files."""
    pixels = np.array([[0, 300], [40_000, 65_535]], dtype=">u2" if mode == "I;16B" else "<u2")
    assert decode_map(Image.frombytes(mode, (2, 2), pixels.tobytes())).tolist() == pixels.tolist()


def test_32_bit_integers_are_read_as_8_bit_or_as_16():
    for scale in (1, 256):
        image = Image.fromarray(GRADIENT.astype(np.int32) * scale)
        assert image.mode == "I"
        assert np.array_equal(decode_image(encode(image, "TIFF"), 1)[0].numpy(), GRADIENT)
    assert decode_image(Image.fromarray(np.array([[-5, 2**30, 512]], dtype=np.int32)), 1).tolist() == [[[0, 255, 2]]]
    # What older versions of Pillow made of a dark 16-bit PNG.
    dark = Image.fromarray(np.array([[200, 255]], dtype=np.int32))
    dark.format = "PNG"
    assert decode_image(dark, 1).max() == 0


def test_alpha_is_dropped_and_the_colour_under_it_stays():
    transparent = Image.new("RGBA", (3, 2), (200, 40, 90, 0))
    colour = torch.tensor([200, 40, 90], dtype=torch.uint8).view(3, 1, 1).expand(3, 2, 3)
    assert torch.equal(decode_image(encode(transparent, "PNG")), colour)
    assert decode_image(encode(transparent, "PNG"), 4)[3].max() == 0
    for mode in ("LA", "PA"):
        gray = Image.new("LA", (3, 2), (70, 0)).convert(mode)
        assert decode_image(gray).unique().tolist() == [70]
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 200, 40, 90])
    for transparency in (1, b"\x80\x00"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            encoded = encode(palette, "PNG", transparency=transparency)
            assert torch.equal(decode_image(encoded), colour)
            assert decode_image(encoded, 4)[3].max() == 0


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_counts(format):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    decoded = decode_image(encode(frames[0], format, save_all=True, append_images=frames[1:], duration=50))
    assert (decoded.float().mean(dim=(1, 2)) - torch.tensor([255.0, 0, 0])).abs().max() < 4


@pytest.mark.parametrize("size", [(1, 1), (300, 1), (4000, 3)])
def test_tiny_and_narrow_images_keep_their_shape(size):
    for format in ("PNG", "JPEG"):
        assert decode_image(encode(PHOTO.resize(size), format)).shape == (3, size[1], size[0])


def test_a_path_is_read(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encode(Image.fromarray(GRADIENT), "PNG"))
    assert decode_image({"bytes": None, "path": str(path)}).shape == (3, 8, 24)


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_named_with_its_row_and_kind(name):
    value, kind = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageDecodingError, match="Row 17") as caught:
            decode_image(value, row=17)
    error = caught.value
    assert error.kind == kind and kind in KINDS
    assert 0 < len(error.detail) <= 200 and " at 0x" not in str(error)
    if isinstance(value, dict) and value["path"]:
        assert value["path"] in error.detail and value["path"] in str(error)


def test_kind_and_detail_travel_between_processes():
    with pytest.raises(ImageDecodingError) as caught:
        decode_image({"bytes": b"", "path": "a" * 1000}, row=3)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.kind, copy.detail) == (str(caught.value), "empty", caught.value.detail)
    assert len(copy.detail) <= 200


@pytest.mark.parametrize("limit", [None, 10, 10**12])
def test_decompression_bombs_are_refused_by_their_header(monkeypatch, limit):
    """Whatever Pillow's own limit was set to, which stays as it was."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert decode_image(PNG).shape == (3, 64, 64)
    for owner in (Image.Image, ImageFile.ImageFile):
        monkeypatch.setattr(owner, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(ImageDecodingError) as caught:
        decode_image(png_header(50_000, 50_000))
    assert caught.value.kind == "bomb"
    assert limit == Image.MAX_IMAGE_PIXELS


def test_the_limit_of_pixels(monkeypatch):
    assert MAX_PIXELS == 178_956_970
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 64)
    assert decode_image(PNG).shape == (3, 64, 64)
    for value in (encode(PHOTO.resize((65, 64)), "PNG"), PHOTO.resize((64, 65))):
        with pytest.raises(ImageDecodingError, match="bomb"):
            decode_image(value)


def test_large_images_below_the_limit_are_decoded_without_a_warning(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 64 * 64)  # Pillow warns from half of it on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_image(PNG)


def test_warnings_of_others_come_as_often_as_before():
    """`warnings.catch_warnings` around every image would show them again after each."""
    decode_image(PNG)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            decode_image(PNG)
            warnings.warn("only once", UserWarning, stacklevel=1)
    assert len(shown) == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError("x"),
        ValueError("x"),
        SyntaxError("x"),
        struct.error("x"),
        EOFError(),
        IndexError("x"),
        TypeError("x"),
        OverflowError("x"),
        zlib.error("x"),
        MemoryError(),
        KeyError("x"),
        AssertionError(),
        RecursionError(),
    ],
)
def test_whatever_a_plugin_raises_is_a_bad_image(monkeypatch, error):
    def fail(self):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageDecodingError) as caught:
        decode_image(JPEG)
    assert caught.value.kind in ("corrupt", "truncated")


def test_an_interrupt_is_none(monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ImageFile.ImageFile, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode_image(JPEG)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO", "TGA"])
def test_random_damage_gives_pixels_or_the_error(format):
    rng = np.random.default_rng(0)
    content = encode(PHOTO.resize((32, 32)), format)
    for _ in range(60):
        damaged = bytearray(content[: rng.integers(1, len(content) + 1)])
        for position in rng.integers(0, min(len(damaged), 200), rng.integers(0, 4)):
            damaged[position] = rng.integers(0, 256)
        try:
            assert decode_image(bytes(damaged)).shape[0] == 3
        except ImageDecodingError as error:
            assert error.kind in KINDS


def test_an_unreachable_url_is_no_bad_image(monkeypatch):
    """Or an outage of the network would replace images."""

    def fail(*args, **kwargs):
        raise TimeoutError("no answer")

    monkeypatch.setattr(decoding.fsspec, "open", fail)
    with pytest.raises(TimeoutError):
        decode_image({"bytes": None, "path": "https://example.org/picture.jpg"})


def test_number_of_channels_is_checked():
    with pytest.raises(ValueError, match="num_channels=2"):
        decode_image(encode(Image.fromarray(GRADIENT), "PNG"), 2)


def test_text_is_no_image_and_says_what_to_do():
    with pytest.raises(ImageDecodingError, match=r"the text 'photos/a.jpg', not an image.*\.csv list"):
        decode_image("photos/a.jpg")


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_sizes_are_those_of_decoded_images(orientation):
    file, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (12, 8)).save(file, "JPEG", exif=exif)
    assert size_of(file.getvalue()) == tuple(decode_image(file.getvalue()).shape[1:])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_file_in_a_zip_is_one_bad_image(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", compression) as archive:
        archive.writestr("0.png", encode(Image.fromarray(photos(1)[0]), "PNG"))
    value = {"bytes": None, "path": f"zip://0.png::{tmp_path / 'a.zip'}"}
    assert decode_image(value).shape[0] == 3
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[200] ^= 0xFF
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ImageDecodingError, match="BadZipFile|zlib|error") as raised:
        decode_image(value)
    assert raised.value.kind == "corrupt"
