"""A run of `prepare`: what is shrunk how, and the folder that comes of it."""

import argparse
import json
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa

from ..data.bad_images import FILE_NAME
from ..data.opening import open_every_split
from ..data.source import DataLocation, ImageSource, digest
from ..data.stamps import changed_note, stamp_of_local, stamp_of_stream
from ..data.stream_cache import parse_size
from ..errors import ExistingFileError, UserError
from ..files import check_is_free, flush
from ..hub.run_record import short_name
from ..model.configuration_vit_mae_robust import to_pair
from ..statistics.stored import FOLDER, Accumulator, Form
from ..training.parts import RECORD as RECORD_OF_PARTS
from ..training.parts import Part, Parts, difference
from ..training.processes import first_process
from ..training.run_lock import locked_by_first_process
from ..training.setup import say
from ..training.shared_folder import check_shared
from ..version import __version__
from .annotations import Maps, annotations_of, finders, names_of_maps
from .card import card_of
from .estimate import estimate_of
from .shards import PLAN, ShardPlan, SplitPlan, write_shards
from .shrinking import Shrinking
from .writing import ShrunkImages, SplitWriter, features_of, unpacked_text

RECORD = "prepared.json"
NAMES = {
    "fingerprint": "the images or labels (SRC, --splits, --task, --label_column_name, --image_column_name)",
    "stream": "the files of the stream (SRC)",
}


class Job:
    """What is shrunk how. Opens the data; raises UserError where they cannot be prepared.

    Args:
        args: of the command.

    Attributes:
        output: the folder that is made. work: beside it, what is unfinished. complete: within that, what becomes of it.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.output = args, Path(args.output_dir).resolve()  # "." has no name, and a link is not replaced
        self.work = self.output.parent / f"{self.output.name}.parts"
        self.complete = self.work / "complete"
        original = Path(args.dataset_name)
        if original.is_dir() and self.output.is_relative_to(original.resolve()):
            raise UserError(
                f"--output_dir {self.output} lies in {original}: what trains on that folder would read each image "
                "twice. Choose a folder beside it."
            )
        self.shrinking = Shrinking(args.short_side, args.jpeg_quality, args.lossless)
        self.form = Form(_pair(args.image_size), _pair(args.patch_size), args.crop_pct)
        if any(side % patch for side, patch in zip(self.form.image_size, self.form.patch_size)):
            raise UserError(
                f"--patch_size {' '.join(map(str, args.patch_size))} does not divide --image_size "
                f"{' '.join(map(str, args.image_size))}."
            )
        try:
            self.shard_bytes = parse_size(args.max_shard_size)
        except ValueError as error:
            raise UserError(f"--max_shard_size: {error}") from error
        self.sources = _open(args)
        for source in self.sources:
            if source.needs_bands:
                raise UserError(
                    f"{source.description} holds {source.stored}, and prepare shrinks 8-bit pictures only. Train on "
                    "these files as they are."
                )
        self.annotations = next(filter(None, (annotations_of(source.labels) for source in self.sources)), None)
        fingerprints = {source.split: source.fingerprint for source in self.sources}
        stream = next((source for source in self.sources if source.num_rows is None), None)
        stamp = {}
        if stream is not None:
            stamp["stream"] = first_process(partial(stamp_of_stream, stream, args.dataset_name))
        self.files = first_process(partial(stamp_of_local, self.sources, args.dataset_name))
        self.settings = {
            "fingerprint": digest(fingerprints, self.annotations and self.annotations.describe()),
            **stamp,
            "short_side": args.short_side,
            "jpeg_quality": args.jpeg_quality,
            "lossless": args.lossless,
            "row_group_size": args.row_group_size,
            "max_shard_size": self.shard_bytes,
            "image_size": list(self.form.image_size),
            "patch_size": list(self.form.patch_size),
            "crop_pct": args.crop_pct,
            "version": __version__,
            "Pillow": PIL.__version__,
            "pyarrow": pa.__version__,
        }

    def describe(self) -> str:
        kept = "the images alone" if self.annotations is None else self.annotations.describe()
        return f"{self.output}: splits {', '.join(source.split for source in self.sources)}; beside the images: {kept}"

    def is_done(self) -> bool:
        """Whether the output is there, of the same settings. Raises UserError where something else is there."""
        record = self.output / RECORD
        if not record.is_file():
            check_is_free(self.output)
            return False
        content = json.loads(record.read_text())
        former = content.get("settings", {})
        if (changed := difference(former, self.settings, NAMES)) is not None:
            raise ExistingFileError(
                f"--output_dir {self.output} exists and is of other settings: {changed}. Choose another --output_dir, "
                "or remove it."
            )
        if note := changed_note(self.args.dataset_name, self.files, content.get("files"), self.output):
            say(note)
        return True

    def is_begun(self) -> bool:
        """Whether a former run left something to resume."""
        return (self.work / PLAN).exists() or any(self.work.glob("*/part-*.parquet"))

    def estimate(self) -> str:
        """What preparing the images gains, in words; takes as long as some of them."""
        first, numbers = self.sources[0], [source.num_rows for source in self.sources]
        known = [number for number in numbers if number is not None]
        num_rows = sum(known) if len(known) == len(numbers) else None
        images = ShrunkImages(first, self.shrinking, None, self.form)
        found = estimate_of(first, lambda value: images.prepared(value)[0].content, self.form.image_size, num_rows)
        return found.describe(max(self.args.num_workers, 1))

    def run(self) -> ShardPlan:
        """Write the output, from what is finished where there is something. To be called by all processes.

        Raises DataError where too many images cannot be decoded, and UserError where parts of other settings are there.
        """
        check_shared(self.output.parent)
        with locked_by_first_process(self.work, f"--output_dir {self.output}"):
            if first_process(self.is_done):
                raise ExistingFileError(f"--output_dir {self.output} was finished by another run meanwhile.")
            return self._run()

    def _run(self) -> ShardPlan:
        parts = {
            source.split: Parts(
                self.work / source.split,
                self.settings,
                self.args.row_group_size,
                NAMES,
                "--output_dir",
                self.work,
                self.files,
            )
            for source in self.sources
        }
        plan = first_process(lambda: ShardPlan.load(self.work, digest(self.settings)))
        if plan is None:
            plan = self._write_parts(parts)
        else:
            self._look_at_former_files(parts)
        files = write_shards(plan, parts, features_of(self.annotations).arrow_schema, self.complete)
        first_process(partial(self._finish, plan, files))
        return plan

    def _look_at_former_files(self, parts: dict[str, Parts]) -> None:
        """A note where files changed since a former run began; the output says nothing of them then."""
        former = first_process(next(iter(parts.values())).files_at_first)
        if note := changed_note(self.args.dataset_name, self.files, former, self.work):
            say(note)
        self.files = self.files if former == self.files else None

    def _write_parts(self, parts: dict[str, Parts]) -> ShardPlan:
        num_rows = {}
        finished_of = first_process(partial(self._open_parts, parts))
        self._look_at_former_files(parts)
        for source in self.sources:
            of_split, finished = parts[source.split], finished_of[source.split]
            if finished:
                done = sum(part.stop - part.start for part in finished)
                say(f"{of_split.folder}: {done:,} images are done; resuming")
            writer = SplitWriter(
                source,
                self._images_of(source),
                of_split,
                finished,
                num_workers=self.args.num_workers,
                max_bad_images=self.args.max_bad_images,
            )
            num_rows[source.split] = writer.run()

        def make_plan() -> ShardPlan:
            splits = {}
            for source in self.sources:
                of_split, number = parts[source.split], num_rows[source.split]
                found = of_split.complete(number)
                splits[source.split] = SplitPlan.of(of_split, found, number, self.shard_bytes, source.description)
            plan = ShardPlan(digest(self.settings), splits)
            plan.save(self.work)
            return plan

        return first_process(make_plan)

    def _images_of(self, source: ImageSource) -> ShrunkImages:
        return ShrunkImages(source, self.shrinking, annotations_of(source.labels) or self.annotations, self.form)

    def _open_parts(self, parts: dict[str, Parts]) -> dict[str, list[Part]]:
        """The finished parts of each split, for a run that has made no plan yet. Raises UserError where parts of
        another split lie beside them."""
        if others := sorted({record.parent.name for record in self.work.glob(f"*/{RECORD_OF_PARTS}")} - parts.keys()):
            raise UserError(
                f"{self.work} holds parts of a run with another split ({others[0]}). Give the former settings to "
                f"resume it, delete {self.work} to begin again, or choose another --output_dir."
            )
        finished = {
            source.split: parts[source.split].open(source.num_rows, self._images_of(source).is_bad)
            for source in self.sources
        }
        # A plan is saved before the first shard: plan and shards that are there are of other settings, whose parts were
        # deleted. The plan goes first, because it would join the new parts.
        (self.work / PLAN).unlink(missing_ok=True)
        if self.complete.exists():
            shutil.rmtree(self.complete)
        return finished

    def _finish(self, plan: ShardPlan, files: dict[str, Any]) -> None:
        """What stands beside the shards, and the name of the folder, which it gets when it is complete."""
        result = self.complete
        name, accumulator = str(short_name(self.args.dataset_name)), Accumulator(self.form)
        for split, of_split in plan.splits.items():
            of_files = {file: files[file] for file in of_split.names(split)}
            statistics = [unpacked_text(text) for text in of_split.statistics]
            accumulator.save(
                result / FOLDER / f"{split}.safetensors", statistics, of_split.num_images, of_files, f"{name} ({split})"
            )
        records = [record for of_split in plan.splits.values() for record in of_split.records()]
        (result / FILE_NAME).unlink(missing_ok=True)
        if records:
            (result / FILE_NAME).write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))
        if isinstance(self.annotations, Maps) and (names := names_of_maps(self.args.dataset_name)) is not None:
            shutil.copyfile(names, result / names.name)
        beside = "nothing" if self.annotations is None else self.annotations.describe()
        card = card_of(name, self.sources[0].revision, self.shrinking, beside, self.form, plan)
        (result / "README.md").write_text(card, encoding="utf-8")
        content = {"settings": self.settings, "files": self.files}
        (result / RECORD).write_text(json.dumps(content, indent=1) + "\n")
        for path in (*sorted(result.rglob("*")), result):
            flush(path)
        result.replace(self.output)
        flush(self.output.parent)
        shutil.rmtree(self.work, ignore_errors=True)


def _pair(sizes: list[int]) -> tuple[int, int]:
    if len(sizes) > 2:
        raise UserError(f"A size is one number, or height and width; got {' '.join(map(str, sizes))}.")
    height, width = to_pair(sizes[0] if len(sizes) == 1 else sizes)
    return height, width


def _open(args: argparse.Namespace) -> list[ImageSource]:
    given = argparse.Namespace(**vars(args))
    given.label_column_name = None if args.task == "pretraining" else args.label_column_name
    find_labels, find_splits = finders(args.task)
    options: dict[str, Any] = {"find_labels": find_labels, "share": first_process}
    return open_every_split(DataLocation.of(given, args.token), args.splits, find_splits=find_splits, **options)
