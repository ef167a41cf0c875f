"""Reading a pre-trained encoder of any kind, strictly: no tensor is missing, none is left over."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from transformers import (
    AutoConfig,
    AutoModel,
    BeitForImageClassification,
    Data2VecVisionForImageClassification,
    DeiTForImageClassification,
    Dinov2ForImageClassification,
    Dinov2WithRegistersForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    ViTForImageClassification,
    ViTModel,
    ViTMSNForImageClassification,
    ViTMSNModel,
)

from ..errors import UserError, refused_by_library
from ..model import ViTMAERobustConfig, ViTMAERobustModel
from .checkpoint_file import LANDMARK, read_original
from .inflation import fit_channels, inflation_note, read_fitted_pixels
from .loading import first_line, listed, load_strictly
from .original import from_original
from .pixels import Pixels, pixels_of
from .settings import CHANNEL_SETTINGS, SIZES, mae_settings, overridden
from .source import ModelSource

VIT_ENCODERS = {
    "vit_mae_robust": ViTMAERobustModel,
    "vit_mae": ViTMAERobustModel,
    "vit": ViTModel,
    "vit_msn": ViTMSNModel,
}
VIT_CLASSIFIERS = {"vit": ViTForImageClassification, "vit_msn": ViTMSNForImageClassification}
# Files of a folder that transformers writes, which is what is read.
_PARTS = ("config.json", "model.safetensors", "pytorch_model.bin")
OWN_CLASSES = {
    "beit": BeitForImageClassification,
    "data2vec-vision": Data2VecVisionForImageClassification,
    "deit": DeiTForImageClassification,
    "dinov2": Dinov2ForImageClassification,
    "dinov2_with_registers": Dinov2WithRegistersForImageClassification,
}
# Of these, the ones that choose between CLS and mean by a setting.
WITH_POOLING = ("beit", "data2vec-vision")
DINOV2 = ("dinov2", "dinov2_with_registers")
ALL_KINDS = (*VIT_ENCODERS, *OWN_CLASSES)


def has_head(config: PreTrainedConfig) -> bool:
    """Not DeiTForImageClassificationWithTeacher: transformers has it for inference only."""
    return any(name.endswith("ForImageClassification") for name in config.architectures or ())


def check_not_part_of_folder(name: str) -> None:
    """Raises UserError for a file that is read by its folder."""
    if Path(name).name in _PARTS and Path(name).with_name("config.json").exists():
        raise UserError(f"{name} is a file of a model's folder. Give the folder, {Path(name).parent}.")


def open_config(source: ModelSource) -> PreTrainedConfig | None:
    """The config of a checkpoint of any kind; None for a file in the official layout.

    Raises ValueError for a checkpoint that does not exist, and where no name is given.
    """
    name = source.name
    if name is None:
        raise UserError("--model_name_or_path is needed, or --from_scratch.")
    if Path(name).is_file():
        check_not_part_of_folder(name)
        return None
    with refused_by_library(f"{name}: its config.json cannot be used"):
        try:
            return AutoConfig.from_pretrained(name, **source.access.options)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and (not Path(name).is_dir() or (Path(name) / "config.json").exists()):
                raise
            raise UserError(
                f"{name}: no file, no folder with a config.json, and not found on the Hub "
                f"({first_line(error)}) Give a folder that run_pretrain.py has written (outputs/digits "
                "without arguments), a Hub id or an official file."
            ) from error


# What fine-tuning writes, too.
FINE_TUNED_KINDS = ("beit", "upernet", "vit_mae_robust_detection")
_OF_FINE_TUNED = " If run_finetune.py has written it, start from the pre-trained encoder that it came from."


def read_config(source: ModelSource, kinds: Sequence[str] = ALL_KINDS) -> PreTrainedConfig | None:
    """As `open_config`. Raises ValueError, too, for an architecture (`model_type`) that is not among `kinds`."""
    config = open_config(source)
    if config is not None and config.model_type not in kinds:
        raise UserError(
            f"{source.name} is a '{config.model_type}' model; needed here: {', '.join(kinds)}."
            + (_OF_FINE_TUNED if "vit" in kinds and config.model_type in FINE_TUNED_KINDS else "")
        )
    return config


def config_to_start_from(source: ModelSource, kinds: Sequence[str] = ALL_KINDS) -> PreTrainedConfig | None:
    """As `read_config`, for a model that takes the checkpoint's weights. Raises ValueError for overrides, too: all but
    the number of heads of an official file."""
    config = read_config(source, kinds)
    if source.overrides.keys() - (set() if config is not None else {"num_attention_heads"}):
        raise UserError(f"--config_overrides {', '.join(source.overrides)}: these are for --from_scratch.")
    return config


def load_vit(source: ModelSource, config: PreTrainedConfig | None) -> PreTrainedModel:
    """A ViT from a folder, the Hub or an official file: an encoder, or a classifier where the checkpoint is one; for
    images of `source.num_channels`. config: as `read_config` gives it, of one of VIT_ENCODERS."""
    model = _load_vit_as_it_is(source, config)
    fit_channels(cast(PreTrainedModel, model.base_model), source)
    return model


def _load_vit_as_it_is(source: ModelSource, config: PreTrainedConfig | None) -> PreTrainedModel:
    if config is None:
        return _load_official(source)
    encoder_class = VIT_ENCODERS[config.model_type]
    if encoder_class is ViTMAERobustModel:
        form = ViTMAERobustConfig(**mae_settings(config))
        return load_strictly(
            encoder_class, source.checkpoint, ("mid_mask_token",), config=form, token=source.access.token
        )
    if has_head(config):
        return load_strictly(VIT_CLASSIFIERS[config.model_type], source.checkpoint, **source.access.options)
    return load_strictly(encoder_class, source.checkpoint, ("pooler.",), **source.access.options)


def _load_official(source: ModelSource) -> PreTrainedModel:
    found = read_original(source.checkpoint)
    if LANDMARK not in found:  # nobody is asked for the number of heads of another model
        raise UserError(
            f"{source.name} is not an official checkpoint: it has no {LANDMARK}; its tensors are {listed(found)}. Give "
            "a Vision Transformer in the layout of the official MAE, a folder or a Hub id."
        )
    heads = source.overrides.get("num_attention_heads")
    if heads is None:
        raise UserError(
            f"{source.name} is an official checkpoint. Its tensors do not tell the number of heads: give "
            f"{source.heads_flag}12 (ViT-B; ViT-L and ViT-H 16)."
        )
    decoder = ("decoder_", "mask_token")
    return from_original({key: value for key, value in found.items() if not key.startswith(decoder)}, heads).float()


def _load_own_encoder(source: ModelSource, config: PreTrainedConfig) -> PreTrainedModel:
    # The pooler of BEiT and data2vec is the norm after the mean; new where no classifier was trained. DeiT's is not
    # used, and DINOv2 has none.
    has_pooler = config.model_type in WITH_POOLING
    options = {} if config.model_type in DINOV2 else {"add_pooling_layer": has_pooler}
    may_be_missing = ("pooler.",) if has_pooler and not has_head(config) else ()
    encoder = load_strictly(
        cast(type[PreTrainedModel], AutoModel), source.checkpoint, may_be_missing, **options, **source.access.options
    )
    fit_channels(encoder, source)
    return encoder


def note_of_inflation(source: ModelSource) -> str | None:
    """What reading this encoder does to its patch projection, as a part of a sentence. None: nothing."""
    if source.name is None or source.num_channels is None:
        return None
    config = open_config(source)
    old = read_original(source.name)["patch_embed.proj.weight"].shape[1] if config is None else config.num_channels
    return inflation_note(source, old, source.num_channels) if old != source.num_channels else None


def read_encoder(source: ModelSource, kinds: Sequence[str] = ALL_KINDS) -> tuple[PreTrainedModel, Pixels]:
    """The encoder of a checkpoint, in float32 and evaluation mode, and how it wants its images. A decoder or a head is
    left behind.

    Args:
        kinds: what it may be, beside an official file: keys of VIT_ENCODERS (classes of the ViT family, whose tensors
            have the same names) and of OWN_CLASSES.

    Raises ValueError: another architecture, a missing tensor, overrides that are for a model from scratch, another
    number of channels than `source.num_channels` without `source.inflate_channels`.
    """
    config = config_to_start_from(source, kinds)
    if config is not None and config.model_type in OWN_CLASSES:
        encoder = _load_own_encoder(source, config)
    else:
        encoder = cast(PreTrainedModel, load_vit(source, config).base_model)
    return encoder, read_fitted_pixels(source, config or encoder.config)


def encoder_from_scratch(source: ModelSource, image_size: int | None = None) -> tuple[ViTMAERobustModel, Pixels]:
    """A ViT encoder as it is before MAE's pre-training (Xavier weights, sine-cosine positions), and how it wants its
    images. Its sizes are those of the checkpoint, if one is named, with the overrides, which win.

    Args:
        image_size: other than the checkpoint's, where it is not in the overrides.

    Raises ValueError: no sizes in this checkpoint, unknown settings, values out of range.
    """
    form = {}
    if source.name is not None:
        config = read_config(source)
        if config is None:
            raise UserError(
                f"--from_scratch takes no sizes from a file ({source.name}): give --config_overrides alone."
            )
        if config.model_type not in (*VIT_ENCODERS, "beit"):
            raise UserError(f"--from_scratch takes sizes of a ViT or MAE checkpoint, not of '{config.model_type}'.")
        names = (*SIZES, "intermediate_size", "image_size", *CHANNEL_SETTINGS)
        form = {name: getattr(config, name) for name in names if hasattr(config, name)}
    if image_size is not None:
        form["image_size"] = image_size
    encoder = ViTMAERobustModel(overridden(form, source.overrides))
    return encoder, pixels_of(encoder.config)
