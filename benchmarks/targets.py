r"""How alike are the six targets on photos, street scenes, microscopy and satellite images, and what is a constant?

What `python -m hf_mae_robust analyze targets` finds, of the first N images of each data set (folder, image size, patch
size, N) instead of N drawn at random: a Markdown table of the targets with the per-patch step, and the advice.

    OMP_NUM_THREADS=1 python benchmarks/targets.py path/to/imagenet-sample,224,16,150 path/to/cifar10,32,4,512
"""

import argparse
from pathlib import Path

from hf_mae_robust.analysis.plots import aligned
from hf_mae_robust.analysis.targets import PER_PATCH, advice
from hf_mae_robust.analysis.targets_command import add_targets_arguments, compare_on_source, find_form
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation

NONE, RGB, PATCH = PER_PATCH
COLUMNS = {
    "none / RGB: r": lambda found: f"{found.of('correlation', NONE, RGB):.3f}",
    "squared difference": lambda found: f"{found.of('squared_difference', NONE, RGB):.3f}",
    "patches with r < 0": lambda found: f"{found.of('anticorrelated', NONE, RGB):.1%}",
    "RGB / patch: r": lambda found: f"{found.of('correlation', RGB, PATCH):.3f}",
    "squared difference of these": lambda found: f"{found.of('squared_difference', RGB, PATCH):.3f}",
    "constant of none": lambda found: f"{found.of('constant', NONE):.1%}",
    "of RGB": lambda found: f"{found.of('constant', RGB):.1%}",
    "of patch": lambda found: f"{found.of('constant', PATCH):.1%}",
    "flat patches": lambda found: f"{found.of('flat', NONE):.1%}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="SET,IMAGE_SIZE,PATCH_SIZE,IMAGES")
    parser.add_argument("--own_mean", action="store_true", help="Also with the mean and deviation of the images.")
    args = parser.parse_args()
    command = argparse.ArgumentParser()
    add_targets_arguments(command)
    rows, advised = [], []
    for words in args.sets:
        folder, image_size, patch_size, images = words.rsplit(",", 3)
        flags = ["--dataset_name", folder, "--image_size", image_size, "--patch_size", patch_size]
        opened, _ = open_splits(DataLocation(dataset_name=folder), "train", eval_split=None)
        config, source = find_form(command.parse_args(flags), opened.head(int(images)))
        crop_pct = 1.0 if int(image_size) <= 64 else 0.875  # small images are stored at their size
        # Images that are not 8-bit pictures have no other mean than their own.
        for own in (True,) if config.is_band_model else (False, True)[: 1 + args.own_mean]:
            found, about = compare_on_source(source, config, uses_own_mean=own, crop_pct=crop_pct)
            name = f"{about['images']} of {Path(folder).name}, {image_size} px, patch {patch_size}"
            name += ", own mean and deviation" * own
            rows.append([name, *(of(found) for of in COLUMNS.values())])
            advised.append(f"- {name}: {' '.join(advice(found))}")
    print(aligned(["images", *COLUMNS], rows))
    print("\n".join(["", *advised]))


if __name__ == "__main__":
    main()
