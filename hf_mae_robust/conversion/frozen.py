"""Features of images by frozen encoders."""

import torch
from torch import nn
from transformers import PreTrainedModel

from .encoders import read_encoder
from .pixels import Pixels
from .source import Access, ModelSource


class FrozenEncoder(nn.Module):
    """Images `(B, C, H, W)`, normalised -> features `(B, d)`: "cls": of the CLS token after the final norm; "mean": the
    mean of the patch tokens; of a classifier with mean pooling, what its head gets. "patches": all of the patch tokens,
    `(B, L, d)`."""

    def __init__(self, model: PreTrainedModel, pooling: str | None):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.image_size = model.config.image_size
        self.has_own_mean = getattr(model.config, "use_mean_pooling", False)
        self.pooling = pooling or ("mean" if self.has_own_mean else "cls")
        # CLS; DeiT's distillation token; DINOv2's registers.
        others = 1 if model.config.model_type == "deit" else getattr(model.config, "num_register_tokens", 0)
        self.num_prefix_tokens = 1 + others

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        outputs = self.model(pixel_values)
        if self.pooling == "mean" and self.has_own_mean:
            return outputs.pooler_output
        tokens = outputs.last_hidden_state
        if self.pooling == "cls":
            return tokens[:, 0]
        patches = tokens[:, self.num_prefix_tokens :]
        return patches if self.pooling == "patches" else patches.mean(dim=1)


def load_encoder(
    name: str, pooling: str | None = None, num_attention_heads: int | None = None, token: str | None = None
) -> tuple[FrozenEncoder, Pixels]:
    """The encoder of any checkpoint that `read_encoder` takes, frozen and masking nothing, and how it wants its images.
    num_attention_heads: of an official file. Raises ValueError as there."""
    overrides = {} if num_attention_heads is None else {"num_attention_heads": num_attention_heads}
    model, pixels = read_encoder(ModelSource(name, overrides, Access(token), heads_flag="--num_attention_heads "))
    return FrozenEncoder(model, pooling), pixels
