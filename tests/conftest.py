from pathlib import Path

import pytest
import torch

from hf_mae_robust import ViTMAERobustConfig

TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 128,
}


def tiny_config(**overrides) -> ViTMAERobustConfig:
    return ViTMAERobustConfig(**{**TINY, "mid_mask_layer_idx": 1, **overrides})


@pytest.fixture
def golden_dir() -> Path:
    """Outputs and gradients of the official code; they lie beside the checkout, not in it."""
    path = Path(__file__).parents[2] / "shared" / "golden"
    if not path.is_dir():
        pytest.skip("golden values of the official code are not here")
    return path


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
