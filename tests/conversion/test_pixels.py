"""How a checkpoint wants its images, by its config or its image processor; the tests of models have more of it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import BeitConfig, CLIPImageProcessor, ViTImageProcessor

from hf_mae_robust import ViTMAERobustImageProcessor
from hf_mae_robust.conversion.pixels import Pixels, pixels_of, read_pixels, read_processor
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.data.preprocessing import Normalization, band_processor
from hf_mae_robust.errors import UserError
from hf_mae_robust.model.bands_vit_mae_robust import BandForm
from tests.model_helpers import tiny_config

FORM = BandForm(
    bands=(3, 2), nodata=-1.0, image_mean=(900.0, 1200.0), image_std=(90.0, 120.5), channel_axis="last", frame=1
)


def config_of_bands(form: BandForm) -> SimpleNamespace:
    """What is looked at of a band model's config."""
    names = ("bands", "nodata", "value_range", "image_mean", "image_std")
    settings = {name: getattr(form, name) for name in names}
    return SimpleNamespace(
        num_channels=2, is_band_model=True, band_settings=lambda: settings, **{n: settings[n] for n in names[3:]}
    )


def test_a_stock_model_of_bands_is_told_by_its_image_processor(tmp_path):
    band_processor(FORM, 16).save_pretrained(tmp_path)
    read = read_processor(str(tmp_path))
    assert type(read) is ViTMAERobustImageProcessor
    pixels = read_pixels(ModelSource(str(tmp_path)), BeitConfig(num_channels=2))
    assert pixels == Pixels(2, FORM.image_mean, FORM.image_std, FORM)
    with pytest.raises(UserError, match="bands has 2 numbers, and the model takes 3 channels"):
        read_pixels(ModelSource(str(tmp_path)), BeitConfig(num_channels=3))


def test_a_band_model_is_told_by_its_config_and_the_rest_by_its_image_processor(tmp_path):
    config = config_of_bands(FORM)
    source = ModelSource(str(tmp_path))
    assert read_pixels(source, config).band_form == replace(FORM, channel_axis=None, frame=None)
    band_processor(replace(FORM, bands=(7, 8), nodata=0), 16).save_pretrained(tmp_path)
    assert read_pixels(source, config).band_form == FORM
    assert pixels_of(config).image_mean == FORM.image_mean


def test_pixels_of_8_bits_are_as_before():
    pixels = pixels_of(tiny_config(image_mean=[0.1, 0.2, 0.3]))
    assert pixels.band_form is None and type(pixels.processor(32, 0.875)) is CLIPImageProcessor
    assert list(pixels.processor(32, 0.875).image_mean) == [0.1, 0.2, 0.3]


def test_the_processor_of_bands_takes_their_form():
    processor = pixels_of(BeitConfig(num_channels=2), band_processor(FORM, 16)).processor(24, 0.75, show_bands=[3])
    assert processor.band_form == FORM and dict(processor.size) == {"shortest_edge": 32}
    assert processor.show_bands == [3]
    unscaled = pixels_of(BeitConfig(num_channels=5), band_processor(BandForm(), 16))
    assert unscaled.image_std == (1.0,) * 5 and unscaled.band_form == BandForm()
    values = unscaled.processor(16, 1.0)(torch.ones(5, 16, 16).numpy(), return_tensors="pt").pixel_values
    assert torch.equal(values, torch.ones(1, 5, 16, 16))


@pytest.mark.parametrize("settings", [{}, {"do_normalize": False}, {"image_mean": [0.1] * 3, "image_std": [0.7] * 3}])
def test_pixel_values_are_those_of_the_checkpoints_own_processor(tmp_path, settings):
    own = ViTImageProcessor(size=16, **settings)
    own.save_pretrained(tmp_path)
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    expected = own(image, return_tensors="pt").pixel_values
    pixels = read_pixels(ModelSource(str(tmp_path)), BeitConfig())
    for processor in (read_processor(str(tmp_path)), pixels.processor(16, 1.0)):
        found = Normalization(processor, torch.device("cpu"))(image[None])
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_other_units_than_0_to_1_are_refused(tmp_path, settings):
    ViTImageProcessor(**settings).save_pretrained(tmp_path)
    (name, value), *_ = settings.items()
    with pytest.raises(UserError, match=f"says {name} {value}.*divided by 255"):
        read_processor(str(tmp_path))


def test_a_gray_model_takes_the_one_number_that_three_channels_of_its_processor_have(tmp_path):
    ViTImageProcessor(size=16, do_normalize=False).save_pretrained(tmp_path)
    assert read_pixels(ModelSource(str(tmp_path)), BeitConfig(num_channels=1)) == Pixels(1, (0.0,), (1.0,))
