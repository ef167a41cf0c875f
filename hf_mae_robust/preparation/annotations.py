"""What stands beside an image, shrunk with it: classes, semantic maps, objects."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Features, Value
from faster_coco_eval.core import mask as rle
from PIL import Image

from ..data.decoding import decode_map
from ..data.labels import LabelFinder, find_labels
from ..data.opening import SplitFinder
from ..data.optional_labels import MISSING, OptionalLabels, find_labels_if_any
from ..data.tar_columns import is_of_maps
from ..errors import DataError, ImageDecodingError
from ..finetuning.detection.coco import coco_splits, inside
from ..finetuning.detection.layouts import object_splits
from ..finetuning.detection.objects import ObjectLabels, fields_of, find_objects, list_of_objects, run_lengths
from ..finetuning.segmentation.maps import NAMES_OF_COLUMNS, find_maps, may_hold_maps
from .shrinking import Shrunk

TASKS = ("auto", "pretraining", "classification", "segmentation", "detection")
# Names of categories that have none.
NUMBERS = tuple(map(str, range(2**16)))


class Annotations(Protocol):
    """A column beside the images."""

    @property
    def column(self) -> str:
        """Its name."""

    @property
    def feature(self) -> Any:
        """Its type, as `datasets` knows it."""

    def shrunk(self, value: Any, image: Shrunk, row: int) -> Any:
        """What the source's `rows.label` gives -> what the column holds. Raises ImageDecodingError where it does not
        fit its image, and DataError where it is none."""

    def describe(self) -> str:
        """For people."""


@dataclass(frozen=True)
class Classes:
    """A class for each image; MISSING where there is none."""

    column: str
    class_names: tuple[str, ...]

    @property
    def feature(self) -> Any:
        return ClassLabel(names=list(self.class_names))

    def shrunk(self, value: Any, image: Shrunk, row: int) -> int:
        return MISSING if value is None else int(value)

    def describe(self) -> str:
        return f"labels of {len(self.class_names):,} classes in column '{self.column}'"


@dataclass(frozen=True)
class MapLabels:
    """A column of semantic maps as they are, without names for their numbers; of the interface of `Labels`."""

    column: str
    description: str
    class_names: tuple[str, ...] = ()
    is_joint = True

    def check(self, values: Sequence[Any], first_row: int | None = 0) -> Sequence[Any]:
        """Raises DataError where a map is missing."""
        if any(value is None for value in values):
            missing = next(i for i, value in enumerate(values) if value is None)
            where = "an image" if first_row is None else f"row {first_row + missing:,}"
            raise DataError(
                f"{self.description}: {where} has no map in column '{self.column}'. Leave out such rows, or prepare "
                "the images alone with --task pretraining."
            )
        return values

    def of_split(self, features: Features | None, description: str) -> "MapLabels":
        if features is not None and self.column not in features:
            raise DataError(f"{description} has no column '{self.column}', the maps of {self.description}.")
        return replace(self, description=description)


@dataclass(frozen=True)
class Maps:
    """A semantic map for each image, as PNG: of a larger image the nearest neighbours."""

    column: str

    @property
    def feature(self) -> Any:
        return datasets.Image()

    def shrunk(self, value: Any, image: Shrunk, row: int) -> dict[str, Any]:
        numbers = decode_map(value, row).numpy()
        if numbers.shape != image.former:
            sizes = "{1} x {0}".format(*numbers.shape), "{1} x {0}".format(*image.former)
            detail = f"the map has {sizes[0]} pixels, the image {sizes[1]}"
            raise ImageDecodingError(f"Row {row}: {detail}.", "mismatch", detail)
        if numbers.min() < 0 or numbers.max() > 2**16 - 1:
            detail = f"the map holds numbers from {numbers.min()} to {numbers.max()}, and classes are 0 to 65,535"
            raise ImageDecodingError(f"Row {row}: {detail}.", "mismatch", detail)
        file = io.BytesIO()
        stored = nearest(numbers, image.size).astype(np.uint8 if numbers.max() < 256 else np.uint16)
        Image.fromarray(stored).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    def describe(self) -> str:
        return f"semantic maps in column '{self.column}'"


@dataclass(frozen=True)
class Boxes:
    """Objects for each image, in the columns of COCO's tables (`load_coco`)."""

    column: str
    class_names: tuple[str, ...]
    labels: ObjectLabels

    @property
    def feature(self) -> Any:
        number = Value("int64")
        category = number if self.class_names == NUMBERS else ClassLabel(names=list(self.class_names))
        return {
            "id": datasets.List(number),
            "bbox": datasets.List(datasets.List(Value("float64"))),
            "category": datasets.List(category),
            "category_id": datasets.List(number),
            "area": datasets.List(Value("float64")),
            "iscrowd": datasets.List(Value("int8")),
            "segmentation": datasets.List(datasets.List(datasets.List(Value("float64")))),
            "rle": datasets.List({"size": datasets.List(Value("int32")), "counts": datasets.List(number)}),
        }

    def shrunk(self, value: Any, image: Shrunk, row: int) -> dict[str, list[Any]]:
        # Objects are looked at as training looks at them, at the size that they were drawn for.
        self.labels.decode(value, torch.empty(0, *image.former), row)
        found = [scaled(each, image.former, image.size) for each in list_of_objects(value)]
        for each in found:
            each["category"] = self.labels.class_of_category[each["category"]]
        return {name: [each[name] for each in found] for name in self.feature}

    def describe(self) -> str:
        classes = "" if self.class_names == NUMBERS else f" of {len(self.class_names):,} classes"
        return f"objects{classes} in column '{self.column}'"


def scaled(found: dict[str, Any], former: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """An object, in pixels of an image of `former` (height, width), in those of `size`."""
    down, across = size[0] / former[0], size[1] / former[1]
    polygons, mask = found.get("segmentation"), found.get("rle")
    if isinstance(polygons, dict):  # as COCO's JSON has it for crowd regions
        polygons, mask = None, polygons
    area, x, y, width, height = found.get("area"), *(float(number) for number in found["bbox"])
    has_mask = mask is not None and len(mask.get("counts") or ()) > 0
    return {
        "id": found.get("id"),
        "bbox": [x * across, y * down, width * across, height * down],
        "category": int(found["category"]),
        "category_id": found.get("category_id"),
        "area": None if area is None else float(area) * across * down,
        "iscrowd": int(bool(found.get("iscrowd"))),
        "segmentation": [_scaled_polygon(polygon, across, down) for polygon in polygons or ()],
        "rle": _scaled_mask(mask, size) if mask is not None and has_mask else {"size": [], "counts": []},
    }


def _scaled_polygon(polygon: Iterable[float], across: float, down: float) -> list[float]:
    return [float(number) * (down if i % 2 else across) for i, number in enumerate(polygon)]


def _scaled_mask(mask: dict[str, Any], size: tuple[int, int]) -> dict[str, list[int]]:
    """Run lengths, compressed or not, of an image -> uncompressed ones of the image at `size`."""
    former, counts = [int(side) for side in mask["size"]], mask["counts"]
    if isinstance(counts, (str, bytes)):
        encoded: Any = {"size": former, "counts": counts.encode() if isinstance(counts, str) else counts}
    else:
        encoded = rle.frPyObjects({"size": former, "counts": [int(count) for count in counts]}, *former)
    pixels = nearest(rle.decode(encoded), size).astype(np.uint8)
    return {"size": list(size), "counts": run_lengths(rle.encode(np.asfortranarray(pixels))).tolist()}


def nearest(numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`(h, w)` numbers -> those of the nearest pixels at `size` (height, width)."""
    if numbers.shape == size:
        return numbers
    image = Image.fromarray(numbers.astype(np.int32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.NEAREST))


def annotations_of(labels: Any) -> Annotations | None:
    """The column that is written for the labels of a source (`ImageSource.labels`)."""
    if labels is None:
        return None
    if isinstance(labels, OptionalLabels):
        return Classes(labels.column, labels.class_names)
    if isinstance(labels, MapLabels):
        return Maps(labels.column)
    return Boxes(labels.column, labels.class_names, labels)


def finders(task: str) -> tuple[LabelFinder, SplitFinder | None]:
    """How the annotations of a task are found, and the splits of a local folder. auto: objects where a column of them
    has boxes or a file of COCO's JSON lies there, else maps where a column of images is named as maps are, else labels
    where there are any."""
    if task == "detection":
        return _find_objects, object_splits
    if task == "segmentation":
        return _find_maps, None
    if task == "classification":
        return _find_classes, None
    return _find_any, _splits_of_objects_if_any


def _splits_of_objects_if_any(folder: Path) -> dict[str, Callable[[], datasets.Dataset]] | None:
    """As `object_splits`, of folders in which a file of COCO's JSON lies; None for others. The names that other
    programs give to theirs, such as labels.json, may be those of anything."""
    files = [
        *folder.glob("*/_annotations.coco.json"),
        *inside(folder, "annotations").glob("*.json"),
        *folder.glob("*.json"),
    ]
    found = coco_splits(folder)
    if found is None and any(map(_is_coco, sorted(files))):
        with suppress(DataError):  # in a layout that is not read: what lies there beside the images is told
            found = object_splits(folder)
    return found and {split: partial(_with_way_out, load) for split, load in found.items()}


def _with_way_out(load: Callable[[], datasets.Dataset]) -> datasets.Dataset:
    try:
        return load()
    except DataError as error:  # such as boxes without masks, which nobody has asked for
        raise DataError(f"{error} --task pretraining prepares the images alone.") from error


def _is_coco(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= set(content)


def _find_objects(features: Features | None, wanted: str, description: str, _: Any) -> ObjectLabels:
    return find_objects(features, wanted, description, NUMBERS)


def _find_maps(features: Features | None, wanted: str, description: str, _: Any) -> MapLabels:
    return MapLabels(find_maps(features, wanted, description, id2label="2").column, description)


def _find_classes(features: Features | None, wanted: str, description: str, read_column: Any) -> Any:
    found = find_labels(features, wanted, description, read_column)
    return OptionalLabels(found.column, found.class_names, found.numbers, found.description)


def _find_any(
    features: Features | None,
    wanted: str,
    description: str,
    read_column: Callable[[str], Iterable[Any]] | None,
) -> Any:
    names = list(features or {}) if wanted == "auto" else [wanted]
    known = {name: feature for name, feature in (features or {}).items() if name in names}
    if any("bbox" in fields_of(feature) for feature in known.values()):
        return _find_objects(features, wanted, description, None)
    pictures = [name for name, feature in known.items() if may_hold_maps(feature)]
    # Of a WebDataset, columns are named as the files beside an image: seg.png.
    if any(name in NAMES_OF_COLUMNS or is_of_maps(name) for name in pictures):
        return _find_maps(features, wanted, description, None)
    if wanted != "auto" and pictures:
        return _find_maps(features, wanted, description, None)
    return find_labels_if_any(features, wanted, description, read_column)


def names_of_maps(name: str | None) -> Path | None:
    """The file that names the classes of the maps in a local folder; None where there is none."""
    path = Path(name or "") / "id2label.json"
    return path if name and path.is_file() else None
