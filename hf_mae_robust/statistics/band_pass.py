"""The statistics pass over images of bands: each image is read once, and worked on by the process that decodes it."""

import logging
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState

from ..data.bad_images import portable_description
from ..data.preprocessing import EvaluationTransform, evaluation_processor
from ..data.source import ImageSource
from ..model import ViTMAERobustConfig
from ..model.bands_vit_mae_robust import BandForm
from ..model.configuration_vit_mae_robust import to_pair
from ..training.stopping import stop_if_asked
from ..version import __version__
from .band_percentiles import BandPercentiles
from .band_statistics import BandStatistics
from .image_pass import ImagePass
from .patch_statistics import UNITS_OF_FILES, PatchStatistics, merge_across_processes, patches_of
from .sampling import Sample, SampleErrors

logger = logging.getLogger(__name__)

# Of stored images, which may be large.
IMAGES_AT_ONCE = 4


def in_units_of_files(source: ImageSource) -> ImageSource:
    """The same images, read without mean and deviation; 8-bit pictures as they are, from 0 to 255."""
    if source.band_form is None:
        return source
    return replace(source, band_form=replace(source.band_form, image_mean=None, image_std=None))


class Reduction:
    """A transform from an image to its statistics, so that no pixels travel between processes: `(C, h, w)`, in the
    units of the file, NaN where a pixel is missing (or uint8) -> float64 `(6 C + 3 D)`, the packed `BandStatistics` and
    `PatchStatistics` of the image.

    Args:
        config: of which image size, patch size and number of channels count.
        evaluation: what is done to an image before it is cut into patches; None: no patch statistics (D is 0).
    """

    def __init__(self, config: ViTMAERobustConfig, evaluation: EvaluationTransform | None):
        self.num_channels, self.patch_size = config.num_channels, to_pair(config.patch_size)
        self.patch_dim, self.evaluation = config.patch_dim if evaluation else 0, evaluation

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        return 0, 0, height, width

    def finish(self, pixels: torch.Tensor) -> torch.Tensor:
        bands, patches = BandStatistics.empty(self.num_channels), PatchStatistics.empty(self.patch_dim)
        bands.update(pixels)
        if self.evaluation is not None:
            patches.update(patches_of(prepared(pixels, self.evaluation)[None], self.patch_size))
        return torch.cat([bands.packed().flatten(), patches.packed().flatten()])

    def tell(self, packed: torch.Tensor, of_bands: SampleErrors, of_patches: SampleErrors) -> None:
        """`(B, 6 C + 3 D)` of several images -> what standard errors have to know of each."""
        bands, patches = packed.split([6 * self.num_channels, 3 * self.patch_dim], dim=1)
        count, _, mean, squares, _, _ = bands.unflatten(1, (6, -1)).unbind(1)
        of_bands.add(count, mean, squares)
        of_patches.add(*patches.reshape(len(packed), 3, self.patch_dim).unbind(1))

    def unpack(self, packed: torch.Tensor) -> tuple[BandStatistics, PatchStatistics]:
        """`(B, 6 C + 3 D)` of several images -> their common statistics."""
        bands, patches = packed.split([6 * self.num_channels, 3 * self.patch_dim], dim=1)
        return (
            BandStatistics.unpacked(bands.unflatten(1, (6, -1))),
            PatchStatistics.unpacked(patches.reshape(len(packed), 3, self.patch_dim)),
        )


def prepared(pixels: torch.Tensor, evaluation: EvaluationTransform) -> torch.Tensor:
    """`(C, h, w)` in the units of the file -> `(C, H, W)`, as the model sees it.

    A resize fills missing pixels with 0, which is the mean of a band once it is normalised. Here the mean over the data
    is not known yet, and that of the band in this image stands for it. It counts only at the border of missing pixels,
    and only of images that are resized.
    """
    missing = pixels.isnan()
    if not missing.any():
        return evaluation(pixels)
    # In float64, so that what is not resized comes back exactly.
    center = pixels.double().nanmean(dim=(1, 2), keepdim=True).nan_to_num(0.0)
    return evaluation(pixels - center) + center


def statistics_of_band_source(
    source: ImageSource,
    config: ViTMAERobustConfig,
    *,
    crop_pct: float,
    with_patches: bool = True,
    batch_size: int = 64,
    num_workers: int = 0,
    max_bad_images: float = 0.01,
    sample: Sample | None = None,
) -> tuple[BandStatistics, PatchStatistics | None]:
    """Statistics of the bands of all images of a source, of the pixels as they are stored, and population statistics of
    their patches, preprocessed as for evaluation (resize and centre crop, nothing random), in one pass. Both are in the
    units of the files, after the choice of bands and clipping (`source.band_form`, whose mean and deviation do not
    count). Of 8-bit pictures the numbers are those from 0 to 255.

    Under `accelerate launch` or torchrun each process reads its part, and all get the same result. Images that cannot
    be decoded are left out, counted and logged.

    Args:
        config: of which image size, patch size and number of channels count.
        with_patches: False gives None instead of patch statistics.
        sample: of these images alone; how sure that is stands in the metadata (`describe_sample`).

    Raises DataError, in every process, where bad images are more than a share of `max_bad_images`, or all, and where a
    band or a place of a patch is missing in all images.
    """
    source, population = in_units_of_files(source), source.num_rows
    drawn = source if sample is None else sample.of(source)
    is_sampled, source = drawn is not source, drawn
    evaluation = evaluation_of(config, crop_pct) if with_patches else None
    reduction = Reduction(config, evaluation)
    images = ImagePass(
        source,
        reduction,
        config.num_channels,
        title="Band and patch statistics" if with_patches else "Band statistics",
        batch_size=batch_size,
        num_workers=num_workers,
        max_bad_images=max_bad_images,
    )
    bands, patches = BandStatistics.empty(config.num_channels), PatchStatistics.empty(reduction.patch_dim)
    of_bands, of_patches = SampleErrors.empty(config.num_channels), SampleErrors.empty(reduction.patch_dim)
    num_images = 0
    for batch in images:
        packed = batch["pixel_values"][batch["row"] >= 0]
        if len(packed):
            some_bands, some_patches = reduction.unpack(packed)
            bands.merge(some_bands)
            patches.merge(some_patches)
            if is_sampled:
                reduction.tell(packed, of_bands, of_patches)
            num_images += len(packed)
    stop_if_asked()
    for statistics in (bands, patches):
        statistics.metadata["num_images"] = num_images
    bands, patches = merge_across_processes(bands), merge_across_processes(patches)
    images.check(bands.metadata["num_images"])
    bands.metadata |= about(source, config.num_channels)
    num_seen = bands.metadata["num_images"] + len(images.skipped)
    if is_sampled and sample is not None and sample.leaves_out(population, num_seen):
        of_bands, of_patches = merge_across_processes(of_bands), merge_across_processes(of_patches)
        bands.metadata["sampling"] = of_bands.summary(bands.mean, bands.std, population)
        patches.metadata["sampling"] = of_patches.summary(patches.mean, patches.std, population)
    bands.check(source.description)
    warn(bands)
    if evaluation is None:
        return bands, None
    patches.check(source.description)
    patches.metadata |= {
        **about(source, config.num_channels),
        "transform": repr(evaluation),
        "image_size": list(to_pair(config.image_size)),
        "patch_size": list(to_pair(config.patch_size)),
    }
    return bands, patches


def evaluation_of(config: ViTMAERobustConfig, crop_pct: float) -> EvaluationTransform:
    """The geometry of evaluation; mean and deviation are for the device, and do not count here."""
    neutral = [0.0] * config.num_channels, [1.0] * config.num_channels
    return EvaluationTransform(evaluation_processor(config.image_size, crop_pct, config.num_channels, *neutral))


def about(source: ImageSource, num_channels: int) -> dict[str, Any]:
    """What statistics in the units of the files were computed over."""
    form = source.band_form or BandForm()
    settings = {"bands": form.bands, "nodata": form.nodata, "value_range": form.value_range}
    return {
        "dataset": portable_description(source.description),
        "dataset_fingerprint": source.fingerprint,
        "num_channels": num_channels,
        "units": UNITS_OF_FILES if source.band_form is not None else "pixels from 0 to 255",
        **{name: value for name, value in settings.items() if value is not None},
        "hf_mae_robust": __version__,
    }


def warn(bands: BandStatistics) -> None:
    """Log what is odd about bands, once."""
    if PartialState().is_main_process:
        for sentence in bands.warnings():
            logger.warning("%s", sentence)


def _unchanged(pixels: torch.Tensor) -> torch.Tensor:
    return pixels


def percentiles_of_band_source(
    source: ImageSource, num_channels: int, *, num_workers: int = 0, max_bad_images: float = 0.01
) -> BandPercentiles:
    """The distribution of the numbers of each band, of the pixels as they are stored, in the units of the files,
    without mean, deviation and clipping. On every process, as `statistics_of_band_source`, and with its errors."""
    source = in_units_of_files(source)
    if source.band_form is not None:
        source = replace(source, band_form=replace(source.band_form, value_range=None))
    images = ImagePass(
        source,
        _unchanged,
        num_channels,
        title="Percentiles of the bands",
        batch_size=IMAGES_AT_ONCE,
        num_workers=num_workers,
        max_bad_images=max_bad_images,
    )
    percentiles, num_images = BandPercentiles(num_channels), 0
    for batch in images:
        for pixels, row in zip(batch["pixel_values"], batch["row"].tolist(), strict=True):
            if row >= 0:
                percentiles.update(pixels, row)
                num_images += 1
    stop_if_asked()
    percentiles.metadata["num_images"] = num_images
    percentiles = merge_across_processes(percentiles)
    images.check(percentiles.metadata["num_images"])
    return percentiles
