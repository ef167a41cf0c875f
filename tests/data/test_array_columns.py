"""Arrays of Arrow columns come out as they went in: values, type and shape, against numpy."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Array2D, Array3D, Dataset, Features, List, Value

from hf_mae_robust.data.array_columns import ArrayColumn, arrays_of_chunk, holds_arrays
from hf_mae_robust.data.decoding import decode_image
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import ImageDecodingError

RNG = np.random.default_rng(0)
NESTED = List(List(List(Value("uint16"))))


def images(shape=(5, 4, 6), dtype="uint16", count=7):
    return [(RNG.random(shape) * 60_000).astype(dtype) for _ in range(count)]


def table_of(arrays, feature):
    return Dataset.from_dict({"image": arrays}, features=Features({"image": feature}))


@pytest.mark.parametrize(
    ("feature", "dtype", "shape"),
    [
        (Array3D((5, 4, 6), "uint16"), "uint16", (5, 4, 6)),
        (Array3D((5, 4, 6), "float32"), "float32", (5, 4, 6)),
        (Array3D((5, 4, 6), "int16"), "int16", (5, 4, 6)),
        (Array2D((4, 6), "uint8"), "uint8", (4, 6)),
        (NESTED, "uint16", (5, 4, 6)),
    ],
    ids=str,
)
def test_arrays_keep_values_type_and_shape(feature, dtype, shape):
    arrays = images(shape, "int16" if dtype == "int16" else dtype)
    column = ArrayColumn(table_of(arrays, feature).data.column("image"))
    assert holds_arrays(feature)
    for i, array in enumerate(arrays):
        assert column[i].dtype == np.dtype(dtype) and np.array_equal(column[i], array)


def test_rows_of_different_shapes_and_nulls():
    arrays = [*images((3, 4, 5), count=2), None, *images((3, 2, 5), count=1)]
    column = ArrayColumn(table_of(arrays, NESTED).data.column("image"))
    assert column[2] is None
    assert all(np.array_equal(column[i], arrays[i]) for i in (0, 1, 3))


def test_parts_of_chunks_and_lists_of_fixed_size():
    arrays = np.stack(images((4, 6), "int32"))
    kind = pa.list_(pa.list_(pa.int32(), 6), 4)
    chunk = pa.array(arrays.tolist(), type=kind).slice(2, 3)
    assert np.array_equal(arrays_of_chunk(chunk), arrays[2:5])
    sliced = table_of(list(arrays), List(List(Value("int32")))).data.column("image").chunk(0).slice(3)
    assert np.array_equal(arrays_of_chunk(sliced), arrays[3:])


def test_lists_of_different_lengths_stay_lists_and_the_rows_beside_them_are_arrays():
    column = ArrayColumn(pa.chunked_array([pa.array([[[1, 2], [3]], [[1, 2], [3, 4]]])]))
    assert column[0] == [[1, 2], [3]]
    assert np.array_equal(column[1], [[1, 2], [3, 4]])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_that_is_not_an_array_is_a_bad_image(tmp_path, streaming):
    good = images((8, 8), "uint8", count=3)
    rows = [[[1, 2], [3]], *(image.tolist() for image in good)]
    Dataset.from_dict({"image": rows}, Features({"image": List(List(Value("uint8")))})).to_parquet(
        tmp_path / "train.parquet"
    )
    location = DataLocation(str(tmp_path), dataset_streaming=streaming, image_column_name="image")
    source, _ = open_splits(location, eval_split=None)
    assert np.array_equal(source.rows[1], good[0])
    with pytest.raises(ImageDecodingError, match="different lengths"):
        decode_image(source.rows[0], 1, 0)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_source_gives_the_arrays_of_its_files(tmp_path, streaming):
    """datasets gives int64, and nested lists."""
    arrays = images((3, 4, 6), count=23)
    table_of(arrays, Array3D((3, 4, 6), "uint16")).to_parquet(tmp_path / "train.parquet", batch_size=5)
    source, _ = open_splits(DataLocation(str(tmp_path), dataset_streaming=streaming), eval_split=None)
    assert len(source) == 23
    for i in (22, 0, 7):
        assert source.rows[i].dtype == np.uint16 and np.array_equal(source.rows[i], arrays[i])


def test_a_part_that_is_held_out_has_the_arrays_of_its_rows(tmp_path):
    arrays = [np.full((3, 4, 6), i, np.uint16) for i in range(20)]
    table_of(arrays, Array3D((3, 4, 6), "uint16")).to_parquet(tmp_path / "train.parquet")
    parts = open_splits(DataLocation(str(tmp_path)), train_val_split=0.25)
    found = [[int(part.rows[i][0, 0, 0]) for i in range(len(part))] for part in parts]
    assert sorted(found[0] + found[1]) == list(range(20)) and len(found[1]) == 5
