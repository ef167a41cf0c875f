"""Checkpoints of others -> folders for `from_pretrained`: facebookresearch/mae, transformers' ViTs, timm."""

import argparse
import json
from pathlib import Path

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import BeitForImageClassification, PreTrainedConfig, PreTrainedModel

from .checkpoints import default_processor, from_original, read_original
from .classifiers import SHARED_SETTINGS, load_strictly, load_vit, read_config, read_pixels
from .data.preprocessing import evaluation_processor
from .hub.models import local_model
from .model import ViTMAERobustConfig, ViTMAERobustForPreTraining, ViTMAERobustModel
from .saving import check_is_free, written_whole

TIMM_PREFIXES = ("hf-hub:", "timm/", "local-dir:")
# Encoders whose tensors have the names and the meaning of a ViT-MAE's.
STOCK_KINDS = ("vit_mae", ViTMAERobustConfig.model_type, "vit", "vit_msn")


def _is_of_timm(source: str) -> bool:
    if source.startswith(TIMM_PREFIXES):
        return True
    config = Path(source) / "config.json"
    return config.is_file() and "architecture" in json.loads(config.read_text(encoding="utf-8"))


def _timm_name(source: str) -> str:
    if source.startswith(("hf-hub:", "local-dir:")):
        return source
    return f"local-dir:{source}" if Path(source).is_dir() else f"hf-hub:{source}"


def from_timm(model: VisionTransformer, **config_overrides) -> PreTrainedModel:
    """A plain Vision Transformer of timm as `ViTMAERobustModel`, or, where it has a head, as stock
    `BeitForImageClassification`; in evaluation mode, with the same features or logits. Its weights are copied.

    Raises ValueError, which names it, for a part that MAE's ViT does not have: register tokens, layer scale, a norm of
    queries and keys or before the blocks, rotary positions, another activation, no CLS token.
    """
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"{type(model).__name__} is no VisionTransformer of timm, so it has no place here.")
    block = model.blocks[0]
    foreign = {
        "no CLS token, or register tokens": model.cls_token is None or model.num_prefix_tokens != 1,
        "a CLS token without position": model.no_embed_class,
        "a norm before the blocks": not isinstance(model.norm_pre, nn.Identity),
        "a norm of queries and keys": not isinstance(getattr(block.attn, "q_norm", nn.Identity()), nn.Identity),
        "layer scale": not isinstance(getattr(block, "ls1", nn.Identity()), nn.Identity),
        f"the activation {type(block.mlp.act).__name__}": not isinstance(block.mlp.act, nn.GELU),
        f"the pooling '{model.global_pool}'": model.global_pool not in ("token", "avg", ""),
    }
    if found := [part for part, is_there in foreign.items() if is_there]:
        raise ValueError(f"This Vision Transformer of timm is not MAE's: it has {', '.join(found)}.")
    settings = {"image_size": model.patch_embed.img_size, "layer_norm_eps": block.norm1.eps}
    settings["image_size"] = _single(settings["image_size"])
    return from_original(model.state_dict(), block.attn.num_heads, **{**settings, **config_overrides})


def _single(size: tuple[int, int]) -> int | tuple[int, int]:
    return size[0] if size[0] == size[1] else tuple(size)


def _read_timm(source: str) -> tuple[PreTrainedModel, dict]:
    """(model, arguments of `evaluation_processor`)"""
    try:
        there = timm.create_model(_timm_name(source), pretrained=True)
    except Exception as error:  # timm and the Hub raise whatever they like
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{source} cannot be loaded by timm ({type(error).__name__}: {reason}).") from error
    form = timm.data.resolve_model_data_config(there)
    mean, std = list(form["mean"]), list(form["std"])
    labels = there.pretrained_cfg.get("label_names")
    overrides = {}
    if not there.num_classes:
        overrides = {"image_mean": mean, "image_std": std}
    elif labels and len(labels) == there.num_classes:
        overrides = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    model = from_timm(there, **overrides)
    return model, {"crop_pct": form["crop_pct"], "image_mean": mean, "image_std": std}


def read_stock(
    source: str, config: PreTrainedConfig, token: str | None, config_overrides: dict
) -> tuple[PreTrainedModel, dict]:
    """A checkpoint of one of STOCK_KINDS as a model of this package, with its decoder where it has one, in evaluation
    mode, and the mean and deviation of its images. Raises ValueError where a tensor is missing."""
    pixels = read_pixels(source, config, token)
    statistics = {"image_mean": list(pixels.image_mean), "image_std": list(pixels.image_std)}
    known = ViTMAERobustConfig.__dataclass_fields__
    if config.model_type in STOCK_KINDS[:2]:
        form = {key: value for key, value in config.to_dict().items() if key in known}
    else:
        form = {name: getattr(config, name) for name in (*SHARED_SETTINGS, "image_size", "qkv_bias")}
    settings = ViTMAERobustConfig(**{**form, **statistics, **config_overrides})
    has_decoder = any(name.endswith("ForPreTraining") for name in config.architectures or ())
    if config.model_type in STOCK_KINDS[:2]:
        model_class = ViTMAERobustForPreTraining if has_decoder else ViTMAERobustModel
        new = ("vit.mid_mask_token", "mid_mask_token", "target_normalizer.")
        model = load_strictly(model_class, source, new, config=settings, token=token)
    else:
        there = load_vit(source, config, None, {"token": token})
        tensors = getattr(there, "vit", there).state_dict()
        model = ViTMAERobustModel(settings)
        model.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(_NOT_MAES)})
    return model.eval(), statistics


# Of a ViT's encoder: the pooler of its CLS token, and the mask token of SimMIM.
_NOT_MAES = ("pooler.", "embeddings.mask_token")


def convert(
    source: str | Path,
    output_dir: str | Path,
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    **config_overrides,
) -> PreTrainedModel:
    """A checkpoint of others -> a folder for `from_pretrained`, with the image processor of MAE's evaluation and the
    checkpoint's own mean and deviation. The folder appears when it is complete, never half-written.

    Args:
        source: a file of the official MAE (.pth, .safetensors), which needs the heads, see `from_original`; a folder or
            Hub id of transformers' ViT-MAE (with decoder or without), ViT (DINO, MoCo v3 and iBOT in its form) or MSN,
            in the form of transformers 4 or 5; a folder of timm (`local-dir:` may stand before it) or its Hub id
            (`timm/...`, `hf-hub:...`).
        revision, token: of a model on the Hub (not timm's).
        config_overrides: fields of `ViTMAERobustConfig`, see `from_original`.

    Returns the model: `ViTMAERobustForPreTraining` where there is a decoder; `BeitForImageClassification` of official
    files and timm models that have a head; else `ViTMAERobustModel`.

    Raises:
        ValueError: what is no plain ViT, lacks a tensor or is damaged. FileNotFoundError: no such file.
        FileExistsError: `output_dir` is a file or a folder that is not empty.
    """
    source = str(source)
    check_is_free(output_dir)
    preprocessing = {}
    if _is_of_timm(source):
        model, preprocessing = _read_timm(source)
    elif Path(source).is_file() or source.endswith((".pth", ".pt", ".bin", ".safetensors")):
        heads = num_attention_heads, decoder_num_attention_heads
        model = from_original(read_original(source), *heads, **config_overrides)
    else:
        source, _ = local_model(source, revision, token)
        config = read_config(source, STOCK_KINDS, token=token)
        model, preprocessing = read_stock(source, config, token, config_overrides)
    processor = default_processor(model.config)
    if preprocessing:
        form = model.config
        processor = evaluation_processor(form.image_size, num_channels=form.num_channels, **preprocessing)
    with written_whole(output_dir) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return model


def add_convert_arguments(parser: argparse.ArgumentParser):
    """The arguments of `python -m hf_mae_robust convert`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="file of facebookresearch/mae; folder or Hub id of ViT-MAE, ViT or MSN (transformers), or of timm",
    )
    parser.add_argument("output_dir", metavar="OUT", help="folder to write, for from_pretrained; must not exist yet")
    parser.add_argument(
        "--num_attention_heads", type=int, help="needed for an official file; ViT-B 12, ViT-L and ViT-H 16"
    )
    parser.add_argument(
        "--decoder_num_attention_heads", type=int, help="needed for an official file with a decoder; MAE: 16"
    )
    parser.add_argument(
        "--norm_pix_loss",
        action=argparse.BooleanOptionalAction,
        help="whether the model was trained on targets normalised per patch (official files: yes); not for classifiers",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub (not timm's)")
    parser.add_argument("--token", help="Hub token; default: that of `hf auth login` or HF_TOKEN")


def run_convert(args: argparse.Namespace):
    """Turn a checkpoint of the official MAE code, transformers or timm into a folder that from_pretrained loads."""
    heads = args.num_attention_heads, args.decoder_num_attention_heads
    overrides = {} if args.norm_pix_loss is None else {"norm_pix_loss": args.norm_pix_loss}
    model = convert(args.source, args.output_dir, *heads, revision=args.revision, token=args.token, **overrides)
    config = model.config
    sizes = f"image {config.image_size}, patch {config.patch_size}, encoder {config.hidden_size} x "
    sizes += f"{config.num_hidden_layers} blocks x {config.num_attention_heads} heads"
    if isinstance(model, ViTMAERobustForPreTraining):
        sizes += f", decoder {config.decoder_hidden_size} x {config.decoder_num_hidden_layers} blocks x "
        sizes += f"{config.decoder_num_attention_heads} heads"
    if isinstance(model, BeitForImageClassification):
        sizes += f", {config.num_labels} classes from the {'mean of the patches' if config.use_mean_pooling else 'CLS'}"
    print(f"{args.output_dir}: {type(model).__name__}, {model.num_parameters():,} parameters, {sizes}")
