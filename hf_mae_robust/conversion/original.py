"""Checkpoints of the official MAE code (github.com/facebookresearch/mae, models_mae.py, models_vit.py) in and out.

The tensors are the same. Only their names differ, and the official code keeps the query, key and value projections in
one tensor. One table a layout (encoder, pre-training model, classifier of either pooling) says all of it, and both
directions are read from it. A key that it does not have, or one that is absent, is an error: nothing is skipped or left
at its random initialisation.
"""

import math
import re
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitPreTrainedModel,
    PreTrainedModel,
)

from ..errors import UserError
from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining, ViTMAERobustModel
from ..model.configuration_vit_mae_robust import to_pair
from .beit import mae_beit_config, with_key_biases, without_key_biases
from .checkpoint_file import read_original
from .loading import listed

__all__ = ["read_original", "from_original", "to_original", "rename_to_original"]

_BLOCK = {
    "norm1": "layernorm_before",
    "attn.qkv": "attention.{qkv}_proj",
    "attn.proj": "attention.o_proj",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
# Official name -> transformers' (ViT-MAE, ViT and BEiT have the same). N: the number of a block; *: weight and bias;
# {qkv}: three tensors, fused in this order, along the first dimension, in the official one.
_TOKENS_AND_BLOCKS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.*": "embeddings.patch_embeddings.projection.*",
    **{f"blocks.N.{official}.*": f"layers.N.{name}.*" for official, name in _BLOCK.items()},
}
ENCODER_KEY_MAP = {**_TOKENS_AND_BLOCKS, "norm.*": "layernorm.*"}
KEY_MAP = {
    **{official: f"vit.{name}" for official, name in ENCODER_KEY_MAP.items()},
    "decoder_embed.*": "decoder.decoder_embed.*",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    **{f"decoder_blocks.N.{official}.*": f"decoder.decoder_layers.N.{name}.*" for official, name in _BLOCK.items()},
    "decoder_norm.*": "decoder.decoder_norm.*",
    "decoder_pred.*": "decoder.decoder_pred.*",
}
# Fine-tuned classifiers: LayerNorm, then CLS; or the mean of the patch tokens, then LayerNorm.
CLS_KEY_MAP = {
    **{official: f"beit.{name}" for official, name in ENCODER_KEY_MAP.items()},
    "head.*": "classifier.*",
}
MEAN_KEY_MAP = {
    **{official: f"beit.{name}" for official, name in _TOKENS_AND_BLOCKS.items()},
    "fc_norm.*": "beit.pooler.layernorm.*",
    "head.*": "classifier.*",
}
# The linear probe of the official code: BatchNorm1d(affine=False), then the linear layer.
_PROBE_KEYS = {f"head.0.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
_PROBE_KEYS |= {"head.1.weight", "head.1.bias"}
_PROBE_EPS = 1e-6


def _expand(key_map: Mapping[str, str], num_blocks: int, num_decoder_blocks: int = 0) -> dict[str, list[str]]:
    """A table for a model of `num_blocks` blocks: official key -> the key of transformers, or the three."""
    keys = {}
    for official, ours in key_map.items():
        blocks = num_decoder_blocks if ours.startswith("decoder.") else num_blocks
        numbers = range(blocks) if ".N." in official else (0,)
        for number, leaf in product(numbers, ("weight", "bias") if "*" in official else ("",)):
            key, name = (text.replace(".N.", f".{number}.").replace("*", leaf) for text in (official, ours))
            keys[key] = [name.replace("{qkv}", part) for part in ("qkv" if "{qkv}" in name else "q")]
    return keys


def _count_blocks(keys: Iterable[str], prefix: str) -> int:
    """Different numbers N in `prefix.N.`, and at least 1, so that a model without any is reported as incomplete."""
    return max(1, len({match[1] for key in keys if (match := re.match(rf"{prefix}\.(\d+)\.", key))}))


def _check_keys(found: Iterable[str], expected: Iterable[str], key_map: Mapping[str, str]) -> None:
    found, expected = set(found), set(expected)
    unknown, missing = found - expected, expected - found
    problems = [
        f"{what} {listed(keys)}" for what, keys in (("unknown keys:", unknown), ("missing keys:", missing)) if keys
    ]
    if problems:
        form = "the encoder alone, or both" if key_map in (KEY_MAP, ENCODER_KEY_MAP) else "a fine-tuned classifier"
        expected_map = KEY_MAP if key_map is ENCODER_KEY_MAP else key_map
        raise UserError(
            f"Not the layout of the official MAE: {'; '.join(problems)}. Expected, with N the number of a block and * "
            f"weight and bias ({form}): {', '.join(expected_map)}."
        )


def _shape(state_dict: Mapping[str, Tensor], key: str, dimensions: int) -> torch.Size:
    shape = state_dict[key].shape
    if len(shape) != dimensions or 0 in shape:
        raise UserError(f"{key} has shape {tuple(shape)}, needs {dimensions} dimensions, none of them empty.")
    return shape


def _check_heads(flag: str, heads: int | None, width: int) -> None:
    advice = "The official MAE uses 12 for ViT-B, 16 for ViT-L, ViT-H and the decoder."
    if heads is None:
        raise UserError(f"--{flag} is needed: the number of heads cannot be seen in the tensors. {advice}")
    if heads < 1 or width % heads:
        raise UserError(f"--{flag} {heads}: does not divide the width {width} that the tensors have. {advice}")


def _infer_sizes(state_dict: Mapping[str, Tensor], keys: Iterable[str]) -> dict[str, Any]:
    """Fields of the config that the shapes tell, but for the image size."""
    hidden_size, num_channels, patch_height, patch_width = _shape(state_dict, "patch_embed.proj.weight", 4)
    sizes = {
        "hidden_size": hidden_size,
        "num_hidden_layers": _count_blocks(keys, "blocks"),
        "intermediate_size": _shape(state_dict, "blocks.0.mlp.fc1.weight", 2)[0],
        "num_channels": num_channels,
        "patch_size": patch_height if patch_height == patch_width else (patch_height, patch_width),
    }
    if "decoder_embed.weight" in state_dict:
        sizes["decoder_hidden_size"] = _shape(state_dict, "decoder_embed.weight", 2)[0]
        sizes["decoder_num_hidden_layers"] = _count_blocks(keys, "decoder_blocks")
        sizes["decoder_intermediate_size"] = _shape(state_dict, "decoder_blocks.0.mlp.fc1.weight", 2)[0]
    return sizes


def _infer_image_size(state_dict: Mapping[str, Tensor], patch_size: int | tuple[int, int]) -> int | tuple[int, int]:
    num_patches = _shape(state_dict, "pos_embed", 3)[1] - 1
    side = math.isqrt(num_patches)
    if side**2 != num_patches:
        raise UserError(
            f"pos_embed has {num_patches} patches, which is not a square grid: pass image_size=(height, width), "
            "in pixels."
        )
    height, width = (side * size for size in to_pair(patch_size))
    return height if height == width else (height, width)


def _layout_of_keys(keys: Iterable[str]) -> Mapping[str, str]:
    keys = list(keys)
    if any(key.startswith("fc_norm.") for key in keys):
        return MEAN_KEY_MAP
    if any(key.startswith("head.") for key in keys):
        return CLS_KEY_MAP
    return KEY_MAP if any(key.startswith("decoder_") or key == "mask_token" for key in keys) else ENCODER_KEY_MAP


def _fold_batch_norm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head of a linear probe as one linear layer, `head.weight` and `head.bias`. In evaluation the BatchNorm is
    `(x - mean) / sqrt(variance + eps)` with fixed numbers."""
    if missing := _PROBE_KEYS - state_dict.keys():
        raise UserError(f"The head of this linear probe is incomplete: missing keys: {listed(missing)}.")
    weight, bias = state_dict["head.1.weight"], state_dict["head.1.bias"]
    mean, variance = (state_dict[f"head.0.running_{name}"] for name in ("mean", "var"))
    if weight.dim() != 2 or mean.shape != weight.shape[1:] or variance.shape != mean.shape:
        raise UserError(
            f"The head of this linear probe does not fit together: head.1.weight has shape {tuple(weight.shape)}, "
            f"head.0.running_mean {tuple(mean.shape)}, head.0.running_var {tuple(variance.shape)}."
        )
    scaled = weight.double() / (variance.double() + _PROBE_EPS).sqrt()
    folded = {"head.weight": scaled, "head.bias": bias.double() - scaled @ mean.double()}
    others = {key: tensor for key, tensor in state_dict.items() if key not in _PROBE_KEYS}
    return {**others, **{key: tensor.to(weight.dtype) for key, tensor in folded.items()}}


def config_of_original(
    state_dict: Mapping[str, Tensor],
    num_attention_heads: int | None,
    decoder_num_attention_heads: int | None = None,
    **config_overrides: Any,
) -> ViTMAERobustConfig | BeitConfig:
    """The config of the model that `from_original` builds. Arguments and errors are its, too; the head of a linear
    probe is folded already."""
    keys = list(state_dict)
    layout = _layout_of_keys(keys)
    is_classifier, has_decoder = layout in (CLS_KEY_MAP, MEAN_KEY_MAP), layout is KEY_MAP
    key_map = _expand(layout, _count_blocks(keys, "blocks"), _count_blocks(keys, "decoder_blocks"))
    _check_keys(keys, key_map, layout)

    sizes = _infer_sizes(state_dict, keys)
    if "image_size" not in config_overrides:
        sizes["image_size"] = _infer_image_size(state_dict, sizes["patch_size"])
    _check_heads("num_attention_heads", num_attention_heads, sizes["hidden_size"])
    sizes["num_attention_heads"] = num_attention_heads
    if has_decoder:
        _check_heads("decoder_num_attention_heads", decoder_num_attention_heads, sizes["decoder_hidden_size"])
        sizes["decoder_num_attention_heads"] = decoder_num_attention_heads
    config_class = BeitConfig if is_classifier else ViTMAERobustConfig
    if unknown := config_overrides.keys() - config_class.__dataclass_fields__.keys():
        raise UserError(f"{listed(unknown)}: no field of {config_class.__name__}, which this checkpoint needs.")
    if is_classifier:
        sizes |= {"use_mean_pooling": layout is MEAN_KEY_MAP, "num_labels": _shape(state_dict, "head.weight", 2)[0]}
        return mae_beit_config(**{**sizes, **config_overrides})
    return ViTMAERobustConfig(**{**sizes, **config_overrides})


def from_original(
    state_dict: Mapping[str, Tensor],
    num_attention_heads: int | None,
    decoder_num_attention_heads: int | None = None,
    **config_overrides: Any,
) -> ViTMAERobustForPreTraining | ViTMAERobustModel | BeitForImageClassification:
    """A model with official weights, in evaluation mode. It computes what the official one does.

    Args:
        state_dict: tensors by official name, as from `read_original`. Among them `patch_embed.proj.weight`
            `(d, C, patch height, patch width)`, `pos_embed` `(1, 1 + L, d)`, `blocks.N.attn.qkv.weight` `(3 * d, d)`,
            `decoder_pred.weight` `(D, decoder d)`, `head.weight` `(classes, d)`. They are copied, and kept in their
            type; the position tables are taken as they are.
        num_attention_heads, decoder_num_attention_heads: what shapes do not tell. The latter is needed for files
            with a decoder, and not looked at for others.
        config_overrides: fields of [`ViTMAERobustConfig`]. `image_size` is needed where the grid of patches is not
            square; `norm_pix_loss=False` for models trained so (default: True). To train on exactly as MAE does, pass
            `decoder_attention_probs_dropout_prob=0.0`: the default of 0.3 is this project's. For a classifier: fields
            of `BeitConfig`, such as `id2label`; the file holds no names of classes.

    Returns:
        `ViTMAERobustForPreTraining`; without decoder keys (as in mae_pretrain_vit_base.pth, which is published without
        a decoder) `ViTMAERobustModel`. With `head.*`, a fine-tuned classifier, stock `BeitForImageClassification` in
        the form of `mae_beit_config`: the mean of the patch tokens is classified where there is `fc_norm.*`, CLS where
        there is `norm.*`. The BatchNorm of a linear probe (`head.0.*`) is folded into its linear layer. Of the biases
        of a classifier those of the keys are left out: BEiT has none, and softmax cannot feel them.

    Raises:
        ValueError: unknown or missing keys, shapes that do not fit together, heads missing or not dividing the width,
            or an override that is not a field of the config.
    """
    if any(key.startswith(("head.0.", "head.1.")) for key in state_dict):
        state_dict = _fold_batch_norm(state_dict)
    config = config_of_original(state_dict, num_attention_heads, decoder_num_attention_heads, **config_overrides)
    layout = _layout_of_keys(state_dict)
    key_map = _expand(layout, _count_blocks(state_dict, "blocks"), _count_blocks(state_dict, "decoder_blocks"))
    is_classifier = isinstance(config, BeitConfig)
    model: BeitForImageClassification | ViTMAERobustForPreTraining | ViTMAERobustModel
    if isinstance(config, BeitConfig):
        model = BeitForImageClassification(config)
    else:
        model = (ViTMAERobustForPreTraining if layout is KEY_MAP else ViTMAERobustModel)(config)

    renamed = {}
    for key, names in key_map.items():
        tensor = state_dict[key]
        if len(names) > 1 and (tensor.dim() == 0 or tensor.shape[0] % len(names)):
            raise UserError(f"{key} has shape {tuple(tensor.shape)}: cannot be split into query, key and value.")
        for name, part in zip(names, tensor.chunk(len(names)) if len(names) > 1 else [tensor]):
            renamed[name] = part.detach().clone()
    try:
        model.load_state_dict(without_key_biases(renamed) if is_classifier else renamed, assign=True)
    except RuntimeError as error:
        raise UserError(f"The tensors do not fit the sizes that they and the overrides tell. {error}") from error
    return model.eval()


def rename_to_original(tensors: Mapping[str, Tensor], layout: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors by names of transformers -> copies by official names, bit-identical. `layout`: a table of this module.

    Raises ValueError for a tensor that the layout has no place for, and for one that it needs and does not find.
    """
    blocks = (_count_blocks(tensors, prefix) for prefix in (r"(?:vit\.|beit\.)?layers", r"decoder\.decoder_layers"))
    key_map = _expand(layout, *blocks)
    expected = {name for names in key_map.values() for name in names}
    if homeless := tensors.keys() - expected:
        raise UserError(
            f"The layout of the official MAE has no place for {listed(homeless)}. A model with mid-level mask tokens "
            "(mid_mask_ratio > 0) or patch statistics (target_normalization='global_patch') cannot be written in it: "
            "export its encoder alone, saved by ViTMAERobustModel.from_pretrained(FOLDER).save_pretrained(ENCODER). "
            "Nor can a BEiT with layer scale or relative positions."
        )
    if absent := expected - tensors.keys():
        raise UserError(f"The layout of the official MAE needs {listed(absent)}, which this model does not have.")
    return {key: torch.cat([tensors[name].detach() for name in names]) for key, names in key_map.items()}


def to_original(model: PreTrainedModel) -> dict[str, Tensor]:
    """The inverse of `from_original`: copies of the tensors by official name, bit-identical, to be saved as
    `torch.save({"model": to_original(model)}, path)` and read by the official code.

    `model`: `ViTMAERobustForPreTraining`, `ViTMAERobustModel`, their stock counterparts, or a `BeitModel` or
    `BeitForImageClassification` of the form of `mae_beit_config`, whose absent key biases become zeros.

    The layout holds no settings: remember the heads, `norm_pix_loss`, the names of the classes and the like.

    Raises ValueError for a tensor that the layout has no place for: of a model with its decoder the mid-level mask
    token and patch statistics; layer scale, relative positions.
    """
    tensors = model.state_dict()
    if isinstance(model, BeitPreTrainedModel):
        tensors = with_key_biases(tensors)
    if isinstance(model, BeitForImageClassification):
        return rename_to_original(tensors, MEAN_KEY_MAP if model.config.use_mean_pooling else CLS_KEY_MAP)
    if hasattr(model, "decoder"):
        return rename_to_original(tensors, KEY_MAP)
    tensors.pop("mid_mask_token", None)  # for pre-training only
    return rename_to_original(tensors, ENCODER_KEY_MAP)
