"""The pass over a data set that gives its patch statistics."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.model.bands_vit_mae_robust import BandForm
from hf_mae_robust.statistics.statistics_pass import (
    band_statistics_of_source,
    cached_statistics_of_band_source,
    cached_statistics_of_source,
    cached_statistics_path,
    statistics_of_source,
    value_range_of_source,
)
from tests.helpers import photos, write_parquet_set
from tests.processes import offline


def two_pass(images: np.ndarray, p: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent of the code under test: slice out every patch, then mean and deviation over all of them."""
    _, channels, height, width = images.shape
    patches = [
        image[:, i : i + p, j : j + q].transpose(1, 2, 0).ravel()
        for image in images.astype(np.float64) / 255
        for i in range(0, height, p)
        for j in range(0, width, q)
    ]
    return np.mean(patches, axis=0), np.std(patches, axis=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_of_a_data_set_of_files(tmp_path, streaming):
    folder = write_parquet_set(tmp_path / "set", {"train": 30})
    source, _ = open_splits(DataLocation(str(folder), dataset_streaming=streaming))
    config = ViTMAERobustConfig(image_size=16, patch_size=4)
    statistics = statistics_of_source(source, config, crop_pct=1.0, batch_size=4)
    mean, std = two_pass(np.stack(photos(30)).transpose(0, 3, 1, 2), 4, 4)
    np.testing.assert_allclose(statistics.mean.numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(statistics.std.numpy(), std, rtol=1e-6)
    assert statistics.metadata["num_images"] == 30
    assert statistics.metadata["patch_size"] == [4, 4]
    assert "resize" in statistics.metadata["transform"]
    json.dumps(statistics.metadata)


def test_cache_is_used_and_depends_on_data_and_form(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    folder = write_parquet_set(tmp_path / "set", {"train": 30})
    source, _ = open_splits(DataLocation(str(folder)))
    config = ViTMAERobustConfig(image_size=16, patch_size=4)
    first = cached_statistics_of_source(source, config, crop_pct=1.0)
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.statistics_of_source", None)  # would fail if called
    assert torch.equal(cached_statistics_of_source(source, config, crop_pct=1.0).mean, first.mean)
    path = cached_statistics_path(source, config, 1.0)
    other_patch = ViTMAERobustConfig(image_size=16, patch_size=8)
    assert path != cached_statistics_path(source, other_patch, 1.0)
    assert path != cached_statistics_path(source, config, 0.875)
    assert path != cached_statistics_path(source.head(10), config, 1.0)
    assert path != cached_statistics_path(replace(source, full_size_decoding=True), config, 1.0)


def test_files_that_are_written_again_get_new_statistics(tmp_path, monkeypatch):
    """Their names and sizes are the same: once in counts, once with an offset."""
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("fields").mkdir()
    config = ViTMAERobustConfig(
        image_size=16, patch_size=4, num_channels=5, rescale_factor=1.0, image_mean=[0.0] * 5, image_std=[1.0] * 5
    )
    for offset, is_written in ((0, True), (500, True), (500, False)):
        images = [np.full((5, 16, 16), 1000 + offset + i, np.uint16) for i in range(10)]
        for i, image in enumerate(images):
            image[:, i] += 10
            if is_written:  # again with the same numbers would be other files, too
                np.save(f"fields/{i}.npy", image)
        source, _ = open_splits(DataLocation("fields"), tells=False)
        bands, patches = cached_statistics_of_band_source(source.read_as(BandForm(), 5), config, crop_pct=1.0)
        assert patches is not None
        for mean in (bands.mean, patches.mean):
            assert mean.mean().item() == pytest.approx(np.mean(images), rel=1e-9)
    assert len(list((tmp_path / "home").rglob("band_statistics-*"))) == 2, "the last time they are in the cache"


def test_small_differences_of_large_numbers(tmp_path, monkeypatch):
    """float32 would round a million and a thousandth to sixteenths."""
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    images = 1e6 + np.random.default_rng(0).normal(0, 0.01, (6, 2, 8, 8))
    (tmp_path / "set").mkdir()
    for i, image in enumerate(images):
        np.save(tmp_path / "set" / f"{i}.npy", image)
    source, _ = open_splits(DataLocation(str(tmp_path / "set")))
    bands = band_statistics_of_source(source.read_as(BandForm(), 2), 2)
    np.testing.assert_allclose(bands.std.numpy(), images.std(axis=(0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_cache_knows_files_that_were_written_again(tmp_path, monkeypatch, streaming):
    """Uncompressed arrays have their former names and sizes."""
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    for number in (1000, 2000):
        for i in range(20):
            (tmp_path / "set").mkdir(exist_ok=True)
            np.save(tmp_path / "set" / f"{i}.npy", np.full((2, 8, 8), number + i, np.uint16))
            os.utime(tmp_path / "set" / f"{i}.npy", (number, number))
        source, _ = open_splits(DataLocation(str(tmp_path / "set"), dataset_streaming=streaming))
        bands = band_statistics_of_source(source.read_as(BandForm(), 2), 2)
        assert bands.mean.tolist() == [number + 9.5] * 2


def test_a_cache_that_cannot_be_written_to_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    """The pass has been made by then."""
    (tmp_path / "home").touch()
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    source, _ = open_splits(DataLocation(str(write_parquet_set(tmp_path / "set", {"train": 30}))))
    config = ViTMAERobustConfig(image_size=16, patch_size=4)
    for _ in range(2):
        assert cached_statistics_of_source(source, config, crop_pct=1.0).metadata["num_images"] == 30
    assert f"The statistics cannot be kept in {tmp_path / 'home' / 'hf_mae_robust'} (NotADirectory" in caplog.text
    (tmp_path / "bands").mkdir()
    for i in range(20):
        np.save(tmp_path / "bands" / f"{i}.npy", np.full((2, 16, 16), 1000 + i, np.uint16))
    source = open_splits(DataLocation(str(tmp_path / "bands")))[0].read_as(BandForm(), 2)
    config = ViTMAERobustConfig(image_size=16, patch_size=4, num_channels=2)
    bands, patches = cached_statistics_of_band_source(source, config, crop_pct=1.0)
    assert bands.mean.tolist() == [1009.5] * 2 and patches.count == 320
    assert value_range_of_source(source, 2, (0, 100)) == [(1000, 1019)] * 2


def test_a_cache_that_cannot_be_read_costs_a_pass(tmp_path, monkeypatch, caplog):
    """Files that were cut off, and then a folder of another user."""
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    (tmp_path / "bands").mkdir()
    for i in range(20):
        np.save(tmp_path / "bands" / f"{i}.npy", np.full((2, 16, 16), 1000 + i, np.uint16))
    source = open_splits(DataLocation(str(tmp_path / "bands")))[0].read_as(BandForm(), 2)
    config = ViTMAERobustConfig(image_size=16, patch_size=4, num_channels=2)
    for breaks, num_warnings in (False, 0), (True, 2), (False, 0):
        for path in (tmp_path / "home").rglob("*.safetensors") if breaks else ():
            path.write_bytes(path.read_bytes()[:-8])
        caplog.clear()
        assert cached_statistics_of_source(source, config, crop_pct=1.0).mean.mean() == 1009.5
        assert band_statistics_of_source(source, 2).mean.tolist() == [1009.5] * 2
        assert value_range_of_source(source, 2, (0, 100)) == [(1000, 1019)] * 2
        assert caplog.text.count("The statistics are computed.") == num_warnings
    is_file = Path.is_file

    def refused(path, **options):
        if path.is_relative_to(tmp_path / "home"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return is_file(path, **options)

    monkeypatch.setattr(Path, "is_file", refused)
    assert cached_statistics_of_source(source, config, crop_pct=1.0).mean.mean() == 1009.5
    assert "Permission denied" in caplog.text


def test_pictures_as_numbers_to_255_have_a_cache_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_mae_robust.statistics.statistics_pass.HF_HOME", str(tmp_path / "home"))
    source, _ = open_splits(DataLocation(str(write_parquet_set(tmp_path / "set", {"train": 30}))))
    config = ViTMAERobustConfig(image_size=16, patch_size=4)
    expected = two_pass(np.stack(photos(30)).transpose(0, 3, 1, 2), 4, 4)[0]
    for _ in range(2):
        _, numbers = cached_statistics_of_band_source(source, config, crop_pct=1.0)
        pixels = cached_statistics_of_source(source, config, crop_pct=1.0)
        assert numbers is not None
        np.testing.assert_allclose(numbers.mean, expected * 255, rtol=1e-6)
        np.testing.assert_allclose(pixels.mean, expected, rtol=1e-6)


PROGRAM = """
import sys
from pathlib import Path
from accelerate import PartialState
from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.statistics import statistics_pass

state, folder = PartialState(cpu=True), Path(sys.argv[1])
source, _ = open_splits(DataLocation(str(folder / "set")))
for caches in ("ab", "ab", "ba"):  # a process each. None has a file, then only the first, then only the second.
    statistics_pass.HF_HOME = str(folder / caches[state.process_index])
    config = ViTMAERobustConfig(image_size=16, patch_size=4)
    found = statistics_pass.cached_statistics_of_source(source, config, crop_pct=1.0)
    with (folder / f"{state.process_index}.txt").open("a") as file:
        print(found.mean.sum().item(), found.count, file=file)
state.destroy_process_group()
"""


def test_two_machines_with_a_cache_each_get_the_statistics_of_the_first(tmp_path):
    write_parquet_set(tmp_path / "set", {"train": 30})
    (tmp_path / "program.py").write_text(PROGRAM)
    both = offline().run([tmp_path / "program.py", tmp_path], tmp_path / "logs", processes=2)
    assert both.codes == [0, 0], both.output
    first, second = ((tmp_path / f"{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert first == second and len(first) == 3 and len(set(first)) == 1 and first[0].endswith(" 480")
    assert [len(list((tmp_path / cache).rglob("patch_statistics-*"))) for cache in "ab"] == [1, 1]
