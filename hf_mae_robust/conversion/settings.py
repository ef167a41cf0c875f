"""Which settings go from one config to another."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedConfig

from ..errors import UserError, refused_by_library
from ..model import ViTMAERobustConfig

# Settings of a ViT that other ViTs have under the same names.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "num_channels")
# Of ViTMAERobustConfig: what belongs to the channels of its images.
CHANNEL_SETTINGS = ("image_mean", "image_std", "bands", "value_range", "nodata", "rescale_factor")
SHARED_SETTINGS = (*SIZES, "intermediate_size", "hidden_act", "layer_norm_eps")


def settings_of(config: PreTrainedConfig, names: Sequence[str] = SHARED_SETTINGS) -> dict[str, Any]:
    return {name: getattr(config, name) for name in names}


def mae_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Of a config of ViT-MAE, ours or stock: all that [`ViTMAERobustConfig`] has too, but for the name of its kind:
    with stock's, a run would differ from its own checkpoints."""
    names = ViTMAERobustConfig.__dataclass_fields__.keys() - {"model_type"}
    settings = {name: value for name, value in config.to_dict().items() if name in names}
    if not 0 < settings.get("mask_ratio", ViTMAERobustConfig.mask_ratio) < 1:  # of stock, to see all patches
        del settings["mask_ratio"]
    return settings


def overridden(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> ViTMAERobustConfig:
    """Settings, with those of --config_overrides, which win. Raises ValueError for an unknown one, and for values that
    are out of range."""
    if unknown := sorted(overrides.keys() - ViTMAERobustConfig.__dataclass_fields__.keys()):
        close = get_close_matches(unknown[0], ViTMAERobustConfig.__dataclass_fields__, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(f"--config_overrides: ViTMAERobustConfig has no setting {', '.join(unknown)}.{hint}")
    with refused_by_library("The model's settings"):
        return ViTMAERobustConfig(**{**settings, **overrides})
