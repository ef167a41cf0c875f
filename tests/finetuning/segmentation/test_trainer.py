"""Windows that slide over an image, and the classes of its pixels."""

import numpy as np
import pytest
import torch
from torch import nn

from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.finetuning.segmentation.models import SegmenterSettings, segmenter_from_scratch
from hf_mae_robust.finetuning.segmentation.trainer import (
    resized_classes,
    sliding_logits,
    window_starts,
)
from tests.helpers import TINY

CROP = 32


def test_windows_begin_where_those_of_mmsegmentation_do():
    """slide_inference of its encoder_decoder.py."""
    rng = np.random.default_rng(0)
    for window, more, stride in zip(rng.integers(1, 40, 300), rng.integers(0, 90, 300), rng.integers(1, 40, 300)):
        length, stride = window + more, min(stride, window)
        count = max(length - window + stride - 1, 0) // stride + 1
        expected = [max(min(i * stride + window, length) - window, 0) for i in range(count)]
        assert window_starts(length, window, stride) == sorted(set(expected))


@pytest.mark.parametrize(("size", "stride", "batch_size"), [((20, 50), 8, 3), ((31, 23), 5, 16), ((16, 16), 16, 1)])
def test_logits_of_windows_are_averaged(size, stride, batch_size):
    """Against a loop over all pixels, for a model that gives each place in a window another weight."""
    image, weight = torch.randn(3, *size), torch.rand(16, 16)
    weighted = image[:2].numpy(), weight.numpy()
    found = sliding_logits(lambda windows: windows[:, :2] * weight, image, 16, stride, batch_size)
    expected, counts = np.zeros((2, *size)), np.zeros(size)
    for top in window_starts(size[0], 16, stride):
        for left in window_starts(size[1], 16, stride):
            expected[:, top : top + 16, left : left + 16] += (
                weighted[0][:, top : top + 16, left : left + 16] * weighted[1]
            )
            counts[top : top + 16, left : left + 16] += 1
    np.testing.assert_allclose(found, expected / counts, atol=1e-6)


def test_one_window_is_the_whole_image():
    model, _ = segmenter_from_scratch(
        ModelSource(None, {**TINY, "num_hidden_layers": 6}), ["a", "b"], SegmenterSettings(image_size=CROP, channels=8)
    )
    model.eval()
    image = torch.randn(3, CROP, CROP)
    with torch.no_grad():
        whole = model(image[None]).logits[0]
    found = sliding_logits(lambda windows: model(windows).logits, image, CROP, 20, 4)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(5, 40), (40, 1), (3, 3)])
def test_images_smaller_than_a_window_are_filled_up(size):
    image, seen = torch.randn(3, *size), []
    found = sliding_logits(lambda windows: seen.append(windows) or windows, image, 16, 8, 4)
    assert torch.equal(found, image) and all(windows.shape[-2:] == (16, 16) for windows in seen)
    assert torch.equal(seen[0][0, :, : size[0], : size[1]], image[:, :16, :16])
    assert seen[0][0, :, size[0] :].abs().sum() == 0


@pytest.mark.parametrize("num_classes", [2, 16, 17, 150])
def test_the_likeliest_class_of_resized_logits(num_classes):
    logits = torch.randn(num_classes, 12, 9)
    expected = nn.functional.interpolate(logits[None], size=(31, 20), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(resized_classes(logits, (31, 20)), expected)
