"""--statistics_samples: statistics of random images instead of all, and how far from those of all they are likely."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

from ..data.source import SEED, ImageSource


@dataclass(frozen=True)
class Sample:
    """num_images: as many images, drawn at random by `seed`, without any twice."""

    num_images: int
    seed: int = SEED

    def of(self, source: ImageSource) -> ImageSource:
        """These images, or all where a source has no more. Their fingerprint, and so the place in the cache, is one
        that neither all images have nor a run that trains on as many."""
        drawn = source.sample(self.num_images, self.seed)
        if drawn is source:
            return source
        return replace(drawn, fingerprint=f"{drawn.fingerprint} for statistics")

    def leaves_out(self, population: int | None, num_seen: int) -> bool:
        """Whether there may be images beside those that were seen: a stream may end before it has given as many."""
        return population is not None or num_seen >= self.num_images


@dataclass
class SampleErrors:
    """Standard errors of mean and deviation at P places, in a random sample of images. Patches and pixels of an image
    are alike, so that the images are what was drawn, however many numbers each of them holds.

    An image's count c, sum and sum of squares at a place are a draw; mean and variance over the sample are ratios of
    sums of these. To first order their error is the mean of a linear function of the draws (the delta method; for
    ratios: Cochran 1977, "Sampling Techniques", chapter 6).

    Attributes:
        count: images. mean: `(3, P)`, float64: of the draws. products: `(3, 3, P)`: sums of products of deviations.
        reference: `(P,)`: the sums of a draw are of numbers less this one, a mean of some images. Sums of squares about
            0 would leave no digits for a deviation that is small beside the mean.
    """

    count: int
    mean: torch.Tensor
    products: torch.Tensor
    reference: torch.Tensor
    metadata: dict[str, Any] = field(default_factory=lambda: {"num_images": 0})

    @classmethod
    def empty(cls, num_places: int) -> Self:
        zeros = torch.zeros(3, 3, num_places, dtype=torch.float64)
        return cls(0, zeros[0].clone(), zeros, zeros[0, 0].clone())

    def without_content(self) -> Self:
        """Errors of nothing, of the same form."""
        return self.empty(self.mean.shape[1])

    def add(self, counts: torch.Tensor, means: torch.Tensor, squares: torch.Tensor) -> None:
        """Take in B images, `(B, P)` each: how many numbers each has at each place, their mean, and the sum of their
        squared deviations from it."""
        counts = counts.double()
        reference = (counts * means).sum(dim=0) / counts.sum(dim=0).clamp(min=1)
        means = means - reference
        draws = torch.stack([counts, counts * means, squares + counts * means**2])
        if draws.shape[1]:
            mean = draws.mean(dim=1)
            deviations = draws - mean[:, None]
            products = torch.einsum("abp,cbp->acp", deviations, deviations)
            self.merge(SampleErrors(draws.shape[1], mean, products, reference))

    def merge(self, other: "SampleErrors") -> None:
        """Add what `other` has counted (Chan et al. 1979): as if all images had come here."""
        count = self.count + other.count
        if count == 0:
            return
        # Where no image has a number so far, the other's; else draws of both would be large.
        reference = torch.where(self.mean[0] > 0, self.reference, other.reference)
        (mean, products), (other_mean, other_products) = self._about(reference), other._about(reference)
        delta = other_mean - mean
        weight = self.count * other.count / count
        self.products = products + other_products + weight * delta[:, None] * delta[None]
        self.mean = mean + delta * (other.count / count)
        self.reference = reference
        self.count = self.metadata["num_images"] = count

    def _about(self, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`mean` and `products`, as if `reference` had been that of the draws, which change by a linear map."""
        shift = self.reference - reference
        one, zero = torch.ones_like(shift), torch.zeros_like(shift)
        change = torch.stack([one, zero, zero, shift, one, zero, shift**2, 2 * shift, one]).unflatten(0, (3, 3))
        mean = torch.einsum("abp,bp->ap", change, self.mean)
        return mean, torch.einsum("abp,bcp,dcp->adp", change, self.products, change)

    def errors(
        self, mean: torch.Tensor, std: torch.Tensor, population: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Standard errors `(P,)` of these statistics of the sample, at least 2 images. population: of which the images
        are drawn; None: of many more."""
        share = 0.0 if population is None else min(1.0, self.count / population)
        scale = (1 - share) / self.count / (self.count - 1) / self.mean[0].clamp(min=1e-300) ** 2
        one, mean = torch.ones_like(mean), mean - self.reference
        of_mean = torch.stack([-mean, one, torch.zeros_like(one)])
        of_variance = torch.stack([mean**2 - std**2, -2 * mean, one])
        mean_error, variance_error = (
            (torch.einsum("ap,acp,cp->p", factors, self.products, factors) * scale).clamp(min=0).sqrt()
            for factors in (of_mean, of_variance)
        )
        return mean_error, torch.where(std > 0, variance_error / (2 * std), 0.0)

    def summary(self, mean: torch.Tensor, std: torch.Tensor, population: int | None) -> dict[str, Any]:
        """For the metadata of statistics: the largest errors, as shares of the deviation."""
        found: dict[str, Any] = {"images": self.count, "of": population, "places": len(mean)}
        if self.count > 1 and bool((std > 0).any()):
            varies = std > 0
            for name, error in zip(("mean", "deviation"), self.errors(mean, std, population), strict=True):
                found[f"error_of_{name}"] = float((error[varies] / std[varies]).max())
        return found


def describe_sample(metadata: dict[str, Any]) -> str | None:
    """How sure statistics of random images are; None: they are of all images.

    Such as "10,000 random of 50,000 images: standard error of the mean 0.52% of the deviation, of the deviation 0.41%
    (the largest of 48)".
    """
    sampling = metadata.get("sampling")
    if sampling is None:
        return None
    of = "" if sampling["of"] is None else f" of {sampling['of']:,}"
    text = f"{sampling['images']:,} random{of} images"
    if "error_of_mean" not in sampling:
        return f"{text}: too few for a standard error"
    largest = f" (the largest of {sampling['places']:,})" if sampling["places"] > 1 else ""
    return (
        f"{text}: standard error of the mean {sampling['error_of_mean']:.2%} of the deviation, of the deviation "
        f"{sampling['error_of_deviation']:.2%}{largest}"
    )
