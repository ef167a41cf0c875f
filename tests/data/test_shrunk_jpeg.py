"""Parts of large JPEG files, decoded at a fraction of the size, against the full size and against Pillow."""

import io
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from hf_mae_robust.data import decoding, shrunk_jpeg
from hf_mae_robust.data.dataset import ImageDataset
from hf_mae_robust.data.preprocessing import EvaluationTransform, evaluation_processor, training_transform
from hf_mae_robust.data.source import HeldRows, ImageSource
from hf_mae_robust.finetuning.classification.augmentation import FinetuningTransform

PHOTO = Image.fromarray(load_sample_images().images[0])  # 640 x 427
LARGE = PHOTO.resize((1707, 1139), Image.Resampling.BICUBIC)  # no multiples of 8
MADE_FOR = 64


def encode(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 92, **options})
    return file.getvalue()


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def psnr(a, b):
    return 10 * np.log10(255**2 / max(((np.asarray(a, float) - np.asarray(b, float)) ** 2).mean(), 1e-9))


def source_of(*contents, full_size=False):
    return ImageSource(HeldRows(contents), [len(contents)], True, "", "", full_size_decoding=full_size)


def crops(transform, content, count, full_size=False, num_channels=3):
    dataset = ImageDataset(source_of(content, full_size=full_size), transform, num_channels)
    return [dataset[epoch, 0]["pixel_values"] for epoch in range(count)]


@pytest.fixture
def reductions(monkeypatch):
    """Those that were used, one for each decoding at less than the full size."""
    used, decode = [], decoding.decode_shrunk
    monkeypatch.setattr(decoding, "decode_shrunk", lambda *args: used.append(args[-1]) or decode(*args))
    return used


@pytest.mark.parametrize(
    ("part", "target", "expected"),
    [
        ((127, 500), (32, 32), 1),
        ((128, 128), (32, 32), 2),
        ((255, 128), (32, 32), 2),
        ((256, 256), (32, 32), 4),
        ((511, 900), (32, 32), 4),
        ((512, 512), (32, 32), 8),
        ((9000, 9000), (32, 32), 8),
        ((9000, 9000), None, 1),
        ((512, 256), (64, 32), 4),
    ],
)
def test_twice_the_target_is_left(part, target, expected):
    assert shrunk_jpeg.reduction_for([(3, 4, *part)], [target]) == expected
    everything = (0, 0, 9000, 9000)
    assert shrunk_jpeg.reduction_for([(3, 4, *part), everything], [target, (32, 32)]) == expected


TRANSFORMS = {
    "training": training_transform(MADE_FOR),
    "evaluation": EvaluationTransform(evaluation_processor(MADE_FOR)),
    "evaluation, not square": EvaluationTransform(evaluation_processor((48, 80))),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(
    "variant",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"exif": oriented(6)}, "L"],
    ids=["4:2:0", "4:4:4", "4:2:2", "turned", "gray"],
)
def test_pictures_are_nearly_those_of_the_full_size(name, variant, reductions):
    content = encode(LARGE.convert("L")) if variant == "L" else encode(LARGE, **variant)
    for channels in (1, 3) if variant == "L" else (3,):
        count = 6 if name == "training" else 1
        expected = crops(TRANSFORMS[name], content, count, full_size=True, num_channels=channels)
        assert not reductions
        found = crops(TRANSFORMS[name], content, count, num_channels=channels)
        assert len(reductions) == count and set(reductions) <= {4, 8}
        reductions.clear()
        for ours, full in zip(found, expected):
            assert ours.shape == full.shape and ours.dtype == torch.uint8
            assert psnr(ours, full) > 40


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_is_upright(orientation):
    """Against Pillow, which knows nothing of our boxes; a corner of the photo, of which no side is like another."""
    content, place = encode(LARGE, exif=oriented(orientation)), (101, 203, 801, 613)
    choose = Mock(return_value=[place])
    (part,) = decoding.decode_regions(content, 3, choose, target=lambda height, width: (80, 61))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    choose.assert_called_once_with(upright.height, upright.width)
    top, left, height, width = place
    expected = upright.crop((left, top, left + width, top + height)).resize((61, 80), Image.Resampling.BICUBIC)
    assert psnr(part.permute(1, 2, 0), expected) > 40


def test_small_images_keep_their_pixels(reductions):
    """Just below four times the image size: as with the transform alone on the decoded image."""
    content = encode(PHOTO.crop((0, 0, 4 * MADE_FOR - 1, 4 * MADE_FOR)))
    for transform in TRANSFORMS.values():
        for ours, full in zip(crops(transform, content, 4), crops(transform, content, 4, full_size=True)):
            assert torch.equal(ours, full)
    assert not reductions


def test_draws_and_views_are_those_of_the_full_size(reductions):
    """Two views of an image and its noise; a view that is too small for a fraction takes both to the full size."""
    content = encode(LARGE)
    transform = training_transform(MADE_FOR, (0.01, 0.2))
    options = {"num_channels": 3, "noise_length": 16, "num_views": 2}
    ours = ImageDataset(source_of(content), transform, **options)
    full = ImageDataset(source_of(content, full_size=True), transform, **options)
    keys = [(epoch, 0) for epoch in range(12)]
    for item, expected in zip(ours.__getitems__(keys), full.__getitems__(keys)):
        assert torch.equal(item["noise"], expected["noise"])
        assert psnr(item["pixel_values"], expected["pixel_values"]) > 40
    assert 0 < len(reductions) < 12


@pytest.mark.parametrize("num_channels", [1, 3])
def test_fine_tuning_decodes_a_fraction_with_the_same_draws(num_channels, reductions):
    content = encode(LARGE if num_channels == 3 else LARGE.convert("L"))
    transform = FinetuningTransform(MADE_FOR, [0.0] * num_channels, [1 / 255] * num_channels, crop_scale=(0.3, 1.0))
    found = crops(transform, content, 4, num_channels=num_channels)
    assert len(reductions) == 4
    for ours, full in zip(found, crops(transform, content, 4, full_size=True, num_channels=num_channels)):
        assert psnr(ours, full) > 30  # RandAugment's contrast and solarisation multiply what differs


def test_other_formats_are_decoded_as_they_were(reductions):
    file = io.BytesIO()
    LARGE.save(file, "PNG")
    for content in (file.getvalue(), encode(LARGE, progressive=True)):
        transform = TRANSFORMS["training"]
        assert torch.equal(crops(transform, content, 1)[0], crops(transform, content, 1, full_size=True)[0])
    assert not reductions


def test_a_processor_of_another_kind_gets_all_pixels():
    processor = evaluation_processor(MADE_FOR)
    assert EvaluationTransform(processor).target(1139, 1707) == (73, 109)
    for size in [(1139, 1707), (1707, 1139), (500, 500), (613, 617), (97, 771)]:
        expected = processor.resize(torch.zeros(1, *size), processor.size, processor.resample).shape[1:]
        assert EvaluationTransform(processor).target(*size) == tuple(expected)
    assert EvaluationTransform(processor).target(100, 900) is None  # cut first
    processor.resample = Image.Resampling.BILINEAR
    assert EvaluationTransform(processor).target(1139, 1707) is None


def test_what_cannot_be_decoded_at_a_fraction_is_decoded_at_full_size(monkeypatch):
    transform, content = TRANSFORMS["training"], encode(LARGE)
    (expected,) = crops(transform, content, 1, full_size=True)
    monkeypatch.setattr(decoding, "decode_shrunk", Mock(side_effect=ValueError))
    assert torch.equal(crops(transform, content, 1)[0], expected)


def test_bands_and_maps_are_never_decoded_at_a_fraction():
    source = source_of(b"")
    assert source.decodes_scaled and not replace(source, full_size_decoding=True).decodes_scaled
    assert not replace(source, labels=Mock(is_joint=True)).decodes_scaled
    assert replace(source, labels=Mock(is_joint=False)).decodes_scaled
    assert not replace(source, band_form=Mock()).decodes_scaled
