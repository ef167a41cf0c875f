"""Resizing images in which pixels are missing, and cutting very narrow ones."""

from collections.abc import Callable

import torch
from torchvision.transforms.v2.functional import center_crop

# Narrower images are cut to the middle before they are resized; it is far more than the centre crop keeps.
MAX_ASPECT_RATIO = 8
# A pixel of a resized image with less than this share of the weights on valid pixels is missing.
MIN_VALID_WEIGHT = 0.5


def resize_with_missing(image: torch.Tensor, resize: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What `resize` makes of an image with missing pixels.

    Args:
        image (`(C, h, w)`): normalised, NaN where a pixel is missing; of whole numbers nothing is missing.
        resize: a linear function of images of any number of channels, such as an interpolation; it does not see NaN.

    Returns:
        `(C, H, W)`: missing pixels count as 0, the mean of the band, and a pixel with less than MIN_VALID_WEIGHT of its
        weights on valid ones is NaN. What `resize` leaves as it is comes back exactly.
    """
    if not image.is_floating_point():
        return resize(image)
    missing = image.isnan()
    if not missing.any():
        return resize(image)
    resized = resize(image.masked_fill(missing, 0))
    # Nearly always a pixel is missing in all bands: one plane tells for all of them.
    planes = missing[:1] if torch.equal(missing, missing[:1].expand_as(missing)) else missing
    return resized.masked_fill(resize((~planes).to(image.dtype)) < MIN_VALID_WEIGHT, torch.nan)


def fill_missing_pixels(image: torch.Tensor) -> torch.Tensor:
    """Normalised numbers of any shape with 0, the mean of the band, instead of NaN; whole numbers as they are."""
    # Without the limits, infinite numbers would become finite ones.
    limits = {"posinf": torch.inf, "neginf": -torch.inf}
    return image.nan_to_num(0.0, **limits) if image.is_floating_point() else image


def is_cut(height: int, width: int) -> bool:
    """Whether `cut_to_middle` changes images of this size."""
    return max(height, width) > MAX_ASPECT_RATIO * min(height, width)


def cut_to_middle(image: torch.Tensor) -> torch.Tensor:
    """`(C, h, w)` -> its middle, of MAX_ASPECT_RATIO at most. Of 20,000 x 3 pixels, resized to 256 at the short side,
    nothing but the centre would be kept."""
    if not is_cut(*image.shape[-2:]):
        return image
    short = min(image.shape[-2:])
    return center_crop(image, [min(side, MAX_ASPECT_RATIO * short) for side in image.shape[-2:]])
