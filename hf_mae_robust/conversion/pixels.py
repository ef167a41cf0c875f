"""How a checkpoint wants its images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, CLIPImageProcessor, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from ..data.preprocessing import band_processor, evaluation_processor
from ..errors import UserError, refused_by_library
from ..model import ViTMAERobustImageProcessor
from ..model.bands_vit_mae_robust import BandForm
from .source import ModelSource


@dataclass(frozen=True)
class Pixels:
    """How images must be prepared: channels, and the mean and deviation per channel of values in [0, 1].

    Attributes:
        band_form: of a band model, whose mean and deviation are in the units of the files; None: 8-bit images.
    """

    num_channels: int = 3
    image_mean: Sequence[float] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: Sequence[float] = tuple(IMAGENET_DEFAULT_STD)
    band_form: BandForm | None = None

    def processor(
        self, image_size: int | Sequence[int], crop_pct: float, show_bands: Sequence[int] | None = None
    ) -> CLIPImageProcessor:
        """MAE's evaluation preprocessing of such images: `band_processor` or `evaluation_processor`."""
        if self.band_form is not None:
            return band_processor(self.band_form, image_size, crop_pct, show_bands)
        return evaluation_processor(image_size, crop_pct, self.num_channels, self.image_mean, self.image_std)

    def config_settings(self) -> dict[str, Any]:
        """Fields of [`ViTMAERobustConfig`] that say the same."""
        settings: dict[str, Any] = {"image_mean": list(self.image_mean), "image_std": list(self.image_std)}
        if (form := self.band_form) is not None:
            settings |= {"rescale_factor": 1.0, "nodata": form.nodata}
            settings["bands"] = None if form.bands is None else list(form.bands)
            settings["value_range"] = None if form.value_range is None else [list(pair) for pair in form.value_range]
        return settings

    def for_files(self, model: str, **settings: Any) -> "Pixels":
        """The same for files that hold their images differently: what is not None of the settings of `BandForm` wins.
        Mean and deviation stay the model's; 8-bit images stay what they are. model: its name, for errors.

        Raises UserError for another number of bands than the model's.
        """
        if self.band_form is None:
            return self
        bands = settings.get("bands")
        if bands is not None and len(bands) != self.num_channels:
            chosen = " ".join(map(str, bands))
            raise UserError(f"--bands {chosen}: {model} takes {self.num_channels} bands, not {len(bands)}.")
        given = {name: value for name, value in settings.items() if value is not None}
        return replace(self, band_form=replace(self.band_form, **given))


def read_pixels(source: ModelSource, config: PreTrainedConfig) -> Pixels:
    """How a checkpoint wants its images: as its config says, or its image processor, or as ImageNet's. Of a band model,
    which axis of arrays and which frame of files it takes stands in the image processor alone."""
    has_own = hasattr(config, "image_mean") and not getattr(config, "is_band_model", False)
    return pixels_of(config, None if has_own else read_processor(source.checkpoint, source.access.token))


def read_processor(name: str, token: str | None = None) -> BaseImageProcessor | None:
    """The image processor of a checkpoint, if it brings one. Raises UserError for one that cannot be used."""
    brings_one = any((Path(name) / file).exists() for file in (IMAGE_PROCESSOR_NAME, PROCESSOR_NAME))
    if Path(name).exists() and not brings_one:
        return None
    with refused_by_library(f"{name}: its {IMAGE_PROCESSOR_NAME} cannot be used"):
        try:
            processor = AutoImageProcessor.from_pretrained(name, token=token, trust_remote_code=False)
        except OSError:
            if brings_one:
                raise
            return None
    for setting, above in (("image_mean", -math.inf), ("image_std", 0.0)):
        values = getattr(processor, setting, None)
        numbers = values if isinstance(values, Sequence) and not isinstance(values, str) else [values]
        if values is not None and not all(isinstance(x, int | float) and above < x < math.inf for x in numbers):
            raise UserError(f"{name}: its {IMAGE_PROCESSOR_NAME} says {setting} {values}.")
    if not isinstance(processor, ViTMAERobustImageProcessor):
        _read_steps(name, processor)
    return processor


def processor_of(
    checkpoint: str, pixels: Pixels, image_size: int | Sequence[int], crop_pct: float | None, token: str | None = None
) -> BaseImageProcessor:
    """The image processor that a checkpoint brings; with `crop_pct` (--crop_pct), or where it brings none, that of
    MAE's evaluation for its `pixels`. Raises as `read_processor`."""
    own = read_processor(checkpoint, token) if crop_pct is None else None
    return own if own is not None else pixels.processor(image_size, crop_pct or 0.875)


def _read_steps(name: str, processor: Any) -> None:
    """Steps that a processor leaves out: without normalisation the mean is 0 and the deviation 1. Raises UserError
    where it does not divide by 255, as is done here."""
    factor = getattr(processor, "rescale_factor", None)
    for setting, is_usual in (
        ("do_rescale", getattr(processor, "do_rescale", None) is not False),
        ("rescale_factor", factor is None or math.isclose(factor, 1 / 255, rel_tol=1e-5)),
    ):
        if not is_usual:
            raise UserError(
                f"{name}: its {IMAGE_PROCESSOR_NAME} says {setting} {getattr(processor, setting)}. Here, images are "
                "divided by 255: change image_mean and image_std to those of values in [0, 1], and remove the setting."
            )
    if getattr(processor, "do_normalize", None) is False:
        channels = len(getattr(processor, "image_mean", None) or IMAGENET_DEFAULT_MEAN)
        processor.image_mean, processor.image_std = [0.0] * channels, [1.0] * channels
        processor.do_normalize = True


def pixels_of(config: PreTrainedConfig, processor: BaseImageProcessor | None = None) -> Pixels:
    """By the processor, else by the config; where neither fits the channels, ImageNet's, or 0.5 of other channels."""
    if (form := _band_form(config, processor)) is not None:
        return _checked(form, config.num_channels)
    channels, holder = config.num_channels, processor if processor is not None else config
    mean, std = (_repeated(getattr(holder, name, None), channels) for name in ("image_mean", "image_std"))
    if mean is None or std is None or len(mean) != channels:
        is_rgb = channels == 3
        mean, std = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if is_rgb else ([0.5] * channels, [0.5] * channels)
    return Pixels(channels, tuple(mean), tuple(std))


def _repeated(values: Sequence[float] | None, channels: int) -> Sequence[float] | None:
    """Of a gray image processor, whose default is three equal numbers."""
    return [values[0]] * channels if values is not None and len(set(values)) == 1 else values


def _band_form(config: PreTrainedConfig, processor: BaseImageProcessor | None) -> BandForm | None:
    """Of a band model, by its config where that knows of bands (our own), else by its image processor. None: 8-bit
    images."""
    form = processor.band_form if isinstance(processor, ViTMAERobustImageProcessor) else None
    if getattr(config, "is_band_model", False):
        settings: Any = config
        told = form or BandForm()
        return replace(BandForm(**settings.band_settings()), channel_axis=told.channel_axis, frame=told.frame)
    return form


def _checked(form: BandForm, num_channels: int) -> Pixels:
    """Raises UserError where the images of a form do not fit the channels of its model."""
    mean = (0.0,) * num_channels if form.image_mean is None else form.image_mean
    std = (1.0,) * num_channels if form.image_std is None else form.image_std
    for name, values in (("bands", form.bands), ("image_mean", mean), ("image_std", std)):
        if values is not None and len(values) != num_channels:
            given = f"{IMAGE_PROCESSOR_NAME}: {name} has {len(values)} numbers"
            raise UserError(f"{given}, and the model takes {num_channels} channels.")
    return Pixels(num_channels, mean, std, form)
