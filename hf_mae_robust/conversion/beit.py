"""A fine-tuned MAE ViT as a stock BEiT: its config, and the names of its tensors.

A fine-tuned MAE ViT *is* a stock BEiT with absolute positions and without relative ones and layer scale: BEiT lacks the
bias of the keys, which softmax cannot feel, and it has drop path.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import BeitConfig, BeitModel, PreTrainedModel

from ..errors import UserError
from ..model.configuration_vit_mae_robust import to_pair
from .positions import resized_positions


def without_key_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BEiT's attention has none. One adds the same number to all the scores of a query, and softmax takes it out."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".k_proj.bias")}


def with_key_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` by names of transformers, with a bias of zero for each key projection that has none."""
    biases = {
        f"{name.removesuffix('.weight')}.bias": tensor.new_zeros(len(tensor))
        for name, tensor in tensors.items()
        if name.endswith(".k_proj.weight")
    }
    return {**biases, **tensors}


def mae_beit_config(**fields: Any) -> BeitConfig:
    """The settings with which a stock BEiT is the plain ViT of MAE: absolute positions, no relative ones, no layer
    scale, the official epsilon; no dropout and no drop path. `fields` of `BeitConfig` add to them and win.

    Raises ValueError for an `image_size` that is not square: BEiT looks for a square grid of positions in it.
    """
    config = BeitConfig(
        **{
            "use_absolute_position_embeddings": True,
            "use_relative_position_bias": False,
            "use_shared_relative_position_bias": False,
            "layer_scale_init_value": 0.0,
            "layer_norm_eps": 1e-6,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "drop_path_rate": 0.0,
            **fields,
        }
    )
    for name in ("image_size", "patch_size"):  # BEiT divides by the patch size, and cannot by a pair
        if len(sides := set(to_pair(getattr(config, name)))) == 1:
            setattr(config, name, sides.pop())
    height, width = to_pair(config.image_size)
    if height != width:
        raise UserError(
            f"image_size={config.image_size}: the BEiT of transformers interpolates its positions as a square grid "
            "for images that are not square, so it cannot hold this model."
        )
    return config


def vit_to_beit(encoder: Mapping[str, Tensor], uses_mean: bool) -> dict[str, Tensor]:
    """The tensors of a ViT encoder (`embeddings.*`, `layers.N.*`, `layernorm.*`) by the names of `BeitModel`.

    uses_mean: the norm stands after the pooling, and the one before it is left out. So are mask tokens, the pooler of
    `ViTModel`, and the biases of the keys. Other biases of the attention that are missing are zeros.
    """
    left_out = ("mid_mask_token", "embeddings.mask_token", "pooler.dense.", "layernorm." if uses_mean else "pooler.")
    tensors = {name: tensor for name, tensor in encoder.items() if not name.startswith(left_out)}
    for name, tensor in encoder.items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            tensors.setdefault(name.replace(".weight", ".bias"), torch.zeros_like(tensor[:, 0]))
    return without_key_biases(tensors)


def fill_beit(beit: BeitModel, encoder: PreTrainedModel) -> None:
    """Give a BEiT of `mae_beit_config` the weights of a ViT encoder, with positions for its own size of images. A norm
    after the pooling and relative positions, which the ViT may lack, stay as they are.

    Raises RuntimeError for another tensor that is absent or has no place.
    """
    tensors = vit_to_beit(encoder.state_dict(), beit.config.use_mean_pooling)
    tensors["embeddings.position_embeddings"] = resized_positions(encoder, beit.config.image_size)
    new = {name: tensor for name, tensor in beit.state_dict().items() if name.startswith("pooler.")}
    new |= {name: tensor for name, tensor in beit.state_dict().items() if "relative_position" in name}
    beit.load_state_dict({**new, **tensors})
