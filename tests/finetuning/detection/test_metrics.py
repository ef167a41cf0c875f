import numpy as np
import pytest
import torch
from pycocotools import mask as reference_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_mae_robust.finetuning.detection.metrics import Detections, coco_metrics, save_pictures
from hf_mae_robust.finetuning.detection.objects import Objects

NAMES = ("a", "b", "c")
SIZE = (60, 80)


def rectangle(box):
    mask = np.zeros(SIZE, np.uint8, order="F")
    x0, y0, x1, y1 = (int(round(number)) for number in box)
    mask[y0:y1, x0:x1] = 1
    return reference_masks.encode(mask)


def scene(seed):
    """Objects of an image, and noisy detections of them, some missing, some of nothing. The last image is empty."""
    rng = np.random.default_rng(seed)
    count = 0 if seed == 5 else 7
    corner = rng.integers(0, (50, 40), (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(3, 30, (count, 2))], axis=1).astype(float)
    boxes = np.minimum(boxes, [80, 60, 80, 60])
    classes, crowds = rng.integers(0, 2, count), rng.random(count) < 0.2
    masks = tuple(rectangle(box) for box in boxes)
    areas = np.array([float(reference_masks.area(mask)) for mask in masks])
    objects = Objects(SIZE, boxes, classes, crowds, areas, masks)
    kept = rng.random(count) < 0.8
    found = np.concatenate([boxes[kept], rng.uniform(0, 30, (3, 2)).repeat(2, axis=1) + [0, 0, 9, 9]])
    found = (found + rng.normal(0, 1, found.shape)).clip(0, [80, 60, 80, 60])
    labels = np.concatenate([classes[kept], rng.integers(0, 3, 3)])
    return objects, Detections(found, labels, rng.random(len(found)), tuple(rectangle(box) for box in found))


def reference(objects, detections, kind, max_detections=100):
    """pycocotools on the same, written out by hand."""
    truth, results = COCO(), []
    annotations = []
    for image, o in objects.items():
        for i in range(len(o)):
            x0, y0, x1, y1 = o.boxes[i]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(o.classes[i]),
                    "iscrowd": int(o.crowds[i]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": o.areas[i],
                    "segmentation": o.masks[i],
                }
            )
    truth.dataset = {
        "images": [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in objects],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
        "info": {},
    }
    truth.createIndex()
    for image, d in detections.items():
        for box, label, score, mask in zip(d.boxes, d.classes, d.scores, d.masks):
            result = {"image_id": image, "category_id": int(label), "score": float(score)}
            x0, y0, x1, y1 = box
            shape = {"bbox": [x0, y0, x1 - x0, y1 - y0]} if kind == "bbox" else {"segmentation": mask}
            results.append({**result, **shape})
    evaluation = COCOeval(truth, truth.loadRes(results), kind)
    evaluation.params.maxDets = [1, 10, max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


@pytest.fixture(scope="module")
def scenes():
    objects, detections = zip(*(scene(seed) for seed in range(6)))
    return dict(enumerate(objects)), dict(enumerate(detections))


@pytest.mark.parametrize("max_detections", [100, 4])
def test_ap_is_that_of_pycocotools(scenes, max_detections):
    metrics, rows = coco_metrics(*scenes, NAMES, max_detections)
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        precision = reference(*scenes, kind, max_detections)

        def mean(part):
            return part[part > -1].mean()

        expected = {
            "ap": mean(precision[..., 0]),
            "ap50": mean(precision[0, ..., 0]),
            "ap75": mean(precision[5, ..., 0]),
            "ap_small": mean(precision[..., 1]),
        }
        assert 0.05 < expected["ap"] < 0.95
        assert {key: metrics[f"{name}_{key}"] for key in expected} == pytest.approx(expected, abs=1e-4)
        for i, row in enumerate(rows[:2]):
            assert row[f"{name}_ap"] == pytest.approx(mean(precision[:, :, i, 0]), abs=1e-4)
    assert [row["objects"] for row in rows] == [
        sum(int(((o.classes == i) & ~o.crowds).sum()) for o in scenes[0].values()) for i in range(3)
    ]
    # Class c does not occur, and nothing is large: left out, and not -1.
    assert rows[2]["box_ap"] is None and "box_ap_large" not in metrics


def test_perfect_detections_have_an_ap_of_one_and_none_of_zero(scenes):
    objects, _ = scenes
    perfect = {
        image: Detections(
            o.boxes[~o.crowds],
            o.classes[~o.crowds],
            np.ones((~o.crowds).sum()),
            tuple(mask for mask, crowd in zip(o.masks, o.crowds) if not crowd),
        )
        for image, o in objects.items()
    }
    metrics, _ = coco_metrics(objects, perfect, NAMES)
    assert metrics["box_ap"] == metrics["mask_ap75"] == 1.0
    nothing = {image: Detections(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0), ()) for image in objects}
    metrics, rows = coco_metrics(objects, nothing, NAMES)
    assert metrics["box_ap"] == metrics["mask_ap50"] == 0.0 and rows[0]["box_ap"] == 0.0 and rows[2]["box_ap"] is None
    # The same figures as where something is found: the best model may be chosen by any of them.
    assert metrics.keys() == coco_metrics(*scenes, NAMES)[0].keys()


def test_images_without_any_object_give_numbers():
    objects, detections = {0: Objects.none(SIZE)}, {0: scene(1)[1]}
    metrics, _ = coco_metrics(objects, detections, NAMES)
    assert metrics == {"box_ap": 0.0, "mask_ap": 0.0}


def test_detections_of_a_result_hold_its_masks():
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 5:9, 6:20] = masks[1, 0, 0] = True
    result = {"boxes": torch.rand(2, 4), "labels": torch.tensor([1, 0]), "scores": torch.rand(2), "masks": masks}
    decoded = reference_masks.decode(list(Detections.of(result).masks)).transpose(2, 0, 1)
    assert np.array_equal(decoded.astype(bool), masks.numpy())
    empty = {**{name: value[:0] for name, value in result.items()}}
    assert Detections.of(empty).masks == ()


def test_pictures_are_drawn(scenes, tmp_path):
    rows = [(torch.zeros(3, *SIZE, dtype=torch.uint8), scenes[0][i], scenes[1][i]) for i in (0, 5)]
    save_pictures(rows, NAMES, tmp_path / "two.png")
    save_pictures(rows[:1], NAMES[:1] * 3, tmp_path / "one.png")
    assert (tmp_path / "two.png").stat().st_size > (tmp_path / "one.png").stat().st_size > 1000
