"""From images to finished parts of a file of embeddings: each process its own, a part in memory at a time."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..conversion.frozen import FrozenEncoder
from ..data.bad_images import SkippedImage, SkippedImages
from ..data.plan import Plan, StreamBatches
from ..data.preprocessing import EvaluationTransform, Normalization
from ..data.source import ChosenRows, ImageSource
from ..errors import UserError
from ..training.parts import Part, Parts
from ..training.processes import all_processes
from .batches import planned_loader
from .table import table_of

# Of the vectors of a part, which a process holds; and batches in it, so that several processes get some of a small set.
PART_BYTES, MAX_BATCHES = 32 * 2**20, 16
# Of a config: what does not change what the model computes.
_NOTES = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")


def vector_shape(
    encoder: FrozenEncoder, transform: EvaluationTransform, source: ImageSource, num_channels: int
) -> tuple[int, ...]:
    """Of an image of the source: `(d,)`, or `(L, d)` for all patches."""
    dtype = torch.uint8 if source.band_form is None else torch.float32
    blank = transform(torch.zeros(num_channels, 32, 32, dtype=dtype)).float()
    with torch.no_grad():
        return tuple(encoder(blank[None].to(next(encoder.parameters()).device)).shape[1:])


def part_rows(shape: tuple[int, ...], batch_size: int) -> int:
    """Images in a part: a multiple of the batch, by the shape of their float32 vectors."""
    batch_bytes = 4 * int(np.prod(shape)) * batch_size
    return batch_size * min(max(PART_BYTES // batch_bytes, 1), MAX_BATCHES)


def digest_of_model(encoder: FrozenEncoder) -> str:
    """Of all that decides what an encoder computes: its weights and its config."""
    config = {name: value for name, value in encoder.model.config.to_dict().items() if name not in _NOTES}
    content = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.model.state_dict().items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return content.hexdigest()[:16]


def row_numbers(source: ImageSource, positions: np.ndarray) -> np.ndarray:
    """Positions in a source -> row numbers of the split, of which it may be a sample."""
    return source.rows.index[positions] if isinstance(source.rows, ChosenRows) else positions


def positions_of(source: ImageSource, rows: np.ndarray) -> np.ndarray:
    """The inverse of `row_numbers`."""
    return np.searchsorted(source.rows.index, rows) if isinstance(source.rows, ChosenRows) else rows


class PartWriter:
    """Embeds this process's parts of a source.

    Args:
        encode: `(B, C, H, W)`, normalised, on `device` -> `(B, ...)`.
        schema: of the parts (`schema_of`). finished: parts that are there already.
    """

    def __init__(
        self,
        encode: Any,
        source: ImageSource,
        transform: EvaluationTransform,
        num_channels: int,
        *,
        parts: Parts,
        schema: pa.Schema,
        finished: list[Part],
        dtype: str,
        batch_size: int,
        num_workers: int,
        max_bad_images: float,
        device: torch.device,
    ):
        state = PartialState()
        self.encode, self.source, self.parts, self.schema, self.device = encode, source, parts, schema, device
        self.normalize = Normalization(transform.processor, device)
        self.dtype = torch.float16 if dtype == "float16" else torch.float32
        self.max_bad_images, self.finished = max_bad_images, finished
        numbers = tuple(part.number for part in finished)
        plan = Plan(batch_size, parts.part_rows, numbers, state.process_index, state.num_processes)
        self.loader, self.batches = planned_loader(source, transform, num_channels, plan, num_workers)
        self.skipped = SkippedImages(None, max_bad_images)
        self.skipped.add(record for part in finished for record in part.skipped)

    def run(self) -> tuple[int, list[SkippedImage]]:
        """Embed and write. To be called by all processes, which meet at the end.

        Returns the number of images in the source, the bad ones included, and those that cannot be decoded, of all
        processes and finished parts. Raises DataError, in all processes, where they are more than `max_bad_images`, and
        LostProcessError where another process failed.
        """
        outcomes = all_processes(self._embed)
        skipped = SkippedImages(None, self.max_bad_images)
        skipped.add(sorted((record for part in outcomes for record in part), key=lambda record: record.row))
        num_rows = self.source.num_rows
        if isinstance(self.batches, StreamBatches):
            num_rows = self.batches.num_rows  # it was read to its end
        skipped.check(self.source.description, num_rows)
        return num_rows or 0, list(skipped)

    def _embed(self) -> list[SkippedImage]:
        """Returns the images that cannot be decoded, of this process and of finished parts."""
        source, is_shown = self.source, PartialState().is_main_process
        total = None if source.num_rows is None else len(self.loader)
        held: list[dict[str, Any]] = []
        bar = tqdm(self.loader, total=total, desc=f"Embedding {source.description}", unit="batch", disable=not is_shown)
        with torch.inference_mode():
            for batch in bar:
                start = int(batch["position"][0])
                if held and start // self.parts.part_rows != held[0]["start"] // self.parts.part_rows:
                    self._write(held)
                    held = []
                held.append(self._embedded(batch, start))
                is_new = self.skipped.add(held[-1]["skipped"])
                if is_new and source.num_rows is not None and self.skipped.exceeds(source.description, source.num_rows):
                    return list(self.skipped)  # the others learn of it where all meet
        if held:
            self._write(held)
        return list(self.skipped)

    def _embedded(self, batch: dict[str, Any], start: int) -> dict[str, Any]:
        valid = batch["row"] >= 0
        vectors = self.encode(self.normalize(batch["pixel_values"].to(self.device))).float().cpu()
        if not bool(valid.all()):
            vectors = vectors[valid]
        if self.dtype == torch.float16 and bool((vectors.abs() > torch.finfo(torch.float16).max).any()):
            raise UserError("--dtype float16 holds numbers up to 65,504, and a vector has larger ones: take float32.")
        good = valid.numpy()
        return {
            "start": start,
            "stop": start + len(good),
            "rows": row_numbers(self.source, batch["position"].numpy()[good]),
            "file_names": [name for name, is_good in zip(batch["file_name"], good) if is_good],
            "labels": batch["labels"].numpy()[good] if "labels" in batch else None,
            "vectors": vectors.to(self.dtype).numpy(),
            "skipped": [self._numbered(record) for record in batch.get("skipped", ())],
        }

    def _numbered(self, record: SkippedImage) -> SkippedImage:
        return replace(record, row=int(row_numbers(self.source, np.array([record.row]))[0]))

    def _write(self, held: list[dict[str, Any]]) -> None:
        labels = None if held[0]["labels"] is None else _joined(held, "labels")
        names = [name for batch in held for name in batch["file_names"]]
        table = table_of(self.schema, _joined(held, "rows"), names, labels, _joined(held, "vectors"))
        skipped: Iterable[SkippedImage] = (record for batch in held for record in batch["skipped"])
        number = held[0]["start"] // self.parts.part_rows
        self.parts.write(Part(number, held[0]["start"], held[-1]["stop"], list(skipped)), table)


def _joined(held: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.concatenate([batch[name] for batch in held])
