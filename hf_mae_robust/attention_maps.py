"""Where attention goes: measures of attention probabilities `(B, heads, queries, keys)`."""

import torch


def attention_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy over the keys in nats, mean over images and queries -> `(heads,)`. From 0 (all on one token) to the
    logarithm of the number of keys (uniform)."""
    return torch.special.entr(probabilities.double()).sum(dim=-1).mean(dim=(0, 2))


def attention_distance(
    probabilities: torch.Tensor, query_ids: torch.Tensor, key_ids: torch.Tensor, num_columns: int
) -> torch.Tensor:
    """Distance between a patch and those it attends to, weighted by attention, in patches (Dosovitskiy et al. 2021,
    appendix D.7), mean over images and queries -> `(heads,)`. What goes to other tokens (CLS) is left out and the rest
    is weighted anew.

    Args:
        query_ids `(B, queries)`, key_ids `(B, keys)`: patch numbers in raster order, -1 for a token that is no patch.
        num_columns: patches in a row of the image.
    """
    is_patch = (key_ids >= 0)[:, None, None]
    weights = probabilities.double() * is_patch
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    places = [torch.stack([ids // num_columns, ids % num_columns], dim=-1).double() for ids in (query_ids, key_ids)]
    distances = torch.cdist(*places)[:, None]
    of_queries = (weights * distances).sum(dim=-1)  # (B, heads, queries)
    counts = (query_ids >= 0)[:, None].double()
    return (of_queries * counts).sum(dim=(0, 2)) / counts.sum()
