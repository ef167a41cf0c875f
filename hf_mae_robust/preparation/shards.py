"""From finished parts to the shards of a prepared data set, dealt out among the processes."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate import PartialState

from ..data.bad_images import SkippedImage
from ..errors import DataError
from ..files import sha256_of, write_completely
from ..training.parts import Part, Parts
from ..training.processes import all_processes
from .writing import STATISTICS

PLAN = "shards.json"


@dataclass(frozen=True)
class SplitPlan:
    """What becomes of the parts of a split.

    Attributes:
        num_rows: of the source, the bad ones included. skipped: the bad ones.
        statistics: of each part (`packed_text`). shards: the numbers of the parts in each.
    """

    num_rows: int
    skipped: list[dict[str, Any]]
    statistics: list[str]
    shards: list[list[int]]

    @classmethod
    def of(cls, parts: Parts, found: Sequence[Part], num_rows: int, max_bytes: int, description: str) -> "SplitPlan":
        """Shards of at most `max_bytes`, or one part. Raises DataError where no image could be decoded."""
        shards: list[list[int]] = []
        filled = 0
        for part in found:
            size = parts.num_bytes(part.number)
            if not shards or filled + size > max_bytes:
                shards.append([])
                filled = 0
            shards[-1].append(part.number)
            filled += size
        skipped = [asdict(record) for part in found for record in part.skipped]
        if len(skipped) == num_rows:
            raise DataError(f"No image of {description} can be decoded.")
        statistics = [part.more[STATISTICS] for part in found if STATISTICS in part.more]
        return cls(num_rows, skipped, statistics, shards)

    @property
    def num_images(self) -> int:
        return self.num_rows - len(self.skipped)

    def records(self) -> list[SkippedImage]:
        return [SkippedImage(**record) for record in self.skipped]

    def names(self, split: str) -> list[str]:
        """Of the shards, as on the Hub, counted from the folder of the data set."""
        number = len(self.shards)
        return [f"data/{split}-{i:05d}-of-{number:05d}.parquet" for i in range(number)]


@dataclass(frozen=True)
class ShardPlan:
    """What becomes of all parts. It is written once all of them are there, and parts go when they stand in a shard: a
    run that is killed between resumes by it.

    Attributes:
        settings: digest of those that it was made with. splits: by name.
    """

    settings: str
    splits: dict[str, SplitPlan] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, settings: str) -> "ShardPlan | None":
        """That of a former run with the same settings; None: it did not come so far."""
        path = folder / PLAN
        content = json.loads(path.read_text()) if path.is_file() else None
        if content is None or content["settings"] != settings:
            return None
        return cls(settings, {name: SplitPlan(**split) for name, split in content["splits"].items()})

    def save(self, folder: Path) -> None:
        write_completely(folder / PLAN, lambda path: path.write_text(json.dumps(asdict(self)) + "\n"))


def write_shards(plan: ShardPlan, parts: dict[str, Parts], schema: pa.Schema, folder: Path) -> dict[str, Any]:
    """Write the shards that are not there, each by one process, and remove their parts. To be called by all processes.
    Returns path from `folder` -> {"size", "sha256"} of all of them."""
    state = PartialState()
    wanted = [
        (split, name, numbers)
        for split, of_split in plan.splits.items()
        for name, numbers in zip(of_split.names(split), of_split.shards)
    ]

    def write_mine() -> dict[str, dict[str, Any]]:
        (folder / "data").mkdir(parents=True, exist_ok=True)
        written = {}
        for split, name, numbers in wanted[state.process_index :: state.num_processes]:
            path = folder / name
            if not path.exists():
                parts[split].join(numbers, schema, path)
            parts[split].drop(numbers)
            written[name] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
        return written

    files = {name: of_file for written in all_processes(write_mine) for name, of_file in written.items()}
    return dict(sorted(files.items()))
