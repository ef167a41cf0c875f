"""Attention on a CPU: with dropped edges, for which PyTorch has no fused kernel, and in bf16, where the backward pass
of its kernel is slow.

Importing this module registers it with transformers as "drop_edge_cpu". Pre-training on a CPU takes it unless another
implementation is asked for.
"""

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "drop_edge_cpu"


class _Attention(torch.autograd.Function):
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


@cache
def _multiplies_bf16() -> bool:
    """Whether the processor has instructions for it. Without them bf16 is slow in any way, and this one the slower."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


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
    """Scaled dot-product attention with dropout of its probabilities, in the form of transformers' attention functions;
    neither causal nor with grouped heads.

    On a CPU, without a mask and outside of `torch.compile`, it computes by itself where edges are dropped, and where a
    model trains in bf16 on a processor with instructions for it: there the backward pass of PyTorch's kernel takes
    longer than in float32 (benchmarks/cpu_bf16.py). Scores are then rounded to bf16, as transformers' "eager" does.
    Elsewhere it is "sdpa".

    Args:
        query (`(B, heads, n, d)`), key, value (`(B, heads, m, d)`): of one floating-point type.
        dropout: in [0, 1). scaling: of the products of query and key; default: `d ** -0.5`.

    Returns:
        `(B, n, heads, d)`, contiguous; None for the probabilities.
    """
    fused = query.device.type == "cpu" and attention_mask is None and not torch.compiler.is_compiling()
    trains_in_bf16 = query.dtype == torch.bfloat16 and getattr(module, "training", False)
    if not fused or not (dropout or (trains_in_bf16 and _multiplies_bf16())):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = _Attention.apply((query * scaling).contiguous(), key.contiguous(), value.contiguous(), dropout)
    return output.transpose(1, 2).contiguous(), None


def default_attention(device: torch.device, torch_compile: bool) -> str:
    """The attention implementation of a pre-training run that asks for none."""
    return NAME if device.type == "cpu" and not torch_compile else "sdpa"


AttentionInterface.register(NAME, drop_edge_attention)
