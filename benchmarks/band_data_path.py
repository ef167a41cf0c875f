"""How many images of bands a second come out of the data path, against bare loops over the same column?

    python benchmarks/band_data_path.py --data ../shared/data/sentinel2-landuse

Writes the patches (13 x 32 x 32 uint16) as an Array3D column, and makes normalised float32 batches of 64 of them, four
ways in turn: a bare loop over Arrow batches of the column; a loop over `dataset[i]` in the default format; this
package's evaluation path; and its training path, with random crops, which the bare loops have not. One thread, one
process. Prints the medians, and the ratios of each round's pairs.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import datasets
import numpy as np
import tifffile
import torch
from datasets import Array3D, Dataset, Features, load_dataset

from hf_mae_robust.data.loaders import sequential_loader, training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import EvaluationTransform, band_processor, training_transform
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.model.bands_vit_mae_robust import BandForm

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder of sentinel2-landuse.")
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    files = sorted(str(path) for path in args.data.glob("data/train-*.parquet"))
    rows = [row for file in files for row in Dataset.from_parquet(file)["image"]]
    arrays = [tifffile.imread(io.BytesIO(row)) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        features = Features({"image": Array3D(arrays[0].shape, "uint16")})
        Dataset.from_dict({"image": arrays}, features=features).to_parquet(Path(folder) / "train.parquet")
        report(measure(folder, np.stack(arrays), args.rounds), args.rounds)


def measure(folder: str, arrays: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Images a second of each way in each round."""
    table = load_dataset(folder, split="train")
    mean, std = (getattr(arrays, name)(axis=(0, 2, 3)).astype(np.float32) for name in ("mean", "std"))
    shift, scale = mean[:, None, None], std[:, None, None]
    source, _ = open_splits(DataLocation(folder), eval_split=None, tells=False)
    bands, size = arrays.shape[1], arrays.shape[-1]
    form = BandForm(image_mean=tuple(map(float, mean)), image_std=tuple(map(float, std)))
    source = source.read_as(form, bands)
    evaluation, training = EvaluationTransform(band_processor(form, size, 1.0)), training_transform(size, (0.5, 1.0))
    ranks = {"batch_size": BATCH, "rank": 0, "world_size": 1}

    def arrow() -> int:
        count = 0
        for batch in table.with_format("arrow").iter(BATCH):
            column = batch.column("image").combine_chunks().to_numpy(zero_copy_only=False)
            count += len(torch.from_numpy((np.stack(column).astype(np.float32) - shift) / scale))
        return count

    def default() -> int:
        chosen = range(0, len(table), 4)
        for i in chosen:
            torch.from_numpy((np.asarray(table[i]["image"], dtype=np.float32) - shift) / scale)
        return len(chosen)

    def ours() -> int:
        return sum(len(batch["row"]) for batch in sequential_loader(source, evaluation, bands, **ranks))

    def ours_with_crops() -> int:
        loader = training_loader(source, training, bands, seed=0, buffer_size=8192, **ranks)
        return sum(len(batch["row"]) for batch in loader)

    ways: dict[str, Callable[[], int]] = {
        "Arrow batches": arrow,
        "dataset[i]": default,
        "ours": ours,
        "ours, random crops": ours_with_crops,
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            count = way()
            found[name].append(count / (time.perf_counter() - start))
    return found


def report(found: dict[str, list[float]], rounds: int) -> None:
    for name, rates in found.items():
        print(f"{name:<20}{median(rates):>10,.0f} images/s")
    ratios = {
        f"ours / {other}": median(a / b for a, b in zip(found["ours"], found[other]))
        for other in ("Arrow batches", "dataset[i]")
    }
    print(json.dumps({"rounds": rounds, **{name: round(ratio, 3) for name, ratio in ratios.items()}}))


if __name__ == "__main__":
    main()
