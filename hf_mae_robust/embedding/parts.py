"""What is finished of a file of embeddings: parts beside it, each written completely or not at all, with a record of
the settings. A run that was killed resumes from them, and joins them at the end."""

import json
import re
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.bad_images import SkippedImage
from ..data.source import digest
from ..errors import UserError
from ..files import flush
from .table import open_writer, write_table

RECORD, JOINED = "settings.json", ".joined"
TORN = re.compile(r"\.(settings\.json|part-\d{6}\.parquet)-[0-9a-f]{8}")
# The key of a part's metadata under which stands what it holds.
KEY = b"hf_mae_robust.part"
# Settings whose values tell people nothing.
NAMES = {
    "weights": "the weights of the checkpoint",
    "preprocessing": "the preprocessing (--crop_pct, or the checkpoint's image processor)",
    "fingerprint": "the images or labels (--dataset_name, --split, --max_samples, --label_column_name)",
    "scaled_decoding": "whether large JPEG files are decoded at a fraction of their size",
    "version": "the version of hf_mae_robust",
    "torch": "the version of PyTorch",
    "device": "the device",
}


def difference(former: dict[str, Any], settings: dict[str, Any]) -> str | None:
    """The first setting that is not what it was, as a sentence's part; None: all are."""
    for name, value in settings.items():
        if former.get(name) == value:
            continue
        if name in ("weights", "preprocessing", "fingerprint"):
            return f"{NAMES[name]} changed"
        return f"{NAMES.get(name, f'--{name}')} was {former.get(name)} and is {value} now"
    return None


@dataclass(frozen=True)
class Part:
    """Images `start` to `stop` (excluded); `skipped` are those of them that cannot be decoded."""

    number: int
    start: int
    stop: int
    skipped: list[SkippedImage]


class Parts:
    """The folder of the parts, `embeddings.parquet.parts` beside `embeddings.parquet`.

    Args:
        output: the file that is made of them. settings: which decide over what is in it. part_rows: images in a part.
    """

    def __init__(self, output: Path, settings: dict[str, Any], part_rows: int):
        self.output, self.settings, self.part_rows = output, settings, part_rows
        self.folder, self.digest = output.with_name(f"{output.name}.parts"), digest(settings)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def open(self, num_rows: int | None) -> list[Part]:
        """The parts that are finished, in order; others are removed. Makes the folder. num_rows: of the source; None: a
        stream of unknown length. Raises UserError where the folder is of other settings."""
        record = self.folder / RECORD
        if record.exists():
            former = json.loads(record.read_text())
            if (changed := difference(former, self.settings)) is not None:
                raise UserError(
                    f"{self.folder} holds parts of a run with other settings: {changed}. Give the former settings to "
                    "resume it, delete that folder to begin again, or choose another --output."
                )
        elif self.folder.exists() and any(not self._is_torn(path) for path in self.folder.iterdir()):
            raise UserError(f"{self.folder} is not empty and holds no {RECORD}: remove it, or choose another --output.")
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.iterdir():
            if self._is_torn(path):
                path.unlink()
        if not record.exists():
            self._write(record, lambda path: path.write_text(json.dumps(self.settings, indent=1) + "\n"))
        found = []
        for path in sorted(self.folder.glob("part-*.parquet")):
            part = self._read(path)
            if part is None or not self._is_complete(part, path, num_rows):
                path.unlink()
            else:
                found.append(part)
        return found

    def _read(self, path: Path) -> Part | None:
        try:
            file = pq.ParquetFile(path)
            about = json.loads(file.schema_arrow.metadata[KEY])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
            return None  # damaged: it is written again
        part = Part(about["number"], about["start"], about["stop"], [SkippedImage(**each) for each in about["skipped"]])
        is_complete = file.metadata.num_rows + len(part.skipped) == part.stop - part.start
        return part if is_complete and about["settings"] == self.digest else None

    def _is_complete(self, part: Part, path: Path, num_rows: int | None) -> bool:
        stop = part.start + self.part_rows
        ends = part.stop <= stop if num_rows is None else part.stop == min(stop, num_rows)
        return path == self._path(part.number) and part.start == part.number * self.part_rows and ends

    def _is_torn(self, path: Path) -> bool:
        """Whether a kill left it unfinished."""
        return path.name == JOINED or TORN.fullmatch(path.name) is not None

    def _write(self, path: Path, write: Any) -> None:
        """Complete, or not under this name."""
        unfinished = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        write(unfinished)
        flush(unfinished)
        unfinished.replace(path)
        flush(path.parent)

    def write(self, part: Part, table: pa.Table) -> None:
        about = {**asdict(part), "settings": self.digest}
        schema = table.schema.with_metadata({**table.schema.metadata, KEY: json.dumps(about).encode()})

        def write(path: Path) -> None:
            with open_writer(path, schema) as writer:
                write_table(writer, table.replace_schema_metadata(schema.metadata))

        self._write(self._path(part.number), write)

    def join(self, num_parts: int, schema: pa.Schema) -> None:
        """Make the output of all parts, in order, a row group each, and remove them."""

        def write(path: Path) -> None:
            with open_writer(path, schema) as writer:
                for number in range(num_parts):
                    table = pq.ParquetFile(self._path(number)).read().replace_schema_metadata(schema.metadata)
                    if len(table):
                        write_table(writer, table)

        joined = self.folder / JOINED
        write(joined)
        flush(joined)
        joined.replace(self.output)
        flush(self.output.parent)
        self.remove()

    def remove(self) -> None:
        """What is left of the parts, once the output is there."""
        shutil.rmtree(self.folder, ignore_errors=True)
