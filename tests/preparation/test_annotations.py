"""Maps and objects that are shrunk with their images, against Pillow and pycocotools' successor."""

import io
import json

import numpy as np
import pytest
from datasets import ClassLabel, Features, Image, List, Value
from faster_coco_eval.core import mask as rle
from PIL import Image as PILImage

from hf_mae_robust.errors import DataError, ImageDecodingError
from hf_mae_robust.finetuning.detection.objects import ObjectLabels
from hf_mae_robust.preparation.annotations import (
    Boxes,
    Classes,
    MapLabels,
    Maps,
    annotations_of,
    finders,
    nearest,
    scaled,
)
from hf_mae_robust.preparation.shrinking import Shrunk


def test_maps_take_the_nearest_pixel_and_no_new_number():
    rng = np.random.default_rng(0)
    for values in (rng.integers(0, 5, (40, 60)), rng.choice([0, 7, 300], (40, 60))):
        file = io.BytesIO()
        PILImage.fromarray(values.astype(np.uint16)).save(file, "PNG")
        found = Maps("mask").shrunk(file.getvalue(), Shrunk(b"", ".jpg", (40, 60), (10, 15)), 0)
        stored = np.asarray(PILImage.open(io.BytesIO(found["bytes"])))
        np.testing.assert_array_equal(stored, values[2::4, 2::4])  # the pixel right below the middle
    with pytest.raises(ImageDecodingError, match="60 x 40 pixels, the image 61 x 40"):
        Maps("mask").shrunk(file.getvalue(), Shrunk(b"", ".jpg", (40, 61), (10, 15)), 3)


def test_objects_are_scaled():
    """By an image of 80 x 40 that becomes 20 x 10: boxes, areas, polygons, and both kinds of masks."""
    disk = (np.hypot(*np.mgrid[-20:20, -40:40]) < 12).astype(np.uint8)
    compressed = rle.encode(np.asfortranarray(disk))
    runs = np.diff(np.flatnonzero(np.diff(disk.ravel(order="F"), prepend=2, append=2)))
    found = {
        "bbox": [28, 8, 24, 24],
        "category": 1,
        "area": float(disk.sum()),
        "segmentation": [[28, 20, 40, 8, 52, 20, 40, 32]],
        "id": 5,
    }
    small = scaled(found, (40, 80), (10, 20))
    assert small["bbox"] == [7, 2, 6, 6] and small["area"] == disk.sum() / 16 and small["iscrowd"] == 0
    assert small["segmentation"] == [[7, 5, 10, 2, 13, 5, 10, 8]] and small["rle"] == {"size": [], "counts": []}
    for counts in (runs.tolist(), compressed["counts"], compressed["counts"].decode()):
        crowd = {**found, "segmentation": {"size": [40, 80], "counts": counts}, "iscrowd": 1}
        small = scaled(crowd, (40, 80), (10, 20))
        assert small["iscrowd"] == 1 and small["segmentation"] == [] and small["rle"]["size"] == [10, 20]
        mask = rle.decode(rle.frPyObjects(small["rle"], 10, 20))
        np.testing.assert_array_equal(mask, nearest(disk, (10, 20)))


def test_objects_that_do_not_fit_their_image_are_bad():
    boxes = Boxes("objects", ("a",), ObjectLabels("objects", ("a",), "set"))
    far = {"bbox": [[300, 0, 10, 10]], "category": [0], "segmentation": [[[300, 0, 310, 0, 310, 10]]]}
    with pytest.raises(ImageDecodingError, match="object 0 has the box"):
        boxes.shrunk(far, Shrunk(b"", ".jpg", (40, 80), (10, 20)), 4)
    assert boxes.shrunk({"bbox": [], "category": []}, Shrunk(b"", ".jpg", (40, 80), (10, 20)), 4)["bbox"] == []


OBJECTS = {
    "bbox": List(List(Value("int64"))),
    "category": List(Value("int64")),
    "segmentation": List(List(List(Value("float64")))),
}


@pytest.mark.parametrize(
    ("columns", "kind", "column"),
    [
        ({"label": ClassLabel(names=["a", "b"])}, Classes, "label"),
        ({"label": ClassLabel(names=["a", "b"]), "mask": Image()}, Maps, "mask"),
        ({"label": ClassLabel(names=["a", "b"]), "seg.png": Image()}, Maps, "seg.png"),
        ({"label": ClassLabel(names=["a", "b"]), "mask": Image(), "objects": OBJECTS}, Boxes, "objects"),
    ],
)
def test_auto_takes_what_says_most_of_the_image(columns, kind, column):
    find, _ = finders("auto")
    found = annotations_of(find(Features({"image": Image(), **columns}), "auto", "set", None))
    assert isinstance(found, kind) and found.column == column and column in found.describe()
    chosen, _ = finders("classification")
    assert isinstance(annotations_of(chosen(Features({"image": Image(), **columns}), "auto", "set", None)), Classes)


def test_auto_does_without(capsys):
    find, _ = finders("auto")
    assert annotations_of(find(Features({"image": Image()}), "auto", "set", None)) is None
    assert isinstance(find(Features({"image": Image(), "x": Image()}), "x", "set", None), MapLabels)


@pytest.mark.parametrize(
    ("place", "images"),
    [
        ("train/_annotations.coco.json", "train"),
        ("annotations.json", "images"),
        ("labels.json", "data"),
        ("annotations/instances_default.json", "images"),
    ],
)
def test_auto_finds_the_objects_that_detection_finds(tmp_path, place, images):
    for name in (tmp_path / place).parent, tmp_path / images:
        name.mkdir(parents=True, exist_ok=True)
    PILImage.new("RGB", (20, 20)).save(tmp_path / images / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 20}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
            | {"segmentation": [[2, 2, 11, 2, 11, 11, 2, 11]]}
        ],
        "categories": [{"id": 3, "name": "thing"}],
    }
    (tmp_path / place).write_text(json.dumps(content))
    found = {task: finders(task)[1](tmp_path) for task in ("auto", "detection")}
    assert list(found["auto"]) == list(found["detection"]) == ["train"]
    assert found["auto"]["train"]()[0]["objects"]["bbox"] == [[2, 2, 9, 9]]
    content["annotations"][0]["segmentation"] = None
    (tmp_path / place).write_text(json.dumps(content))
    with pytest.raises(DataError, match="which is not a mask.*--task pretraining prepares the images alone"):
        found["auto"]["train"]()


def test_auto_takes_no_other_json_for_objects(tmp_path):
    (tmp_path / "cat").mkdir()
    PILImage.new("RGB", (20, 20)).save(tmp_path / "cat" / "a.jpg")
    for name in ("labels.json", "annotations.json"):
        (tmp_path / name).write_text('{"0": "cat"}')
    assert finders("auto")[1](tmp_path) is None
