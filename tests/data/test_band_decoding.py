"""Numbers of files -> pixel values, against numpy."""

import io

import numpy as np
import pytest

from hf_mae_robust.data.band_decoding import decode_band_regions
from hf_mae_robust.errors import ImageDecodingError
from hf_mae_robust.model.bands_vit_mae_robust import BandError, BandForm, BandImage

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 5000, (6, 12, 9)).astype(np.uint16)


def complete(height, width):
    return [(0, 0, height, width)]


def decode(value, form, choose=complete, **options):
    return decode_band_regions(value, form, choose, **options)[0].numpy()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("stored", ["array", "bytes", "path"])
def test_chosen_clipped_and_normalised(tmp_path, dtype, stored):
    image = (RNG.random((6, 12, 9)) * 200 - 100 * (dtype[0] != "u")).astype(dtype)
    (tmp_path / "a.npy").write_bytes(npy(image))
    value = {"array": image, "bytes": npy(image), "path": {"bytes": None, "path": str(tmp_path / "a.npy")}}[stored]
    form = BandForm(
        bands=(4, 0, 5),
        value_range=((-50.0, 90.0), (10.0, 60.0), (0.0, 199.0)),
        image_mean=(10.0, 20.0, 30.0),
        image_std=(2.0, 40.0, 7.0),
        channel_axis="first",
    )
    found = decode(value, form)
    low, high = np.array(form.value_range).T[..., None, None]
    mean, std = (np.array(values)[:, None, None] for values in (form.image_mean, form.image_std))
    expected = (image[[4, 0, 5]].astype(np.float64).clip(low, high) - mean) / std
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_regions_are_parts_of_the_image():
    parts = [(2, 3, 4, 5), (0, 0, 12, 9), (11, 8, 1, 1)]
    found = decode_band_regions(IMAGE, BandForm(channel_axis="first"), lambda height, width: parts)
    for region, (top, left, height, width) in zip(found, parts):
        assert np.array_equal(region, IMAGE[:, top : top + height, left : left + width])


@pytest.mark.parametrize(
    ("image", "form", "missing"),
    [
        pytest.param(np.array([[0, 7], [8, 9]], np.uint16), BandForm(nodata=7), [[0, 1], [0, 0]], id="a number"),
        pytest.param(np.array([[-9999, 7], [8, 9]], np.float32), BandForm(nodata=-9999), [[1, 0], [0, 0]], id="float"),
        pytest.param(np.array([[np.nan, 7], [8, 9]], np.float32), BandForm(), [[1, 0], [0, 0]], id="NaN"),
        pytest.param(
            np.array([[np.finfo(np.float32).min, 7], [8, 9]], np.float32), BandForm(), [[1, 0], [0, 0]], id="-3.4e38"
        ),
        pytest.param(np.array([[0, 7], [8, 9]], np.uint8), BandForm(nodata=-9999), [[0, 0], [0, 0]], id="not in type"),
        pytest.param(
            np.array([[0, 7], [8, 9]], np.uint16),
            BandForm(nodata=0, value_range=((7.5, 8.5),)),
            [[1, 0], [0, 0]],
            id="clipping does not touch it",
        ),
    ],
)
def test_missing_pixels_are_nan(image, form, missing):
    assert np.array_equal(np.isnan(decode(image, form))[0], np.array(missing, bool))


def test_masks_and_numbers_of_the_file_itself():
    valid = np.array([[True, False], [True, True]])
    image = BandImage(np.array([[[1, 2], [3, 4]], [[4, 3], [2, 1]]], np.int16), nodata=4, valid=valid)
    expected = np.array([[[1, np.nan], [3, np.nan]], [[np.nan, np.nan], [2, 1]]])
    np.testing.assert_array_equal(BandForm().apply(image), expected)
    np.testing.assert_array_equal(BandForm(bands=(1,)).apply(image), expected[1:])


@pytest.mark.parametrize("number", [-np.inf, np.inf])
def test_an_infinite_number_that_the_file_names_is_a_missing_pixel(number):
    """Radar images in decibels hold -inf where nothing came back. One that is not named stays an error."""
    image = BandImage(np.array([[[number, -12.5]]], np.float32), nodata=number)
    np.testing.assert_array_equal(BandForm().apply(image), [[[np.nan, -12.5]]])
    with pytest.raises(BandError, match="1 infinite number"):
        BandForm().apply(BandImage(image.pixels, nodata=-number))


def test_large_offsets_keep_their_small_differences():
    image = (33_000 + RNG.integers(0, 250, (1, 8, 8))).astype(np.uint16)
    found = decode(image, BandForm(image_mean=(33_144.5,), image_std=(254.8,), channel_axis="first"))
    np.testing.assert_allclose(found, (image - 33_144.5) / 254.8, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "form", "kind", "words"),
    [
        (IMAGE, BandForm(bands=(0, 6)), "unsupported", "asks for band 6, and the image has 6"),
        (IMAGE, BandForm(image_mean=(0.0,) * 5, image_std=(1.0,) * 5), "mismatch", "6 bands, where 5 are wanted"),
        (np.full((4, 8, 8), np.inf, np.float32), BandForm(), "not_finite", "256 infinite numbers"),
        (np.full((4, 8, 8), np.nan, np.float32), BandForm(), "empty", "every pixel is missing"),
        (np.zeros((4, 8, 8), np.uint16), BandForm(nodata=0), "empty", "every pixel is missing"),
        (np.zeros((4, 8, 8), np.complex64), BandForm(), "unsupported", "complex"),
        (None, BandForm(), "empty", "no image"),
        (b"", BandForm(), "empty", "no bytes"),
        (b"some text that is not an image", BandForm(), "not_an_image", ""),
        ({"bytes": None, "path": "/no/such/file.tif"}, BandForm(), "missing_file", "/no/such/file.tif"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_row(value, form, kind, words):
    with pytest.raises(ImageDecodingError, match="Row 3") as error:
        decode(value, form, row=3)
    assert error.value.kind == kind and words in str(error.value)


def test_an_array_below_the_size_of_a_patch_is_refused():
    with pytest.raises(ImageDecodingError, match="a side of which is below 16"):
        decode(IMAGE, BandForm(channel_axis="first"), min_side=16)


def test_a_form_says_how_many_channels_come_out():
    assert BandForm().num_channels is None
    assert BandForm(bands=(3, 1)).num_channels == 2
    with pytest.raises(BandError, match="not real"):
        BandForm().apply(BandImage(np.zeros((1, 2, 2), np.complex64)))


def test_an_image_of_another_number_of_bands_is_a_bad_one():
    with pytest.raises(ImageDecodingError, match="an image of 3 bands, where 2 are wanted") as caught:
        decode(np.zeros((3, 8, 8), np.uint16), BandForm(), num_channels=2)
    assert caught.value.kind == "mismatch"


@pytest.mark.parametrize("number", [np.finfo(np.float32).min, np.float32(-3.4e38), np.finfo(np.float32).max, -1e300])
def test_numbers_without_a_meaning_are_missing_pixels(number):
    pixels = np.ones((2, 4, 4), np.float32 if isinstance(number, np.float32) else np.float64)
    pixels[1, 2, 3] = number
    assert np.argwhere(np.isnan(decode(pixels, BandForm()))).tolist() == [[1, 2, 3]]
