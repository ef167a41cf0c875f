"""How many 12-megapixel JPEG photos a second does one core turn into crops, and how far are those from the full size's?

    python benchmarks/large_photos.py --dataset_name path/to/imagenet-sample

Photos of 12 megapixels are made of the data set's, as JPEG of quality 92, two kinds of them:

- enlarged: each one enlarged by Pillow (bicubic); smooth at the scale of pixels, as a photo with a soft lens is.
- mosaic (half as many): 12 megapixels full of photos at their own size; as sharp at the scale of pixels as ImageNet's.

Random crops (0.2 to 1.0 of the area, 224 pixels, bicubic) and flips, one process, one thread, the same photos and, for
ours, the same draws. Every photo goes through all ways, one after the other, before the next photo. Times are those of
the process's CPU, which waiting for other processes does not count in.

- ours: `ImageDataset` as in run_pretrain.py, which decodes at 1/2, 1/4 or 1/8.
- ours, full size: with --full_size_decoding.
- PIL + torchvision: Pillow's decoding, torchvision's RandomResizedCrop and flip, `pil_to_tensor` (run_mae.py's).

1/2 and 1/4 are also measured alone, with crops of 1200 and 2400 pixels, and the data set's own photos, which are too
small for any. Then the PSNR of ours from the full size, over random crops of 0.1 to 1.0 of the area.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import datasets
import numpy as np
import torch
from paired import add_common_arguments, machine, spread
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms.functional import pil_to_tensor

from hf_mae_robust.data import decoding
from hf_mae_robust.data.dataset import ImageDataset
from hf_mae_robust.data.jpeg import START
from hf_mae_robust.data.preprocessing import RandomCrop, training_transform
from hf_mae_robust.data.shrunk_jpeg import reduction_for
from hf_mae_robust.data.source import HeldRows, ImageSource

PIXELS, QUALITY = 12_000_000, 92
SIZE = 224


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def enlarged(photo: Image.Image) -> bytes:
    factor = (PIXELS / (photo.width * photo.height)) ** 0.5
    size = round(photo.width * factor), round(photo.height * factor)
    return encode(photo.resize(size, Image.Resampling.BICUBIC))


def mosaic(photos: list[Image.Image], first: int) -> bytes:
    """4000 x 3000 pixels of photos, row by row, each row as high as its first photo."""
    picture, number, top = Image.new("RGB", (4000, 3000)), first, 0
    while top < picture.height:
        left, height = 0, photos[number % len(photos)].height
        while left < picture.width:
            photo = photos[number % len(photos)]
            picture.paste(photo.resize((photo.width, height)) if photo.height < height else photo, (left, top))
            left, number = left + photo.width, number + 1
        top += height
    return encode(picture)


class FixedPart(RandomCrop):
    """Crops of a given share of the sides, at random places."""

    def __init__(self, side: float):
        super().__init__((SIZE, SIZE), (1.0, 1.0), horizontal_flip=True)
        self.side = side

    def region(self, height: int, width: int) -> tuple[int, int, int, int]:
        rows = columns = int(self.side * min(height, width))
        top, left = torch.rand(2, dtype=torch.float64).tolist()
        return int(top * (height - rows)), int(left * (width - columns)), rows, columns


def ours(contents: list[bytes], transform: RandomCrop, full_size: bool) -> ImageDataset:
    rows = HeldRows(contents)
    source = ImageSource(rows, [len(rows)], True, "photos", "", full_size_decoding=full_size)
    return ImageDataset(source, transform, 3)


def ways(contents: list[bytes], transform: RandomCrop) -> dict[str, Callable[[int, int], object]]:
    """Name -> a function of round and photo."""
    scaled, full = ours(contents, transform, False), ours(contents, transform, True)
    peer = v1.Compose(
        [
            v1.RandomResizedCrop(SIZE, scale=(0.2, 1.0), interpolation=v1.InterpolationMode.BICUBIC),
            v1.RandomHorizontalFlip(),
            pil_to_tensor,
        ]
    )
    made: dict[str, Callable[[int, int], object]] = {
        "ours": lambda turn, i: scaled[turn, i],
        "ours, full size": lambda turn, i: full[turn, i],
    }
    if not isinstance(transform, FixedPart):
        made["PIL + torchvision"] = lambda turn, i: peer(Image.open(io.BytesIO(contents[i])).convert("RGB"))
    return made


def seconds_of(made: dict[str, Callable[[int, int], object]], count: int, repeats: int) -> dict[str, np.ndarray]:
    """Name -> seconds `(repeats, count)`, after a round to warm up."""
    seconds = {name: np.zeros((repeats, count)) for name in made}
    for turn in range(-1, repeats):
        for i in range(count):
            order = list(made.items())
            for name, work in order if (turn + i) % 2 else reversed(order):
                begun = time.process_time()
                work(turn + 1, i)
                if turn >= 0:
                    seconds[name][turn, i] = time.process_time() - begun
    return seconds


def compare(question: str, made: dict[str, Callable[[int, int], object]], count: int, repeats: int) -> dict[str, dict]:
    """Print and return milliseconds a photo, and how many times as fast as the others ours is, round by round."""
    seconds = seconds_of(made, count, repeats)
    figures: dict[str, dict] = {}
    print(f"\n| {question} | ms, median photo | ours is faster, times (smallest to largest round) |\n|---|---|---|")
    for name, values in seconds.items():
        times = spread((values.sum(1) / seconds["ours"].sum(1)).tolist())
        figures[name] = {"milliseconds": float(np.median(values) * 1e3), "times": times}
        print(
            f"| {name} | {figures[name]['milliseconds']:.1f} "
            f"| {times['median']:.2f} ({times['smallest']:.2f} to {times['largest']:.2f}) |",
            flush=True,
        )
    return figures


def distances(contents: list[bytes], count: int) -> dict[str, dict[str, float]]:
    """PSNR of crops from those of the full size, by the reduction that they were decoded with."""
    transform, found = training_transform(SIZE, (0.1, 1.0)), {}
    scaled, full = ours(contents, transform, False), ours(contents, transform, True)
    with patch.object(decoding, "reduction_for", wraps=reduction_for) as spy:
        for turn in range(count):
            key = (turn, turn % len(contents))
            picture = scaled[key]["pixel_values"].double()
            reduction = reduction_for(*spy.call_args.args)
            error = ((picture - full[key]["pixel_values"].double()) ** 2).mean().item()
            if reduction > 1:
                found.setdefault(f"1/{reduction}", []).append(10 * np.log10(255**2 / max(error, 1e-9)))
    return {name: {"crops": len(values), **spread(values)} for name, values in sorted(found.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, repeats=3)
    parser.add_argument("--dataset_name", required=True, help="Folder of Parquet files, or a Hub id.")
    parser.add_argument("--split", default="train", help="(%(default)s)")
    parser.add_argument("--image_column_name", default="image", help="(%(default)s)")
    parser.add_argument("--photos", type=int, default=40, help="Of 12 megapixels, of each kind (%(default)s).")
    parser.add_argument("--crops", type=int, default=200, help="For the PSNR, of each kind (%(default)s).")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    column = arguments.image_column_name
    table = datasets.load_dataset(arguments.dataset_name, split=arguments.split, streaming=True)
    rows = table.select_columns([column]).cast_column(column, datasets.Image(decode=False)).take(3 * arguments.photos)
    small = [row[column]["bytes"] for row in rows if row[column]["bytes"][:2] == START]
    photos = [Image.open(io.BytesIO(content)).convert("RGB") for content in small]
    kinds = {
        "enlarged": [enlarged(photo) for photo in photos[: arguments.photos]],
        "mosaic": [mosaic(photos, 7 * i) for i in range(arguments.photos // 2)],
    }
    repeats, figures = arguments.repeats, {}
    for kind, contents in kinds.items():
        size = statistics.median(map(len, contents)) / 1e6
        question = f"{len(contents)} photos of 12 MP, {kind}, {size:.1f} MB"
        figures[kind] = compare(question, ways(contents, training_transform(SIZE)), len(contents), repeats)
        for side, reduction in ((0.4, 2), (0.8, 4)):  # of 3000 pixels: 1200 and 2400
            question, few = f"{kind}, crops for 1/{reduction}", contents[::4]
            figures[f"{kind} 1/{reduction}"] = compare(question, ways(few, FixedPart(side)), len(few), repeats)
    own = compare(f"{len(small)} photos of their own size", ways(small, training_transform(SIZE)), len(small), repeats)
    figures["own size"] = own
    print("\n| dB (PSNR) from the full size | crops | smallest | median |\n|---|---|---|---|")
    for kind, contents in kinds.items():
        figures[f"PSNR {kind}"] = distances(contents, arguments.crops)
        for reduction, values in figures[f"PSNR {kind}"].items():
            print(f"| {kind}, {reduction} | {values['crops']} | {values['smallest']:.1f} | {values['median']:.1f} |")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
