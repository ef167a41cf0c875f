"""Configuration of the robustly and effectively optimized masked autoencoder."""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import ViTMAEConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TARGET_NORMALIZATIONS = ("none", "global_rgb", "global_patch")


def to_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """`16` -> `(16, 16)`; `[16, 8]` -> `(16, 8)` (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


# `@strict` is not inherited: without it a subclass takes values of any type.
@strict
class ViTMAERobustConfig(ViTMAEConfig):
    r"""
    Settings of a masked autoencoder with the paper's three ingredients. All fields of [`ViTMAEConfig`] keep their
    meaning, except that `attention_probs_dropout_prob` concerns the encoder only.

    With `decoder_attention_probs_dropout_prob=0.0`, `target_normalization="global_rgb"` and `mid_mask_ratio=0.0` the
    model computes exactly what the stock one does.

    Args:
        decoder_attention_probs_dropout_prob (`float` in [0, 1), defaults to 0.3):
            Dropout of the attention probabilities in every decoder block, in training only (paper, section 2.1,
            "drop edge").
        target_normalization (`"none"`, `"global_rgb"` or `"global_patch"`, defaults to `"global_rgb"`):
            Population statistics that the target is normalised with first (paper, section 2.2 and Table 1): raw
            pixels in [0, 1]; the per-channel `image_mean` / `image_std` (what MAE has always done); or the mean and
            standard deviation of every pixel of a patch over the data set (eq. 3). The model's input stays
            normalised with `image_mean` / `image_std` in all three.
        norm_pix_loss (`bool`, defaults to `True`):
            Whether each patch of the target is then normalised with its own mean and variance (eq. 2).
        norm_pix_unbiased (`bool`, defaults to `True`):
            Divide that variance by D - 1, as the official MAE code does; `False` divides by D, as eq. 2 says.
        image_mean, image_std (one `float` a channel):
            What `pixel_values` were normalised with. Default: ImageNet's for 3 channels, 0.5 for any other number.
        mid_mask_ratio (`float` in [0, mask_ratio], defaults to 0.0):
            Share of all patches whose masked positions get a mid-level mask token inside the encoder (sections 2.3
            and 3.4). The paper's ViT-B/16 study: 0.25 (49 of 196).
        mid_mask_layer_idx (`int` in [0, num_hidden_layers), defaults to 8):
            0-based index of the encoder block before which the mid-level tokens are inserted. Looked at only when
            `mid_mask_ratio` > 0.
        image_size, patch_size (`int` or a pair (height, width)):
            Need not be square; the image size must be a multiple of the patch size.
        layer_norm_eps (`float`, defaults to 1e-6): as in the official MAE code (stock: 1e-12).

    Raises:
        huggingface_hub.errors.StrictDataclassError: a value of the wrong type.
        ValueError: a value out of range; the message names the field, the value and what is allowed.

    Example:

    ```python
    >>> from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining

    >>> config = ViTMAERobustConfig(target_normalization="global_patch", mid_mask_ratio=0.25)  # ViT-B/16
    >>> model = ViTMAERobustForPreTraining(config)
    ```"""

    model_type = "vit_mae_robust"

    layer_norm_eps: float = 1e-6
    norm_pix_loss: bool = True
    norm_pix_unbiased: bool = True
    decoder_attention_probs_dropout_prob: float | int = 0.3
    target_normalization: str = "global_rgb"
    if TYPE_CHECKING:  # what they are after `__post_init__`
        image_mean: list[float] | tuple[float, ...] = ()
        image_std: list[float] | tuple[float, ...] = ()
    else:
        image_mean: list[float] | tuple[float, ...] | None = None
        image_std: list[float] | tuple[float, ...] | None = None
    mid_mask_ratio: float | int = 0.0
    mid_mask_layer_idx: int = 8

    def __post_init__(self, **kwargs: Any) -> None:
        if self.image_mean is None:
            self.image_mean = list(IMAGENET_MEAN) if self.num_channels == 3 else [0.5] * self.num_channels
        if self.image_std is None:
            self.image_std = list(IMAGENET_STD) if self.num_channels == 3 else [0.5] * self.num_channels
        super().__post_init__(**kwargs)
        self._check_sizes()
        self._check_masking()
        self._check_target()
        for field in (
            "attention_probs_dropout_prob",
            "decoder_attention_probs_dropout_prob",
            "hidden_dropout_prob",
        ):
            value = getattr(self, field)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{field}={value!r}: a dropout probability must lie in [0, 1).")

    @property
    def grid_size(self) -> tuple[int, int]:
        """Number of patches (vertically, horizontally) of an image of `image_size`."""
        (height, width), (patch_height, patch_width) = to_pair(self.image_size), to_pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def num_patches(self) -> int:
        """L: patches of an image of `image_size`."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def patch_dim(self) -> int:
        """D: numbers in a patch, `patch height * patch width * num_channels`."""
        height, width = to_pair(self.patch_size)
        return height * width * self.num_channels

    def _check_sizes(self) -> None:
        for field in ("image_size", "patch_size"):
            value = getattr(self, field)
            if not isinstance(value, int) and len(value) != 2:
                raise ValueError(f"{field}={value!r}: give one number or a pair (height, width).")
            if min(to_pair(value)) < 1:
                raise ValueError(f"{field}={value!r}: sizes are in pixels and must be at least 1.")
        for axis, image, patch in zip(("height", "width"), to_pair(self.image_size), to_pair(self.patch_size)):
            if image % patch:
                nearest = [size for size in (image - image % patch, image - image % patch + patch) if size]
                raise ValueError(
                    f"image_size={self.image_size!r} is not a multiple of patch_size={self.patch_size!r}: "
                    f"the {axis} {image} leaves {image % patch} pixels over. "
                    f"Nearest that fit: {' and '.join(map(str, nearest))}."
                )
        for field in (
            "num_channels",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "decoder_hidden_size",
            "decoder_num_hidden_layers",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
        ):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)!r}: must be at least 1.")
        for prefix in ("", "decoder_"):
            hidden, heads = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}num_attention_heads")
            if hidden % heads:
                raise ValueError(
                    f"{prefix}hidden_size={hidden} is not a multiple of {prefix}num_attention_heads={heads}."
                )
            if hidden % 4:
                raise ValueError(
                    f"{prefix}hidden_size={hidden}: must be a multiple of 4 (sine and cosine of two coordinates)."
                )

    def _check_masking(self) -> None:
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"mask_ratio={self.mask_ratio!r}: must lie strictly between 0 and 1.")
        num_visible = int(self.num_patches * (1 - self.mask_ratio))
        if not 0 < num_visible < self.num_patches:
            raise ValueError(
                f"mask_ratio={self.mask_ratio!r} leaves {num_visible} of {self.num_patches} patches visible "
                f"(image_size={self.image_size!r}, patch_size={self.patch_size!r}): at least one patch must be "
                "visible and one masked. Change mask_ratio or take smaller patches."
            )
        if not 0.0 <= self.mid_mask_ratio <= self.mask_ratio:
            raise ValueError(
                f"mid_mask_ratio={self.mid_mask_ratio!r}: is a share of all patches, taken from the masked ones, so it "
                f"must lie in [0, mask_ratio={self.mask_ratio!r}]."
            )
        if self.mid_mask_ratio > 0 and int(self.num_patches * self.mid_mask_ratio) == 0:
            raise ValueError(
                f"mid_mask_ratio={self.mid_mask_ratio!r} makes no mid-level token of {self.num_patches} patches: "
                f"it must be 0 or at least {1 / self.num_patches:.3g} (one patch)."
            )
        if self.mid_mask_ratio > 0 and not 0 <= self.mid_mask_layer_idx < self.num_hidden_layers:
            raise ValueError(
                f"mid_mask_layer_idx={self.mid_mask_layer_idx!r}: must lie in [0, {self.num_hidden_layers - 1}] "
                f"(num_hidden_layers={self.num_hidden_layers}), because mid_mask_ratio={self.mid_mask_ratio!r} > 0."
            )

    def _check_target(self) -> None:
        if self.target_normalization not in TARGET_NORMALIZATIONS:
            raise ValueError(
                f"target_normalization={self.target_normalization!r}: must be one of {TARGET_NORMALIZATIONS}."
            )
        for field in ("image_mean", "image_std"):
            value = getattr(self, field)
            if len(value) != self.num_channels:
                raise ValueError(f"{field}={value!r}: needs one number a channel (num_channels={self.num_channels}).")
            if not all(isfinite(number) for number in value):
                raise ValueError(f"{field}={value!r}: must be finite numbers.")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std={self.image_std!r}: standard deviations must be greater than 0.")
        if self.norm_pix_loss and self.patch_dim == 1:
            raise ValueError(
                f"norm_pix_loss=True with patch_size={self.patch_size!r} and num_channels={self.num_channels}: "
                "a patch of one number has no variance. Set norm_pix_loss=False or take larger patches."
            )


# Copies this file next to every checkpoint and names it in config.json, for `trust_remote_code=True`.
ViTMAERobustConfig.register_for_auto_class()

__all__ = ["ViTMAERobustConfig"]
