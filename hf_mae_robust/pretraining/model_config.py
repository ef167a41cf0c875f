"""The configuration of the model. What the images hold decides over a part of it: the number of channels, and how the
numbers of the files become pixel values."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ..conversion.any_encoder import read_start
from ..conversion.pretraining_model import read_pretraining_config
from ..conversion.source import ModelSource
from ..data.source import ImageSource
from ..errors import UserError
from ..model import ViTMAERobustConfig
from ..model.bands_vit_mae_robust import BandForm
from ..statistics.band_settings import (
    given_settings,
    known_settings,
    placeholders,
    sample_of,
    say_of_sample,
    settings_of_checkpoint,
    settings_of_statistics,
)
from ..statistics.statistics_pass import band_statistics_of_source
from ..training.parser import parse_config_overrides
from .arguments import CONFIG_FLAGS, ModelArguments, PretrainArguments


def config_of(arguments: ModelArguments, of_images: Mapping[str, Any] = MappingProxyType({})) -> ViTMAERobustConfig:
    """The configuration that checkpoint, images, --config_overrides and flags ask for; the later of these wins.

    of_images: `settings_of_images`.

    Raises ValueError for unknown settings and values out of range.
    """
    overrides = {**of_images, **parse_config_overrides(arguments.config_overrides)}
    overrides |= {flag: value for flag in CONFIG_FLAGS if (value := getattr(arguments, flag)) is not None}
    source = ModelSource.of(arguments, overrides)
    return read_pretraining_config(source, read_start(source).config if arguments.encoder_from else None)


def settings_of_images(
    arguments: PretrainArguments, source: ImageSource, checkpoint: str | None = None, computes: bool = True
) -> dict[str, Any]:
    """Fields of [`ViTMAERobustConfig`] that follow from the training images and the flags about bands; none for a model
    of 8-bit images with the usual statistics.

    Args:
        checkpoint: to resume from, whose settings stay.
        computes: False leaves placeholders where statistics would take a pass over the images (--dry_run).

    Raises UserError (DataError among them) where flags, images and model contradict one another.
    """
    data, start = arguments.data, arguments.model.model_name_or_path
    overrides = parse_config_overrides(arguments.model.config_overrides)
    unset: dict[str, Any] = dict.fromkeys(CONFIG_FLAGS)
    base = config_of(replace(arguments.model, **unset)) if start else None
    if base is None and arguments.model.inflate_channels is not None:
        raise UserError(
            f"--inflate_channels {arguments.model.inflate_channels} is for a model to start from "
            "(--model_name_or_path). Leave it out: a new model has the channels of the images."
        )
    asks = data.asks_for_bands
    if base is not None and not base.is_band_model and arguments.model.inflate_channels is None:
        if asks:
            raise UserError(
                f"{data.first_band_flag} is for images of bands, and {start} is a model of 8-bit images. "
                "--inflate_channels mean makes it a model of bands."
            )
        return _of_8_bit(arguments, source, checkpoint, computes)
    if base is not None and base.is_band_model:
        return _of_band_model(arguments, base, source, computes)
    if not asks and (not source.needs_bands or data.image_statistics == "default"):
        if base is None and source.needs_bands and source.stored is not None and not source.stored.has_picture:
            raise UserError(
                f"--image_statistics default: {source.description} holds {source.stored}, for which no mean and "
                "deviation are usual. Leave it out, and those of the training images are taken."
            )
        if base is not None:
            raise UserError(
                f"--inflate_channels {arguments.model.inflate_channels}: {source.description} holds 8-bit pictures, "
                f"which {start} takes as they are. Leave it out."
            )
        return _of_8_bit(arguments, source, checkpoint, computes)
    data.check_pictures()
    form, settings = known_settings(source, data, arguments.model.token)
    num_channels = settings["num_channels"]
    wanted = overrides.get("num_channels", num_channels)
    if wanted != num_channels:
        raise UserError(
            f"--config_overrides num_channels={wanted}: {source.description} holds {source.stored}, so the model would "
            f"have {num_channels} channel{'s' * (num_channels != 1)}. Leave it out, or choose {wanted} bands with "
            "--bands."
        )
    if checkpoint is not None and (kept := settings_of_checkpoint(checkpoint)):
        if kept.get("num_channels") != num_channels:
            raise UserError(
                f"{checkpoint} was trained on {kept.get('num_channels')} bands, and this run asks for {num_channels} "
                "(--bands). Use the same, choose another --output_dir, or train from the beginning with "
                "--overwrite_output_dir."
            )
        # A flag that is missing now is another setting, too. Percentiles are kept, and compared by themselves.
        asked = dict.fromkeys(("bands", "nodata") if data.clip_percentiles else ("bands", "nodata", "value_range"))
        return {**kept, **asked, **given_settings(data, form)}
    return settings | _statistics(arguments, source, form, settings, computes)


def _of_8_bit(
    arguments: PretrainArguments, source: ImageSource, checkpoint: str | None, computes: bool
) -> dict[str, Any]:
    """--image_statistics auto: mean and deviation of values in [0, 1]."""
    if arguments.data.image_statistics != "auto" or not computes:
        return {}
    if checkpoint is not None:
        kept = settings_of_checkpoint(checkpoint)
        return {name: kept[name] for name in ("image_mean", "image_std") if name in kept}
    statistics = band_statistics_of_source(
        source,
        config_of(arguments.model).num_channels,
        num_workers=arguments.training.dataloader_num_workers,
        max_bad_images=arguments.data.max_bad_images,
        sample=sample_of(arguments.data, arguments.training.seed),
    )
    say_of_sample(statistics.metadata)
    return {
        "image_mean": (statistics.mean / 255).tolist(),
        "image_std": [std / 255 if std else 1.0 for std in statistics.std.tolist()],
    }


def _of_band_model(
    arguments: PretrainArguments, base: ViTMAERobustConfig, source: ImageSource, computes: bool
) -> dict[str, Any]:
    """Starting from a model for such images: its settings, with the flags that say what is different in these files."""
    data = arguments.data
    if data.bands is not None and len(data.bands) != base.num_channels:
        raise UserError(
            f"--bands {' '.join(map(str, data.bands))}: {arguments.model.model_name_or_path} takes {base.num_channels} "
            f"bands, not {len(data.bands)}."
        )
    settings = given_settings(data, data.band_form(base.num_channels))
    form = BandForm(**{**base.band_settings(), **settings, "channel_axis": data.channel_axis, "frame": data.frame})
    if data.image_statistics == "auto" or data.clip_percentiles is not None:
        form = replace(form, image_mean=None, image_std=None)
        known = {**base.band_settings(), **settings, "num_channels": base.num_channels}
        settings |= _statistics(arguments, source, form, known, computes)
    return settings


def _statistics(
    arguments: PretrainArguments, source: ImageSource, form: BandForm, settings: dict[str, Any], computes: bool
) -> dict[str, Any]:
    """As `settings_of_statistics`. settings: those known so far, with `num_channels`."""
    model, unknown = arguments.model, placeholders(settings["num_channels"])
    source.read_as(form, settings["num_channels"])  # says what does not fit before any pass, and in a dry run
    if not computes:
        return unknown
    config = config_of(model, {**settings, **unknown})
    return settings_of_statistics(
        source,
        arguments.data,
        form,
        config,
        num_workers=arguments.training.dataloader_num_workers,
        seed=arguments.training.seed,
        with_patches=config.target_normalization == "global_patch" and model.target_statistics == "auto",
    )
