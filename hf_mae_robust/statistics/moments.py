"""Means and squared deviations in float64, of numbers that may be missing, mergeable exactly."""

import torch

# How many numbers were seen: one number for all places, or int64, one a place, where some were missing.
Count = int | torch.Tensor
# Count, mean and sum of squared deviations from the mean; the last two float64, one a place.
Moments = tuple[Count, torch.Tensor, torch.Tensor]


def moments_of(values: torch.Tensor, dim: int) -> Moments:
    """Moments along a dimension. NaN is a missing number; where there is no number, all three are 0."""
    values = values.double()
    if values.shape[dim] == 0:
        nothing = values.sum(dim)
        return 0, nothing, nothing
    variance, mean = torch.var_mean(values, dim=dim, correction=0)
    if not mean.isnan().any():  # a look at the means is all that missing numbers cost where there are none
        return values.shape[dim], mean, variance * values.shape[dim]
    valid = ~values.isnan()
    count = valid.sum(dim)
    mean = values.nansum(dim) / count.clamp(min=1)
    deviations = torch.where(valid, values - mean.unsqueeze(dim), 0.0)
    return count, mean, deviations.square().sum(dim)


def merged(one: Moments, other: Moments) -> Moments:
    """Moments of the numbers of both (parallel variance: Chan, Golub & LeVeque 1979)."""
    one_count, one_mean, one_squares = one
    other_count, other_mean, other_squares = other
    count = one_count + other_count
    delta = other_mean - one_mean
    if isinstance(count, int):
        if other_count == 0:
            return one
        mean = one_mean + delta * (other_count / count)
        return count, mean, one_squares + other_squares + delta**2 * (one_count * other_count / count)
    # In float64: a quotient of int64 tensors would be float32, and a product of counts may exceed int64.
    weight = other_count / count.clamp(min=1).double()
    return count, one_mean + delta * weight, one_squares + other_squares + delta**2 * weight * one_count


def merged_all(counts: torch.Tensor, means: torch.Tensor, squares: torch.Tensor) -> Moments:
    """Moments of the numbers of all parts; each argument `(parts, places)`, float64, the counts too."""
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count.clamp(min=1)
    return count.long(), mean, squares.sum(0) + (counts * (means - mean) ** 2).sum(0)


def deviation(count: Count, sum_of_squares: torch.Tensor) -> torch.Tensor:
    """Standard deviation over the population (divides by the count); 0 where nothing varies, or nothing was seen."""
    return (sum_of_squares / (max(count, 1) if isinstance(count, int) else count.clamp(min=1))).sqrt()
