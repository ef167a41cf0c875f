"""COCO's boxes against its masks and the sizes of its images, before anything is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle

from ...data.notes import note
from ...errors import DataError
from .objects import MAX_OUTSIDE

# Boxes agree with masks within so many pixels, or this overlap (IoU): annotators round, and some draw boxes around what
# is hidden.
MAX_DISTANCE, MIN_OVERLAP = 2.0, 0.8
# A larger share of the boxes that contradict is no accident.
MAX_WRONG, MAX_OUTSIDE_SHARE = 0.1, 0.01


def check_boxes(images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], file: Path) -> None:
    """Boxes are [x, y, width, height] in pixels. Boxes without area, which are left out, are counted and printed.

    Raises DataError, naming the first annotation: a negative width or height; boxes in shares of the image; corners
    given as sizes; more than 10% of the boxes that differ from their masks; more than 1% far outside of their images.
    """
    if not annotations:
        return
    boxes = np.array([[float(number) for number in annotation["bbox"]] for annotation in annotations])
    if boxes.shape[1:] != (4,):
        raise ValueError(f"boxes of {boxes.shape[-1]} numbers, not 4")
    ids = [annotation.get("id") for annotation in annotations]
    by_id = {image["id"]: (image.get("width"), image.get("height")) for image in images}
    told = [by_id[annotation["image_id"]] for annotation in annotations]
    sizes = np.array([(width or np.inf, height or np.inf) for width, height in told], dtype=np.float64)
    rules = "COCO's boxes are [x, y, width, height] in pixels"

    def refuse(number: int, what: str) -> DataError:
        return DataError(
            f"{file}: the annotation {ids[number]} has the box {annotations[number]['bbox']}: {what}. {rules}."
        )

    if (negative := np.flatnonzero((boxes[:, 2:] < 0).any(axis=1))).size:
        raise refuse(negative[0], f"a negative size, as {negative.size:,} of {len(boxes):,} boxes have")
    if boxes.max() <= 1 and np.nanmin(sizes) > 2 and boxes.max() > 0:
        raise refuse(0, "no box of the file reaches beyond 1, so they seem to be shares of the image")
    bounds = np.array([_bounds(annotation) for annotation in annotations])
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
    if outside.sum() > MAX_OUTSIDE_SHARE * len(boxes):
        first = int(np.flatnonzero(outside)[0])
        size = "{:g} x {:g}".format(*sizes[first])
        raise refuse(first, f"outside of its image of {size} pixels, as {outside.sum():,} of {len(boxes):,} boxes are")
    empty = (boxes[:, 2:] == 0).any(axis=1) | (corners[:, 2:] <= 0).any(axis=1) | (corners[:, :2] >= sizes).any(axis=1)
    for count, what in (
        (int(empty.sum()), "have no area within their image and are left out"),
        (int(wrong.sum()), "differ from their masks"),
        (int(outside.sum()), "lie outside of their images, which are left out"),
    ):
        if count:
            note(f"{file}: {count:,} of {len(boxes):,} boxes {what}")


def _bounds(annotation: dict[str, Any]) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of a mask; NaN where there is none, or of a crowd region."""
    mask = annotation.get("segmentation")
    nothing = (np.nan,) * 4
    if annotation.get("iscrowd") or not mask:
        return nothing
    if isinstance(mask, dict):
        try:
            size = mask["size"]
            counts = mask["counts"]
            encoded = rle.frPyObjects(mask, *size) if isinstance(counts, list) else {**mask, "counts": counts.encode()}
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
