"""Mask R-CNN on top of pre-trained encoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from ...conversion.encoders import VIT_ENCODERS, encoder_from_scratch, read_encoder
from ...conversion.finetuned import label_settings, read_finetuned
from ...conversion.pixels import Pixels, read_pixels
from ...conversion.positions import positions_for, square_patch
from ...conversion.settings import SIZES, settings_of
from ...conversion.source import ModelSource
from ...errors import UserError
from ...model import ViTMAERobustConfig, ViTMAERobustForInstanceSegmentation, ViTMAERobustInstanceSegmentationConfig

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
            raise UserError(f"'{name}' of the encoder has no place in VitDet.")
    return renamed


@dataclass(frozen=True)
class DetectorSettings:
    """Of a Mask R-CNN to be trained.

    Attributes:
        image_size: side of the square that images are fitted into.
        drop_path_rate: of the last block; it grows linearly from 0.
        fields: more fields of [`ViTMAERobustInstanceSegmentationConfig`], such as `window_size`.
    """

    image_size: int = ViTMAERobustInstanceSegmentationConfig.image_size
    drop_path_rate: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)


def detector_from_scratch(
    source: ModelSource, class_names: Sequence[str], settings: DetectorSettings = DetectorSettings()
) -> tuple[ViTMAERobustForInstanceSegmentation, Pixels]:
    """Mask R-CNN on an encoder as it is before MAE's pre-training, and how it wants its images; in float32 and in
    training mode.

    source: see `encoder_from_scratch`; its overrides may also be fields of [`ViTMAERobustInstanceSegmentationConfig`]
    for the heads (`fpn_channels=64`). Raises ValueError.
    """
    source, settings = _heads_apart(source, settings)
    encoder, pixels = encoder_from_scratch(source)
    return _detector_on(encoder, pixels, class_names, settings), pixels


def detector_from_encoder(
    source: ModelSource, class_names: Sequence[str], settings: DetectorSettings = DetectorSettings()
) -> tuple[ViTMAERobustForInstanceSegmentation, Pixels]:
    """Mask R-CNN to be trained, and how it wants its images.

    source: of a ViT; its overrides may be fields of [`ViTMAERobustInstanceSegmentationConfig`] for the heads.

    Returns a model in float32 and in training mode; the encoder has all its weights from the checkpoint, relative
    positions are zero, pyramid and heads are new.

    Raises ValueError: another architecture, a missing tensor, sizes that do not fit.
    """
    source, settings = _heads_apart(source, settings)
    encoder, pixels = read_encoder(source, tuple(VIT_ENCODERS))
    return _detector_on(encoder, pixels, class_names, settings), pixels


def detector_for_evaluation(
    source: ModelSource, class_names: Sequence[str]
) -> tuple[ViTMAERobustForInstanceSegmentation, Pixels]:
    """A detector as it is, in evaluation mode, and how it wants its images. Raises ValueError as `read_finetuned`."""
    model = read_finetuned(source, ViTMAERobustForInstanceSegmentation, class_names, "detector")
    return model, read_pixels(source, model.config)


def _heads_apart(source: ModelSource, settings: DetectorSettings) -> tuple[ModelSource, DetectorSettings]:
    """Overrides that are for the heads, not for the encoder, become fields of the settings."""
    of_heads = set(ViTMAERobustInstanceSegmentationConfig.__dataclass_fields__)
    of_heads -= set(ViTMAERobustConfig.__dataclass_fields__)
    heads = {name: value for name, value in source.overrides.items() if name in of_heads}
    others = {name: value for name, value in source.overrides.items() if name not in of_heads}
    return replace(source, overrides=others), replace(settings, fields={**settings.fields, **heads})


def _detector_on(
    encoder: PreTrainedModel, pixels: Pixels, class_names: Sequence[str], settings: DetectorSettings
) -> ViTMAERobustForInstanceSegmentation:
    config = encoder.config
    patch_size = square_patch(config.patch_size, "Detection")
    if config.intermediate_size % config.hidden_size:
        raise UserError(
            f"Detection needs an intermediate_size that is a multiple of the hidden_size {config.hidden_size}, "
            f"not {config.intermediate_size}."
        )
    same = settings_of(config, (*SIZES, "hidden_act", "layer_norm_eps")) | {"patch_size": patch_size}
    model = ViTMAERobustForInstanceSegmentation(
        ViTMAERobustInstanceSegmentationConfig(
            **same,
            mlp_ratio=config.intermediate_size // config.hidden_size,
            image_size=settings.image_size,
            drop_path_rate=settings.drop_path_rate,
            image_mean=list(pixels.image_mean),
            image_std=list(pixels.image_std),
            **label_settings(class_names),
            **settings.fields,
        )
    )
    tensors = vit_to_vitdet(encoder.state_dict(), positions_for(encoder, settings.image_size))
    new = {key: tensor for key, tensor in model.backbone.state_dict().items() if "rel_pos" in key}
    model.backbone.load_state_dict({**new, **tensors})  # an absent tensor, or one without a place, is an error
    return model.train()
