"""The images that diagnostics look at."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from transformers.image_processing_utils import BaseImageProcessor

from ..data.bad_images import SkippedImages
from ..data.dataset import ImageDataset, collate
from ..data.loaders import sequential_loader
from ..data.preprocessing import EvaluationTransform, Normalization, training_transform
from ..data.source import ImageSource
from ..errors import DataError
from ..model import ViTMAERobustConfig


class Samples:
    """Batches for evaluators, the same at each pass: evaluation's preprocessing, noise by the row, and a second,
    randomly cropped view of each image. Images that cannot be decoded are left out, and counted in `skipped`; a pass
    raises DataError where none can."""

    def __init__(
        self,
        source: ImageSource,
        config: ViTMAERobustConfig,
        processor: BaseImageProcessor,
        batch_size: int,
        device: torch.device,
    ):
        """source: with random access. processor: the model's."""
        self.processor = processor
        self.source, self.config, self.batch_size, self.device = source, config, batch_size, device
        self.skipped = SkippedImages(None, 1.0)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        config, normalize = self.config, Normalization(self.processor, self.device, keeps_missing=True)
        transform, channels = EvaluationTransform(self.processor), config.num_channels
        augmented = ImageDataset(self.source, training_transform(config.image_size), channels)
        plan: dict[str, Any] = {"batch_size": self.batch_size, "rank": 0, "world_size": 1}
        plan["noise_length"] = config.num_patches
        plan["generator"] = torch.Generator()  # the loader would draw from the global one
        for batch in sequential_loader(self.source, transform, channels, **plan):
            self.skipped.add(batch.get("skipped", ()))
            valid = batch["row"] >= 0
            if not bool(valid.any()):
                continue
            second = collate([augmented[0, row] for row in batch["row"][valid].tolist()])["pixel_values"]
            yield {
                "pixel_values": normalize(batch["pixel_values"][valid].to(self.device)),
                "noise": batch["noise"][valid].to(self.device),
                "second_view": normalize(second.to(self.device)),
            }

        if not self.num_decoded:
            first = next(iter(self.skipped))
            raise DataError(
                f"No image of {self.source.description} can be decoded. The first: row {first.row}: {first.detail}."
            )

    @property
    def num_decoded(self) -> int:
        """Images of a pass, those left out that cannot be decoded."""
        return cast(int, self.source.num_rows) - len(self.skipped)

    def __len__(self) -> int:
        return -(-cast(int, self.source.num_rows) // self.batch_size)
