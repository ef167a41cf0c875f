"""Classifiers on top of pre-trained encoders, as stock classes.

Encoders of the ViT family (ours, stock and official MAE, ViT and with it DINO, MoCo v3 and iBOT, MSN) train as
`BeitForImageClassification` (conversion/beit.py says why); BEiT, data2vec, DeiT and DINOv2 train as their own classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn
from transformers import AutoModelForImageClassification, BeitForImageClassification, PreTrainedConfig, PreTrainedModel

from ...conversion.beit import fill_beit, mae_beit_config
from ...conversion.encoders import (
    ALL_KINDS,
    DINOV2,
    OWN_CLASSES,
    WITH_POOLING,
    config_to_start_from,
    encoder_from_scratch,
    has_head,
    load_vit,
)
from ...conversion.finetuned import check_classes, label_settings
from ...conversion.inflation import fit_channels, read_fitted_pixels
from ...conversion.loading import load_strictly
from ...conversion.pixels import Pixels, read_pixels
from ...conversion.positions import grid_size, resized_positions, square_size
from ...conversion.settings import settings_of
from ...conversion.source import ModelSource
from ...errors import UserError

# Official code: main_finetune.py, main_linprobe.py.
HEAD_STD = 2e-5
PROBE_HEAD_STD = 0.01
TIMM_WRAPPER = "timm_wrapper"  # an attentive probe


@dataclass(frozen=True)
class ClassifierSettings:
    """Of a classifier to be trained.

    Attributes:
        image_size: other than the checkpoint's: its positions are interpolated (bicubic, 2-D), and train.
        pooling: "mean" of the patch tokens, then a new LayerNorm (MAE's fine-tuning), or "cls", after the final norm
            (MAE's linear probe). None: "mean", or what the class of the checkpoint has.
        drop_path_rate: of the last block; it grows linearly from 0.
        head_std: of the weights of a new head.
        new_head: put a new head on a classifier. Without it the head is kept, and other classes, or another pooling,
            are an error.
        attn_implementation: "sdpa" or "eager".
    """

    image_size: int | None = None
    pooling: str | None = None
    drop_path_rate: float = 0.0
    head_std: float = HEAD_STD
    new_head: bool = False
    attn_implementation: str = "sdpa"


def init_head(model: PreTrainedModel, std: float) -> None:
    classifier = cast(nn.Linear, model.classifier)
    nn.init.trunc_normal_(classifier.weight, std=std)
    nn.init.zeros_(classifier.bias)


def classifier_from_scratch(
    source: ModelSource, class_names: Sequence[str], settings: ClassifierSettings = ClassifierSettings()
) -> tuple[BeitForImageClassification, Pixels]:
    """A classifier that starts as an MAE encoder does before pre-training, with positions that train; and how it wants
    its images. It is in float32 and in training mode, with `config.id2label` set.

    source: see `encoder_from_scratch`; class_names: of the data, in the order of their numbers. Raises ValueError.
    """
    fields = _config_fields(class_names, settings)
    encoder, pixels = encoder_from_scratch(source, settings.image_size)
    model = _beit_of(encoder, fields, replace(settings, image_size=None))
    init_head(model, settings.head_std)
    return model.train(), pixels


def classifier_from_checkpoint(
    source: ModelSource, class_names: Sequence[str], settings: ClassifierSettings = ClassifierSettings()
) -> tuple[PreTrainedModel, Pixels]:
    """A classifier with the weights of an encoder, or of another classifier; and how it wants its images. It is in
    float32 and in training mode, with `config.id2label` set and position embeddings that train.

    source: a checkpoint of a kind that `read_encoder` takes; class_names: of the data, in the order of their numbers.

    Raises ValueError: another architecture, other classes, a missing tensor, or settings that the class does not have.
    """
    fields = _config_fields(class_names, settings)
    config = config_to_start_from(source)
    if config is not None and config.model_type in OWN_CLASSES:
        _check_settings_of_kind(config, settings)
        keeps_head = has_head(config) and not settings.new_head
        if keeps_head:
            _check_head(source.checkpoint, config, class_names, settings.pooling)
        model: PreTrainedModel = _own_class(source, config, fields, keeps_head, settings)
    else:
        vit = load_vit(source, config)
        keeps_head = hasattr(vit, "classifier") and not settings.new_head
        if keeps_head:
            own_pooling = _check_head(source.checkpoint, vit.config, class_names, settings.pooling)
            settings = replace(settings, pooling=own_pooling)
        model = _beit_of(cast(PreTrainedModel, vit.base_model), fields, settings)
        if keeps_head:
            cast(nn.Module, model.classifier).load_state_dict(cast(nn.Module, vit.classifier).state_dict())
    if not keeps_head:
        init_head(model, settings.head_std)
    return model.train(), read_fitted_pixels(source, config or vit.config)


def classifier_for_evaluation(
    source: ModelSource, class_names: Sequence[str], attn_implementation: str = "sdpa"
) -> tuple[PreTrainedModel, Pixels]:
    """A classifier of any stock class as it is, in float32 and in evaluation mode; and how it wants its images.

    Raises ValueError: not a classifier, other classes than the data's, a missing tensor.
    """
    labels, config = _labels(class_names), config_to_start_from(source, (*ALL_KINDS, TIMM_WRAPPER))
    if config is not None and config.model_type == TIMM_WRAPPER and not hasattr(config, "num_channels"):
        raise UserError(
            f"--model_name_or_path {source.name} is a model of timm. Of these, --eval_only takes what --probe "
            "attentive has written; `python -m hf_mae_robust convert` takes plain ViTs of timm."
        )
    model: Any = load_vit(source, None) if config is None else None
    is_classifier = hasattr(model, "classifier")
    if config is not None:  # also DeiTForImageClassificationWithTeacher
        is_classifier = any("ForImageClassification" in name for name in config.architectures or ())
    if not is_classifier:
        raise UserError(f"--model_name_or_path {source.name} is not a classifier.")
    check_classes(source.checkpoint, config or model.config, class_names)
    if model is None:
        options = {"attn_implementation": attn_implementation, **source.access.options}
        model = load_strictly(
            cast(type[PreTrainedModel], AutoModelForImageClassification), source.checkpoint, **options
        )
    else:  # a file holds no names
        model.config.update(labels)
    return model, read_pixels(source, config or model.config)


def _labels(class_names: Sequence[str]) -> dict[str, Any]:
    if len(set(class_names)) != len(class_names):
        raise UserError("Two classes of the data have the same name.")
    return label_settings(class_names)


def _config_fields(class_names: Sequence[str], settings: ClassifierSettings) -> dict[str, Any]:
    labels, rate = _labels(class_names), settings.drop_path_rate
    return {**labels, "drop_path_rate": rate, "problem_type": "single_label_classification"}


def _check_head(name: str, config: PreTrainedConfig, class_names: Sequence[str], pooling: str | None) -> str:
    """The pooling of a classifier whose head is kept. Raises ValueError where it cannot be kept."""
    check_classes(name, config, class_names, hint="--ignore_mismatched_sizes puts a new head on it.")
    own = "mean" if getattr(config, "use_mean_pooling", False) else "cls"
    if pooling not in (None, own):
        raise UserError(
            f"--pooling {pooling}: {name} is a classifier with --pooling {own}. --ignore_mismatched_sizes puts a new "
            "head on it."
        )
    return own


def _beit_of(
    encoder: PreTrainedModel, fields: dict[str, Any], settings: ClassifierSettings
) -> BeitForImageClassification:
    """A BEiT that computes what a ViT does. fields: of the config: labels, drop path. Without pooling: mean."""
    size = settings.image_size or square_size(encoder.config.image_size)
    uses_mean = settings.pooling != "cls"
    if getattr(encoder.config, "use_mean_pooling", False) and not uses_mean:
        raise UserError("--pooling cls: this classifier pools the mean, and has no norm for the CLS token.")
    config = mae_beit_config(**settings_of(encoder.config), image_size=size, use_mean_pooling=uses_mean, **fields)
    model = BeitForImageClassification._from_config(config, attn_implementation=settings.attn_implementation)
    fill_beit(model.beit, encoder)
    return model


def _has_plain_positions(config: PreTrainedConfig) -> bool:
    """Positions that can be interpolated: those of BEiT in MAE's form, and of DINOv2."""
    if config.model_type in DINOV2:
        return True
    relative = ("use_relative_position_bias", "use_shared_relative_position_bias")
    is_beit = config.model_type == "beit" and config.use_absolute_position_embeddings
    return is_beit and not any(getattr(config, name) for name in relative)


def _check_settings_of_kind(config: PreTrainedConfig, settings: ClassifierSettings) -> None:
    """Raises ValueError for a setting that the stock class of this kind does not have."""
    kind, size = config.model_type, square_size(config.image_size)
    pooling, image_size = settings.pooling, settings.image_size
    if pooling is not None and kind not in WITH_POOLING:
        raise UserError(f"--pooling {pooling}: '{kind}' has no such setting; it classifies from its own features.")
    # A pre-trained BEiT has that norm, though its config says that it pools the mean.
    is_pretrained = "BeitForMaskedImageModeling" in (config.architectures or ())
    if pooling == "cls" and config.use_mean_pooling and not is_pretrained:
        raise UserError(f"--pooling cls: this '{kind}' pools the mean, and has no norm for the CLS token.")
    if settings.drop_path_rate and not hasattr(config, "drop_path_rate"):
        raise UserError(f"'{kind}' has no drop path: give --drop_path_rate 0.")
    if image_size not in (None, size) and not _has_plain_positions(config):
        raise UserError(f"--image_size {image_size}: '{kind}' is fine-tuned at its own size, {size}.")


def _own_class(
    source: ModelSource,
    config: PreTrainedConfig,
    fields: dict[str, Any],
    keeps_head: bool,
    settings: ClassifierSettings,
) -> PreTrainedModel:
    """The classifier of the checkpoint's own kind."""
    kind = config.model_type
    model_class: type[PreTrainedModel] = OWN_CLASSES[kind]
    fields = {key: value for key, value in fields.items() if hasattr(config, key)}  # DeiT has no drop path
    may_be_missing: tuple[str, ...] = () if keeps_head else ("classifier.",)
    if kind in WITH_POOLING:
        uses_mean = config.use_mean_pooling if settings.pooling is None else settings.pooling == "mean"
        fields["use_mean_pooling"] = uses_mean
        if not has_head(config) or uses_mean != config.use_mean_pooling:  # the norm after the pooling is new
            may_be_missing += (f"{model_class.base_model_prefix}.pooler.",)
    options = {"attn_implementation": settings.attn_implementation, **source.access.options}
    model = load_strictly(model_class, source.checkpoint, may_be_missing, **fields, **options)
    encoder: Any = model.base_model
    fit_channels(encoder, source)
    if (mask_token := getattr(encoder.embeddings, "mask_token", None)) is not None:
        # No image is masked here, and DistributedDataParallel would wait for its gradient.
        mask_token.requires_grad_(False)
    if settings.image_size not in (None, square_size(config.image_size)):
        _resize(model, settings.image_size)
    if kind in DINOV2:  # stock gives the same rate to all blocks
        blocks = [module for module in model.modules() if hasattr(module, "drop_path")]
        for number, block in enumerate(blocks):
            rate = settings.drop_path_rate * number / max(len(blocks) - 1, 1)
            block.drop_path = type(block.drop_path)(rate) if rate else nn.Identity()
    return model


def _resize(model: PreTrainedModel, image_size: int) -> None:
    """Interpolate the positions, so that the model is saved and loaded with a table of its own size."""
    encoder: Any = model.base_model
    config, embeddings = model.config, encoder.embeddings
    if config.model_type in DINOV2:  # as each does in every step; that with registers smooths
        rows, columns = grid_size(image_size, config.patch_size)
        tokens = embeddings.position_embeddings.new_zeros(1, 1 + rows * columns, config.hidden_size)
        table = embeddings.interpolate_pos_encoding(tokens, image_size, image_size).detach()
    else:
        table = resized_positions(encoder, image_size)
    embeddings.position_embeddings = nn.Parameter(table.clone())
    config.image_size = image_size
