"""Statistics that lie beside the data they are of, in the folder of a prepared data set: a run on these data needs no
pass over the images. They name the files that they were computed over, and of changed files they are not used."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.parquet import ParquetRows
from ..data.source import ImageSource, TableRows
from ..files import sha256_of
from ..model import ViTMAERobustConfig
from ..model.configuration_vit_mae_robust import to_pair
from ..training.setup import say
from ..version import __version__
from .band_pass import Reduction, evaluation_of
from .band_statistics import BandStatistics
from .patch_statistics import UNITS_OF_PIXELS, PatchStatistics
from .statistics_file import read_statistics

FOLDER = "statistics"
# Of prepared data sets.
IMAGE_COLUMN = "image"
# Files are read side by side to be compared: a disk has time for more than one.
READERS = 4


@dataclass(frozen=True)
class Form:
    """What patch statistics are of: images as evaluation sees them, cut into patches. Sizes are (height, width)."""

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    crop_pct: float
    num_channels: int = 3

    @classmethod
    def of(cls, config: ViTMAERobustConfig, crop_pct: float) -> "Form":
        return cls(to_pair(config.image_size), to_pair(config.patch_size), crop_pct, config.num_channels)

    def __str__(self) -> str:
        image, patch = ("x".join(map(str, size)) for size in (self.image_size, self.patch_size))
        return f"{image} px, patch {patch}, crop_pct {self.crop_pct:g}"


class Accumulator:
    """Statistics of bands and patches of 8-bit images, in float64 arrays `(n,)` that can be stored and joined. The
    order in which they are joined decides over the last bits."""

    def __init__(self, form: Form):
        self.form = form
        config = ViTMAERobustConfig(
            image_size=form.image_size, patch_size=form.patch_size, num_channels=form.num_channels
        )
        self.reduction = Reduction(config, evaluation_of(config, form.crop_pct))

    def of_image(self, pixels: torch.Tensor) -> np.ndarray:
        """pixels: `(C, h, w)` uint8."""
        return self.reduction.finish(pixels).numpy()

    def joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        bands, patches = self._unpacked(parts)
        return torch.cat([bands.packed().flatten(), patches.packed().flatten()]).numpy()

    def _unpacked(self, parts: Sequence[np.ndarray]) -> tuple[BandStatistics, PatchStatistics]:
        return self.reduction.unpack(torch.from_numpy(np.stack(parts)))

    def save(
        self, path: Path, parts: Sequence[np.ndarray], num_images: int, files: dict[str, Any], dataset: str
    ) -> None:
        """Write the statistics of all parts: of bands in numbers from 0 to 255, of patches in [0, 1]. files: path from
        the folder of the data set -> {"size", "sha256"} of the files that hold these images. dataset: its name."""
        bands, patches = self._unpacked(parts)
        patches.mean, patches.sum_of_squares = patches.mean / 255, patches.sum_of_squares / 255**2
        patches.metadata = {
            "num_images": num_images,
            "dataset": dataset,
            "transform": repr(self.reduction.evaluation),
            "image_size": list(self.form.image_size),
            "patch_size": list(self.form.patch_size),
            "crop_pct": self.form.crop_pct,
            "num_channels": self.form.num_channels,
            "units": UNITS_OF_PIXELS,
            "files": files,
            "hf_mae_robust": __version__,
        }
        patches.save(path, bands.tensors())


def stored_patch_statistics(source: ImageSource, config: ViTMAERobustConfig, crop_pct: float) -> PatchStatistics | None:
    """Those beside the data, for exactly these images in this form; None where there are none. Says why those that are
    there are not used."""
    found = _beside(source)
    if found is None:
        return None
    path, about = found
    stored = Form(tuple(about["image_size"]), tuple(about["patch_size"]), about["crop_pct"], about["num_channels"])
    if stored != (wanted := Form.of(config, crop_pct)):
        say(f"{path} is of {stored}, and this run needs statistics of {wanted}: they are computed")
        return None
    return PatchStatistics.load(path, config.patch_dim) if _is_of_these_files(path, about) else None


def stored_band_statistics(source: ImageSource, num_channels: int) -> BandStatistics | None:
    """As `stored_patch_statistics`, of the bands, in numbers from 0 to 255."""
    found = _beside(source)
    if found is None or found[1]["num_channels"] != num_channels or not _is_of_these_files(*found):
        return None
    return BandStatistics.load(found[0], num_channels)


def _beside(source: ImageSource) -> tuple[Path, dict[str, Any]] | None:
    """The file for a split and what it says of itself; None where there is none, or the source is not all of the split,
    read as 8-bit pictures."""
    rows = source.rows
    is_table = isinstance(rows, (TableRows, ParquetRows)) and rows.column == IMAGE_COLUMN
    path = Path(source.root) / FOLDER / f"{source.split}.safetensors"
    if not source.root or not is_table or source.band_form is not None or not path.is_file():
        return None
    about = read_statistics(path)[1]
    if not {"image_size", "patch_size", "crop_pct", "num_channels", "num_images", "files"} <= about.keys():
        return None  # of another program
    return (path, about) if about["num_images"] == source.num_rows else None


def _is_of_these_files(path: Path, about: dict[str, Any]) -> bool:
    root = path.parent.parent
    files = {root / name: expected for name, expected in about["files"].items()}
    others = [file for file in files if not file.is_file() or file.stat().st_size != files[file]["size"]]
    if not others:
        with ThreadPoolExecutor(READERS) as pool:
            digests = pool.map(sha256_of, files)
            others = [file for file, digest in zip(files, digests) if digest != files[file]["sha256"]]
    if others:
        name = others[0].relative_to(root).as_posix()
        say(f"{path}: its statistics are not used, because {name} changed since: they are computed")
    return not others
