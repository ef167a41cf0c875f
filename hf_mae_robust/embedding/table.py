"""The file of embeddings: its columns, what it says of itself, and reading it a block at a time."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Value
from datasets import Sequence as Vector

# The key of the file's metadata under which our settings stand, as JSON. `datasets` has a key of its own beside it.
KEY = b"hf_mae_robust"


def schema_of(shape: Sequence[int], dtype: str, class_names: Sequence[str] | None, about: dict[str, Any]) -> pa.Schema:
    """Columns of the file, which `datasets` knows as such: `row` (int64), `file_name` (null where there is none), with
    labels `label` (ClassLabel), and `vector`, fixed-size lists.

    Args:
        shape: of a vector: `(d,)`, or `(L, d)` for all patches. dtype: "float32" or "float16". about: what the file
            says of itself.
    """
    vector: Any = Value(dtype)
    for length in reversed(shape):
        vector = Vector(vector, length=length)
    columns: dict[str, Any] = {"row": Value("int64"), "file_name": Value("string")}
    if class_names is not None:
        columns["label"] = ClassLabel(names=list(class_names))
    schema = Features({**columns, "vector": vector}).arrow_schema
    return schema.with_metadata({**schema.metadata, KEY: json.dumps(about, sort_keys=True).encode()})


def table_of(
    schema: pa.Schema, rows: np.ndarray, file_names: Sequence[str], labels: np.ndarray | None, vectors: np.ndarray
) -> pa.Table:
    """Rows of the file. rows, labels: `(N,)` int64. file_names: "" where there is none. vectors: `(N, d)` or
    `(N, L, d)`, of the schema's type."""
    vector = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    for length in reversed(vectors.shape[1:]):
        vector = pa.FixedSizeListArray.from_arrays(vector, length)
    columns = [pa.array(rows), pa.array([name or None for name in file_names], pa.string())]
    columns += [] if labels is None else [pa.array(labels)]
    return pa.Table.from_arrays([*columns, vector], schema=schema)


def vectors_of(column: pa.ChunkedArray) -> np.ndarray:
    """`(N, d)` or `(N, L, d)`, of the type that is stored."""
    shape, kind = [], column.type
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    parts = []
    for chunk in column.chunks:
        for _ in shape:
            chunk = chunk.flatten()
        parts.append(chunk.to_numpy(zero_copy_only=False).reshape(-1, *shape))
    return np.concatenate(parts) if parts else np.zeros((0, *shape), np.float32)


class EmbeddingFile:
    """A file of embeddings, of which a block is read at a time.

    Attributes:
        about: what it says of itself; None for a Parquet file that `embed` has not written.
        num_rows: images. dim: d of a vector. class_names: of its labels; None: it has none.
    """

    def __init__(self, path: Path):
        self.file = pq.ParquetFile(path)
        metadata = self.file.schema_arrow.metadata or {}
        self.about: dict[str, Any] | None = json.loads(metadata[KEY]) if KEY in metadata else None
        self.num_rows, self.group_rows = self.file.metadata.num_rows, self._group_rows()
        self.class_names: list[str] | None = None
        if self.about is not None:
            label = Features.from_arrow_schema(self.file.schema_arrow).get("label")
            self.class_names = None if label is None else list(label.names)

    def _group_rows(self) -> np.ndarray:
        metadata = self.file.metadata
        return np.array([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], dtype=np.int64)

    @property
    def dim(self) -> int:
        return self.file.schema_arrow.field("vector").type.list_size

    def columns(self) -> dict[str, np.ndarray]:
        """All but the vectors, `(N,)` each; `file_name` as objects."""
        names = [name for name in self.file.schema_arrow.names if name != "vector"]
        table = self.file.read(columns=names)
        return {name: table.column(name).to_numpy() for name in names}

    def blocks(self, max_rows: int) -> list[list[int]]:
        """The row groups in runs of at most `max_rows` rows, or one group."""
        found: list[list[int]] = []
        filled = 0
        for group, rows in enumerate(self.group_rows.tolist()):
            if not found or filled + rows > max_rows:
                found.append([])
                filled = 0
            found[-1].append(group)
            filled += rows
        return found

    def read(self, groups: Sequence[int]) -> np.ndarray:
        """The vectors of these row groups, float32."""
        return vectors_of(self.file.read_row_groups(groups, columns=["vector"]).column(0)).astype(
            np.float32, copy=False
        )

    def take(self, places: np.ndarray) -> np.ndarray:
        """The vectors at these places in the file (ascending), float32. Reads the row groups that hold one."""
        return np.concatenate(list(self._taken(places)))

    def _taken(self, places: np.ndarray) -> Iterator[np.ndarray]:
        starts = np.cumsum(self.group_rows) - self.group_rows
        groups = np.searchsorted(starts, places, side="right") - 1
        for group in np.unique(groups).tolist():
            yield self.read([group])[places[groups == group] - starts[group]]
