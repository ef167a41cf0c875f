"""Pre-training models, with their decoder: of a checkpoint, ours, stock ViT-MAE's or an official file."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, ViTMAEConfig

from ..errors import UserError
from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining, ViTMAERobustModel
from ..model.configuration_vit_mae_robust import to_pair
from .checkpoint_file import read_original
from .encoders import open_config
from .inflation import check_inflation, inflate_projection, inflation_note
from .loading import listed, load_with_report
from .original import config_of_original, from_original
from .pixels import read_pixels
from .positions import is_sincos, table_for
from .settings import CHANNEL_SETTINGS, mae_settings, overridden
from .source import ModelSource

PRETRAINING_KINDS = (ViTMAEConfig.model_type, ViTMAERobustConfig.model_type)
# Statistics come from --target_statistics; a mid-level token is new to most checkpoints.
_MAY_BE_NEW = ("target_normalizer.", "vit.mid_mask_token")
_POSITIONS = ("vit.embeddings.position_embeddings", "decoder.decoder_pos_embed")
_PROJECTION = "vit.embeddings.patch_embeddings.projection.weight"
# Their shapes follow from the number of channels, and they cannot be made to fit another one.
_OF_CHANNELS = ("decoder.decoder_pred.", "target_normalizer.")
_HEADS = ("num_attention_heads", "decoder_num_attention_heads")
# Each decides over the shape of a tensor, over which there are, or over what is computed with them.
_ENCODER_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
_DECODER_SIZES = ("decoder_hidden_size", "decoder_intermediate_size")
_DECODER_FORM = (*_DECODER_SIZES, "decoder_num_hidden_layers", "decoder_num_attention_heads")
_OF_A_BLOCK = re.compile(r"layers\.\d+\.")


def read_pretraining_config(source: ModelSource, start: ViTMAERobustConfig | None = None) -> ViTMAERobustConfig:
    """The configuration of a checkpoint, with the overrides, which win; without a name, of the overrides alone. Of an
    official file the overrides name the heads, which its tensors do not tell. start: the checkpoint's, where it is
    known (any_encoder.py).

    Raises ValueError for a checkpoint that does not exist, for another architecture, unknown settings, values out of
    range and other sizes than the checkpoint's.
    """
    settings: dict[str, Any] = {}
    base: PreTrainedConfig | None = None
    if source.name:
        base = start or open_config(source)
        if base is None:
            base = _config_of_file(source)
        elif base.model_type not in PRETRAINING_KINDS:
            raise UserError(
                f"{source.flag} {source.name} is a '{base.model_type}' model; pre-training "
                f"starts from '{ViTMAERobustConfig.model_type}' or stock 'vit_mae' checkpoints."
            )
        check_inflation(source, base.num_channels, source.overrides.get("num_channels", base.num_channels))
        settings = mae_settings(base)
        if start is None and base.model_type == ViTMAEConfig.model_type:  # its image processor says it
            settings |= read_pixels(source, base).config_settings()
        settings = _without_stale_settings(settings, source.overrides)
    config = overridden(settings, source.overrides)
    if base is not None:
        has_decoder = start is None and any(name.endswith("ForPreTraining") for name in base.architectures or ())
        _check_sizes(source, base, config, _ENCODER_SIZES + (_DECODER_FORM if has_decoder else ()))
    return config


def _without_stale_settings(settings: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's settings without those of its channels (mean, deviation, ...), where the overrides ask for other
    channels: so they get defaults, or an error says that a band model has none."""
    old = {"rescale_factor": ViTMAERobustConfig.rescale_factor, **settings}
    stale: set[str] = set()
    if overrides.get("num_channels", old["num_channels"]) != old["num_channels"]:
        stale |= {"image_mean", "image_std", "bands", "value_range"}
    if overrides.get("rescale_factor", old["rescale_factor"]) != old["rescale_factor"]:
        stale |= set(CHANNEL_SETTINGS)
    return {name: value for name, value in settings.items() if name not in stale}


def load_pretraining_model(
    source: ModelSource,
    config: ViTMAERobustConfig,
    attn_implementation: str | None = "sdpa",
    start: tuple[ViTMAERobustConfig, Mapping[str, Tensor]] | None = None,
) -> tuple[ViTMAERobustForPreTraining, str | None]:
    """A checkpoint of PRETRAINING_KINDS, or an official file, by this configuration, see `read_pretraining_config`, in
    float32.

    Tensors that the checkpoint lacks, such as the decoder of a published encoder, start from scratch, and the positions
    of a checkpoint for images of another size are made to fit, as is the patch projection of one for another number of
    channels, if `source.inflate_channels` says how. Positions of the encoder that were learned train, unlike MAE's.
    The sentences that are returned say so. None: it lacks none but the mid-level token and the patch statistics, the
    images have its size, and the positions are MAE's. start: configuration and tensors, where these are read already
    (any_encoder.py), and a missing decoder and learned positions are told elsewhere.

    Raises ValueError for weights that are damaged or missing, of other sizes than the configuration's, or with more or
    fewer blocks.
    """
    return load_with_new_tensors(source, config, attn_implementation, start)[:2]


def load_with_new_tensors(
    source: ModelSource,
    config: ViTMAERobustConfig,
    attn_implementation: str | None = "sdpa",
    start: tuple[ViTMAERobustConfig, Mapping[str, Tensor]] | None = None,
) -> tuple[ViTMAERobustForPreTraining, str | None, frozenset[str]]:
    """As `load_pretraining_model`; and the names of the tensors that the checkpoint lacks."""
    found: PreTrainedConfig | None
    weights: dict[str, Tensor] | None
    found, weights = (open_config(source), None) if start is None else (start[0], dict(start[1]))
    if found is None:
        found, weights = _read_file(source, config)
    base: PreTrainedConfig = found
    _check_sizes(source, base, config, _ENCODER_SIZES)
    check_inflation(source, base.num_channels, config.num_channels)
    fits_channels = base.num_channels == config.num_channels
    form = {**mae_settings(config), "image_size": base.image_size, "num_channels": base.num_channels}
    if not fits_channels:
        form = {name: value for name, value in form.items() if name not in CHANNEL_SETTINGS}
    own = ViTMAERobustConfig(**form)
    fits = own.grid_size == config.grid_size and fits_channels
    # A checkpoint in half precision would be trained in it, and gradients in float16 overflow.
    options: dict[str, Any] = {
        "attn_implementation": attn_implementation,
        "ignore_mismatched_sizes": True,
        "dtype": torch.float32,
    }
    model, info = load_with_report(
        ViTMAERobustForPreTraining,
        source.checkpoint if weights is None else None,
        **options,
        state_dict=weights,
        config=config if fits else own,
        token=source.access.token,
    )
    if info["mismatched_keys"]:
        _check_sizes(source, base, config, _ENCODER_SIZES + _DECODER_SIZES)
        keys = listed((key for key, *_ in info["mismatched_keys"]), 3)
        raise UserError(f"{source.name}: its weights are of other sizes than its config.json says: {keys}.")
    missing = set(info["missing_keys"])
    if decoder := {key for key in model.state_dict() if key.startswith("decoder.")} - missing:
        _check_sizes(source, base, config, _DECODER_FORM)
    # A checkpoint without a decoder is not at fault.
    torn = {key for key in missing if decoder or not key.startswith("decoder.")}.union(info["unexpected_keys"])
    if torn := {key for key in torn if _OF_A_BLOCK.search(key)}:
        raise UserError(
            f"{source.name} is incomplete, or its config.json says another number of blocks than its weights have: "
            f"{listed(torn, 3)}."
        )
    notes = []
    new = sorted(key for key in missing if not key.startswith(_MAY_BE_NEW))
    if new and start is None:
        notes.append(
            f"Note: {source.name} lacks {len(new)} tensors, which start from scratch: "
            f"{', '.join(new[:4])}{', ...' if len(new) > 4 else ''}"
        )
    has_statistics = model.config.target_normalization == "global_patch" and model.target_normalizer.ready
    if has_statistics and fits_channels and _units(ViTMAERobustConfig(**mae_settings(base))) != _units(config):
        for values in model.target_normalizer.buffers():
            values.fill_(float("nan"))
        model.target_normalizer.check()
        notes.append(f"Note: {source.name}: patch statistics left out; they are of pixels in other units")
    if not fits:
        tensors = model.state_dict()
        if own.grid_size != config.grid_size:
            is_computed = is_sincos(tensors[_POSITIONS[0]], own.grid_size)
            kind = "computed again (sine-cosine)" if is_computed else "interpolated"
            tensors |= {key: table_for(tensors[key], own.grid_size, config.grid_size) for key in _POSITIONS}
            there, here = ("x".join(map(str, to_pair(each.image_size))) for each in (own, config))
            notes.append(
                f"Note: {source.name} was made for images of {there} px; its positions are {kind} for {here} px"
            )
        if not fits_channels:
            tensors[_PROJECTION] = inflate_projection(
                tensors[_PROJECTION], config.num_channels, str(source.inflate_channels)
            )
            fresh = ViTMAERobustForPreTraining(config).state_dict()
            tensors = {key: fresh[key] if key.startswith(_OF_CHANNELS) else tensors[key] for key in fresh}
            inflated = inflation_note(source, base.num_channels, config.num_channels)
            left_out = "; patch statistics left out" if has_statistics else ""
            notes.append(f"Note: {source.name}: {inflated}; prediction layer new{left_out}")
        model = ViTMAERobustForPreTraining.from_pretrained(None, config=config, state_dict=tensors, **options)
    positions = model.vit.embeddings.position_embeddings
    if not is_sincos(positions, config.grid_size):
        positions.requires_grad_(True)
        if start is None:
            notes.append(f"Note: {source.name}: its positions are not sine-cosine, and pre-training trains them")
    return model, "\n".join(notes) or None, frozenset(missing)


def _units(config: ViTMAERobustConfig) -> dict[str, Any] | None:
    """What the patch statistics of a model are bound to. None: to pixels in [0, 1]."""
    return config.band_settings() if config.is_band_model else None


def _config_of_file(source: ModelSource) -> PreTrainedConfig:
    tensors = read_original(source.checkpoint)
    _check_kind(source, tensors)
    needed = check_heads_of_file(source, tensors, *(source.overrides.get(name) for name in _HEADS))
    return config_of_original(tensors, *needed, **size_of_other_grids(tensors, source.overrides))


def check_heads_of_file(
    source: ModelSource, tensors: Mapping[str, Tensor], *heads: int | None
) -> tuple[int | None, ...]:
    """Those numbers of heads (of the encoder, of the decoder) that an official file needs. Raises UserError where one
    is not given."""
    has_decoder = any(key.startswith("decoder_") for key in tensors)
    needed = dict(zip(_HEADS if has_decoder else _HEADS[:1], heads))
    if None in needed.values():
        example = ",".join(f"{name}={heads}" for name, heads in zip(needed, (12, 16)))
        raise UserError(
            f"{source.flag} {source.name} is an official checkpoint. Its tensors do not tell the number of "
            f"heads: give --config_overrides {example} (ViT-B; the encoder of ViT-L and ViT-H has 16)."
        )
    return tuple(needed.values())


def _check_kind(source: ModelSource, tensors: dict[str, Tensor]) -> None:
    if any(key.startswith(("head.", "fc_norm.")) for key in tensors):
        raise UserError(
            f"{source.flag} {source.name} is a classifier in the official layout; pre-training starts from an "
            "encoder, or from encoder and decoder."
        )


def size_of_other_grids(tensors: dict[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The size of the images is that of the run where its patches are as many as the positions, and where these are
    not of a square grid. Any other square grid is of square images."""
    positions, projection = tensors.get("pos_embed"), tensors.get("patch_embed.proj.weight")
    if positions is None or projection is None or positions.dim() != 3 or settings.get("image_size") is None:
        return {}
    num_patches, image_size = positions.shape[1] - 1, settings["image_size"]
    rows, columns = (size // patch for size, patch in zip(to_pair(image_size), projection.shape[-2:]))
    is_square = round(num_patches**0.5) ** 2 == num_patches
    return {"image_size": image_size} if rows * columns == num_patches or not is_square else {}


def _read_file(source: ModelSource, config: ViTMAERobustConfig) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    """The configuration of an official file, and its tensors by the names of `ViTMAERobustForPreTraining`."""
    tensors = read_original(source.checkpoint)
    _check_kind(source, tensors)
    heads = config.num_attention_heads, config.decoder_num_attention_heads
    model = from_original(tensors, *heads, **size_of_other_grids(tensors, config.to_dict())).float()
    prefix = "vit." if isinstance(model, ViTMAERobustModel) else ""
    return model.config, {prefix + key: tensor for key, tensor in model.state_dict().items()}


def _check_sizes(
    source: ModelSource, base: PreTrainedConfig, config: ViTMAERobustConfig, names: tuple[str, ...]
) -> None:
    pairs = {name: (getattr(base, name, None), getattr(config, name)) for name in names}
    if differences := [
        f"{name} is {there} there and {here} asked for"
        for name, (there, here) in pairs.items()
        if there is not None and (to_pair(there) != to_pair(here))
    ]:
        raise UserError(
            f"{source.flag} {source.name} has other sizes, so its weights do not fit ({', '.join(differences)})."
            " Leave these settings out of --config_overrides, or take another recipe where it sets them; or start "
            f"from scratch, without {source.flag}."
        )
