"""Classifiers on top of pre-trained encoders, as stock classes.

Encoders of the ViT family (ours, stock and official MAE, ViT and with it DINO, MoCo v3 and iBOT, MSN) train as
`BeitForImageClassification` (conversion/beit.py says why); BEiT, data2vec, DeiT and DINOv2 train as their own classes.
"""

from collections.abc import Mapping, Sequence

from torch import nn
from transformers import AutoModelForImageClassification, BeitForImageClassification, PreTrainedConfig, PreTrainedModel

from ...conversion.beit import SHARED_SETTINGS, mae_beit_config, vit_to_beit
from ...conversion.encoders import (
    DINOV2,
    OWN_CLASSES,
    WITH_POOLING,
    Pixels,
    check_classes,
    grid_size,
    has_head,
    load_strictly,
    load_vit,
    pixels_of,
    read_config,
    read_pixels,
    resized_positions,
    square_size,
    start_encoder,
)

# Official code: main_finetune.py, main_linprobe.py.
HEAD_STD = 2e-5
PROBE_HEAD_STD = 0.01


def _check_head(name: str, config: PreTrainedConfig, class_names: Sequence[str], pooling: str | None) -> None:
    """Raises ValueError where the head of a classifier cannot be kept."""
    check_classes(name, config, class_names)
    own = "mean" if getattr(config, "use_mean_pooling", False) else "cls"
    if pooling not in (None, own):
        raise ValueError(
            f"--pooling {pooling}: {name} is a classifier with --pooling {own}. --ignore_mismatched_sizes puts a new "
            "head on it."
        )


def init_head(model: PreTrainedModel, std: float) -> None:
    nn.init.trunc_normal_(model.classifier.weight, std=std)
    nn.init.zeros_(model.classifier.bias)


def build_classifier(
    name: str | None,
    class_names: Sequence[str],
    *,
    from_scratch: bool = False,
    overrides: Mapping | None = None,
    image_size: int | None = None,
    pooling: str | None = None,
    drop_path_rate: float = 0.0,
    head_std: float = HEAD_STD,
    new_head: bool = False,
    needs_head: bool = False,
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    token: str | None = None,
) -> tuple[PreTrainedModel, Pixels]:
    """A classifier to be trained, and how it wants its images.

    Args:
        name: folder, Hub id or official file to start from; None (from scratch only): `overrides` tell the sizes.
        class_names: of the data, in the order of their numbers.
        from_scratch: take the architecture of `name` only, and start as an MAE encoder does before pre-training:
            Xavier weights and sine-cosine positions, which then train.
        overrides: fields of [`ViTMAERobustConfig`] for a model from scratch; `num_attention_heads` of an official file.
        image_size: other than the checkpoint's: its positions are interpolated (bicubic, 2-D), and train.
        pooling: "mean" of the patch tokens, then a new LayerNorm (MAE's fine-tuning), or "cls", after the final norm
            (MAE's linear probe). None: "mean", or what the class of the checkpoint has.
        drop_path_rate: of the last block; it grows linearly from 0.
        new_head: put a new head on a classifier. Without it the head is kept, and other classes, or another pooling,
            are an error.
        needs_head: `name` has to be a classifier (of any stock class), which is loaded as it is.

    Returns a model in float32 and in training mode, with `config.id2label` set and position embeddings that train; with
    `needs_head` in evaluation mode.

    Raises ValueError: another architecture, other classes, a missing tensor, or settings that the class does not have.
    """
    access, overrides = {"trust_remote_code": trust_remote_code, "token": token}, dict(overrides or {})
    if len(set(class_names)) != len(class_names):
        raise ValueError("Two classes of the data have the same name.")
    names = dict(enumerate(class_names))
    settings = {"id2label": names, "label2id": {label: i for i, label in names.items()}}
    config = read_config(name, **access) if name is not None else None
    if not from_scratch:
        if name is None:
            raise ValueError("--model_name_or_path is needed, or --from_scratch.")
        if overrides.keys() - (set() if config is not None else {"num_attention_heads"}):
            raise ValueError(f"--config_overrides {', '.join(overrides)}: these are for --from_scratch.")
    heads, options = overrides.get("num_attention_heads"), {"attn_implementation": attn_implementation}
    if needs_head:
        if from_scratch:
            raise ValueError("--from_scratch gives no classifier to evaluate.")
        model = _load_classifier(name, config, class_names, heads, settings, {**options, **access})
        return model, pixels_of(model.config) if config is None else read_pixels(name, config, token)

    settings |= {"drop_path_rate": drop_path_rate, "problem_type": "single_label_classification"}
    keeps_head = False
    if from_scratch:
        encoder, pixels = start_encoder(
            name, config, from_scratch=True, overrides=overrides, image_size=image_size, **access
        )
        model = _beit_of(encoder, None, pooling, keeps_head, settings, options)
    elif config is not None and config.model_type in OWN_CLASSES:
        pixels, keeps_head = read_pixels(name, config, token), has_head(config) and not new_head
        _check_settings_of_kind(config, pooling, drop_path_rate, image_size)
        if keeps_head:
            _check_head(name, config, class_names, pooling)
        model = _own_class(name, config, image_size, pooling, keeps_head, settings, {**options, **access})
    else:
        source = load_vit(name, config, heads, access)
        pixels = pixels_of(source.config) if config is None else read_pixels(name, config, token)
        keeps_head = hasattr(source, "classifier") and not new_head
        if keeps_head:
            _check_head(name, source.config, class_names, pooling)
        model = _beit_of(source, image_size, pooling, keeps_head, settings, options)
    if not keeps_head:
        init_head(model, head_std)
    return model.train(), pixels


def _load_classifier(
    name: str,
    config: PreTrainedConfig | None,
    class_names: Sequence[str],
    heads: int | None,
    labels: dict,
    options: dict,
) -> PreTrainedModel:
    """A classifier as it is. labels: for an official file, which holds no names."""
    is_classifier = config is None or any("ForImageClassification" in kind for kind in config.architectures or ())
    model = load_vit(name, None, heads, options) if config is None else None
    if not is_classifier or (model is not None and not hasattr(model, "classifier")):
        raise ValueError(f"--model_name_or_path {name} is no classifier.")
    check_classes(name, config or model.config, class_names)
    if model is None:
        return load_strictly(AutoModelForImageClassification, name, **options)
    model.config.update(labels)
    return model


def _beit_of(
    source: PreTrainedModel,
    image_size: int | None,
    pooling: str | None,
    keeps_head: bool,
    settings: dict,
    options: dict,
) -> BeitForImageClassification:
    """A BEiT that computes what a ViT does. source: encoder or classifier; settings: of the config: labels, drop path.

    Without pooling: mean, or as in the head that is kept.
    """
    encoder, has_mean_norm = source.base_model, getattr(source.config, "use_mean_pooling", False)
    size = image_size or square_size(encoder.config.image_size)
    uses_mean = has_mean_norm if keeps_head else pooling != "cls"
    if has_mean_norm and not uses_mean:
        raise ValueError("--pooling cls: this classifier pools the mean, and has no norm for the CLS token.")
    same = {name: getattr(encoder.config, name) for name in SHARED_SETTINGS}
    config = mae_beit_config(**same, image_size=size, use_mean_pooling=uses_mean, **settings)
    model = BeitForImageClassification._from_config(config, **options)
    tensors = vit_to_beit(encoder.state_dict(), uses_mean)
    positions, grid = tensors["embeddings.position_embeddings"], grid_size(encoder.config.image_size, config.patch_size)
    tensors["embeddings.position_embeddings"] = resized_positions(positions, grid, size, config.patch_size)
    new = {f"pooler.{name}": tensor for name, tensor in model.beit.pooler.named_parameters()}
    model.beit.load_state_dict({**new, **tensors})  # an absent tensor, or one without a place, is an error
    if keeps_head:
        model.classifier.load_state_dict(source.classifier.state_dict())
    return model


def _has_plain_positions(config: PreTrainedConfig) -> bool:
    """Positions that can be interpolated: those of BEiT in MAE's form, and of DINOv2."""
    if config.model_type in DINOV2:
        return True
    relative = ("use_relative_position_bias", "use_shared_relative_position_bias")
    is_beit = config.model_type == "beit" and config.use_absolute_position_embeddings
    return is_beit and not any(getattr(config, name) for name in relative)


def _check_settings_of_kind(
    config: PreTrainedConfig, pooling: str | None, drop_path_rate: float, image_size: int | None
) -> None:
    """Raises ValueError for a setting that the stock class of this kind does not have."""
    kind, size = config.model_type, square_size(config.image_size)
    if pooling is not None and kind not in WITH_POOLING:
        raise ValueError(f"--pooling {pooling}: '{kind}' has no such setting; it classifies from its own features.")
    # A pre-trained BEiT has that norm, though its config says that it pools the mean.
    is_pretrained = "BeitForMaskedImageModeling" in (config.architectures or ())
    if pooling == "cls" and config.use_mean_pooling and not is_pretrained:
        raise ValueError(f"--pooling cls: this '{kind}' pools the mean, and has no norm for the CLS token.")
    if drop_path_rate and not hasattr(config, "drop_path_rate"):
        raise ValueError(f"'{kind}' has no drop path: give --drop_path_rate 0.")
    if image_size not in (None, size) and not _has_plain_positions(config):
        raise ValueError(f"--image_size {image_size}: '{kind}' is fine-tuned at its own size, {size}.")


def _own_class(
    name: str,
    config: PreTrainedConfig,
    image_size: int | None,
    pooling: str | None,
    keeps_head: bool,
    settings: dict,
    options: dict,
) -> PreTrainedModel:
    """The classifier of the checkpoint's own kind."""
    kind, model_class = config.model_type, OWN_CLASSES[config.model_type]
    settings = {key: value for key, value in settings.items() if hasattr(config, key)}  # DeiT has no drop path
    may_be_missing = () if keeps_head else ("classifier.",)
    if kind in WITH_POOLING:
        uses_mean = config.use_mean_pooling if pooling is None else pooling == "mean"
        settings["use_mean_pooling"] = uses_mean
        if not has_head(config) or uses_mean != config.use_mean_pooling:  # the norm after the pooling is new
            may_be_missing += (f"{model_class.base_model_prefix}.pooler.",)
    model = load_strictly(model_class, name, may_be_missing, **settings, **options)
    if image_size not in (None, square_size(config.image_size)):
        _resize(model, image_size)
    if kind in DINOV2:  # stock gives the same rate to all blocks
        blocks = [module for module in model.modules() if hasattr(module, "drop_path")]
        for number, block in enumerate(blocks):
            rate = settings["drop_path_rate"] * number / max(len(blocks) - 1, 1)
            block.drop_path = type(block.drop_path)(rate) if rate else nn.Identity()
    return model


def _resize(model: PreTrainedModel, image_size: int) -> None:
    """Interpolate the positions, so that the model is saved and loaded with a table of its own size."""
    config, embeddings = model.config, model.base_model.embeddings
    table, grid = embeddings.position_embeddings.detach(), grid_size(image_size, config.patch_size)
    if config.model_type in DINOV2:  # as each does in every step; that with registers smooths
        tokens = table.new_zeros(1, 1 + grid[0] * grid[1], table.shape[-1])
        table = embeddings.interpolate_pos_encoding(tokens, image_size, image_size).detach()
    else:
        old_grid = grid_size(config.image_size, config.patch_size)
        table = resized_positions(table, old_grid, image_size, config.patch_size)
    embeddings.position_embeddings = nn.Parameter(table.clone())
    config.image_size = image_size
