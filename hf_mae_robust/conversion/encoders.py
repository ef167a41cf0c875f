"""Reading a pre-trained encoder of any kind, strictly: no tensor is missing, none is left over."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    BeitForImageClassification,
    Data2VecVisionForImageClassification,
    DeiTForImageClassification,
    Dinov2ForImageClassification,
    Dinov2WithRegistersForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTForImageClassification,
    ViTModel,
    ViTMSNForImageClassification,
    ViTMSNModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..model import ViTMAERobustConfig, ViTMAERobustModel
from ..model.configuration_vit_mae_robust import to_pair
from ..model.modeling_vit_mae_robust import interpolate_position_embedding
from .original import from_original, read_original

VIT_ENCODERS = {
    "vit_mae_robust": ViTMAERobustModel,
    "vit_mae": ViTMAERobustModel,
    "vit": ViTModel,
    "vit_msn": ViTMSNModel,
}
VIT_CLASSIFIERS = {"vit": ViTForImageClassification, "vit_msn": ViTMSNForImageClassification}
OWN_CLASSES = {
    "beit": BeitForImageClassification,
    "data2vec-vision": Data2VecVisionForImageClassification,
    "deit": DeiTForImageClassification,
    "dinov2": Dinov2ForImageClassification,
    "dinov2_with_registers": Dinov2WithRegistersForImageClassification,
}
# Of these, the ones that choose between CLS and mean by a setting.
WITH_POOLING = ("beit", "data2vec-vision")
DINOV2 = ("dinov2", "dinov2_with_registers")
# A tensor of these that finds no place: the model computes something else than the one that was saved.
_PARTS_OF_ENCODER = re.compile(r"(?:^|\.)(?:embeddings\.(?!mask_token)|layers?\.\d+\.)")


@dataclass(frozen=True)
class Pixels:
    """How images must be prepared: channels, and the mean and deviation per channel of values in [0, 1]."""

    num_channels: int = 3
    image_mean: Sequence[float] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: Sequence[float] = tuple(IMAGENET_DEFAULT_STD)


def unreadable(name: str, error: Exception) -> ValueError:
    """What `from_pretrained` raises for weights that are damaged or missing, as a sentence."""
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    return ValueError(
        f"{name}: its weights are not there, or cannot be read: {reason}. Copy or download the model again."
    )


def load_strictly(model_class, name: str, may_be_missing: tuple[str, ...] = (), **options) -> PreTrainedModel:
    """`from_pretrained` in float32 that raises ValueError, with names, where a tensor is missing or of another shape,
    except for those that begin with `may_be_missing`; where a block or the embeddings have a tensor that the model has
    no place for; and where the weights cannot be read."""
    options = {"dtype": torch.float32, **options, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        model, info = model_class.from_pretrained(name, **options)
    except (OSError, SafetensorError) as error:
        raise unreadable(name, error) from error
    problems = {
        "lacks": [key for key in info["missing_keys"] if not key.startswith(may_be_missing)],
        "has another shape of": [key for key, *_ in info["mismatched_keys"] if not key.startswith(may_be_missing)],
        "has, beside those of the model,": [key for key in info["unexpected_keys"] if _PARTS_OF_ENCODER.search(key)],
    }
    if any(problems.values()):
        named = [f"{what} {_listed(keys)}" for what, keys in problems.items() if keys]
        raise ValueError(
            f"{name} is incomplete, or a checkpoint of another architecture than its config.json says: for a "
            f"{model_class.__name__} it {'; it '.join(named)}."
        )
    return model


def _listed(keys: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{len(keys)} tensors: {', '.join(sorted(keys)[:limit])}{more}"


def square_size(image_size: int | Sequence[int]) -> int:
    height, width = to_pair(image_size)
    if height != width:
        raise ValueError(
            f"image_size {height} x {width}: the classifier is a stock BEiT, which takes square images only; give "
            "--image_size."
        )
    return height


def load_vit(name: str, config: PreTrainedConfig | None, heads: int | None, options: dict) -> PreTrainedModel:
    """A ViT from a folder, the Hub or an official file: an encoder, or a classifier where the checkpoint is one."""
    if config is None:
        if heads is None:
            raise ValueError(
                f"--model_name_or_path {name} is an official checkpoint. Its tensors do not tell the number of heads: "
                "give --config_overrides num_attention_heads=12 (ViT-B; ViT-L and ViT-H 16)."
            )
        tensors = read_original(name)
        decoder = ("decoder_", "mask_token")
        return from_original(
            {key: value for key, value in tensors.items() if not key.startswith(decoder)}, heads
        ).float()
    encoder_class = VIT_ENCODERS[config.model_type]
    if encoder_class is ViTMAERobustModel:
        options = {"token": options["token"]}
        form = {key: value for key, value in config.to_dict().items() if key in ViTMAERobustConfig.__dataclass_fields__}
        return load_strictly(encoder_class, name, ("mid_mask_token",), config=ViTMAERobustConfig(**form), **options)
    if has_head(config):
        return load_strictly(VIT_CLASSIFIERS[config.model_type], name, **options)
    return load_strictly(encoder_class, name, ("pooler.",), **options)


def read_config(
    name: str,
    kinds: Sequence[str] = (*VIT_ENCODERS, *OWN_CLASSES),
    *,
    trust_remote_code: bool = False,
    token: str | None = None,
) -> PreTrainedConfig | None:
    """The config of a checkpoint; None for a file in the official layout.

    Raises ValueError for an architecture (`model_type`) that is not among `kinds`.
    """
    if Path(name).is_file():
        return None
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, token=token)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and (not Path(name).is_dir() or (Path(name) / "config.json").exists()):
            raise
        raise ValueError(
            f"{name}: no file, no folder with a config.json, and not to be had from the Hub "
            f"({str(error).strip().splitlines()[0]}) Give a folder that run_pretrain.py has written (outputs/digits "
            "without arguments), a Hub id or an official file."
        ) from error
    if config.model_type not in kinds:
        raise ValueError(
            f"{name} is a '{config.model_type}' model, which is "
            f"{'not of the ViT family' if 'vit' in kinds else 'not what is needed here'}: {', '.join(kinds)}."
        )
    return config


def read_pixels(name: str, config: PreTrainedConfig, token: str | None = None) -> Pixels:
    """How a checkpoint wants its images: as its config says, or its image processor, or as ImageNet's."""
    return pixels_of(config, None if hasattr(config, "image_mean") else read_processor(name, token))


def read_processor(name: str, token: str | None = None) -> BaseImageProcessor | None:
    """The image processor of a checkpoint, if it brings one."""
    if Path(name).is_file():
        return None
    try:
        return AutoImageProcessor.from_pretrained(name, token=token)
    except OSError:
        return None


def pixels_of(config: PreTrainedConfig, processor: object | None = None) -> Pixels:
    channels, holder = config.num_channels, processor if processor is not None else config
    mean, std = getattr(holder, "image_mean", None), getattr(holder, "image_std", None)
    if mean is None or std is None or len(mean) != channels:
        is_rgb = channels == 3
        mean, std = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if is_rgb else ([0.5] * channels, [0.5] * channels)
    return Pixels(channels, tuple(mean), tuple(std))


def has_head(config: PreTrainedConfig) -> bool:
    """Not DeiTForImageClassificationWithTeacher: transformers has it for inference only."""
    return any(name.endswith("ForImageClassification") for name in config.architectures or ())


def check_classes(name: str, config: PreTrainedConfig, class_names: Sequence[str], kind: str = "classifier") -> None:
    """Raises ValueError where the classes of a fine-tuned checkpoint are not those of the data."""
    there = [config.id2label[i] for i in sorted(config.id2label)]
    named = not all(label == f"LABEL_{i}" for i, label in enumerate(there))
    if len(there) == len(class_names) and (not named or list(class_names) == there):
        return
    difference = f"{len(there)} classes, and the data have {len(class_names)}"
    if len(there) == len(class_names):
        i = next(i for i, pair in enumerate(zip(there, class_names)) if pair[0] != pair[1])
        difference = f"other classes than the data: class {i} is '{there[i]}' there and '{class_names[i]}' in the data"
    hint = " --ignore_mismatched_sizes puts a new head on it." if kind == "classifier" else ""
    raise ValueError(f"--model_name_or_path {name} is a {kind} of {difference}.{hint}")


def grid_size(image_size: int | Sequence[int], patch_size: int | Sequence[int]) -> tuple[int, int]:
    """Patches (vertically, horizontally). Raises ValueError where they do not fit into the image."""
    (height, width), (patch_height, patch_width) = to_pair(image_size), to_pair(patch_size)
    if height % patch_height or width % patch_width or min(height, width) < 1:
        raise ValueError(f"--image_size {image_size} is no multiple of the patch size {patch_size}.")
    return height // patch_height, width // patch_width


def resized_positions(
    positions: torch.Tensor, grid: tuple[int, int], image_size: int, patch_size: int | Sequence[int]
) -> torch.Tensor:
    """Position table `(1, 1 + h * w, d)` of a grid of patches (h, w), for images of another size."""
    return interpolate_position_embedding(positions, grid, grid_size(image_size, patch_size))


def scratch_config(config: PreTrainedConfig | None, overrides: dict, image_size: int | None) -> ViTMAERobustConfig:
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


def start_encoder(
    name: str | None,
    config: PreTrainedConfig | None,
    *,
    from_scratch: bool,
    overrides: Mapping,
    image_size: int | None,
    token: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Pixels]:
    """A ViT encoder to put something on, and how it wants its images. config: of `name`, see `read_config`; overrides:
    as for `build_classifier`; image_size: from scratch, where it is not in them. Raises ValueError."""
    if from_scratch:
        if name is not None and config is None:
            raise ValueError(f"--from_scratch takes no sizes from a file ({name}): give --config_overrides alone.")
        encoder = ViTMAERobustModel(scratch_config(config, dict(overrides), image_size))
        return encoder, pixels_of(encoder.config)
    if overrides.keys() - (set() if config is not None else {"num_attention_heads"}):
        raise ValueError(f"--config_overrides {', '.join(overrides)}: these are for --from_scratch.")
    access = {"token": token, "trust_remote_code": trust_remote_code}
    encoder = load_vit(name, config, overrides.get("num_attention_heads"), access).base_model
    return encoder, pixels_of(encoder.config) if config is None else read_pixels(name, config, token)


class FrozenEncoder(nn.Module):
    """Images `(B, C, H, W)`, normalised -> features `(B, d)`: of the CLS token after the final norm, or the mean of the
    patch tokens; of a classifier with mean pooling, what its head gets."""

    def __init__(self, model: PreTrainedModel, pooling: str | None):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.image_size = square_size(model.config.image_size)
        self.has_own_mean = getattr(model.config, "use_mean_pooling", False)
        self.pooling = pooling or ("mean" if self.has_own_mean else "cls")
        # CLS; DeiT's distillation token; DINOv2's registers.
        others = 1 if model.config.model_type == "deit" else getattr(model.config, "num_register_tokens", 0)
        self.num_prefix_tokens = 1 + others

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
        # The pooler of BEiT and data2vec is the norm after the mean; new where no classifier was trained. DeiT's is not
        # used, and DINOv2 has none.
        has_pooler = config.model_type in WITH_POOLING
        options = {} if config.model_type in DINOV2 else {"add_pooling_layer": has_pooler}
        may_be_missing = ("pooler.",) if has_pooler and not has_head(config) else ()
        model = load_strictly(AutoModel, name, may_be_missing, **options, **access)
    else:
        model = load_vit(name, config, num_attention_heads, {**access, "trust_remote_code": False}).base_model
    pixels = pixels_of(model.config) if config is None else read_pixels(name, config, token)
    return FrozenEncoder(model, pooling), pixels
