"""Statistics beside the data: those that a pass would compute, and never those of other images."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset

from hf_mae_robust.__main__ import main
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.model import ViTMAERobustConfig
from hf_mae_robust.statistics import statistics_pass
from hf_mae_robust.statistics.sampling import Sample
from hf_mae_robust.statistics.statistics_pass import (
    band_statistics_of_source,
    cached_statistics_of_source,
    statistics_of_source,
)
from hf_mae_robust.statistics.stored import stored_band_statistics, stored_patch_statistics
from tests.helpers import write_parquet_set

CONFIG = ViTMAERobustConfig(image_size=16, patch_size=4)
FORM = ["--image_size", "16", "--patch_size", "4", "--crop_pct", "0.875", "--num_workers", "0"]


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    original = write_parquet_set(folder / "set", {"train": 20, "validation": 5}, size=24)
    words = ["prepare", str(original), "--output_dir", str(folder / "prepared"), "--short_side", "18"]
    main([*words, *FORM, "--row_group_size", "7"])
    return folder / "prepared"


def opened(folder, streaming=False, **options):
    return open_splits(DataLocation(str(folder), dataset_streaming=streaming), eval_split=None, **options)[0]


@pytest.fixture
def forbids_passes(monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("a pass over the images")

    monkeypatch.setattr(statistics_pass, "statistics_of_source", fail)
    monkeypatch.setattr(statistics_pass, "statistics_of_band_source", fail)


@pytest.mark.parametrize("streaming", [False, True])
def test_they_are_those_of_a_pass_over_the_prepared_images(prepared_dir, streaming, tmp_path):
    folder = shutil.copytree(prepared_dir, tmp_path / "set")  # also where it was copied to
    source = opened(folder, streaming)
    stored, computed = (
        stored_patch_statistics(source, CONFIG, 0.875),
        statistics_of_source(source, CONFIG, crop_pct=0.875),
    )
    assert stored.num_patches == computed.num_patches == 20 * 16 and stored.metadata["num_images"] == 20
    torch.testing.assert_close(stored.mean, computed.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(stored.std, computed.std, rtol=1e-9, atol=0)
    pixels = [np.asarray(row["image"].convert("RGB"), float).reshape(-1, 3) for row in opened_rows(folder)]
    bands = stored_band_statistics(source, 3)
    np.testing.assert_allclose(bands.mean, np.concatenate(pixels).mean(0), rtol=1e-12)
    np.testing.assert_allclose(bands.std, np.concatenate(pixels).std(0), rtol=1e-9)


def opened_rows(folder):
    return load_dataset(str(folder), split="train")


def test_no_pass_is_needed(prepared_dir, forbids_passes, tmp_path):
    source = opened(shutil.copytree(prepared_dir, tmp_path / "set"))
    assert cached_statistics_of_source(source, CONFIG, crop_pct=0.875).metadata["num_images"] == 20
    assert band_statistics_of_source(source, 3).mean.shape == (3,)


def test_a_sample_of_all_images_needs_no_pass_either(prepared_dir, forbids_passes, tmp_path):
    source, sample = opened(shutil.copytree(prepared_dir, tmp_path / "set")), Sample(20)
    statistics = cached_statistics_of_source(source, CONFIG, crop_pct=0.875, sample=sample)
    assert statistics.metadata["num_images"] == 20
    assert band_statistics_of_source(source, 3, sample=sample).mean.shape == (3,)


def test_other_forms_and_other_images_are_computed(prepared_dir, tmp_path, capsys):
    source = opened(prepared_dir)
    assert stored_patch_statistics(source, CONFIG, 1.0) is None
    assert "crop_pct 1: they are computed" in capsys.readouterr().out
    assert stored_patch_statistics(source, ViTMAERobustConfig(image_size=16, patch_size=8), 0.875) is None
    for some in (source.sample(10), source.head(7), opened(prepared_dir, train_val_split=0.2)):
        assert some.num_rows < 20 and stored_patch_statistics(some, CONFIG, 0.875) is None


def test_those_of_changed_files_are_not_used(prepared_dir, tmp_path, capsys):
    """Two images change places with each other's bytes: as many rows, of the same size."""
    folder = shutil.copytree(prepared_dir, tmp_path / "set")
    file = next(folder.glob("data/train-*"))
    table = pq.read_table(file)
    pq.write_table(table.take([1, 0, *range(2, 20)]), file, row_group_size=7, compression="none")
    assert stored_patch_statistics(opened(folder), CONFIG, 0.875) is None
    content = bytearray(next(prepared_dir.glob("data/train-*")).read_bytes())
    at = content.index(b"\x89PNG") + 60 if b"\x89PNG" in content else content.index(b"\xff\xd9") - 9
    content[at] ^= 1  # in place, in the same size
    file.write_bytes(content)
    assert stored_patch_statistics(opened(folder), CONFIG, 0.875) is None
    assert f"{file.name} changed since" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_costs_a_pass(prepared_dir, tmp_path, monkeypatch, caplog):
    """Such as a pointer of Git LFS, where only the images were fetched."""
    monkeypatch.setattr(statistics_pass, "HF_HOME", str(tmp_path / "home"))
    folder = shutil.copytree(prepared_dir, tmp_path / "set")
    expected = cached_statistics_of_source(opened(folder), CONFIG, crop_pct=0.875).mean.clone()  # not of the file
    path = folder / "statistics" / "train.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    monkeypatch.setattr(statistics_pass, "HF_HOME", str(tmp_path / "other"))
    found = cached_statistics_of_source(opened(folder), CONFIG, crop_pct=0.875)
    torch.testing.assert_close(found.mean, expected, rtol=1e-12, atol=0)
    assert band_statistics_of_source(opened(folder), 3).metadata["num_images"] == 20
    assert caplog.text.count(f"{path} is not a .safetensors file") == 2
