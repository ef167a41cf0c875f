"""COCO's JSON files beside folders of images, as tables like those of Parquet data sets with an `objects` column."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Features, Value
from faster_coco_eval import mask_api_new_cpp

from ...data.notes import note
from ...errors import DataError
from .boxes import COCO, check_annotations, check_boxes, check_sizes

PREFIX = "instances_"

# Images that become a table at a time, for memory.
CHUNK = 1024


def coco_splits(folder: Path) -> dict[str, Callable[[], datasets.Dataset]] | None:
    """Split name -> function that loads it, for a folder laid out as COCO's: `annotations/instances_SPLIT.json` and the
    images in `SPLIT/` or `images/SPLIT/`; None for other folders. The year is left out of a name where that is
    unambiguous, so that train2017 is "train" and val2017 "val"."""
    found = {}
    for file in sorted(inside(folder, "annotations").glob("*.[jJ][sS][oO][nN]")):
        if not file.name.lower().startswith(PREFIX):
            continue
        split = file.stem[len(PREFIX) :].lower()
        places = (inside(folder, split), inside(folder, "images", split))
        images = next((path for path in places if path.is_dir()), None)
        if images is not None:
            found[split] = partial(load_coco, file, images)
    short = defaultdict(list)
    for split in found:
        short[split.rstrip("0123456789") or split].append(split)
    names = {split: name for name, splits in short.items() for split in splits if len(splits) == 1}
    return {names.get(split, split): load for split, load in found.items()} or None


def inside(folder: Path, *names: str) -> Path:
    """A file or folder within others, in any case where it is not there as it is written."""
    for name in names:
        exact = folder / name
        if not exact.exists() and folder.is_dir():
            exact = next((path for path in sorted(folder.iterdir()) if path.name.lower() == name.lower()), exact)
        folder = exact
    return folder


def load_coco(annotation_file: str | Path, image_folder: str | Path) -> datasets.Dataset:
    """One row an image, in the order of the file: `image` (encoded bytes are read when they are needed), `image_id`,
    `width`, `height`, and `objects`, a struct of lists with `id`, `bbox`, `category` (ClassLabel, in the order of
    COCO's ids), `category_id` (COCO's), `area`, `iscrowd`, `segmentation` (polygons) and `rle` ({size, counts}).

    Raises DataError: a file that cannot be read or is not COCO's, no image, an image that is not in the folder,
    an object of an unknown image or category, an id or a name that comes twice, boxes that contradict masks or images.
    """
    annotation_file = Path(annotation_file)
    try:
        content = json.loads(annotation_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{annotation_file} cannot be read: {error}.") from error
    try:
        return _table(content, annotation_file, Path(image_folder))
    except DataError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # pyarrow's are ValueErrors
        raise DataError(
            f"{annotation_file} is not a COCO annotation: 'images' with 'id' and 'file_name', 'categories' with 'id' "
            f"and 'name', and 'annotations' with 'image_id', 'category_id' and 'bbox' are needed, ids being numbers "
            f"({type(error).__name__}: {error})."
        ) from error


def _table(content: dict[str, Any], annotation_file: Path, image_folder: Path) -> datasets.Dataset:
    images, annotations, categories = (content[key] for key in ("images", "annotations", "categories"))
    names = {int(category["id"]): str(category["name"]) for category in categories}
    if not images:
        raise DataError(f"{annotation_file} lists no image.")
    if len(names) < len(categories):
        raise DataError(f"{annotation_file}: two categories have the same id.")
    if len(set(names.values())) < len(names):
        raise DataError(f"{annotation_file}: two categories have the same name.")
    numbers = {category: i for i, category in enumerate(sorted(names))}
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    if len(by_image) < len(images):
        raise DataError(f"{annotation_file}: two images have the same id.")
    file_names = {image["id"]: str(image.get("file_name", image["id"])) for image in images}
    check_annotations(annotations, file_names, numbers, annotation_file)
    for annotation in annotations:
        by_image[annotation["image_id"]].append(annotation)
    check_boxes(images, annotations, annotation_file)
    for image in images:
        if "file_name" not in image and "coco_url" in image:  # LVIS
            image["file_name"] = _file_of(image["coco_url"], image_folder)
    files = [_path_of(image["file_name"], image_folder) for image in images]
    missing = [image["file_name"] for image, file in zip(images, files) if not file.is_file()]
    if missing:
        raise DataError(
            f"{annotation_file} lists {len(missing):,} images that are not in {image_folder}, first {missing[0]}."
        )
    if not annotations:
        note(f"Warning: {annotation_file} lists no object, so that there is nothing to learn or to find")
    check_sizes(images, files, annotation_file)
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
        for image, file in zip(images, files):
            yield {
                "image": str(file),
                "image_id": image["id"],
                "width": image.get("width"),
                "height": image.get("height"),
                "objects": _columns(by_image[image["id"]], numbers),
            }

    chunks, left = [], rows()
    while chunk := list(islice(left, CHUNK)):
        chunks.append(datasets.Dataset.from_list(chunk, features=features))
    table = datasets.concatenate_datasets(chunks)
    table.info.builder_name = COCO
    return table


def _path_of(name: str, folder: Path) -> Path:
    """Some write paths from the data set's folder, `train/0.jpg`, or as Windows does."""
    plain = name.replace("\\", "/")
    places = (folder / name, folder.parent / plain, folder.parent.parent / plain, folder / plain)
    return next((place for place in places if place.is_file()), folder / name)


def _file_of(url: str, folder: Path) -> str:
    """Images of LVIS lie in COCO's folders, whose names end the URL: `.../train2017/000000000009.jpg`."""
    *_, year, name = url.split("/")
    inner = Path(year) / name
    places = (inner, Path("..") / inner, Path(name))
    return str(next((place for place in places if (folder / place).is_file()), Path(name)))


def _columns(annotations: list[dict[str, Any]], numbers: dict[int, int]) -> dict[str, list[Any]]:
    masks = [annotation.get("segmentation") for annotation in annotations]
    encoded: list[dict[str, list[int]]] = [
        _uncompressed(mask) if isinstance(mask, dict) else {"size": [], "counts": []} for mask in masks
    ]
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


def _uncompressed(mask: dict[str, Any]) -> dict[str, list[int]]:
    size, counts = mask["size"], mask["counts"]
    if isinstance(counts, str):
        counts = mask_api_new_cpp.toUncompressedRLE([{"size": size, "counts": counts.encode()}])[0]["counts"]
    return {"size": size, "counts": counts}
