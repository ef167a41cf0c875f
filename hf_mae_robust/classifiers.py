"""Classifiers on top of pre-trained encoders, as stock classes.

A fine-tuned MAE ViT *is* a stock BEiT with absolute positions and without relative ones and layer scale: BEiT lacks the
bias of the keys, which softmax cannot feel, and it has drop path. So encoders of the ViT family (ours, stock and
official MAE, ViT and with it DINO, MoCo v3 and iBOT, MSN) train as `BeitForImageClassification`; BEiT, data2vec,
DeiT and DINOv2 train as their own classes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    BeitForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTModel,
    ViTMSNModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .checkpoints import from_original, mae_beit_config, read_original, without_key_biases
from .model import ViTMAERobustConfig, ViTMAERobustModel
from .model.configuration_vit_mae_robust import to_pair
from .model.modeling_vit_mae_robust import interpolate_position_embedding

# Official code: main_finetune.py, main_linprobe.py.
HEAD_STD = 2e-5
PROBE_HEAD_STD = 0.01

VIT_ENCODERS = {
    "vit_mae_robust": ViTMAERobustModel,
    "vit_mae": ViTMAERobustModel,
    "vit": ViTModel,
    "vit_msn": ViTMSNModel,
}
OWN_CLASSES = ("beit", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers")
# Of these, the ones that choose between CLS and mean by a setting, and those that take any image size as they are.
WITH_POOLING = ("beit", "data2vec-vision")
OF_ANY_SIZE = ("dinov2", "dinov2_with_registers")
# Settings of a ViT that its BEiT has under the same names.
SHARED_SETTINGS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
SHARED_SETTINGS += ("layer_norm_eps", "patch_size", "num_channels")
# What may be new in a classifier; everything else has to come from the checkpoint.
HEAD_KEYS = ("classifier.", "beit.pooler.", "data2vec_vision.pooler.")


@dataclass(frozen=True)
class Pixels:
    """How images must be prepared: channels, and the mean and deviation per channel of values in [0, 1]."""

    num_channels: int = 3
    image_mean: Sequence[float] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: Sequence[float] = tuple(IMAGENET_DEFAULT_STD)


def load_strictly(model_class, name: str, may_be_missing: tuple[str, ...] = (), **options) -> PreTrainedModel:
    """`from_pretrained` that raises ValueError, with names, where a tensor is missing or of another shape, except for
    those that begin with `may_be_missing`."""
    model, info = model_class.from_pretrained(name, output_loading_info=True, **options)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(may_be_missing))
    mismatched = sorted(str(key[0]) for key in info["mismatched_keys"] if not str(key[0]).startswith(may_be_missing))
    for what, keys in (("lacks", missing), ("has another shape of", mismatched)):
        if keys:
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            raise ValueError(
                f"{name} {what} {len(keys)} tensors of a {model_class.__name__}: {', '.join(keys[:4])}{more}. It is "
                "incomplete, or a checkpoint of another architecture than its config.json says."
            )
    return model


def vit_to_beit(encoder: Mapping[str, torch.Tensor], keeps_final_norm: bool) -> dict[str, torch.Tensor]:
    """The tensors of a ViT encoder (`embeddings.*`, `layers.N.*`, `layernorm.*`) by the names of `BeitModel`.

    keeps_final_norm: for CLS pooling; mean pooling has a new norm instead. Mask tokens are left out, and the biases of
    the keys. Other biases of the attention that are missing are zeros.
    """
    left_out = ("mid_mask_token", "embeddings.mask_token", "pooler.") + (() if keeps_final_norm else ("layernorm.",))
    tensors = {name: tensor for name, tensor in encoder.items() if not name.startswith(left_out)}
    for name, tensor in encoder.items():
        if name.endswith(("q_proj.weight", "v_proj.weight")):
            tensors.setdefault(name.replace(".weight", ".bias"), torch.zeros_like(tensor[:, 0]))
    return without_key_biases(tensors)


def _square(image_size: int | Sequence[int]) -> int:
    height, width = to_pair(image_size)
    if height != width:
        raise ValueError(
            f"image_size {height} x {width}: the classifier is a stock BEiT, which takes square images only; give "
            "--image_size."
        )
    return height


def _load_encoder(name: str, config: PreTrainedConfig | None, heads: int | None, options: dict) -> PreTrainedModel:
    """A ViT encoder from a folder, the Hub or an official file."""
    if config is None:
        if heads is None:
            raise ValueError(
                f"--model_name_or_path {name} is an official checkpoint. Its tensors do not tell the number of heads: "
                "give --config_overrides num_attention_heads=12 (ViT-B; ViT-L and ViT-H 16)."
            )
        tensors = read_original(name)
        decoder = ("decoder_", "mask_token")
        return from_original({key: value for key, value in tensors.items() if not key.startswith(decoder)}, heads)
    encoder_class = VIT_ENCODERS[config.model_type]
    if encoder_class is ViTMAERobustModel:
        options = {"token": options["token"]}
        form = {key: value for key, value in config.to_dict().items() if key in ViTMAERobustConfig.__dataclass_fields__}
        return load_strictly(encoder_class, name, ("mid_mask_token",), config=ViTMAERobustConfig(**form), **options)
    return load_strictly(encoder_class, name, ("pooler.",), **options)


def read_config(name: str, *, trust_remote_code: bool = False, token: str | None = None) -> PreTrainedConfig | None:
    """The config of a checkpoint; None for a file in the official layout.

    Raises ValueError for an architecture that is not of the ViT family.
    """
    if Path(name).is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, token=token)
    except OSError as error:
        raise ValueError(
            f"--model_name_or_path {name}: no file, no folder with a config.json, and not to be had from the Hub "
            f"({str(error).strip().splitlines()[0]}) Give a folder that run_pretrain.py has written (without arguments: "
            "outputs/digits), a Hub id or an official file."
        ) from error
    if config.model_type not in (*VIT_ENCODERS, *OWN_CLASSES):
        raise ValueError(
            f"--model_name_or_path {name} is a '{config.model_type}' model, which is not of the ViT family: "
            f"{', '.join((*VIT_ENCODERS, *OWN_CLASSES))}."
        )
    return config


def read_pixels(name: str, config: PreTrainedConfig, token: str | None = None) -> Pixels:
    """How a checkpoint wants its images: as its config says, or its image processor, or as ImageNet's."""
    if hasattr(config, "image_mean"):
        return _pixels_of(config)
    try:
        return _pixels_of(config, AutoImageProcessor.from_pretrained(name, token=token))
    except OSError:  # it brings none
        return _pixels_of(config)


def _pixels_of(config: PreTrainedConfig, processor: object | None = None) -> Pixels:
    channels, holder = config.num_channels, processor if processor is not None else config
    mean, std = getattr(holder, "image_mean", None), getattr(holder, "image_std", None)
    if mean is None or std is None or len(mean) != channels:
        is_rgb = channels == 3
        mean, std = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if is_rgb else ([0.5] * channels, [0.5] * channels)
    return Pixels(channels, tuple(mean), tuple(std))


def _has_head(config: PreTrainedConfig) -> bool:
    return any("ForImageClassification" in name for name in config.architectures or ())


def _check_classes(name: str, config: PreTrainedConfig, class_names: Sequence[str]) -> None:
    """Raises ValueError where the classes of a fine-tuned checkpoint are not those of the data."""
    there = [config.id2label[i] for i in sorted(config.id2label)]
    named = not all(label == f"LABEL_{i}" for i, label in enumerate(there))
    if len(there) == len(class_names) and (not named or list(class_names) == there):
        return
    difference = f"{len(there)} classes, and the data have {len(class_names)}"
    if len(there) == len(class_names):
        i = next(i for i, pair in enumerate(zip(there, class_names)) if pair[0] != pair[1])
        difference = f"other classes than the data: class {i} is '{there[i]}' there and '{class_names[i]}' in the data"
    raise ValueError(
        f"--model_name_or_path {name} is a classifier of {difference}. --ignore_mismatched_sizes puts a new head on it."
    )


def init_head(model: PreTrainedModel, std: float) -> None:
    nn.init.trunc_normal_(model.classifier.weight, std=std)
    nn.init.zeros_(model.classifier.bias)


def build_classifier(
    name: str | None,
    class_names: Sequence[str],
    *,
    from_scratch: bool = False,
    overrides: Mapping | None = None,
    image_size: int | None = None,
    pooling: str | None = None,
    drop_path_rate: float = 0.0,
    head_std: float = HEAD_STD,
    new_head: bool = False,
    needs_head: bool = False,
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    token: str | None = None,
) -> tuple[PreTrainedModel, Pixels]:
    """A classifier to be trained, and how it wants its images.

    Args:
        name: folder, Hub id or official file to start from; None (from scratch only): `overrides` tell the sizes.
        class_names: of the data, in the order of their numbers.
        from_scratch: take the architecture of `name` only, and start as an MAE encoder does before pre-training:
            Xavier weights and sine-cosine positions, which then train.
        overrides: fields of [`ViTMAERobustConfig`] for a model from scratch; `num_attention_heads` of an official file.
        image_size: other than the checkpoint's: its positions are interpolated (bicubic, 2-D).
        pooling: "mean" of the patch tokens, then a new LayerNorm (MAE's fine-tuning), or "cls", after the final norm
            (MAE's linear probe). None: "mean", or what the class of the checkpoint has.
        new_head: put a new head on a classifier of other classes; without it, that is an error.
        needs_head: `name` has to be a classifier (of any stock class), which is loaded as it is.

    Returns a model in training mode with `config.id2label` set and position embeddings that train.

    Raises ValueError: another architecture, other classes, a missing tensor, or settings that the class does not have.
    """
    access, overrides = {"trust_remote_code": trust_remote_code, "token": token}, dict(overrides or {})
    if len(set(class_names)) != len(class_names):
        raise ValueError("Two classes of the data have the same name.")
    names = dict(enumerate(class_names))
    settings = {"id2label": names, "label2id": {label: i for i, label in names.items()}}
    settings["drop_path_rate"] = drop_path_rate
    config = read_config(name, **access) if name is not None else None
    is_new = True
    if needs_head:
        if config is None or from_scratch or not _has_head(config):
            raise ValueError(f"--model_name_or_path {name} is no classifier.")
        _check_classes(name, config, class_names)
        options = {"attn_implementation": attn_implementation, **access}
        model, is_new = load_strictly(AutoModelForImageClassification, name, **options), False
        pixels = read_pixels(name, config, token)
    elif from_scratch:
        encoder = ViTMAERobustModel(_scratch_config(config, overrides, image_size))
        model, pixels = _beit_of(encoder, None, pooling, attn_implementation, settings), _pixels_of(encoder.config)
    elif name is None:
        raise ValueError("--model_name_or_path is needed, or --from_scratch.")
    elif overrides.keys() - {"num_attention_heads"} or (overrides and config is not None):
        raise ValueError(f"--config_overrides {', '.join(overrides)}: these are for --from_scratch.")
    elif config is not None and config.model_type in OWN_CLASSES:
        options = {"attn_implementation": attn_implementation, **access}
        model, is_new = _own_class(name, config, class_names, settings, image_size, pooling, new_head, options)
        pixels = read_pixels(name, config, token)
    else:
        encoder = _load_encoder(name, config, overrides.get("num_attention_heads"), access)
        model = _beit_of(encoder, image_size, pooling, attn_implementation, settings)
        pixels = _pixels_of(encoder.config) if config is None else read_pixels(name, config, token)
    if is_new:
        init_head(model, head_std)
    return model, pixels


def _beit_of(
    encoder: PreTrainedModel, image_size: int | None, pooling: str | None, attn_implementation: str, settings: dict
) -> BeitForImageClassification:
    """settings: of the config: labels, drop path. Without pooling: mean."""
    size = image_size or _square(encoder.config.image_size)
    uses_mean = pooling != "cls"
    same = {name: getattr(encoder.config, name) for name in SHARED_SETTINGS}
    config = mae_beit_config(**same, image_size=size, use_mean_pooling=uses_mean, **settings)
    model = BeitForImageClassification._from_config(config, attn_implementation=attn_implementation)
    tensors = vit_to_beit(encoder.state_dict(), keeps_final_norm=not uses_mean)
    positions = resized_positions(tensors["embeddings.position_embeddings"], size, config.patch_size)
    tensors["embeddings.position_embeddings"] = positions
    new = {f"pooler.{name}": tensor for name, tensor in model.beit.pooler.named_parameters()}
    model.beit.load_state_dict({**new, **tensors})  # an absent tensor, or one without a place, is an error
    return model.train()


def resized_positions(positions: torch.Tensor, image_size: int, patch_size: int | Sequence[int]) -> torch.Tensor:
    """Position table `(1, 1 + L, d)` of a square grid for images of another size. Raises ValueError where the patches
    do not fit into the image."""
    side = math.isqrt(positions.shape[1] - 1)
    grid = tuple(image_size // patch for patch in to_pair(patch_size))
    if any(image_size % patch for patch in to_pair(patch_size)):
        raise ValueError(f"--image_size {image_size} is no multiple of the patch size {patch_size}.")
    if grid == (side, side) or grid[0] * grid[1] == positions.shape[1] - 1:
        return positions
    return interpolate_position_embedding(positions, (side, side), grid)


def _scratch_config(config: PreTrainedConfig | None, overrides: dict, image_size: int | None) -> ViTMAERobustConfig:
    """Sizes of a checkpoint's config, if there is one, with --config_overrides."""
    if unknown := sorted(set(overrides) - set(ViTMAERobustConfig.__dataclass_fields__)):
        raise ValueError(f"--config_overrides: ViTMAERobustConfig has no setting {', '.join(unknown)}.")
    form = {}
    if config is not None:
        if config.model_type not in (*VIT_ENCODERS, "beit"):
            raise ValueError(f"--from_scratch takes sizes of a ViT or MAE checkpoint, not of '{config.model_type}'.")
        names = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads")
        names += ("intermediate_size", "image_mean", "image_std")
        form = {name: getattr(config, name) for name in names if hasattr(config, name)}
    if image_size is not None:
        form["image_size"] = image_size
    return ViTMAERobustConfig(**{**form, **overrides})


def _own_class(
    name: str,
    config: PreTrainedConfig,
    class_names: Sequence[str],
    settings: dict,
    image_size: int | None,
    pooling: str | None,
    new_head: bool,
    options: dict,
) -> tuple[PreTrainedModel, bool]:
    """The classifier of the checkpoint's own kind, and whether its head is new."""
    kind = config.model_type
    keeps_head = not new_head and _has_head(config)
    if keeps_head:
        _check_classes(name, config, class_names)
    if pooling is not None and kind not in WITH_POOLING:
        raise ValueError(f"--pooling {pooling}: '{kind}' has no such setting; it classifies from its own features.")
    if not hasattr(config, "drop_path_rate") and settings.pop("drop_path_rate"):
        raise ValueError(f"'{kind}' has no drop path: give --drop_path_rate 0.")
    may_be_missing = () if keeps_head else HEAD_KEYS
    if pooling is not None:
        settings["use_mean_pooling"] = pooling == "mean"
        if settings["use_mean_pooling"] != config.use_mean_pooling:  # the norm stands elsewhere
            may_be_missing += HEAD_KEYS[1:]
    size = _square(config.image_size)
    is_mae = kind == "beit" and config.use_absolute_position_embeddings and not config.use_relative_position_bias
    if image_size not in (None, size) and not is_mae and kind not in OF_ANY_SIZE:
        raise ValueError(f"--image_size {image_size}: '{kind}' is fine-tuned at its own size, {size}.")
    model = load_strictly(
        AutoModelForImageClassification, name, may_be_missing, ignore_mismatched_sizes=new_head, **settings, **options
    )
    if image_size not in (None, size):
        if is_mae:
            embeddings = model.beit.embeddings
            positions = resized_positions(embeddings.position_embeddings.detach(), image_size, config.patch_size)
            embeddings.position_embeddings = nn.Parameter(positions)
        model.config.image_size = image_size
    return model.train(), not keeps_head


class FrozenEncoder(nn.Module):
    """Images `(B, C, H, W)`, normalised -> features `(B, d)`: of the CLS token after the final norm, or the mean of the
    patch tokens; of a classifier with mean pooling, what its head gets."""

    def __init__(self, model: PreTrainedModel, pooling: str | None):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.image_size = _square(model.config.image_size)
        self.has_own_mean = getattr(model.config, "use_mean_pooling", False)
        self.pooling = pooling or ("mean" if self.has_own_mean else "cls")
        # CLS; DeiT's distillation token; DINOv2's registers.
        self.num_prefix_tokens = (
            1 + (model.config.model_type == "deit") + getattr(model.config, "num_register_tokens", 0)
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = self.model(pixel_values)
        if self.pooling == "mean" and self.has_own_mean:
            return outputs.pooler_output
        tokens = outputs.last_hidden_state
        return tokens[:, 0] if self.pooling == "cls" else tokens[:, self.num_prefix_tokens :].mean(dim=1)


def load_encoder(
    name: str, pooling: str | None = None, num_attention_heads: int | None = None, token: str | None = None
) -> tuple[FrozenEncoder, Pixels]:
    """The encoder of any checkpoint that `build_classifier` takes, frozen and masking nothing, and how it wants its
    images. num_attention_heads: of an official file. Raises ValueError as there."""
    config, access = read_config(name, token=token), {"token": token}
    if config is not None and config.model_type in OWN_CLASSES:
        model = load_strictly(AutoModel, name, ("pooler.",) if not _has_head(config) else (), **access)
    else:
        model = _load_encoder(name, config, num_attention_heads, {**access, "trust_remote_code": False})
    pixels = _pixels_of(model.config) if config is None else read_pixels(name, config, token)
    return FrozenEncoder(model, pooling), pixels
