"""Population statistics of image patches (paper, section 2.2, eq. 3): one streaming pass, mergeable, float64."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch

from ..errors import DataError, MissingFileError, UserError
from ..model import ViTMAERobustConfig
from ..model.configuration_vit_mae_robust import to_pair
from .moments import Count, deviation, merged, merged_all, moments_of
from .sampling import SampleErrors
from .statistics_file import read_statistics, write_statistics

FORMAT = "hf_mae_robust.patch_statistics"
# In float64 these fit a processor's cache (D = 768).
PATCHES_AT_ONCE = 256
# metadata["units"].
UNITS_OF_PIXELS, UNITS_OF_FILES = "pixels from 0 to 1", "numbers of the files"


def patches_of(images: torch.Tensor, patch_size: tuple[int, int]) -> torch.Tensor:
    """`(B, C, H, W)` -> `(B * L, D)`; the numbers of a patch run over rows, columns, then channels, as in the model."""
    batch_size, channels, height, width = images.shape
    p, q = patch_size
    patches = images.reshape(batch_size, channels, height // p, p, width // q, q)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(-1, p * q * channels)


@dataclass
class PatchStatistics:
    """Running mean and sum of squared deviations of each of the D numbers of a patch.

    Two of them can be merged exactly (parallel variance: Chan, Golub & LeVeque 1979), so the pass can be split over
    processes in any way.

    Attributes:
        count: patches seen; where pixels were missing, int64 `(D,)`: how many patches had each of the numbers.
        mean, sum_of_squares: float64 `(D,)`, the second about the mean; of raw pixels in [0, 1] of 8-bit images, in the
            units of the file of band images.
        metadata: what they were computed over; kept in the file.
    """

    count: Count
    mean: torch.Tensor
    sum_of_squares: torch.Tensor
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def empty(cls, dim: int) -> Self:
        return cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64))

    def without_content(self) -> Self:
        """Statistics of nothing, of the same form."""
        return self.empty(len(self.mean))

    @property
    def num_patches(self) -> int:
        """Patches seen; where pixels were missing, by the place of a patch that was missing least often."""
        return self.count if isinstance(self.count, int) else int(self.count.max())

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation over the population (divides by the count), float64 `(D,)`; 0 where nothing varies."""
        return deviation(self.count, self.sum_of_squares)

    def update(self, patches: torch.Tensor) -> None:
        """Take in `(N, D)` patches of raw pixels; NaN is a missing pixel, left out of the statistics of its place."""
        for part in patches.split(PATCHES_AT_ONCE):
            self.merge(PatchStatistics(*moments_of(part, dim=0)))

    def merge(self, other: "PatchStatistics") -> None:
        """Add what `other` has counted (Chan et al. 1979): as if all patches had come here."""
        self.count, self.mean, self.sum_of_squares = merged(
            (self.count, self.mean, self.sum_of_squares), (other.count, other.mean, other.sum_of_squares)
        )

    def packed(self) -> torch.Tensor:
        """float64 `(3, D)`, exact for counts up to 2**53: all but the metadata, as one tensor."""
        return torch.stack([torch.zeros_like(self.mean) + self.count, self.mean, self.sum_of_squares])

    @classmethod
    def unpacked(cls, packed: torch.Tensor) -> Self:
        """`(B, 3, D)`, what `packed` gave for each of several parts -> the statistics of all of them."""
        count, mean, sum_of_squares = merged_all(*packed.unbind(1))
        if isinstance(count, torch.Tensor) and len(count) and bool((count == count[0]).all()):
            count = int(count[0])
        return cls(count, mean, sum_of_squares)

    def check(self, description: str) -> None:
        """Raise DataError where a place of a patch was missing in every patch: there is no mean to normalise it by.
        description: of the images."""
        if isinstance(self.count, int) or self.count.all():
            return
        num_lacking = int((self.count == 0).sum())
        raise DataError(
            f"{num_lacking:,} of the {len(self.count):,} numbers of a patch are missing in every patch of "
            f"{description} (--nodata, or the file's own mark): global patch statistics need each of them once. "
            "Leave out bands that are never measured with --bands, or take another --target_normalization."
        )

    def save(self, path: str | Path, more: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write `mean`, `std` (float64), the count, and the metadata to a .safetensors file, complete or not at all.

        more: further tensors of the file, under other names, such as those of `BandStatistics`.
        """
        tensors = {**(more or {}), "mean": self.mean, "std": self.std}
        if isinstance(self.count, torch.Tensor):
            tensors["count"] = self.count
        write_statistics(Path(path), tensors, {"format": FORMAT, "num_patches": self.num_patches, **self.metadata})

    @classmethod
    def load(cls, path: str | Path, patch_dim: int | None = None) -> Self:
        """Read a file that `save` wrote.

        Args:
            patch_dim: D of the model that they are for.

        Raises:
            FileNotFoundError: no such file. ValueError: it is something else, cut off, or of another patch size.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(
                f"No patch statistics at {path}. Compute them with `python -m hf_mae_robust statistics`, or let "
                "run_pretrain.py do it with --target_statistics auto."
            )
        tensors, metadata = read_statistics(path)
        if metadata.pop("format", None) != FORMAT or {"mean", "std"} - set(tensors):
            raise UserError(
                f"{path} holds no patch statistics (tensors: {', '.join(tensors)}). They are written by "
                "`python -m hf_mae_robust statistics`."
            )
        mean, std = tensors["mean"].double(), tensors["std"].double()
        if patch_dim is not None and (mean.shape != (patch_dim,) or std.shape != (patch_dim,)):
            raise UserError(
                f"The patch statistics in {path} are for patches of {mean.shape[0]} numbers (patch_size "
                f"{metadata.get('patch_size', '?')}, {metadata.get('num_channels', '?')} channels), but the model has "
                f"patches of {patch_dim}. Compute them for the model's patch size."
            )
        num_patches = int(metadata.pop("num_patches", 0))
        count = tensors.get("count", num_patches)
        return cls(count, mean, std**2 * count, metadata)

    def check_form(self, config: ViTMAERobustConfig, description: str, with_clipping: bool = True) -> None:
        """Raise UserError where the metadata name other patches, channels, bands or units than a model's. What they do
        not name counts as the same.

        Args:
            description: of the file, with which the sentence begins.
            with_clipping: whether limits of bands have to be the same, too.
        """
        wanted: dict[str, Any] = {
            "patch_size": list(to_pair(config.patch_size)),
            "num_channels": config.num_channels,
            "units": UNITS_OF_FILES if config.is_band_model else UNITS_OF_PIXELS,
        }
        stated = {name: self.metadata.get(name, value) for name, value in wanted.items()}
        if "units" not in self.metadata and not config.is_band_model and self.mean.abs().max() > 1.5:
            stated["units"] = UNITS_OF_FILES  # older files do not name them
        if "hf_mae_robust" in self.metadata:  # a pass, which names those that were given
            for name in ("bands", "nodata", *(["value_range"] if with_clipping else [])):
                stated[name], wanted[name] = self.metadata.get(name), getattr(config, name)
        others = [
            f"{name} {stated[name]} instead of {value}" for name, value in wanted.items() if stated[name] != value
        ]
        if others:
            raise UserError(
                f"{description} does not fit this run: {', '.join(others)}. Compute the file with this run's settings "
                "(`python -m hf_mae_robust statistics`), or give --target_statistics auto."
            )


@torch.no_grad()
def compute_patch_statistics(
    batches: Iterable[dict[str, torch.Tensor]],
    patch_size: tuple[int, int],
    num_channels: int,
    errors: SampleErrors | None = None,
) -> PatchStatistics:
    """One pass over this process's images.

    Args:
        batches: `{"pixel_values": (B, C, H, W), "row": (B,)}`; rows of -1 are left out. uint8 counts in [0, 1]; floats
            count as they are, and NaN is a missing pixel.
        patch_size: (height, width). num_channels: C.
        errors: is told of each image, too.
    """
    statistics = PatchStatistics.empty(patch_size[0] * patch_size[1] * num_channels)
    num_images = 0
    for batch in batches:
        images = batch["pixel_values"][batch["row"] >= 0]
        if len(images):
            for image in images.split(1):  # so that they are worked on in the processor's cache
                patches = patches_of(image, patch_size)
                patches = patches.double() / 255 if image.dtype == torch.uint8 else patches
                statistics.update(patches)
                if errors is not None:
                    count, mean, squares = moments_of(patches, dim=0)
                    errors.add(torch.zeros_like(mean)[None] + count, mean[None], squares[None])
            num_images += len(images)
    statistics.metadata["num_images"] = num_images
    return statistics


class Mergeable(Protocol):
    """Statistics that can be computed in parts. metadata["num_images"]: how many images a part is of."""

    metadata: dict[str, Any]

    def without_content(self) -> Self:
        """Statistics of nothing, of the same form."""

    def merge(self, other: Any, /) -> None:
        """Add what `other`, of the same class and form, has counted."""


Statistics = TypeVar("Statistics", bound=Mergeable)


def merge_across_processes(statistics: Statistics) -> Statistics:
    """Merge what the processes of a `torch.distributed` job have seen; each gets the same result. Alone: unchanged."""
    if not torch.distributed.is_initialized():
        return statistics
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, statistics)
    total = statistics.without_content()
    for part in parts:
        total.merge(part)
    total.metadata = {**statistics.metadata, "num_images": sum(part.metadata["num_images"] for part in parts)}
    return total
