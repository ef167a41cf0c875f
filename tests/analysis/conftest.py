"""Fixtures of the tests of the analysis."""

import pytest
import torch


@pytest.fixture(scope="module")
def batch():
    """Images and what masks them; `second_view`: the same images, slightly changed."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 16, 16, generator=generator)
    second = images + 0.01 * torch.randn(images.shape, generator=generator)
    return {"pixel_values": images, "noise": torch.rand(16, 16, generator=generator), "second_view": second}
