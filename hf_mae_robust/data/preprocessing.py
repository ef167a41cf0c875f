"""Augmentation for pre-training, and the preprocessing of evaluation as an image processor."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import torch
from torch.nn.functional import interpolate
from transformers import (
    CLIPImageProcessor,
    PreTrainedConfig,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from ..errors import UserError
from ..model.bands_vit_mae_robust import BandForm
from ..model.configuration_vit_mae_robust import to_pair
from ..model.image_processing_vit_mae_robust import ViTMAERobustImageProcessor
from ..model.resizing_vit_mae_robust import cut_to_middle, fill_missing_pixels, is_cut, resize_with_missing
from .shown import to_shown

# Of random crops, width / height.
ASPECT_RATIOS = (3 / 4, 4 / 3)


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
    return CLIPImageProcessor(
        **_geometry(image_size, crop_pct),
        do_convert_rgb=num_channels == 3,
        image_mean=list(image_mean),
        image_std=list(image_std),
    )


def band_processor(
    form: BandForm,
    image_size: int | Sequence[int],
    crop_pct: float = 0.875,
    show_bands: Sequence[int] | None = None,
) -> ViTMAERobustImageProcessor:
    """The same for images of any number of bands: choose bands, mark missing pixels, clip and normalise as `form` says,
    then resize and crop as `evaluation_processor`. show_bands: what pictures show, see `ViTMAERobustImageProcessor`.

    Raises ValueError where `crop_pct` does not lie in (0, 1], or `show_bands` are not among the bands.
    """
    if show_bands is not None:
        known = range(form.num_channels or max(show_bands) + 1) if form.bands is None else form.bands
        if not set(show_bands) <= set(known):
            given = " ".join(map(str, show_bands))
            raise UserError(f"--show_bands {given}: must be some of the bands {', '.join(map(str, known))}.")
    return ViTMAERobustImageProcessor(**_geometry(image_size, crop_pct), **asdict(form), show_bands=show_bands)


def _geometry(image_size: int | Sequence[int], crop_pct: float) -> dict[str, Any]:
    """Settings of `CLIPImageProcessor`."""
    if not 0 < crop_pct <= 1:
        raise UserError(f"crop_pct={crop_pct!r}: must lie in (0, 1].")
    height, width = to_pair(image_size)
    resized = int(height / crop_pct), int(width / crop_pct)
    return {
        "size": {"shortest_edge": resized[0]} if height == width else {"height": resized[0], "width": resized[1]},
        "crop_size": {"height": height, "width": width},
        "resample": PILImageResampling.BICUBIC,
    }


class Normalization:
    """`(B, C, H, W)` uint8 -> float32 with the mean and deviation of an image processor: its other half, for a whole
    batch on the device. Floats are taken for normalised and come back as they are, but for missing pixels (NaN), where
    the processor is one of bands: those are filled with 0, the mean of the band.

    Args:
        keeps_missing: NaN stays, for pre-training models, which fill it themselves and leave it out of the loss.
    """

    def __init__(self, processor: BaseImageProcessor, device: torch.device, keeps_missing: bool = False):
        settings: Any = processor
        self.is_of_bands = isinstance(processor, ViTMAERobustImageProcessor)
        self.shown_channels = settings.shown_channels if self.is_of_bands else None
        self.fills_missing = self.is_of_bands and not keeps_missing
        if self.is_of_bands:
            return  # images are normalised where they are decoded
        mean, std = (
            torch.tensor(value, device=device).view(-1, 1, 1) for value in (settings.image_mean, settings.image_std)
        )
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype != torch.uint8:
            return fill_missing_pixels(images) if self.fills_missing else images
        images = images.float()
        if self.is_of_bands:
            return images  # fillers, which stand for no image
        return torch.addcmul(self.shift, images, self.scale, out=images)

    def undo(self, image: torch.Tensor) -> torch.Tensor:
        """`(C, H, W)` normalised -> `(3, H, W)` uint8, for pictures; of 4 channels the first 3, and of any other
        number the first, as gray. Of bands: as `to_shown`."""
        if self.is_of_bands:
            return (to_shown(image, self.shown_channels) * 255).round().to(torch.uint8)
        pixels = ((image - self.shift) / self.scale).round().clamp(0, 255).to(torch.uint8)
        return pixels[:3] if len(pixels) in (3, 4) else pixels[:1].expand(3, -1, -1)


@runtime_checkable
class Transform(Protocol):
    """A transform in two steps, so that no more of an image is decoded than is needed. Both may draw from torch's
    global random number generator.

    One whose `finish` begins with a bicubic resize with antialiasing may have a third method, `target(height, width)`:
    height and width to which a part of this size is resized, or None where something else comes first. Of large images
    `finish` then gets the part in that size, and they need not be decoded at full size.
    """

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width, in pixels, of the part that `finish` needs of an image of this size."""

    def finish(self, pixels: torch.Tensor, *label: Any) -> Any:
        """`(C, h, w)` uint8 of that part -> `(C, H, W)`. With a label that belongs to places in the image (`is_joint`
        of labels.py): image and label -> the item's content, a dict."""


class WholeImage:
    """A function of the decoded image (and its label, as of `Transform`) as a `Transform`, with the function's
    `target` if it has one."""

    def __init__(self, function: Callable[..., Any]):
        self.finish, self.is_random = function, getattr(function, "is_random", True)
        self.target = getattr(function, "target", None)

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        return 0, 0, height, width


def in_two_steps(transform: Transform | Callable[..., Any]) -> Transform:
    """A transform as it is; any other function as one of the whole image."""
    return transform if isinstance(transform, Transform) else WholeImage(transform)


def _final_size(processor: Any) -> tuple[int, int] | None:
    """Height and width of images that a processor leaves as they are; None where there are none, or none is known."""
    if type(processor) not in (CLIPImageProcessor, ViTMAERobustImageProcessor) or not processor.do_center_crop:
        return None  # others may do more
    final = processor.crop_size["height"], processor.crop_size["width"]
    size = dict(processor.size)
    return final if size in ({"height": final[0], "width": final[1]}, {"shortest_edge": min(final)}) else None


def _resized_to(processor: Any) -> dict[str, int] | None:
    """The size to which a processor resizes 8-bit images first of all, bicubic: its short side, or height and width;
    None where it does something else."""
    if type(processor) is not CLIPImageProcessor or not processor.do_resize:
        return None
    size = dict(processor.size)
    is_known = processor.resample == PILImageResampling.BICUBIC and set(size) in (
        {"shortest_edge"},
        {"height", "width"},
    )
    return size if is_known else None


class EvaluationTransform:
    """`(C, h, w)` uint8 -> `(C, H, W)` uint8: the geometric part of an image processor. Normalisation happens on the
    device, for all of the batch. Floats are normalised already and stay floats, NaN where a pixel is missing."""

    is_random = False

    def __init__(self, processor: BaseImageProcessor):
        self.processor: Any = processor  # transformers declares its settings nowhere
        self.final_size, self.resized_to = _final_size(processor), _resized_to(processor)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        if image.shape[-2:] == self.final_size:
            return image  # the processor would find nothing to do, and take long for it
        if "shortest_edge" in self.processor.size:
            image = cut_to_middle(image)
            if image.shape[-2:] == self.final_size:
                return image
        return resize_with_missing(image, self._resize_and_crop)

    def target(self, height: int, width: int) -> tuple[int, int] | None:
        """As of `Transform`; None for processors of other kinds, or with another filter."""
        size = self.resized_to
        if size is None or is_cut(height, width):
            return None
        if "shortest_edge" not in size:
            return size["height"], size["width"]
        short, long = size["shortest_edge"], int(size["shortest_edge"] * max(height, width) / min(height, width))
        return (short, long) if height <= width else (long, short)

    def _resize_and_crop(self, image: torch.Tensor) -> torch.Tensor:
        # Of 1 x 1 pixels, or of many channels, the processor could not tell where the channels are.
        layout: dict[str, Any] = {"input_data_format": "channels_first", "return_tensors": "pt"}
        return self.processor(images=image, do_rescale=False, do_normalize=False, **layout).pixel_values[0]

    def __repr__(self) -> str:
        steps = [f"resize {dict(self.processor.size)}"]
        if getattr(self.processor, "do_center_crop", False):
            steps.append(f"centre crop {dict(self.processor.crop_size)}")
        return ", ".join(steps)


class RandomCrop:
    """MAE's augmentation: a random crop of a share of the area (bicubic, aspect ratio 3/4 to 4/3) and a horizontal
    flip; for images from above, which have no top, also a vertical flip and quarter turns. It draws from torch's global
    random number generator, for what is on alone. In two steps, so that no more than the part needs to be decoded:
    `region` says which, `finish` takes its pixels. Called with a complete image it does both.

    Images are uint8, or floats that are normalised, NaN where a pixel is missing (see `resize_with_missing`).

    Args:
        image_size: (height, width). vertical_flip: flips half of the images. rot90: turns them by 0, 90, 180 or 270
            degrees.

    Raises ValueError for quarter turns of images that are not square.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        scale: tuple[float, float],
        horizontal_flip: bool,
        vertical_flip: bool = False,
        rot90: bool = False,
    ):
        check_turns(image_size, rot90)
        self.image_size, self.scale, self.horizontal_flip = image_size, scale, horizontal_flip
        self.vertical_flip, self.rot90 = vertical_flip, rot90

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
        if pixels.dtype == torch.uint8:  # most images: nothing of them is missing
            pixels = self._resize(pixels)
        elif pixels.shape[-2:] != self.image_size:  # otherwise interpolation changes nothing
            pixels = resize_with_missing(pixels, self._resize)
        if self.horizontal_flip and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
        if self.vertical_flip or self.rot90:
            pixels = turned(pixels, *draw_turns(self.vertical_flip, self.rot90))
        return pixels

    def target(self, height: int, width: int) -> tuple[int, int]:
        """As of `Transform`."""
        return self.image_size

    def _resize(self, pixels: torch.Tensor) -> torch.Tensor:
        return interpolate(pixels.unsqueeze(0), self.image_size, mode="bicubic", antialias=True)[0]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        top, left, height, width = self.region(*image.shape[-2:])
        return self.finish(image[:, top : top + height, left : left + width])

    def __repr__(self) -> str:
        flips = {"horizontal flip": self.horizontal_flip, "vertical flip": self.vertical_flip}
        changes = "".join(f", {name}" for name, is_on in {**flips, "quarter turns": self.rot90}.items() if is_on)
        return f"random crop of {self.scale[0]:g} to {self.scale[1]:g} of the area to {self.image_size}{changes}"


def check_turns(image_size: tuple[int, int], rot90: bool) -> None:
    """Raises ValueError for quarter turns of images of (height, width) that are not square."""
    if rot90 and image_size[0] != image_size[1]:
        raise UserError(f"--rot90 is for square images, not for {image_size[0]} x {image_size[1]} pixels.")


def draw_turns(vertical_flip: bool, rot90: bool) -> tuple[bool, int]:
    """Whether to flip an image vertically, and by how many quarter turns to rotate it. Draws for what is on alone."""
    flips = vertical_flip and bool(torch.rand(()) < 0.5)
    return flips, int(torch.randint(4, ())) if rot90 else 0


def turned(image: torch.Tensor, flips: bool, quarter_turns: int) -> torch.Tensor:
    """`(..., h, w)`, flipped vertically and then rotated counterclockwise."""
    image = image.flip(-2) if flips else image
    return image.rot90(quarter_turns, (-2, -1)) if quarter_turns else image


def training_transform(
    image_size: int | Sequence[int],
    crop_scale: tuple[float, float] = (0.2, 1.0),
    horizontal_flip: bool = True,
    vertical_flip: bool = False,
    rot90: bool = False,
) -> RandomCrop:
    """MAE's augmentation, `(C, h, w)` uint8 -> `(C, H, W)`. `crop_scale`: (0.2, 1.0) in MAE and for the paper's ViT-L,
    (0.5, 1.0) for its ViT-B (section 3.1). vertical_flip, rot90: see `RandomCrop`. Raises ValueError where `crop_scale`
    is not a pair of shares, or images that are not square would be turned."""
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise UserError(f"crop_scale={tuple(crop_scale)}: needs 0 < LO <= HI <= 1 (shares of the image's area).")
    return RandomCrop(to_pair(image_size), (low, high), horizontal_flip, vertical_flip, rot90)


def default_processor(config: PreTrainedConfig) -> CLIPImageProcessor:
    """MAE's evaluation preprocessing for a model with this config: its `image_mean` and `image_std` where it has them,
    else ImageNet's, or 0.5 where the images have no 3 channels. For a band model `band_processor`'s."""
    if getattr(config, "is_band_model", False):
        settings: Any = config
        return band_processor(BandForm(**settings.band_settings()), config.image_size)
    statistics: dict[str, Any] = {}
    if hasattr(config, "image_mean"):
        statistics = {"image_mean": config.image_mean, "image_std": config.image_std}
    elif config.num_channels != 3:
        statistics = {field: [0.5] * config.num_channels for field in ("image_mean", "image_std")}
    return evaluation_processor(config.image_size, num_channels=config.num_channels, **statistics)
