"""Models -> what runs without this package: stock BEiT and ViT of transformers, timm, the official MAE code, ONNX.

A MAE's encoder is a plain ViT, so the tensors stay what they are and get other names. What is for pre-training only
(the decoder, the mid-level mask token, the patch statistics) does not touch the features of unmasked images. A target
that cannot compute what the model computes is refused; what it has no place for is named.
"""

import argparse
import json
import math
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    BeitForImageClassification,
    BeitModel,
    BeitPreTrainedModel,
    Data2VecVisionForImageClassification,
    DeiTForImageClassification,
    Dinov2ForImageClassification,
    Dinov2WithRegistersForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    UperNetForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import PILImageResampling
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from .checkpoints import (
    ENCODER_KEY_MAP,
    default_processor,
    mae_beit_config,
    rename_to_original,
    to_original,
    with_key_biases,
    without_key_biases,
)
from .hub.models import local_model
from .model import ViTMAERobustForPreTraining, ViTMAERobustModel
from .model.configuration_vit_mae_robust import to_pair
from .onnx_export import check_packages, save_onnx
from .saving import check_is_free, written_whole

TARGETS = ("beit", "vit", "timm", "original", "onnx")
SOURCES = (
    ViTMAERobustForPreTraining,
    ViTMAERobustModel,
    ViTMAEForPreTraining,
    ViTMAEModel,
    BeitForImageClassification,
    BeitModel,
)
# A graph can hold whatever the others cannot; these are what run_finetune.py writes, and ViT's own classifier. Not the
# detector: its proposals and what is left of them are lists of unknown length, chosen in Python.
ONNX_SOURCES = (
    *SOURCES,
    ViTForImageClassification,
    Data2VecVisionForImageClassification,
    DeiTForImageClassification,
    Dinov2ForImageClassification,
    Dinov2WithRegistersForImageClassification,
    UperNetForSemanticSegmentation,
)
# Of timm's ViT and of the official code; no argument that a config.json can hold changes it.
_ORIGINAL_EPS = 1e-6
# Any plain ViT would do: the arguments say all that differs.
_TIMM_ARCHITECTURE = "vit_base_patch16_224"
_SHARED_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "initializer_range",
    "image_size",
    "patch_size",
    "num_channels",
)
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _load(checkpoint: str, to: str) -> PreTrainedModel:
    """The model of a folder or Hub id, as the class that config.json names, whole, in evaluation mode."""
    sources = ONNX_SOURCES if to == "onnx" else SOURCES
    try:
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(
            f"{checkpoint}: no folder with a config.json, and not found on the Hub. {_first_line(error)}"
        ) from error
    name = (config.architectures or ["no class"])[0]
    model_class = next((source for source in sources if source.__name__ == name), None)
    if model_class is None:
        names = ", ".join(source.__name__ for source in sources)
        raise ValueError(f"{checkpoint}: its config.json names {name}; one of {names} can be exported to {to}.")
    try:
        model, info = model_class.from_pretrained(checkpoint, config=config, output_loading_info=True)
    except OSError as error:
        raise FileNotFoundError(f"{checkpoint}: its weights cannot be read. {_first_line(error)}") from error
    except SafetensorError as error:
        raise ValueError(f"{checkpoint}: its weights are truncated or damaged. {_first_line(error)}") from error
    except RuntimeError as error:  # tensors of other shapes
        raise ValueError(f"{checkpoint}: the tensors do not fit its config.json. {error}") from error
    problems = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, found)))}" for kind, found in info.items() if found
    ]
    if problems:
        raise ValueError(
            f"{checkpoint} was not exported, because its tensors are not those of {name}: {'; '.join(problems)}."
        )
    return model.eval()


def _encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    return getattr(model, "vit", getattr(model, "beit", model))


def _is_mae(model: PreTrainedModel) -> bool:
    return isinstance(model, (ViTMAEForPreTraining, ViTMAEModel))


def _is_classifier(model: PreTrainedModel) -> bool:
    return isinstance(model, BeitForImageClassification)


def _check_source(model: PreTrainedModel) -> None:
    config, name = model.config, type(model).__name__
    if not isinstance(model, SOURCES):
        raise ValueError(f"{name} cannot be exported; one of {', '.join(source.__name__ for source in SOURCES)} can.")
    if not isinstance(model, BeitPreTrainedModel):
        if not config.qkv_bias:
            raise ValueError("qkv_bias=False: none of the targets is MAE's ViT without these biases.")
        return
    foreign = [
        field
        for field, is_foreign in {
            "use_absolute_position_embeddings=False": not config.use_absolute_position_embeddings,
            "use_relative_position_bias=True": config.use_relative_position_bias,
            "use_shared_relative_position_bias=True": config.use_shared_relative_position_bias,
            f"layer_scale_init_value={config.layer_scale_init_value}": config.layer_scale_init_value > 0,
            "use_mask_token=True": config.use_mask_token,
        }.items()
        if is_foreign
    ]
    if foreign:
        raise ValueError(
            f"This is a BEiT that is no plain ViT as MAE's is ({', '.join(foreign)}), so it is not exported."
        )
    if config.use_mean_pooling and not _is_classifier(model):
        raise ValueError(
            "A BeitModel with use_mean_pooling=True has a LayerNorm after the pooling and none before it: its features "
            "are not those of an encoder. Export the classifier it was taken from."
        )


def _check_original_settings(config: PreTrainedConfig) -> None:
    """What no file of timm or of the official code can say, because their ViT has one value of it."""
    if config.hidden_act != "gelu":
        raise ValueError(f"hidden_act={config.hidden_act!r}: timm's ViT and the official code have 'gelu'.")
    # Smaller ones vanish beside the variances of trained features; stock ViT-MAE checkpoints say 1e-12.
    if config.layer_norm_eps > _ORIGINAL_EPS:
        raise ValueError(
            f"layer_norm_eps={config.layer_norm_eps}: timm's ViT and the official code have {_ORIGINAL_EPS}."
        )


def _encoder_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Tensors of the encoder by the names that ViT-MAE, ViT and BEiT share, with all biases. The mid-level token, which
    only masked images need, is left behind."""
    tensors = with_key_biases(_encoder_of(model).state_dict())
    tensors.pop("mid_mask_token", None)
    return tensors


def to_stock(model: PreTrainedModel, target: str) -> PreTrainedModel:
    """The model as a stock class of transformers, in evaluation mode, with copies of the weights.

    Args:
        model: `ViTMAERobustForPreTraining` or `ViTMAERobustModel`, their stock counterparts, or a `BeitModel` or
            `BeitForImageClassification` of the form of `mae_beit_config`. Of pre-training models the encoder is taken.
        target: `"beit"` -> `BeitModel` (whose `last_hidden_state` `(B, 1 + L, d)` is the unmasked encoder's), or
            `BeitForImageClassification`; `"vit"` -> `ViTModel` without pooler, or `ViTForImageClassification`.
            Loading such a `ViTModel` needs `add_pooling_layer=False`; otherwise transformers adds a pooler of random
            weights, which changes `pooler_output` only.

    What concerns training only (dropout, drop path) is 0 in the result.

    Raises:
        ValueError: the target cannot compute what the model does; the message says why.
    """
    if target not in ("beit", "vit"):
        raise ValueError(f"target={target!r}: to_stock knows 'beit' and 'vit'.")
    _check_source(model)
    is_classifier, config = _is_classifier(model), model.config
    fields = {field: getattr(config, field) for field in _SHARED_FIELDS}
    if is_classifier:
        fields |= {field: getattr(config, field) for field in ("id2label", "label2id", "problem_type")}
    if target == "beit":
        config = mae_beit_config(**fields, use_mean_pooling=is_classifier and config.use_mean_pooling)
        stock = (BeitForImageClassification if is_classifier else BeitModel)(config)
    elif is_classifier and config.use_mean_pooling:
        raise ValueError(
            "This classifier takes the mean of the patch tokens, and the stock ViT classifies from the CLS token only. "
            "Export it to beit or timm, or fine-tune with CLS pooling."
        )
    else:
        config = ViTConfig(**fields, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        stock = ViTForImageClassification(config) if is_classifier else ViTModel(config, add_pooling_layer=False)

    stock.to(model.dtype)
    tensors = _encoder_tensors(model)
    _encoder_of(stock).load_state_dict(without_key_biases(tensors) if target == "beit" else tensors)
    if is_classifier:
        stock.classifier.load_state_dict(model.classifier.state_dict())
    return stock.eval()


def _timm_preprocessing(processor: BaseImageProcessor, image_size: int | tuple[int, int]) -> dict:
    """An image processor in timm's terms. Raises ValueError where these cannot say it."""

    def refuse(reason: str) -> ValueError:
        return ValueError(f"timm cannot do what this image processor does ({reason}). Export to beit or vit.")

    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not getattr(processor, step, False):
            raise refuse(f"{step}=False")
    if not math.isclose(processor.rescale_factor, 1 / 255):
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
                "mean": list(processor.image_mean),
                "std": list(processor.image_std),
            }
    raise refuse(f"size={size} and a crop of {height} x {width} do not have one ratio")


def _to_timm(model: PreTrainedModel, processor: BaseImageProcessor) -> tuple[nn.Module, dict]:
    """timm's VisionTransformer with these weights, in evaluation mode, and its config.json."""
    config, is_classifier = model.config, _is_classifier(model)
    mlp_ratio = config.intermediate_size / config.hidden_size
    if int(config.hidden_size * mlp_ratio) != config.intermediate_size:  # timm's formula; the quotient was rounded
        mlp_ratio = (config.intermediate_size + 0.5) / config.hidden_size
    arguments = {
        "img_size": to_pair(config.image_size),
        "patch_size": config.patch_size if isinstance(config.patch_size, int) else to_pair(config.patch_size),
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": mlp_ratio,
        "global_pool": "avg" if is_classifier and config.use_mean_pooling else "token",
    }
    num_classes = config.num_labels if is_classifier else 0
    # Not timm's save_for_hf: that of 1.0.31 puts num_classes into model_args, where transformers 5.23 stumbles over it.
    description = {
        "architecture": _TIMM_ARCHITECTURE,
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
            **_timm_preprocessing(processor, config.image_size),
        },
    }
    if is_classifier:  # without them transformers takes any model of 1000 classes for ImageNet's
        description["label_names"] = [config.id2label[number] for number in range(num_classes)]
    exported = timm.create_model(_TIMM_ARCHITECTURE, num_classes=num_classes, **arguments).to(model.dtype)
    tensors = to_original(model) if is_classifier else rename_to_original(_encoder_tensors(model), ENCODER_KEY_MAP)
    exported.load_state_dict(tensors)
    return exported.eval(), description


def _has_label_names(model: PreTrainedModel) -> bool:
    return _is_classifier(model) and any(name != f"LABEL_{i}" for i, name in model.config.id2label.items())


def _left_out(model: PreTrainedModel, target: str) -> list[str]:
    """What the target has no place for, and does not need to compute the same."""
    config, left_out = model.config, []
    if target != "original":
        parts = {"decoder": "the decoder", "target_normalizer": "the patch statistics of the target"}
        parts["auxiliary_head"] = "the auxiliary head"
        left_out += [words for name, words in parts.items() if getattr(model, name, None) is not None]
        if hasattr(_encoder_of(model), "mid_mask_token"):
            left_out.append("the mid-level mask token")
    else:
        left_out += ["the image processor", f"the number of heads ({config.num_attention_heads})"]
        if _has_label_names(model):
            left_out.append("the names of the classes")
    if rates := [f"{name}={rate}" for name in _DROPOUTS if (rate := getattr(config, name, 0.0))]:
        left_out.append(f"{', '.join(rates)} (training only)")
    if target in ("timm", "original") and config.layer_norm_eps != _ORIGINAL_EPS:
        left_out.append(f"layer_norm_eps={config.layer_norm_eps} ({_ORIGINAL_EPS} there; a difference of rounding)")
    return left_out


def _processor_of(checkpoint: str, model: PreTrainedModel) -> BaseImageProcessor:
    if cached_file(checkpoint, IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False):
        return AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    return default_processor(getattr(model.config, "backbone_config", model.config))


def export(checkpoint: str | Path, out: str | Path, to: str) -> list[str]:
    """Write a checkpoint in a form that runs without this package. It appears when it is complete.

    Args:
        checkpoint: folder or Hub id of a `vit_mae_robust` or `vit_mae` (pre-training model or encoder), or of a `beit`
            of MAE's form (encoder or classifier).
        out: folder to write, which may exist if it is empty; for `"original"` a file.
        to: `"beit"`, `"vit"`: folder for `from_pretrained` and pipelines, see `to_stock`; with the checkpoint's image
            processor, or MAE's evaluation where it has none. `"timm"`: folder for
            `timm.create_model("local-dir:OUT", pretrained=True)`, and for transformers too; the preprocessing stands in
            its config.json, where both look for it. `"original"`: `{"model": state_dict}` of the official code, see
            `to_original`. `"onnx"`: folder with `model.onnx`, laid out as optimum's, see `save_onnx`; encoders as
            the stock ViT of `to_stock`, and any classifier or segmenter that run_finetune.py writes.

    Returns:
        What the target has no place for, in words.

    Raises:
        ValueError: a tensor is missing, or the target cannot hold the model; the message says why.
        FileNotFoundError, FileExistsError: no such checkpoint; `out` is there already.
    """
    checkpoint, out = str(checkpoint), Path(out)
    if to not in TARGETS:
        raise ValueError(f"to={to!r}: must be one of {', '.join(TARGETS)}.")
    if to == "original" and out.is_dir():
        raise FileExistsError(f"{out} is a folder; the official form is one file, such as {out / 'model.pth'}.")
    check_is_free(out)
    if to == "onnx":
        check_packages()
    model = _load(checkpoint, to)
    if to != "onnx" or _is_mae(model):
        _check_source(model)
    if to in ("timm", "original"):
        _check_original_settings(model.config)
    if to == "original":
        tensors = to_original(model)
        with written_whole(out) as file:
            torch.save({"model": tensors}, file)
        return _left_out(model, to)

    processor = _processor_of(checkpoint, model)
    if to == "timm":
        exported, description = _to_timm(model, processor)
        with written_whole(out) as folder:
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
            save_file(exported.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    elif to == "onnx":
        # Stock MAE masks at random whatever it is used for; the stock ViT computes the unmasked encoder.
        exported = to_stock(model, "vit") if _is_mae(model) else model
        with written_whole(out) as folder:
            folder.mkdir()
            save_onnx(exported, folder)
            processor.save_pretrained(folder)
    else:
        exported = to_stock(model, to)
        with written_whole(out) as folder:
            exported.save_pretrained(folder)
            processor.save_pretrained(folder)
    return _left_out(model, to)


def add_export_arguments(parser: argparse.ArgumentParser):
    """The arguments of `python -m hf_mae_robust export`."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder or Hub id: vit_mae_robust, vit_mae, or MAE's beit; to onnx also other classifiers, and segmenters",
    )
    parser.add_argument("out", metavar="OUT", help="folder to write (original: file); must not exist yet")
    parser.add_argument(
        "--to",
        required=True,
        choices=TARGETS,
        help="beit, vit: stock classes of transformers; timm; original: file of facebookresearch/mae; onnx",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub")
    parser.add_argument("--token", help="Hub token; default: that of `hf auth login` or HF_TOKEN")


def run_export(args: argparse.Namespace):
    """Turn a model into one that runs without this package: stock BEiT or ViT, timm, the official code's, ONNX."""
    checkpoint, _ = local_model(args.checkpoint, args.revision, args.token)
    left_out = export(checkpoint, args.out, args.to)
    print(f"{args.out}: {args.to}" + (f"; left out: {', '.join(left_out)}" if left_out else ""))
