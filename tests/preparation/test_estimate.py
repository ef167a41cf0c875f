"""What is said of the gain, before anything is written."""

import io

import pytest
from PIL import Image

from hf_mae_robust.data.source import HeldRows, ImageSource
from hf_mae_robust.errors import DataError, ImageDecodingError
from hf_mae_robust.preparation.estimate import Estimate, estimate_of
from tests.helpers import photos


def test_large_images_gain_more_than_small_ones():
    file = io.BytesIO()
    Image.fromarray(photos(1, 32)[0]).resize((1200, 900)).save(file, "JPEG", quality=95)
    large, rows = file.getvalue(), 8
    small = io.BytesIO()
    Image.open(io.BytesIO(large)).resize((64, 48)).save(small, "JPEG")

    def prepare(value):
        if value == b"no image":
            raise ImageDecodingError("broken", "corrupt")
        return small.getvalue()

    source = ImageSource(HeldRows([large, b"no image"] * rows), [2 * rows], True, "set", "")
    found = estimate_of(source, prepare, (32, 32), 1000)
    assert found.num_images == rows and found.gain > 2
    assert found.original_bytes == len(large) and found.prepared_bytes == len(small.getvalue())


def test_nothing_that_can_be_decoded_is_an_error():
    def prepare(value):
        raise ImageDecodingError("broken", "corrupt")

    source = ImageSource(HeldRows([b"no image"] * 3), [3], True, "set", "")
    with pytest.raises(DataError, match="No image of set"):
        estimate_of(source, prepare, (32, 32), 3)


def test_the_words_are_those_of_the_numbers():
    estimate = Estimate(200, 0.3, 0.2, 0.01, 4_200_000, 41_000, 100_000)
    text = estimate.describe(4)
    assert "200 images, one process reads 3.33 a second" in text and "100 once they are prepared: 30 times" in text
    assert "4.2 MB now and 41 kB then" in text and "about 83.3 minutes" in text and "4.1 GB on the disk" in text
    few = Estimate(200, 0.3, 0.2, 0.01, 4_200_000, 41_000, 4).describe(2)
    assert "All 4 images take a second or two to prepare" in few
    assert "All" not in Estimate(200, 0.3, 0.2, 0.01, 1e6, 1e4, None).describe(1)
