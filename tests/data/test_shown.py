"""Images of any number of bands as pictures: contrast, missing pixels, and which bands."""

import numpy as np
import pytest
import torch

from hf_mae_robust.data.preprocessing import Normalization, band_processor
from hf_mae_robust.data.shown import MISSING_GRAY, to_shown
from hf_mae_robust.model.bands_vit_mae_robust import BandForm


def bands(count: int = 5) -> torch.Tensor:
    """Each in another range, with an outlier and a hole."""
    image = torch.randn(count, 20, 30) * torch.logspace(0, 4, count).view(-1, 1, 1) + 100
    image[:, 0, 0] = 1e9
    image[:, 5:9, 5:9] = torch.nan
    return image


def test_the_contrast_of_each_band_goes_from_its_second_to_its_98th_percentile():
    image = bands()
    shown = to_shown(image, (4, 0, 2))
    assert shown.shape == (3, 20, 30) and shown.dtype == torch.float32
    for place, channel in enumerate((4, 0, 2)):
        band = image[channel].numpy()
        low, high = np.nanpercentile(band, (2, 98))
        expected = np.nan_to_num(np.clip((band - low) / (high - low), 0, 1), nan=MISSING_GRAY)
        np.testing.assert_allclose(shown[place].numpy(), expected, atol=1e-4)
    assert (shown[:, 5:9, 5:9] == MISSING_GRAY).all()
    wide = to_shown(image, (4, 0, 2), (0, 100))
    assert wide[:, 0, 0].eq(1).all() and wide[:, 1:5].max() < 0.01


def test_normalised_images_and_those_in_units_of_the_files_look_the_same():
    image = bands()
    mean, std = torch.randn(5, 1, 1) * 1000, torch.rand(5, 1, 1) + 0.5
    torch.testing.assert_close(to_shown(image), to_shown((image - mean) / std), atol=1e-3, rtol=1e-3)


def test_reconstructions_have_the_contrast_of_their_original():
    image = bands()
    assert torch.equal(to_shown(image, like=image), to_shown(image))
    darker = image - 1e6
    assert (to_shown(darker, like=image)[:, 1:5] == 0).all() and to_shown(darker)[:, 1:5].max() > 0.9


@pytest.mark.parametrize(("count", "expected"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (13, [0, 1, 2])])
def test_by_default_the_first_three_bands_or_the_first(count, expected):
    image = bands(count)
    assert torch.equal(to_shown(image), torch.cat([to_shown(image, [band])[:1] for band in expected]))


def test_images_without_contrast_or_pixels_are_pictures():
    flat = torch.full((3, 8, 8), 7.0)
    assert (to_shown(flat) == 0.5).all()
    assert (to_shown(flat * torch.nan) == MISSING_GRAY).all()
    flat[:, 0, 0] = 8.0  # the percentiles are the same, the numbers are not
    assert to_shown(flat)[:, 0, 0].eq(1).all() and to_shown(flat)[:, 1:].eq(0).all()


def test_normalised_bands_are_turned_into_pictures_by_their_processor():
    form = BandForm(bands=(7, 3, 5), image_mean=(1.0,) * 3, image_std=(2.0,) * 3)
    processor = band_processor(form, 20, show_bands=[5])
    assert processor.shown_channels == (2,)
    image = bands(3)
    shown = Normalization(processor, torch.device("cpu")).undo(image)
    assert shown.dtype == torch.uint8 and torch.equal(shown, (to_shown(image, [2]) * 255).round().to(torch.uint8))
    assert band_processor(form, 20).shown_channels is None
    assert band_processor(BandForm(), 20, show_bands=[3, 2, 1]).shown_channels == (3, 2, 1)
    with pytest.raises(ValueError, match="--show_bands 1: must be some of the bands 7, 3, 5"):
        band_processor(form, 20, show_bands=[1])
    with pytest.raises(ValueError, match="--show_bands 5: must be some of the bands 0, 1"):
        band_processor(BandForm(image_mean=(0.0,) * 2), 20, show_bands=[5])
