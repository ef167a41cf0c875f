"""Checkpoints of others -> folders for `from_pretrained`: facebookresearch/mae, transformers' ViTs, timm."""

import argparse
from pathlib import Path
from typing import Any, cast

from transformers import BeitForImageClassification, PreTrainedConfig, PreTrainedModel

from ..data.preprocessing import default_processor
from ..errors import UserError
from ..files import check_is_free, written_whole
from ..hub.models import local_model
from ..model import ViTMAERobustForPreTraining
from .encoders import check_not_part_of_folder, read_config
from .original import from_original, read_original
from .source import Access, ModelSource
from .stock import STOCK_KINDS, read_stock
from .timm_format import is_of_timm, read_timm

# Of MAE's evaluation: the centre of 224 pixels of 256.
DEFAULT_CROP_PCT = 0.875


def convert(
    source: str | Path,
    output_dir: str | Path,
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
    *,
    checkpoint_key: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    **config_overrides: Any,
) -> PreTrainedModel:
    """A checkpoint of others -> a folder for `from_pretrained`, with the image processor of MAE's evaluation and the
    checkpoint's own mean and deviation. The folder appears when it is complete, never half-written.

    Args:
        source: a file of the official MAE (.pth, .safetensors), which needs the heads, see `from_original`; a folder or
            Hub id of transformers' ViT-MAE (with decoder or without), ViT (DINO, MoCo v3 and iBOT in its form) or MSN,
            in the form of transformers 4 or 5; a folder of timm (`local-dir:` may stand before it) or its Hub id
            (`timm/...`, `hf-hub:...`).
        checkpoint_key: which model of an official file that holds several, see `read_original`.
        revision, token: of a model on the Hub (not timm's).
        config_overrides: fields of `ViTMAERobustConfig`, see `from_original`.

    Returns the model: `ViTMAERobustForPreTraining` where there is a decoder; `BeitForImageClassification` of official
    files and timm models that have a head; else `ViTMAERobustModel`.

    Raises:
        ValueError: a checkpoint that is not a plain ViT, lacks a tensor or is damaged. FileNotFoundError: no such file.
        FileExistsError: `output_dir` is a file or a folder that is not empty.
    """
    source = str(source)
    check_is_free(output_dir)
    is_file = Path(source).is_file() or source.endswith((".pth", ".pt", ".bin", ".safetensors"))
    _check_use(
        source,
        is_file,
        num_attention_heads=num_attention_heads,
        decoder_num_attention_heads=decoder_num_attention_heads,
        checkpoint_key=checkpoint_key,
        revision=revision,
        **config_overrides,
    )
    pixels, crop_pct = None, DEFAULT_CROP_PCT
    model: PreTrainedModel
    if is_of_timm(source):
        model, pixels, crop_pct = read_timm(source)
    elif is_file:
        check_not_part_of_folder(source)
        heads = num_attention_heads, decoder_num_attention_heads
        model = from_original(read_original(source, checkpoint_key), *heads, **config_overrides)
    else:
        source, _ = local_model(source, revision, token)
        checkpoint = ModelSource(source, config_overrides, Access(token))
        model, pixels = read_stock(checkpoint, cast(PreTrainedConfig, read_config(checkpoint, STOCK_KINDS)))
    form = model.config
    processor = default_processor(form) if pixels is None else pixels.processor(form.image_size, crop_pct)
    with written_whole(output_dir) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return model


def _check_use(source: str, is_file: bool, **given: Any) -> None:
    """Raises UserError for what a source of this kind says itself, or does not have."""
    if is_of_timm(source):
        kind, taken = "a model of timm", set[str]()
    elif is_file:
        kind, taken = "a file", given.keys() - {"revision"}
    else:
        kind = "a folder or a model on the Hub"
        of_files = {"num_attention_heads", "decoder_num_attention_heads", "checkpoint_key", "image_size"}
        taken = given.keys() - of_files
    if idle := [name for name, value in given.items() if value is not None and name not in taken]:
        raise UserError(f"--{idle[0]} {given[idle[0]]}: {source} is {kind}, for which it has no effect. Leave it out.")


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
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
        "--image_size", type=int, nargs=2, metavar=("H", "W"), help="of an official file, if its images are not square"
    )
    parser.add_argument(
        "--norm_pix_loss",
        action=argparse.BooleanOptionalAction,
        help="whether the model was trained on targets normalised per patch (official files: yes); not for classifiers",
    )
    parser.add_argument(
        "--checkpoint_key", help="which model of an official file that holds several, such as teacher.backbone"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a model on the Hub (not timm's)")
    parser.add_argument("--token", help="Hub token; default: that of `hf auth login` or HF_TOKEN")


def run_convert(args: argparse.Namespace) -> None:
    """Turn a checkpoint of the official MAE code, transformers or timm into a folder that from_pretrained loads."""
    heads = args.num_attention_heads, args.decoder_num_attention_heads
    overrides = {"norm_pix_loss": args.norm_pix_loss, "image_size": args.image_size and tuple(args.image_size)}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    model = convert(
        args.source,
        args.output_dir,
        *heads,
        checkpoint_key=args.checkpoint_key,
        revision=args.revision,
        token=args.token,
        **overrides,
    )
    config = model.config
    sizes = f"image {config.image_size}, patch {config.patch_size}, encoder {config.hidden_size} x "
    sizes += f"{config.num_hidden_layers} blocks x {config.num_attention_heads} heads"
    if isinstance(model, ViTMAERobustForPreTraining):
        sizes += f", decoder {config.decoder_hidden_size} x {config.decoder_num_hidden_layers} blocks x "
        sizes += f"{config.decoder_num_attention_heads} heads"
    if isinstance(model, BeitForImageClassification):
        sizes += f", {config.num_labels} classes from the {'mean of the patches' if config.use_mean_pooling else 'CLS'}"
    print(f"{args.output_dir}: {type(model).__name__}, {model.num_parameters():,} parameters, {sizes}")
