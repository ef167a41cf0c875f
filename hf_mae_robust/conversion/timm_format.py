"""Between this package's encoders and timm's plain Vision Transformers."""

import json
import math
from pathlib import Path
from typing import Any

import timm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from transformers import BeitConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import PILImageResampling

from ..errors import UserError, refused_by_library
from ..model import ViTMAERobustImageProcessor
from ..model.configuration_vit_mae_robust import to_pair
from .loading import first_line
from .original import ENCODER_KEY_MAP, from_original, rename_to_original, to_original
from .pixels import Pixels, pixels_of, read_processor
from .stock import encoder_tensors, is_classifier

# Of images of bands, which timm's configuration has no place for. Beside it transformers would not look.
PROCESSOR_FOLDER = "image_processor"
TIMM_PREFIXES = ("hf-hub:", "timm/", "local-dir:")


def is_of_timm(source: str) -> bool:
    if source.startswith(TIMM_PREFIXES):
        return True
    config = Path(source) / "config.json"
    if not config.is_file():
        return False
    with refused_by_library(f"{config} cannot be used"):
        content = json.loads(config.read_text(encoding="utf-8"))
    return isinstance(content, dict) and "architecture" in content


def _timm_name(source: str) -> str:
    if source.startswith(("hf-hub:", "local-dir:")):
        return source
    return f"local-dir:{source}" if Path(source).is_dir() else f"hf-hub:{source}"


def from_timm(model: VisionTransformer, **config_overrides: Any) -> PreTrainedModel:
    """A plain Vision Transformer of timm as `ViTMAERobustModel`, or, where it has a head, as stock
    `BeitForImageClassification`; in evaluation mode, with the same features or logits. Its weights are copied.

    Raises ValueError, which names it, for a part that MAE's ViT does not have: register tokens, layer scale, a norm of
    queries and keys or before the blocks, rotary positions, another activation, no CLS token, another pooling, blocks
    of another class than timm's `Block`.
    """
    if not isinstance(model, VisionTransformer):
        raise UserError(f"{type(model).__name__} is not a VisionTransformer of timm, so it has no place here.")
    # First of all: others lack the parts that are looked at below, or have them all and use them in another order.
    if (block_class := type(model.blocks[0])) is not Block:
        raise UserError(
            f"This Vision Transformer of timm is not MAE's: it has blocks of the class {block_class.__name__}."
        )
    block: Any = model.blocks[0]
    activation, has_head = block.mlp.act, model.num_classes > 0
    norm = "before" if isinstance(model.fc_norm, nn.Identity) else "after"
    # Of a classifier, `from_original` tells the pooling by the place of the norm.
    is_known = model.global_pool in ("token", "avg", "")
    if has_head:
        is_known = (model.global_pool, norm) in (("token", "before"), ("avg", "after"))
    foreign = {
        "no CLS token, or register tokens": model.cls_token is None or model.num_prefix_tokens != 1,
        "a CLS token without position": model.no_embed_class,
        "a norm before the blocks": not isinstance(model.norm_pre, nn.Identity),
        "a norm of queries and keys": not isinstance(getattr(block.attn, "q_norm", nn.Identity()), nn.Identity),
        "layer scale": not isinstance(getattr(block, "ls1", nn.Identity()), nn.Identity),
        f"the activation {activation}": not isinstance(activation, nn.GELU) or activation.approximate != "none",
        f"the pooling '{model.global_pool}' with the norm {norm} it": not is_known,
        "a mean that includes CLS": has_head and model.global_pool == "avg" and model.pool_include_prefix,
    }
    if found := [part for part, is_there in foreign.items() if is_there]:
        raise UserError(f"This Vision Transformer of timm is not MAE's: it has {', '.join(found)}.")
    settings: dict[str, Any] = {"image_size": model.patch_embed.img_size, "layer_norm_eps": block.norm1.eps}
    settings["image_size"] = _single(settings["image_size"])
    return from_original(model.state_dict(), block.attn.num_heads, **{**settings, **config_overrides})


def _single(size: tuple[int, int]) -> int | tuple[int, int]:
    return size[0] if size[0] == size[1] else (size[0], size[1])


def read_timm(source: str) -> tuple[PreTrainedModel, Pixels, float]:
    """The model, how it wants its images, and `crop_pct` of its evaluation."""
    try:
        there: Any = timm.create_model(_timm_name(source), pretrained=True)
    except Exception as error:  # timm and the Hub raise whatever they like
        raise UserError(f"{source} cannot be loaded by timm ({type(error).__name__}: {first_line(error)}).") from error
    form = timm.data.resolve_model_data_config(there)
    mean, std = list(form["mean"]), list(form["std"])
    labels = there.pretrained_cfg.get("label_names")
    pixels = Pixels(len(mean), mean, std)
    folder = Path(source.removeprefix("local-dir:")) / PROCESSOR_FOLDER
    if folder.is_dir() and isinstance(processor := read_processor(str(folder)), ViTMAERobustImageProcessor):
        pixels = pixels_of(BeitConfig(num_channels=len(mean)), processor)
    overrides: dict[str, Any] = {}
    if not there.num_classes:
        overrides = pixels.config_settings()
    elif labels and len(labels) == there.num_classes:
        overrides = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    model = from_timm(there, **overrides)
    return model, pixels, form["crop_pct"]


# Any plain ViT would do: the arguments say all that differs.
TIMM_ARCHITECTURE = "vit_base_patch16_224"


def _timm_preprocessing(processor: Any, image_size: int | tuple[int, int], num_channels: int) -> dict[str, Any]:
    """An image processor in timm's terms. Raises ValueError where these cannot say it."""

    def refuse(reason: str) -> UserError:
        return UserError(f"timm cannot do what this image processor does ({reason}). Export to beit or vit.")

    of_bands = isinstance(processor, ViTMAERobustImageProcessor)
    steps = ("do_resize",) if of_bands else ("do_resize", "do_rescale", "do_normalize")
    for step in steps:
        if not getattr(processor, step, False):
            raise refuse(f"{step}=False")
    if not of_bands and not math.isclose(processor.rescale_factor, 1 / 255):
        raise refuse(f"rescale_factor={processor.rescale_factor}")
    if getattr(processor, "do_pad", False):
        raise refuse("do_pad=True")
    size = {side: pixels for side, pixels in dict(processor.size).items() if pixels is not None}
    crop = processor.crop_size if getattr(processor, "do_center_crop", False) else size
    if "height" not in crop or (crop["height"], crop["width"]) != to_pair(image_size):
        raise refuse(f"images of {crop}, where the model takes {to_pair(image_size)}")
    height, width = to_pair(image_size)
    if size.keys() == {"shortest_edge"} and height == width:
        resized, mode = (size["shortest_edge"],) * 2, "center"
    elif size.keys() == {"height", "width"}:
        resized, mode = (size["height"], size["width"]), "squash"
    else:
        raise refuse(f"size={size} with a crop of {height} x {width}")
    # timm resizes to floor(side / crop_pct): half a pixel more, where the plain ratio is rounded to the pixel below.
    for crop_pct in (height / resized[0], height / (resized[0] + 0.5)):
        if (math.floor(height / crop_pct), math.floor(width / crop_pct)) == resized:
            return {
                "crop_pct": crop_pct,
                "crop_mode": mode,
                "interpolation": PILImageResampling(processor.resample).name.lower(),
                # Of values in [0, 1]. Of bands: nothing that timm could be misled by.
                "mean": [0.0] * num_channels if of_bands else list(processor.image_mean),
                "std": [1.0] * num_channels if of_bands else list(processor.image_std),
            }
    raise refuse(f"size={size} and a crop of {height} x {width} do not have one ratio")


def timm_arguments(config: PreTrainedConfig) -> dict[str, Any]:
    """Arguments of TIMM_ARCHITECTURE for an encoder of these sizes."""
    mlp_ratio = config.intermediate_size / config.hidden_size
    if int(config.hidden_size * mlp_ratio) != config.intermediate_size:  # timm's formula; the quotient was rounded
        mlp_ratio = (config.intermediate_size + 0.5) / config.hidden_size
    return {
        "img_size": to_pair(config.image_size),
        "patch_size": config.patch_size if isinstance(config.patch_size, int) else to_pair(config.patch_size),
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": mlp_ratio,
    }


def to_timm(model: PreTrainedModel, processor: BaseImageProcessor) -> tuple[nn.Module, dict[str, Any]]:
    """timm's VisionTransformer with these weights, in evaluation mode, and its config.json."""
    config, has_head = model.config, is_classifier(model)
    arguments = timm_arguments(config)
    arguments["global_pool"] = "avg" if has_head and config.use_mean_pooling else "token"
    num_classes = config.num_labels if has_head else 0
    # Not timm's save_for_hf: that of 1.0.31 puts num_classes into model_args, where transformers 5.23 stumbles over it.
    description = {
        "architecture": TIMM_ARCHITECTURE,
        "num_classes": num_classes,
        "num_features": config.hidden_size,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": (config.num_channels, *to_pair(config.image_size)),
            "fixed_input_size": True,
            "num_classes": num_classes,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **_timm_preprocessing(processor, config.image_size, config.num_channels),
        },
    }
    if has_head:  # without them transformers takes any model of 1000 classes for ImageNet's
        labels: Any = config.id2label
        description["label_names"] = [labels[number] for number in range(num_classes or 0)]
    exported = timm.create_model(TIMM_ARCHITECTURE, num_classes=num_classes, **arguments).to(model.dtype)
    tensors = to_original(model) if has_head else rename_to_original(encoder_tensors(model), ENCODER_KEY_MAP)
    exported.load_state_dict(tensors)
    return exported.eval(), description
