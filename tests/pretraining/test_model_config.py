"""Runs on images of bands: what they hold decides over the model, against numpy."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Array3D, Dataset, Features

from hf_mae_robust.errors import UserError
from hf_mae_robust.pretrain import main, make_parser, plan, pretrain
from hf_mae_robust.statistics.patch_statistics import PatchStatistics
from hf_mae_robust.training.band_arguments import BandArguments
from tests.helpers import TINY_OVERRIDES, losses, photos

RNG = np.random.default_rng(0)
NODATA = 7


def pictures(count, bands=5, size=16):
    """uint16, every band of another range, with a border of missing pixels in half of them."""
    y, x = np.mgrid[0:size, 0:size] / size
    found = []
    for i in range(count):
        waves = np.sin(RNG.uniform(2, 6) * y + RNG.uniform(2, 6) * x + RNG.uniform(0, 6, (bands, 1, 1)))
        image = 1000 * np.arange(1, bands + 1)[:, None, None] + 10 ** np.arange(bands)[:, None, None] % 997 * waves + 50
        image = image.astype(np.uint16)
        if i % 2:
            image[:, :, :5] = NODATA
        found.append(image)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bands")
    features = Features({"image": Array3D((5, 16, 16), "uint16")})
    for split, count in (("train", 24), ("validation", 6)):
        Dataset.from_dict({"image": pictures(count)}, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


def flags(folder, output_dir, *words):
    return [
        "--dataset_name", str(folder), "--config_overrides", TINY_OVERRIDES, "--output_dir", str(output_dir),
        "--per_device_train_batch_size", "8", "--max_steps", "4", "--dataloader_num_workers", "0",
        "--logging_steps", "1", "--report_to", "none", "--crop_pct", "1.0", *words,
    ]  # fmt: skip


def run(folder, output_dir, *words):
    return pretrain(*make_parser(prog="run_pretrain.py").parse(flags(folder, output_dir, *words)))


def stored(folder):
    """float64 `(N, C, H, W)`."""
    rows = Dataset.from_parquet(str(folder / "train.parquet")).with_format("numpy")["image"][:]
    return np.asarray(rows, dtype=np.float64)


def config_of(folder):
    return json.loads((Path(folder) / "config.json").read_text())


def test_mean_and_deviation_of_each_band_without_missing_pixels(folder, tmp_path, capsys):
    trainer = run(
        folder, tmp_path, "--nodata", str(NODATA), "--bands", "4", "0", "1",
        "--target_normalization", "global_patch", "--target_statistics", "auto",
    )  # fmt: skip
    images = stored(folder)[:, [4, 0, 1]]
    images[images == NODATA] = np.nan
    config = trainer.model.config
    np.testing.assert_allclose(config.image_mean, np.nanmean(images, axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(config.image_std, np.nanstd(images, axis=(0, 2, 3)), rtol=1e-6)
    assert (config.num_channels, config.bands, config.nodata, config.is_band_model) == (3, [4, 0, 1], NODATA, True)
    patches = images.reshape(-1, 3, 4, 4, 4, 4).transpose(0, 2, 4, 3, 5, 1).reshape(-1, 48)
    statistics = PatchStatistics.load(tmp_path / "target_statistics.safetensors")
    np.testing.assert_allclose(statistics.mean, np.nanmean(patches, axis=0), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, np.nanstd(patches, axis=0), rtol=1e-6)
    assert np.isfinite(losses(trainer)).all()
    said = capsys.readouterr().out
    assert "holds 5 bands of uint16" in said and "of the numbers missing" in said
    assert {"reconstructions.png", "reconstruction_error_by_band.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("streaming", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_run_resumes_with_the_statistics_that_it_began_with(folder, tmp_path, monkeypatch, streaming):
    words = ["--clip_percentiles", "1", "99", "--dataset_streaming", streaming, "--save_strategy", "steps"]
    words += ["--save_steps", "2"]
    complete = run(folder, tmp_path / "complete", *words)
    run(folder, tmp_path / "stopped", *words, "--lr_scheduler_type", "cosine", "--max_steps", "4")
    for name in ("checkpoint-4", "model.safetensors"):
        path = tmp_path / "stopped" / name
        path.unlink() if path.is_file() else [file.unlink() for file in path.iterdir()] and path.rmdir()

    def fails(*_, **__):
        raise AssertionError("statistics are not computed again")

    monkeypatch.setattr("hf_mae_robust.statistics.band_settings.cached_statistics_of_band_source", fails)
    resumed = run(folder, tmp_path / "stopped", *words)
    assert losses(resumed)[-2:] == losses(complete)[-2:]
    low, high = np.percentile(stored(folder), [1, 99], axis=(0, 2, 3))
    np.testing.assert_allclose(np.array(resumed.model.config.value_range).T, [low, high], rtol=1e-6)


def test_a_run_is_not_resumed_with_other_numbers_of_the_files(folder, tmp_path, capsys):
    given = ["--bands", "3", "1", "--nodata", "7", "--clip_percentiles", "1", "99"]
    run(folder, tmp_path, *given, "--save_strategy", "steps", "--save_steps", "2")
    others = [
        (["--bands", "3", "2", *given[3:]], "bands: [3, 1] there, [3, 2] here"),
        (["--bands", "3", *given[3:]], "was trained on 2 bands, and this run asks for 1"),
        (given[3:], "was trained on 2 bands, and this run asks for 5"),
        ([*given[:3], *given[5:]], "nodata: 7.0 there, None here"),
        (given[:5], "value_range: "),
        ([*given[:-1], "98"], "clip_percentiles: [1.0, 99.0] there, [1.0, 98.0] here"),
        ([*given, "--channel_axis", "first"], "channel_axis: None there, 'first' here"),
    ]
    for words, message in others:
        with pytest.raises(SystemExit) as stop:
            main(flags(folder, tmp_path, *words))
        assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("is_8_bit", [False, True])
def test_a_run_whose_first_images_are_bad_ends_well(tmp_path, capsys, is_8_bit):
    """Pictures are drawn of the first ones: of 64 in a model of bands, else of 8."""
    features = Features({"image": Array3D((16, 16, 3), "uint8") if is_8_bit else Array3D((5, 16, 16), "uint16")})
    (tmp_path / "set").mkdir()
    for split, bad in (("train", []), ("validation", [None] * 8)):
        images = bad + (photos(16) if is_8_bit else pictures(16))
        Dataset.from_dict({"image": images}, features=features).to_parquet(tmp_path / "set" / f"{split}.parquet")
    main(flags(tmp_path / "set", tmp_path / "out", "--max_bad_images", "1"))
    assert (tmp_path / "out" / "reconstructions.png").is_file() is not is_8_bit
    assert ("reconstructions.png" in capsys.readouterr().out) is not is_8_bit


def test_a_range_of_values_clips_before_the_statistics(folder, tmp_path):
    config = run(folder, tmp_path, "--value_range", "1000", "3000").model.config
    clipped = stored(folder).clip(1000, 3000)
    assert config.value_range == [[1000, 3000]] * 5
    np.testing.assert_allclose(config.image_mean, clipped.mean(axis=(0, 2, 3)), rtol=1e-6)


def test_8_bit_pictures_get_their_own_statistics_if_asked_for(photos_dir, tmp_path):
    config = run(photos_dir, tmp_path, "--image_statistics", "auto").model.config
    table = Dataset.from_parquet([str(path) for path in sorted(photos_dir.glob("data/train-*"))])
    pixels = np.stack([np.asarray(image, dtype=np.float64) for image in table["image"]]) / 255
    assert not config.is_band_model and config.num_channels == 3
    np.testing.assert_allclose(config.image_mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(config.image_std, pixels.std(axis=(0, 1, 2)), rtol=1e-6)


def test_training_from_a_model_of_bands_keeps_its_settings(folder, tmp_path):
    first = run(folder, tmp_path / "first", "--nodata", str(NODATA))
    words = ["--model_name_or_path", str(tmp_path / "first"), "--config_overrides", "mask_ratio=0.5"]
    second = run(folder, tmp_path / "second", *words)
    for name in ("image_mean", "image_std", "nodata", "num_channels"):
        assert getattr(second.model.config, name) == getattr(first.model.config, name)
    assert second.model.config.mask_ratio == 0.5


def test_the_plan_of_a_run_knows_the_bands(folder, tmp_path):
    arguments = make_parser(prog="run_pretrain.py").parse(flags(folder, tmp_path, "--dry_run"))
    assert "Plan of the run" in plan(arguments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bands", "0", "9"], "the last band is 4"),
        (["--bands", "0", "0"], "must be different numbers"),
        (["--bands", "-1"], "counted from 0"),
        (["--value_range", "3", "1"], "LO below"),
        (["--value_range", "1", "2", "1", "2"], "2 pairs for 5 bands"),
        (["--clip_percentiles", "99", "1"], "0 <= LO < HI <= 100"),
        (["--clip_percentiles", "1", "99", "--value_range", "1", "2"], "give one of them"),
        (["--nodata", "inf"], "must be a finite number"),
        (["--frame", "-1"], "at least 0"),
        (["--config_overrides", f"{TINY_OVERRIDES},num_channels=3"], "the model would have 5 channels"),
        (["--image_statistics", "default"], "for which no mean and deviation are usual"),
        (["--image_statistics", "default", "--bands", "0"], "Leave one of them out"),
        (["--inflate_channels", "mean"], "a new model has the channels of the images"),
        (["--value_range", "0", "1"], "there is nothing to learn"),
        (["--dry_run", "--bands", "9"], "the last band is 4"),
    ],
)
def test_odd_flags_end_in_a_sentence(folder, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(flags(folder, tmp_path, *words))
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_flags_about_bands_are_not_for_models_of_8_bit_images(photos_dir, folder, tmp_path, capsys):
    run(photos_dir, tmp_path / "rgb")
    start = ["--model_name_or_path", str(tmp_path / "rgb")]
    with pytest.raises(SystemExit):
        main(flags(folder, tmp_path / "out", *start, "--bands", "0", "1", "2"))
    assert "--bands is for images of bands" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(flags(photos_dir, tmp_path / "out", *start, "--inflate_channels", "mean"))
    assert "Leave it out" in capsys.readouterr().err


def test_nan_is_a_missing_pixel_without_being_named():
    flags = BandArguments(nodata=float("nan"))
    assert flags.nodata is None and not flags.asks_for_bands


def test_a_pair_for_each_band():
    form = BandArguments(bands=[3, 1], value_range=[0, 5, 1, 9]).band_form(7)
    assert form.bands == (3, 1) and form.value_range == ((0, 5), (1, 9))
    with pytest.raises(UserError, match="2 pairs for 3 bands"):
        BandArguments(bands=[3, 1, 2], value_range=[0, 5, 1, 9]).band_form(7)


def test_a_checkpoint_of_8_bit_images_is_inflated(folder, encoder_dir, tmp_path, capsys):
    words = ["--model_name_or_path", str(encoder_dir), "--inflate_channels", "mean", "--max_steps", "1"]
    config = run(folder, tmp_path, *words).model.config
    said = capsys.readouterr()
    assert "patch projection inflated from 3 to 5 channels (mean); prediction layer new" in said.out
    assert "MISSING" not in said.out + said.err
    assert config.is_band_model and config.num_channels == 5


@pytest.mark.slow  # as above, and as for models from scratch
def test_a_run_that_inflated_resumes(folder, encoder_dir, tmp_path):
    words = ["--model_name_or_path", str(encoder_dir), "--save_strategy", "steps", "--save_steps", "2"]
    words += ["--inflate_channels", "mean"]
    complete = run(folder, tmp_path / "complete", *words)
    run(folder, tmp_path / "stopped", *words)
    for name in ("checkpoint-4", "model.safetensors"):
        path = tmp_path / "stopped" / name
        path.unlink() if path.is_file() else [file.unlink() for file in path.iterdir()] and path.rmdir()
    resumed = run(folder, tmp_path / "stopped", *words)
    assert losses(resumed)[-2:] == losses(complete)[-2:]
