"""Configuration of the robustly and effectively optimized masked autoencoder."""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import ViTMAEConfig
from transformers.backbone_utils import BackboneConfigMixin

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TARGET_NORMALIZATIONS = ("none", "global_rgb", "global_patch")
NORM_PIX_AXES = ("patch", "channel")
# Of 8-bit images, whose mean and deviation are those of values in [0, 1]; and of a band model.
RESCALE_FACTORS = (1 / 255, 1.0)
# Fields that config.json names only where they are not at their default: that of an 8-bit model stays as it was
# before there were band models and `decoder_keep_ratio`, and that of a pre-training says nothing of backbones.
_NAMED_WHERE_CHANGED = (
    "rescale_factor",
    "bands",
    "nodata",
    "value_range",
    "norm_pix_axis",
    "decoder_keep_ratio",
    "apply_layernorm",
    "reshape_hidden_states",
)


def to_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """`16` -> `(16, 16)`; `[16, 8]` -> `(16, 8)` (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def kept_patches(num_mid: int, num_missing: int, keep_ratio: float) -> tuple[int, int]:
    """How many masked patches the decoder keeps, of `num_mid` with mid-level tokens and of `num_missing` others.

    Together `keep_ratio` of all, rounded, and at least one. Each kind keeps its share: the loss of the kept patches
    estimates the loss of all of them, in which both kinds have their weight."""
    # Not `round`, which torch.compile does not know of sizes that vary.
    num_kept = max(1, int((num_mid + num_missing) * keep_ratio + 0.5))
    num_kept_mid = min(num_mid, num_kept - int(num_missing * keep_ratio + 0.5))
    return num_kept_mid, num_kept - num_kept_mid


# `@strict` is not inherited: without it a subclass takes values of any type.
@strict
class ViTMAERobustConfig(BackboneConfigMixin, ViTMAEConfig):
    r"""
    Settings of a masked autoencoder with the paper's three ingredients. All fields of [`ViTMAEConfig`] keep their
    meaning, except that `attention_probs_dropout_prob` concerns the encoder only.

    With `decoder_attention_probs_dropout_prob=0.0`, `target_normalization="global_rgb"` and `mid_mask_ratio=0.0` the
    model computes exactly what the stock one does.

    A *band model* (`rescale_factor=1.0`) takes images of any number of channels ("bands") and any type of number:
    satellite, hyperspectral, microscopy, medical. Its `image_mean` and `image_std` are in the units of the files, and
    NaN in its `pixel_values` is a missing pixel.

    Args:
        decoder_attention_probs_dropout_prob (`float` in [0, 1), defaults to 0.3):
            Dropout of the attention probabilities in every decoder block, in training only (paper, section 2.1,
            "drop edge").
        target_normalization (`"none"`, `"global_rgb"` or `"global_patch"`, defaults to `"global_rgb"`):
            Population statistics that the target is normalised with first (paper, section 2.2 and Table 1): raw
            pixels in [0, 1]; the per-channel `image_mean` / `image_std` (what MAE has always done); or the mean and
            standard deviation of every pixel of a patch over the data set (eq. 3). The model's input stays
            normalised with `image_mean` / `image_std` in all three. Raw pixels of a band model are in units common to
            all bands: `pooled_statistics` become mean 0 and deviation 1.
        norm_pix_loss (`bool`, defaults to `True`):
            Whether each patch of the target is then normalised with its own mean and variance (eq. 2).
        norm_pix_unbiased (`bool`, defaults to `True`):
            Divide that variance by D - 1, as the official MAE code does; `False` divides by D, as eq. 2 says.
        norm_pix_axis (`"patch"` or `"channel"`, defaults to `"patch"`):
            Over which numbers of a patch that mean and variance are taken: all D, as MAE does; or those of each
            channel for itself, as VideoMAE does. With `"channel"`, "none" and "global_rgb" are the same target.
        image_mean, image_std (one `float` a channel):
            What `pixel_values` were normalised with: of values in [0, 1] (default: ImageNet's for 3 channels, 0.5 for
            any other number); of a band model in the units of the files (no default).
        rescale_factor (1/255 or 1.0, defaults to 1/255):
            What the numbers of a file are multiplied with before `image_mean` is subtracted: 1/255 for images of 8
            bits; 1.0 makes this a band model.
        bands (one `int` >= 0 a channel, *optional*):
            Of a band model: the 0-based numbers of the bands of a file that are its channels, in this order. Default:
            all, as they come.
        nodata (`float`, *optional*):
            Of a band model: the number that stands for a missing pixel in the files, beside NaN and what a file itself
            names.
        value_range (a pair (lowest, highest) a channel, *optional*):
            Of a band model: numbers of the files beyond are clipped, before they are normalised.
        mid_mask_ratio (`float` in [0, mask_ratio], defaults to 0.0):
            Share of all patches whose masked positions get a mid-level mask token inside the encoder (sections 2.3
            and 3.4). The paper's ViT-B/16 study: 0.25 (49 of 196).
        mid_mask_layer_idx (`int` in [0, num_hidden_layers), defaults to 8):
            0-based index of the encoder block before which the mid-level tokens are inserted. Looked at only when
            `mid_mask_ratio` > 0.
        decoder_keep_ratio (`float` in (0, 1], defaults to 1.0):
            Share of the masked patches that the decoder reconstructs in training. The others, drawn at random in each
            step, are neither among its tokens nor in the loss, which saves their operations. Evaluation and
            `reconstruct` take all. The encoder is left as it is: with mid-level tokens it sees all of them, and the
            share is taken of the masked patches with such a token and of those without one separately. After the
            decoder masking of VideoMAE V2 (Wang et al. 2023), which draws it with a pattern, and the partial
            reconstruction of CrossMAE (Fu et al. 2024), whose decoder has cross-attention only.
        image_size, patch_size (`int` or a pair (height, width)):
            Need not be square; the image size must be a multiple of the patch size.
        layer_norm_eps (`float`, defaults to 1e-6): as in the official MAE code (stock: 1e-12).
        out_indices, out_features (lists, *optional*):
            Of a backbone: which hidden states become feature maps, by number or by name: 0 or "stem" is what enters
            the first block, i or "stage{i}" the output of the i-th block. Default: the last block's. One of the two
            is enough.
        apply_layernorm (`bool`, defaults to `True`):
            Of a backbone: put each feature map through the encoder's final norm, as transformers' DINOv2 does.
        reshape_hidden_states (`bool`, defaults to `True`):
            Of a backbone: feature maps `(B, d, h, w)`. `False`: tokens `(B, 1 + L, d)`, CLS first, for
            `DPTForSemanticSegmentation` and `DPTForDepthEstimation`.

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
        image_mean: list[float | int] | tuple[float | int, ...] = ()
        image_std: list[float | int] | tuple[float | int, ...] = ()
    else:
        image_mean: list[float | int] | tuple[float | int, ...] | None = None
        image_std: list[float | int] | tuple[float | int, ...] | None = None
    mid_mask_ratio: float | int = 0.0
    mid_mask_layer_idx: int = 8
    norm_pix_axis: str = "patch"
    decoder_keep_ratio: float | int = 1.0
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    rescale_factor: float | int = 1 / 255
    bands: list[int] | tuple[int, ...] | None = None
    nodata: float | int | None = None
    value_range: list[Sequence[float | int]] | tuple[Sequence[float | int], ...] | None = None
    # Not fields: what nobody has chosen follows `num_hidden_layers`, which may be changed later.
    _out_features = None
    _out_indices = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_bands()
        if self.image_mean is None:
            self.image_mean = list(IMAGENET_MEAN) if self.num_channels == 3 else [0.5] * self.num_channels
        if self.image_std is None:
            self.image_std = list(IMAGENET_STD) if self.num_channels == 3 else [0.5] * self.num_channels
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
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
        if out_features is not None or out_indices is not None:
            self.set_output_features_output_indices(out_features, out_indices)

    @property
    def stage_names(self) -> list[str]:
        """Names of the hidden states: "stem", which enters the first block, then "stage1", ..., one a block."""
        return ["stem", *(f"stage{number}" for number in range(1, self.num_hidden_layers + 1))]

    # Other than the mixin's, with a default that follows the number of blocks.
    @property
    def out_features(self) -> list[str]:
        """Names of the hidden states that a backbone returns; see `out_indices`."""
        return self.stage_names[-1:] if self._out_features is None else self._out_features

    @out_features.setter
    def out_features(self, out_features: list[str] | None) -> None:
        self.set_output_features_output_indices(out_features, None)

    @property
    def out_indices(self) -> list[int]:
        """Numbers of the hidden states that a backbone returns: 0 is what enters the first block. Setting one of
        `out_features` and `out_indices` sets the other; None is the last block's output. ValueError of others than
        there are."""
        return [self.num_hidden_layers] if self._out_indices is None else self._out_indices

    @out_indices.setter
    def out_indices(self, out_indices: Sequence[int] | None) -> None:
        self.set_output_features_output_indices(None, None if out_indices is None else list(out_indices))

    @property
    def is_band_model(self) -> bool:
        """Whether `image_mean` and `image_std` are in the units of the files, and NaN is a missing pixel."""
        return self.rescale_factor == 1.0

    def band_settings(self) -> dict[str, Any]:
        """How a band model wants the numbers of a file: the arguments of `BandForm` (bands_vit_mae_robust.py).

        Not the form itself: checkpoints of 8-bit models would need the file that it lives in.
        """

        def as_tuple(values: Any) -> Any:
            return tuple(as_tuple(value) for value in values) if isinstance(values, Sequence) else values

        names = ("bands", "nodata", "value_range", "image_mean", "image_std")
        return {name: as_tuple(getattr(self, name)) for name in names}

    @property
    def pooled_statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of the numbers of all channels taken together, by `image_mean` and `image_std`,
        in their units, every channel with the same weight."""
        mean = sum(self.image_mean) / len(self.image_mean)
        square = sum(std**2 + (own - mean) ** 2 for own, std in zip(self.image_mean, self.image_std))
        return mean, (square / len(self.image_mean)) ** 0.5

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, without those of `_NAMED_WHERE_CHANGED` that are at their defaults."""
        settings, defaults = super().to_dict(), type(self).__dataclass_fields__
        if self.out_indices == [self.num_hidden_layers]:
            del settings["out_features"], settings["out_indices"]
        for name in _NAMED_WHERE_CHANGED:
            if name in settings and settings[name] == defaults[name].default:
                del settings[name]
        return settings

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
                    f"the {axis} {image} is not divisible by {patch} (remainder {image % patch}). "
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

        num_masked = self.num_patches - num_visible
        if not 0.0 < self.decoder_keep_ratio <= 1.0:
            raise ValueError(
                f"decoder_keep_ratio={self.decoder_keep_ratio!r}: is a share of the masked patches, so it must lie in "
                "(0, 1]; 1 keeps all."
            )
        if num_masked * self.decoder_keep_ratio < 0.5:
            raise ValueError(
                f"decoder_keep_ratio={self.decoder_keep_ratio!r} keeps none of {num_masked} masked patches: it must be "
                f"at least {0.5 / num_masked:.3g}."
            )

    def _check_target(self) -> None:
        if self.target_normalization not in TARGET_NORMALIZATIONS:
            raise ValueError(
                f"target_normalization={self.target_normalization!r}: must be one of {TARGET_NORMALIZATIONS}."
            )
        if self.norm_pix_axis not in NORM_PIX_AXES:
            raise ValueError(f"norm_pix_axis={self.norm_pix_axis!r}: must be one of {NORM_PIX_AXES}.")
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
        if self.norm_pix_loss and self.norm_pix_axis == "channel" and self.patch_dim == self.num_channels:
            raise ValueError(
                f"norm_pix_axis={self.norm_pix_axis!r} with patch_size={self.patch_size!r}: a patch of one pixel has "
                'no variance in a channel. Set norm_pix_axis="patch" or norm_pix_loss=False, or take larger patches.'
            )

    def _check_bands(self) -> None:
        """All that concerns band models, before `image_mean` and `image_std` get their defaults."""
        if self.rescale_factor not in RESCALE_FACTORS:
            raise ValueError(
                f"rescale_factor={self.rescale_factor!r}: must be 1/255 (images of 8 bits) or 1.0 (a band model: "
                "image_mean and image_std in the units of the files)."
            )
        if not self.is_band_model:
            for field in ("bands", "nodata", "value_range"):
                if (value := getattr(self, field)) is not None:
                    raise ValueError(f"{field}={value!r}: is for band models only, with rescale_factor=1.0.")
            return
        for field in ("image_mean", "image_std"):
            if getattr(self, field) is None:
                raise ValueError(
                    f"{field}=None with rescale_factor=1.0: a band model needs the mean and the standard deviation of "
                    "each band over the data, in the units of the files; numbers of any range have no default. "
                    "run_pretrain.py computes them (--image_statistics auto)."
                )
        if self.bands is not None:
            if len(self.bands) != self.num_channels:
                raise ValueError(f"bands={self.bands!r}: needs one band a channel (num_channels={self.num_channels}).")
            if min(self.bands, default=0) < 0:
                raise ValueError(f"bands={self.bands!r}: are 0-based, so they must be at least 0.")
        if self.nodata is not None and not isfinite(self.nodata):
            raise ValueError(f"nodata={self.nodata!r}: must be a finite number. NaN is always a missing pixel.")
        if self.value_range is not None:
            if len(self.value_range) != self.num_channels:
                raise ValueError(
                    f"value_range={self.value_range!r}: needs one pair (lowest, highest) a channel "
                    f"(num_channels={self.num_channels})."
                )
            for pair in self.value_range:
                if len(pair) != 2 or not all(map(isfinite, pair)) or not pair[0] < pair[1]:
                    raise ValueError(
                        f"value_range={self.value_range!r}: {pair!r} is not a pair of finite numbers (lowest, highest) "
                        "with lowest < highest."
                    )
            self.value_range = [list(pair) for pair in self.value_range]  # as config.json gives it back


# Copies this file next to every checkpoint and names it in config.json, for `trust_remote_code=True`.
ViTMAERobustConfig.register_for_auto_class()

__all__ = ["ViTMAERobustConfig"]
