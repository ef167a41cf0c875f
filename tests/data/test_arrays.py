"""Arrays and lists of numbers: pictures only where height and width are certain."""

import io

import numpy as np
import pytest
from PIL import Image

from hf_mae_robust.data.decoding import decode_image
from hf_mae_robust.errors import ImageDecodingError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def encoded() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "value", [PIXELS, np.moveaxis(PIXELS, -1, 0), PIXELS.tolist()], ids=["(H, W, C)", "(C, H, W)", "lists"]
)
def test_colours_may_be_first_or_last(value):
    assert np.array_equal(decode_image(value), np.moveaxis(PIXELS, -1, 0))


@pytest.mark.parametrize("value", [PIXELS[..., 0], PIXELS[..., :1], PIXELS[None, ..., 0]])
def test_one_channel_with_or_without_its_axis(value):
    assert np.array_equal(decode_image(value, 1)[0], PIXELS[..., 0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (list(range(256)), "256 numbers in a flat list"),
        (list(encoded()), "bytes of a PNG file as a list"),
        ([list(range(256))], "side below 4"),
        (PIXELS[..., :2], r"shape \(8, 12, 2\).*1, 3 or 4 channels"),
        (PIXELS[None], r"shape \(1, 8, 12, 3\)"),
        ([[1, 2, 3], [4, 5]], "different lengths"),
        (PIXELS / 255, r"float64 from 0 to 1, where whole numbers from 0 to 255 are wanted"),
    ],
)
def test_other_lists_are_refused_with_the_reason(value, message):
    with pytest.raises(ImageDecodingError, match=message) as error:
        decode_image(value)
    assert error.value.kind == "unsupported"
