"""Augmentation and evaluation of images with semantic maps, by torchvision."""

from collections.abc import Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import IMAGENET_DEFAULT_MEAN

from ...data.preprocessing import draw_turns, turned
from ...errors import UserError
from ...model.resizing_vit_mae_robust import resize_with_missing
from .maps import IGNORED

MAX_SHARE_OF_A_CLASS = 0.75
CROPS_TO_TRY = 10
# mmsegmentation scales into 2048 x 512. Without a limit, 20,000 x 10 pixels would become a million wide.
MAX_ASPECT_RATIO = 4


class PhotometricDistortion(v2.RandomPhotometricDistort):
    """Brightness, contrast, saturation and hue, each with probability 1/2, by torchvision, in mmsegmentation's ranges:
    1/8, 1/2, 1/2 and a tenth of the circle of hues.

    Three operations are other ones. Brightness multiplies; mmsegmentation adds up to 32 of 255. Contrast spreads values
    about the mean of the gray image; mmsegmentation multiplies them by 0.5 to 1.5, which makes a crop darker or
    brighter. Saturation mixes with the gray image; mmsegmentation multiplies HSV's. torchvision's also exchanges
    colours, so that grass may be blue and the sky green: that is off, as in mmsegmentation."""

    def __init__(self) -> None:
        super().__init__(hue=(-0.1, 0.1))

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class SegmentationTransform:
    """mmsegmentation's augmentation for ADE20K: image `(C, h, w)` uint8 and classes `(h, w)` ->
    `{"pixel_values": (C, S, S) uint8, "labels": (S, S) int64}`. Images that are normalised already are float32, NaN
    where a pixel is missing.

    The image is scaled (`scaled_size`) to S x a random factor, a square of S x S is cropped (again, up to ten times,
    where one class fills more than 3/4 of it or all of it is ignored), flipped, and its colours distorted. What lies
    outside of the image is filled with the mean, and ignored.

    Args:
        crop_size: S. scale_range: of the factor. image_mean: of values in [0, 1].
        photometric_distortion: `PhotometricDistortion`, for 8-bit images of three channels.
        vertical_flip, rot90: as of `RandomCrop`, for images from above.
        normalized: whether images come normalised; what lies outside of them is 0 then, the mean of each band.

    Raises ValueError for photometric distortion of other images.
    """

    def __init__(
        self,
        crop_size: int,
        scale_range: tuple[float, float] = (0.5, 2.0),
        horizontal_flip: bool = True,
        photometric_distortion: bool = True,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        vertical_flip: bool = False,
        rot90: bool = False,
        normalized: bool = False,
    ):
        if photometric_distortion and normalized:
            raise UserError(
                "--photometric_distortion changes the colours of 8-bit pictures, and these images have bands in other "
                "units: give --no_photometric_distortion."
            )
        if photometric_distortion and len(image_mean) != 3:
            raise UserError(
                f"--photometric_distortion is for images of 3 channels, not {len(image_mean)}: set it to false."
            )
        self.crop_size, self.scale_range = crop_size, scale_range
        self.vertical_flip, self.rot90 = vertical_flip, rot90
        outside = [0.0] if normalized else [round(255 * mean) for mean in image_mean]
        fill = {tv_tensors.Image: outside, "others": IGNORED}
        self.crop = v2.RandomCrop(crop_size, pad_if_needed=True, fill=fill)
        steps = [v2.RandomHorizontalFlip()] if horizontal_flip else []
        steps += [PhotometricDistortion()] if photometric_distortion else []
        self.steps = v2.Compose(steps) if steps else v2.Identity()

    def __call__(self, image: torch.Tensor, classes: torch.Tensor) -> dict[str, torch.Tensor]:
        low, high = self.scale_range
        size = scaled_size(image.shape[-2:], self.crop_size * float(torch.empty(()).uniform_(low, high)))
        image = tv_tensors.Image(resized(image, size))
        classes = F.resize(tv_tensors.Mask(classes), size)
        for _ in range(CROPS_TO_TRY):
            crop, labels = self.crop(image, classes)
            counts = labels[labels != IGNORED].bincount()
            # One class alone, or none, has no smaller share than all that is counted.
            if len(counts) and counts.max() < MAX_SHARE_OF_A_CLASS * counts.sum():
                break
        crop, labels = self.steps(crop, labels)
        turns = draw_turns(self.vertical_flip, self.rot90)
        crop, labels = (turned(part.as_subclass(torch.Tensor), *turns) for part in (crop, labels))
        return {"pixel_values": crop, "labels": labels.long()}


def resized(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """`(C, h, w)` -> `(C, H, W)`, bilinearly, of the same type; floats may have missing pixels."""
    return resize_with_missing(image, lambda image: F.resize(image, list(size), antialias=True))


def scaled_size(size: Sequence[int], short: float) -> list[int]:
    """(height, width), the aspect ratio kept, with the short side `short`, or the long one MAX_ASPECT_RATIO times that
    where it would be longer."""
    factor = min(short / min(size), MAX_ASPECT_RATIO * short / max(size))
    return [max(1, round(side * factor)) for side in size]


class SegmentationEvaluationTransform:
    """Image `(C, h, w)` uint8 or normalised and classes `(h, w)` -> the image scaled to the size of crops
    (`scaled_size`), and the classes as they are: predictions are scaled back to them."""

    def __init__(self, crop_size: int):
        self.crop_size = crop_size

    def __call__(self, image: torch.Tensor, classes: torch.Tensor) -> dict[str, torch.Tensor]:
        size = scaled_size(image.shape[-2:], self.crop_size)
        return {"pixel_values": resized(image, size), "labels": classes.long()}

    def __repr__(self) -> str:
        return f"short side {self.crop_size}, windows of {self.crop_size} x {self.crop_size}"
