"""A data set that cannot be loaded is told by its fault, and by what mends that."""

import errno

import pytest

from hf_mae_robust.data import loading
from hf_mae_robust.data.loading_faults import sentence_of
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from tests.helpers import image_table


def refusal(path):
    with pytest.raises(DataError) as refused:
        open_splits(DataLocation(str(path)))
    return str(refused.value)


@pytest.mark.parametrize(
    ("number", "words", "file"),
    [(errno.EACCES, "Permission denied", "a.lock"), (errno.ENOSPC, "No space left on device", None)],
)
def test_a_cache_that_is_closed_or_full_is_named_with_the_variable(tmp_path, monkeypatch, number, words, file):
    image_table(4).to_parquet(tmp_path / "train.parquet")
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)

    def fail(*args, **options):
        raise OSError(number, words, *([str(cache / file)] if file else []))

    monkeypatch.setattr(loading, "load_dataset_builder", fail)
    message = refusal(tmp_path)
    assert words in message and "HF_HOME sets that to a writable folder" in message and "Hub id" not in message


def test_a_file_of_the_data_that_may_not_be_read_is_not_blamed_on_the_cache(tmp_path):
    message = sentence_of(
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a.parquet")), str(tmp_path)
    )
    assert f"{tmp_path}/a.parquet: Permission denied" in message and "HF_HOME" not in message


def test_too_little_room_is_told_by_what_is_needed(tmp_path):
    message = sentence_of(OSError("Not enough disk space. Needed: 9 GiB (download: 9 GiB)"), str(tmp_path))
    assert message.endswith("(download: 9 GiB). Make room, or set HF_HOME to a folder that has it.")


def test_a_truncated_parquet_file_is_named(tmp_path):
    for i in range(2):
        image_table(4).to_parquet(tmp_path / f"train-{i}.parquet")
    (tmp_path / "train-1.parquet").write_bytes((tmp_path / "train-1.parquet").read_bytes()[:-20])
    message = refusal(tmp_path)
    assert f"{tmp_path}/train-1.parquet is damaged" in message and "Copy it again" in message


def test_lists_with_different_columns_are_told_apart(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\n0.jpg,x\n")
    (tmp_path / "b.csv").write_text("path,kind\n1.jpg,y\n")
    message = refusal(tmp_path)
    assert "have different columns" in message or "has the columns path, kind" in message
    assert "Hub id" not in message


def test_a_local_folder_is_not_told_to_log_in(tmp_path):
    (tmp_path / "a.unknown").write_text("")
    message = refusal(tmp_path)
    assert "Give a folder with images" in message and "auth login" not in message


@pytest.mark.parametrize(
    ("name", "kind", "way"),
    [
        ("a.h5", "HDF5", "h5py"),
        ("a.hdf5", "HDF5", "h5py"),
        ("a.nc", "netCDF", "xarray"),
        ("a.nrrd", "NRRD", "SimpleITK"),
        ("a.mha", "MetaImage", "SimpleITK"),
        ("a.mat", "MATLAB", "scipy.io"),
        ("a.exr", "OpenEXR", "OpenEXR"),
        ("a.img", "ENVI", "gdal_translate"),
        ("a.hdr", "ENVI", "gdal_translate"),
    ],
)
def test_arrays_in_formats_that_are_not_read_are_named_with_the_way_out(tmp_path, name, kind, way):
    (tmp_path / name).write_bytes(b"ENVI")
    for path in (tmp_path, tmp_path / name):
        message = refusal(path)
        assert name in message and f"{kind} files are not read. Convert each image to TIFF or .npy" in message
        assert way in message
