"""Augmentation for fine-tuning, by timm."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import posterize
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import Compose
from torchvision.transforms.functional import get_image_size, resize, to_pil_image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...data.preprocessing import ASPECT_RATIOS, RandomCrop, check_turns, draw_turns, turned
from ...errors import UserError
from ...model.configuration_vit_mae_robust import to_pair


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While entered, Python's and numpy's global random numbers, from which timm draws, follow from a seed."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """timm's strongest step keeps 0 bits, which Pillow refuses since 13; before, the image became black."""
    return posterize(image, bits, **options) if bits >= 1 else Image.new(image.mode, image.size)


class SingleDrawRandomResizedCrop(RandomResizedCropAndInterpolation):
    """The crop of MAE's linear probe (official: util/crop.py): share of the area and aspect ratio are drawn once, and
    the sides clipped to the image's. The usual one draws again until the crop fits, so that large crops are rarer."""

    @staticmethod
    def get_params(
        image: Image.Image | torch.Tensor, scale: Sequence[float], ratio: Sequence[float]
    ) -> tuple[int, int, int, int]:
        """Top, left, height and width."""
        width, height = get_image_size(image)
        area = width * height * random.uniform(*scale)
        aspect = math.exp(random.uniform(*map(math.log, ratio)))
        columns = min(max(round(math.sqrt(area * aspect)), 1), width)
        rows = min(max(round(math.sqrt(area / aspect)), 1), height)
        return random.randint(0, height - rows), random.randint(0, width - columns), rows, columns


class FinetuningTransform:
    """timm's augmentation for fine-tuning, as MAE configures it: `(C, h, w)` uint8 -> `(C, H, W)` float32, normalised.

    Random crop (bicubic), flip, RandAugment and random erasing (with normally distributed pixels, after the
    normalisation). All of it follows from torch's global random number generator. In two steps, as `RandomCrop`;
    `finish` takes the part that `region` named last.

    Args:
        image_mean, image_std: of values in [0, 1]. crop_scale: share of the area (official: 0.08 to 1).
        auto_augment: timm's string, such as "rand-m9-mstd0.5-inc1" (official), or None.
        random_erasing: probability (official: 0.25).
        single_draw: crop as `SingleDrawRandomResizedCrop` (official: for linear probes).
        vertical_flip, rot90: as of `RandomCrop`.

    Raises ValueError for settings that timm does not understand, RandAugment of images of other than 1 or 3 channels,
    and quarter turns of images that are not square.
    """

    def __init__(
        self,
        image_size: int,
        image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        horizontal_flip: bool = True,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        random_erasing: float = 0.25,
        single_draw: bool = False,
        vertical_flip: bool = False,
        rot90: bool = False,
    ):
        low, high = checked(crop_scale, random_erasing)
        check_turns(to_pair(image_size), rot90)
        self.vertical_flip, self.rot90 = vertical_flip, rot90
        self.num_channels = len(image_mean)
        if auto_augment and self.num_channels not in (1, 3):
            raise UserError(f"--auto_augment {auto_augment} is for 1 or 3 channels, not {self.num_channels}.")
        if self.num_channels == 1:  # timm's operations are made for colours
            image_mean, image_std = list(image_mean) * 3, list(image_std) * 3
        try:
            self.steps = create_transform(
                image_size,
                is_training=True,
                scale=(low, high),
                hflip=0.5 if horizontal_flip else 0.0,
                color_jitter=None,  # type: ignore[arg-type]  # timm's own default of its command line
                auto_augment=auto_augment,
                interpolation="bicubic",
                mean=tuple(image_mean),
                std=tuple(image_std),
                re_prob=random_erasing,
                re_mode="pixel",
            )
        except (AssertionError, KeyError, ValueError) as error:
            raise UserError(
                f"--auto_augment {auto_augment}: timm does not understand it ({error or type(error).__name__}); give "
                "something like rand-m9-mstd0.5-inc1, or none."
            ) from error

        if single_draw:
            crop = SingleDrawRandomResizedCrop(image_size, (low, high), interpolation="bicubic")
            self.steps.transforms = [
                crop if isinstance(step, RandomResizedCropAndInterpolation) else step for step in self.steps.transforms
            ]
        self.crop: RandomResizedCropAndInterpolation = self.steps.transforms[0]
        self.after_crop = Compose(self.steps.transforms[1:])
        for step in self.steps.transforms:
            operations = [*getattr(step, "ops", ()), *chain.from_iterable(getattr(step, "policy", ()))]
            for operation in operations:
                if operation.aug_fn is posterize:
                    operation.aug_fn = _posterize

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop of an image of this size."""
        self._seed = int(torch.randint(2**62, ()))
        with seeded(self._seed):
            image = torch.empty(()).expand(1, height, width)  # takes no memory
            top, left, rows, columns = self.crop.get_params(image, self.crop.scale, self.crop.ratio)
            self._drawn = random.getstate()
        return top, left, rows, columns

    def target(self, height: int, width: int) -> tuple[int, int]:
        """As of `Transform`."""
        rows, columns = self.crop.size
        return rows, columns

    def finish(self, pixels: torch.Tensor) -> torch.Tensor:
        """`(C, h, w)` of the crop -> `(C, H, W)`."""
        if self.num_channels == 1:
            pixels = pixels.expand(3, -1, -1)
        with seeded(self._seed):
            random.setstate(self._drawn)
            # Pillow takes the last of RGBA for transparency and multiplies the others with it.
            image = to_pil_image(pixels, "CMYK" if self.num_channels == 4 else None)
            image = resize(image, self.crop.size, self.crop.interpolation)
            finished = self.after_crop(image)[: self.num_channels]
        return turned(finished, *draw_turns(self.vertical_flip, self.rot90))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        top, left, height, width = self.region(*image.shape[-2:])
        return self.finish(image[:, top : top + height, left : left + width])

    def __repr__(self) -> str:
        return repr(self.steps)


def checked(crop_scale: tuple[float, float], random_erasing: float) -> tuple[float, float]:
    """LO and HI. Raises ValueError where these are not shares, or the other is not a probability."""
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise UserError(f"--crop_scale {low} {high}: needs 0 < LO <= HI <= 1 (shares of the image's area).")
    if not 0 <= random_erasing <= 1:
        raise UserError(f"--random_erasing {random_erasing}: a probability, from 0 to 1.")
    return low, high


class SingleDrawCrop(RandomCrop):
    """`RandomCrop` with the area and the aspect ratio of `SingleDrawRandomResizedCrop`."""

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        area, aspect, vertical, horizontal = torch.rand(4, dtype=torch.float64).tolist()
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area)
        narrow, wide = map(math.log, ASPECT_RATIOS)
        aspect = math.exp(narrow + (wide - narrow) * aspect)
        columns = min(max(round(math.sqrt(area * aspect)), 1), width)
        rows = min(max(round(math.sqrt(area / aspect)), 1), height)
        return int(vertical * (height - rows + 1)), int(horizontal * (width - columns + 1)), rows, columns


class BandFinetuningTransform:
    """Augmentation for fine-tuning of images of any number of bands: `(C, h, w)` float32, normalised, NaN where a pixel
    is missing -> `(C, H, W)`. Crop, flips and turns (`RandomCrop`), and timm's random erasing with normally distributed
    numbers. All of it follows from torch's global random number generator.

    Args: as of `FinetuningTransform`.

    Raises ValueError for `auto_augment`, whose steps are made for the colours of 8-bit pictures, and for what
    `FinetuningTransform` refuses.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        crop_scale: tuple[float, float] = (0.08, 1.0),
        horizontal_flip: bool = True,
        auto_augment: str | None = None,
        random_erasing: float = 0.25,
        single_draw: bool = False,
        vertical_flip: bool = False,
        rot90: bool = False,
    ):
        if auto_augment:
            raise UserError(
                f"--auto_augment {auto_augment} changes the colours of 8-bit pictures, and these images have bands in "
                "other units: give --auto_augment none."
            )
        make = SingleDrawCrop if single_draw else RandomCrop
        scale = checked(crop_scale, random_erasing)
        self.crop = make(to_pair(image_size), scale, horizontal_flip, vertical_flip, rot90)
        self.erasing = RandomErasing(random_erasing, mode="pixel", device="cpu")

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        return self.crop.region(height, width)

    def finish(self, pixels: torch.Tensor) -> torch.Tensor:
        """`(C, h, w)` of the crop -> `(C, H, W)`."""
        image = self.crop.finish(pixels).clone()  # erasing writes into it
        with seeded(int(torch.randint(2**62, ()))):
            return self.erasing(image)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        top, left, height, width = self.region(*image.shape[-2:])
        return self.finish(image[:, top : top + height, left : left + width])

    def __repr__(self) -> str:
        return f"{self.crop}, {self.erasing}"
