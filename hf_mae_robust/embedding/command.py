"""python -m hf_mae_robust embed: a vector for each image of a data set, in a Parquet file."""

import argparse
import json
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from ..data.bad_images import SkippedImage, describe
from ..data.source import SEED
from ..errors import UserError
from ..training.arguments import add_bad_images_argument, add_bands_argument, add_data_arguments, add_worker_argument
from ..training.peers import joining
from ..training.processes import first_process
from .encoding import positions_of
from .job import Job, embed, prepare, skipped_path
from .table import EmbeddingFile

PICTURE_ENDINGS = (".png", ".jpg", ".pdf", ".svg")
# Processes that have finished their parts wait so long for the slowest.
PATIENCE = timedelta(hours=12)


def add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m hf_mae_robust embed`."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="Encoder or classifier, as --model_name_or_path of run_finetune.py."
    )
    parser.add_argument("--model_revision", help="Branch, tag or commit of a model on the Hub.")
    parser.add_argument("--num_attention_heads", type=int, help="For a file in the official layout.")
    data = add_data_arguments(parser)
    data.add_argument("--split", default="train", help="Split to embed (%(default)s).")
    data.add_argument(
        "--label_column_name",
        default="auto",
        help="Column with the labels, which are written beside the vectors; auto: if there is one; none (%(default)s).",
    )
    data.add_argument("--max_samples", type=int, help="At most N images, drawn at random.")
    data.add_argument("--seed", type=int, default=SEED, help="Seed of random samples, and of t-SNE (%(default)s).")
    data.add_argument(
        "--crop_pct", type=float, help="See run_finetune.py; default: as the checkpoint's image processor has it."
    )
    add_bands_argument(data)
    add_bad_images_argument(data, "they get no row, and are listed beside --output")
    written = parser.add_argument_group("what is written")
    written.add_argument("--output", required=True, type=Path, help="The .parquet file to write.")
    written.add_argument(
        "--pooling",
        choices=["mean", "cls", "patches"],
        help="The mean of the patch tokens, the CLS token, or all patch tokens; default: the classifier's, or cls.",
    )
    written.add_argument(
        "--dtype", choices=["float32", "float16"], default="float32", help="Of the vectors (%(default)s)."
    )
    pairs = parser.add_argument_group("near-duplicates")
    pairs.add_argument(
        "--near_duplicates",
        type=float,
        metavar="SIMILARITY",
        help="List pairs of images of at least this cosine similarity, such as 0.99, in a CSV file beside --output.",
    )
    pairs.add_argument(
        "--max_pairs", type=int, default=100_000, help="At most N pairs, the most similar (%(default)s)."
    )
    drawing = parser.add_argument_group("map")
    drawing.add_argument("--map", type=Path, help="Draw a two-dimensional map there, such as map.png.")
    drawing.add_argument(
        "--map_method",
        choices=["pca", "tsne"],
        default="pca",
        help="Principal components, or t-SNE of scikit-learn, which takes minutes (%(default)s).",
    )
    drawing.add_argument(
        "--map_samples", type=int, default=5000, help="At most N images on the map, drawn at random (%(default)s)."
    )
    running = parser.add_argument_group("running")
    running.add_argument("--batch_size", type=int, default=64, help="Images at a time (%(default)s).")
    add_worker_argument(running)


def run_embed(args: argparse.Namespace) -> None:
    """Write a vector for each image of a data set; list near-duplicates and draw a map where asked for."""
    _check_flags(args)
    on_cpu = not torch.accelerator.is_available()
    with joining(int(PATIENCE.total_seconds()), on_cpu, None):
        state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    job = prepare(args, state.device)
    if not first_process(job.is_done):
        embed(args, job, state.device)
    is_first = state.is_main_process
    state.wait_for_everyone()
    state.destroy_process_group()
    if not is_first:
        return  # the rest is for one
    file = EmbeddingFile(args.output)
    _say_what_was_written(args, file)
    if args.near_duplicates is not None:
        _list_near_duplicates(args, file, state.device)
    if args.map is not None:
        _draw(args, file, job)


def _check_flags(args: argparse.Namespace) -> None:
    if args.output.is_dir():
        raise UserError(
            f"--output {args.output} is a folder; name a file, such as {args.output / 'embeddings.parquet'}."
        )
    if args.output.suffix not in ("", ".parquet"):
        raise UserError(f"--output {args.output}: the file is Parquet; name it {args.output.stem}.parquet.")
    if args.pooling == "patches" and (args.near_duplicates is not None or args.map is not None):
        flag = "--near_duplicates" if args.near_duplicates is not None else "--map"
        raise UserError(f"{flag} needs one vector an image: give --pooling mean or cls instead of patches.")
    if args.map is not None and args.map.suffix.lower() not in PICTURE_ENDINGS:
        raise UserError(f"--map {args.map}: name a picture that ends in {', '.join(PICTURE_ENDINGS)}.")
    if args.map is not None and args.map.is_dir():
        raise UserError(f"--map {args.map} is a folder; name a file, such as {args.map / 'map.png'}.")


def _say_what_was_written(args: argparse.Namespace, file: EmbeddingFile) -> None:
    about = file.about or {}
    print(
        f"{args.output}: {file.num_rows:,} images of {args.dataset_name} ({args.split}), {about['pooling']} features, "
        f"{about['dtype']}" + (f", labels of {len(file.class_names)} classes" if file.class_names is not None else "")
    )
    if not about["num_skipped"]:
        return
    if not skipped_path(args.output).exists():
        print(f"{about['num_skipped']:,} images could not be decoded and have no row.")
        return
    records = [SkippedImage(**json.loads(line)) for line in skipped_path(args.output).read_text().splitlines()]
    kinds: dict[str, int] = {}
    for record in records:
        kinds[record.kind] = kinds.get(record.kind, 0) + 1
    first = "; ".join(f"row {record.row}: {record.detail}" for record in records[:3])
    print(
        f"{len(records):,} images cannot be decoded and have no row ({describe(kinds)}). The first: {first}. "
        f"{skipped_path(args.output)} lists all."
    )


def _list_near_duplicates(args: argparse.Namespace, file: EmbeddingFile, device: torch.device) -> None:
    from .near_duplicates import near_duplicates, write_pairs

    pairs = near_duplicates(file, args.near_duplicates, args.max_pairs, device)
    path = args.output.with_name(f"{args.output.stem}.near_duplicates.csv")
    write_pairs(pairs, file, path)
    num_groups = len(set(pairs.groups().tolist())) if len(pairs.first) else 0
    print(
        f"{path}: {pairs.total:,} pairs of a cosine similarity of at least {args.near_duplicates:g}"
        + (f", in {num_groups:,} groups" if pairs.total <= args.max_pairs else "")
    )
    if pairs.total > args.max_pairs:
        print(
            f"Only the {args.max_pairs:,} most similar pairs are listed (--max_pairs). A higher --near_duplicates "
            "finds fewer."
        )


def _draw(args: argparse.Namespace, file: EmbeddingFile, job: Job) -> None:
    from .map import MIN_IMAGES, draw_map, pictures_of, positions_by_pca, positions_by_tsne, sample_places, spread_out

    if file.num_rows < MIN_IMAGES:
        raise UserError(f"--map needs at least {MIN_IMAGES} images, and {args.output} has {file.num_rows}.")
    places = sample_places(file, args.map_samples, args.seed)
    vectors, columns = file.take(places), file.columns()
    names: tuple[str, str]
    if args.map_method == "pca":
        positions, shares = positions_by_pca(vectors)
        names = tuple(f"principal component {i + 1} ({share:.0%} of the variance)" for i, share in enumerate(shares))  # type: ignore[assignment]
    else:
        positions, names = positions_by_tsne(vectors, args.seed), ("", "")
    shown = spread_out(positions)
    rows = columns["row"][places][shown]
    pictures = pictures_of(job.source, positions_of(job.source, rows).tolist(), job.transform, job.pixels.num_channels)
    labels = columns["label"][places] if "label" in columns else None
    method = "principal components" if args.map_method == "pca" else "t-SNE"
    some = "" if len(places) == file.num_rows else f" of {file.num_rows:,}, drawn at random"
    title = f"{method} of {len(places):,} images{some}"
    args.map.parent.mkdir(parents=True, exist_ok=True)
    draw_map(positions, labels, file.class_names, shown, pictures, title, names, args.map)
    print(f"{args.map}: {title}")
    if some:
        print(f"--map_samples draws at most {args.map_samples:,} images on the map; all have a row in {args.output}.")
