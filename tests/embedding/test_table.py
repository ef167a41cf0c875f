"""The file of embeddings, written and read a block at a time."""

import numpy as np
import pytest

from hf_mae_robust.embedding.table import EmbeddingFile, schema_of, table_of
from hf_mae_robust.training.parts import open_writer, write_table


@pytest.fixture
def written(tmp_path):
    """Row groups of 3, 1, 4 and 2 rows."""
    vectors = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    schema = schema_of((6,), "float32", ["a", "b"], {"checkpoint": "x"})
    with open_writer(tmp_path / "e.parquet", schema) as writer:
        for start, stop in ((0, 3), (3, 4), (4, 8), (8, 10)):
            rows = np.arange(start, stop)
            names = ["" if row % 2 else f"{row}.png" for row in rows]
            write_table(writer, table_of(schema, rows, names, rows % 2, vectors[start:stop]))
    return EmbeddingFile(tmp_path / "e.parquet"), vectors


def test_what_was_written_is_read(written):
    file, vectors = written
    assert (file.num_rows, file.dim, file.class_names, file.about) == (10, 6, ["a", "b"], {"checkpoint": "x"})
    columns = file.columns()
    assert columns["row"].tolist() == list(range(10)) and columns["label"].tolist() == [0, 1] * 5
    assert columns["file_name"].tolist() == [None if row % 2 else f"{row}.png" for row in range(10)]
    np.testing.assert_array_equal(file.read([1, 2]), vectors[3:8])


@pytest.mark.parametrize(
    ("max_rows", "blocks"), [(1, [[0], [1], [2], [3]]), (4, [[0, 1], [2], [3]]), (99, [[0, 1, 2, 3]])]
)
def test_blocks_are_no_larger_than_asked_for(written, max_rows, blocks):
    assert written[0].blocks(max_rows) == blocks


def test_vectors_are_taken_by_their_place(written):
    file, vectors = written
    places = np.array([0, 2, 3, 7, 9])
    np.testing.assert_array_equal(file.take(places), vectors[places])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_all_patches_of_an_image(tmp_path, dtype):
    vectors = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(dtype)
    schema = schema_of((4, 6), dtype, None, {})
    with open_writer(tmp_path / "e.parquet", schema) as writer:
        write_table(writer, table_of(schema, np.arange(3), [""] * 3, None, vectors))
    file = EmbeddingFile(tmp_path / "e.parquet")
    found = file.read([0])
    assert found.dtype == np.float32 and file.class_names is None
    np.testing.assert_array_equal(found, vectors.astype(np.float32))
