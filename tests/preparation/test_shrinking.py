"""Shrunk images against Pillow and numpy, and which files stay as they are."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_mae_robust.data.decoding import decode_image
from hf_mae_robust.errors import ImageDecodingError
from hf_mae_robust.preparation.shrinking import Shrinking
from tests.helpers import photos


def encoded(image: np.ndarray | Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(content: bytes, channels: int = 3) -> np.ndarray:
    return decode_image(content, channels).permute(1, 2, 0).numpy().astype(float)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(((one - other) ** 2).mean(), 1e-9))


def with_orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize(("height", "width"), [(600, 900), (1000, 650)])
def test_a_large_photo_is_resized_once(height, width, lossless):
    photo = np.kron(photos(1, 125)[0], np.ones((8, 8, 1), np.uint8))[:height, :width]
    shrunk = Shrinking(64, lossless=lossless)(encoded(photo, quality=95))
    short = min(height, width)
    assert shrunk.former == (height, width) and shrunk.size == (round(height * 64 / short), round(width * 64 / short))
    assert shrunk.ending == (".png" if lossless else ".jpg") and len(shrunk.content) < 20_000
    expected = Image.open(io.BytesIO(encoded(photo, quality=95))).resize(shrunk.size[::-1], Image.Resampling.BICUBIC)
    assert psnr(pixels(shrunk.content), np.asarray(expected, float)) > (40 if lossless else 35)


def test_what_is_small_enough_stays_as_it_is():
    small = photos(1, 40)[0]
    for content, ending in ((encoded(small), ".jpg"), (encoded(small, "PNG"), ".png")):
        shrunk = Shrinking(40)(content)
        assert (shrunk.content, shrunk.ending, shrunk.size) == (content, ending, (40, 40))
    # Others become PNG, with the same pixels.
    for value in (encoded(small, "BMP"), encoded(small, "WEBP", lossless=True), small):
        shrunk = Shrinking(320)(value)
        assert shrunk.ending == ".png" and np.array_equal(pixels(shrunk.content), small)


@pytest.mark.parametrize("side", [10, 320])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_images_are_upright(orientation, side):
    photo = photos(1, 48)[0][:24]
    content = encoded(photo, quality=95, exif=with_orientation(orientation))
    shrunk = Shrinking(side, lossless=True)(content)
    assert Image.open(io.BytesIO(shrunk.content)).getexif().get(0x0112, 1) == 1
    assert shrunk.former == ((24, 48) if orientation == 3 else (48, 24)) and min(shrunk.size) == min(side, 24)
    upright = decode_image(content).permute(1, 2, 0).numpy()
    expected = Image.fromarray(upright).resize(shrunk.size[::-1], Image.Resampling.BICUBIC)
    assert psnr(pixels(shrunk.content), np.asarray(expected, float)) > 40
    assert Shrinking(side)(content).ending == ".jpg"


def test_pixels_are_those_that_training_reads():
    """Of gray, palettes, alpha and CMYK; colours under transparent pixels are kept."""
    photo = photos(1, 32)[0]
    alpha = np.dstack([photo, np.zeros((32, 32), np.uint8)])
    for image, kind in (
        (Image.fromarray(photo).convert("L"), "PNG"),
        (Image.fromarray(photo).quantize(32), "PNG"),
        (Image.fromarray(alpha), "PNG"),
        (Image.fromarray(photo).convert("CMYK"), "JPEG"),
    ):
        content = encoded(image, kind)
        expected = Image.fromarray(decode_image(content).permute(1, 2, 0).numpy())
        expected = np.asarray(expected.resize((16, 16), Image.Resampling.BICUBIC), float)
        assert psnr(pixels(Shrinking(16, lossless=True)(content).content), expected) > 45
    gray = Shrinking(16)(encoded(Image.fromarray(photo).convert("L"), "PNG"))
    assert Image.open(io.BytesIO(gray.content)).mode == "L"
    kept = Shrinking(16, lossless=True)(encoded(Image.fromarray(alpha), "PNG"))
    assert Image.open(io.BytesIO(kept.content)).mode == "RGBA"
    deep = Image.fromarray(photo[..., 0].astype(np.uint16) << 8)
    assert np.array_equal(pixels(Shrinking(320)(encoded(deep, "PNG")).content, 1)[..., 0], photo[..., 0])


@pytest.mark.parametrize(
    ("value", "kind"), [(b"no image", "not_an_image"), (b"", "empty"), (None, "empty"), ("truncated", "truncated")]
)
def test_bad_images_are_told_apart(value, kind):
    value = encoded(photos(1, 64)[0])[:700] if value == "truncated" else value
    with pytest.raises(ImageDecodingError) as error:
        Shrinking(16)(value, 7)
    assert error.value.kind == kind and "Row 7" in str(error.value)
