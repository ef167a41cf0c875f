"""How many images a second does the pass for the population statistics take, against a plain loop?

    python benchmarks/statistics_pass.py --dataset_name path/to/imagenet-sample

The same photos, resized to 256 and cropped to 224 as in evaluation, without worker processes, one thread.

- ours: `statistics_of_source`, what `python -m hf_mae_robust statistics` and `--target_statistics auto` run.
- plain loop: PIL and torchvision's Resize, CenterCrop, ToTensor image by image, sums of the patches in float64.

Both must agree: mean and deviation to a thousandth of the range of pixels (the two resize with other rounding).
"""

import argparse
import io

import torch
from paired import add_common_arguments, measure, report
from PIL import Image
from torchvision import transforms

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.statistics.statistics_pass import statistics_of_source

TOLERANCE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--dataset_name", required=True, help="Folder of Parquet files, or a Hub id.")
    parser.add_argument("--split", default="train", help="(%(default)s)")
    parser.add_argument("--images", type=int, default=192, help="(%(default)s)")
    parser.add_argument("--image_size", type=int, default=224, help="(%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = arguments.image_size
    config = ViTMAERobustConfig(image_size=size)
    source = open_splits(DataLocation(arguments.dataset_name), arguments.split, eval_split=None)[0]
    source, patch, results = source.head(arguments.images), config.patch_size, {}
    prepare = transforms.Compose(
        [
            transforms.Resize(int(size / 0.875), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
        ]
    )

    def ours() -> int:
        statistics = statistics_of_source(source, config, crop_pct=0.875)
        results["ours"] = statistics.mean, statistics.std
        return len(source)

    def plain() -> int:
        sums, squares, count = torch.zeros(patch**2 * 3).double(), torch.zeros(patch**2 * 3).double(), 0
        for row in range(len(source)):
            value = source.rows[row]
            content = value["bytes"] if isinstance(value, dict) else value
            image = prepare(Image.open(io.BytesIO(content)).convert("RGB")).double()
            side = size // patch
            patches = image.reshape(3, side, patch, side, patch).permute(1, 3, 2, 4, 0).flatten(0, 1).flatten(1)
            sums, squares, count = sums + patches.sum(0), squares + (patches**2).sum(0), count + len(patches)
        mean = sums / count
        results["plain loop"] = mean, (squares / count - mean**2).sqrt()
        return len(source)

    rates = measure({"plain loop": plain, "ours": ours}, arguments.repeats)
    differences = [(a.double() - b).abs().max().item() for a, b in zip(results["ours"], results["plain loop"])]
    if max(differences) > TOLERANCE:
        raise SystemExit(f"The statistics differ: mean by {differences[0]:.2g}, deviation by {differences[1]:.2g}.")
    report(
        f"{len(source)} photos",
        rates,
        "plain loop",
        path=arguments.json,
        largest_difference_of_mean_and_std=differences,
    )
    print(f"largest difference: mean {differences[0]:.2g}, deviation {differences[1]:.2g}")


if __name__ == "__main__":
    main()
