"""Augmentation and evaluation of images with objects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from torchvision.transforms.v2 import functional as F
from transformers import DetrImageProcessor

from ...data.preprocessing import draw_turns, turned
from ...model.resizing_vit_mae_robust import resize_with_missing
from .objects import Objects, run_lengths


def decode_columns(mask: dict[str, Any], left: int, right: int) -> np.ndarray:
    """The columns from `left` to before `right` of a compressed RLE, `(h, right - left)` uint8."""
    height = mask["size"][0]
    ends = run_lengths(mask).cumsum().clip(left * height, right * height)
    lengths = np.diff(ends, prepend=left * height)
    values = np.arange(len(lengths)).astype(np.uint8) % 2
    return np.repeat(values, lengths).reshape(right - left, height).T


def cropped_masks(
    objects: Objects, rows: np.ndarray, columns: np.ndarray, side: int, flips: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masks of objects that all have one, looked up at some rows and columns of the image, both in ascending order, and
    with `flips` mirrored.

    Returns masks `(n, side, side)` uint8, 0 below and on the right of what was looked up; boxes `(n, 4)` float32 of
    their pixels, (x0, y0, x1, y1); and which objects these are, `(n,)` int64: those with a pixel left.
    """
    parts, boxes, chosen = [], [], []
    mask: Any  # each has one
    for i, mask in enumerate(objects.masks):
        # One object at a time, and only where it is: complete masks of all objects would take memory and time.
        x, y, width, height = (int(number) for number in rle.toBbox(mask))
        top, bottom = np.searchsorted(rows, [y, y + height])
        left, right = np.searchsorted(columns, [x, x + width])
        if top == bottom or left == right:
            continue
        part = decode_columns(mask, x, x + width)[rows[top:bottom]][:, columns[left:right] - x]
        if flips:
            part, left = part[:, ::-1], len(columns) - right
        is_row, is_column = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        if len(is_row):
            parts.append((top, left, part))
            boxes.append((left + is_column[0], top + is_row[0], left + is_column[-1] + 1, top + is_row[-1] + 1))
            chosen.append(i)
    masks = np.zeros((len(parts), side, side), np.uint8)  # takes memory only where something is written
    for plane, (top, left, part) in zip(masks, parts):
        plane[top : top + part.shape[0], left : left + part.shape[1]] = part
    return (
        torch.from_numpy(masks),
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(chosen, dtype=torch.int64),
    )


def fit_size(size: Sequence[int], side: float) -> tuple[int, int]:
    """(height, width) of an image whose long side is made `side` pixels, with its aspect ratio kept."""
    factor = side / max(size)
    height, width = (max(1, round(length * factor)) for length in size)
    return height, width


def turned_boxes(boxes: torch.Tensor, size: Sequence[int], flips: bool, quarter_turns: int) -> torch.Tensor:
    """`(n, 4)` (x0, y0, x1, y1) in an image of (height, width), as `turned` moves the image."""
    height, width = size
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    if flips:
        y0, y1 = height - y1, height - y0
    for _ in range(quarter_turns):
        x0, y0, x1, y1 = y0, width - x1, y1, width - x0
        height, width = width, height
    return torch.stack([x0, y0, x1, y1], dim=1)


class LargeScaleJitter:
    """Large-scale jitter (Ghiasi et al. 2021; Li et al. 2021: 0.1 to 2): an image `(C, h, w)` uint8 (or normalised
    float32, NaN where a pixel is missing) and its objects ->

        {"pixel_values": (C, S, S) uint8, "pixel_mask": (S, S) uint8, 1 where there is image,
         "labels": {"boxes": (n, 4) float32 (x0, y0, x1, y1), "class_labels": (n,) int64, "masks": (n, S, S) uint8,
                    "ignored_boxes": (m, 4) float32, "seed": int64}}

    The image is scaled so that its long side is S x a random factor, cropped to S x S where it is larger, padded below
    and on the right where it is smaller, and flipped. Objects of which no pixel is left are dropped; boxes are those
    of what is left of the masks. Crowd regions become `ignored_boxes`. `seed` is a random number for the sampling of
    anchors and proposals.

    Args:
        image_size: S. scale_range: of the factor; (1, 1) only fits the image in. vertical_flip, rot90: as of
            `RandomCrop`, for images from above.
    """

    def __init__(
        self,
        image_size: int,
        scale_range: tuple[float, float] = (0.1, 2.0),
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        rot90: bool = False,
    ):
        self.image_size, self.scale_range, self.horizontal_flip = image_size, scale_range, horizontal_flip
        self.vertical_flip, self.rot90 = vertical_flip, rot90

    def __call__(self, image: torch.Tensor, objects: Objects) -> dict[str, Any]:
        low, high = self.scale_range
        side, size = self.image_size, tuple(image.shape[1:])
        height, width = fit_size(size, side * float(torch.empty(()).uniform_(low, high)))
        shown = min(height, side), min(width, side)
        top, left = (int(torch.randint(whole - part + 1, ())) for whole, part in zip((height, width), shown))
        flips = self.horizontal_flip and bool(torch.rand(()) < 0.5)
        image = resize_with_missing(image, lambda image: F.resize(image, [height, width], antialias=True))
        image = image[:, top : top + shown[0], left : left + shown[1]]
        # The masks are looked up for the pixels of the crop only, in their own resolution.
        rows = ((torch.arange(shown[0]) + 0.5 + top) * (size[0] / height)).long().clamp(max=size[0] - 1)
        columns = ((torch.arange(shown[1]) + 0.5 + left) * (size[1] / width)).long().clamp(max=size[1] - 1)
        kept = objects.choose(~objects.crowds)
        masks, boxes, chosen = cropped_masks(kept, rows.numpy(), columns.numpy(), side, flips)
        crowds = torch.from_numpy(objects.boxes[objects.crowds]).float().reshape(-1, 4)
        crowds = crowds * torch.tensor([width / size[1], height / size[0]] * 2) - torch.tensor([left, top] * 2)
        crowds[:, 0::2].clamp_(0, shown[1])
        crowds[:, 1::2].clamp_(0, shown[0])
        crowds = crowds[(crowds[:, 2:] > crowds[:, :2]).all(dim=1)]
        if flips:
            image = image.flip(-1)
            crowds[:, 0::2] = shown[1] - crowds[:, [2, 0]]
        turns = draw_turns(self.vertical_flip, self.rot90)
        if any(turns):
            image = turned(image, *turns)
            boxes, crowds = (turned_boxes(part, shown, *turns) for part in (boxes, crowds))
            parts = turned(masks[:, : shown[0], : shown[1]], *turns)
            shown = image.shape[1], image.shape[2]
            masks = F.pad(parts, [0, 0, side - shown[1], side - shown[0]])
        padding = [0, 0, side - shown[1], side - shown[0]]
        return {
            "pixel_values": F.pad(image, padding),
            "pixel_mask": F.pad(torch.ones(1, *shown, dtype=torch.uint8), padding)[0],
            "labels": {
                "boxes": boxes,
                "class_labels": torch.from_numpy(kept.classes)[chosen],
                "masks": masks,
                "ignored_boxes": crowds,
                "seed": torch.randint(2**62, ()),
            },
        }


class DetectionEvaluationTransform:
    """The geometric part of the detector's image processor, and under "labels" the objects as they are."""

    def __init__(self, processor: DetrImageProcessor):
        self.processor: Any = processor

    def __call__(self, image: torch.Tensor, objects: Objects) -> dict[str, Any]:
        # Of 1 x 1 pixels the processor could not tell where the channels are.
        layout: dict[str, Any] = {"input_data_format": "channels_first", "return_tensors": "pt"}
        masks = []

        def resize_and_pad(image: torch.Tensor) -> torch.Tensor:
            inputs = self.processor(images=image, do_rescale=False, do_normalize=False, **layout)
            masks.append(inputs.pixel_mask[0].to(torch.uint8))
            return inputs.pixel_values[0].to(image.dtype)

        values = resize_with_missing(image, resize_and_pad)
        return {
            # Beside the image nothing is missing.
            "pixel_values": values.masked_fill(masks[0] == 0, 0) if values.is_floating_point() else values,
            "pixel_mask": masks[0],
            "labels": {"objects": objects},
        }

    def __repr__(self) -> str:
        return f"fitted into {self.processor.pad_size['height']} x {self.processor.pad_size['width']} px"
