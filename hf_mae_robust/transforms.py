"""Augmentation for pre-training, and the preprocessing of evaluation as an image processor."""

from collections.abc import Sequence

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import center_crop
from transformers import CLIPImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .model.configuration_vit_mae_robust import to_pair

# Narrower images are cut to the middle before they are resized; it is far more than the centre crop keeps.
MAX_ASPECT_RATIO = 8


def evaluation_processor(
    image_size: int | tuple[int, int],
    crop_pct: float = 0.875,
    num_channels: int = 3,
    image_mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    image_std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> CLIPImageProcessor:
    """The preprocessing that belongs to a model: resize, centre crop, rescale to [0, 1], normalise.

    `image_size` in pixels, one number or (height, width); `image_mean` and `image_std`: one number a channel.

    The short side is resized (bicubic) to `image_size / crop_pct`, keeping the aspect ratio, and the centre is cropped:
    256 and 224 with the official MAE's `crop_pct` of 0.875; 1.0 crops nothing from a square image. ViT's own processor
    squashes images to a square, so this is CLIP's, with other settings. For a non-square `image_size` images are
    resized to that shape first, whatever their aspect ratio.

    Raises ValueError where `crop_pct` does not lie in (0, 1].
    """
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct={crop_pct!r}: must lie in (0, 1].")
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
        mean, std = (
            torch.tensor(value, device=device).view(-1, 1, 1) for value in (processor.image_mean, processor.image_std)
        )
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8:
            return images
        return torch.addcmul(self.shift, images.float(), self.scale)

    def undo(self, image: torch.Tensor) -> torch.Tensor:
        """`(C, H, W)` normalised -> `(3, H, W)` uint8, for pictures; of 4 channels the first 3, and of any other
        number the first, as gray."""
        pixels = ((image - self.shift) / self.scale).round().clamp(0, 255).to(torch.uint8)
        return pixels[:3] if len(pixels) in (3, 4) else pixels[:1].expand(3, -1, -1)


class EvaluationTransform:
    """`(C, h, w)` uint8 -> `(C, H, W)` uint8: the geometric part of an image processor. Normalisation happens on the
    device, for the whole batch."""

    def __init__(self, processor: BaseImageProcessor):
        self.processor = processor

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        short, long = sorted(image.shape[-2:])
        if long > MAX_ASPECT_RATIO * short and "shortest_edge" in self.processor.size:
            # Of 20,000 x 3 pixels, resized to 256 at the short side, nothing but the centre would be kept.
            image = center_crop(image, [min(side, MAX_ASPECT_RATIO * short) for side in image.shape[-2:]])
        # Of 1 x 1 pixels the processor could not tell where the channels are.
        layout = {"input_data_format": "channels_first", "return_tensors": "pt"}
        return self.processor(images=image, do_rescale=False, do_normalize=False, **layout).pixel_values[0]

    def __repr__(self) -> str:
        steps = [f"resize {dict(self.processor.size)}"]
        if getattr(self.processor, "do_center_crop", False):
            steps.append(f"centre crop {dict(self.processor.crop_size)}")
        return ", ".join(steps)


def training_transform(
    image_size: int | tuple[int, int], crop_scale: tuple[float, float] = (0.2, 1.0), horizontal_flip: bool = True
) -> v2.Compose:
    """MAE's augmentation on uint8 tensors `(C, h, w)` -> `(C, H, W)`: a random crop of `crop_scale` of the area
    (bicubic, aspect ratio 3/4 to 4/3) and a horizontal flip. It draws from torch's global random number generator.
    `crop_scale`: (0.2, 1.0) in MAE and for the paper's ViT-L, (0.5, 1.0) for its ViT-B (section 3.1)."""
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"crop_scale={tuple(crop_scale)}: needs 0 < LO <= HI <= 1 (shares of the image's area).")
    steps = [
        v2.RandomResizedCrop(
            to_pair(image_size), scale=(low, high), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
        )
    ]
    if horizontal_flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose(steps)
