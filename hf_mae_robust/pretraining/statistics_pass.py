"""The statistics pass over a data set: on every process, with a progress bar, cached."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from huggingface_hub.constants import HF_HOME
from tqdm.auto import tqdm

from ..data.bad_images import SkippedImages, describe
from ..data.loaders import sequential_loader
from ..data.preprocessing import EvaluationTransform, evaluation_processor
from ..data.source import ImageSource
from ..errors import DataError
from ..model import ViTMAERobustConfig
from ..model.configuration_vit_mae_robust import to_pair
from ..training.processes import first_process
from ..training.signals import SIGNALS
from ..training.stopping import stop_if_asked
from ..version import __version__
from .patch_statistics import PatchStatistics, compute_patch_statistics, merge_across_processes

logger = logging.getLogger(__name__)


def statistics_of_source(
    source: ImageSource,
    config: ViTMAERobustConfig,
    *,
    crop_pct: float,
    batch_size: int = 64,
    num_workers: int = 0,
    max_bad_images: float = 0.01,
) -> PatchStatistics:
    """Population statistics of the patches of all images of a source, preprocessed as for evaluation (resize and
    centre crop, nothing random). Under `accelerate launch` or torchrun each process reads its part, and all get the
    same result. Images that cannot be decoded are left out, counted and logged.

    Raises DataError, in every process, where these are more than a share of `max_bad_images`, or all.
    """
    skipped = SkippedImages(None, max_bad_images)
    state = PartialState()
    form = config.num_channels, config.image_mean, config.image_std
    transform = EvaluationTransform(evaluation_processor(config.image_size, crop_pct, *form))
    loader = sequential_loader(
        source,
        transform,
        config.num_channels,
        batch_size=batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
        num_workers=num_workers,
    )
    total = None if source.num_rows is None else len(loader)
    batches = tqdm(loader, total=total, desc="Patch statistics", unit="batch", disable=not state.is_main_process)
    statistics = compute_patch_statistics(
        _collecting(batches, skipped, source), to_pair(config.patch_size), config.num_channels
    )
    stop_if_asked()
    statistics = merge_across_processes(statistics)
    _report(skipped, source, statistics.metadata["num_images"])
    statistics.metadata |= {
        "dataset": source.description,
        "dataset_fingerprint": source.fingerprint,
        "transform": repr(transform),
        "image_size": list(to_pair(config.image_size)),
        "patch_size": list(to_pair(config.patch_size)),
        "num_channels": config.num_channels,
        "hf_mae_robust": __version__,
    }
    return statistics


def _collecting(
    batches: Iterable[dict[str, Any]], skipped: SkippedImages, source: ImageSource
) -> Iterator[dict[str, Any]]:
    """The same batches, their bad images taken in. Ends early where these are too many or a signal came: the other
    processes learn of it when all of them meet at the end."""
    for batch in batches:
        if SIGNALS.received:
            return
        is_new = skipped.add(batch.pop("skipped", ()))
        if is_new and source.num_rows is not None and skipped.exceeds(source.description, source.num_rows):
            return
        yield batch


def _report(skipped: SkippedImages, source: ImageSource, num_images: int) -> None:
    """Count over all processes. Raises DataError in all of them."""
    skipped.add(gather_object(list(skipped)))
    # The pass has seen all of the split: of a stream too the number is known by now.
    num_rows = source.num_rows if source.num_rows is not None else num_images + len(skipped)
    skipped.check(source.description, num_rows)
    if num_images == 0:
        raise DataError(f"No image of {source.description} can be decoded ({describe(skipped.counts())}).")
    if len(skipped) and PartialState().is_main_process:
        logger.warning(
            "%s: %d of %d images cannot be decoded and were left out (%s).",
            source.description,
            len(skipped),
            num_rows,
            describe(skipped.counts()),
        )


def cached_statistics_path(source: ImageSource, config: ViTMAERobustConfig, crop_pct: float) -> Path:
    """Where the statistics of exactly these images in exactly this form are kept (under HF_HOME)."""
    form = f"{to_pair(config.image_size)} {to_pair(config.patch_size)} {config.num_channels} {crop_pct}"
    key = hashlib.sha256(f"{source.fingerprint} {form}".encode()).hexdigest()[:16]
    return Path(HF_HOME) / "hf_mae_robust" / f"patch_statistics-{key}.safetensors"


def cached_statistics_of_source(source: ImageSource, config: ViTMAERobustConfig, **options: Any) -> PatchStatistics:
    """As `statistics_of_source`, from the cache where they were computed before: that of the first process, because the
    machines of a run need not share one."""
    path = cached_statistics_path(source, config, options["crop_pct"])
    cached = first_process(lambda: PatchStatistics.load(path, config.patch_dim) if path.is_file() else None)
    if cached is not None:
        return cached
    statistics = statistics_of_source(source, config, **options)
    if PartialState().is_main_process:
        statistics.save(path)
    return statistics
