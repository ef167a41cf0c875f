"""Mask R-CNN on top of pre-trained encoders."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...conversion.encoders import (
    VIT_ENCODERS,
    Pixels,
    check_classes,
    grid_size,
    load_strictly,
    pixels_of,
    read_config,
    resized_positions,
    start_encoder,
)
from ...model import ViTMAERobustConfig, ViTMAERobustForInstanceSegmentation, ViTMAERobustInstanceSegmentationConfig
from ...model.configuration_vit_mae_robust import to_pair
from ...model.modeling_vit_mae_robust import sincos_position_embedding

SHARED_SETTINGS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "num_channels")
NAMES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attention.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def vit_to_vitdet(encoder: Mapping[str, torch.Tensor], positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a ViT encoder (`embeddings.*`, `layers.N.*`) by the names of `VitDetBackbone`, with other
    positions.
    CLS and mask tokens, the final norm and the pooler are left out: VitDet has no place for them.

    Raises ValueError for a tensor that is none of these.
    """
    left_out = ("mid_mask_token", "embeddings.mask_token", "embeddings.cls_token", "layernorm.", "pooler.")
    renamed = {"embeddings.position_embeddings": positions}
    for name, tensor in encoder.items():
        if name.startswith((*left_out, "embeddings.position_embeddings")):
            continue
        if name.startswith("embeddings.patch_embeddings.projection."):
            renamed[name.replace("patch_embeddings.", "")] = tensor
            continue
        _, number, part = name.split(".", 2)
        part, kind = part.rsplit(".", 1)
        block = f"encoder.layer.{number}"
        if part in NAMES:
            renamed[f"{block}.{NAMES[part]}.{kind}"] = tensor
        elif part == "attention.q_proj":
            stem = f"layers.{number}.attention"
            zeros = torch.zeros_like(tensor)
            parts = [encoder.get(f"{stem}.{which}.{kind}", zeros) for which in ("q_proj", "k_proj", "v_proj")]
            renamed[f"{block}.attention.qkv.{kind}"] = torch.cat(parts)
        elif part not in ("attention.k_proj", "attention.v_proj"):
            raise ValueError(f"'{name}' of the encoder has no place in VitDet.")
    return renamed


def positions_for(encoder, image_size: int) -> torch.Tensor:
    """Positions `(1, 1 + L, d)` for images of another size: MAE's own sine-cosine table where the encoder has that one,
    otherwise interpolated (bicubic, 2-D)."""
    config, table = encoder.config, encoder.embeddings.position_embeddings.detach()
    grid = grid_size(config.image_size, config.patch_size)
    new_grid = grid_size(image_size, config.patch_size)
    if torch.allclose(table, sincos_position_embedding(grid, config.hidden_size).to(table), atol=1e-4):
        return sincos_position_embedding(new_grid, config.hidden_size)
    return resized_positions(table, grid, image_size, config.patch_size)


def build_detector(
    name: str | None,
    class_names: Sequence[str],
    *,
    from_scratch: bool = False,
    overrides: Mapping | None = None,
    image_size: int | None = None,
    drop_path_rate: float = 0.0,
    settings: Mapping[str, Any] | None = None,
    needs_head: bool = False,
    trust_remote_code: bool = False,
    token: str | None = None,
) -> tuple[ViTMAERobustForInstanceSegmentation, Pixels]:
    """Mask R-CNN to be trained, and how it wants its images.

    Args:
        name: folder, Hub id or official file of a ViT to start from; None (from scratch only): `overrides` tell the
            sizes.
        overrides: fields of [`ViTMAERobustInstanceSegmentationConfig`] for the heads (`fpn_channels=64`); from scratch
            also of [`ViTMAERobustConfig`]; `num_attention_heads` of an official file.
        image_size: side of the square that images are fitted into (1024). settings: more fields of the detector's
            config.
        needs_head: `name` has to be a detector, which is loaded as it is.

    Returns a model in float32; the encoder has all its weights from the checkpoint, relative positions are zero,
    pyramid and heads are new.

    Raises ValueError: another architecture, other classes, a missing tensor, sizes that do not fit.
    """
    access, overrides = {"trust_remote_code": trust_remote_code, "token": token}, dict(overrides or {})
    if name is None and not from_scratch:
        raise ValueError("--model_name_or_path is needed, or --from_scratch.")
    detector_class = ViTMAERobustForInstanceSegmentation
    kinds = (detector_class.config_class.model_type,) if needs_head else tuple(VIT_ENCODERS)
    config = read_config(name, kinds, **access) if name is not None else None
    if needs_head:
        if from_scratch or config is None:
            raise ValueError("--eval_only needs a detector: a folder or Hub id in --model_name_or_path.")
        check_classes(name, config, class_names, "detector")
        return load_strictly(detector_class, name, token=token).eval(), pixels_of(config)
    of_heads = set(ViTMAERobustInstanceSegmentationConfig.__dataclass_fields__)
    of_heads -= set(ViTMAERobustConfig.__dataclass_fields__)
    heads = {field: overrides.pop(field) for field in list(overrides) if field in of_heads}
    encoder, pixels = start_encoder(
        name, config, from_scratch=from_scratch, overrides=overrides, image_size=None, **access
    )
    encoder_config = encoder.config
    if len(set(to_pair(encoder_config.patch_size))) > 1:
        raise ValueError(f"Detection needs square patches, not {encoder_config.patch_size}.")
    if encoder_config.intermediate_size % encoder_config.hidden_size:
        raise ValueError(
            f"Detection needs an intermediate_size that is a multiple of the hidden_size {encoder_config.hidden_size}, "
            f"not {encoder_config.intermediate_size}."
        )
    size = image_size or detector_class.config_class.image_size
    same = {field: getattr(encoder_config, field) for field in SHARED_SETTINGS}
    same["patch_size"] = to_pair(encoder_config.patch_size)[0]
    model = detector_class(
        detector_class.config_class(
            **same,
            mlp_ratio=encoder_config.intermediate_size // encoder_config.hidden_size,
            layer_norm_eps=encoder_config.layer_norm_eps,
            image_size=size,
            drop_path_rate=drop_path_rate,
            image_mean=list(pixels.image_mean),
            image_std=list(pixels.image_std),
            id2label=dict(enumerate(class_names)),
            label2id={label: i for i, label in enumerate(class_names)},
            **{**(settings or {}), **heads},
        )
    )
    tensors = vit_to_vitdet(encoder.state_dict(), positions_for(encoder, size))
    new = {key: tensor for key, tensor in model.backbone.state_dict().items() if "rel_pos" in key}
    model.backbone.load_state_dict({**new, **tensors})  # an absent tensor, or one without a place, is an error
    return model.train(), pixels
