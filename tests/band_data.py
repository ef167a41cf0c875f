"""A labelled data set of images of bands, with maps, and a band model for them."""

from pathlib import Path

import numpy as np
import torch
from datasets import Array2D, Array3D, ClassLabel, Dataset, Features

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.data.preprocessing import band_processor
from hf_mae_robust.model.bands_vit_mae_robust import BandForm
from tests.helpers import TINY

BANDS, SIZE, NODATA = 5, 16, 60000
MEAN, STD = [1000.0 * (band + 1) for band in range(BANDS)], [300.0] * BANDS


def rows_of_bands(count: int, seed: int = 0, num_bands: int = BANDS) -> dict[str, list]:
    """uint16 `(C, H, W)`: of class 0 dark, of class 1 bright; the map is 1 in the right half; a corner is missing."""
    rng, images, maps = np.random.default_rng(seed), [], []
    for row in range(count):
        mean = 1000.0 * (np.arange(num_bands) + 1)[:, None, None] + 400 * (row % 2)
        image = rng.normal(mean, 100, (num_bands, SIZE, SIZE))
        image[:, :, SIZE // 2 :] += 300
        image[:, :2, :3] = NODATA
        images.append(image.astype(np.uint16))
        maps.append((np.arange(SIZE) >= SIZE // 2).astype(np.uint8)[None].repeat(SIZE, axis=0))
    return {"image": images, "mask": maps, "label": [row % 2 for row in range(count)]}


def write_bands(folder: Path, train: int = 16, validation: int = 6, num_bands: int = BANDS) -> Path:
    features = Features(
        {
            "image": Array3D((num_bands, SIZE, SIZE), "uint16"),
            "mask": Array2D((SIZE, SIZE), "uint8"),
            "label": ClassLabel(names=["dark", "bright"]),
        }
    )
    (folder / "data").mkdir(parents=True)
    for seed, (split, count) in enumerate({"train": train, "validation": validation}.items()):
        table = Dataset.from_dict(rows_of_bands(count, seed, num_bands), features=features)
        table.to_parquet(folder / "data" / f"{split}-0.parquet")
    return folder


def band_config(**settings) -> ViTMAERobustConfig:
    form = {"num_channels": BANDS, "rescale_factor": 1.0, "image_mean": MEAN, "image_std": STD, "nodata": NODATA}
    return ViTMAERobustConfig(**{**TINY, **form, **settings})


def write_band_encoder(folder: Path, **settings) -> Path:
    """A tiny pre-training model of random weights, with its image processor."""
    torch.manual_seed(0)
    config = band_config(**settings)
    ViTMAERobustForPreTraining(config).save_pretrained(folder)
    band_processor(BandForm(**config.band_settings()), config.image_size, 1.0).save_pretrained(folder)
    return folder
