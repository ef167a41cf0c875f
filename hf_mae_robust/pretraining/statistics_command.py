"""python -m hf_mae_robust statistics: the population statistics of a data set's patches, as a file."""

import argparse
from pathlib import Path
from typing import cast

import torch
from accelerate import PartialState

from ..data.opening import open_splits
from ..data.source import DataLocation, ImageSource
from ..errors import UserError, refused_by_library
from ..model import ViTMAERobustConfig
from ..training.arguments import add_data_arguments, add_worker_argument
from .statistics_pass import statistics_of_source


def add_statistics_arguments(parser: argparse.ArgumentParser) -> None:
    data = add_data_arguments(parser)
    data.add_argument("--split", default="train", help="Split to go over (%(default)s).")
    data.add_argument("--max_samples", type=int, help="At most N images, drawn at random.")
    form = parser.add_argument_group("form of the images (must be the model's)")
    form.add_argument("--image_size", type=int, nargs="+", default=[224], help="One number, or height and width (224).")
    form.add_argument("--patch_size", type=int, nargs="+", default=[16], help="One number, or height and width (16).")
    form.add_argument("--num_channels", type=int, default=3, choices=(1, 3, 4), help="(%(default)s)")
    form.add_argument("--crop_pct", type=float, default=0.875, help="See run_pretrain.py (%(default)s).")
    running = parser.add_argument_group("running")
    running.add_argument("--batch_size", type=int, default=64, help="Images at a time (%(default)s).")
    add_worker_argument(running)
    parser.add_argument("--output", required=True, type=Path, help="The .safetensors file to write.")


def run_statistics(args: argparse.Namespace) -> None:
    """Compute the population statistics of a data set's patches and write them to a file."""
    if args.output.is_dir():
        example = args.output / "statistics.safetensors"
        raise UserError(f"--output {args.output} is a folder; name a file, such as {example}.")
    state = PartialState(cpu=not torch.accelerator.is_available())
    sizes = {
        name: given[0] if len(given) == 1 else given
        for name, given in (("image_size", args.image_size), ("patch_size", args.patch_size))
    }
    with refused_by_library(" ".join(f"--{name} {' '.join(map(str, getattr(args, name)))}" for name in sizes)):
        config = ViTMAERobustConfig(**sizes, num_channels=args.num_channels)
    opened, _ = open_splits(DataLocation.of(args, args.token), args.split, None, train_flag="--split")
    source = cast(ImageSource, opened)  # a split was named
    statistics = statistics_of_source(
        source.sample(args.max_samples),
        config,
        crop_pct=args.crop_pct,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    if state.is_main_process:
        statistics.save(args.output)
        print(
            f"{args.output}: {statistics.count:,} patches of {statistics.metadata['num_images']:,} images; mean "
            f"{statistics.mean.mean():.4f}, standard deviation {statistics.std.mean():.4f} (averages over the "
            f"{len(statistics.mean)} numbers of a patch)"
        )
    state.wait_for_everyone()
    state.destroy_process_group()
