"""Pictures of what a model makes of one image."""

import numpy as np
import pytest
import torch

from hf_mae_robust.demo.pictures import (
    as_rgb,
    attention_picture,
    masked_picture,
    on_pixels,
    principal_components,
    shown_scale,
    to_shown,
)
from hf_mae_robust.training.pictures import MASK_GRAY


def test_each_value_covers_the_pixels_of_its_patch():
    values = torch.arange(6.0).reshape(2, 3)
    pixels = on_pixels(values, (8, 9))
    assert torch.equal(pixels, torch.from_numpy(np.kron(values.numpy(), np.ones((4, 3)))).float())


def test_masked_patches_are_gray_and_others_stay():
    pixels, mask = torch.rand(3, 8, 12), torch.zeros(2, 3, dtype=torch.bool)
    mask[1, 2] = True
    picture = masked_picture(pixels, mask)
    assert (picture[:, 4:, 8:] == MASK_GRAY).all()
    picture[:, 4:, 8:] = pixels[:, 4:, 8:]
    assert torch.equal(picture, pixels)


def test_attention_is_brightest_where_it_is_largest():
    attention = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    picture = attention_picture(torch.full((3, 4, 4), 0.5), attention)
    brightness = picture.mean(dim=0)[::2, ::2].flatten()
    assert brightness.argsort().tolist() == [0, 1, 2, 3]
    even = attention_picture(torch.full((3, 4, 4), 0.5), torch.full((2, 2), 0.25))
    assert torch.isfinite(even).all() and even.flatten(1).std(dim=1).max() == 0


def test_components_are_those_of_the_singular_value_decomposition():
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    picture = principal_components(features, (3, 4))
    assert picture.shape == (3, 3, 4) and picture.min() == 0 and picture.max() == 1
    centred = (features - features.mean(dim=0)).numpy()
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    for i in range(3):
        correlation = np.corrcoef(picture[i].flatten(), left[:, i] * sizes[i])[0, 1]
        assert abs(correlation) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (9, 2)])
def test_fewer_patches_or_dimensions_than_colours(shape):
    picture = principal_components(torch.randn(*shape), (1, shape[0]))
    assert picture.shape == (3, 1, shape[0]) and torch.isfinite(picture).all()
    count = min(3, shape[0] - 1, shape[1])
    assert (picture[count:] == 0).all() and (picture[:count].amax(dim=(1, 2)) == 1).all()


def test_pictures_are_enlarged_by_a_whole_factor_without_smoothing():
    picture = torch.rand(3, 60, 64)
    shown = to_shown(picture)
    assert shown.size == (64 * 7, 60 * 7) and shown_scale((60, 64)) == 7
    small = torch.from_numpy(np.asarray(shown)[3::7, 3::7].copy()).permute(2, 0, 1)
    assert torch.equal(small, (picture * 255).round().byte())
    assert to_shown(torch.rand(3, 500, 600)).size == (600, 500)


@pytest.mark.parametrize(("channels", "taken"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2])])
def test_any_number_of_channels_has_colours(channels, taken):
    pixels = torch.rand(channels, 2, 2)
    assert torch.equal(as_rgb(pixels), pixels[taken])
