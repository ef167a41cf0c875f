"""python -m hf_mae_robust COMMAND: everything beside training."""

import argparse
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, NoReturn

import transformers

from .errors import EXIT_BUG, EXIT_CODES, fault_of_place, sentence_of
from .files import check_can_write, with_home
from .training.ranges import COMMAND_RANGES, NEGATIVE_NUMBER, RANGES, check_ranges

# Arguments that name what will be written.
OUTPUTS = ("output", "output_dir", "out", "space", "map", "predictions")


class Command(NamedTuple):
    """A command. Its module is imported when the command line names it, so that --help answers at once.

    Attributes:
        module: within hf_mae_robust. add_arguments, run: names of its functions; `run` gets the parsed arguments.
    """

    name: str
    summary: str
    module: str
    add_arguments: str
    run: str

    def load(self) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]:
        module = import_module(f"{__package__}.{self.module}")
        return getattr(module, self.add_arguments), getattr(module, self.run)


class Group(NamedTuple):
    """A command that has commands of its own."""

    name: str
    summary: str
    commands: tuple[Command, ...]


_ANALYZE = "analysis.analyze"
COMMANDS: tuple[Command | Group, ...] = (
    Command(
        "statistics",
        "Compute the population statistics of a data set's patches and write them to a file.",
        "pretraining.statistics_command",
        "add_statistics_arguments",
        "run_statistics",
    ),
    Command(
        "prepare",
        "Shrink the images of a data set once, into Parquet files from which training reads many times faster.",
        "preparation.command",
        "add_prepare_arguments",
        "run_prepare",
    ),
    Command(
        "convert",
        "Turn a checkpoint of the official MAE code, transformers or timm into a folder that from_pretrained loads.",
        "conversion.convert",
        "add_convert_arguments",
        "run_convert",
    ),
    Command(
        "export",
        "Turn a model into one that runs without this package: stock BEiT or ViT, timm, the official code's, ONNX.",
        "conversion.export",
        "add_export_arguments",
        "run_export",
    ),
    Command(
        "card",
        "Write the model card of a trained folder (again), or of a recipe.",
        "hub.model_card",
        "add_card_arguments",
        "run_card",
    ),
    Command(
        "demo",
        "Try a checkpoint in the browser: reconstructions of masks drawn by clicking, attention, features, classes.",
        "demo.command",
        "add_demo_arguments",
        "run_demo",
    ),
    Group(
        "analyze",
        "What happens between a model's tokens, and what its features are worth.",
        (
            Command(
                "features",
                "Similarity, rank and uniformity of tokens by block; uniformity, rank and alignment of image features.",
                _ANALYZE,
                "add_arguments",
                "run_features",
            ),
            Command(
                "attention",
                "Entropy and distance of attention, by block and head, in encoder and decoder.",
                _ANALYZE,
                "add_arguments",
                "run_attention",
            ),
            Command(
                "loss_map",
                "Loss of the reconstruction by the place of the patch.",
                _ANALYZE,
                "add_arguments",
                "run_loss_map",
            ),
            Command(
                "cka",
                "Linear CKA between the encoder's blocks of one checkpoint, or of two (--other).",
                _ANALYZE,
                "add_arguments",
                "run_cka",
            ),
            Command("all", "All of features, attention, loss_map and cka.", _ANALYZE, "add_arguments", "run_all"),
            Command(
                "knn",
                "Classify images by the nearest neighbours of their features, and print the accuracy.",
                "analysis.knn",
                "add_knn_arguments",
                "run_knn",
            ),
            Command(
                "targets",
                "How alike the six targets are on your images, and which to take; before anything is trained.",
                "analysis.targets_command",
                "add_targets_arguments",
                "run_targets",
            ),
        ),
    ),
    Command(
        "embed",
        "Write a vector for each image of a data set to a Parquet file; list near-duplicates, draw a map.",
        "embedding.command",
        "add_embed_arguments",
        "run_embed",
    ),
    Command(
        "reproduce",
        "Run the studies of the paper's tables and figures, and report them.",
        "studies.reproduce",
        "add_reproduce_arguments",
        "run_reproduce",
    ),
)


def add_commands(
    parser: argparse.ArgumentParser, dest: str, commands: Sequence[Command | Group], words: Sequence[str] | None
) -> None:
    """Sub-commands with a line of help each. words: the rest of the command line; only the command that stands first in
    it gets its arguments; None: all do."""
    subparsers = parser.add_subparsers(dest=dest, required=True, metavar="COMMAND")
    for command in commands:
        subparser = subparsers.add_parser(
            command.name, help=command.summary, description=command.summary, allow_abbrev=False
        )
        rest = words[1:] if words and words[0] == command.name else None
        if words is not None and rest is None:
            continue
        if isinstance(command, Group):
            add_commands(subparser, command.name, command.commands, rest)
            continue
        add_arguments, run = command.load()
        subparser.set_defaults(run=run)
        subparser._negative_number_matcher = NEGATIVE_NUMBER
        add_arguments(subparser)


def make_parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """words: the command line, of which only what it names is imported; None: everything."""
    parser = argparse.ArgumentParser(prog="python -m hf_mae_robust", description=__doc__, allow_abbrev=False)
    add_commands(parser, "command", COMMANDS, words)
    return parser


def check(args: argparse.Namespace) -> None:
    """Before anything is read: `~` becomes the home folder; numbers lie in their ranges; nothing is empty; what will be
    written can be. Raises UserError."""
    from .training.parser import check_not_empty  # takes a second, and --help needs to answer at once

    for name, value in vars(args).items():
        if isinstance(value, str):
            setattr(args, name, with_home(value))
        elif isinstance(value, Path):
            setattr(args, name, Path(with_home(str(value))))
    check_not_empty({name: value for name, value in vars(args).items() if not name.endswith("_flags")})
    check_ranges(vars(args), {**RANGES, **COMMAND_RANGES})
    for name in OUTPUTS:
        if (path := getattr(args, name, None)) is not None:
            check_can_write(path, "OUT" if args.command in ("convert", "export") else f"--{name}")


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    parser = make_parser(words)
    args = parser.parse_args(words)
    transformers.utils.logging.disable_progress_bar()

    def fail(error: Exception | str, code: int) -> NoReturn:
        logging.getLogger(__name__).debug("The full traceback", exc_info=True)
        parser.exit(code, f"{parser.prog} {args.command}: error: {error}\n")

    try:
        check(args)
        args.run(args)
    except KeyboardInterrupt:
        sys.exit(130)
    except tuple(EXIT_CODES) as error:
        fail(sentence_of(error), error.exit_code)
    except Exception as error:
        if (fault := fault_of_place(error)) is not None:
            fail(fault, fault.exit_code)
        # These take seconds, and --help needs to answer at once.
        from .training.peers import loss_in_command
        from .training.run import describe_bug

        if (loss := loss_in_command(error)) is not None:
            fail(loss, loss.exit_code)
        traceback.print_exc()
        fail(describe_bug(error), EXIT_BUG)


if __name__ == "__main__":
    main()
