"""How a checkpoint wants its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoImageProcessor, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

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
    """The image processor of a checkpoint, if it brings one."""
    if Path(name).is_file():
        return None
    try:
        return AutoImageProcessor.from_pretrained(name, token=token)
    except OSError:
        return None


def pixels_of(config: PreTrainedConfig, processor: BaseImageProcessor | None = None) -> Pixels:
    """By the processor, else by the config; where neither fits the channels, ImageNet's, or 0.5 of other channels."""
    channels, holder = config.num_channels, processor if processor is not None else config
    mean, std = getattr(holder, "image_mean", None), getattr(holder, "image_std", None)
    if mean is None or std is None or len(mean) != channels:
        is_rgb = channels == 3
        mean, std = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if is_rgb else ([0.5] * channels, [0.5] * channels)
    return Pixels(channels, tuple(mean), tuple(std))
