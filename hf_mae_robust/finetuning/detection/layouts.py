"""Which files of a folder annotate which of its images: COCO's layout, and those that other programs make of it."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets

from ...data.folders import annotations_of
from ...data.tree import read_tree
from ...errors import DataError
from .coco import coco_splits, inside, load_coco

WANTED = "annotations/instances_train.json (COCO's, with boxes and masks) and the images in train/"
# Of a single JSON file for all images, which lie beside it.
SINGLE = ("_annotations.coco.json", "annotations.json", "instances.json", "coco.json", "labels.json")
_PREFIX = re.compile(r"^(instances|lvis_v[0-9.]+|lvis)_")


def object_splits(folder: Path) -> dict[str, Callable[[], datasets.Dataset]] | None:
    """As `coco_splits`; also Roboflow's export (`train/_annotations.coco.json`), CVAT's (`instances_default.json` and
    `images/`, which is "train"), LVIS, `annotations/train.json`, and a single file beside the images, which may lie in
    `images/` or, as FiftyOne has it, in `data/` ("train"). None for folders of tables, and for those that hold no image
    file.

    Raises DataError where images lie there with annotations in another layout, or without any.
    """
    if (found := coco_splits(folder)) is not None:
        return found
    found = {}
    for file in sorted(folder.glob("*/_annotations.coco.json")):
        found[file.parent.name] = partial(load_coco, file, file.parent)
    for file in sorted(
        [*inside(folder, "annotations").glob("*.json"), *folder.glob("lvis_*.json"), *folder.glob("instances_*.json")]
    ):
        name = _PREFIX.sub("", file.stem)
        split = "train" if name == "default" else name
        places = [
            inside(folder, name),
            inside(folder, "images", name),
            inside(folder, "images"),
            inside(folder, f"{name}2017"),
        ]
        images = next((place for place in places if place.is_dir()), None)
        if images is not None and split not in found:
            found[split] = partial(load_coco, file, images)
    single = next((folder / name for name in SINGLE if (folder / name).is_file()), None)
    if single is not None and not found:
        images = next((path for path in (folder / "images", folder / "data") if path.is_dir()), folder)
        found["train"] = partial(load_coco, single, images)
    if found:
        return found
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return None
    tree = read_tree(folder)
    is_of_tables = any(path.endswith((".parquet", ".arrow", "metadata.csv", "metadata.jsonl")) for path in tree.names)
    if is_of_tables or not tree.images:
        return None
    layout = annotations_of(tree)
    what = f"the annotations look like {layout}'s, which it does not read" if layout else "it found none"
    raise DataError(f"{folder}: --task detection needs annotations of objects, and {what}. It reads {WANTED}.")
