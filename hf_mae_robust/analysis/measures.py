"""Measures of tokens, features and attention."""

import torch
from torch.nn.functional import normalize

# RankMe's: so that singular values of 0 add nothing.
RANK_EPS = 1e-7


def uniformity(features: torch.Tensor, t: float = 2.0) -> float:
    """Logarithm of the mean of exp(-t ||x - y||^2) over pairs of normalised features (Wang & Isola 2020, eq. 2).

    features `(N, d)`, N > 1. From 0 (all the same) downwards; -4 where all are orthogonal, at t = 2.
    """
    distances = torch.pdist(normalize(features.double()))
    return (-t * distances.square()).exp().mean().log().item()


def alignment(first: torch.Tensor, second: torch.Tensor, alpha: float = 2.0) -> float:
    """Mean of ||x - y||^alpha over pairs of normalised features that should be alike, such as of two crops of an image
    (Wang & Isola 2020, eq. 1). first, second `(N, d)`. 0: the same; 2: orthogonal; at most 4, at alpha = 2."""
    return (normalize(first.double()) - normalize(second.double())).norm(dim=1).pow(alpha).mean().item()


def effective_rank(features: torch.Tensor) -> float:
    """exp of the entropy of the singular values' shares (RankMe, Garrido et al. 2023, eq. 1). features `(N, d)`.
    From 1 (all on a line) to min(N, d)."""
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum().clamp(min=1e-300) + RANK_EPS
    return torch.exp(-(share * share.log()).sum()).item()


def token_similarity(tokens: torch.Tensor) -> torch.Tensor:
    """Mean cosine similarity of different tokens of the same image, which goes to 1 where transformers smooth tokens
    over (Wang et al. 2022, "Anti-oversmoothing in deep vision transformers"). tokens `(B, n, d)`, n > 1 -> `(B,)`."""
    n = tokens.shape[1]
    # The sum over all pairs is the square of the sum.
    total = normalize(tokens.double(), dim=-1).sum(dim=1).square().sum(dim=-1)
    return (total - n) / (n * (n - 1))


def linear_cka(first: torch.Tensor, second: torch.Tensor) -> float:
    """Linear centred kernel alignment of two representations of the same images (Kornblith et al. 2019, eq. 3):
    ||Y^T X||^2 / (||X^T X|| ||Y^T Y||), centred. first `(N, d)`, second `(N, e)`. 0 to 1; rotations and scales do not
    change it. NaN where one of them is constant."""
    first, second = (x.double() - x.double().mean(dim=0) for x in (first, second))
    if min(first.shape[1], second.shape[1]) <= len(first):
        shared, own = (second.T @ first).norm() ** 2, [(x.T @ x).norm() for x in (first, second)]
    else:  # the same by the N x N products, which are the smaller ones here
        grams = [x @ x.T for x in (first, second)]
        shared, own = (grams[0] * grams[1]).sum(), [gram.norm() for gram in grams]
    return (shared / (own[0] * own[1])).item()


def attention_entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy over the keys in nats, mean over images and queries -> `(heads,)`. From 0 (all on one token) to the
    logarithm of the number of keys (uniform)."""
    return torch.special.entr(probabilities.double()).sum(dim=-1).mean(dim=(0, 2))


def attention_distance(
    probabilities: torch.Tensor, query_ids: torch.Tensor, key_ids: torch.Tensor, num_columns: int
) -> torch.Tensor:
    """Distance between a patch and those it attends to, weighted by attention, in patches (Dosovitskiy et al. 2021,
    appendix D.7), mean over images and queries -> `(heads,)`. What goes to other tokens (CLS) is left out and the rest
    is weighted again.

    Args:
        query_ids `(B, queries)`, key_ids `(B, keys)`: patch numbers in raster order; -1: the token is not a patch.
        num_columns: patches in a row of the image.
    """
    is_patch = (key_ids >= 0)[:, None, None]
    weights = probabilities.double() * is_patch
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    places = [torch.stack([ids // num_columns, ids % num_columns], dim=-1).double() for ids in (query_ids, key_ids)]
    first, second = places
    distances = torch.cdist(first, second)[:, None]
    of_queries = (weights * distances).sum(dim=-1)  # (B, heads, queries)
    counts = (query_ids >= 0)[:, None].double()
    return (of_queries * counts).sum(dim=(0, 2)) / counts.sum()
