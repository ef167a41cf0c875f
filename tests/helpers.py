"""Small real-file data sets and settings that several test modules use."""

from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "mid_mask_layer_idx": 1,
}
TINY_OVERRIDES = ",".join(f"{name}={value}" for name, value in TINY.items())


def photos(count: int, size: int = 16, channels: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Smooth random pictures `(size, size, channels)` uint8, so that there is something to reconstruct."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    pictures = []
    for _ in range(count):
        a, b, phase = rng.uniform(1, 6, channels), rng.uniform(1, 6, channels), rng.uniform(0, 6, channels)
        waves = np.sin(a * y[..., None] + b * x[..., None] + phase)
        pictures.append(((waves + 1) * 127.5).astype(np.uint8))
    return pictures


def image_table(count: int, size: int = 16, seed: int = 0) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict(
        {"image": photos(count, size, seed=seed), "label": [i % 2 for i in range(count)]}, features=features
    )


def write_parquet_set(folder: Path, splits: dict[str, int], files: int = 2, row_group: int = 5, size: int = 16) -> Path:
    """A folder as on the Hub: data/SPLIT-0000N-of-0000M.parquet, PNG bytes, several row groups a file."""
    (folder / "data").mkdir(parents=True)
    for number, (split, count) in enumerate(splits.items()):
        table = image_table(count, size, seed=number)
        for i in range(files):
            path = folder / "data" / f"{split}-{i:05d}-of-{files:05d}.parquet"
            table.shard(files, i, contiguous=True).to_parquet(path, batch_size=row_group)
    return folder


def as_flags(settings: dict, *more) -> list[str]:
    """Words of a command line; those of `more` win."""
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)] + list(map(str, more))


def finetuning_settings(dataset: Path, encoder: Path, output_dir: Path) -> dict:
    """Of a classification run of 2 epochs of 5 steps on `photos_dir`, without checkpoints and evaluations between."""
    return {
        "dataset_name": dataset,
        "model_name_or_path": encoder,
        "output_dir": output_dir,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "base_learning_rate": 0.05,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "report_to": "none",
        "crop_pct": 1.0,
        "save_strategy": "no",
        "eval_strategy": "no",
    }


def losses(trainer) -> list[float]:
    """Logged in training."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# What Git leaves in the place of a large file that was not fetched.
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a' * 16}\nsize 12345\n"
