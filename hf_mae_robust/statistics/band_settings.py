"""Settings of a model that follow from its images of bands: how many channels it has, and how the numbers of the files
become pixel values."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.band_detection import stored_bands_of
from ..data.source import DataLocation, ImageSource
from ..errors import UserError
from ..model import ViTMAERobustConfig
from ..model.bands_vit_mae_robust import BandForm
from ..training.arguments import DataArguments
from ..training.processes import first_process
from ..training.setup import say
from .sampling import Sample, describe_sample
from .statistics_pass import cached_statistics_of_band_source, value_range_of_source

# Fields of ViTMAERobustConfig that follow from the images.
FIELDS = ("num_channels", "rescale_factor", "image_mean", "image_std", "bands", "nodata", "value_range")


def given_settings(data: DataArguments, form: BandForm) -> dict[str, Any]:
    """Those that the flags give."""
    ranges = None if form.value_range is None else [list(pair) for pair in form.value_range]
    settings = {"bands": data.bands, "nodata": form.nodata, "value_range": ranges}
    return {name: value for name, value in settings.items() if value is not None}


def known_settings(source: ImageSource, data: DataArguments, token: str | None) -> tuple[BandForm, dict[str, Any]]:
    """Before any statistics: the form of the images by the flags, and the settings that follow from it and from what is
    stored. Raises UserError where no image can be decoded, or the flags do not fit."""
    stored = stored_bands_of(source, DataLocation.of(data, token), first_process)
    form = data.band_form(stored.num_channels)
    num_channels = len(form.bands) if form.bands is not None else stored.num_channels
    return form, {"num_channels": num_channels, "rescale_factor": 1.0, **given_settings(data, form)}


def settings_of_checkpoint(checkpoint: str) -> dict[str, Any]:
    """What a pre-training that resumes began with: statistics are not computed again."""
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    return {name: config[name] for name in FIELDS if name in config}


def placeholders(num_channels: int) -> dict[str, Any]:
    """Mean and deviation where none are known so far."""
    return {"image_mean": [0.0] * num_channels, "image_std": [1.0] * num_channels}


def sample_of(data: DataArguments, seed: int) -> Sample | None:
    """What --statistics_samples asks for."""
    return None if data.statistics_samples is None else Sample(data.statistics_samples, seed)


def say_of_sample(metadata: dict[str, Any]) -> None:
    """Say how sure statistics are, where they are of random images."""
    if (sentence := describe_sample(metadata)) is not None:
        say(f"Statistics of {sentence}")


def settings_of_statistics(
    source: ImageSource,
    data: DataArguments,
    form: BandForm,
    config: ViTMAERobustConfig,
    *,
    num_workers: int,
    seed: int,
    with_patches: bool = False,
) -> dict[str, Any]:
    """Clipping by percentiles, if asked for, then mean and deviation of each band after it, in the units of the files.

    Args:
        form: without mean and deviation.
        config: of the model, with `placeholders`; only its number of channels counts without patches.
        seed: of the sample that --statistics_samples asks for.
        with_patches: compute the statistics of the patches in the same pass, which wait in the cache.
    """
    sample = sample_of(data, seed)
    found: dict[str, Any] = {}
    num_channels, running = config.num_channels, {"num_workers": num_workers, "max_bad_images": data.max_bad_images}
    if data.clip_percentiles is not None:
        images = source.read_as(form, num_channels)
        images = images if sample is None else sample.of(images)
        ranges = value_range_of_source(images, num_channels, data.clip_percentiles, **running)
        form = replace(form, value_range=tuple(ranges))
        found["value_range"] = [list(pair) for pair in ranges]
    bands, _ = cached_statistics_of_band_source(
        source.read_as(form, num_channels),
        config,
        crop_pct=data.crop_pct,
        with_patches=with_patches,
        sample=sample,
        **running,
    )
    say_of_sample(bands.metadata)
    say(f"{source.description}: {bands.describe()}")
    if bands.is_constant.all():
        raise UserError(
            f"{source.description}: all pixels of each band are the same number, so that there is nothing to learn. "
            "Look at the files, --value_range and --nodata."
        )
    return {**found, "image_mean": bands.mean.tolist(), "image_std": bands.usable_std.tolist()}
