"""Augmentation of fine-tuning: timm's, with the official settings, and repeatable."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms.functional import to_pil_image

from hf_mae_robust.data.preprocessing import Transform, training_transform
from hf_mae_robust.finetuning.classification.augmentation import (
    BandFinetuningTransform,
    FinetuningTransform,
    SingleDrawRandomResizedCrop,
    _posterize,
    seeded,
)
from tests.helpers import photos

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {"auto_augment": None, "random_erasing": 0.0, "horizontal_flip": False}


def picture(channels: int = 3, size: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(photos(1, size, channels, seed)[0]).permute(2, 0, 1).contiguous()


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)


def official(image_size: int, **settings):
    """util/datasets.py and the defaults of main_finetune.py of the official code."""
    return create_transform(
        input_size=image_size,
        is_training=True,
        color_jitter=None,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        mean=MEAN,
        std=STD,
        **settings,
    )


def test_it_computes_what_the_official_code_does():
    ours, theirs = FinetuningTransform(24), official(24)
    for seed in range(60):
        image = picture(seed=seed)
        torch.manual_seed(seed)
        found = ours(image)
        torch.manual_seed(seed)
        seed_all(int(torch.randint(2**62, ())))  # what our transform derives from torch's
        expected = theirs(to_pil_image(image))
        assert found.dtype == torch.float32 and torch.equal(found, expected), seed


def test_all_of_it_follows_from_the_seed_of_torch():
    transform, image = FinetuningTransform(24), picture()
    first = []
    for seed in range(20):
        torch.manual_seed(seed)
        seed_all(seed)
        first.append(transform(image))
    for seed in range(20):
        torch.manual_seed(seed)
        seed_all(1000 + seed)
        assert torch.equal(transform(image), first[seed])
    assert len({image.numpy().tobytes() for image in first}) == 20


def test_random_numbers_of_python_and_numpy_go_on_as_if_nothing_had_been_drawn():
    transform, image = FinetuningTransform(24), picture()
    seed_all(3)
    expected = random.random(), np.random.rand()
    seed_all(3)
    transform(image)
    assert (random.random(), np.random.rand()) == expected


def test_random_numbers_go_on_after_an_error_too():
    seed_all(3)
    expected = random.random(), np.random.rand()
    seed_all(3)
    with pytest.raises(KeyError), seeded(2**62):
        random.random(), np.random.rand()
        raise KeyError
    assert (random.random(), np.random.rand()) == expected


def test_grey_images_are_augmented():
    transform, image = FinetuningTransform(24, (0.5,), (0.25,)), picture(1)
    results = [transform(image) for _ in range(40)]
    assert all(result.shape == (1, 24, 24) and torch.isfinite(result).all() for result in results)
    assert len({result.numpy().tobytes() for result in results}) == 40


def test_grey_images_without_augmentation_are_normalised_only():
    image = picture(1, size=24)
    found = FinetuningTransform(24, (0.4,), (0.2,), crop_scale=(1.0, 1.0), **PLAIN)(image)
    torch.testing.assert_close(found, (image / 255 - 0.4) / 0.2)


def test_rand_augment_of_four_channels_is_an_error():
    with pytest.raises(ValueError, match="--auto_augment rand-m9.* is for 1 or 3 channels, not 4"):
        FinetuningTransform(24, (0.5,) * 4, (0.5,) * 4)


def test_the_fourth_channel_does_not_touch_the_others():
    """Pillow would weight colours with an alpha, and lose them where it is 0."""
    image = picture(4, size=48)
    image[3, ::2] = 0
    options = {"crop_scale": (1.0, 1.0), **PLAIN}
    found = FinetuningTransform(24, (0.0,) * 4, (1.0,) * 4, **options)(image)
    for channel in range(4):
        resized = Image.fromarray(image[channel].numpy()).resize((24, 24), Image.Resampling.BICUBIC)
        assert np.abs(found[channel].numpy() * 255 - np.asarray(resized)).max() <= 1


@pytest.mark.parametrize("auto_augment", ["m9", "rand-x9", "rand-m9.5", "augmix-q3", "v7", "RAND-m9"])
def test_what_timm_does_not_understand_is_an_error_that_names_it(auto_augment):
    with pytest.raises(ValueError, match=f"--auto_augment {auto_augment}: timm does not understand it"):
        FinetuningTransform(24, auto_augment=auto_augment)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.1), (-0.1, 0.5)])
def test_crop_scales_that_are_no_shares_are_an_error(scale):
    with pytest.raises(ValueError, match=r"--crop_scale .*: needs 0 < LO <= HI <= 1"):
        FinetuningTransform(24, crop_scale=scale)


@pytest.mark.parametrize("probability", [-0.1, 1.5])
def test_an_erasing_probability_that_is_none_is_an_error(probability):
    with pytest.raises(ValueError, match=r"--random_erasing .*: a probability"):
        FinetuningTransform(24, random_erasing=probability)


def test_posterizing_to_no_bits_makes_the_image_black():
    image = to_pil_image(picture())
    operation = AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10, hparams={})
    operation.aug_fn = _posterize
    assert np.asarray(operation(image)).max() == 0
    for bits in (1, 3, 8):
        kept = np.asarray(_posterize(image, bits))
        assert np.array_equal(kept, np.asarray(image) & (256 - 2 ** (8 - bits)))


@pytest.mark.parametrize("auto_augment", ["rand-m10-n4-p1-inc1", "v0", "v0r", "original", "augmix-m10-w2"])
def test_no_strength_of_any_policy_fails(auto_augment):
    """Of v0 and of RandAugment at its strongest, some steps keep no bits."""
    transform, image = FinetuningTransform(16, auto_augment=auto_augment), picture(size=16)
    for _ in range(60):
        assert transform(image).shape == (3, 16, 16)


def test_erasing_replaces_normalised_pixels_with_noise_as_often_as_asked():
    """A grey image is 0 everywhere once it is normalised, so what is not 0 has been erased."""
    image = torch.full((3, 32, 32), 51, dtype=torch.uint8)
    options = {**PLAIN, "random_erasing": 0.25}
    transform = FinetuningTransform(32, (0.2,) * 3, (0.1,) * 3, **options)
    results = torch.stack([transform(image) for _ in range(600)])
    erased = results.abs() > 1e-5
    share = erased.flatten(1).any(dim=1).float().mean()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 600) ** 0.5
    noise = results[erased]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    areas = erased.any(dim=1).float().mean(dim=(1, 2))
    assert areas[areas > 0].min() > 0.01 and areas.max() < 0.36


def test_no_erasing_where_it_is_off():
    image = torch.full((3, 32, 32), 51, dtype=torch.uint8)
    transform = FinetuningTransform(32, (0.2,) * 3, (0.1,) * 3, **PLAIN)
    assert all(transform(image).abs().max() < 1e-5 for _ in range(20))


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.1, 0.3), (0.5, 0.5)])
def test_crops_cover_the_share_of_the_area_that_was_asked_for(scale):
    """Of an image whose pixels are their own coordinates: the mean steps along the axes tell the crop's sides."""
    size, side = 200, 40
    y, x = np.mgrid[0:size, 0:size]
    image = torch.from_numpy(np.stack([y, x, x]).astype(np.uint8))
    transform = FinetuningTransform(side, (0.0,) * 3, (1.0,) * 3, crop_scale=scale, **PLAIN)
    areas = []
    for _ in range(150):
        found = transform(image) * 255
        # The outermost pixels are affected by the edge; between the others the coordinates grow by crop / side.
        height = (found[0, -5, 20] - found[0, 4, 20]) / (side - 9) * side
        width = (found[1, 20, -5] - found[1, 20, 4]) / (side - 9) * side
        areas.append(float(height * width) / size**2)
        assert 0.7 < float(width / height) < 1.42
    assert scale[0] - 0.03 < min(areas) and max(areas) < scale[1] + 0.03
    if scale[0] < scale[1]:
        assert max(areas) - min(areas) > 0.7 * (scale[1] - scale[0])


@pytest.mark.parametrize("flips", [True, False])
def test_half_of_the_images_are_flipped_or_none(flips):
    image = torch.arange(32, dtype=torch.uint8).expand(3, 32, 32)
    options = {**PLAIN, "horizontal_flip": flips, "crop_scale": (1.0, 1.0)}
    transform = FinetuningTransform(32, (0.0,) * 3, (1.0,) * 3, **options)
    flipped = np.mean([bool((found := transform(image))[0, 0, 0] > found[0, 0, -1]) for _ in range(200)])
    assert 0.35 < flipped < 0.65 if flips else flipped == 0


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_the_crop_of_linear_probes_is_drawn_once_and_clipped(size):
    """Against the published definition (util/crop.py of facebookresearch/mae), with random numbers of another kind."""
    width, height = size
    draws = np.random.default_rng(0)
    area = width * height * draws.uniform(0.08, 1.0, 20_000)
    aspect = np.exp(draws.uniform(np.log(3 / 4), np.log(4 / 3), 20_000))
    columns = np.minimum(np.round(np.sqrt(area * aspect)), width)
    rows = np.minimum(np.round(np.sqrt(area / aspect)), height)
    image = Image.new("RGB", size)
    with seeded(0):
        found = np.array(
            [SingleDrawRandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(20_000)]
        )
    tops, lefts = found[:, 0], found[:, 1]
    shares = np.quantile(found[:, 2:].prod(1) / (width * height), [0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
    expected = np.quantile(columns * rows / (width * height), [0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
    np.testing.assert_allclose(shares, expected, atol=0.015)
    np.testing.assert_allclose(found[:, 2:].mean(0), [rows.mean(), columns.mean()], rtol=0.01)
    with seeded(0):
        usual = [RandomResizedCropAndInterpolation.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(2000)]
    assert np.mean([rows * columns for _, _, rows, columns in usual]) < 0.95 * found[:, 2:].prod(1).mean()
    # Every place is as likely as any other.
    room = height - found[:, 2]
    assert (tops[room > 0] / room[room > 0]).mean() == pytest.approx(0.5, abs=0.01)
    assert (tops + found[:, 2] <= height).all() and (lefts + found[:, 3] <= width).all()


@pytest.mark.parametrize("probe", [True, False])
def test_only_linear_probes_crop_so(probe):
    steps = FinetuningTransform(16, auto_augment=None, random_erasing=0.0, single_draw=probe).steps.transforms
    assert sum(isinstance(step, SingleDrawRandomResizedCrop) for step in steps) == probe
    assert sum(isinstance(step, RandomResizedCropAndInterpolation) for step in steps) == 1


def test_vertical_flips_and_quarter_turns():
    """All eight positions of a picture whose crop is the picture."""
    image = picture(size=16)
    plain = FinetuningTransform(16, crop_scale=(1.0, 1.0), **PLAIN)
    turning = FinetuningTransform(16, crop_scale=(1.0, 1.0), **PLAIN, vertical_flip=True, rot90=True)
    expected, found = plain(image), set()
    flips = (expected, expected.flip(1))
    positions = {flip.rot90(turns, (1, 2)).numpy().tobytes() for flip in flips for turns in range(4)}
    for seed in range(300):
        torch.manual_seed(seed)
        found.add(turning(image).contiguous().numpy().tobytes())
    assert len(found & positions) == 8
    with pytest.raises(ValueError, match="--rot90"):
        FinetuningTransform((16, 32), rot90=True)


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_bands_are_cropped_as_in_pretraining_and_erased_by_timm(channels):
    bands = torch.randn(channels, 40, 40)
    bands[:, :8] = torch.nan
    whole, transform = training_transform(24, (0.08, 1.0)), BandFinetuningTransform(24, random_erasing=0.5)
    assert isinstance(transform, Transform)
    erased = 0
    for seed in range(40):
        seed_all(1000 - seed)
        torch.manual_seed(seed)
        found = transform(bands)
        torch.manual_seed(seed)
        expected = whole(bands)
        changed = ~((found == expected) | (found.isnan() & expected.isnan())).all(0)
        rows, columns = changed.nonzero().unbind(1)
        assert found.shape == (channels, 24, 24) and found.dtype == torch.float32
        if len(rows):  # a rectangle
            erased += 1
            assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            assert found[:, changed].isfinite().all()
        torch.manual_seed(seed)
        assert transform(bands).numpy().tobytes() == found.numpy().tobytes()
    assert 10 < erased < 30 and bands[:, 8:].isfinite().all()
    assert "crop" in repr(transform) and "Erasing" in repr(transform)


def test_bands_of_linear_probes_are_cropped_once_and_clipped():
    torch.manual_seed(0)
    transform = BandFinetuningTransform(16, single_draw=True, random_erasing=0.0)
    boxes = np.array([transform.region(30, 200) for _ in range(2000)])
    assert (boxes[:, 0] + boxes[:, 2] <= 30).all() and (boxes[:, 1] + boxes[:, 3] <= 200).all()
    random.seed(0)
    image = Image.new("L", (200, 30))
    settings = image, (0.08, 1.0), (3 / 4, 4 / 3)
    official = np.array([SingleDrawRandomResizedCrop.get_params(*settings) for _ in range(2000)])
    for column in range(4):
        assert ks_2samp(boxes[:, column], official[:, column]).pvalue > 1e-4


def test_colours_of_bands_are_not_changed():
    with pytest.raises(ValueError, match="--auto_augment rand-m9-mstd0.5-inc1 changes the colours of 8-bit pictures"):
        BandFinetuningTransform(16, auto_augment="rand-m9-mstd0.5-inc1")
    with pytest.raises(ValueError, match="--random_erasing"):
        BandFinetuningTransform(16, random_erasing=2.0)
