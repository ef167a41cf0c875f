"""The images that diagnostics look at."""

import argparse
from collections.abc import Iterator
from typing import Any, cast

import torch

from ..conversion.pixels import Pixels, pixels_of
from ..data.dataset import ImageDataset, collate
from ..data.loaders import sequential_loader
from ..data.preprocessing import EvaluationTransform, Normalization, training_transform
from ..data.source import ImageSource
from ..errors import UserError
from ..model import ViTMAERobustConfig


def add_bands_argument(data: argparse._ArgumentGroup) -> None:
    """--bands of the commands that look at a checkpoint."""
    data.add_argument(
        "--bands", type=int, nargs="+", help="Where the model's bands are in these files, counted from 0, in its order."
    )


def as_model_wants(source: ImageSource, pixels: Pixels, args: argparse.Namespace) -> ImageSource:
    """The images of a command, read as a checkpoint wants them, where --bands, --channel_axis and --frame say where its
    bands are. Raises UserError (DataError among them) where they do not fit."""
    bands = None if args.bands is None else tuple(args.bands)
    if bands is not None and pixels.band_form is None:
        raise UserError(f"--bands is for images of bands, and {args.checkpoint} is a model of 8-bit images.")
    pixels = pixels.for_files(args.checkpoint, bands=bands, channel_axis=args.channel_axis, frame=args.frame)
    return source.read_as(pixels.band_form, pixels.num_channels)


class Samples:
    """Batches for evaluators, the same at each pass: evaluation's preprocessing, noise by the row, and a second,
    randomly cropped view of each image."""

    def __init__(
        self, source: ImageSource, config: ViTMAERobustConfig, crop_pct: float, batch_size: int, device: torch.device
    ):
        """source: with random access."""
        self.processor = pixels_of(config).processor(config.image_size, crop_pct)
        self.source, self.config, self.batch_size, self.device = source, config, batch_size, device

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        config, normalize = self.config, Normalization(self.processor, self.device, keeps_missing=True)
        transform, channels = EvaluationTransform(self.processor), config.num_channels
        augmented = ImageDataset(self.source, training_transform(config.image_size), channels)
        plan: dict[str, Any] = {"batch_size": self.batch_size, "rank": 0, "world_size": 1}
        plan["noise_length"] = config.num_patches
        plan["generator"] = torch.Generator()  # the loader would draw from the global one
        for batch in sequential_loader(self.source, transform, channels, **plan):
            valid = batch["row"] >= 0
            second = collate([augmented[0, row] for row in batch["row"][valid].tolist()])["pixel_values"]
            yield {
                "pixel_values": normalize(batch["pixel_values"][valid].to(self.device)),
                "noise": batch["noise"][valid].to(self.device),
                "second_view": normalize(second.to(self.device)),
            }

    def __len__(self) -> int:
        return -(-cast(int, self.source.num_rows) // self.batch_size)
