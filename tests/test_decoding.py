import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mae_robust.decoding import ImageDecodingError, decode_image


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


GRADIENT = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (8, 1))  # (8, 24)


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


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    decoded = decode_image(encode(Image.fromarray(GRADIENT), "JPEG", exif=exif))
    assert decoded.shape == (3, 24, 8)


def test_16_bit_and_float_images_are_scaled_not_clipped():
    deep = Image.fromarray((GRADIENT.astype(np.uint16) << 8) + 17)
    assert np.array_equal(decode_image(encode(deep, "PNG"), 1)[0].numpy(), GRADIENT)
    floating = Image.fromarray(GRADIENT.astype(np.float32) / 255)
    assert np.array_equal(decode_image(encode(floating, "TIFF"), 1)[0].numpy(), GRADIENT)


def test_a_path_is_read(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(encode(Image.fromarray(GRADIENT), "PNG"))
    assert decode_image({"bytes": None, "path": str(path)}).shape == (3, 8, 24)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        None,
        {"bytes": None, "path": None},
        {"bytes": b"", "path": "zero_byte.jpg"},
        b"<html>404</html>",
        encode(Image.fromarray(GRADIENT), "JPEG")[:200],
        {"bytes": None, "path": "no/such/file.jpg"},
    ],
)
def test_what_is_no_image_is_named_with_its_row(value):
    with pytest.raises(ImageDecodingError, match="Row 17"):
        decode_image(value, row=17)


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(ImageDecodingError, match="DecompressionBomb"):
        decode_image(encode(Image.fromarray(GRADIENT), "PNG"))


def test_number_of_channels_is_checked():
    with pytest.raises(ValueError, match="num_channels=2"):
        decode_image(encode(Image.fromarray(GRADIENT), "PNG"), 2)
