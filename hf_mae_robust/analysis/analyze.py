"""python -m hf_mae_robust analyze {features,attention,loss_map,cka,all}: what happens between a model's tokens."""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..conversion.encoders import open_config
from ..conversion.pixels import Pixels, processor_of, read_pixels
from ..conversion.pretraining_model import PRETRAINING_KINDS, load_with_new_tensors, read_pretraining_config
from ..conversion.source import Access, ModelSource
from ..data.bad_images import describe
from ..data.opening import open_splits
from ..data.source import DataLocation, ImageSource, load_head_of_stream
from ..errors import UserError
from ..files import check_can_write, write_completely
from ..hub.models import local_model
from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining
from ..training.arguments import add_bands_argument, add_data_arguments
from ..training.image_form import as_model_wants
from ..training.setup import say
from .evaluators import EVALUATORS, Similarity
from .plots import PICTURES, save_pictures, table
from .samples import Samples


@dataclass(frozen=True)
class Loaded:
    """A checkpoint to look at.

    Attributes:
        pixels: how it wants its images. folder: where it lies. has_decoder: False: that of `model` is new and random,
            because the checkpoint is an encoder.
    """

    model: ViTMAERobustForPreTraining
    pixels: Pixels
    folder: str
    has_decoder: bool


def load(name: str, revision: str | None, token: str | None) -> Loaded:
    """A checkpoint for pre-training, ours or stock ViT-MAE's, or its encoder alone. Raises ValueError for others."""
    path, _ = local_model(name, revision, token)
    source = ModelSource(path, access=Access(token))
    config = open_config(source)
    if config is None:
        raise UserError(
            f"{name} is a file; `python -m hf_mae_robust convert {name} OUT` makes a folder of an official checkpoint, "
            "which these analyses take."
        )
    if config.model_type not in PRETRAINING_KINDS:
        raise UserError(
            f"{name} is a '{config.model_type}' model; these analyses are for pre-training checkpoints "
            "('vit_mae_robust' or 'vit_mae'), which have a decoder. `analyze knn` takes any encoder."
        )
    model, note, new = load_with_new_tensors(source, read_pretraining_config(source))
    if note:
        say(note)
    has_decoder = not any(name.startswith("decoder.") for name in new)
    return Loaded(model, read_pixels(source, model.config), path, has_decoder)


def load_other(name: str, token: str | None, config: ViTMAERobustConfig, pixels: Pixels) -> ViTMAERobustForPreTraining:
    """A second model for the same images as the first, which wants them as `pixels`; 8-bit images may be normalised
    otherwise. Raises UserError for others."""
    loaded = load(name, None, token)
    other, others_pixels = loaded.model, loaded.pixels
    if other.config.image_size != config.image_size:
        raise UserError(f"--other {name}: made for {other.config.image_size} px, not {config.image_size}.")
    if others_pixels.num_channels != pixels.num_channels:
        raise UserError(f"--other {name}: made for {others_pixels.num_channels} channels, not {pixels.num_channels}.")
    both = pixels, others_pixels
    if any(each.band_form is not None for each in both) and both[0].band_form != both[1].band_form:
        raise UserError(f"--other {name}: it takes other bands, or normalises them differently, than the first model.")
    return other


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="Folder or Hub id of a pre-training model.")
    parser.add_argument("--other", help="A second model: CKA between the two instead of within the first.")
    parser.add_argument("--model_revision", help="Branch, tag or commit of a model on the Hub.")
    data = add_data_arguments(parser)
    data.add_argument("--split", default="train", help="Split to look at (%(default)s).")
    data.add_argument("--max_samples", type=int, default=512, help="At most N images, drawn at random (%(default)s).")
    data.add_argument(
        "--crop_pct", type=float, help="See run_pretrain.py; default: as the checkpoint's image processor has it."
    )
    add_bands_argument(data)
    running = parser.add_argument_group("running")
    running.add_argument("--batch_size", type=int, default=32, help="Images at a time (%(default)s).")
    running.add_argument(
        "--output_dir", type=Path, help="For analysis.json and pictures; default: analysis/NAME, such as analysis/cka."
    )


def run(kinds: tuple[str, ...], args: argparse.Namespace) -> None:
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.num_processes > 1:
        raise UserError(f"{state.num_processes} processes: analyses run in one; start without accelerate or torchrun.")
    if args.max_samples < 2 or args.batch_size < 1:
        raise UserError(f"--max_samples {args.max_samples} --batch_size {args.batch_size}: at least 2, and 1.")
    folder = args.output_dir or Path("analysis") / (kinds[0] if len(kinds) == 1 else "all")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output_dir {folder} is not a folder; name one.")
    check_can_write(folder, "--output_dir")  # of the default nothing was checked before
    if args.other and "cka" not in kinds:
        raise UserError(
            f"--other {args.other}: `analyze cka` and `analyze all` compare two models; `{kinds[0]}` does not."
        )
    loaded = load(args.checkpoint, args.model_revision, args.token)
    model, pixels = loaded.model.to(state.device), loaded.pixels
    if not loaded.has_decoder:
        kinds = _kinds_of_encoder(args.checkpoint, kinds)
    other = load_other(args.other, args.token, model.config, pixels).to(state.device) if args.other else None
    opened, _ = open_splits(DataLocation.of(args, args.token), args.split, None, train_flag="--split")
    source = cast(ImageSource, opened).sample(args.max_samples)  # a split was named
    if source.row_groups is None:
        source = load_head_of_stream(source, args.max_samples)
    source = as_model_wants(source, pixels, args)
    processor = processor_of(loaded.folder, pixels, model.config.image_size, args.crop_pct, args.token)
    samples = Samples(source, model.config, processor, args.batch_size, state.device)
    found: dict[str, Any] = {}
    for make in (make for kind in kinds for make in EVALUATORS[kind]):
        evaluator = make(other) if make is Similarity else make()
        found |= dict(evaluator(model, tqdm(samples, desc=make.__name__, unit="batch")))
    if not loaded.has_decoder:
        found = {name: value for name, value in found.items() if not name.startswith("decoder ")}
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "checkpoint": args.checkpoint,
        "other": args.other,
        "dataset_name": args.dataset_name,
        "split": args.split,
        "images": samples.num_decoded,
    }
    _remove_former(folder, about)
    content = json.dumps({**about, "values": plain(found)}, indent=1, allow_nan=False)
    write_completely(folder / "analysis.json", lambda file: file.write_text(f"{content}\n"))
    save_pictures(found, folder, args.other or args.checkpoint)
    print(table(found))
    if samples.skipped:
        first = next(iter(samples.skipped))
        print(
            f"{len(samples.skipped):,} of {samples.source.num_rows:,} images cannot be decoded and were left out "
            f"({describe(samples.skipped.counts())}). The first: row {first.row}: {first.detail}."
        )
    print(f"{folder} holds analysis.json and pictures.")


def _kinds_of_encoder(name: str, kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Those analyses that need no decoder. Raises UserError where none is left."""
    if left := tuple(kind for kind in kinds if kind != "loss_map"):
        say(f"Note: {name} is an encoder without a decoder; the analysis leaves out the decoder and the loss.")
        return left
    raise UserError(
        f"{name} is an encoder without a decoder, and the map of the loss needs both. Give a pre-training checkpoint."
    )


def _remove_former(folder: Path, about: dict[str, Any]) -> None:
    """The pictures of a former analysis, which would stand beside the numbers of this one."""
    try:
        former = json.loads((folder / "analysis.json").read_text())
    except FileNotFoundError:
        return
    except ValueError:  # a disk that was full
        former = about
    if former["checkpoint"] != about["checkpoint"]:
        say(f"Note: {folder} held an analysis of {former['checkpoint']}, which is replaced.")
    for name in PICTURES:
        (folder / name).unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Tensors as lists, and null for what is not a number or infinite, which JSON does not have."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run_features(args: argparse.Namespace) -> None:
    """Similarity, rank and uniformity of tokens by block; uniformity, rank and alignment of image features."""
    run(("features",), args)


def run_attention(args: argparse.Namespace) -> None:
    """Entropy and distance of attention, by block and head, in encoder and decoder."""
    run(("attention",), args)


def run_loss_map(args: argparse.Namespace) -> None:
    """Loss of the reconstruction by the place of the patch."""
    run(("loss_map",), args)


def run_cka(args: argparse.Namespace) -> None:
    """Linear CKA between the encoder's blocks of one checkpoint, or of two (--other)."""
    run(("cka",), args)


def run_all(args: argparse.Namespace) -> None:
    """All of features, attention, loss_map and cka."""
    run(tuple(EVALUATORS), args)
