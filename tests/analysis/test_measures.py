"""Measures of features and attention, against cases with a known answer and other ways to compute them."""

import math

import numpy as np
import pytest
import torch

from hf_mae_robust.analysis.measures import (
    alignment,
    attention_distance,
    attention_entropy,
    effective_rank,
    linear_cka,
    token_similarity,
    uniformity,
)


def orthogonal(n, d, seed=0):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed)))[0][:n]


def test_of_collapsed_features():
    same = torch.randn(1, 16).expand(20, 16) * torch.rand(20, 1).add(0.5)
    assert uniformity(same) == pytest.approx(0, abs=1e-9)
    assert effective_rank(same) == pytest.approx(1, abs=1e-3)
    assert token_similarity(same[None]).item() == pytest.approx(1)
    assert alignment(same, same.roll(1, 0)) == pytest.approx(0, abs=1e-9)


def test_of_orthogonal_features():
    features = orthogonal(12, 16)
    assert uniformity(features) == pytest.approx(-4)  # all distances are the square root of 2
    assert effective_rank(features) == pytest.approx(12, rel=1e-4)
    assert token_similarity(features[None]).item() == pytest.approx(0, abs=1e-7)
    assert alignment(features, features.roll(1, 0)) == pytest.approx(2)
    assert alignment(features, -features) == pytest.approx(4)


def test_by_the_definitions():
    x = np.random.default_rng(0).normal(size=(15, 6))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(15) for j in range(i)]
    squares = np.array([((unit[i] - unit[j]) ** 2).sum() for i, j in pairs])
    assert uniformity(torch.tensor(x)) == pytest.approx(math.log(np.exp(-2 * squares).mean()))
    assert token_similarity(torch.tensor(x)[None]).item() == pytest.approx(
        np.mean([unit[i] @ unit[j] for i, j in pairs])
    )
    share = np.linalg.svd(x, compute_uv=False)
    share = share / share.sum()
    assert effective_rank(torch.tensor(x)) == pytest.approx(math.exp(-(share * np.log(share)).sum()), rel=1e-5)


@pytest.mark.parametrize("width", [5, 40])
def test_cka_is_the_alignment_of_centred_kernels_and_does_not_feel_rotations(width):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, width)), rng.normal(size=(12, 30))
    centre = np.eye(12) - 1 / 12
    kernels = [centre @ a @ a.T @ centre for a in (x, y)]
    expected = np.trace(kernels[0] @ kernels[1]) / (np.linalg.norm(kernels[0]) * np.linalg.norm(kernels[1]))
    x, y = torch.tensor(x), torch.tensor(y)
    assert linear_cka(x, y) == pytest.approx(expected)
    assert linear_cka(x, 3 * x @ orthogonal(width, width).double() + 1) == pytest.approx(1)


def test_of_uniform_and_sharp_attention():
    """2 x 3 patches and CLS, in an order that is not the raster's."""
    ids = torch.tensor([[-1, 4, 0, 2, 5, 1, 3]])
    uniform = torch.full((1, 2, 7, 7), 1 / 7)
    assert attention_entropy(uniform).tolist() == pytest.approx([math.log(7)] * 2)
    places = np.array([(i // 3, i % 3) for i in range(6)], dtype=float)
    expected = np.linalg.norm(places[:, None] - places[None], axis=-1).mean()
    assert attention_distance(uniform, ids, ids, 3).tolist() == pytest.approx([expected] * 2)
    own = torch.eye(7).expand(1, 1, 7, 7)
    assert attention_entropy(own).item() == 0 and attention_distance(own, ids, ids, 3).item() == 0
    # Every patch looks at patch 0, the third token, but for what goes to CLS.
    one = torch.zeros(1, 1, 7, 7)
    one[..., 2], one[..., 0] = 0.25, 0.75
    assert attention_distance(one, ids, ids, 3).item() == pytest.approx(np.linalg.norm(places, axis=1).mean())
    assert attention_distance(one[:, :, -2:], ids[:, -2:], ids, 3).item() == pytest.approx(1.0)  # patches 1 and 3
