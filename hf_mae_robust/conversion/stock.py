"""Between this package's encoders and transformers' own classes (ViT-MAE, ViT, MSN, BEiT)."""

from typing import Any, cast

from torch import Tensor, nn
from transformers import (
    BeitForImageClassification,
    BeitModel,
    BeitPreTrainedModel,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from ..errors import UserError
from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining, ViTMAERobustModel
from .beit import mae_beit_config, with_key_biases, without_key_biases
from .encoders import load_vit
from .loading import load_strictly
from .pixels import Pixels, read_pixels
from .pretraining_model import PRETRAINING_KINDS
from .settings import SHARED_SETTINGS, mae_settings, settings_of
from .source import ModelSource

# Encoders whose tensors have the names and the meaning of a ViT-MAE's.
STOCK_KINDS = (*PRETRAINING_KINDS, "vit", "vit_msn")


def read_stock(source: ModelSource, config: PreTrainedConfig) -> tuple[PreTrainedModel, Pixels]:
    """A checkpoint of one of STOCK_KINDS as a model of this package, with its decoder where it has one, in evaluation
    mode, and how it wants its images. The source's overrides are fields of [`ViTMAERobustConfig`].

    Raises ValueError where a tensor is missing.
    """
    pixels = read_pixels(source, config)
    is_mae = config.model_type in PRETRAINING_KINDS
    form = mae_settings(config) if is_mae else settings_of(config, (*SHARED_SETTINGS, "image_size", "qkv_bias"))
    settings = ViTMAERobustConfig(**{**form, **pixels.config_settings(), **source.overrides})
    if is_mae:
        has_decoder = any(name.endswith("ForPreTraining") for name in config.architectures or ())
        model_class = ViTMAERobustForPreTraining if has_decoder else ViTMAERobustModel
        new = ("vit.mid_mask_token", "mid_mask_token", "target_normalizer.")
        model = load_strictly(model_class, source.checkpoint, new, config=settings, token=source.access.token)
    else:
        tensors = load_vit(source, config).base_model.state_dict()
        model = ViTMAERobustModel(settings)
        model.load_state_dict({name: value for name, value in tensors.items() if not name.startswith(_NOT_MAES)})
    return model.eval(), pixels


# Of a ViT's encoder: the pooler of its CLS token, and the mask token of SimMIM.
_NOT_MAES = ("pooler.", "embeddings.mask_token")
SOURCES = (
    ViTMAERobustForPreTraining,
    ViTMAERobustModel,
    ViTMAEForPreTraining,
    ViTMAEModel,
    BeitForImageClassification,
    BeitModel,
)
# Of timm's ViT and of the official code; no argument that a config.json can hold changes it.
ORIGINAL_EPS = 1e-6
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    return getattr(model, "vit", getattr(model, "beit", model))


def is_mae(model: PreTrainedModel) -> bool:
    return isinstance(model, (ViTMAEForPreTraining, ViTMAEModel))


def is_classifier(model: PreTrainedModel) -> bool:
    return isinstance(model, BeitForImageClassification)


def parts_foreign_to_mae(config: PreTrainedConfig) -> list[str]:
    """Of a BEiT (or data2vec): the settings with which it is not a plain ViT as MAE's is."""
    parts = {
        "use_absolute_position_embeddings=False": not config.use_absolute_position_embeddings,
        "use_relative_position_bias=True": config.use_relative_position_bias,
        "use_shared_relative_position_bias=True": config.use_shared_relative_position_bias,
        f"layer_scale_init_value={config.layer_scale_init_value}": config.layer_scale_init_value > 0,
        "use_mask_token=True": config.use_mask_token,
    }
    return [field for field, is_foreign in parts.items() if is_foreign]


def check_exportable(model: PreTrainedModel) -> None:
    config, name = model.config, type(model).__name__
    if not isinstance(model, SOURCES):
        raise UserError(f"{name} cannot be exported; one of {', '.join(source.__name__ for source in SOURCES)} can.")
    if not isinstance(model, BeitPreTrainedModel):
        if not config.qkv_bias:
            raise UserError("qkv_bias=False: none of the targets is MAE's ViT without these biases.")
        return
    if foreign := parts_foreign_to_mae(config):
        raise UserError(
            f"This is a BEiT that is not a plain ViT as MAE's is ({', '.join(foreign)}), so it is not exported."
        )
    if config.use_mean_pooling and not is_classifier(model):
        raise UserError(
            "A BeitModel with use_mean_pooling=True has a LayerNorm after the pooling and none before it: its features "
            "are not those of an encoder. Export the classifier it was taken from."
        )


def check_original_settings(config: PreTrainedConfig) -> None:
    """What no file of timm or of the official code can say, because their ViT has one value of it."""
    if config.hidden_act != "gelu":
        raise UserError(f"hidden_act={config.hidden_act!r}: timm's ViT and the official code have 'gelu'.")
    # Smaller ones vanish beside the variances of trained features; stock ViT-MAE checkpoints say 1e-12.
    if config.layer_norm_eps > ORIGINAL_EPS:
        raise UserError(
            f"layer_norm_eps={config.layer_norm_eps}: timm's ViT and the official code have {ORIGINAL_EPS}."
        )


def encoder_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Tensors of the encoder by the names that ViT-MAE, ViT and BEiT share, with all biases. The mid-level token, which
    only masked images need, is left behind."""
    tensors = with_key_biases(encoder_of(model).state_dict())
    tensors.pop("mid_mask_token", None)
    return tensors


def to_stock(model: PreTrainedModel, target: str) -> PreTrainedModel:
    """The model as a stock class of transformers, in evaluation mode, with copies of the weights.

    Args:
        model: `ViTMAERobustForPreTraining` or `ViTMAERobustModel`, their stock counterparts, or a `BeitModel` or
            `BeitForImageClassification` of the form of `mae_beit_config`. Of pre-training models the encoder is taken.
        target: `"beit"` -> `BeitModel` (whose `last_hidden_state` `(B, 1 + L, d)` is the unmasked encoder's), or
            `BeitForImageClassification`; `"vit"` -> `ViTModel` without pooler, or `ViTForImageClassification`.
            Loading such a `ViTModel` needs `add_pooling_layer=False`; otherwise transformers adds a pooler of random
            weights, which changes `pooler_output` only.

    What concerns training only (dropout, drop path) is 0 in the result.

    Raises:
        ValueError: the target cannot compute what the model does; the message says why.
    """
    if target not in ("beit", "vit"):
        raise UserError(f"target={target!r}: to_stock knows 'beit' and 'vit'.")
    check_exportable(model)
    has_head, config = is_classifier(model), model.config
    fields = settings_of(config, (*SHARED_SETTINGS, "initializer_range", "image_size"))
    if has_head:
        fields |= settings_of(config, ("id2label", "label2id", "problem_type"))
    if target == "beit":
        config = mae_beit_config(**fields, use_mean_pooling=has_head and config.use_mean_pooling)
        stock: Any = (BeitForImageClassification if has_head else BeitModel)(config)
    elif has_head and config.use_mean_pooling:
        raise UserError(
            "This classifier takes the mean of the patch tokens, and the stock ViT classifies from the CLS token only. "
            "Export it to beit or timm, or fine-tune with CLS pooling."
        )
    else:
        config = ViTConfig(**fields, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        stock = ViTForImageClassification(config) if has_head else ViTModel(config, add_pooling_layer=False)

    stock.to(model.dtype)
    tensors = encoder_tensors(model)
    encoder_of(stock).load_state_dict(without_key_biases(tensors) if target == "beit" else tensors)
    if has_head:
        stock.classifier.load_state_dict(cast(nn.Module, model.classifier).state_dict())
    return stock.eval()
