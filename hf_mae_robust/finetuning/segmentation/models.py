"""Semantic segmentation on top of pre-trained encoders, as stock classes: UperNet on BEiT's backbone.

conversion/beit.py says why a BEiT is the MAE ViT.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from transformers import BeitConfig, PreTrainedConfig, PreTrainedModel, UperNetConfig, UperNetForSemanticSegmentation

from ...conversion.beit import fill_beit, mae_beit_config
from ...conversion.encoders import VIT_ENCODERS, encoder_from_scratch, read_encoder
from ...conversion.finetuned import label_settings, read_finetuned
from ...conversion.pixels import Pixels, read_pixels
from ...conversion.positions import square_patch
from ...conversion.settings import settings_of
from ...conversion.source import ModelSource
from ...errors import UserError
from .maps import IGNORED

DEFAULT_IMAGE_SIZE = 512


@dataclass(frozen=True)
class SegmenterSettings:
    """Of a UperNet to be trained.

    Attributes:
        image_size: of the square crops; the positions are interpolated (bicubic, 2-D), and train.
        drop_path_rate: of the last block; it grows linearly from 0.
        relative_position_bias: add BEiT's relative positions to each block, which start at zero.
        auxiliary_loss_weight: of the loss of the auxiliary head.
        channels: of UperNet's head (mmsegmentation: 768 for ViT-B, 1024 for ViT-L).
        attn_implementation: "sdpa" or "eager".
    """

    image_size: int = DEFAULT_IMAGE_SIZE
    drop_path_rate: float = 0.0
    relative_position_bias: bool = False
    auxiliary_loss_weight: float = 0.4
    channels: int = 512
    attn_implementation: str = "sdpa"


def tap_indices(num_hidden_layers: int) -> list[int]:
    """Blocks (1-based, as `BeitBackbone` counts) whose outputs UperNet sees: at 1/3, 1/2, 2/3 and the end. So
    mmsegmentation taps its 0-based blocks 3, 5, 7, 11 of ViT-B and 7, 11, 15, 23 of ViT-L."""
    taps = [round(num_hidden_layers * share) for share in (1 / 3, 1 / 2, 2 / 3, 1)]
    if taps[0] < 1 or len(set(taps)) < 4:
        raise UserError(f"Segmentation taps four blocks; an encoder of {num_hidden_layers} has too few (6 will do).")
    return taps


def backbone_config(encoder_config: PreTrainedConfig, image_size: int, settings: SegmenterSettings) -> BeitConfig:
    square_patch(encoder_config.patch_size, "Segmentation")
    return mae_beit_config(
        **settings_of(encoder_config),
        image_size=image_size,
        out_indices=tap_indices(encoder_config.num_hidden_layers),
        add_fpn=True,
        use_mean_pooling=True,  # so there is no final norm, which nothing would use
        use_relative_position_bias=settings.relative_position_bias,
        drop_path_rate=settings.drop_path_rate,
    )


def segmenter_from_scratch(
    source: ModelSource, class_names: Sequence[str], settings: SegmenterSettings = SegmenterSettings()
) -> tuple[UperNetForSemanticSegmentation, Pixels]:
    """UperNet on an encoder as it is before MAE's pre-training, and how it wants its images; in float32 and in training
    mode. source: see `encoder_from_scratch`; an `image_size` in its overrides wins. Raises ValueError."""
    encoder, pixels = encoder_from_scratch(source, settings.image_size)
    return _segmenter_on(encoder, cast(int, encoder.config.image_size), class_names, settings), pixels


def segmenter_from_encoder(
    source: ModelSource, class_names: Sequence[str], settings: SegmenterSettings = SegmenterSettings()
) -> tuple[UperNetForSemanticSegmentation, Pixels]:
    """UperNet to be trained, and how it wants its images.

    Returns a model in float32 and in training mode; the backbone has all its weights from the checkpoint (a ViT), neck
    and heads are new.

    Raises ValueError: another architecture, a missing tensor, sizes that do not fit.
    """
    encoder, pixels = read_encoder(source, tuple(VIT_ENCODERS))
    return _segmenter_on(encoder, settings.image_size, class_names, settings), pixels


def segmenter_for_evaluation(
    source: ModelSource, class_names: Sequence[str]
) -> tuple[UperNetForSemanticSegmentation, Pixels]:
    """A UperNet as it is, in evaluation mode, and how it wants its images. Raises ValueError as `read_finetuned`."""
    model = read_finetuned(source, UperNetForSemanticSegmentation, class_names, "segmenter")
    return model, read_pixels(source, cast(PreTrainedConfig, model.config.backbone_config))


def _segmenter_on(
    encoder: PreTrainedModel, image_size: int, class_names: Sequence[str], settings: SegmenterSettings
) -> UperNetForSemanticSegmentation:
    config = UperNetConfig(
        backbone_config=backbone_config(encoder.config, image_size, settings),
        hidden_size=settings.channels,
        auxiliary_loss_weight=settings.auxiliary_loss_weight,
        loss_ignore_index=IGNORED,
        **label_settings(class_names),
    )
    cast(PreTrainedConfig, config.backbone_config)._attn_implementation = settings.attn_implementation
    model = UperNetForSemanticSegmentation(config)
    fill_beit(model.backbone.beit, encoder)
    return model.train()
