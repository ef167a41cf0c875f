"""python -m hf_mae_robust COMMAND: everything beside training."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import transformers
from accelerate import PartialState

from .analysis.analyze import COMMANDS as ANALYSES
from .analysis.knn import add_knn_arguments, run_knn
from .conversion.convert import add_convert_arguments, run_convert
from .conversion.export import add_export_arguments, run_export
from .data.opening import open_splits
from .data.source import DataLocation
from .demo.command import add_demo_arguments, run_demo
from .hub.model_card import add_card_arguments, run_card
from .model import ViTMAERobustConfig
from .pretraining.statistics_pass import statistics_of_source
from .studies.reproduce import add_reproduce_arguments, run_reproduce
from .training.arguments import add_data_arguments


def add_statistics_arguments(parser: argparse.ArgumentParser) -> None:
    data = add_data_arguments(parser)
    data.add_argument("--split", default="train", help="Split to go over (%(default)s).")
    data.add_argument("--max_samples", type=int, help="Only the first so many images.")
    form = parser.add_argument_group("form of the images (must be the model's)")
    form.add_argument("--image_size", type=int, nargs="+", default=[224], help="One number, or height and width (224).")
    form.add_argument("--patch_size", type=int, nargs="+", default=[16], help="One number, or height and width (16).")
    form.add_argument("--num_channels", type=int, default=3, help="1, 3 or 4 (%(default)s).")
    form.add_argument("--crop_pct", type=float, default=0.875, help="See run_pretrain.py (%(default)s).")
    running = parser.add_argument_group("running")
    running.add_argument("--batch_size", type=int, default=64, help="Images at a time (%(default)s).")
    running.add_argument("--num_workers", type=int, default=4, help="Processes that decode (%(default)s).")
    parser.add_argument("--output", required=True, type=Path, help="The .safetensors file to write.")


def run_statistics(args: argparse.Namespace) -> None:
    """Compute the population statistics of a data set's patches and write them to a file."""
    state = PartialState(cpu=not torch.accelerator.is_available())
    config = ViTMAERobustConfig(
        image_size=args.image_size[0] if len(args.image_size) == 1 else args.image_size,
        patch_size=args.patch_size[0] if len(args.patch_size) == 1 else args.patch_size,
        num_channels=args.num_channels,
    )
    source, _ = open_splits(DataLocation.of(args, args.token), args.split, eval_split=None)
    statistics = statistics_of_source(
        source.head(args.max_samples),
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


def add_commands(
    parser: argparse.ArgumentParser, dest: str, commands: Iterable[tuple[str, Callable, Callable | None]]
) -> None:
    """Sub-commands: (name, function that adds arguments, function that runs it). The help is the docstring of the last
    one, or of the other where there are sub-commands of its own to run."""
    subparsers = parser.add_subparsers(dest=dest, required=True, metavar="COMMAND")
    for name, add_arguments, run in commands:
        summary = ((run or add_arguments).__doc__ or "").strip().splitlines()[0]
        command = subparsers.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.set_defaults(run=run)
        add_arguments(command)


def add_analyze_arguments(parser: argparse.ArgumentParser) -> None:
    """What happens between a model's tokens, and what its features are worth."""
    add_commands(parser, "analysis", [*ANALYSES, ("knn", add_knn_arguments, run_knn)])


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hf_mae_robust", description=__doc__, allow_abbrev=False)
    commands = (
        ("statistics", add_statistics_arguments, run_statistics),
        ("convert", add_convert_arguments, run_convert),
        ("export", add_export_arguments, run_export),
        ("card", add_card_arguments, run_card),
        ("demo", add_demo_arguments, run_demo),
        ("analyze", add_analyze_arguments, None),
        ("reproduce", add_reproduce_arguments, run_reproduce),
    )
    add_commands(parser, "command", commands)
    return parser


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    transformers.utils.logging.disable_progress_bar()
    try:
        args.run(args)
    except (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
        logging.getLogger(__name__).debug("The full traceback", exc_info=True)
        parser.exit(2, f"{parser.prog} {args.command}: error: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
