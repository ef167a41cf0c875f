"""python -m hf_mae_robust analyze targets: which target suits a data set, before anything is trained."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.image_processing_utils import BaseImageProcessor

from ..conversion.pixels import Pixels
from ..data.bad_images import SkippedImages, describe
from ..data.band_detection import stored_bands_of
from ..data.loaders import sequential_loader
from ..data.opening import open_splits
from ..data.preprocessing import EvaluationTransform, Normalization, band_processor, evaluation_processor
from ..data.source import SEED, DataLocation, ImageSource, load_head_of_stream
from ..errors import DataError, UserError, refused_by_library
from ..files import write_completely
from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining
from ..model.configuration_vit_mae_robust import NORM_PIX_AXES
from ..training.arguments import add_data_arguments, add_worker_argument
from ..training.band_arguments import BandArguments
from ..version import __version__
from .analyze import load, plain
from .plots import aligned, save_target_pictures
from .targets import (
    PER_PATCH,
    RAW,
    TARGETS,
    Comparison,
    advice,
    compare_targets,
    in_units_of_files,
    patch_numbers,
    renormalized,
)

# Flags that say what a checkpoint says, too -> their values without one.
FORM: dict[str, Any] = {"image_size": [224], "patch_size": [16], "num_channels": 3, "norm_pix_axis": "patch"}
MAX_BAD_IMAGES = 0.01


def add_targets_arguments(parser: argparse.ArgumentParser) -> None:
    data = add_data_arguments(parser)
    data.add_argument("--split", default="train", help="Split to look at (%(default)s).")
    data.add_argument("--max_samples", type=int, default=512, help="At most N images, drawn at random (%(default)s).")
    data.add_argument("--seed", type=int, default=SEED, help="Of what is drawn at random (%(default)s).")
    form = parser.add_argument_group("form of the images (that of the model to train)")
    form.add_argument("--image_size", type=int, nargs="+", help="One number, or height and width (224).")
    form.add_argument("--patch_size", type=int, nargs="+", help="One number, or height and width (16).")
    form.add_argument(
        "--num_channels", type=int, help="Channels; default: 3 for 8-bit pictures, and what the files hold for others."
    )
    form.add_argument(
        "--norm_pix_axis",
        choices=NORM_PIX_AXES,
        help="Over which numbers the step per patch goes: all of a patch, or those of each channel (patch).",
    )
    form.add_argument("--crop_pct", type=float, default=0.875, help="See run_pretrain.py (%(default)s).")
    form.add_argument(
        "--model_name_or_path",
        help="Folder or Hub id of a pre-training model, whose form it is instead. If its target is global_patch, its "
        "statistics, which are those of its data set, are used.",
    )
    form.add_argument("--model_revision", help="Branch, tag or commit of a model on the Hub.")
    form.add_argument(
        "--image_statistics",
        choices=("default", "auto"),
        help="Mean and deviation of each channel, which global_rgb normalises with. default: those of the model, or "
        "ImageNet's (0.5 for other than 3 channels); auto: of the sample, as it always is for images that are not "
        "8-bit pictures and without a model of them.",
    )
    bands = parser.add_argument_group("images that are not 8-bit pictures (see run_pretrain.py)")
    bands.add_argument("--bands", type=int, nargs="+", help="Bands to take, 0-based, in this order; default: all.")
    bands.add_argument("--nodata", type=float, help="Number that marks a missing pixel, beside NaN and the file's own.")
    bands.add_argument("--value_range", type=float, nargs="+", help="Clip to LO HI: a pair for all, or for each band.")
    running = parser.add_argument_group("running")
    running.add_argument("--batch_size", type=int, default=32, help="Images at a time (%(default)s).")
    add_worker_argument(running)
    running.add_argument("--output", type=Path, help="JSON file to write the results to, and a picture beside it.")


class _Images:
    """The images of a source in batches `(B, C, H, W)` on the CPU, preprocessed as for evaluation and normalised; the
    same at each pass. Images that cannot be decoded are left out, and counted in `skipped`."""

    def __init__(self, source: ImageSource, config: ViTMAERobustConfig, crop_pct: float, **loader_options: Any):
        self.processor: BaseImageProcessor
        if source.band_form is not None:
            self.processor = band_processor(source.band_form, config.image_size, crop_pct)
        else:
            form = (config.num_channels, config.image_mean, config.image_std)
            self.processor = evaluation_processor(config.image_size, crop_pct, *form)
        self.source, self.num_channels, self.skipped = source, config.num_channels, SkippedImages(None, MAX_BAD_IMAGES)
        # A generator of its own: the loader would draw from the global one.
        self.options = {**loader_options, "rank": 0, "world_size": 1, "generator": torch.Generator()}

    def read(self, what: str) -> Iterator[torch.Tensor]:
        normalize = Normalization(self.processor, torch.device("cpu"), keeps_missing=True)
        loader = sequential_loader(self.source, EvaluationTransform(self.processor), self.num_channels, **self.options)
        for batch in tqdm(loader, desc=what, unit="batch"):
            self.skipped.add(batch.get("skipped", ()))
            images = batch["pixel_values"][batch["row"] >= 0]
            if len(images):
                yield normalize(images)

    def check(self) -> None:
        """Raises DataError where too many images cannot be decoded, or all."""
        self.skipped.check(self.source.description, self.source.num_rows)
        if self.source.num_rows == len(self.skipped):
            bad = describe(self.skipped.counts())
            raise DataError(f"No image of {self.source.description} can be decoded ({bad}).")


def _config(values: dict[str, Any]) -> ViTMAERobustConfig:
    """values: fields of the config, by flags."""
    sizes = {name: values[name] for name in ("image_size", "patch_size")}
    with refused_by_library(" ".join(f"--{name} {' '.join(map(str, size))}" for name, size in sizes.items())):
        return ViTMAERobustConfig(
            **{**values, **{name: size[0] if len(size) == 1 else size for name, size in sizes.items()}}
        )


def _values(args: argparse.Namespace) -> dict[str, Any]:
    return {name: default if getattr(args, name) is None else getattr(args, name) for name, default in FORM.items()}


def find_form(args: argparse.Namespace, source: ImageSource) -> tuple[ViTMAERobustConfig, ImageSource]:
    """The config that flags (parsed `add_targets_arguments`) and files say, and the source read accordingly.

    Raises UserError (DataError among them) where they contradict one another.
    """
    flags = BandArguments(**{field.name: getattr(args, field.name, None) for field in fields(BandArguments)})
    values, form = _values(args), None
    if flags.asks_for_bands or source.needs_bands:
        stored = stored_bands_of(source, DataLocation.of(args, args.token))
        if args.image_statistics == "default":
            raise UserError(
                f"--image_statistics default: {source.description} holds {stored}, for which no mean and "
                "deviation are usual. Leave it out."
            )
        form = flags.band_form(stored.num_channels)
        found = stored.num_channels if form.bands is None else len(form.bands)
        if args.num_channels not in (None, found):
            raise UserError(
                f"--num_channels {args.num_channels}: {source.description} holds {stored}. Choose "
                f"{args.num_channels} of them with --bands."
            )
        settings = {"bands": form.bands, "nodata": form.nodata, "value_range": form.value_range}
        values |= {name: value for name, value in settings.items() if value is not None}
        # In the units of the files, until their mean and deviation are known.
        values |= {
            "num_channels": found,
            "rescale_factor": 1.0,
            "image_mean": [0.0] * found,
            "image_std": [1.0] * found,
        }
    config = _config(values)
    return config, source.read_as(form, config.num_channels)


def _form_of_checkpoint(
    args: argparse.Namespace, model: ViTMAERobustForPreTraining, pixels: Pixels, source: ImageSource
) -> tuple[ViTMAERobustConfig, ImageSource]:
    given = next((name for name in (*FORM, "bands", "nodata", "value_range") if getattr(args, name) is not None), None)
    if given is not None:
        raise UserError(
            f"--{given} and --model_name_or_path {args.model_name_or_path}: the checkpoint says it; give one of the "
            "two."
        )
    name = args.model_name_or_path
    pixels = pixels.for_files(name, channel_axis=args.channel_axis, frame=args.frame)
    return model.config, source.read_as(pixels.band_form, pixels.num_channels)


def run_targets(args: argparse.Namespace) -> None:
    """How alike the six targets are on a sample of images, what of them is a constant, and which to take."""
    if args.output is not None and args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; name a file, such as {args.output / 'targets.json'}.")
    if args.output is not None and args.output.suffix != ".json":
        raise UserError(f"--output {args.output}: must end in .json; the picture beside it ends in .png.")
    state = PartialState(cpu=not torch.accelerator.is_available())
    if state.num_processes > 1:
        raise UserError(f"{state.num_processes} processes: analyses run in one; start without accelerate or torchrun.")
    model, pixels = None, Pixels()
    if args.model_name_or_path:
        loaded = load(args.model_name_or_path, args.model_revision, args.token)
        model, pixels = loaded.model, loaded.pixels
    else:
        _config(_values(args))  # before any data are opened
    opened, _ = open_splits(DataLocation.of(args, args.token), args.split, None, train_flag="--split")
    source = cast(ImageSource, opened).sample(args.max_samples, args.seed)  # a split was named
    config, source = find_form(args, source) if model is None else _form_of_checkpoint(args, model, pixels, source)
    statistics = None
    if model is not None and model.config.target_normalization == "global_patch":
        statistics = _statistics_of(model)
    if source.row_groups is None:
        source = load_head_of_stream(source, args.max_samples)
    found, about = compare_on_source(
        source,
        config,
        statistics,
        uses_own_mean=args.image_statistics == "auto" or (model is None and config.is_band_model),
        crop_pct=args.crop_pct,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
    )
    print(report(found))
    if args.output is not None:
        about |= {"patch_statistics": "the sample's" if statistics is None else args.model_name_or_path}
        about |= {"seed": args.seed, "hf_mae_robust": __version__}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"about": about, **as_json(found)}, indent=1)
        write_completely(args.output, lambda path: path.write_text(f"{content}\n"))
        picture = args.output.with_suffix(".png")
        save_target_pictures(found, picture)
        print(f"\n{args.output} holds all of it, and {picture} is a picture of it.")


def compare_on_source(
    source: ImageSource,
    config: ViTMAERobustConfig,
    statistics: tuple[torch.Tensor, torch.Tensor] | None = None,
    *,
    uses_own_mean: bool = False,
    crop_pct: float = 0.875,
    batch_size: int = 32,
    num_workers: int = 0,
) -> tuple[Comparison, dict[str, Any]]:
    """The six targets on all images of a source, in two passes with a progress bar.

    Args:
        source: with random access.
        statistics: mean and deviation of patches as `set_target_statistics` takes them; None: those of these images.
        uses_own_mean: normalise with the mean and deviation of these images instead of the config's.

    Returns:
        What was found, and of which images.

    Raises DataError where more than 1% of the images cannot be decoded.
    """
    images = _Images(source, config, crop_pct, batch_size=batch_size, num_workers=num_workers)
    numbers = patch_numbers(images.read("Population statistics"), config)
    images.check()
    batches = images.read("Targets")
    if uses_own_mean:
        own = _with_image_statistics(config, *numbers.by_channel())
        batches, config = renormalized(batches, config, own), own
    found = compare_targets(batches, config, *(statistics or (numbers.mean, numbers.std)))
    about = {
        "dataset": source.description,
        "images": cast(int, source.num_rows) - len(images.skipped),
        "patches": found.num_patches,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "crop_pct": crop_pct,
    }
    return found, about


def _statistics_of(model: ViTMAERobustForPreTraining) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = model.target_normalizer.mean, model.target_normalizer.std
    # A band model holds those of normalised images.
    return in_units_of_files(mean, std, model.config) if model.config.is_band_model else (mean, std)


def _with_image_statistics(config: ViTMAERobustConfig, mean: list[float], std: list[float]) -> ViTMAERobustConfig:
    """A channel that is the same number everywhere is divided by 1; what it has for a deviation is rounding."""
    usable = [
        own if own > 1e-6 * max(abs(center), abs(center - usual)) else 1.0
        for own, center, usual in zip(std, mean, config.image_mean)
    ]
    return ViTMAERobustConfig.from_dict({**config.to_dict(), "image_mean": mean, "image_std": usable})


def as_json(found: Comparison) -> dict[str, Any]:
    """Rows, columns and entries in the order of `targets`; null where a number is not defined (no variance)."""

    values = {name: plain(value) for name, value in vars(found).items() if isinstance(value, torch.Tensor)}
    return {"targets": list(TARGETS), **values, "advice": advice(found)}


def report(found: Comparison) -> str:
    """Tables and advice for the terminal, in Markdown."""
    pairs = [
        [
            f"{first} / {second}",
            f"{found.of('correlation', first, second):.3f}",
            f"{found.of('squared_difference', first, second):.3f}" if kind is PER_PATCH else "",
            f"{found.of('anticorrelated', first, second):.1%}",
        ]
        for kind in (PER_PATCH, RAW)
        for number, first in enumerate(kind)
        for second in kind[number + 1 :]
    ]
    measures = ("constant", "channel_offset", "between_channels", "channels_only", "flat")
    shares = [[name, *(f"{found.of(measure, name):.1%}" for measure in measures)] for name in TARGETS]
    channels = found.by_channel.shape[1]
    tables = [
        aligned(["two targets", "r", "relative squared difference", "patches with r < 0"], pairs),
        aligned(
            [
                "target",
                "constant",
                "of it, channel offsets",
                "between channels",
                "patches of channel means only",
                "flat patches",
            ],
            shares,
        ),
    ]
    # More do not fit in a terminal; the file and the picture have them.
    if 1 < channels <= 13:
        rows = [
            [name, *(f"{share:.1%}" for share in shares)] for name, shares in zip(TARGETS, found.by_channel.tolist())
        ]
        tables.append(aligned(["share of the variance in channel", *map(str, range(channels))], rows))
    return "\n\n".join([*tables, *advice(found)])
