"""Semantic segmentation on top of pre-trained encoders, as stock classes: UperNet on BEiT's backbone.

conversion/beit.py says why a BEiT is the MAE ViT.
"""

from collections.abc import Mapping, Sequence

from transformers import BeitConfig, UperNetConfig, UperNetForSemanticSegmentation

from ...conversion.beit import SHARED_SETTINGS, mae_beit_config, vit_to_beit
from ...conversion.encoders import (
    VIT_ENCODERS,
    Pixels,
    check_classes,
    grid_size,
    load_strictly,
    read_config,
    read_pixels,
    resized_positions,
    start_encoder,
)
from .maps import IGNORED

DEFAULT_IMAGE_SIZE = 512


def tap_indices(num_hidden_layers: int) -> list[int]:
    """Blocks (1-based, as `BeitBackbone` counts) whose outputs UperNet sees: at 1/3, 1/2, 2/3 and the end. So
    mmsegmentation taps its 0-based blocks 3, 5, 7, 11 of ViT-B and 7, 11, 15, 23 of ViT-L."""
    taps = [round(num_hidden_layers * share) for share in (1 / 3, 1 / 2, 2 / 3, 1)]
    if taps[0] < 1 or len(set(taps)) < 4:
        raise ValueError(f"Segmentation taps four blocks; an encoder of {num_hidden_layers} has too few (6 will do).")
    return taps


def backbone_config(encoder_config, image_size: int, drop_path_rate: float, relative_position_bias: bool) -> BeitConfig:
    same = {name: getattr(encoder_config, name) for name in SHARED_SETTINGS}
    return mae_beit_config(
        **same,
        image_size=image_size,
        out_indices=tap_indices(encoder_config.num_hidden_layers),
        add_fpn=True,
        use_mean_pooling=True,  # so there is no final norm, which nothing would use
        use_relative_position_bias=relative_position_bias,
        drop_path_rate=drop_path_rate,
    )


def build_segmenter(
    name: str | None,
    class_names: Sequence[str],
    *,
    from_scratch: bool = False,
    overrides: Mapping | None = None,
    image_size: int | None = None,
    drop_path_rate: float = 0.0,
    relative_position_bias: bool = False,
    auxiliary_loss_weight: float = 0.4,
    channels: int = 512,
    needs_head: bool = False,
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    token: str | None = None,
) -> tuple[UperNetForSemanticSegmentation, Pixels]:
    """UperNet to be trained, and how it wants its images.

    Args:
        name: folder, Hub id or official file of a ViT to start from; None (from scratch only): `overrides` tell the
            sizes.
        from_scratch, overrides: as for `build_classifier`.
        image_size: of the square crops (512); the positions are interpolated (bicubic, 2-D), and train.
        relative_position_bias: add BEiT's relative positions to each block, which start at zero.
        channels: of UperNet's head (mmsegmentation: 768 for ViT-B, 1024 for ViT-L).
        needs_head: `name` has to be a UperNet, which is loaded as it is.

    Returns a model in float32; the backbone has all its weights from the checkpoint, neck and heads are new.

    Raises ValueError: another architecture, other classes, a missing tensor, sizes that do not fit.
    """
    access, overrides = {"trust_remote_code": trust_remote_code, "token": token}, dict(overrides or {})
    names = dict(enumerate(class_names))
    if name is None and not from_scratch:
        raise ValueError("--model_name_or_path is needed, or --from_scratch.")
    kinds = ("upernet",) if needs_head else tuple(VIT_ENCODERS)
    config = read_config(name, kinds, **access) if name is not None else None
    if needs_head:
        if from_scratch or config is None:
            raise ValueError("--eval_only needs a segmenter: a folder or Hub id in --model_name_or_path.")
        check_classes(name, config, class_names, "segmenter")
        model = load_strictly(UperNetForSemanticSegmentation, name, token=token)
        return model.eval(), read_pixels(name, config.backbone_config, token)
    size = image_size or DEFAULT_IMAGE_SIZE
    if from_scratch and image_size is None:
        overrides = {"image_size": size, **overrides}
    encoder, pixels = start_encoder(
        name, config, from_scratch=from_scratch, overrides=overrides, image_size=image_size, **access
    )
    size = encoder.config.image_size if from_scratch else size
    upernet_config = UperNetConfig(
        backbone_config=backbone_config(encoder.config, size, drop_path_rate, relative_position_bias),
        hidden_size=channels,
        auxiliary_loss_weight=auxiliary_loss_weight,
        loss_ignore_index=IGNORED,
        id2label=names,
        label2id={label: i for i, label in names.items()},
    )
    upernet_config.backbone_config._attn_implementation = attn_implementation
    model = UperNetForSemanticSegmentation(upernet_config)
    tensors = vit_to_beit(encoder.state_dict(), uses_mean=True)
    patch_size = encoder.config.patch_size
    tensors["embeddings.position_embeddings"] = resized_positions(
        tensors["embeddings.position_embeddings"], grid_size(encoder.config.image_size, patch_size), size, patch_size
    )
    backbone = model.backbone.beit
    new = {key: tensor for key, tensor in backbone.state_dict().items() if "relative_position" in key}
    backbone.load_state_dict({**new, **tensors})  # an absent tensor, or one without a place, is an error
    return model.train(), pixels
