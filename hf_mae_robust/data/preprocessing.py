"""Augmentation for pre-training, and the preprocessing of evaluation as an image processor."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2.functional import center_crop
from transformers import (
    CLIPImageProcessor,
    PreTrainedConfig,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from ..errors import UserError
from ..model.configuration_vit_mae_robust import to_pair

# Of random crops, width / height.
ASPECT_RATIOS = (3 / 4, 4 / 3)
# Narrower images are cut to the middle before they are resized; it is far more than the centre crop keeps.
MAX_ASPECT_RATIO = 8


def evaluation_processor(
    image_size: int | Sequence[int],
    crop_pct: float = 0.875,
    num_channels: int = 3,
    image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> CLIPImageProcessor:
    """The preprocessing that belongs to a model: resize, centre crop, rescale to [0, 1], normalise.

    `image_size` in pixels, one number or (height, width); `image_mean` and `image_std`: one number a channel.

    The short side is resized (bicubic) to `image_size / crop_pct`, keeping the aspect ratio, and the centre is cropped:
    256 and 224 with the official MAE's `crop_pct` of 0.875; 1.0 crops nothing from a square image. ViT's own processor
    squashes images to a square, so this is CLIP's, with other settings.
    Where the resized image has an odd number of pixels too many, CLIP's crop begins at the pixel before the middle and
    torchvision's `CenterCrop`, which the official code uses, at the even one of the two: of one image in four the crop
    lies a pixel before the official one.
    For a non-square `image_size` images are resized to that shape first, whatever their aspect ratio.

    Raises ValueError where `crop_pct` does not lie in (0, 1].
    """
    if not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct={crop_pct!r}: must lie in (0, 1].")
    height, width = to_pair(image_size)
    resized = int(height / crop_pct), int(width / crop_pct)
    return CLIPImageProcessor(
        size={"shortest_edge": resized[0]} if height == width else {"height": resized[0], "width": resized[1]},
        crop_size={"height": height, "width": width},
        resample=PILImageResampling.BICUBIC,
        do_convert_rgb=num_channels == 3,
        image_mean=list(image_mean),
        image_std=list(image_std),
    )


class Normalization:
    """`(B, C, H, W)` uint8 -> float32 with the mean and deviation of an image processor: its other half, for a whole
    batch on the device. Floats are taken for normalised and come back as they are."""

    def __init__(self, processor: BaseImageProcessor, device: torch.device):
        settings: Any = processor
        mean, std = (
            torch.tensor(value, device=device).view(-1, 1, 1) for value in (settings.image_mean, settings.image_std)
        )
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8:
            return images
        images = images.float()
        return torch.addcmul(self.shift, images, self.scale, out=images)

    def undo(self, image: torch.Tensor) -> torch.Tensor:
        """`(C, H, W)` normalised -> `(3, H, W)` uint8, for pictures; of 4 channels the first 3, and of any other
        number the first, as gray."""
        pixels = ((image - self.shift) / self.scale).round().clamp(0, 255).to(torch.uint8)
        return pixels[:3] if len(pixels) in (3, 4) else pixels[:1].expand(3, -1, -1)


@runtime_checkable
class Transform(Protocol):
    """A transform in two steps, so that no more of an image is decoded than is needed. Both may draw from torch's
    global random number generator."""

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width, in pixels, of the part that `finish` needs of an image of this size."""

    def finish(self, pixels: torch.Tensor, *label: Any) -> Any:
        """`(C, h, w)` uint8 of that part -> `(C, H, W)`. With a label that belongs to places in the image (`is_joint`
        of labels.py): image and label -> the item's content, a dict."""


class WholeImage:
    """A function of the decoded image (and its label, as of `Transform`) as a `Transform`."""

    def __init__(self, function: Callable[..., Any]):
        self.finish = function

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        return 0, 0, height, width


def in_two_steps(transform: Transform | Callable[..., Any]) -> Transform:
    """A transform as it is; any other function as one of the whole image."""
    return transform if isinstance(transform, Transform) else WholeImage(transform)


class EvaluationTransform:
    """`(C, h, w)` uint8 -> `(C, H, W)` uint8: the geometric part of an image processor. Normalisation happens on the
    device, for all of the batch."""

    def __init__(self, processor: BaseImageProcessor):
        self.processor: Any = processor  # transformers declares its settings nowhere

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        short, long = sorted(image.shape[-2:])
        if long > MAX_ASPECT_RATIO * short and "shortest_edge" in self.processor.size:
            # Of 20,000 x 3 pixels, resized to 256 at the short side, nothing but the centre would be kept.
            image = center_crop(image, [min(side, MAX_ASPECT_RATIO * short) for side in image.shape[-2:]])
        # Of 1 x 1 pixels the processor could not tell where the channels are.
        layout: dict[str, Any] = {"input_data_format": "channels_first", "return_tensors": "pt"}
        return self.processor(images=image, do_rescale=False, do_normalize=False, **layout).pixel_values[0]

    def __repr__(self) -> str:
        steps = [f"resize {dict(self.processor.size)}"]
        if getattr(self.processor, "do_center_crop", False):
            steps.append(f"centre crop {dict(self.processor.crop_size)}")
        return ", ".join(steps)


class RandomCrop:
    """MAE's augmentation on uint8 tensors: a random crop of a share of the area (bicubic, aspect ratio 3/4 to 4/3) and
    a horizontal flip. It draws from torch's global random number generator. In two steps, so that no more than the part
    needs to be decoded: `region` says which, `finish` takes its pixels. Called with a complete image it does both."""

    def __init__(self, image_size: tuple[int, int], scale: tuple[float, float], horizontal_flip: bool):
        self.image_size, self.scale, self.horizontal_flip = image_size, scale, horizontal_flip

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop of an image of this size: the draws of torchvision's RandomResizedCrop,
        whose `get_params` takes as long as a tenth of the decoding."""
        (low, high), (narrow, wide) = self.scale, map(math.log, ASPECT_RATIOS)
        for _ in range(10):
            area, aspect, vertical, horizontal = torch.rand(4, dtype=torch.float64).tolist()
            area = height * width * (low + (high - low) * area)
            aspect = math.exp(narrow + (wide - narrow) * aspect)
            rows, columns = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < rows <= height and 0 < columns <= width:
                return int(vertical * (height - rows + 1)), int(horizontal * (width - columns + 1)), rows, columns
        # As torchvision does where none fits: the middle, of the nearest aspect ratio.
        rows = min(height, round(width / ASPECT_RATIOS[0]))
        columns = min(width, round(height * ASPECT_RATIOS[1]))
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    def finish(self, pixels: torch.Tensor) -> torch.Tensor:
        """`(C, h, w)` of the crop -> `(C, H, W)`."""
        resized = interpolate(pixels.unsqueeze(0), self.image_size, mode="bicubic", antialias=True)[0]
        return resized.flip(-1) if self.horizontal_flip and torch.rand(()) < 0.5 else resized

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        top, left, height, width = self.region(*image.shape[-2:])
        return self.finish(image[:, top : top + height, left : left + width])

    def __repr__(self) -> str:
        flip = ", horizontal flip" if self.horizontal_flip else ""
        return f"random crop of {self.scale[0]:g} to {self.scale[1]:g} of the area to {self.image_size}{flip}"


def training_transform(
    image_size: int | Sequence[int], crop_scale: tuple[float, float] = (0.2, 1.0), horizontal_flip: bool = True
) -> RandomCrop:
    """MAE's augmentation, `(C, h, w)` uint8 -> `(C, H, W)`. `crop_scale`: (0.2, 1.0) in MAE and for the paper's ViT-L,
    (0.5, 1.0) for its ViT-B (section 3.1). Raises ValueError where it is not a pair of shares."""
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise UserError(f"crop_scale={tuple(crop_scale)}: needs 0 < LO <= HI <= 1 (shares of the image's area).")
    return RandomCrop(to_pair(image_size), (low, high), horizontal_flip)


def default_processor(config: PreTrainedConfig) -> CLIPImageProcessor:
    """MAE's evaluation preprocessing for a model with this config: its `image_mean` and `image_std` where it has them,
    else ImageNet's, or 0.5 where the images have no 3 channels."""
    statistics: dict[str, Any] = {}
    if hasattr(config, "image_mean"):
        statistics = {"image_mean": config.image_mean, "image_std": config.image_std}
    elif config.num_channels != 3:
        statistics = {field: [0.5] * config.num_channels for field in ("image_mean", "image_std")}
    return evaluation_processor(config.image_size, num_channels=config.num_channels, **statistics)
