"""python -m hf_mae_robust statistics"""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hf_mae_robust.__main__ import main
from hf_mae_robust.pretrain import main as pretrain
from hf_mae_robust.statistics.band_statistics import BandStatistics
from hf_mae_robust.statistics.patch_statistics import PatchStatistics
from tests.helpers import TINY_OVERRIDES, as_flags, photos, write_parquet_set
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


def test_random_images_are_told_with_their_standard_error(photos_dir, tmp_path, capsys):
    main(words(photos_dir, tmp_path / "stats.safetensors", "--statistics_samples", "9"))
    printed = capsys.readouterr().out
    assert "72 patches of 9 images" in printed and "9 random of 21 images: standard error of the mean" in printed
    sampling = PatchStatistics.load(tmp_path / "stats.safetensors").metadata["sampling"]
    assert f"of the deviation {sampling['error_of_deviation']:.2%}" in printed
    metadata = PatchStatistics.load(tmp_path / "stats.safetensors").metadata
    assert metadata["dataset"] == "random 9 of set (train)"  # the file is uploaded, the folder is this machine's
    main(words(photos_dir, tmp_path / "same.safetensors", "--max_samples", "9"))
    assert capsys.readouterr().out.replace("same", "stats") == printed
    main(words(photos_dir, tmp_path / "other.safetensors", "--statistics_samples", "9", "--seed", "7"))
    for name, seed in ("stats", 42), ("other", 7):  # 42 is a run's, too
        rows = np.random.default_rng(seed).choice(21, 9, replace=False)
        mean = np.stack(photos(21))[rows].mean() / 255
        assert PatchStatistics.load(tmp_path / f"{name}.safetensors").mean.mean() == pytest.approx(mean, rel=1e-6)
    with pytest.raises(SystemExit):
        main(words(photos_dir, tmp_path / "stats.safetensors", "--statistics_samples", "1"))
    assert "--statistics_samples 1: must be at least 2" in capsys.readouterr().err


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """A folder of arrays `(4, 16, 16)` of 16 bits, and these arrays; 0 is missing."""
    images = np.random.default_rng(0).integers(0, 2_000, (9, 4, 16, 16), dtype=np.uint16)
    features = datasets.Features({"image": datasets.Array3D((4, 16, 16), "uint16")})
    folder = tmp_path_factory.mktemp("bands") / "set"
    folder.mkdir()
    datasets.Dataset.from_dict({"image": list(images)}, features).to_parquet(folder / "train.parquet")
    return folder, images


def test_bands_are_printed_in_a_table_and_stored_beside_the_patches(bands, tmp_path, capsys):
    folder, images = bands
    main(words(folder, tmp_path / "stats.safetensors", "--bands", "3", "1", "--nodata", "0"))
    table = capsys.readouterr().out.splitlines()[-3:]
    chosen = np.where(images == 0, np.nan, images.astype(np.float64))[:, [3, 1]]
    mean, std = np.nanmean(chosen, axis=(0, 2, 3)), np.nanstd(chosen, axis=(0, 2, 3))
    assert [line.split()[0] for line in table] == ["band", "3", "1"]
    assert float(table[1].split()[1]) == pytest.approx(mean[0], rel=1e-5)
    found = BandStatistics.load(tmp_path / "stats.safetensors", num_bands=2)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, std, rtol=1e-9)
    assert found.missing.sum() == (images[:, [3, 1]] == 0).sum() and found.metadata["nodata"] == 0
    patches = PatchStatistics.load(tmp_path / "stats.safetensors", patch_dim=64)
    assert patches.num_patches == 9 * 8
    np.testing.assert_allclose(patches.mean.reshape(4, 8, 2).mean(dim=(0, 1)), mean, rtol=0.01)


def test_bands_are_clipped_to_percentiles(bands, tmp_path, capsys):
    folder, images = bands
    sampled = words(
        folder, tmp_path / "stats.safetensors", "--statistics_samples", "5", "--clip_percentiles", "5", "95"
    )
    main(sampled)
    printed = capsys.readouterr().out
    assert "Bands of 5 random of 9 images" in printed and "Patches of 5 random of 9 images" in printed
    main(words(folder, tmp_path / "stats.safetensors", "--clip_percentiles", "5", "95", "--num_channels", "4"))
    found = BandStatistics.load(tmp_path / "stats.safetensors", num_bands=4)
    low, high = np.percentile(images, (5, 95), axis=(0, 2, 3))
    np.testing.assert_allclose(found.minimum, low, rtol=1e-6)
    np.testing.assert_allclose(found.maximum, high, rtol=1e-6)


def test_bands_that_are_not_there_are_refused(bands, tmp_path, capsys):
    for more, message in [
        (["--num_channels", "3"], "--num_channels 3: "),
        (["--num_channels", "0"], "--num_channels 0: must be at least 1"),
        (["--bands", "4"], "the last band is 3"),
        (["--value_range", "5"], "needs pairs LO HI"),
        (["--image_statistics", "default"], "which no 8-bit picture shows. Leave it out"),
    ]:
        with pytest.raises(SystemExit) as stop:
            main(words(bands[0], tmp_path / "stats.safetensors", *more))
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_a_run_takes_statistics_of_its_own_units_alone(tmp_path, capsys):
    """16-bit pictures, which a run reads as they are stored, or as 8-bit ones."""
    (tmp_path / "set").mkdir()
    draw = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(draw.integers(0, 2**16, (16, 16), np.uint16)).save(tmp_path / "set" / f"{i}.png")
    path = tmp_path / "stats.safetensors"
    main([*words(tmp_path / "set", path), "--patch_size", "4"])
    settings = {"dataset_name": tmp_path / "set", "output_dir": tmp_path / "out", "config_overrides": TINY_OVERRIDES}
    settings |= {"target_normalization": "global_patch", "target_statistics": path, "report_to": "none"}
    settings |= {"per_device_train_batch_size": 3, "max_steps": 2}
    pretrain(as_flags(settings, "--dry_run"))
    capsys.readouterr()
    as_pictures = {"image_statistics": "default", "config_overrides": f"{TINY_OVERRIDES},num_channels=1"}
    for other in ({"nodata": 0}, as_pictures):
        with pytest.raises(SystemExit):
            pretrain(as_flags(settings | other, "--dry_run"))
        assert f"--target_statistics {path} does not fit this run: " in capsys.readouterr().err
    as_default = ["--patch_size", "4", "--image_statistics", "default", "--num_channels", "1"]
    main([*words(tmp_path / "set", path), *as_default])
    pretrain(as_flags(settings | as_pictures, "--dry_run"))
    assert 0.4 < PatchStatistics.load(path, 16).mean.mean() < 0.6
    with pytest.raises(SystemExit):
        main([*words(tmp_path / "set", path), *as_default, "--nodata", "0"])
    assert (
        "--nodata is for images of bands, and --image_statistics default for 8-bit pictures" in capsys.readouterr().err
    )


def test_bad_images_are_limited_by_the_flag_that_the_error_names(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    for i, image in enumerate(photos(10)):
        Image.fromarray(image).save(tmp_path / "set" / f"{i}.png")
    (tmp_path / "set" / "3.png").write_bytes((tmp_path / "set" / "3.png").read_bytes()[:60])
    with pytest.raises(SystemExit):
        main(words(tmp_path / "set", tmp_path / "stats.safetensors"))
    assert "raise --max_bad_images" in capsys.readouterr().err
    main(words(tmp_path / "set", tmp_path / "stats.safetensors", "--max_bad_images", "0.2"))
    assert "of 9 images" in capsys.readouterr().out


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
