"""Annotations of other programs' exports are found, and boxes that contradict their masks are refused."""

import json

import PIL.Image
import pytest

from hf_mae_robust.errors import DataError
from hf_mae_robust.finetuning.detection.coco import load_coco
from hf_mae_robust.finetuning.detection.layouts import object_splits


def content(box=(4, 4, 12, 10), count=2):
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 32, "height": 32} for i in range(count)]
    polygon = [[4, 4, 16, 4, 16, 14, 4, 14]]
    annotations = [
        {"id": i + 1, "image_id": i, "category_id": 1, "bbox": list(box), "segmentation": polygon} for i in range(count)
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}


def write(root, annotation, images, new=None):
    for path in (root / annotation, root / images / "0.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        PIL.Image.new("RGB", (32, 32), "red").save(root / images / f"{i}.jpg")
    (root / annotation).write_text(json.dumps(new or content()))
    return root


@pytest.mark.parametrize(
    ("annotation", "images", "split"),
    [
        ("train/_annotations.coco.json", "train", "train"),
        ("annotations/instances_default.json", "images", "train"),
        ("annotations/train.json", "train", "train"),
        ("annotations/val.json", "images/val", "val"),
        ("annotations/instances_train2017.json", "train2017", "train"),
        ("Annotations/instances_train.json", "Images/Train", "train"),
        ("Annotations/Instances_Train2017.json", "Train2017", "train"),
        ("_annotations.coco.json", ".", "train"),
        ("labels.json", "data", "train"),
        ("annotations/instances_default.json", "images/default", "default"),
    ],
)
def test_layouts_that_are_read(tmp_path, annotation, images, split):
    found = object_splits(write(tmp_path, annotation, images))
    assert list(found) == [split] and len(found[split]()) == 2


def test_lvis_names_its_images_by_url(tmp_path):
    new = content()
    for image in new["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    found = object_splits(write(tmp_path, "annotations/lvis_v1_train.json", "train2017", new))
    assert len(found["train"]()) == 2


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("labels/0.txt", "YOLO"),
        ("Annotations/0.xml", "Pascal VOC"),
        ("images/0.json", "labelme"),
        (None, "it found none"),
    ],
)
def test_other_layouts_are_named_with_what_is_wanted(tmp_path, name, layout):
    (tmp_path / "images").mkdir()
    PIL.Image.new("RGB", (32, 32)).save(tmp_path / "images/0.jpg")
    if name is not None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=f"{layout}.*annotations/instances_train.json"):
        object_splits(tmp_path)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((4, 4, 16, 14), r"annotation 1 has the box.*x0, y0, x1, y1 = 4, 4, 16, 14; 2 of 2.*seem to be corners"),
        ((0.125, 0.125, 0.375, 0.3125), "annotation 1 .*shares of the image"),
        ((16, 14, -12, -10), "annotation 1 .*a negative size, as 2 of 2"),
        ((20, 20, 8, 8), "annotation 1 .*its mask reaches over"),
    ],
)
def test_boxes_that_contradict_their_masks(tmp_path, box, message):
    write(tmp_path, "a.json", "images", content(box))
    with pytest.raises(DataError, match=message):
        load_coco(tmp_path / "a.json", tmp_path / "images")


def test_boxes_outside_of_their_images_and_without_area(tmp_path, capsys):
    new = content()
    new["annotations"][1].update(bbox=[40, 4, 12, 10], segmentation=[])
    write(tmp_path, "a.json", "images", new)
    with pytest.raises(DataError, match="annotation 2 .*outside of its image of 32 x 32 pixels, as 1 of 2"):
        load_coco(tmp_path / "a.json", tmp_path / "images")
    new["annotations"][1].update(bbox=[4, 4, 0, 10])
    write(tmp_path, "a.json", "images", new)
    assert len(load_coco(tmp_path / "a.json", tmp_path / "images")) == 2
    assert "1 of 2 boxes have no area" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train/{}", "images/train/{}", "images\\train\\{}"])
def test_names_with_folders_are_found(tmp_path, name):
    new = content()
    for image in new["images"]:
        image["file_name"] = name.format(image["file_name"])
    folder = "images/train" if "images" in name else "train"
    found = object_splits(write(tmp_path, "annotations/instances_train.json", folder, new))
    assert len(found["train"]()) == 2


@pytest.mark.parametrize("size", [(32, 24), (640, 480)])
def test_images_of_another_size_than_the_json_says(tmp_path, size):
    new = content()
    new["images"][1].update(width=size[0], height=size[1])
    write(tmp_path, "a.json", "images", new)
    message = f"1.jpg has 32 x 32 pixels, and {size[0]} x {size[1]} there, and so have 1 of 2 looked at"
    with pytest.raises(DataError, match=message):
        load_coco(tmp_path / "a.json", tmp_path / "images")


def test_a_file_without_objects_is_said(tmp_path, capsys):
    write(tmp_path, "a.json", "images", {**content(), "annotations": []})
    assert len(load_coco(tmp_path / "a.json", tmp_path / "images")) == 2
    assert "Warning" in (said := capsys.readouterr().out) and "lists no object" in said
