"""Attention on a CPU: with dropped edges, for which PyTorch has no fused kernel, and in bfloat16, where the backward
pass of its kernel is slow.

Importing this module registers it with transformers as "drop_edge_cpu". Pre-training on a CPU takes it unless another
implementation is asked for.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "drop_edge_cpu"


class _DroppedEdges(torch.autograd.Function):
    """`dropout(softmax(query key^T)) value` over the last two dimensions, with as few passes over the `(..., n, m)`
    arrays as possible. With P the probabilities, D = P where an edge is kept and 0 where it is dropped, c = 1 / (1 -
    dropout) and O the output: dP = c D/P * (dO value^T), and the sum over a row of P dP that the softmax's derivative
    takes away is the sum over O dO (as in flash attention), so D and P are all that is kept for the way back. A dropout
    of 0 drops nothing, and draws nothing."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float) -> torch.Tensor:
        probabilities = query @ key.transpose(-2, -1)
        torch.softmax(probabilities, dim=-1, out=probabilities)
        kept = _without_dropped(probabilities, dropout) if dropout else probabilities
        ctx.scale = 1 / (1 - dropout)
        output = kept @ (value * ctx.scale)
        ctx.save_for_backward(query, key, value, probabilities, kept, output)
        return output

    @staticmethod
    @once_differentiable  # `kept` and `probabilities` are constants for autograd: second derivatives would be wrong
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        query, key, value, probabilities, kept, output = ctx.saved_tensors
        scaled = gradient * ctx.scale
        scores = scaled @ value.transpose(-2, -1)
        scores.mul_(kept)
        scores.addcmul_(probabilities, (gradient * output).sum(dim=-1, keepdim=True), value=-1)
        return scores @ key, scores.transpose(-2, -1) @ query, kept.transpose(-2, -1) @ scaled, None


def _without_dropped(probabilities: torch.Tensor, dropout: float) -> torch.Tensor:
    # 16 random bits an edge: the probability is that asked for to within 2**-17, and the generator, which is what
    # takes the time, is called for a quarter of the numbers that `dropout` draws.
    count = probabilities.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[:count]
    kept = torch.empty_like(probabilities)
    torch.ge(bits.view_as(probabilities), round(dropout * 2**16) - 2**15, out=kept)
    return kept.mul_(probabilities)


def drop_edge_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention with dropout of its probabilities, in the form of transformers' attention functions.
    It is "sdpa" where nothing is dropped (the encoder, and evaluation), on other devices, with an attention mask, and
    where `torch.compile` generates the kernels; but not in training in bfloat16 on a CPU, where the backward pass of
    PyTorch's kernel takes longer than in float32 (benchmarks/cpu_bf16.py).

    Args:
        query (`(B, heads, n, d)`), key, value (`(B, heads, m, d)`): of one floating-point type.
        dropout: in [0, 1). scaling: of the products of query and key; default: `d ** -0.5`.

    Returns:
        `(B, n, heads, d)`, contiguous; None for the probabilities.
    """
    fused = query.device.type == "cpu" and attention_mask is None and not torch.compiler.is_compiling()
    if not fused or not (dropout or (query.dtype == torch.bfloat16 and module.training)):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = _DroppedEdges.apply((query * scaling).contiguous(), key.contiguous(), value.contiguous(), dropout)
    return output.transpose(1, 2).contiguous(), None


def default_attention(device: torch.device, torch_compile: bool) -> str:
    """The attention implementation of a pre-training run that asks for none."""
    return NAME if device.type == "cpu" and not torch_compile else "sdpa"


AttentionInterface.register(NAME, drop_edge_attention)
