"""python -m hf_mae_robust statistics: the population statistics of a data set's patches, as a file."""

import argparse
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState

from ..data.band_detection import stored_bands_of
from ..data.opening import open_splits
from ..data.source import SEED, DataLocation, ImageSource
from ..errors import UserError, refused_by_library
from ..files import check_ending
from ..model import ViTMAERobustConfig
from ..statistics.band_pass import statistics_of_band_source
from ..statistics.patch_statistics import PatchStatistics
from ..statistics.sampling import Sample, describe_sample
from ..statistics.statistics_pass import statistics_of_source, value_range_of_source
from ..training.arguments import (
    add_bad_images_argument,
    add_data_arguments,
    add_form_arguments,
    add_worker_argument,
)
from ..training.band_arguments import BandArguments
from ..training.peers import joining
from ..training.processes import first_process

# Processes that have gone over their images wait so long for the slowest; as long as the default of --ddp_timeout.
PATIENCE_S = 1800


def add_statistics_arguments(parser: argparse.ArgumentParser) -> None:
    data = add_data_arguments(parser)
    data.add_argument("--split", default="train", help="Split to go over (%(default)s).")
    data.add_argument(
        "--statistics_samples",
        "--max_samples",
        type=int,
        help="Over N random images, drawn by --seed; the standard error is printed. Default: over all.",
    )
    data.add_argument("--seed", type=int, default=SEED, help="Of --statistics_samples, as of a run (%(default)s).")
    add_bad_images_argument(data, "they are left out")
    form = add_form_arguments(parser, "form of the images (must be the model's)")
    form.add_argument(
        "--num_channels", type=int, help="Channels; default: 3 for 8-bit pictures, and what the files hold for others."
    )
    _add_band_arguments(parser)
    running = parser.add_argument_group("running")
    running.add_argument("--batch_size", type=int, default=64, help="Images at a time (%(default)s).")
    add_worker_argument(running)
    parser.add_argument("--output", required=True, type=Path, help="The .safetensors file to write.")


def _add_band_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `BandArguments` that say how numbers become pixel values."""
    bands = parser.add_argument_group("images that are not 8-bit pictures (see run_pretrain.py)")
    bands.add_argument("--bands", type=int, nargs="+", help="Bands to take, 0-based, in this order; default: all.")
    bands.add_argument("--nodata", type=float, help="Number that marks a missing pixel, beside NaN and the file's own.")
    bands.add_argument("--value_range", type=float, nargs="+", help="Clip to LO HI: a pair for all, or for each band.")
    bands.add_argument("--clip_percentiles", type=float, nargs=2, help="Clip each band to these percentiles: LO HI.")
    bands.add_argument(
        "--image_statistics",
        choices=["default"],
        help="default: take deeper files as 8-bit pictures, for a run that does so with this flag.",
    )


def run_statistics(args: argparse.Namespace) -> None:
    """Compute the population statistics of a data set's patches, and of the bands of images that are not 8-bit
    pictures, and write them to a file."""
    if args.output.is_dir():
        example = args.output / "statistics.safetensors"
        raise UserError(f"--output {args.output} is a folder; name a file, such as {example}.")
    check_ending(args.output, "--output", ".safetensors")
    if args.num_channels is not None and args.num_channels < 1:
        raise UserError(f"--num_channels {args.num_channels}: must be at least 1.")
    given: dict[str, Any] = {field.name: getattr(args, field.name, None) for field in fields(BandArguments)}
    flags = BandArguments(**given)
    on_cpu = not torch.accelerator.is_available()
    with joining(PATIENCE_S, on_cpu, None):
        state = PartialState(cpu=on_cpu, timeout=timedelta(seconds=PATIENCE_S))
    sizes = {
        name: given[0] if len(given) == 1 else given
        for name, given in (("image_size", args.image_size), ("patch_size", args.patch_size))
    }
    refusal = " ".join(f"--{name} {' '.join(map(str, getattr(args, name)))}" for name in sizes)
    with refused_by_library(refusal):
        ViTMAERobustConfig(**sizes)  # before any data are opened
    location = DataLocation.of(args, args.token)
    opened, _ = open_splits(location, args.split, None, share=first_process, train_flag="--split")
    source = cast(ImageSource, opened)  # a split was named
    sample = None if args.statistics_samples is None else Sample(args.statistics_samples, args.seed)
    running: dict[str, Any] = {"num_workers": args.num_workers, "max_bad_images": args.max_bad_images}
    bands = None
    if flags.image_statistics == "default":
        source = _as_pictures(source, flags)
    if flags.asks_for_bands or (source.needs_bands and flags.image_statistics is None):
        source, num_channels = _as_bands(source, location, flags, args.num_channels, sample, **running)
        config = ViTMAERobustConfig(**sizes, num_channels=num_channels)
        bands, of_patches = statistics_of_band_source(
            source, config, crop_pct=args.crop_pct, batch_size=args.batch_size, sample=sample, **running
        )
        statistics = cast(PatchStatistics, of_patches)  # they were asked for
    else:
        config = ViTMAERobustConfig(**sizes, num_channels=3 if args.num_channels is None else args.num_channels)
        statistics = statistics_of_source(
            source, config, crop_pct=args.crop_pct, batch_size=args.batch_size, sample=sample, **running
        )
    if state.is_main_process:
        statistics.save(args.output, None if bands is None else bands.tensors())
        print(
            f"{args.output}: {statistics.num_patches:,} patches of {statistics.metadata['num_images']:,} images; mean "
            f"{statistics.mean.mean():.4f}, standard deviation {statistics.std.mean():.4f} (averages over the "
            f"{len(statistics.mean)} numbers of a patch)"
        )
        if (sentence := describe_sample(statistics.metadata)) is not None:
            print(f"Patches of {sentence}")
        if bands is not None:
            if (sentence := describe_sample(bands.metadata)) is not None:
                print(f"Bands of {sentence}")
            print(bands.table())
    state.wait_for_everyone()
    state.destroy_process_group()


def _as_pictures(source: ImageSource, flags: BandArguments) -> ImageSource:
    """The images read as 8-bit pictures, whatever they hold. Raises UserError where no such picture shows them, or
    where other flags ask for bands."""
    flags.check_pictures()
    if source.needs_bands and source.stored is not None and not source.stored.can_be_shown:
        raise UserError(
            f"--image_statistics default: {source.description} holds {source.stored}, which no 8-bit picture shows. "
            "Leave it out."
        )
    return replace(source, band_form=None)


def _as_bands(
    source: ImageSource,
    location: DataLocation,
    flags: BandArguments,
    num_channels: int | None,
    sample: Sample | None,
    **running: Any,
) -> tuple[ImageSource, int]:
    """The images read as the flags ask for, and how many bands that makes. Raises UserError where `num_channels` is
    given and another number."""
    stored = stored_bands_of(source, location, first_process)
    form = flags.band_form(stored.num_channels)
    number = stored.num_channels if form.bands is None else len(form.bands)
    if num_channels not in (None, number):
        raise UserError(
            f"--num_channels {num_channels}: {source.description} holds {stored}, and {number} of them are taken. "
            "Leave it out, or choose with --bands."
        )
    source = source.read_as(form, number)
    if flags.clip_percentiles is not None:
        images = source if sample is None else sample.of(source)
        limits = value_range_of_source(images, number, flags.clip_percentiles, **running)
        source = source.read_as(replace(form, value_range=tuple(limits)), number)
    return source, number
