"""Images as a model wants them, where the flags say that these files hold them differently."""

import argparse
from dataclasses import replace
from functools import partial

from transformers import PreTrainedModel

from ..conversion.pixels import Pixels
from ..data.brightness import describe_brightness
from ..data.source import ImageSource
from ..errors import UserError
from .arguments import DataArguments
from .processes import first_process
from .setup import say


def with_flags(pixels: Pixels, data: DataArguments, start: str | None) -> Pixels:
    """How a model wants its images, with what --bands, --nodata, --value_range, --channel_axis and --frame say of these
    files. Mean and deviation are the model's. start: its name, for errors.

    Raises UserError for such flags where the model takes 8-bit images, and for another number of bands than its own.
    """
    name = start or "this model"
    if pixels.band_form is None:
        if data.first_band_flag is not None:
            raise UserError(f"{data.first_band_flag} is for images of bands, and {name} is a model of 8-bit images.")
        return pixels
    asked = data.band_form(pixels.num_channels)
    return pixels.for_files(
        name,
        bands=asked.bands,
        nodata=asked.nodata,
        value_range=asked.value_range,
        channel_axis=asked.channel_axis,
        frame=asked.frame,
    )


def as_wanted(
    model: PreTrainedModel, pixels: Pixels, source: ImageSource | None, takes_bands: bool = True
) -> ImageSource | None:
    """The same images, read as the model wants them; arrays below the size of a patch are not pictures. takes_bands:
    whether the task has models of more than 8-bit pictures."""
    if source is None:
        return None
    source = source.read_as(pixels.band_form, pixels.num_channels)
    reads_less = pixels.band_form is None and source.needs_bands
    if reads_less and (warning := first_process(partial(describe_brightness, source, can_read_all=takes_bands))):
        say(warning)
    config = getattr(model.config, "backbone_config", None) or model.config
    patch = getattr(config, "patch_size", None)
    if patch is None:
        return source
    return replace(source, min_side=patch if isinstance(patch, int) else min(patch))


def as_model_wants(source: ImageSource, pixels: Pixels, args: argparse.Namespace) -> ImageSource:
    """The images of a command, read as a checkpoint wants them, where --bands, --channel_axis and --frame say where its
    bands are. Raises UserError (DataError among them) where they do not fit."""
    bands = None if args.bands is None else tuple(args.bands)
    if bands is not None and pixels.band_form is None:
        raise UserError(f"--bands is for images of bands, and {args.checkpoint} is a model of 8-bit images.")
    pixels = pixels.for_files(args.checkpoint, bands=bands, channel_axis=args.channel_axis, frame=args.frame)
    return source.read_as(pixels.band_form, pixels.num_channels)
