"""Population statistics of image patches (paper, section 2.2, eq. 3): one streaming pass, mergeable, float64."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import MissingFileError, UserError
from ..hub.run_record import portable

FORMAT = "hf_mae_robust.patch_statistics"
# In float64 these fit a processor's cache (D = 768).
PATCHES_AT_ONCE = 256


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
        count: patches seen.
        mean, sum_of_squares: float64 `(D,)`, of raw pixels in [0, 1]; the second is about the mean.
        metadata: what they were computed over; kept in the file.
    """

    count: int
    mean: torch.Tensor
    sum_of_squares: torch.Tensor
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def empty(cls, dim: int) -> "PatchStatistics":
        return cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64))

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation over the population (divides by the count), float64 `(D,)`; 0 where nothing varies."""
        return (self.sum_of_squares / max(self.count, 1)).sqrt()

    def update(self, patches: torch.Tensor) -> None:
        """Take in `(N, D)` patches of raw pixels in [0, 1]."""
        for part in patches.split(PATCHES_AT_ONCE):
            variance, mean = torch.var_mean(part.double(), dim=0, correction=0)
            self.merge(PatchStatistics(len(part), mean, variance * len(part)))

    def merge(self, other: "PatchStatistics") -> None:
        """Add what `other` has counted (Chan et al. 1979): as if all patches had come here."""
        if other.count == 0:
            return
        count = self.count + other.count
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.count / count)
        self.sum_of_squares = self.sum_of_squares + other.sum_of_squares + delta**2 * (self.count * other.count / count)
        self.count = count

    def save(self, path: str | Path) -> None:
        """Write `mean`, `std` (float64) and the metadata to a .safetensors file, complete or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {"format": FORMAT, "num_patches": self.count, **portable(self.metadata)}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            # Not `save_file`, whose files only their owner can read.
            content = save(
                {"mean": self.mean.contiguous(), "std": self.std.contiguous()},
                metadata={
                    key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()
                },
            )
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, patch_dim: int | None = None) -> "PatchStatistics":
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
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a .safetensors file, or not a complete one: {error}") from error
        if metadata.get("format") != FORMAT or {"mean", "std"} - set(tensors):
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
        count = int(metadata.pop("num_patches", 0))
        metadata.pop("format")
        return cls(count, mean, std**2 * count, {key: _parse(value) for key, value in metadata.items()})


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


@torch.no_grad()
def compute_patch_statistics(
    batches: Iterable[dict[str, torch.Tensor]], patch_size: tuple[int, int], num_channels: int
) -> PatchStatistics:
    """One pass over this process's images.

    Args:
        batches: `{"pixel_values": (B, C, H, W) uint8, "row": (B,)}`; rows of -1 are left out.
        patch_size: (height, width). num_channels: C.
    """
    statistics = PatchStatistics.empty(patch_size[0] * patch_size[1] * num_channels)
    num_images = 0
    for batch in batches:
        images = batch["pixel_values"][batch["row"] >= 0]
        if len(images):
            for image in images.split(1):  # so that they are worked on in the processor's cache
                statistics.update(patches_of(image, patch_size).double() / 255)
            num_images += len(images)
    statistics.metadata["num_images"] = num_images
    return statistics


def merge_across_processes(statistics: PatchStatistics) -> PatchStatistics:
    """Merge what the processes of a `torch.distributed` job have seen; each gets the same result. Alone: unchanged."""
    if not torch.distributed.is_initialized():
        return statistics
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, asdict(statistics))
    merged = PatchStatistics.empty(len(statistics.mean))
    for part in parts:
        merged.merge(PatchStatistics(**part))
    merged.metadata = {**statistics.metadata, "num_images": sum(part["metadata"]["num_images"] for part in parts)}
    return merged
