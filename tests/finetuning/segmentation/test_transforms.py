"""Images and maps stay together through the augmentation, and are scaled as mmsegmentation does."""

import colorsys

import pytest
import torch
from torchvision import tv_tensors
from transformers.image_utils import IMAGENET_DEFAULT_MEAN

from hf_mae_robust.finetuning.segmentation.maps import IGNORED
from hf_mae_robust.finetuning.segmentation.transforms import (
    MAX_SHARE_OF_A_CLASS,
    PhotometricDistortion,
    SegmentationEvaluationTransform,
    SegmentationTransform,
    scaled_size,
)

MEAN = torch.tensor([round(255 * mean) for mean in IMAGENET_DEFAULT_MEAN])
COLOURS = torch.tensor([[10, 20, 30], [200, 0, 100], [90, 250, 0], [5, 5, 220], [130, 130, 130]], dtype=torch.uint8)


def patches(height: int, width: int, side: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares of random classes, some ignored (the last colour), and the image in their colours."""
    classes = torch.randint(-1, 4, (-(-height // side), -(-width // side)), dtype=torch.int32)
    classes = classes.repeat_interleave(side, 0).repeat_interleave(side, 1)[:height, :width]
    return COLOURS[classes.long()].permute(2, 0, 1).contiguous(), classes


def plain(size: int = 32, scale: tuple[float, float] = (1.0, 1.0), **settings) -> SegmentationTransform:
    return SegmentationTransform(size, scale, **{"photometric_distortion": False, **settings})


def coloured(labels: torch.Tensor) -> torch.Tensor:
    return COLOURS[labels].permute(2, 0, 1)


@pytest.mark.parametrize("size", [(32, 32), (32, 50), (70, 32)])
def test_each_pixel_keeps_its_class(size):
    """At scale 1 nothing is interpolated, so that the colours say which class belongs where."""
    image, classes = patches(*size)
    found = [plain()(image, classes) for _ in range(20)]
    for item in found:
        assert item["pixel_values"].dtype == torch.uint8 and item["labels"].dtype == torch.int64
        assert item["pixel_values"].shape == (3, 32, 32) and item["labels"].shape == (32, 32)
        assert type(item["pixel_values"]) is type(item["labels"]) is torch.Tensor
        assert torch.equal(item["pixel_values"], coloured(item["labels"]))
    assert any(not torch.equal(item["labels"], found[0]["labels"]) for item in found)


def test_half_of_the_crops_are_flipped():
    image, classes = patches(32, 32)
    flipped = [torch.equal(plain()(image, classes)["labels"], classes.flip(1).long()) for _ in range(100)]
    assert 30 < sum(flipped) < 70
    never = plain(horizontal_flip=False)
    assert all(torch.equal(never(image, classes)["labels"], classes.long()) for _ in range(20))


def test_what_lies_outside_of_the_image_is_the_mean_and_ignored():
    image, classes = patches(16, 16)
    item = plain(scale=(0.5, 0.5))(image, classes)
    outside = (item["pixel_values"] == MEAN.view(3, 1, 1)).all(0)
    assert outside.sum() == 32 * 32 - 16 * 16
    assert (item["labels"][outside] == IGNORED).all()
    assert torch.equal(item["pixel_values"][:, ~outside], coloured(item["labels"])[:, ~outside])


def test_scaled_images_and_maps_fit_together():
    """Within squares of one class the colour is that of the class at every scale."""
    image, classes = patches(64, 96, side=16)
    shares = []
    for _ in range(30):
        item = plain(64, (0.5, 2.0))(image, classes)
        inside = (item["pixel_values"] != MEAN.view(3, 1, 1)).any(0)
        same = (item["pixel_values"] == coloured(item["labels"])).all(0)
        shares.append(float(same[inside].float().mean()))
    assert min(shares) > 0.5 and sum(shares) / len(shares) > 0.7


@pytest.mark.parametrize(
    ("size", "short", "expected"),
    [
        # mmcv's `rescale_size` of (w, h) into (2048 * ratio, 512 * ratio), with the result as (h, w)
        ((512, 683), 512, [512, 683]),
        ((683, 512), 512 * 1.5, [1024, 768]),
        ((360, 480), 256, [256, 341]),
        ((100, 400), 512, [512, 2048]),
        ((100, 800), 512, [256, 2048]),
        ((8000, 10), 512, [2048, 3]),
        ((20000, 1), 512, [2048, 1]),
        ((1, 1), 160, [160, 160]),
    ],
)
def test_scaled_sizes(size, short, expected):
    assert scaled_size(size, short) == expected


def test_scales_fill_the_range_evenly():
    """A 16 x 16 image in a crop of 64: its area in the crop tells the scale."""
    image, classes = torch.full((3, 16, 16), 255, dtype=torch.uint8), torch.zeros(16, 16, dtype=torch.int32)
    transform = plain(64, (0.25, 1.0))
    sides = torch.stack([(transform(image, classes)["labels"] == 0).sum() for _ in range(300)]).float().sqrt()
    assert sides.min() >= 16 and sides.max() <= 64
    assert abs(sides.mean() - 40) < 3 and abs(sides.std() - 48 / 12**0.5) < 2


def test_crops_of_one_class_are_tried_again():
    """In a third of the places a crop has several classes: ten tries find one, one try does not."""
    image, classes = torch.zeros(3, 16, 96, dtype=torch.uint8), torch.zeros(16, 96, dtype=torch.int32)
    classes[::2, 70:] = 1
    share = [(plain(16)(image, classes)["labels"] == 0).float().mean() for _ in range(50)]
    assert sum(value < MAX_SHARE_OF_A_CLASS for value in share) > 40
    ignored_beside = classes.where(classes == 1, IGNORED)  # of one class alone there is nothing better
    assert plain(16)(image, ignored_beside)["labels"].shape == (16, 16)


def test_nothing_to_learn_from_is_no_error():
    image, classes = torch.zeros(3, 20, 20, dtype=torch.uint8), torch.full((20, 20), IGNORED, dtype=torch.int32)
    assert plain(16)(image, classes)["labels"].unique().tolist() == [IGNORED]


def test_distorted_colours_stay_the_same_colours():
    """torchvision's own distortion makes red blue, half of the time."""
    image, classes = torch.zeros(3, 32, 32, dtype=torch.uint8), patches(32, 32)[1]
    image[0], image[1], image[2] = 200, 80, 60
    transform = SegmentationTransform(32, (1.0, 1.0), horizontal_flip=False)
    items = [transform(image, classes) for _ in range(60)]
    assert all(torch.equal(item["labels"], classes.long()) for item in items)
    means = torch.stack([item["pixel_values"].float().mean(dim=(1, 2)) for item in items])
    assert (means.argmax(dim=1) == 0).all()
    assert means.std(dim=0).min() > 5


def test_hues_turn_as_far_as_mmsegmentations():
    """hue_delta=18 of OpenCV's half degrees. On one colour, the other distortions change no hue beyond rounding."""
    image = torch.tensor([180, 90, 120], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    distortion, start = PhotometricDistortion(), 360 * colorsys.rgb_to_hsv(180, 90, 120)[0]
    colours = [distortion(tv_tensors.Image(image))[:, 0, 0].tolist() for _ in range(400)]
    turns = [(360 * colorsys.rgb_to_hsv(*colour)[0] - start + 180) % 360 - 180 for colour in colours]
    assert 30 < max(turns) < 40 and -40 < min(turns) < -30


def test_random_numbers_are_the_global_ones():
    image, classes = patches(40, 60, side=5)
    transform = SegmentationTransform(32)

    def seeded(seed):
        torch.manual_seed(seed)
        return transform(image, classes)

    first, again, other = seeded(1), seeded(1), seeded(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixel_values"], other["pixel_values"])


@pytest.mark.parametrize("channels", [1, 4])
def test_colours_are_distorted_in_images_of_three_channels_only(channels):
    with pytest.raises(ValueError, match=f"--photometric_distortion is for images of 3 channels, not {channels}"):
        SegmentationTransform(32, image_mean=[0.5] * channels)
    image = torch.zeros(channels, 20, 30, dtype=torch.uint8)
    item = plain(image_mean=[0.5] * channels)(image, torch.zeros(20, 30, dtype=torch.int32))
    assert item["pixel_values"].shape == (channels, 32, 32)


def test_evaluation_scales_the_image_alone():
    image, classes = patches(40, 60)
    item = SegmentationEvaluationTransform(32)(image, classes)
    assert item["pixel_values"].shape == (3, 32, 48) and item["pixel_values"].dtype == torch.uint8
    assert torch.equal(item["labels"], classes.long())
    narrow = SegmentationEvaluationTransform(32)(*patches(3, 500))
    assert narrow["pixel_values"].shape == (3, 1, 128) and narrow["labels"].shape == (3, 500)


def test_image_and_map_are_flipped_and_turned_alike():
    image, classes = patches(32, 32)
    transform = plain(horizontal_flip=False, vertical_flip=True, rot90=True)
    positions = {turn.numpy().tobytes() for flip in (classes, classes.flip(0)) for turn in map(flip.rot90, range(4))}
    found = set()
    for _ in range(80):
        item = transform(image, classes)
        assert torch.equal(item["pixel_values"], coloured(item["labels"]))
        found.add(item["labels"].int().numpy().tobytes())
    assert found == positions and len(found) == 8


def test_normalised_bands_with_missing_pixels_keep_their_classes():
    """Five bands, each the class in another unit; a corner is missing, and what lies outside is the mean, 0."""
    classes = patches(16, 16)[1]
    image = coloured_bands(classes)
    image[:, :6, :6] = torch.nan
    transform = plain(32, (0.5, 0.5), image_mean=[0.0] * 5, normalized=True, vertical_flip=True, rot90=True)
    for _ in range(20):
        item = transform(image, classes)
        values, labels = item["pixel_values"], item["labels"]
        assert values.dtype == torch.float32 and values.shape == (5, 32, 32)
        missing, outside = values[0].isnan(), (values == 0).all(0)
        assert torch.equal(values.isnan(), missing.expand(5, -1, -1)) and missing.sum() == 36
        assert (labels[outside] == IGNORED).all() and outside.sum() == 32 * 32 - 16 * 16
        inside = ~missing & ~outside
        assert torch.equal(values[:, inside], coloured_bands(labels)[:, inside])
    scaled = plain(24, (0.6, 1.4), image_mean=[0.0] * 5, normalized=True)(image, classes)
    assert scaled["pixel_values"].shape == (5, 24, 24) and scaled["pixel_values"].isnan().any()
    evaluated = SegmentationEvaluationTransform(8)(image, classes)
    assert evaluated["pixel_values"].shape == (5, 8, 8) and torch.equal(evaluated["labels"], classes.long())
    assert evaluated["pixel_values"][:, :3, :3].isnan().all() and evaluated["pixel_values"].isnan().sum() == 5 * 9


def coloured_bands(labels: torch.Tensor) -> torch.Tensor:
    return labels.float() * torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0]).view(5, 1, 1) + 1.5


def test_colours_of_bands_are_not_distorted():
    with pytest.raises(ValueError, match="--photometric_distortion changes the colours of 8-bit pictures"):
        SegmentationTransform(32, image_mean=[0.0] * 3, normalized=True)
