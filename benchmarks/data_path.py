"""How many images a second come out of the data path, against plain `datasets`?

    python benchmarks/data_path.py --dataset_name path/to/parquet --image_size 224

Four ways from the same Parquet files to batches of uint8 crops (torchvision's v2 RandomResizedCrop and flip), with the
same number of worker processes: ours streamed and map-style (decoding errors handled, augmentation keyed by row,
exact order), `datasets` streamed with a shuffle buffer, and `datasets` map-style in a shuffling DataLoader. In turns;
the median of some repetitions, each over the same number of batches after the first one.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterable

import datasets
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor

from hf_mae_robust.data.loaders import training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import training_transform
from hf_mae_robust.data.source import DataLocation

# Otherwise each pass over a shuffled stream ends with a sleep of 5 s.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0


def ways(arguments: argparse.Namespace) -> dict[str, Callable[[int], Iterable]]:
    """Name -> epoch number -> batches."""
    transform, column = training_transform(arguments.image_size), arguments.image_column_name
    options = {"num_workers": arguments.workers}

    def ours(streaming: bool) -> Callable[[int], Iterable]:
        location = DataLocation(arguments.dataset_name, image_column_name=column, dataset_streaming=streaming)
        source, _ = open_splits(location, eval_split=None, buffer_size=arguments.buffer_size)

        def batches(epoch: int) -> Iterable:
            shape = {"batch_size": arguments.batch_size, "rank": 0, "world_size": 1, "seed": 0}
            loader = training_loader(source, transform, 3, buffer_size=arguments.buffer_size, **shape, **options)
            loader.set_epoch(epoch)
            return loader

        return batches

    def plain(row: dict) -> dict:
        return {"pixel_values": transform(pil_to_tensor(row[column].convert("RGB")))}

    def plain_batch(rows: dict) -> dict:
        return {"pixel_values": [plain({column: image})["pixel_values"] for image in rows[column]]}

    stream = datasets.load_dataset(arguments.dataset_name, split="train", streaming=True).select_columns([column])
    table = datasets.load_dataset(arguments.dataset_name, split="train").select_columns([column])

    def streamed(epoch: int) -> Iterable:
        shuffled = stream.shuffle(seed=epoch, buffer_size=min(arguments.buffer_size, 1000)).map(
            plain, remove_columns=[column]
        )
        return DataLoader(shuffled, batch_size=arguments.batch_size, **options)

    def mapped(epoch: int) -> Iterable:
        rows = table.with_transform(plain_batch)
        return DataLoader(rows, batch_size=arguments.batch_size, shuffle=True, **options)

    return {
        "ours, streamed": ours(True),
        "ours, map-style": ours(False),
        "datasets, streamed": streamed,
        "datasets, map-style": mapped,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="Folder of Parquet files, or a Hub id.")
    parser.add_argument("--image_column_name", default="image", help="(%(default)s)")
    parser.add_argument("--image_size", type=int, default=224, help="Of the crops (%(default)s).")
    parser.add_argument("--batch_size", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--batches", type=int, default=20, help="Timed in each repetition (%(default)s).")
    parser.add_argument("--workers", type=int, default=2, help="Processes that decode (%(default)s).")
    parser.add_argument("--buffer_size", type=int, default=8192, help="Shuffle buffer; at most 1000 for `datasets`.")
    parser.add_argument("--repeats", type=int, default=5, help="(%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    batches = ways(arguments)
    rates = {name: [] for name in batches}
    for repeat in range(arguments.repeats):
        for name, batches_of in batches.items():
            epochs = itertools.chain.from_iterable(batches_of(repeat * 100 + i) for i in range(100))
            next(epochs)
            begun, images = time.perf_counter(), 0
            for batch in itertools.islice(epochs, arguments.batches):
                images += len(batch["pixel_values"])
            rates[name].append(images / (time.perf_counter() - begun))
            print(f"{repeat + 1}/{arguments.repeats} {name}: {rates[name][-1]:,.0f} images/s", flush=True)
    ours = statistics.median(rates["ours, streamed"])
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"{name}: {median:,.0f} images/s ({min(values):,.0f} to {max(values):,.0f}), {median / ours:.2f} of ours")


if __name__ == "__main__":
    main()
