"""Features of complete data sets, computed once."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from .bad_images import SkippedImage, SkippedImages
from .loaders import sequential_loader
from .preprocessing import EvaluationTransform, Normalization
from .source import ImageSource


def features_by_row(
    encode: Callable[[torch.Tensor], torch.Tensor],
    source: ImageSource,
    transform: EvaluationTransform,
    num_channels: int,
    *,
    batch_size: int = 64,
    num_workers: int = 4,
    max_bad_images: float = 0.01,
    shows_progress: bool = True,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, classes and rows of all images of a source, in order, in every process, with the evaluation's
    preprocessing.

    Args:
        encode: `(B, C, H, W)`, normalised, on `device` -> `(B, d)`.

    Returns:
        `(N, d)` float32 and two of `(N,)` int64, on the CPU. Images that cannot be decoded are left out; more of them
        than a share of `max_bad_images` raise DataError.
    """
    state, normalization = PartialState(), Normalization(transform.processor, torch.device(device))
    loader = sequential_loader(
        source,
        transform,
        num_channels,
        batch_size=batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
        num_workers=num_workers,
    )
    rows: list[torch.Tensor] = []
    features: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    found: list[SkippedImage] = []
    is_silent = not (state.is_main_process and shows_progress)
    bar = tqdm(loader, desc=f"Features of {source.description}", unit="batch", disable=is_silent)
    with torch.no_grad():
        for batch in bar:
            found += batch.get("skipped", ())
            valid = batch["row"] >= 0
            features.append(encode(normalization(batch["pixel_values"].to(device))).float().cpu()[valid])
            rows.append(batch["row"][valid])
            labels.append(batch["labels"][valid])
    mine: list[Any] = [(torch.cat(rows), torch.cat(features), torch.cat(labels), found)]
    parts = gather_object(mine) if state.num_processes > 1 else mine
    skipped = SkippedImages(None, max_bad_images)
    skipped.add(record for part in parts for record in part[3])
    skipped.check(source.description, source.num_rows, sum(len(part[0]) for part in parts) + len(skipped))
    all_rows, all_features, all_labels = (torch.cat([part[i] for part in parts]) for i in range(3))
    order = all_rows.argsort()
    return all_features[order], all_labels[order], all_rows[order]


def extract_features(
    encode: Callable[[torch.Tensor], torch.Tensor],
    source: ImageSource,
    transform: EvaluationTransform,
    num_channels: int,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`features_by_row` without the rows."""
    features, labels, _ = features_by_row(encode, source, transform, num_channels, **options)
    return features, labels
