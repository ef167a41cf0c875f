"""Guarding what an encoder has learnt, where pre-training starts from it: parts that stay as they are, for some steps
or for all."""

from ..errors import UserError
from ..model import ViTMAERobustForPreTraining


def freeze_blocks(model: ViTMAERobustForPreTraining, count: int) -> None:
    """Training leaves the embeddings (patch projection, CLS token, positions) and the first `count` blocks as they are.

    Raises UserError where there are fewer blocks.
    """
    blocks = model.vit.layers
    if count > len(blocks):
        raise UserError(f"--freeze_blocks {count}: the encoder has {len(blocks)} blocks.")
    for part in (model.vit.embeddings, *blocks[:count]):
        part.requires_grad_(False)


def drop_encoder_gradients(model: ViTMAERobustForPreTraining) -> None:
    """Before a step of the optimizer: it leaves parameters without a gradient, and its state for them, as they are.
    Which of them need one must not change while they train: with several processes DDP knows them from the start."""
    for parameter in model.vit.parameters():
        parameter.grad = None
