"""Single Parquet files, at any address."""

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.parquet_files import ParquetAccess, open_parquet, parquet_errors
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from tests.flaky_files import everything, half
from tests.helpers import LFS_POINTER


@pytest.fixture
def table():
    return pa.table({"image": [np.random.default_rng(i).bytes(500) for i in range(40)], "label": list(range(40))})


@pytest.mark.parametrize("where", ["path", "file://", "memory://", "flaky://"])
def test_parquet_at_any_address(flaky, table, tmp_path, where):
    url = f"{where}{tmp_path / 'x.parquet'}" if where == "file://" else f"{where}x.parquet"
    url = str(tmp_path / "x.parquet") if where == "path" else url
    with fsspec.open(url, "wb") as file:
        pq.write_table(table, file, row_group_size=10)
    flaky.faults[:] = [half, TimeoutError(), everything] if where == "flaky://" else []
    file = open_parquet(url, ParquetAccess(retry_seconds=60))
    flaky.faults += [half, ConnectionResetError()] if where == "flaky://" else []
    rows = [file.read_row_group(i, columns=["image"]).column("image").to_pylist() for i in range(4)]
    assert sum(rows, []) == table.column("image").to_pylist() and not flaky.faults
    assert len(flaky.opened) in (0, 5)  # a whole file for a whole file is right


def test_parquet_of_a_file_system_that_fails_ends_in_a_sentence(flaky, table):
    """Through pyarrow's threads."""
    with fsspec.open("flaky://x.parquet", "wb") as file:
        pq.write_table(table, file, row_group_size=10)
    file = open_parquet("flaky://x.parquet", ParquetAccess(retry_seconds=0.1))
    flaky.faults[:] = [half] * 10**5
    with pytest.raises(DataError, match="bytes were asked for"), parquet_errors("Row group 1 of x"):
        file.read_row_group(1)
    flaky.faults.clear()
    assert file.read_row_group(1).num_rows == 10


@pytest.mark.parametrize("content", [b"", b"<html>", bytes(5000), b"PAR1" + bytes(500) + b"PAR1"])
@pytest.mark.parametrize("where", ["flaky://", "path"])
def test_what_is_no_parquet_is_named(flaky, tmp_path, content, where):
    url = str(tmp_path / "x.parquet") if where == "path" else "flaky://x.parquet"
    with fsspec.open(url, "wb") as file:
        file.write(content)
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as Parquet \((Arrow|OSError)"):
        open_parquet(url)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "train.parquet").write_text(LFS_POINTER)
    for streaming in (False, True):
        for name in (tmp_path, tmp_path / "train.parquet"):
            with pytest.raises(DataError, match="train.parquet is a Git LFS pointer.*git lfs pull"):
                open_splits(DataLocation(str(name), dataset_streaming=streaming))
