"""Objects of a data set, as COCO describes them: boxes, classes, masks, crowd regions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Features
from faster_coco_eval import mask_api_new_cpp
from faster_coco_eval.core import mask as rle

from ...data.source import ImageSource
from ...errors import DataError, ImageDecodingError
from .boxes import COCO, MAX_OUTSIDE, RULES, check_rows


def run_lengths(mask: dict[str, Any]) -> np.ndarray:
    """Lengths `(n,)` int64 of the runs of 0s and of 1s, in turn, down the columns of a compressed RLE, which are the
    counts of the uncompressed one. Raises ValueError where these are of another number of pixels."""
    # Not in the library's `core.mask`, whose `decode` takes 15 times as long as this and `np.repeat`.
    runs = np.array(mask_api_new_cpp.toUncompressedRLE([mask])[0]["counts"], dtype=np.int64)
    if runs.sum() != np.prod(mask["size"]):
        raise ValueError(f"counts of {runs.sum():,} pixels, and a size of {np.prod(mask['size']):,}")
    return runs


@dataclass(frozen=True)
class Objects:
    """The n objects of an image of `size` (height, width).

    boxes `(n, 4)` float64, (x0, y0, x1, y1) in pixels, within the image; classes `(n,)` int64; crowds `(n,)` bool;
    areas `(n,)` float64, in pixels; masks: n compressed RLEs of the image's size, None for a crowd region without one.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    classes: np.ndarray
    crowds: np.ndarray
    areas: np.ndarray
    masks: tuple[dict[str, Any] | None, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    def choose(self, index: np.ndarray) -> "Objects":
        """Those at `(m,)` bool or numbers."""
        index = np.arange(len(self))[index]
        boxes, classes, crowds, areas = (part[index] for part in (self.boxes, self.classes, self.crowds, self.areas))
        return Objects(self.size, boxes, classes, crowds, areas, tuple(self.masks[i] for i in index))

    @classmethod
    def none(cls, size: tuple[int, int]) -> "Objects":
        empty = np.zeros(0)
        return cls(size, np.zeros((0, 4)), empty.astype(np.int64), empty.astype(bool), empty, ())


@dataclass(frozen=True)
class ObjectLabels:
    """A column of objects of the interface of `Labels`, joint with the image.

    Attributes:
        column: its name. class_names: of the classes 0, 1, ... description: of the data set, for errors.
        classes: of the categories 0, 1, ... in the column; None: the categories are the classes.
    """

    column: str
    class_names: tuple[str, ...]
    description: str
    classes: tuple[int, ...] | None = None
    is_joint = True

    @property
    def class_of_category(self) -> Sequence[int]:
        return range(len(self.class_names)) if self.classes is None else self.classes

    def check(self, values: Sequence[Any], first_row: int | None = 0) -> Sequence[Any]:
        """Raises DataError, naming the first row, where the column holds nothing; no object is an empty list."""
        if None in values:
            where = "an image" if first_row is None else f"row {first_row + list(values).index(None):,}"
            raise DataError(
                f"{self.description}: {where} has null in column '{self.column}'. Images without objects have empty "
                "lists."
            )
        return values

    def of_split(self, features: Features | None, description: str) -> "ObjectLabels":
        """The same classes for another split. Categories that it names are those of the same name: exports of COCO's
        JSON often list only what a file holds. Raises DataError where that one has no such column, or a name that is
        not that of one class."""
        if features is not None and self.column not in features:
            raise DataError(f"{description} has no column '{self.column}', the objects of {self.description}.")
        names = _category_names(fields_of(features[self.column]).get("category")) if features is not None else None
        if names in (None, self.class_names):
            return replace(self, description=description, classes=None)
        for name in names:
            if (count := self.class_names.count(name)) != 1:
                difference = f"has {count} classes of the name '{name}'" if count else f"lacks '{name}'"
                raise DataError(
                    f"{self.description} and {description} name different classes: the former {difference}. Give "
                    "both the same categories, by ClassLabel or COCO's 'categories'."
                )
        return replace(self, description=description, classes=tuple(map(self.class_names.index, names)))

    def examined(self, source: ImageSource) -> "ObjectLabels":
        """Itself. Raises DataError where boxes contradict masks or images; those of COCO's JSON were looked at when it
        was read."""
        table = getattr(source.rows, "annotations", None)
        if table is None or table.info.builder_name != COCO:
            check_rows(source, list_of_objects)
        return self

    def filler(self) -> Objects:
        return Objects.none((16, 16))

    def decode(self, value: Any, image: torch.Tensor, row: int) -> Objects:
        """The objects of an image `(C, h, w)`. Boxes are cut to the image; objects whose box has no area within it are
        left out.

        Raises:
            ImageDecodingError: masks of another size than the image's, or boxes or polygons that lie far outside of it.
            DataError: a class that is none, an object without mask, or something that is not a box or mask.
        """
        size = (image.shape[1], image.shape[2])
        try:
            found = list_of_objects(value)
        except ValueError as error:
            raise DataError(f"{self.description}: row {row:,}, column '{self.column}': {error}.") from error
        objects = [_checked(of_object, size, row, i, self) for i, of_object in enumerate(found)]
        objects = [parts for parts in objects if parts is not None]
        if not objects:
            return Objects.none(size)
        boxes, classes, crowds, areas, masks = zip(*objects)
        return Objects(
            size, np.array(boxes), np.array(classes, dtype=np.int64), np.array(crowds), np.array(areas), tuple(masks)
        )


def list_of_objects(value: Any) -> list[dict[str, Any]]:
    """A struct of lists, as `datasets` and Parquet may give it, or a list of structs. Raises ValueError where the lists
    differ in length."""
    if isinstance(value, dict):
        lists = {
            key: list_of_objects(column) if isinstance(column, dict) else column
            for key, column in value.items()
            if column is not None
        }
        if len({len(column) for column in lists.values()}) > 1:
            lengths = ", ".join(f"{key} {len(column)}" for key, column in lists.items())
            raise ValueError(f"the lists of its objects differ in length ({lengths})")
        return [dict(zip(lists, row)) for row in zip(*lists.values())]
    return list(value)


def _checked(found: dict[str, Any], size: tuple[int, int], row: int, number: int, labels: ObjectLabels) -> Any:
    """(box, class, is crowd, area, mask); None where the box has no area in the image."""
    known = f" (id {found['id']})" if found.get("id") is not None else ""
    where = f"{labels.description}: object {number} of row {row:,}{known}"
    category: Any = found.get("category")
    box: Any = found.get("bbox")
    classes = labels.class_of_category
    if not isinstance(category, Integral) or not 0 <= int(category) < len(classes):
        raise DataError(f"{where} has the category {category!r}; there are the categories 0 to {len(classes) - 1}.")
    try:
        x, y, width, height = (float(number) for number in box)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where} has the box {box!r}; a box is [x, y, width, height] in pixels.") from error
    if not np.isfinite([x, y, width, height]).all():
        raise DataError(f"{where} has the box {box!r}, which is not finite.")
    if width < 0 or height < 0:
        raise DataError(f"{where} has the box {box!r}, of a negative size. {RULES}.")
    for low, high, limit in ((x, x + width, size[1]), (y, y + height, size[0])):
        margin = 2 + MAX_OUTSIDE * limit
        if width > 0 and height > 0 and (low < -margin or high > limit + margin):
            detail = f"object {number} has the box {box}, and the image {size[1]} x {size[0]} pixels"
            raise ImageDecodingError(f"Row {row}: {detail}.", "mismatch", detail)
    box = [max(x, 0.0), max(y, 0.0), min(x + width, float(size[1])), min(y + height, float(size[0]))]
    if box[2] <= box[0] or box[3] <= box[1]:
        return None
    is_crowd = bool(found.get("iscrowd"))
    try:
        mask = _mask(found, size, row, number)
    except ImageDecodingError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:  # of faster_coco_eval any of these
        raise DataError(
            f"{where} has a mask that is neither polygons, [[x0, y0, x1, y1, ...], ...] in pixels, nor RLE, "
            f"{{size, counts}} ({type(error).__name__}: {error})."
        ) from error
    if mask is None and not is_crowd:
        raise DataError(f"{where} has no mask (neither polygons nor RLE), and Mask R-CNN learns from masks.")
    area = found.get("area")
    if area is None or not 0 <= area < np.inf:
        area = float(rle.area(mask)) if mask is not None else (box[2] - box[0]) * (box[3] - box[1])
    return box, classes[int(category)], is_crowd, float(area), mask


def _mask(found: dict[str, Any], size: tuple[int, int], row: int, number: int) -> dict[str, Any] | None:
    """Polygons or RLE -> compressed RLE; None where there is neither.

    What is neither raises ImageDecodingError where it is of another image, and any of KeyError, RuntimeError, TypeError
    and ValueError where it is of none.
    """
    polygons, encoded = found.get("segmentation"), found.get("rle")
    if isinstance(polygons, dict):  # as COCO's JSON has it for crowd regions
        polygons, encoded = None, polygons
    if encoded and len(encoded.get("counts") or ()):
        if tuple(encoded["size"]) != size:
            detail = f"object {number} has a mask of {encoded['size'][1]} x {encoded['size'][0]} pixels, and the image "
            detail += f"{size[1]} x {size[0]}"
            raise ImageDecodingError(f"Row {row}: {detail}.", "mismatch", detail)
        counts = encoded["counts"]
        if isinstance(counts, (str, bytes)):
            mask = {"size": list(size), "counts": counts.encode() if isinstance(counts, str) else counts}
        else:
            mask = rle.frPyObjects({"size": list(size), "counts": [int(count) for count in counts]}, *size)
        run_lengths(mask)  # wrong ones are found here, where the row is known
        return mask
    polygons = [np.array(polygon, dtype=np.float64) for polygon in polygons or () if len(polygon) >= 6]
    for polygon in polygons:
        # Drawing NaN, or lines that leave the image by far, would take all the memory there is.
        if len(polygon) % 2 or not np.isfinite(polygon).all():
            raise ValueError(f"a polygon of {len(polygon)} numbers, all of which have to be finite, in pairs")
        if np.abs(polygon).max() > 2 * max(size):
            detail = f"object {number} has a polygon that reaches to {np.abs(polygon).max():g}, and the image "
            detail += f"{size[1]} x {size[0]} pixels"
            raise ImageDecodingError(f"Row {row}: {detail}.", "mismatch", detail)
    return rle.merge(rle.frPyObjects([polygon.tolist() for polygon in polygons], *size)) if polygons else None


def find_objects(
    features: Features | None, wanted: str, description: str, names: Sequence[str] | None = None
) -> ObjectLabels:
    """Choose the column of objects, and its classes.

    Args:
        wanted: a column, or "auto": 'objects', or the only one whose objects have a box.
        names: of the classes 0, 1, ..., where the categories are plain numbers.

    Raises DataError: no such column, none to choose, one without boxes, classes or masks, or classes without names.
    """
    if features is None:
        raise DataError(f"{description} does not say which columns it has; its objects cannot be used.")
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    fields = {name: fields_of(feature) for name, feature in features.items()}
    if wanted == "auto":
        found = [name for name, inner in fields.items() if "bbox" in inner]
        if "objects" not in found and len(found) != 1:
            raise DataError(
                f"{description} has {len(found)} columns of objects with a 'bbox': name the one with "
                f"--label_column_name. It has: {columns}."
            )
        wanted = "objects" if "objects" in found else found[0]
    if wanted not in features:
        raise DataError(f"{description} has no column '{wanted}' (--label_column_name). It has: {columns}.")
    inner = fields[wanted]
    for name, alternatives in (("bbox", ("bbox",)), ("category", ("category",)), ("masks", ("segmentation", "rle"))):
        if not inner.keys() & set(alternatives):
            raise DataError(
                f"{description}: the objects in column '{wanted}' have no {name} (fields {', '.join(alternatives)}); "
                f"they have: {', '.join(inner) or 'none'}. Detection here learns boxes and masks."
            )
    names = _category_names(inner["category"]) or names
    if not names:
        raise DataError(
            f"{description}: the categories in column '{wanted}' are numbers without names: give --id2label FILE with "
            '{"0": "name", ...}, or their number.'
        )
    return ObjectLabels(wanted, tuple(names), description)


def _category_names(category: Any) -> tuple[str, ...] | None:
    """Of a field of objects; None where the categories are plain numbers."""
    category = getattr(category, "feature", category)
    return tuple(category.names) if isinstance(category, ClassLabel) else None


def fields_of(feature: Any) -> dict[str, Any]:
    """The fields of a struct of lists or a list of structs; none of anything else."""
    if isinstance(feature, (datasets.List, datasets.LargeList)):
        feature = feature.feature
    return dict(feature) if isinstance(feature, dict) else {}
