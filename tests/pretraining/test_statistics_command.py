"""python -m hf_mae_robust statistics"""

import pytest
import torch

from hf_mae_robust.__main__ import main
from hf_mae_robust.pretraining.patch_statistics import PatchStatistics
from tests.helpers import write_parquet_set
from tests.processes import offline


@pytest.fixture(scope="module")
def photos_dir(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 21, "validation": 4})


def words(folder, output, *more):
    return [
        "statistics", "--dataset_name", str(folder), "--image_size", "16", "--patch_size", "4", "8",
        "--crop_pct", "1.0", "--num_workers", "0", "--batch_size", "4", "--output", str(output), *more,
    ]  # fmt: skip


def test_statistics_are_written_with_what_they_are_of(photos_dir, tmp_path, capsys):
    main(words(photos_dir, tmp_path / "stats.safetensors"))
    assert "168 patches of 21 images" in capsys.readouterr().out
    statistics = PatchStatistics.load(tmp_path / "stats.safetensors", patch_dim=96)
    assert statistics.metadata["num_images"] == 21 and statistics.metadata["patch_size"] == [4, 8]
    assert "train" in statistics.metadata["dataset"]


@pytest.mark.slow  # test_statistics_pass.py has two processes
def test_two_processes_with_workers_agree_with_one(photos_dir, tmp_path):
    main(words(photos_dir, tmp_path / "one.safetensors"))
    more = words(photos_dir, tmp_path / "two.safetensors", "--num_workers", "1")
    both = offline().run(["-m", "hf_mae_robust", *more], tmp_path / "printed", processes=2)
    assert both.codes == [0, 0], both.output
    one, two = (PatchStatistics.load(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert two.metadata["num_images"] == 21 and one.count == two.count
    torch.testing.assert_close(one.mean, two.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(one.std, two.std, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--split", "dev"], "no split 'dev'. It has: train, validation. Choose one with --split."),
        (["--image_size", "17"], "not a multiple of patch_size"),
        (["--image_size", "1", "2", "3"], "image_size"),
        (["--image_column_name", "photo"], "no column 'photo'"),
    ],
)
def test_bad_input_ends_in_one_sentence(photos_dir, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit) as stop:
        main(words(photos_dir, tmp_path / "stats.safetensors", *more))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "stats.safetensors").exists()
