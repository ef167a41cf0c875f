"""Models that several tests of hf_mae_robust/model build."""

import numpy as np
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining

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


OFF = {"decoder_attention_probs_dropout_prob": 0.0}  # the other two ingredients are off by default
ALL_ON = {"target_normalization": "global_patch", "mid_mask_ratio": 0.25}
TARGETS = [(kind, norm_pix) for kind in ("none", "global_rgb", "global_patch") for norm_pix in (False, True)]


def images(batch=2, height=32, width=32, channels=3):
    return torch.randn(batch, channels, height, width)


def build(**overrides) -> ViTMAERobustForPreTraining:
    """Random weights, biases included, so that each of them matters; random target statistics where there are any."""
    model = ViTMAERobustForPreTraining(tiny_config(**overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    if model.config.target_normalization == "global_patch":
        dim = model.config.patch_dim
        model.set_target_statistics(torch.rand(dim), 0.1 + torch.rand(dim))
    return model


def stock_of(model, **overrides) -> ViTMAEForPreTraining:
    config = ViTMAEConfig(
        **TINY, layer_norm_eps=1e-6, norm_pix_loss=model.config.norm_pix_loss, num_channels=3, **overrides
    )
    stock = ViTMAEForPreTraining(config)
    stock.load_state_dict(model.state_dict())
    for module in (stock.vit.embeddings.position_embeddings, stock.decoder.decoder_pos_embed):
        module.requires_grad_(False)
    return stock


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_equal_tensors(actual: dict, expected: dict):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def patches_of(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """`(B, C, H, W)` -> `(B, L, D)`, patch by patch."""
    rows, columns = pixels.shape[2] // height, pixels.shape[3] // width
    patches = [
        pixels[:, :, i * height : (i + 1) * height, j * width : (j + 1) * width]
        .transpose(0, 2, 3, 1)
        .reshape(len(pixels), -1)
        for i in range(rows)
        for j in range(columns)
    ]
    return np.stack(patches, axis=1)
