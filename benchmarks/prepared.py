"""How many more images a second does training read once a data set is prepared, and is the model the same?

    OMP_NUM_THREADS=1 python benchmarks/prepared.py --dataset_name path/to/imagenet-sample --parts large small loss

- large: photos of 12 megapixels, made by enlarging photos of the data set (Pillow, Lanczos, JPEG of quality 92), in a
  folder; prepared with --short_side 320. Three ways to uint8 crops of 224 pixels, in turns, each in one process:
  Pillow and torchvision (v2 RandomResizedCrop and flip) on the originals, our data path on the originals, and our data
  path on what `python -m hf_mae_robust prepare` wrote of them.
- small: the photos as they are, prepared with --short_side 256.
- loss: short pre-trainings (recipe small_64px, --steps) on the photos as they are and on what was prepared of them with
  --short_side 256, the same seeds: held-out loss of each, their difference, and how far apart the seeds are.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from paired import add_common_arguments, measure, report
from PIL import Image
from torchvision.transforms import v2

from hf_mae_robust.__main__ import main as command
from hf_mae_robust.data.dataset import ImageDataset
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import training_transform
from hf_mae_robust.data.source import DataLocation

SIZE, MEGAPIXELS = 224, 12e6
OURS, PREPARED, OTHERS = "ours, originals", "ours, prepared", "Pillow + torchvision, originals"


def enlarged_photos(dataset_name: str, number: int, folder: Path) -> Path:
    """A folder of JPEG files of 12 megapixels."""
    rows = load_dataset(dataset_name, split="train")
    (folder / "train").mkdir(parents=True)
    for i in range(number):
        image = rows[i]["image"].convert("RGB")
        factor = (MEGAPIXELS / (image.width * image.height)) ** 0.5
        size = round(image.width * factor), round(image.height * factor)
        image.resize(size, Image.Resampling.LANCZOS).save(folder / "train" / f"{i:03d}.jpg", quality=92)
    return folder


def prepared(source: str | Path, folder: Path, short_side: int, *more: str) -> Path:
    words = ["prepare", str(source), "--output_dir", str(folder), "--short_side", str(short_side)]
    command([*words, "--num_workers", "0", *more])
    return folder


def rates_of(args: argparse.Namespace, original: str | Path, folder: Path, question: str) -> None:
    """Measure and report the three ways."""
    rng, draws = np.random.default_rng(0), {}

    def ours(name: str | Path, key: str) -> int:
        if key not in draws:
            source, _ = open_splits(DataLocation(str(name)), eval_split=None, tells=False)
            draws[key] = ImageDataset(source, training_transform(SIZE), 3)
        images = draws[key]
        rows = rng.permutation(len(images))[: args.images]
        for row in rows:  # as a worker does: a batch holds images in the order of their rows
            images.__getitems__([(0, int(row))])
        return len(rows)

    table = load_dataset(str(original), split="train")
    augment = v2.Compose(
        [v2.RandomResizedCrop(SIZE, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC), v2.RandomHorizontalFlip()]
    )
    encoded = table.cast_column("image", type(table.features["image"])(decode=False))

    def others() -> int:
        rows = rng.permutation(len(encoded))[: args.images]
        for row in rows:
            value = encoded[int(row)]["image"]
            content = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
            v2.functional.pil_to_tensor(augment(Image.open(io.BytesIO(content)).convert("RGB")))
        return len(rows)

    ways = {OURS: lambda: ours(original, OURS), PREPARED: lambda: ours(folder, PREPARED), OTHERS: others}
    rates = measure(ways, args.repeats)
    path = args.json and args.json.with_name(f"{args.json.stem}-{question.split()[0]}{args.json.suffix}")
    report(question, rates, OURS, path=path)
    against = [a / b for a, b in zip(rates[PREPARED], rates[OTHERS])]
    print(f"prepared against Pillow + torchvision on the originals: {statistics.median(against):.1f}")


def held_out_losses(args: argparse.Namespace, original: str, folder: Path, runs: Path) -> None:
    """Short pre-trainings on both, with the same seeds."""
    found: dict[str, list[float]] = {"originals": [], "prepared": []}
    for seed in range(args.seeds):
        for name, data in (("originals", original), ("prepared", folder)):
            output = runs / f"{name}-{seed}"
            words = ["--config", "small_64px", "--dataset_name", str(data), "--output_dir", str(output)]
            words += ["--max_steps", str(args.steps), "--per_device_train_batch_size", "32", "--seed", str(seed)]
            words += ["--warmup_steps", "5", "--save_strategy", "no", "--eval_strategy", "no", "--report_to", "none"]
            words += ["--dataloader_num_workers", "0"]
            script = Path(__file__).parents[1] / "run_pretrain.py"
            subprocess.run([sys.executable, str(script), *words], check=True, stdout=subprocess.DEVNULL)
            results = json.loads((output / "all_results.json").read_text())
            found[name].append(results["eval_loss"])
            print(f"seed {seed}, {name}: held-out loss {found[name][-1]:.5f}", flush=True)
    differences = [a - b for a, b in zip(found["prepared"], found["originals"])]
    print(
        f"prepared - originals: {statistics.mean(differences):+.5f} on average ({min(differences):+.5f} to "
        f"{max(differences):+.5f}); standard deviation over seeds, originals: "
        f"{statistics.stdev(found['originals']):.5f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, repeats=5)
    parser.add_argument("--dataset_name", required=True, help="Photos: a folder of Parquet files, or a Hub id.")
    parser.add_argument("--parts", nargs="+", choices=["large", "small", "loss"], default=["large", "small"])
    parser.add_argument("--photos", type=int, default=40, help="Of 12 megapixels (%(default)s).")
    parser.add_argument("--images", type=int, default=20, help="In each round (%(default)s).")
    parser.add_argument("--steps", type=int, default=60, help="Of each pre-training (%(default)s).")
    parser.add_argument("--seeds", type=int, default=3, help="(%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "large" in args.parts:
            photos = enlarged_photos(args.dataset_name, args.photos, folder / "photos")
            rates_of(args, photos, prepared(photos, folder / "large", 320), f"large photos ({args.photos} of 12 MP)")
        if {"small", "loss"} & set(args.parts):
            form = ["--image_size", "64", "--patch_size", "8", "--crop_pct", "1"]  # of small_64px
            small = prepared(args.dataset_name, folder / "small", 256, *form)
        if "small" in args.parts:
            rates_of(args, args.dataset_name, small, "small photos (as they are)")
        if "loss" in args.parts:
            held_out_losses(args, args.dataset_name, small, folder / "runs")


if __name__ == "__main__":
    main()
