"""What is finished of tables that a command writes: parts beside them, each written completely or not at all, with a
record of the settings. A run that was killed resumes from them, and joins them at the end."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.bad_images import SkippedImage
from ..data.source import digest
from ..errors import UserError
from ..files import write_completely
from .run_lock import LOCK_FILE

RECORD = "settings.json"
# Of a file that a kill left unfinished (files.write_completely).
TORN = re.compile(r"\..+-[0-9a-f]{8}")
# The key of a part's metadata under which stands what it holds.
KEY = b"hf_mae_robust.part"
# What settings of every command are called in a sentence.
NAMES = {"version": "the version of hf_mae_robust", "torch": "the version of PyTorch", "device": "the device"}


def _is_of_others(path: Path) -> bool:
    """Whether a file in a folder without a record was written by neither a killed run nor the lock of this one."""
    return path.name != LOCK_FILE and TORN.fullmatch(path.name) is None


def difference(former: dict[str, Any], settings: dict[str, Any], names: Mapping[str, str]) -> str | None:
    """The first setting that is not what it was, as a sentence's part; None: all are. names: of settings whose values
    tell people nothing; the others are flags."""
    for name, value in settings.items():
        if former.get(name) == value or (name == "stream" and name not in former):  # a record of before it was noted
            continue
        if name in names:
            return f"{names[name]} changed"
        return f"{NAMES.get(name, f'--{name}')} was {former.get(name)} and is {value} now"
    return None


def write_table(writer: pq.ParquetWriter, table: pa.Table) -> None:
    """As one row group."""
    writer.write_table(table, row_group_size=max(len(table), 1))


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Neither vectors nor encoded images are repeated or compressible: to try takes as long as a small encoder."""
    return pq.ParquetWriter(path, schema, compression="none", use_dictionary=False)


@dataclass(frozen=True)
class Part:
    """Images `start` to `stop` (excluded); `skipped` are those of them that cannot be decoded. `more`: what else is
    known of a part, as JSON has it."""

    number: int
    start: int
    stop: int
    skipped: list[SkippedImage]
    more: dict[str, Any] = field(default_factory=dict)


class Parts:
    """The folder of the parts, such as `embeddings.parquet.parts` beside `embeddings.parquet`.

    Args:
        settings: which decide over what is in them. part_rows: images in a part. names: as of `difference`. flag: that
            named what is made of them, for errors. work: the folder of all that is unfinished; None: that of the parts.
        files: tells the files that they are made of (data/stamps.py); no condition for a resume.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        part_rows: int,
        names: Mapping[str, str],
        flag: str,
        work: Path | None = None,
        files: str | None = None,
    ):
        self.folder, self.settings, self.part_rows, self.work = folder, settings, part_rows, work or folder
        self.files = files
        self.names, self.flag, self.digest = names, flag, digest(settings)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def open(self, num_rows: int | None, is_bad: Callable[[int], bool]) -> list[Part]:
        """The parts that are finished, in order; others are removed. Makes the folder. Raises UserError where it is of
        other settings.

        num_rows: of the source; None: a stream of unknown length. is_bad: whether the image of a row still cannot be
        decoded; a part is written again where one of its bad images was repaired. A stream is not asked.
        """
        record = self.folder / RECORD
        if record.exists():
            former = json.loads(record.read_text())
            if (changed := difference(former, self.settings, self.names)) is not None:
                raise UserError(
                    f"{self.folder} holds parts of a run with other settings: {changed}. Give the former settings to "
                    f"resume it, delete {self.work} to begin again, or choose another {self.flag}."
                )
        elif self.folder.exists() and any(map(_is_of_others, self.folder.iterdir())):
            raise UserError(
                f"{self.folder} is not empty and holds no {RECORD}: remove {self.work}, or choose another {self.flag}."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if TORN.fullmatch(path.name):
                path.unlink()
        if not record.exists():
            content = json.dumps({**self.settings, "files": self.files}, indent=1)
            write_completely(record, lambda path: path.write_text(f"{content}\n"))
        found = []
        for path in sorted(self.folder.glob("part-*.parquet")):
            part = self._read(path)
            is_complete = part is not None and self._is_complete(part, path, num_rows)
            if part is None or not is_complete or (num_rows and not all(is_bad(each.row) for each in part.skipped)):
                path.unlink(missing_ok=True)
            else:
                found.append(part)
        return found

    def files_at_first(self) -> str | None:
        """`files` of the run that began these parts, of which finished ones are."""
        try:
            return json.loads((self.folder / RECORD).read_text()).get("files")
        except FileNotFoundError:
            return self.files

    def complete(self, num_rows: int) -> list[Part]:
        """All parts, in order. Raises UserError where one is not there."""
        found = []
        for number in range(-(-num_rows // self.part_rows)):
            # By its name: a network disk may list a folder as it was.
            path = self._path(number)
            part = self._read(path)
            if part is None or not self._is_complete(part, path, num_rows):
                path.unlink(missing_ok=True)
                raise UserError(
                    f"{self.folder} lacks the images from row {number * self.part_rows:,} on: {path.name} was removed "
                    "or damaged, or the data set changed, while the command ran. The same command writes it again."
                )
            found.append(part)
        return found

    def _read(self, path: Path) -> Part | None:
        try:
            file = pq.ParquetFile(path)
            about = json.loads(file.schema_arrow.metadata[KEY])
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            # PyArrow has OSErrors of its own for damage, without a number; the system's may pass.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            return None  # damaged: it is written again
        skipped = [SkippedImage(**each) for each in about["skipped"]]
        part = Part(about["number"], about["start"], about["stop"], skipped, about["more"])
        is_complete = file.metadata.num_rows + len(part.skipped) == part.stop - part.start
        return part if is_complete and about["settings"] == self.digest else None

    def _is_complete(self, part: Part, path: Path, num_rows: int | None) -> bool:
        stop = part.start + self.part_rows
        ends = part.stop <= stop if num_rows is None else part.stop == min(stop, num_rows)
        return path == self._path(part.number) and part.start == part.number * self.part_rows and ends

    def write(self, part: Part, table: pa.Table) -> None:
        about = {**asdict(part), "settings": self.digest}
        schema = table.schema.with_metadata({**table.schema.metadata, KEY: json.dumps(about).encode()})

        def write(path: Path) -> None:
            with open_writer(path, schema) as writer:
                write_table(writer, table.replace_schema_metadata(schema.metadata))

        write_completely(self._path(part.number), write)

    def num_bytes(self, number: int) -> int:
        """Size of a part's file."""
        return self._path(number).stat().st_size

    def join(self, numbers: Iterable[int], schema: pa.Schema, output: Path) -> None:
        """Make a file of these parts, a row group each, complete or not under its name."""

        def write(path: Path) -> None:
            with open_writer(path, schema) as writer:
                for number in numbers:
                    table = pq.ParquetFile(self._path(number)).read().replace_schema_metadata(schema.metadata)
                    if len(table):
                        write_table(writer, table)

        write_completely(output, write, self.folder)

    def drop(self, numbers: Iterable[int]) -> None:
        """Remove parts that stand in a file by now."""
        for number in numbers:
            self._path(number).unlink(missing_ok=True)

    def remove(self) -> None:
        """What is left of the parts, once all that is made of them is there."""
        shutil.rmtree(self.folder, ignore_errors=True)
