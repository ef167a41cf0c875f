"""A run of `embed`: what is embedded by what, and the file that comes of it."""

import argparse
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch

from ..conversion.frozen import FrozenEncoder, load_encoder
from ..conversion.pixels import Pixels, processor_of
from ..data.bad_images import SkippedImage
from ..data.opening import open_splits
from ..data.optional_labels import find_labels_if_any
from ..data.preprocessing import EvaluationTransform
from ..data.source import DataLocation, ImageSource, digest
from ..data.stamps import changed_note, stamp_of_local, stamp_of_stream
from ..errors import DataError, ExistingFileError, UserError
from ..hub.models import local_model
from ..training.image_form import as_model_wants
from ..training.parts import Parts, difference
from ..training.processes import first_process
from ..training.run_lock import locked_by_first_process
from ..training.setup import say
from ..training.shared_folder import check_shared
from ..version import __version__
from .batches import NamedImages
from .encoding import PartWriter, digest_of_model, part_rows, positions_of, vector_shape
from .table import EmbeddingFile, schema_of

# Settings whose values tell people nothing.
NAMES = {
    "weights": "the weights of the checkpoint",
    "preprocessing": "the preprocessing (--crop_pct, or the checkpoint's image processor)",
    "form": "where the bands are in the files (--bands, --channel_axis, --frame)",
    "fingerprint": "the images or labels (--dataset_name, --split, --max_samples, --label_column_name)",
    "stream": "the files of the stream (--dataset_name)",
    "scaled_decoding": "whether large JPEG files are decoded at a fraction of their size",
}


@dataclass
class Job:
    """What is embedded by what, and what the file says of itself."""

    encoder: FrozenEncoder
    pixels: Pixels
    source: ImageSource
    transform: EvaluationTransform
    output: Path
    settings: dict[str, Any]
    about: dict[str, Any]

    def is_done(self) -> bool:
        """Whether the output is there, of the same settings. Raises UserError where something else is there."""
        if not self.output.exists():
            return False
        try:
            about = EmbeddingFile(self.output).about
        except (pa.ArrowException, OSError):
            about = None
        if about is None:
            raise ExistingFileError(
                f"--output {self.output} exists and was not written by this command. Choose another one, or remove it."
            )
        if (changed := difference(about, self.settings, NAMES)) is not None:
            raise ExistingFileError(
                f"--output {self.output} exists and is of other settings: {changed}. Choose another "
                "--output, or remove it."
            )
        say(f"{self.output} is there already, with these settings; no image is embedded again")
        if note := changed_note(self.about["dataset"], self.about["files"], about.get("files"), self.output):
            say(note)
        return True


def prepare(args: argparse.Namespace, device: torch.device) -> Job:
    """Open model and data. args: of the command. Raises UserError where one of them cannot be used."""
    checkpoint, revision = local_model(args.checkpoint, args.model_revision, args.token)
    encoder, pixels = load_encoder(checkpoint, args.pooling, args.num_attention_heads, args.token)
    processor = processor_of(checkpoint, pixels, encoder.image_size, args.crop_pct, args.token)
    source = as_model_wants(_open(args), pixels, args)
    stamp = {}
    if source.num_rows is None:
        stamp["stream"] = first_process(partial(stamp_of_stream, source, args.dataset_name, args.output))
    settings = {
        "weights": digest_of_model(encoder),
        "pooling": encoder.pooling,
        "dtype": args.dtype,
        "preprocessing": digest(type(processor).__name__, processor.to_dict()),
        "form": None if source.band_form == pixels.band_form else digest(source.band_form),
        "fingerprint": source.fingerprint,
        **stamp,
        **({"scaled_decoding": True} if source.decodes_scaled else {}),
        "batch_size": args.batch_size,
        "device": device.type,
        "torch": torch.__version__,
        "version": __version__,
    }
    about = {"checkpoint": args.checkpoint, "checkpoint_revision": revision, "dataset": args.dataset_name}
    about |= {"dataset_revision": source.revision, "split": args.split}
    about["files"] = first_process(partial(stamp_of_local, [source], args.dataset_name))
    about["label_column"] = None if source.labels is None else source.labels.column
    encoder.to(device)
    return Job(encoder, pixels, source, EvaluationTransform(processor), args.output, settings, {**about, **settings})


def _open(args: argparse.Namespace) -> ImageSource:
    given = argparse.Namespace(**vars(args))
    given.label_column_name = None if args.label_column_name == "none" else args.label_column_name
    location = DataLocation.of(given, args.token)
    opened, _ = open_splits(
        location, args.split, None, find_labels=find_labels_if_any, share=first_process, train_flag="--split"
    )
    source = cast(ImageSource, opened)  # a split was named
    if args.max_samples is not None and source.row_groups is None:
        raise UserError(
            f"--max_samples {args.max_samples}: {source.description} is a stream that cannot seek, in which the drawn "
            "images would lose their row numbers. Leave out --max_samples or --dataset_streaming."
        )
    return source.sample(args.max_samples, args.seed)


def embed(args: argparse.Namespace, job: Job, device: torch.device) -> None:
    """Write the output, from the parts that are finished where there are some. To be called by all processes. Raises
    DataError where too many images cannot be decoded, and UserError where parts of other settings are there, or where
    another run writes them."""
    folder = args.output.with_name(f"{args.output.name}.parts")
    check_shared(args.output.parent, "--output")
    with locked_by_first_process(folder, f"--output {args.output}"):
        _embed_in(folder, args, job, device)


def _embed_in(folder: Path, args: argparse.Namespace, job: Job, device: torch.device) -> None:
    source, encoder = job.source, job.encoder
    shape = vector_shape(encoder, job.transform, source, job.pixels.num_channels)
    schema = partial(schema_of, shape, args.dtype, source.class_names)
    files = job.about["files"]
    parts = Parts(folder, job.settings, part_rows(shape, args.batch_size), NAMES, "--output", files=files)
    images = NamedImages(source, job.transform, job.pixels.num_channels)

    def is_bad(row: int) -> bool:
        return not source.may_be_repaired or "skipped" in images[0, int(positions_of(source, np.array([row]))[0])]

    finished = first_process(lambda: parts.open(source.num_rows, is_bad))
    former = first_process(parts.files_at_first)
    if finished:
        say(f"{parts.folder}: {sum(part.stop - part.start for part in finished):,} images are done; resuming")
        if note := changed_note(args.dataset_name, files, former, folder):
            say(note)
    writer = PartWriter(
        encoder,
        source,
        job.transform,
        job.pixels.num_channels,
        parts=parts,
        schema=schema({}),
        finished=finished,
        dtype=args.dtype,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        max_bad_images=args.max_bad_images,
        device=device,
    )
    num_rows, skipped = writer.run()
    if num_rows == len(skipped):
        raise DataError(f"No image of {source.description} can be decoded.")
    about = {**job.about, "num_images": num_rows - len(skipped), "num_skipped": len(skipped)}
    if former != files:
        about["files"] = None  # some vectors are of others, as was said

    def finish() -> None:
        numbers = [part.number for part in parts.complete(num_rows)]
        _write_skipped(args.output, skipped)
        parts.join(numbers, schema(about), args.output)
        parts.remove()

    first_process(finish)


def skipped_path(output: Path) -> Path:
    """Beside `embeddings.parquet`: `embeddings.skipped_images.jsonl`."""
    return output.with_name(f"{output.stem}.skipped_images.jsonl")


def _write_skipped(output: Path, skipped: list[SkippedImage]) -> None:
    path = skipped_path(output)
    if skipped:
        path.write_text("".join(json.dumps(asdict(record)) + "\n" for record in skipped))
    else:
        path.unlink(missing_ok=True)
