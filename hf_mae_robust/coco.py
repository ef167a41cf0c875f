"""COCO's JSON files beside folders of images, as tables like those of Parquet data sets with an `objects` column."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Features, Value

from .remote import DataError

PREFIX = "instances_"


def coco_splits(folder: Path) -> dict[str, Callable[[], datasets.Dataset]] | None:
    """Split name -> function that loads it, for a folder laid out as COCO's: `annotations/instances_SPLIT.json` and the
    images in `SPLIT/` or `images/SPLIT/`; None for other folders. The year is left out of a name where that is
    unambiguous, so that train2017 is "train" and val2017 "val"."""
    found = {}
    for file in sorted((folder / "annotations").glob(f"{PREFIX}*.json")):
        split = file.stem.removeprefix(PREFIX)
        images = next((path for path in (folder / split, folder / "images" / split) if path.is_dir()), None)
        if images is not None:
            found[split] = partial(load_coco, file, images)
    short = defaultdict(list)
    for split in found:
        short[split.rstrip("0123456789") or split].append(split)
    names = {split: name for name, splits in short.items() for split in splits if len(splits) == 1}
    return {names.get(split, split): load for split, load in found.items()} or None


def load_coco(annotation_file: str | Path, image_folder: str | Path) -> datasets.Dataset:
    """One row an image, in the order of the file: `image` (encoded bytes are read when they are needed), `image_id`,
    `width`, `height`, and `objects`, a struct of lists with `id`, `bbox`, `category` (ClassLabel, in the order of
    COCO's ids), `category_id` (COCO's), `area`, `iscrowd`, `segmentation` (polygons) and `rle` ({size, counts}).

    Raises DataError: a file that cannot be read or is no COCO annotation, an image that is not in the folder, an
    object of an unknown image or category, an id that comes twice.
    """
    annotation_file, image_folder = Path(annotation_file), Path(image_folder)
    try:
        content = json.loads(annotation_file.read_text(encoding="utf-8"))
        images, annotations, categories = (content[key] for key in ("images", "annotations", "categories"))
        names = {int(category["id"]): str(category["name"]) for category in categories}
    except (OSError, ValueError) as error:
        raise DataError(f"{annotation_file} cannot be read: {error}.") from error
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{annotation_file} is no COCO annotation: 'images', 'annotations' and 'categories' with 'id' and 'name' "
            f"are needed ({type(error).__name__}: {error})."
        ) from error
    if len(names) < len(categories):
        raise DataError(f"{annotation_file}: two categories have the same id.")
    numbers = {category: i for i, category in enumerate(sorted(names))}
    by_image: dict[int, list[dict]] = {image["id"]: [] for image in images}
    if len(by_image) < len(images):
        raise DataError(f"{annotation_file}: two images have the same id.")
    for annotation in annotations:
        for key, known in (("image_id", by_image), ("category_id", numbers)):
            if annotation.get(key) not in known:
                raise DataError(
                    f"{annotation_file}: the annotation {annotation.get('id')} has the {key} {annotation.get(key)!r}, "
                    "which the file does not list."
                )
        by_image[annotation["image_id"]].append(annotation)
    missing = [image["file_name"] for image in images if not (image_folder / image["file_name"]).is_file()]
    if missing:
        raise DataError(
            f"{annotation_file} lists {len(missing):,} images that are not in {image_folder}, first {missing[0]}."
        )
    features = Features(
        {
            "image": datasets.Image(),
            "image_id": Value("int64"),
            "width": Value("int32"),
            "height": Value("int32"),
            "objects": {
                "id": datasets.List(Value("int64")),
                "bbox": datasets.List(datasets.List(Value("float64"))),
                "category": datasets.List(ClassLabel(names=[names[category] for category in sorted(names)])),
                "category_id": datasets.List(Value("int32")),
                "area": datasets.List(Value("float64")),
                "iscrowd": datasets.List(Value("int8")),
                "segmentation": datasets.List(datasets.List(datasets.List(Value("float64")))),
                "rle": datasets.List({"size": datasets.List(Value("int32")), "counts": datasets.List(Value("int64"))}),
            },
        }
    )

    def rows() -> Iterator[dict[str, Any]]:
        for image in images:
            yield {
                "image": str(image_folder / image["file_name"]),
                "image_id": image["id"],
                "width": image["width"],
                "height": image["height"],
                "objects": _columns(by_image[image["id"]], numbers),
            }

    table = datasets.Dataset.from_list(list(rows()), features=features)
    return table


def _columns(annotations: list[dict[str, Any]], numbers: dict[int, int]) -> dict[str, list]:
    masks = [annotation.get("segmentation") for annotation in annotations]
    encoded = [mask if isinstance(mask, dict) else {"size": [], "counts": []} for mask in masks]
    for mask in encoded:
        if isinstance(mask["counts"], str):
            raise DataError("COCO's compressed RLE strings are not read; store uncompressed counts or polygons.")
    return {
        "id": [annotation.get("id") for annotation in annotations],
        "bbox": [annotation["bbox"] for annotation in annotations],
        "category": [numbers[annotation["category_id"]] for annotation in annotations],
        "category_id": [annotation["category_id"] for annotation in annotations],
        "area": [annotation.get("area") for annotation in annotations],
        "iscrowd": [annotation.get("iscrowd", 0) for annotation in annotations],
        "segmentation": [mask if isinstance(mask, list) else [] for mask in masks],
        "rle": encoded,
    }
