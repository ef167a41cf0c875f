"""How many images a second come out of tars, against `datasets` streaming the same tars, and against Parquet?

    python benchmarks/tars.py --photos path/to/imagenet-sample --image_size 224

Writes the images of `--photos` (Parquet files with a column `image` of encoded bytes) `--copies` times into Parquet
files and, byte by byte the same, into tars. Then batches of uint8 crops (torchvision's v2 RandomResizedCrop and flip)
come from both: ours map-style and streamed, and from the tars by `datasets` with a shuffle buffer. In turns; also how
long the first look at the tars takes, and the next one.
"""

import argparse
import itertools
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path

import datasets
import torch
from paired import add_common_arguments, measure, report
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from hf_mae_robust.data.loaders import training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import training_transform
from hf_mae_robust.data.source import DataLocation

# Otherwise each pass over a shuffled stream ends with a sleep of 5 s.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
PER_FILE = 1000


def write(photos: str, copies: int, folder: Path) -> int:
    """`folder`/parquet and `folder`/tars; the number of images."""
    table = datasets.load_dataset(photos, split="train").select_columns(["image"])
    encoded = table.cast_column("image", datasets.Image(decode=False))
    images = [row["image"]["bytes"] for row in encoded] * copies
    for kind in ("parquet", "tars"):
        (folder / kind).mkdir()
    features = datasets.Features({"image": datasets.Image()})
    for number, first in enumerate(range(0, len(images), PER_FILE)):
        part = images[first : first + PER_FILE]
        rows = [{"bytes": image, "path": None} for image in part]
        shard = datasets.Dataset.from_dict({"image": rows}, features=features)
        shard.to_parquet(folder / "parquet" / f"train-{number:05d}.parquet", batch_size=100)
        with tarfile.open(folder / "tars" / f"train-{number:05d}.tar", "w") as archive:
            for i, image in enumerate(part, first):
                member = tarfile.TarInfo(f"{i:07d}.jpg")
                member.size = len(image)
                archive.addfile(member, BytesIO(image))
    return len(images)


def ways(arguments: argparse.Namespace, folder: Path) -> dict[str, Callable[[], int]]:
    """Name -> a function that makes the batches of one timing, and returns how many images they hold."""
    transform, options = training_transform(arguments.image_size), {"num_workers": arguments.workers}

    def counted(epochs: Callable[[int], Iterable]) -> Callable[[], int]:
        batches = itertools.chain.from_iterable(epochs(i) for i in itertools.count())

        def work() -> int:
            return sum(len(batch["pixel_values"]) for batch in itertools.islice(batches, arguments.batches))

        return work

    def ours(kind: str, streaming: bool) -> Callable[[], int]:
        location = DataLocation(str(folder / kind), dataset_streaming=streaming)
        source, _ = open_splits(location, eval_split=None, buffer_size=arguments.buffer_size, tells=False)

        def epochs(epoch: int) -> Iterable:
            shape = {"batch_size": arguments.batch_size, "rank": 0, "world_size": 1, "seed": 0}
            loader = training_loader(source, transform, 3, buffer_size=arguments.buffer_size, **shape, **options)
            loader.set_epoch(epoch)
            return loader

        return counted(epochs)

    def plain(row: dict) -> dict:
        return {"pixel_values": transform(pil_to_tensor(row["jpg"].convert("RGB")))}

    stream = datasets.load_dataset(str(folder / "tars"), split="train", streaming=True)

    def streamed(epoch: int) -> Iterable:
        shuffled = stream.shuffle(seed=epoch, buffer_size=min(arguments.buffer_size, 1000))
        rows = shuffled.map(plain, remove_columns=stream.column_names)
        return DataLoader(rows, batch_size=arguments.batch_size, **options)

    return {
        "tars, map-style": ours("tars", False),
        "tars, streamed": ours("tars", True),
        "Parquet, map-style": ours("parquet", False),
        "Parquet, streamed": ours("parquet", True),
        "tars, by datasets": counted(streamed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", required=True, help="Folder of Parquet files with a column image.")
    parser.add_argument("--copies", type=int, default=10, help="Of each image (%(default)s).")
    parser.add_argument("--image_size", type=int, default=224, help="Of the crops (%(default)s).")
    parser.add_argument("--batch_size", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--batches", type=int, default=15, help="In each timing (%(default)s).")
    parser.add_argument("--workers", type=int, default=1, help="Processes that decode (%(default)s).")
    parser.add_argument("--buffer_size", type=int, default=8192, help="Shuffle buffer; at most 1000 for `datasets`.")
    add_common_arguments(parser, repeats=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_images = write(arguments.photos, arguments.copies, folder)
        looks = []
        for _ in range(2):
            begun = time.perf_counter()
            open_splits(DataLocation(str(folder / "tars")), eval_split=None, tells=False)
            looks.append(time.perf_counter() - begun)
        size = sum(path.stat().st_size for path in (folder / "tars").iterdir())
        print(
            f"{num_images:,} images, {size / 1e9:.2f} GB of tars: opened in {looks[0]:.2f} s the first time, in "
            f"{looks[1]:.2f} s the next time"
        )
        rates = measure(ways(arguments, folder), arguments.repeats)
        question = f"batches of {arguments.image_size} px, {arguments.workers} worker(s)"
        more = {"num_images": num_images, "seconds_to_open": looks, "cores": os.cpu_count()}
        report(question, rates, "tars, by datasets", path=arguments.json, **more)
        report(question, rates, "Parquet, streamed")


if __name__ == "__main__":
    main()
