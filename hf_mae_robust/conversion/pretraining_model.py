"""Pre-training models, with their decoder: of a checkpoint, ours or stock ViT-MAE's."""

from transformers import AutoConfig

from ..errors import UserError
from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining
from .loading import load_with_report
from .settings import mae_settings, overridden
from .source import ModelSource

PRETRAINING_KINDS = ("vit_mae", ViTMAERobustConfig.model_type)
# Statistics come from --target_statistics; a mid-level token is new to most checkpoints.
_MAY_BE_NEW = ("target_normalizer.", "vit.mid_mask_token")


def read_pretraining_config(source: ModelSource) -> ViTMAERobustConfig:
    """The configuration of a checkpoint, with the overrides, which win; without a name, of the overrides alone.

    Raises ValueError for another architecture, unknown settings and values out of range.
    """
    settings = {}
    if source.name:
        base = AutoConfig.from_pretrained(source.name, **source.access.options)
        if base.model_type not in PRETRAINING_KINDS:
            raise UserError(
                f"--model_name_or_path {source.name} is a '{base.model_type}' model; pre-training "
                f"goes on from '{ViTMAERobustConfig.model_type}' or stock 'vit_mae' checkpoints."
            )
        settings = mae_settings(base)
    return overridden(settings, source.overrides)


def load_pretraining_model(
    source: ModelSource, config: ViTMAERobustConfig, attn_implementation: str | None = "sdpa"
) -> tuple[ViTMAERobustForPreTraining, str | None]:
    """A checkpoint of PRETRAINING_KINDS by this configuration, see `read_pretraining_config`.

    Tensors that the checkpoint lacks, such as the decoder of a published encoder, start from scratch: the sentence that
    is returned names them. None: it lacks none but the mid-level token and the patch statistics.

    Raises ValueError for weights that are damaged or missing.
    """
    model, info = load_with_report(
        ViTMAERobustForPreTraining,
        source.checkpoint,
        config=config,
        attn_implementation=attn_implementation,
        token=source.access.token,
    )
    note = None
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith(_MAY_BE_NEW)):
        note = (
            f"Note: {source.name} lacks {len(missing)} tensors, which start from scratch: "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}"
        )
    return model, note
