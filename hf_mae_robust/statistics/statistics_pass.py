"""The statistics passes over a data set, cached."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from accelerate import PartialState
from huggingface_hub.constants import HF_HOME

from ..data.bad_images import portable_description
from ..data.preprocessing import EvaluationTransform, evaluation_processor
from ..data.source import ImageSource
from ..data.stamps import stamp_of
from ..errors import UserError
from ..hub.faults import describe
from ..model import ViTMAERobustConfig
from ..model.configuration_vit_mae_robust import to_pair
from ..training.processes import first_process
from ..training.stopping import stop_if_asked
from ..version import __version__
from .band_pass import about, percentiles_of_band_source, statistics_of_band_source, warn
from .band_statistics import BandStatistics
from .image_pass import ImagePass
from .patch_statistics import UNITS_OF_PIXELS, PatchStatistics, compute_patch_statistics, merge_across_processes
from .sampling import Sample, SampleErrors
from .statistics_file import read_statistics, write_statistics
from .stored import stored_band_statistics, stored_patch_statistics

logger = logging.getLogger(__name__)

Found = TypeVar("Found")


def statistics_of_source(
    source: ImageSource,
    config: ViTMAERobustConfig,
    *,
    crop_pct: float,
    batch_size: int = 64,
    num_workers: int = 0,
    max_bad_images: float = 0.01,
    sample: Sample | None = None,
) -> PatchStatistics:
    """Population statistics of the patches of all images of a source, preprocessed as for evaluation (resize and
    centre crop, nothing random). Under `accelerate launch` or torchrun each process reads its part, and all get the
    same result. Images that cannot be decoded are left out, counted and logged.

    Of a source of bands in the units of its files (see `statistics_of_band_source`), and of others of pixels in [0, 1].

    sample: of these images alone; how sure that is stands in the metadata (`describe_sample`).

    Raises DataError, in every process, where bad images are more than a share of `max_bad_images`, or all.
    """
    if source.band_form is not None:
        _, of_patches = statistics_of_band_source(
            source,
            config,
            crop_pct=crop_pct,
            batch_size=batch_size,
            num_workers=num_workers,
            max_bad_images=max_bad_images,
            sample=sample,
        )
        return cast(PatchStatistics, of_patches)  # they were asked for
    population, errors = source.num_rows, None
    if sample is not None and (drawn := sample.of(source)) is not source:
        source, errors = drawn, SampleErrors.empty(config.patch_dim)
    form = config.num_channels, config.image_mean, config.image_std
    transform = EvaluationTransform(evaluation_processor(config.image_size, crop_pct, *form))
    images = ImagePass(
        source,
        transform,
        config.num_channels,
        title="Patch statistics",
        batch_size=batch_size,
        num_workers=num_workers,
        max_bad_images=max_bad_images,
    )
    statistics = compute_patch_statistics(images, to_pair(config.patch_size), config.num_channels, errors)
    stop_if_asked()
    statistics = merge_across_processes(statistics)
    images.check(statistics.metadata["num_images"])
    if errors is not None and sample is not None:
        errors = merge_across_processes(errors)
        num_seen = statistics.metadata["num_images"] + len(images.skipped)
        if sample.leaves_out(population, num_seen):
            statistics.metadata["sampling"] = errors.summary(statistics.mean, statistics.std, population)
    statistics.metadata |= {
        "dataset": portable_description(source.description),
        "dataset_fingerprint": source.fingerprint,
        "transform": repr(transform),
        "image_size": list(to_pair(config.image_size)),
        "patch_size": list(to_pair(config.patch_size)),
        "num_channels": config.num_channels,
        "units": UNITS_OF_PIXELS,
        "hf_mae_robust": __version__,
    }
    return statistics


def _cache_path(kind: str, source: ImageSource, form: str) -> Path:
    if source.band_form is not None:
        read = source.band_form
        limits = None if read.value_range is None else np.asarray(read.value_range, dtype=np.float64).tolist()
        nodata = None if read.nodata is None else float(read.nodata)  # the same key for 0 and 0.0
        bands = None if read.bands is None else list(read.bands)
        form += f" {bands} {nodata} {limits} {read.channel_axis} {read.frame}"
    key = hashlib.sha256(f"{source.fingerprint} {stamp_of(source)} {form}".encode()).hexdigest()[:16]
    return Path(HF_HOME) / "hf_mae_robust" / f"{kind}-{key}.safetensors"


def _kept(load: Callable[[], Found | None]) -> Found | None:
    """What `load` finds in a file, in the first process and for all. None where the file is missing or cannot be read:
    that costs a pass, and does not end the run."""

    def found() -> Found | None:
        try:
            return load()
        except (UserError, OSError) as error:
            logger.warning("%s. The statistics are computed.", str(error).rstrip("."))
            return None

    return first_process(found)


def _keep(path: Path, save: Callable[[Path], None]) -> None:
    """In the cache, by the first process. Where it cannot be written to, the next run computes the statistics again."""
    if not PartialState().is_main_process:
        return
    try:
        save(path)
    except OSError as error:
        logger.warning(
            "The statistics cannot be kept in %s (%s). This run has them; the next one computes them again.",
            path.parent,
            describe(error),
        )


def cached_statistics_path(source: ImageSource, config: ViTMAERobustConfig, crop_pct: float) -> Path:
    """Where the statistics of exactly these images in exactly this form are kept (under HF_HOME). Another path once a
    file of the images was written again."""
    form = f"{to_pair(config.image_size)} {to_pair(config.patch_size)} {config.num_channels} {crop_pct}"
    if source.decodes_scaled:
        form += " scaled"  # not those of every pixel, which stood here before, and belong to --full_size_decoding
    return _cache_path("patch_statistics", source, form)


def cached_statistics_of_source(
    source: ImageSource, config: ViTMAERobustConfig, *, sample: Sample | None = None, **options: Any
) -> PatchStatistics:
    """As `statistics_of_source`, from the cache where they were computed before: that of the first process, because the
    machines of a run need not share one; or from beside the data (stored.py)."""
    if source.band_form is not None:
        return cast(PatchStatistics, cached_statistics_of_band_source(source, config, sample=sample, **options)[1])
    images = source if sample is None else sample.of(source)
    path = first_process(lambda: cached_statistics_path(images, config, options["crop_pct"]))
    cached = _kept(lambda: PatchStatistics.load(path, config.patch_dim) if path.is_file() else None)
    if cached is not None:
        return cached
    # Those beside the data are of all images.
    statistics = None
    if images is source:
        statistics = _kept(lambda: stored_patch_statistics(source, config, options["crop_pct"]))
    if statistics is None:
        statistics = statistics_of_source(source, config, sample=sample, **options)
    _keep(path, statistics.save)
    return statistics


def cached_statistics_of_band_source(
    source: ImageSource,
    config: ViTMAERobustConfig,
    *,
    crop_pct: float,
    with_patches: bool = True,
    sample: Sample | None = None,
    **options: Any,
) -> tuple[BandStatistics, PatchStatistics | None]:
    """As `statistics_of_band_source`, each of the two from the cache where both were computed before."""
    images = source if sample is None else sample.of(source)
    path, patch_path = first_process(
        lambda: (
            _cache_path("band_statistics", images, f"{config.num_channels}"),
            cached_statistics_path(images, config, crop_pct),
        )
    )
    if images.band_form is None:  # numbers from 0 to 255, and those at this path are of pixels from 0 to 1
        patch_path = patch_path.with_name(f"numbers_{patch_path.name}")

    def load() -> tuple[BandStatistics | None, PatchStatistics | None]:
        return (
            BandStatistics.load(path, config.num_channels) if path.is_file() else None,
            PatchStatistics.load(patch_path, config.patch_dim) if with_patches and patch_path.is_file() else None,
        )

    bands, patches = _kept(load) or (None, None)
    if bands is not None and (patches is not None or not with_patches):
        warn(bands)
        return bands, patches
    stored = None
    if images is source and not with_patches:
        stored = _kept(lambda: stored_band_statistics(source, config.num_channels))
    if stored is not None:
        bands, patches = stored, None
        warn(bands)
    else:
        bands, patches = statistics_of_band_source(
            source, config, crop_pct=crop_pct, with_patches=with_patches, sample=sample, **options
        )
    _keep(path, bands.save)
    if patches is not None:
        _keep(patch_path, patches.save)
    return bands, patches


def band_statistics_of_source(source: ImageSource, num_channels: int, **options: Any) -> BandStatistics:
    """Statistics of the bands alone, from the cache where they were computed before; no image is resized.

    num_channels: bands after the choice. options: batch_size, num_workers, max_bad_images and sample, as of
    `statistics_of_band_source`, whose errors it raises.
    """
    config = ViTMAERobustConfig(num_channels=num_channels)  # its sizes are for patches
    return cached_statistics_of_band_source(source, config, crop_pct=1.0, with_patches=False, **options)[0]


def value_range_of_source(
    source: ImageSource, num_channels: int, percentiles: Sequence[float], **options: Any
) -> list[tuple[float, float]]:
    """What --clip_percentiles LO HI makes of each band, from the cache where it was computed before: `value_range` of
    the form. A pass of its own, because mean and deviation are those of the clipped numbers.

    num_channels: bands after the choice. options: num_workers and max_bad_images.

    Raises as `BandPercentiles.value_range` and `percentiles_of_band_source`.
    """
    low, high = percentiles
    bands = None if source.band_form is None else source.band_form.bands
    path = first_process(lambda: _cache_path("band_percentiles", source, f"{num_channels} {low} {high}"))

    def load() -> list[tuple[float, float]] | None:
        if not path.is_file():
            return None
        return [(first, last) for first, last in read_statistics(path)[0]["value_range"].tolist()]

    found = _kept(load)
    if found is None:
        distribution = percentiles_of_band_source(source, num_channels, **options)
        found = distribution.value_range(low, high, bands)
        tensors = {"value_range": torch.tensor(found, dtype=torch.float64)}
        _keep(path, lambda path: write_statistics(path, tensors, about(source, num_channels)))
    return found
