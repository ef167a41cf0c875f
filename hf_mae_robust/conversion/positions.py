"""Position tables of ViTs for images of another size."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..errors import UserError
from ..model.configuration_vit_mae_robust import to_pair
from ..model.modeling_vit_mae_robust import interpolate_position_embedding, sincos_position_embedding


def square_size(image_size: int | Sequence[int]) -> int:
    """The side. Raises ValueError for an image size that is not square."""
    height, width = to_pair(image_size)
    if height != width:
        raise UserError(
            f"image_size {height} x {width}: the classifier is a stock BEiT, which takes square images only; give "
            "--image_size."
        )
    return height


def square_patch(patch_size: int | Sequence[int], task: str) -> int:
    """The side. Raises ValueError for patches that are not square."""
    height, width = to_pair(patch_size)
    if height != width:
        raise UserError(f"{task} needs square patches, not {patch_size}.")
    return height


def grid_size(image_size: int | Sequence[int], patch_size: int | Sequence[int]) -> tuple[int, int]:
    """Patches (vertically, horizontally). Raises ValueError where they do not fit into the image."""
    (height, width), (patch_height, patch_width) = to_pair(image_size), to_pair(patch_size)
    if height % patch_height or width % patch_width or min(height, width) < 1:
        raise UserError(f"--image_size {image_size} is not a multiple of the patch size {patch_size}.")
    return height // patch_height, width // patch_width


def _table(encoder: PreTrainedModel) -> torch.Tensor:
    embeddings: Any = encoder.embeddings
    return embeddings.position_embeddings.detach()


def resized_positions(encoder: PreTrainedModel, image_size: int | Sequence[int]) -> torch.Tensor:
    """The position table `(1, 1 + L, d)` of an encoder for images of another size: interpolated (bicubic, 2-D)."""
    config, table = encoder.config, _table(encoder)
    grid, new_grid = (grid_size(size, config.patch_size) for size in (config.image_size, image_size))
    return interpolate_position_embedding(table, grid, new_grid)


def positions_for(encoder: PreTrainedModel, image_size: int) -> torch.Tensor:
    """As `resized_positions`, but MAE's own sine-cosine table, where the encoder has that one, is computed again."""
    config = encoder.config
    grid, new_grid = (grid_size(size, config.patch_size) for size in (config.image_size, image_size))
    return table_for(_table(encoder), grid, new_grid)


def is_sincos(table: torch.Tensor, grid: tuple[int, int]) -> bool:
    """Whether a position table `(1, 1 + L, d)` is MAE's own, which is not trained, also where it was once rounded to
    half precision."""
    error = (table.float() - sincos_position_embedding(grid, table.shape[-1]).to(table.device)).abs().max()
    # Only a table that half precision can hold may have been rounded: a wider tolerance for all would take one that was
    # trained a little for MAE's. The values lie within 1, below which a half step of the type is eps / 4.
    halves = [each for each in (torch.bfloat16, torch.float16) if torch.equal(table, table.to(each).to(table.dtype))]
    return bool(error <= 1e-4 + max((torch.finfo(each).eps / 4 for each in halves), default=0.0))


def table_for(table: torch.Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> torch.Tensor:
    """The position table of a grid of patches for another grid: MAE's sine-cosine table is computed again, any other
    one interpolated (bicubic, 2-D)."""
    if is_sincos(table, grid):
        return sincos_position_embedding(new_grid, table.shape[-1])
    return interpolate_position_embedding(table, grid, new_grid)
