"""`analyze targets`: the six targets and what is said of them, against NumPy, and what must hold of some images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.__main__ import main
from hf_mae_robust.analysis.targets import (
    PER_PATCH,
    RAW,
    TARGETS,
    advice,
    compare_targets,
    patch_numbers,
    renormalized,
)
from tests.helpers import TINY

IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
NONE, RGB, PATCH = PER_PATCH


def colorful(count=12, size=16, seed=0):
    """uint8 `(N, H, W, 3)`: smooth random pictures with an offset a channel, some parts nearly or completely flat."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    a, b = rng.uniform(-20, 20, (2, count, 1, 1, 3))
    pictures = [130.0, 100.0, 60.0] + rng.normal(0, 20, (count, 1, 1, 3)) + a * y[..., None] + b * x[..., None]
    pictures = pictures + rng.normal(0, 1, (count, 1, 1, 1)) * rng.normal(0, 4, (count, size, size, 3))
    pictures[0, :4, :4], pictures[1, :4, :4] = 255, [20, 128, 240]
    return pictures.clip(0, 255).astype(np.uint8)


def patches_of(pictures, p=4):
    n, height, width, channels = pictures.shape
    cut = pictures.reshape(n, height // p, p, width // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(-1, p * p * channels)


def six_targets(pictures, mean, std):
    """In float64, by the equations of the paper: `(6, P, D)`."""
    raw = patches_of(pictures / 255)
    rgb = patches_of((pictures / 255 - mean) / std)
    populations = [raw, rgb, (raw - raw.mean(0)) / np.sqrt(raw.var(0) + 1e-6)]
    intra = [(x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, ddof=1, keepdims=True) + 1e-6) for x in populations]
    return np.stack([*populations, *intra])


def as_batches(pictures, config, batch_size=5):
    mean, std = (torch.tensor(value, dtype=torch.float64) for value in (config.image_mean, config.image_std))
    images = ((torch.from_numpy(pictures).double() / 255 - mean) / std).permute(0, 3, 1, 2).float()
    return images.split(batch_size)


def compare(pictures, **settings):
    config = ViTMAERobustConfig(**{**TINY, "num_channels": pictures.shape[-1], **settings})
    batches = as_batches(pictures, config)
    numbers = patch_numbers(batches, config)
    return compare_targets(batches, config, numbers.mean, numbers.std)


@pytest.fixture
def pictures_dir(tmp_path):
    (tmp_path / "set").mkdir()
    for number, picture in enumerate(colorful()):
        Image.fromarray(picture).save(tmp_path / "set" / f"{number:02}.png")
    return tmp_path / "set"


FORM = ["--image_size", "16", "--patch_size", "4", "--crop_pct", "1.0", "--num_workers", "0"]


@pytest.mark.parametrize("statistics", ["default", "auto"])
def test_the_command_finds_what_numpy_finds(statistics, pictures_dir, tmp_path, capsys):
    output = tmp_path / "out" / "targets.json"
    words = ["--dataset_name", str(pictures_dir), *FORM, "--image_statistics", statistics, "--batch_size", "5"]
    main(["analyze", "targets", *words, "--output", str(output)])
    found, pictures = json.loads(output.read_text()), colorful()
    mean, std = (
        IMAGENET if statistics == "default" else ((pictures / 255).mean((0, 1, 2)), (pictures / 255).std((0, 1, 2)))
    )
    assert found["about"]["images"] == 12 and found["about"]["patches"] == 12 * 16
    assert found["about"]["image_mean"] == pytest.approx(mean, abs=1e-6)
    assert found["about"]["image_std"] == pytest.approx(std, abs=1e-6)

    targets = six_targets(pictures, mean, std)
    assert found["targets"] == list(TARGETS)
    assert np.array(found["correlation"]) == pytest.approx(np.corrcoef(targets.reshape(6, -1)), abs=1e-5)
    difference = [[((a - b) ** 2).mean() / (a**2).mean() for b in targets] for a in targets]
    assert np.array(found["squared_difference"]) == pytest.approx(np.array(difference), rel=1e-4, abs=1e-6)

    flat = (targets[3:].var(-1) < 0.5).repeat(2, 0)[[0, 2, 4, 0, 2, 4]]  # (6, P)
    assert 0 < flat[0].sum() < 20, "the pictures have some"
    assert found["flat"] == pytest.approx(flat.mean(-1), abs=1e-9)
    centered = targets - targets.mean(-1, keepdims=True)
    negative = np.einsum("spd,tpd->stp", centered, centered) < 0
    negative &= ~flat[:, None] & ~flat[None]
    assert np.array(found["anticorrelated"]) == pytest.approx(negative.mean(-1), abs=1e-9)

    variance = targets.var((1, 2))
    assert found["constant"] == pytest.approx(targets.mean(1).var(-1) / variance, abs=1e-5)
    by_channel = targets.reshape(6, -1, 3)
    assert found["channel_offset"] == pytest.approx(by_channel.mean(1).var(-1) / variance, abs=1e-5)
    shares = ((by_channel - targets.mean((1, 2))[:, None, None]) ** 2).mean(1) / 3 / variance[:, None]
    assert np.array(found["by_channel"]) == pytest.approx(shares, abs=1e-5)
    means = targets.reshape(6, len(flat[0]), -1, 3).mean(2).var(-1)
    assert found["between_channels"] == pytest.approx(means.sum(-1) / targets.var(-1).sum(-1), abs=1e-5)
    assert found["channels_only"] == pytest.approx(((means >= 0.9 * targets.var(-1)) & ~flat).mean(-1), abs=1e-9)

    printed = capsys.readouterr().out
    assert f"| {NONE} / {RGB} " in printed and f"{found['correlation'][3][4]:.3f}" in printed
    assert all(sentence in printed for sentence in found["advice"])
    assert Image.open(output.with_suffix(".png")).width > 1000


def test_a_checkpoint_brings_form_and_statistics(pictures_dir, tmp_path):
    """Its statistics of patches are those of its data set, not of the sample."""
    rng = np.random.default_rng(1)
    mean, std = rng.uniform(0.2, 0.8, 48), rng.uniform(0.1, 0.5, 48)
    model = ViTMAERobustForPreTraining(ViTMAERobustConfig(**TINY, target_normalization="global_patch"))
    model.set_target_statistics(mean, std)
    model.save_pretrained(tmp_path / "model")
    words = ["--dataset_name", str(pictures_dir), "--model_name_or_path", str(tmp_path / "model"), *FORM[4:]]
    main(["analyze", "targets", *words, "--output", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["about"]["image_size"], found["about"]["patch_size"]) == (16, 4)
    assert found["about"]["patch_statistics"] == str(tmp_path / "model")
    raw = patches_of(colorful() / 255)
    expected = np.corrcoef(raw.ravel(), ((raw - mean) / np.sqrt(std**2 + 1e-6)).ravel())[0, 1]
    assert found["correlation"][0][2] == pytest.approx(expected, abs=1e-5)


def test_the_per_patch_step_takes_out_a_common_scale_and_shift_but_no_offset_of_a_channel():
    pictures = (colorful() * 0.8).astype(np.uint8) + np.uint8(20)  # nothing at the ends of the range
    brighter, bluer = pictures + np.uint8(20), pictures + np.array([0, 0, 20], dtype=np.uint8)
    config = ViTMAERobustConfig(**TINY, target_normalization="none")
    model = ViTMAERobustForPreTraining(config)
    of, of_brighter, of_bluer = (
        model.compute_target(torch.cat(as_batches(images, config))) for images in (pictures, brighter, bluer)
    )
    assert torch.allclose(of, of_brighter, atol=1e-2) and not torch.allclose(of, of_bluer, atol=0.5)
    before, after = compare(pictures), compare(bluer)
    assert after.of("constant", NONE) != pytest.approx(before.of("constant", NONE), abs=0.02)
    assert after.of("constant", RAW[2]) == pytest.approx(0, abs=1e-6), "the population's mean is 0 in every number"


def test_gray_images_have_no_offset_until_a_mean_of_other_images_brings_one():
    pictures = colorful()[..., :1].repeat(3, axis=-1)
    imagenets, own = compare(pictures), compare(pictures, image_mean=[0.5] * 3, image_std=[0.1] * 3)
    assert imagenets.of("channel_offset", NONE) == pytest.approx(0, abs=1e-9)
    assert imagenets.of("channel_offset", RGB) > 0.3
    assert "do not fit your images" in advice(imagenets)[0] and "global_patch" in advice(imagenets)[0]
    assert own.of("correlation", NONE, RGB) == pytest.approx(1, abs=1e-3)
    assert "do not fit" not in " ".join(advice(own))
    assert own.by_channel[TARGETS.index(NONE)].tolist() == pytest.approx([1 / 3] * 3)


def test_of_one_channel_none_and_rgb_are_one_target():
    found = compare(colorful()[..., :1])
    assert found.of("correlation", NONE, RGB) == pytest.approx(1, abs=1e-3)
    assert found.of("channel_offset", NONE) == pytest.approx(0, abs=1e-9)
    assert "none is nearly the same target as global_rgb" in " ".join(advice(found))


def test_a_pattern_that_all_patches_share_is_a_constant():
    rng = np.random.default_rng(0)
    pattern = rng.integers(20, 230, (4, 4, 3))
    noise = rng.integers(-3, 4, (12, 16, 16, 3))
    found = compare((np.tile(pattern, (4, 4, 1)) + noise).astype(np.uint8))
    assert found.of("constant", RGB) > 0.98 > 0.5 > found.of("channel_offset", RGB)
    assert found.of("constant", PATCH) < 0.1
    assert "differ for your images" in advice(found)[0] and "global_patch takes it out" in advice(found)[1]


def test_missing_pixels_are_left_out():
    """Patches of nothing but NaN: as if they were not there."""
    pictures = colorful()
    config = ViTMAERobustConfig(**TINY)
    images = torch.cat(as_batches(pictures, config))
    pierced = images.clone()
    pierced[4:, :, 4:8, 8:12] = torch.nan
    numbers = patch_numbers([pierced], config)
    raw = patches_of(pictures / 255).reshape(12, 16, -1)
    kept = np.ones((12, 16), dtype=bool)
    kept[4:, 4 + 2] = False
    assert numbers.mean.numpy() == pytest.approx(raw[kept].mean(0), abs=1e-6)
    assert numbers.std.numpy() == pytest.approx(raw[kept].std(0), abs=1e-6)
    assert numbers.count.tolist() == [kept.sum()] * 48

    found = compare_targets([pierced], config, numbers.mean, numbers.std)
    assert found.num_patches == kept.sum()
    # The same patches, in images of one row of four.
    rows = raw[kept].reshape(-1, 4, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 4, 16, 3)
    row_config = ViTMAERobustConfig(**{**TINY, "image_size": [4, 16]})
    row_images = as_batches((rows * 255).round().astype(np.uint8), row_config)
    expected = compare_targets(row_images, row_config, numbers.mean, numbers.std)
    assert expected.num_patches == kept.sum()
    for measure in ("correlation", "constant", "by_channel", "between_channels", "flat"):
        assert torch.allclose(getattr(found, measure), getattr(expected, measure), atol=1e-5), measure


def test_images_are_normalised_again():
    before, after = ViTMAERobustConfig(**TINY), ViTMAERobustConfig(**TINY, image_mean=[0.1] * 3, image_std=[0.3] * 3)
    batches = [torch.cat(list(renormalized(as_batches(colorful(), before), before, after)))]
    assert torch.allclose(batches[0], torch.cat(as_batches(colorful(), after)), atol=1e-5)


@pytest.mark.parametrize("statistics", ["default", "auto"])
def test_images_without_any_variance_are_reported(statistics, tmp_path, capsys):
    (tmp_path / "set").mkdir()
    for number in range(3):
        Image.new("L", (16, 16), 77).save(tmp_path / "set" / f"{number}.png")
    words = ["--dataset_name", str(tmp_path / "set"), *FORM, "--num_channels", "1", "--image_statistics", statistics]
    main(["analyze", "targets", *words, "--output", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert "NaN" not in (tmp_path / "found.json").read_text(), "it is not JSON"
    assert found["flat"] == [1] * 6 and np.isfinite(found["about"]["image_std"]).all()
    assert "has any variance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "FOLDER"], "is a folder; name a file"),
        (["--output", "found.txt"], "--output found.txt: must end in .json"),
        (["--patch_size", "5"], "--image_size 16 --patch_size 5: image_size=16 is not a multiple"),
        (["--patch_size", "16"], "leaves 0 of 1 patches visible"),
        (["--model_name_or_path", "MODEL"], "the checkpoint says it"),
        (["--seed", "-1"], "--seed -1: must be"),
        (["--split", "test"], "no split 'test'. It has: train. Choose one with --split."),
    ],
)
def test_bad_input_is_a_sentence(more, message, pictures_dir, encoder_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    places = {"FOLDER": str(tmp_path), "MODEL": str(encoder_dir)}
    words = ["--dataset_name", str(pictures_dir), *FORM, *(places.get(word, word) for word in more)]
    with pytest.raises(SystemExit) as end:
        main(["analyze", "targets", *words])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and "Traceback" not in error, error


def test_pictures_that_cannot_be_decoded_are_too_many(pictures_dir, capsys):
    (pictures_dir / "00.png").write_bytes((pictures_dir / "00.png").read_bytes()[:100])
    with pytest.raises(SystemExit):
        main(["analyze", "targets", "--dataset_name", str(pictures_dir), *FORM])
    assert "1 of 12" in capsys.readouterr().err


def bands_with_holes(count=10, num_bands=5, seed=0):
    """uint16 `(N, C, H, W)`, bands of very different offset and deviation; 0 where a pixel is missing."""
    rng = np.random.default_rng(seed)
    scale = np.array([30, 200, 900, 60, 2500]).reshape(-1, 1, 1)
    images = np.array([400, 1200, 9000, 700, 30000]).reshape(-1, 1, 1) + scale * rng.normal(size=(count, 5, 16, 16))
    images[:4, :, 3:8, 2:10] = 0  # all of one patch of 4 x 4, and parts of others
    return images[:, :num_bands].clip(0, 65535).astype(np.uint16)


@pytest.fixture
def bands_dir(tmp_path):
    from datasets import Array3D, Dataset, Features

    images = bands_with_holes()
    features = Features({"image": Array3D((5, 16, 16), "uint16")})
    (tmp_path / "bands").mkdir()
    Dataset.from_dict({"image": list(images)}, features).to_parquet(tmp_path / "bands" / "train.parquet")
    return tmp_path / "bands"


def six_targets_of_bands(images, axis):
    """As `six_targets`, of `(N, C, H, W)` with NaN where a pixel is missing."""
    mean, std = np.nanmean(images, (0, 2, 3)), np.nanstd(images, (0, 2, 3))
    normalized = patches_of(((images - mean[:, None, None]) / std[:, None, None]).transpose(0, 2, 3, 1))
    pooled = np.sqrt((std**2 + (mean - mean.mean()) ** 2).mean())
    raw = patches_of(((images - mean.mean()) / pooled).transpose(0, 2, 3, 1))
    populations = [raw, normalized]
    populations.append((normalized - np.nanmean(normalized, 0)) / np.sqrt(np.nanvar(normalized, 0) + 1e-6))
    # Per channel, raw and normalised differ by an affine map that cancels but for the epsilon: the model leaves it out.
    before = populations if axis == "patch" else [normalized, *populations[1:]]
    intra = []
    for population in before:
        values = population.reshape(len(raw), -1, images.shape[1]) if axis == "channel" else population[..., None]
        deviation = np.sqrt(np.nanvar(values, 1, ddof=1, keepdims=True) + 1e-6)
        intra.append(((values - np.nanmean(values, 1, keepdims=True)) / deviation).reshape(population.shape))
    return np.stack([*populations, *intra])


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom")
@pytest.mark.parametrize("axis", ["patch", "channel"])
def test_bands_with_missing_pixels_are_as_in_numpy(axis, bands_dir, tmp_path):
    output = tmp_path / "found.json"
    words = ["--dataset_name", str(bands_dir), *FORM, "--nodata", "0", "--norm_pix_axis", axis]
    main(["analyze", "targets", *words, "--output", str(output)])
    found, images = json.loads(output.read_text()), bands_with_holes().astype(float)
    images[images == 0] = np.nan
    assert found["about"]["image_mean"] == pytest.approx(np.nanmean(images, (0, 2, 3)), rel=1e-6)
    assert found["about"]["image_std"] == pytest.approx(np.nanstd(images, (0, 2, 3)), rel=1e-6)
    targets = six_targets_of_bands(images, axis)
    targets = targets[:, (~np.isnan(targets[0])).sum(-1) > 1]
    assert found["about"]["patches"] == targets.shape[1] < 10 * 16
    there = targets[:, ~np.isnan(targets[0])]
    assert np.array(found["correlation"]) == pytest.approx(np.corrcoef(there), abs=1e-4)
    count = (~np.isnan(targets[0])).sum(0)
    constant = (count * (np.nanmean(targets, 1) - there.mean(1)[:, None]) ** 2).sum(-1) / count.sum() / there.var(1)
    assert found["constant"] == pytest.approx(constant, abs=1e-4)
    r = found["correlation"][TARGETS.index(NONE)][TARGETS.index(RGB)]
    if axis == "channel":  # an affine map of each channel leaves no trace
        assert r == pytest.approx(1, abs=1e-5)
    else:
        assert r < 0.5 < found["constant"][TARGETS.index(NONE)]


def test_a_checkpoint_of_bands_brings_its_statistics_in_the_units_of_the_files(bands_dir, tmp_path):
    images = bands_with_holes().astype(float)
    images[images == 0] = np.nan
    mean, std = np.nanmean(images, (0, 2, 3)), np.nanstd(images, (0, 2, 3))
    form = {"num_channels": 5, "rescale_factor": 1.0, "image_mean": mean.tolist(), "image_std": std.tolist()}
    config = ViTMAERobustConfig(**TINY, **form, nodata=0, target_normalization="global_patch")
    model = ViTMAERobustForPreTraining(config)
    raw = patches_of(images.transpose(0, 2, 3, 1))
    model.set_target_statistics(np.nanmean(raw, 0), np.nanstd(raw, 0))
    model.save_pretrained(tmp_path / "model")
    words = ["--dataset_name", str(bands_dir), *FORM[4:], "--output"]
    main(["analyze", "targets", *words, str(tmp_path / "a.json"), "--model_name_or_path", str(tmp_path / "model")])
    main(["analyze", "targets", *words, str(tmp_path / "b.json"), *FORM[:4], "--nodata", "0"])
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert np.array(first["correlation"]) == pytest.approx(np.array(second["correlation"]), abs=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--image_statistics", "default"], "for which no mean and deviation are usual"),
        (["--num_channels", "3"], "--num_channels 3: "),
        (["--bands", "1", "7"], "the last band is 4"),
        (["--bands", "-1"], "--bands -1: must be at least 0"),
        (["--value_range", "5", "1"], "LO below HI"),
    ],
)
def test_bad_input_about_bands_is_a_sentence(more, message, bands_dir, capsys):
    with pytest.raises(SystemExit) as end:
        main(["analyze", "targets", "--dataset_name", str(bands_dir), *FORM, *more])
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and "Traceback" not in error, error
