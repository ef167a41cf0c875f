"""The statistics pass over a data set: on every process, with a progress bar, cached."""

import hashlib
from pathlib import Path

from accelerate import PartialState
from huggingface_hub.constants import HF_HOME
from tqdm.auto import tqdm

from .data import sequential_loader
from .model import ViTMAERobustConfig
from .model.configuration_vit_mae_robust import to_pair
from .sources import ImageSource
from .statistics import PatchStatistics, compute_patch_statistics, merge_across_processes
from .transforms import EvaluationTransform, evaluation_processor
from .version import __version__


def statistics_of_source(
    source: ImageSource,
    config: ViTMAERobustConfig,
    *,
    crop_pct: float,
    batch_size: int = 64,
    num_workers: int = 0,
) -> PatchStatistics:
    """Population statistics of the patches of all images of a source, preprocessed as for evaluation (resize and
    centre crop, nothing random). Under `accelerate launch` or torchrun each process reads its part, and all get the
    same result."""
    state = PartialState()
    transform = EvaluationTransform(evaluation_processor(config, crop_pct))
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
    statistics = merge_across_processes(
        compute_patch_statistics(batches, to_pair(config.patch_size), config.num_channels)
    )
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


def cached_statistics_path(source: ImageSource, config: ViTMAERobustConfig, crop_pct: float) -> Path:
    """Where the statistics of exactly these images in exactly this form are kept (under HF_HOME)."""
    form = f"{to_pair(config.image_size)} {to_pair(config.patch_size)} {config.num_channels} {crop_pct}"
    key = hashlib.sha256(f"{source.fingerprint} {form}".encode()).hexdigest()[:16]
    return Path(HF_HOME) / "hf_mae_robust" / f"patch_statistics-{key}.safetensors"


def cached_statistics_of_source(source: ImageSource, config: ViTMAERobustConfig, **options) -> PatchStatistics:
    """As `statistics_of_source`, from the cache where they were computed before."""
    state = PartialState()
    path = cached_statistics_path(source, config, options["crop_pct"])
    is_cached = path.is_file()
    state.wait_for_everyone()  # no process may see the file that another one is about to write
    if is_cached:
        return PatchStatistics.load(path, config.patch_dim)
    statistics = statistics_of_source(source, config, **options)
    if state.is_main_process:
        statistics.save(path)
    return statistics
