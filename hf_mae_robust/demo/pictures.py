"""Pictures of what a model makes of one image."""

from collections.abc import Sequence

import torch
from matplotlib import colormaps
from PIL import Image
from sklearn.decomposition import PCA
from torchvision.transforms.functional import to_pil_image

from ..training.pictures import MASK_GRAY

# Small pictures are enlarged by an integer factor to about this size in pixels: single patches can be seen and hit.
SHOWN_SIZE = 448


def as_rgb(pixels: torch.Tensor) -> torch.Tensor:
    """`(C, H, W)` -> `(3, H, W)`: of 4 channels the first 3, of any other number the first, as gray."""
    return pixels[:3] if len(pixels) in (3, 4) else pixels[:1].expand(3, -1, -1)


def on_pixels(values: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """One value a patch, `(..., rows, columns)`, to all pixels of it: `(..., H, W)`, without smoothing. size: (H, W),
    multiples of rows and columns."""
    for dim in (-2, -1):
        values = values.repeat_interleave(size[dim] // values.shape[dim], dim=dim)
    return values


def masked_picture(pixels: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`(3, H, W)` in [0, 1] and a mask `(rows, columns)`, 1 = masked -> `(3, H, W)`, gray where masked."""
    return torch.where(on_pixels(mask, pixels.shape[-2:]).bool(), MASK_GRAY, pixels)


def attention_picture(pixels: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """`(3, H, W)` in [0, 1] and one weight a patch `(rows, columns)` -> `(3, H, W)` in [0, 1]: half the image in gray,
    half the weights in colours, from the smallest (dark) to the largest (bright)."""
    colours = torch.from_numpy(colormaps["inferno"](_stretched(attention).numpy())[..., :3]).float()
    colours = on_pixels(colours.permute(2, 0, 1), pixels.shape[-2:])
    return 0.5 * pixels.mean(dim=0, keepdim=True) + 0.5 * colours


def principal_components(features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Features of the patches of one image, `(L, d)` -> `(3, rows, columns)` in [0, 1]: their first three principal
    components as red, green and blue, each from its smallest value to its largest. Which end of a component is the
    bright one is a convention (scikit-learn's). With fewer components than three (d, or one less than patches) the
    rest is 0."""
    picture = torch.zeros(3, *grid)
    count = min(3, features.shape[0] - 1, features.shape[1])
    if not count:
        return picture
    features = features.double()
    components = torch.from_numpy(PCA(count, svd_solver="full").fit_transform(features.numpy())).T
    picture[:count] = torch.stack([_stretched(component.reshape(grid)) for component in components])
    return picture


def _stretched(values: torch.Tensor) -> torch.Tensor:
    """To [0, 1]; all 0 where the values are equal."""
    values = values.float() - values.min()
    return values / values.max().clamp_min(torch.finfo(values.dtype).tiny)


def shown_scale(size: tuple[int, int]) -> int:
    """The factor by which `to_shown` enlarges a picture of (H, W) pixels."""
    return max(1, SHOWN_SIZE // max(size))


def to_shown(picture: torch.Tensor) -> Image.Image:
    """`(3, H, W)` in [0, 1] (clipped) -> a picture of a multiple of that size."""
    # torchvision would cut the decimals off, and a value that is a hair too small would be another one.
    picture = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
    height, width = picture.shape[-2:]
    scale = shown_scale((height, width))
    return to_pil_image(on_pixels(picture, (height * scale, width * scale)))
