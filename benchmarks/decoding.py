"""How many images a second does one core turn from the bytes of Parquet into a batch?

    python benchmarks/decoding.py --dataset_name path/to/imagenet-sample

Random crops (scale 0.2 to 1.0 of the area, 224 pixels, bicubic) and flips, one process, one thread, the same photos,
held in memory as encoded bytes. Batches of uint8 are what the workers hand over; normalised ones what the model gets.

- ours: `ImageDataset`, `collate` and, for "normalised", `Normalization`, as in run_pretrain.py.
- ours, 4 views of each: with --repeated_augmentation 4, a view for an image.
- official code: PIL, torchvision's RandomResizedCrop, flip, ToTensor, Normalize (main_pretrain.py of
  facebookresearch/mae, and run_mae.py of transformers), stacked: normalised batches.
- simplejpeg + v2: the whole image decoded by libjpeg-turbo, torchvision's v2 transforms on uint8.
- bare decode: the whole image decoded by libjpeg-turbo and nothing else: the limit of all that decode whole images.
"""

import argparse
import io
from collections.abc import Callable

import datasets
import simplejpeg
import torch
from paired import add_common_arguments, measure, report
from PIL import Image
from torch.utils.data import default_collate
from torchvision import transforms as v1
from torchvision.transforms import v2

from hf_mae_robust.data.dataset import ImageDataset, collate
from hf_mae_robust.data.preprocessing import Normalization, evaluation_processor, training_transform
from hf_mae_robust.data.source import ImageSource


def ways(
    contents: list[bytes], size: int, scale: tuple[float, float], batch_size: int, num_views: int
) -> dict[str, Callable]:
    places = range(0, len(contents) - batch_size + 1, batch_size)
    processor = evaluation_processor(size)
    normalize = Normalization(processor, torch.device("cpu"))
    source = ImageSource(contents, [len(contents)], True, "photos", "")
    transform, noise_length = training_transform(size, scale), (size // 16) ** 2
    dataset = ImageDataset(source, transform, 3, noise_length=noise_length)
    repeated = ImageDataset(source, transform, 3, noise_length=noise_length, num_views=num_views)
    official = v1.Compose(
        [
            v1.RandomResizedCrop(size, scale=scale, interpolation=v1.InterpolationMode.BICUBIC),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize(processor.image_mean, processor.image_std),
        ]
    )
    peer = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )

    def batches(item: Callable, stack: Callable) -> Callable[[], int]:
        def work() -> int:
            for start in places:
                stack([item(i) for i in range(start, start + batch_size)])
            return len(places) * batch_size

        return work

    def views() -> int:
        for start in range(0, len(contents), batch_size // num_views):
            keys = [(0, i) for i in range(start, min(start + batch_size // num_views, len(contents)))]
            collate(repeated.__getitems__(keys))
        return len(contents) * num_views

    def decode(i: int) -> torch.Tensor:
        return torch.from_numpy(simplejpeg.decode_jpeg(contents[i], strict=False)).permute(2, 0, 1)

    return {
        "official code, normalised": batches(
            lambda i: official(Image.open(io.BytesIO(contents[i])).convert("RGB")), default_collate
        ),
        "ours, uint8": batches(lambda i: dataset[0, i], collate),
        f"ours, uint8, {num_views} views of each": views,
        "ours, normalised": batches(lambda i: dataset[0, i], lambda items: normalize(collate(items)["pixel_values"])),
        "simplejpeg + v2, uint8": batches(lambda i: peer(decode(i)), default_collate),
        "bare decode": batches(decode, lambda items: None),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--dataset_name", required=True, help="Folder of Parquet files, or a Hub id.")
    parser.add_argument("--split", default="train", help="(%(default)s)")
    parser.add_argument("--image_column_name", default="image", help="(%(default)s)")
    parser.add_argument("--images", type=int, default=192, help="(%(default)s)")
    parser.add_argument("--image_size", type=int, default=224, help="Of the crops (%(default)s).")
    parser.add_argument("--crop_scale", type=float, nargs=2, default=(0.2, 1.0), help="(0.2 1.0)")
    parser.add_argument("--batch_size", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--repeated_augmentation", type=int, default=4, help="(%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    column = arguments.image_column_name
    table = datasets.load_dataset(arguments.dataset_name, split=arguments.split, streaming=True).select_columns(
        [column]
    )
    rows = table.cast_column(column, datasets.Image(decode=False)).take(arguments.images)
    # The limit and one peer know JPEG only.
    contents = [row[column]["bytes"] for row in rows if row[column]["bytes"][:2] == b"\xff\xd8"]
    if len(contents) < arguments.batch_size:
        parser.error(f"{len(contents)} JPEG files in the split, fewer than --batch_size {arguments.batch_size}.")
    scale, views = tuple(arguments.crop_scale), arguments.repeated_augmentation
    made = ways(contents, arguments.image_size, scale, arguments.batch_size, views)
    rates = measure(made, arguments.repeats)
    report(f"{len(contents)} photos", rates, "official code, normalised", path=arguments.json)
    limit = [a / b for a, b in zip(rates["ours, uint8"], rates["bare decode"])]
    print(f"ours, uint8: {sorted(limit)[len(limit) // 2]:.2f} of the bare decode")


if __name__ == "__main__":
    main()
