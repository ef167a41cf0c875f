"""How a classifier or segmenter wants its images, where its checkpoint does not say: it starts from scratch, or from a
checkpoint for other images (--inflate_channels)."""

from dataclasses import replace
from typing import Any

from transformers import BeitConfig

from ..conversion.encoders import read_config
from ..conversion.pixels import Pixels, pixels_of, read_pixels, read_processor
from ..conversion.source import ModelSource
from ..data.source import ImageSource
from ..errors import UserError
from ..model import ViTMAERobustConfig, ViTMAERobustImageProcessor
from ..statistics.band_settings import known_settings, settings_of_statistics
from ..training.arguments import DataArguments
from ..training.parser import parse_config_overrides
from .arguments import FinetuneArguments


def settings_of_images(arguments: FinetuneArguments, source: ImageSource, checkpoint: str | None) -> dict[str, Any]:
    """As `_settings_of_images`, which computes statistics or not; raises UserError where --statistics_samples has no
    effect, too."""
    settings, samples = _settings_of_images(arguments, source, checkpoint), arguments.data.statistics_samples
    if samples is not None and not settings:
        raise UserError(
            f"--statistics_samples {samples}: this run computes no statistics, which fine-tuning does for images of "
            "bands without a checkpoint for them. Leave it out."
        )
    return settings


def _settings_of_images(arguments: FinetuneArguments, source: ImageSource, checkpoint: str | None) -> dict[str, Any]:
    """Fields of [`ViTMAERobustConfig`] that follow from the training images and the flags about bands, as in
    pre-training; none where the checkpoint says how it wants its images, or they are 8-bit pictures.

    checkpoint: to resume from, whose image processor keeps what the run began with.

    Raises UserError (DataError among them) where flags, images and model contradict one another.
    """
    model, data = arguments.model, arguments.data
    computed = _flag_of_statistics(data)
    if not (model.from_scratch or model.inflate_channels or computed):
        return {}
    start = _pixels_of_start(arguments)
    if start is not None and (start.band_form is not None or not (model.from_scratch or model.inflate_channels)):
        if computed is not None:
            raise UserError(
                f"{computed}: fine-tuning takes the statistics of {model.model_name_or_path}. Give --value_range, or "
                "the flag to run_pretrain.py."
            )
        return {}
    if not data.asks_for_bands and (not source.needs_bands or data.image_statistics == "default"):
        if model.inflate_channels is not None:
            raise UserError(
                f"--inflate_channels {model.inflate_channels}: {source.description} holds 8-bit pictures, which "
                f"{model.model_name_or_path} takes as they are. Leave it out."
            )
        if computed is not None:
            raise UserError(
                f"{computed}: fine-tuning computes statistics of images of bands only, and these are 8-bit pictures. "
                "Leave it out."
            )
        return {}
    form, settings = known_settings(source, data, model.token)
    wanted = parse_config_overrides(model.config_overrides).get("num_channels", settings["num_channels"])
    if wanted != settings["num_channels"]:
        raise UserError(
            f"--config_overrides num_channels={wanted}: the images have {settings['num_channels']} bands. Leave it "
            "out, or choose bands with --bands."
        )
    if checkpoint is not None and isinstance(processor := read_processor(checkpoint), ViTMAERobustImageProcessor):
        kept = pixels_of(BeitConfig(num_channels=settings["num_channels"]), processor)
        return {"num_channels": kept.num_channels, **kept.config_settings()}
    config = ViTMAERobustConfig(num_channels=settings["num_channels"])  # its sizes do not count
    workers = arguments.training.dataloader_num_workers
    seed = arguments.training.seed
    return settings | settings_of_statistics(source, data, form, config, num_workers=workers, seed=seed)


def _flag_of_statistics(data: DataArguments) -> str | None:
    """The flag that asks to compute some, if one does."""
    if data.clip_percentiles is not None:
        return "--clip_percentiles"
    return "--image_statistics auto" if data.image_statistics == "auto" else None


def _pixels_of_start(arguments: FinetuneArguments) -> Pixels | None:
    """How the checkpoint wants its images. None: there is none."""
    if arguments.model.model_name_or_path is None:
        return None
    source = ModelSource.of(arguments.model, {})
    config = read_config(source)
    return Pixels() if config is None else read_pixels(source, config)  # a file of the official code


def model_source(arguments: FinetuneArguments, of_images: dict[str, Any]) -> ModelSource:
    """Where the model comes from, for images of these settings."""
    overrides = parse_config_overrides(arguments.model.config_overrides)
    if not of_images:
        return ModelSource.of(arguments.model, overrides)
    if arguments.model.from_scratch:
        return ModelSource.of(arguments.model, {**of_images, **overrides})
    return replace(ModelSource.of(arguments.model, overrides), num_channels=of_images["num_channels"])


def pixels_for(pixels: Pixels, of_images: dict[str, Any]) -> Pixels:
    """How a model that was built by `model_source` wants its images. pixels: as its checkpoint says."""
    return pixels_of(ViTMAERobustConfig(**of_images)) if of_images else pixels
