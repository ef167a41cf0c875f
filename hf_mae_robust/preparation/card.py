"""The card (`README.md`) of a prepared data set: what was done to the images, and how to train on them."""

import yaml

from ..data.bad_images import FILE_NAME
from ..statistics.stored import FOLDER, Form
from ..version import __version__
from .shards import ShardPlan
from .shrinking import Shrinking


def card_of(
    name: str,
    revision: str | None,
    shrinking: Shrinking,
    annotations: str,
    form: Form,
    plan: ShardPlan,
) -> str:
    """name: of the original, without folders of this machine. annotations: what stands beside the images, in words."""
    # Without `configs`: the names of the files tell the splits, and of a folder whose card lists them `datasets` takes
    # what it has in its cache of another folder of the same name.
    header = yaml.safe_dump({"pretty_name": f"{name}, prepared for training"})
    rows = "".join(
        f"| {split} | {of_split.num_images:,} | {len(of_split.skipped):,} | {len(of_split.shards):,} |\n"
        for split, of_split in plan.splits.items()
    )
    encoded = "PNG, without loss" if shrinking.lossless else f"JPEG of quality {shrinking.quality}"
    listed = f" `{FILE_NAME}` lists them." if any(of_split.skipped for of_split in plan.splits.values()) else ""
    image, patch = ("x".join(map(str, size)) for size in (form.image_size, form.patch_size))
    return f"""---
{header}---

# {name}, prepared for training

The images of {name}{f" at {revision}" if revision else ""}, shrunk once by `python -m hf_mae_robust prepare`
(hf_mae_robust {__version__}). The terms of the original data set hold for this one.

- Images whose short side is longer than {shrinking.short_side} pixels were resized to it (bicubic, antialiased) and
  stored as {encoded}. None was enlarged. JPEG and PNG files that were no larger stand here unchanged;
  others became PNG.
- Images are upright: the orientation that EXIF names is applied.
- Beside them: {annotations}.
- Images that cannot be decoded were left out.{listed}

| split | images | left out | files |
|---|---|---|---|
{rows}
`{FOLDER}/` holds mean and deviation of the channels, and the population statistics of patches of {patch} pixels
(images of {image} pixels, crop_pct {form.crop_pct:g}). They name the files that they were computed over, and training
does not use them once one of these changed.

```bash
python run_pretrain.py --dataset_name path/to/this/folder
```
"""
