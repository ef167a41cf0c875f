"""python -m hf_mae_robust prepare: the images of a data set, shrunk once, in a folder that trains at once."""

import argparse
import shlex
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from ..data.bad_images import FILE_NAME, describe
from ..training.arguments import (
    add_bad_images_argument,
    add_data_arguments,
    add_form_arguments,
    add_worker_argument,
)
from ..training.processes import first_process
from ..training.setup import say
from .annotations import TASKS
from .job import Job
from .shards import ShardPlan

# Processes that have finished their parts wait so long for the slowest.
PATIENCE = timedelta(hours=24)


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m hf_mae_robust prepare`."""
    data = add_data_arguments(parser, positional=True)
    data.add_argument("--splits", nargs="+", help="Splits to prepare; default: all.")
    data.add_argument(
        "--task",
        choices=TASKS,
        default="auto",
        help="What stands beside the images and is shrunk with them: nothing (pretraining), labels, semantic maps or "
        "objects; auto: what there is (%(default)s).",
    )
    data.add_argument("--label_column_name", default="auto", help="Its column (%(default)s).")
    add_bad_images_argument(data, "they are left out and listed")
    written = parser.add_argument_group("what is written")
    written.add_argument("--output_dir", required=True, type=Path, help="The folder to write; it must not be there.")
    written.add_argument(
        "--short_side",
        type=int,
        default=320,
        help="Images are shrunk so that their short side has N pixels; none is enlarged (%(default)s).",
    )
    written.add_argument("--jpeg_quality", type=int, default=90, help="Of shrunk images (%(default)s).")
    written.add_argument("--lossless", action="store_true", help="PNG instead of JPEG, which takes more space.")
    written.add_argument("--row_group_size", type=int, default=100, help="Images in a row group (%(default)s).")
    written.add_argument("--max_shard_size", default="256MB", help="Of a Parquet file (%(default)s).")
    add_form_arguments(parser, "statistics to store beside the images (must be the model's)")
    running = parser.add_argument_group("running")
    running.add_argument(
        "--dry_run", action="store_true", help="Time a sample of 200 images both ways, say what is gained, and stop."
    )
    add_worker_argument(running)


def run_prepare(args: argparse.Namespace) -> None:
    """Shrink the images of a data set once, and write them with their statistics."""
    state = PartialState(cpu=True, timeout=PATIENCE)
    job = Job(args)
    if first_process(job.is_done) and not args.dry_run:
        say(f"{args.output_dir} is there already, of the same data and settings")
    else:
        say(job.describe())
        if args.dry_run or not first_process(job.is_begun):
            say(first_process(job.estimate))
        if not args.dry_run:
            _say_what_was_written(args, job.run())
    state.wait_for_everyone()
    state.destroy_process_group()


def _say_what_was_written(args: argparse.Namespace, plan: ShardPlan) -> None:
    for split, of_split in plan.splits.items():
        number = len(of_split.shards)
        say(f"{args.output_dir} ({split}): {of_split.num_images:,} images in {number:,} file{'s' * (number > 1)}")
    records = [record for of_split in plan.splits.values() for record in of_split.records()]
    if records:
        kinds: dict[str, int] = {}
        for record in records:
            kinds[record.kind] = kinds.get(record.kind, 0) + 1
        say(
            f"{len(records):,} images cannot be decoded and were left out ({describe(kinds)}). "
            f"{args.output_dir / FILE_NAME} lists them."
        )
    say(f"Train on them with: python run_pretrain.py --dataset_name {shlex.quote(str(args.output_dir))}")
