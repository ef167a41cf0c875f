"""How a checkpoint wants its images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import IMAGE_PROCESSOR_NAME, PROCESSOR_NAME

from ..errors import UserError, refused_by_library
from .source import ModelSource


@dataclass(frozen=True)
class Pixels:
    """How images must be prepared: channels, and the mean and deviation per channel of values in [0, 1]."""

    num_channels: int = 3
    image_mean: Sequence[float] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: Sequence[float] = tuple(IMAGENET_DEFAULT_STD)


def read_pixels(source: ModelSource, config: PreTrainedConfig) -> Pixels:
    """How a checkpoint wants its images: as its config says, or its image processor, or as ImageNet's."""
    has_own = hasattr(config, "image_mean")
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
    return processor


def pixels_of(config: PreTrainedConfig, processor: BaseImageProcessor | None = None) -> Pixels:
    """By the processor, else by the config; where neither fits the channels, ImageNet's, or 0.5 of other channels."""
    channels, holder = config.num_channels, processor if processor is not None else config
    mean, std = getattr(holder, "image_mean", None), getattr(holder, "image_std", None)
    if mean is None or std is None or len(mean) != channels:
        is_rgb = channels == 3
        mean, std = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if is_rgb else ([0.5] * channels, [0.5] * channels)
    return Pixels(channels, tuple(mean), tuple(std))
