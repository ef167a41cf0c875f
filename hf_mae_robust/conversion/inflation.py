"""Encoders for images of another number of channels: what becomes of the patch projection."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UserError
from ..model import ViTMAERobustConfig
from .pixels import Pixels, pixels_of, read_pixels
from .settings import CHANNEL_SETTINGS
from .source import ModelSource

INFLATIONS = ("mean", "repeat", "zero_new")


def inflate_projection(weight: torch.Tensor, num_channels: int, how: str) -> torch.Tensor:
    """The weight of a patch projection for another number of channels: `(d, C, p, q)` -> `(d, num_channels, p, q)`.

    Args:
        how: "mean": each channel gets the mean over the old ones; "repeat": the old ones come again and again, in
            their order (as timm's `adapt_input_conv`). Both are multiplied by C / num_channels, so that images of equal
            channels give the tokens that they gave before ("repeat": about those, where C does not divide
            num_channels). "zero_new": the old ones stay, and further ones are zero.

    Raises UserError: another `how`, or "zero_new" for fewer channels than there are.
    """
    old = weight.shape[1]
    if how == "mean":
        return weight.mean(dim=1, keepdim=True).repeat(1, num_channels, 1, 1) * (old / num_channels)
    if how == "repeat":
        return weight[:, torch.arange(num_channels, device=weight.device) % old] * (old / num_channels)
    if how != "zero_new":
        raise UserError(f"--inflate_channels {how}: must be one of {', '.join(INFLATIONS)}.")
    if num_channels < old:
        raise UserError(
            f"--inflate_channels zero_new keeps the {old} channels of the checkpoint, and {num_channels} are wanted: "
            "give mean or repeat."
        )
    return torch.cat([weight, weight.new_zeros(len(weight), num_channels - old, *weight.shape[2:])], dim=1)


def check_inflation(source: ModelSource, old: int, new: int) -> None:
    """Raises UserError where a checkpoint for `old` channels is to take `new` ones, and nothing says how."""
    if old != new and source.inflate_channels is None:
        raise UserError(
            f"{source.flag} {source.name} takes images of {old} channels, and {new} are wanted. "
            f"--inflate_channels ({', '.join(INFLATIONS)}) makes its patch projection fit; without it, start from "
            "scratch."
        )


def inflation_note(source: ModelSource, old: int, new: int) -> str:
    """What was done, as a part of a sentence."""
    return f"patch projection inflated from {old} to {new} channels ({source.inflate_channels})"


def fit_channels(encoder: PreTrainedModel, source: ModelSource) -> None:
    """Make an encoder (of a kind that `read_encoder` takes) one for images of `source.num_channels`, in place; mean and
    deviation of its images are then those of a new model with that number. None, or the same number: it stays as it is.

    Raises UserError as `check_inflation` and `inflate_projection`.
    """
    config, new = encoder.config, source.num_channels
    if new is None or new == config.num_channels:
        return
    check_inflation(source, config.num_channels, new)
    embeddings: Any = encoder.embeddings
    patches = embeddings.patch_embeddings
    projection = patches.projection
    with torch.no_grad():
        weight = inflate_projection(projection.weight, new, str(source.inflate_channels))
    projection.weight = nn.Parameter(weight, requires_grad=projection.weight.requires_grad)
    projection.in_channels = patches.num_channels = config.num_channels = new
    if isinstance(config, ViTMAERobustConfig):
        fresh = ViTMAERobustConfig(num_channels=new)
        config.update({name: getattr(fresh, name) for name in CHANNEL_SETTINGS})


def read_fitted_pixels(source: ModelSource, config: PreTrainedConfig) -> Pixels:
    """As `read_pixels`; of an encoder that `fit_channels` gives another number of channels, as a new model with that
    number wants its images. config: the checkpoint's own."""
    if source.num_channels in (None, config.num_channels):
        return read_pixels(source, config)
    return pixels_of(ViTMAERobustConfig(num_channels=source.num_channels))
