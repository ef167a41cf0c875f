"""Guarding what an encoder has learnt, where pre-training starts from it: parts that stay as they are, for some steps
or for all."""

import math

from ..errors import UserError
from ..model import ViTMAERobustForPreTraining
from .arguments import MAETrainingArguments


def freeze_blocks(model: ViTMAERobustForPreTraining, count: int) -> None:
    """Training leaves the embeddings (patch projection, CLS token, positions) and the first `count` blocks as they are.

    Raises UserError where there are fewer blocks.
    """
    blocks = model.vit.layers
    if count > len(blocks):
        raise UserError(f"--freeze_blocks {count}: the encoder has {len(blocks)} blocks.")
    for part in (model.vit.embeddings, *blocks[:count]):
        part.requires_grad_(False)


def describe_decoder_steps(training: MAETrainingArguments, num_steps: int) -> str:
    """In which steps of --decoder_warmup_steps the decoder alone learns, in words; "": in none. num_steps: of the
    training."""
    given = training.decoder_warmup_steps
    if not given:
        return ""
    steps = decoder_steps(given, num_steps)
    if steps >= num_steps:
        return f"all {num_steps:,} steps (--decoder_warmup_steps {given:g}), and the encoder in none"
    return f"the first {steps:,} steps"


def decoder_steps(given: float, num_steps: int) -> int:
    """Steps of --decoder_warmup_steps, which below 1 is a share of all."""
    return math.ceil(given * num_steps) if given < 1 else int(given)


def drop_encoder_gradients(model: ViTMAERobustForPreTraining) -> None:
    """Before a step of the optimizer: it leaves parameters without a gradient, and its state for them, as they are.
    Which of them need one must not change while they train: with several processes DDP knows them from the start."""
    for parameter in model.vit.parameters():
        parameter.grad = None
