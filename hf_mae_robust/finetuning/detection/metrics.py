"""COCO's average precision of boxes and masks, and pictures of detections."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from .objects import Objects

IOU_TYPES = {"box": "bbox", "mask": "segm"}
# Of objects, in pixels, as COCO has them.
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


@dataclass(frozen=True)
class Detections:
    """What was found in an image: boxes `(n, 4)` float, (x0, y0, x1, y1) in pixels of the original; classes `(n,)`;
    scores `(n,)`; masks: n compressed RLEs of its size."""

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    masks: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, result: dict[str, torch.Tensor]) -> "Detections":
        """From the processor's `post_process_instance_segmentation`, of one image."""
        encoded: list[dict[str, Any]] = []
        for mask in result["masks"]:  # one at a time: they may be of large photos
            encoded.append(rle.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8))))
        boxes, classes, scores = (result[name].cpu().numpy() for name in ("boxes", "labels", "scores"))
        return cls(boxes, classes, scores, tuple(encoded))


def coco_metrics(
    objects: dict[int, Objects],
    detections: dict[int, Detections],
    class_names: Sequence[str],
    max_detections: int = 100,
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """COCO's average precision (cocodataset.org: IoU 0.50 to 0.95, crowd regions neither found nor missed), fractions.

    Args:
        objects, detections: by image.
        max_detections: the most confident N of an image count (COCO: 100).

    Returns `box_ap`, `box_ap50`, `box_ap75`, `box_ap_small`, `box_ap_medium`, `box_ap_large` and the same for `mask`,
    and for each class its name, number of objects, `box_ap` and `mask_ap`. Sizes are left out of which there is no
    object, as the mean of nothing; AP of a class that does not occur is None.
    """
    truth, found = COCO(_dataset(objects, class_names)), _found(detections)
    metrics: dict[str, float] = {}
    rows: list[dict[str, Any]] = [{"class": name} for name in class_names]
    counts = {area: _counts(objects, len(class_names), limits) for area, limits in AREAS.items()}
    for row, count in zip(rows, counts["all"].tolist()):
        row["objects"] = count
    for name, iou_type in IOU_TYPES.items():
        # IoU threshold, recall, class, area, number of detections; -1 where there is no object.
        precision = np.zeros((10, 101, len(class_names), 4))
        if found:
            evaluation = COCOeval_faster(truth, truth.loadRes(found[iou_type]), iou_type)
            evaluation.params.maxDets = [1, 10, max_detections]
            evaluation.evaluate()
            evaluation.accumulate()
            precision = evaluation.eval["precision"][..., -1]
        else:
            for i, area in enumerate(AREAS):
                precision[:, :, counts[area] == 0, i] = -1
        for key, part in {
            "ap": precision[..., 0],
            "ap50": precision[0, ..., 0],
            "ap75": precision[5, ..., 0],
            **{f"ap_{area}": precision[..., i] for i, area in enumerate(AREAS) if i},
        }.items():
            if (part > -1).any():
                metrics[f"{name}_{key}"] = float(part[part > -1].mean())
        for i, row in enumerate(rows):
            part = precision[:, :, i, 0]
            row[f"{name}_ap"] = float(part[part > -1].mean()) if (part > -1).any() else None
    return {"box_ap": 0.0, "mask_ap": 0.0, **metrics}, rows


def _counts(objects: dict[int, Objects], num_classes: int, area: tuple[float, float]) -> np.ndarray:
    """Of each class, the objects of an area from that to that, without crowd regions."""
    low, high = area
    classes = [o.classes[~o.crowds & (o.areas >= low) & (o.areas <= high)] for o in objects.values()]
    return np.bincount(np.concatenate([*classes, np.zeros(0, dtype=int)]), minlength=num_classes)


def _dataset(objects: dict[int, Objects], class_names: Sequence[str]) -> dict[str, Any]:
    """As a COCO JSON file has it."""
    annotations: list[dict[str, Any]] = []
    for image, of_image in objects.items():
        for box, label, crowd, area, mask in zip(
            of_image.boxes, of_image.classes, of_image.crowds, of_image.areas, of_image.masks
        ):
            x0, y0, x1, y1 = box.tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(area),
                    "iscrowd": int(crowd),
                    "segmentation": mask if mask is not None else _filled(box, of_image.size),
                }
            )
    return {
        "images": [{"id": image, "height": o.size[0], "width": o.size[1]} for image, o in objects.items()],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
    }


def _filled(box: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """The box as a mask, for a crowd region that has none."""
    x0, y0, x1, y1 = box.tolist()
    return rle.merge(rle.frPyObjects([[x0, y0, x1, y0, x1, y1, x0, y1]], *size))


def _found(detections: dict[int, Detections]) -> dict[str, list[dict[str, Any]]]:
    """COCO's result lists, of boxes and of masks, in which areas differ; nothing where nothing was found."""
    boxes, masks = [], []
    for image, of_image in detections.items():
        for box, label, score, mask in zip(of_image.boxes, of_image.classes, of_image.scores, of_image.masks):
            x0, y0, x1, y1 = (float(number) for number in box)
            shared = {"image_id": image, "category_id": int(label), "score": float(score)}
            boxes.append({**shared, "bbox": [x0, y0, x1 - x0, y1 - y0]})
            masks.append({**shared, "segmentation": mask})
    return {"bbox": boxes, "segm": masks} if boxes else {}


def save_pictures(
    pictures: Sequence[tuple[torch.Tensor, Objects, Detections]],
    class_names: Sequence[str],
    path: str | Path,
    threshold: float = 0.5,
) -> None:
    """Write rows of truth and detections surer than `threshold` as a PNG. pictures: with the image `(3, h, w)`
    uint8."""
    colours = [
        tuple(int(255 * part) for part in plt.get_cmap("hsv")(i * 0.618 % 1)[:3])
        for i in range(max(12, len(class_names)))
    ]
    figure, rows = plt.subplots(len(pictures), 2, figsize=(12, 5 * len(pictures)), layout="constrained", squeeze=False)
    for axes, (image, objects, found) in zip(rows, pictures):
        sure = found.scores > threshold
        shown = {
            "truth": (objects.boxes, objects.classes, objects.masks, None),
            "detections": (
                found.boxes[sure],
                found.classes[sure],
                [mask for mask, is_sure in zip(found.masks, sure) if is_sure],
                found.scores[sure],
            ),
        }
        for ax, (title, (boxes, classes, masks, scores)) in zip(axes, shown.items()):
            # Of one class each object gets a colour of its own, otherwise each class.
            numbers = range(len(boxes)) if len(class_names) == 1 else classes.tolist()
            ax.imshow(
                _drawn(image, boxes, classes, masks, scores, class_names, [colours[i % len(colours)] for i in numbers])
            )
            ax.set(xticks=[], yticks=[], title=title if ax in rows[0] else "")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _drawn(
    image: torch.Tensor,
    boxes: Any,
    classes: Any,
    masks: Any,
    scores: Any,
    class_names: Sequence[str],
    colours: Any,
) -> np.ndarray:
    if len(boxes):
        drawable = [i for i, mask in enumerate(masks) if mask is not None]
        if drawable:
            decoded = rle.decode([masks[i] for i in drawable]).transpose(2, 0, 1).astype(bool)
            image = draw_segmentation_masks(
                image, torch.from_numpy(decoded), alpha=0.5, colors=[colours[i] for i in drawable]
            )
        texts = None
        if len(class_names) > 1:
            texts = [class_names[i] for i in classes.tolist()]
            texts = texts if scores is None else [f"{text} {score:.2f}" for text, score in zip(texts, scores)]
        image = draw_bounding_boxes(image, torch.as_tensor(np.array(boxes)).float(), texts, colors=list(colours))
    return image.permute(1, 2, 0).numpy()
