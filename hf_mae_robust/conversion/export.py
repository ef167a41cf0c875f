"""Models -> what runs without this package: stock BEiT and ViT of transformers, timm, the official MAE code, ONNX.

A MAE's encoder is a plain ViT, so the tensors stay what they are and get other names. What is for pre-training only
(the decoder, the mid-level mask token, the patch statistics) does not touch the features of unmasked images. A target
that cannot compute what the model computes is refused; what it has no place for is named.
"""

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    Data2VecVisionForImageClassification,
    DeiTForImageClassification,
    Dinov2ForImageClassification,
    Dinov2WithRegistersForImageClassification,
    PreTrainedModel,
    UperNetForSemanticSegmentation,
    ViTForImageClassification,
)
from transformers.image_processing_utils import BaseImageProcessor

from ..data.preprocessing import default_processor
from ..errors import ExistingFileError, MissingFileError, UserError, refused_by_library
from ..files import check_is_free, written_whole
from ..hub.models import local_model
from ..model import ViTMAERobustImageProcessor
from ..model.configuration_vit_mae_robust import to_pair
from .finetuned import LINEAR_HEAD
from .loading import first_line
from .onnx_export import check_packages, save_onnx
from .original import to_original
from .pixels import read_processor
from .stock import (
    DROPOUTS,
    ORIGINAL_EPS,
    SOURCES,
    check_exportable,
    check_original_settings,
    encoder_of,
    is_classifier,
    is_mae,
    to_stock,
)
from .timm_format import PROCESSOR_FOLDER, to_timm

# What the official code computes; its files do not say it.
OFFICIAL_TARGET = {
    "norm_pix_loss": True,
    "target_normalization": "global_rgb",
    "norm_pix_axis": "patch",
    "norm_pix_unbiased": True,
}
TARGETS = ("beit", "vit", "timm", "original", "onnx")
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


def _load(checkpoint: str, to: str) -> PreTrainedModel:
    """The model of a folder or Hub id, as the class that config.json names, with all its parts, in evaluation mode."""
    sources = ONNX_SOURCES if to == "onnx" else SOURCES
    with refused_by_library(f"{checkpoint}: its config.json cannot be used"):
        try:
            config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        except OSError as error:
            raise MissingFileError(
                f"{checkpoint}: no folder with a config.json, and not found on the Hub. {first_line(error)}"
            ) from error
    name = (config.architectures or ["no class"])[0]
    model_class = next((source for source in sources if source.__name__ == name), None)
    if model_class is None:
        names = ", ".join(source.__name__ for source in sources)
        raise UserError(f"{checkpoint}: its config.json names {name}; one of {names} can be exported to {to}.")
    with refused_by_library(f"{checkpoint}: its config.json and its weights make no {name}"):
        try:
            loaded: Any = model_class.from_pretrained(checkpoint, config=config, output_loading_info=True)
            model, info = loaded
        except OSError as error:
            raise MissingFileError(f"{checkpoint}: its weights cannot be read. {first_line(error)}") from error
        except (SafetensorError, pickle.PickleError) as error:
            raise UserError(f"{checkpoint}: its weights are truncated or damaged. {first_line(error)}") from error
        except RuntimeError as error:  # tensors of other shapes
            raise UserError(f"{checkpoint}: the tensors do not fit its config.json. {error}") from error
    problems = [
        f"{kind.replace('_', ' ')}: {', '.join(sorted(map(str, found)))}" for kind, found in info.items() if found
    ]
    if problems:
        raise UserError(
            f"{checkpoint} was not exported, because its tensors are not those of {name}: {'; '.join(problems)}."
        )
    return model.eval()


def _has_label_names(model: PreTrainedModel) -> bool:
    return is_classifier(model) and any(name != f"LABEL_{i}" for i, name in (model.config.id2label or {}).items())


def _left_out(model: PreTrainedModel, target: str) -> list[str]:
    """What the target has no place for, and does not need to compute the same."""
    config, left_out = model.config, []
    if Path(str(model.name_or_path), LINEAR_HEAD).exists():  # the folder that it was read from
        left_out.append(f"the linear head of the segmenter ({LINEAR_HEAD})")
    if target != "original":
        parts = {"decoder": "the decoder", "target_normalizer": "the patch statistics of the target"}
        parts["auxiliary_head"] = "the auxiliary head"
        left_out += [words for name, words in parts.items() if getattr(model, name, None) is not None]
        if hasattr(encoder_of(model), "mid_mask_token"):
            left_out.append("the mid-level mask token")
    else:
        left_out += ["the image processor", f"the number of heads ({config.num_attention_heads})"]
        if hasattr(model, "decoder"):
            left_out += [
                f"{name}={value}"
                for name, usual in OFFICIAL_TARGET.items()
                if (value := getattr(config, name, usual)) != usual
            ]
        elif hasattr(encoder_of(model), "mid_mask_token"):
            left_out.append("the mid-level mask token")
        if len(set(to_pair(config.image_size))) > 1:
            left_out.append(f"the image size ({' x '.join(map(str, to_pair(config.image_size)))})")
        if _has_label_names(model):
            left_out.append("the names of the classes")
    if rates := [f"{name}={rate}" for name in DROPOUTS if (rate := getattr(config, name, 0.0))]:
        left_out.append(f"{', '.join(rates)} (training only)")
    if target in ("timm", "original") and config.layer_norm_eps != ORIGINAL_EPS:
        left_out.append(f"layer_norm_eps={config.layer_norm_eps} ({ORIGINAL_EPS} there; a difference of rounding)")
    return left_out


def _processor_of(checkpoint: str, model: PreTrainedModel) -> BaseImageProcessor:
    processor = read_processor(checkpoint)
    return default_processor(getattr(model.config, "backbone_config", model.config)) if processor is None else processor


def how_to_prepare(processor: BaseImageProcessor | None, target: str) -> list[str]:
    """Of images of bands: what the target cannot do with them, and what does it. Nothing of 8-bit images, and where the
    image processor is all that is needed."""
    if not isinstance(processor, ViTMAERobustImageProcessor) or target in ("beit", "vit"):
        return []
    what = {
        "timm": "the preprocessing of timm, which reads 8-bit pictures alone",
        "onnx": "the choice of bands and their normalisation, which are not in the graph",
        "original": "the bands, their mean and deviation, which the official code does not know",
    }
    where = {"timm": PROCESSOR_FOLDER, "onnx": "the folder", "original": "the checkpoint"}[target]
    return [
        f"{what[target]}: pixel values are those that the image processor in {where} gives (AutoImageProcessor with "
        "trust_remote_code)"
    ]


def export(checkpoint: str | Path, out: str | Path, to: str) -> list[str]:
    """Write a checkpoint in a form that runs without this package. It appears when it is complete.

    Args:
        checkpoint: folder or Hub id of a `vit_mae_robust` or `vit_mae` (pre-training model or encoder), or of a `beit`
            of MAE's form (encoder or classifier).
        out: folder to write, which may exist if it is empty; for `"original"` a file.
        to: `"beit"`, `"vit"`: folder for `from_pretrained` and pipelines, see `to_stock`; with the checkpoint's image
            processor, or MAE's evaluation where it has none. `"timm"`: folder for
            `timm.create_model("local-dir:OUT", pretrained=True)`, and for transformers too; the preprocessing stands in
            its config.json, where both look for it; of images of bands there is an image processor in
            `OUT/image_processor`. `"original"`: `{"model": state_dict}` of the official code, see
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
        raise UserError(f"to={to!r}: must be one of {', '.join(TARGETS)}.")
    if to == "original" and out.is_dir():
        raise ExistingFileError(f"{out} is a folder; the official form is one file, such as {out / 'model.pth'}.")
    check_is_free(out)
    if to == "onnx":
        check_packages()
    model = _load(checkpoint, to)
    if to != "onnx" or is_mae(model):
        check_exportable(model)
    if to in ("timm", "original"):
        check_original_settings(model.config)
    processor = _processor_of(checkpoint, model)
    if to == "original":
        tensors = to_original(model)
        with written_whole(out) as file:
            torch.save({"model": tensors}, file)
        return [*_left_out(model, to), *how_to_prepare(processor, to)]

    if to == "timm":
        exported, description = to_timm(model, processor)
        with written_whole(out) as folder:
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")
            save_file(exported.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
            if isinstance(processor, ViTMAERobustImageProcessor):
                processor.save_pretrained(folder / PROCESSOR_FOLDER)
    elif to == "onnx":
        # Stock MAE masks at random whatever it is used for; the stock ViT computes the unmasked encoder.
        exported = to_stock(model, "vit") if is_mae(model) else model
        with written_whole(out) as folder:
            folder.mkdir()
            save_onnx(exported, folder)
            processor.save_pretrained(folder)
    else:
        exported = to_stock(model, to)
        with written_whole(out) as folder:
            exported.save_pretrained(folder)
            processor.save_pretrained(folder)
    return [*_left_out(model, to), *how_to_prepare(processor, to)]


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
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


def run_export(args: argparse.Namespace) -> None:
    """Turn a model into one that runs without this package: stock BEiT or ViT, timm, the official code's, ONNX."""
    if args.to == "onnx":
        check_packages()  # before a model is downloaded
    checkpoint, _ = local_model(args.checkpoint, args.revision, args.token)
    left_out = export(checkpoint, args.out, args.to)
    print(f"{args.out}: {args.to}" + (f"; left out: {', '.join(left_out)}" if left_out else ""))
