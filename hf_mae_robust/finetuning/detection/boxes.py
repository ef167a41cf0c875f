"""Boxes against masks and the sizes of images, before anything is trained: of COCO's JSON and of tables."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle

from ...data.decoding import size_of
from ...data.notes import note
from ...data.source import ImageSource
from ...errors import DataError, ImageDecodingError

# Boxes agree with masks within these pixels, or this overlap (IoU): annotators round, and some draw boxes around what
# is hidden.
MAX_DISTANCE, MIN_OVERLAP = 2.0, 0.8
# A larger share of the boxes that contradict is not an accident.
MAX_WRONG, MAX_OUTSIDE_SHARE = 0.1, 0.01
# So much of its width or height may a box lie outside of the image, beside two pixels, before the annotation is taken
# for one of another image.
MAX_OUTSIDE = 0.05
# Rows of a table whose objects are looked at, and those of which the header of the image is read too, for its size;
# from the beginning where rows are read one after the other.
NUM_ROWS, NUM_SIZES, NUM_ROWS_OF_STREAM = 5000, 64, 64
# What a table from COCO's JSON says of its origin: its boxes are all looked at when it is read.
COCO = "coco_json"
RULES = "Boxes are [x, y, width, height] in pixels"


def check_boxes(images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], file: Path) -> None:
    """COCO's, as `check`. Raises DataError, naming the first annotation."""
    if not annotations:
        return
    boxes = np.array([[float(number) for number in annotation["bbox"]] for annotation in annotations])
    by_id = {image["id"]: (image.get("width"), image.get("height")) for image in images}
    told = [by_id[annotation["image_id"]] for annotation in annotations]
    sizes = np.array([(width or np.inf, height or np.inf) for width, height in told], dtype=np.float64)

    def name(number: int) -> str:
        return f"the annotation {annotations[number].get('id')} has the box {annotations[number]['bbox']}"

    check(boxes, np.array([_bounds(annotation) for annotation in annotations]), sizes, name, str(file))
    has_area = ~_without_area(boxes, sizes)
    for annotation in (annotations[int(i)] for i in np.flatnonzero(has_area)):
        mask = annotation.get("segmentation")
        draws_nothing = not mask or (isinstance(mask, list) and all(len(polygon) < 6 for polygon in mask))
        if draws_nothing and not annotation.get("iscrowd"):
            raise DataError(
                f"{file}: the annotation {annotation.get('id')} has the segmentation {_short(mask)}, which is not a "
                "mask, and Mask R-CNN learns from masks: polygons of three points at least, or RLE."
            )


def check_annotations(
    annotations: Sequence[dict[str, Any]], file_names: Mapping[Any, str], classes: Container[Any], file: Path
) -> None:
    """Whether each of COCO's annotations has an image, a class, a box and a mask that can be read. file_names: by id of
    an image. classes: ids of the categories. Raises DataError, naming the first annotation that has not."""
    for annotation in annotations:
        image = annotation.get("image_id")
        place = f" (image {file_names[image]})" if _is_among(image, file_names) else ""
        where = f"{file}: the annotation {annotation.get('id')}{place}"
        for key, known in (("image_id", file_names), ("category_id", classes)):
            if not _is_among(annotation.get(key), known):
                raise DataError(f"{where} has the {key} {annotation.get(key)!r}, which the file does not list.")
        if not isinstance(annotation.get("id", 0), int):
            raise DataError(f"{where} has an id that is not a whole number.")
        box = annotation.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
            raise DataError(
                f"{where} has the bbox {_short(box)}; a box is four numbers, [x, y, width, height] in pixels."
            )
        for key in ("area", "iscrowd"):
            if annotation.get(key) is not None and not isinstance(annotation[key], int | float):
                raise DataError(f"{where} has the {key} {annotation[key]!r}, which is not a number.")
        mask = annotation.get("segmentation")
        if (fault := _fault_of_mask(mask)) is not None:
            raise DataError(
                f"{where} has the segmentation {_short(mask)}: {fault}. A mask is polygons, [[x0, y0, x1, y1, ...], "
                "...] in pixels, or RLE, {size, counts}."
            )


def _is_among(key: Any, known: Container[Any]) -> bool:
    return isinstance(key, int | str) and key in known


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and bool(np.isfinite(number))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fault_of_mask(mask: Any) -> str | None:
    """What is wrong with COCO's `segmentation`; None for a good one, and for none at all."""
    if mask is None or mask == []:
        return None
    if isinstance(mask, dict):
        size, counts = mask.get("size"), mask.get("counts")
        if not (isinstance(size, list) and len(size) == 2 and all(map(_is_finite, size))):
            return "its size is not [height, width]"
        if isinstance(counts, list) and all(map(_is_finite, counts)):
            pixels, wanted = sum(counts), size[0] * size[1]
            return None if pixels == wanted else f"its counts are of {pixels:,} pixels, its size of {wanted:,}"
        return None if isinstance(counts, str) else "its counts are neither a list of numbers nor text"
    if not isinstance(mask, list):
        return f"it is a {type(mask).__name__}"
    for polygon in mask:
        if not isinstance(polygon, list):
            return "its first level is not a list of polygons"
        if len(polygon) % 2:
            return f"a polygon of {len(polygon)} numbers, which make no pairs"
        if not all(map(_is_finite, polygon)):
            return "a polygon holds something that is not a finite number"
    return None


def check_sizes(images: Sequence[dict[str, Any]], files: Sequence[Path], annotation_file: Path) -> None:
    """Raises DataError where more than 1% of the images that are looked at have another size than COCO's JSON says."""
    wrong, num_seen = [], 0
    for number in np.unique(np.linspace(0, len(images) - 1, num=NUM_SIZES, dtype=int)):
        image = images[number]
        if not image.get("width") or not image.get("height"):
            continue
        try:
            height, width = size_of({"bytes": None, "path": str(files[number])})
        except ImageDecodingError:
            continue  # counted and named when it is trained on
        num_seen += 1
        if (width, height) != (image["width"], image["height"]):
            wrong.append(
                f"{image['file_name']} has {width} x {height} pixels, and {image['width']} x {image['height']} there"
            )
    if len(wrong) > MAX_OUTSIDE_SHARE * num_seen:
        raise DataError(
            f"{annotation_file} belongs to images of other sizes: {wrong[0]}, and so have {len(wrong):,} of "
            f"{num_seen:,} looked at (EXIF orientation is applied). Give the images that were annotated."
        )


def check_rows(source: ImageSource, objects_of: Callable[[Any], Sequence[dict[str, Any]]]) -> None:
    """As `check`, of the objects in rows of a table: all up to NUM_ROWS, otherwise that many from all over it, and the
    first ones of what is read row by row. Raises DataError, naming the row."""
    found: list[tuple[int, int, dict[str, Any]]] = []
    sizes: list[tuple[float, float]] = []
    num_rows = 0
    for row, value, size in _rows(source):
        num_rows += 1
        try:
            objects = objects_of(value)
        except (TypeError, ValueError):
            continue  # said with its row when it is read
        for number, each in enumerate(objects):
            if len(each.get("bbox") or ()) == 4 and None not in each["bbox"]:
                found.append((row, number, each))
                sizes.append(size)
    if not num_rows:
        return
    if not found:
        rows = "no row" if num_rows == source.num_rows else f"none of the {num_rows:,} rows looked at"
        note(f"Warning: {source.description}: {rows} has an object with a box")
        return

    def name(number: int) -> str:
        row, which, each = found[number]
        return f"object {which} of row {row:,} has the box {list(each['bbox'])}"

    boxes = np.array([each["bbox"] for *_, each in found], dtype=np.float64)
    bounds = np.array([_bounds(each) for *_, each in found])
    # Images with boxes far outside are left out one by one, and --max_bad_images limits how many.
    check(boxes, bounds, np.array(sizes, dtype=np.float64), name, source.description, max_outside_share=0.5)


def _rows(source: ImageSource) -> Iterator[tuple[int, Any, tuple[float, float]]]:
    """Row, its objects, and width and height of its image, infinite where they are not looked at."""
    unknown = (np.inf, np.inf)
    if source.row_groups is None:
        for row, content in enumerate(islice(source.rows, NUM_ROWS_OF_STREAM)):
            yield row, content["label"], _size(content["image"])
        return
    num_rows = source.num_rows or 0
    if source.seekable_at_no_cost:
        rows = np.unique(np.linspace(0, num_rows - 1, num=min(NUM_ROWS, num_rows), dtype=int)).tolist()
    else:
        rows = list(range(min(NUM_ROWS_OF_STREAM, *source.row_groups[:1], num_rows)))
    step = max(1, len(rows) // NUM_SIZES)
    for place, row in enumerate(rows):
        yield row, source.rows.label(row), _size(source.rows[row]) if place % step == 0 else unknown


def _size(image: Any) -> tuple[float, float]:
    try:
        height, width = size_of(image)
    except ImageDecodingError:
        return np.inf, np.inf  # counted and named when it is trained on
    return width, height


def check(
    boxes: np.ndarray,
    bounds: np.ndarray,
    sizes: np.ndarray,
    name: Callable[[int], str],
    description: str,
    max_outside_share: float = MAX_OUTSIDE_SHARE,
) -> None:
    """Boxes are [x, y, width, height] in pixels. Boxes without area, which are left out, are counted and printed.

    Args:
        boxes: `(n, 4)`. bounds: `(n, 4)`, x0, y0, x1, y1 of the masks, NaN without one. sizes: `(n, 2)`, width and
            height of the images, infinite where unknown. name: of a box, for errors. description: of the data.

    Raises DataError, naming the first box: a negative width or height; boxes in shares of the image; corners given as
    sizes; more than 10% of the boxes that differ from their masks; more than a share of them far outside of their
    images.
    """

    def refuse(number: int, what: str) -> DataError:
        return DataError(f"{description}: {name(int(number))}: {what}. {RULES}.")

    if (negative := np.flatnonzero((boxes[:, 2:] < 0).any(axis=1))).size:
        raise refuse(negative[0], f"a negative size, as {negative.size:,} of {len(boxes):,} boxes have")
    if boxes.max() <= 1 and np.nanmin(sizes) > 2 and boxes.max() > 0:
        raise refuse(0, "no box reaches beyond 1, so they seem to be shares of the image")
    has_mask = np.isfinite(bounds).all(axis=1)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    wrong = has_mask & ~_agrees(corners, bounds)
    if wrong.sum() > MAX_WRONG * max(has_mask.sum(), 1):
        first = int(np.flatnonzero(wrong)[0])
        seen = "{:g}, {:g}, {:g}, {:g}".format(*bounds[first])
        what = f"its mask reaches over x0, y0, x1, y1 = {seen}; {wrong.sum():,} of {has_mask.sum():,} boxes differ so"
        if _agrees(boxes, bounds)[wrong].mean() > 0.5:
            what += ", and the boxes seem to be corners, [x0, y0, x1, y1]"
        raise refuse(first, what)
    margin = 2 + MAX_OUTSIDE * np.where(np.isfinite(sizes), sizes, 0)
    outside = ((corners[:, :2] < -margin) | (corners[:, 2:] > sizes + margin)).any(axis=1)
    if outside.sum() > max_outside_share * len(boxes):
        first = int(np.flatnonzero(outside)[0])
        size = "{:g} x {:g}".format(*sizes[first])
        raise refuse(first, f"outside of its image of {size} pixels, as {outside.sum():,} of {len(boxes):,} boxes are")
    empty = _without_area(boxes, sizes)
    for count, what in (
        (int(empty.sum()), "have no area within their image and are left out"),
        (int(wrong.sum()), "differ from their masks"),
        (int(outside.sum()), "lie outside of their images, which are left out"),
    ):
        if count:
            note(f"{description}: {count:,} of {len(boxes):,} boxes {what}")


def _without_area(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether boxes, [x, y, width, height], have no area within their images."""
    ends = boxes[:, :2] + boxes[:, 2:]
    outside = (ends <= 0).any(axis=1) | (boxes[:, :2] >= sizes).any(axis=1)
    return (boxes[:, 2:] == 0).any(axis=1) | outside


def _bounds(annotation: dict[str, Any]) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of a mask; NaN where there is none, or of a crowd region."""
    mask = annotation.get("segmentation")
    nothing = (np.nan,) * 4
    if not mask and (annotation.get("rle") or {}).get("size"):  # in tables
        mask = annotation["rle"]
    if annotation.get("iscrowd") or not mask:
        return nothing
    if isinstance(mask, dict):
        try:
            size = mask["size"]
            counts = mask["counts"]
            if isinstance(counts, list):
                encoded = rle.frPyObjects(mask, *size)
            else:
                encoded = {**mask, "counts": counts.encode() if isinstance(counts, str) else counts}
            x, y, width, height = (float(number) for number in np.ravel(rle.toBbox(encoded)))
        except (KeyError, RuntimeError, TypeError, ValueError, AttributeError):
            return nothing  # said with its row when it is read
        return x, y, x + width, y + height
    points = [number for polygon in mask if isinstance(polygon, list) and len(polygon) % 2 == 0 for number in polygon]
    if not points:
        return nothing
    columns, rows = np.array(points[::2], dtype=np.float64), np.array(points[1::2], dtype=np.float64)
    return float(columns.min()), float(rows.min()), float(columns.max()), float(rows.max())


def _agrees(boxes: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Whether boxes `(n, 4)` are the bounds `(n, 4)`, both of corners; NaN never agrees."""
    near = (np.abs(boxes - bounds) <= MAX_DISTANCE).all(axis=1)
    low, high = np.maximum(boxes[:, :2], bounds[:, :2]), np.minimum(boxes[:, 2:], bounds[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = sum(np.clip(part[:, 2:] - part[:, :2], 0, None).prod(axis=1) for part in (boxes, bounds))
    return near | (shared >= MIN_OVERLAP * (areas - shared))
