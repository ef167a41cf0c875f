import json
import math

import numpy as np
import PIL.Image
import pytest
import torch
from faster_coco_eval.core import mask as rle

from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from hf_mae_robust.finetuning.detection.coco import coco_splits, load_coco
from hf_mae_robust.finetuning.detection.objects import find_objects


def content():
    """Category ids with gaps, a crowd region, an image without objects."""
    polygon = [[2, 2, 10, 2, 10, 8, 2, 8]]
    crowd = {"size": [16, 24], "counts": [16 * 4, 16 * 3, 16 * 17]}
    return {
        "images": [
            {"id": 70, "file_name": "a.png", "width": 24, "height": 16},
            {"id": 9, "file_name": "b.png", "width": 24, "height": 16},
        ],
        "categories": [{"id": 90, "name": "brush"}, {"id": 3, "name": "car"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 70,
                "category_id": 90,
                "bbox": [2, 2, 8, 6],
                "area": 48,
                "iscrowd": 0,
                "segmentation": polygon,
            },
            {
                "id": 2,
                "image_id": 70,
                "category_id": 3,
                "bbox": [4, 0, 3, 16],
                "area": 48,
                "iscrowd": 1,
                "segmentation": crowd,
            },
        ],
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        for name in ("a.png", "b.png"):
            PIL.Image.new("RGB", (24, 16), "red").save(tmp_path / split / name)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content()))
    return tmp_path


def changed(folder, change):
    new = content()
    change(new)
    path = folder / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(new))
    return path, folder / "train2017"


def opened(folder):
    return open_splits(
        DataLocation(str(folder), label_column_name="auto"),
        find_labels=lambda features, wanted, description, _: find_objects(features, wanted, description),
        find_splits=coco_splits,
    )


def test_the_layout_of_coco_opens_as_train_and_val(folder):
    train, evaluation = opened(folder)
    assert (train.num_rows, evaluation.num_rows) == (2, 2)
    assert train.class_names == ("car", "brush")  # in the order of COCO's ids, 3 and 90
    image = torch.zeros(3, 16, 24, dtype=torch.uint8)
    objects = train.labels.decode(train.rows.label(0), image, 0)
    assert objects.classes.tolist() == [1, 0] and objects.crowds.tolist() == [False, True]
    assert objects.boxes.tolist() == [[2, 2, 10, 8], [4, 0, 7, 16]]
    expected = np.zeros((16, 24), np.uint8)
    expected[:, 4:7] = 1
    assert np.array_equal(rle.decode([objects.masks[1]])[..., 0], expected)
    assert len(train.labels.decode(train.rows.label(1), image, 1)) == 0


def test_categories_of_another_list_are_those_of_the_same_name(folder):
    """Exports often list only the categories that a file holds, in an order of their own."""
    new = content()
    new["categories"] = [{"id": 1, "name": "car"}, {"id": 3, "name": "boat"}, {"id": 90, "name": "brush"}]
    path = folder / "annotations" / "instances_train2017.json"
    path.write_text(json.dumps(new))
    train, evaluation = opened(folder)
    assert train.class_names == evaluation.class_names == ("car", "boat", "brush")
    image = torch.zeros(3, 16, 24, dtype=torch.uint8)
    assert train.labels.decode(train.rows.label(0), image, 0).classes.tolist() == [2, 1]
    assert evaluation.labels.decode(evaluation.rows.label(0), image, 0).classes.tolist() == [2, 0]


def test_a_category_that_the_training_split_lacks_is_an_error(folder):
    changed(folder, lambda new: new["categories"][0].update(name="comb"))
    with pytest.raises(DataError, match=r"\(train\) and .*\(val\) name different classes: .*lacks 'brush'"):
        opened(folder)


def test_other_folders_are_none_of_these(folder):
    assert set(coco_splits(folder)) == {"train", "val"}
    (folder / "train2017").rename(folder / "images")
    assert set(coco_splits(folder)) == {"val"}
    assert coco_splits(folder / "images") is None
    (folder / "val2017").rename(folder / "data")
    assert coco_splits(folder) is None  # a Parquet data set that brings its JSON along


def test_ids_stay_those_of_coco(folder):
    table = load_coco(folder / "annotations" / "instances_train2017.json", folder / "train2017")
    assert table["image_id"][:] == [70, 9] and table[0]["objects"]["category_id"] == [90, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(image_id=5), "annotation 1 has the image_id 5"),
        (lambda c: c["annotations"][1].update(category_id=4), r"annotation 2 \(image a.png\) has the category_id 4"),
        (lambda c: c["images"].append(c["images"][0]), "two images have the same id"),
        (lambda c: c["categories"].append({"id": 3, "name": "again"}), "two categories have the same id"),
        (lambda c: c["images"][1].update(file_name="c.png"), "lists 1 images that are not in .* first c.png"),
        (lambda c: c["categories"].append({"id": 4, "name": "car"}), "two categories have the same name"),
        (lambda c: c.update(images=[], annotations=[]), "lists no image"),
        (lambda c: c.pop("categories"), "is not a COCO annotation"),
        (lambda c: c.update(annotations=None), "is not a COCO annotation"),
        (lambda c: c["annotations"][0].pop("bbox"), r"the annotation 1 \(image a.png\) has the bbox None"),
        (lambda c: c["annotations"][0].update(bbox="abc"), r"annotation 1 \(image a.png\) has the bbox 'abc'"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r"annotation 1 .* bbox \[1, 2, 3\]; a box is four",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, None, 4]), r"annotation 1 .* bbox \[1, 2, None, 4\]"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, math.nan, 4]), r"annotation 1 .* bbox \[1, 2, nan, 4\]"),
        (lambda c: c["annotations"][0].update(segmentation=[[2, 2, 10, 2, 10, 8, 2]]), "annotation 1 .*of 7 numbers"),
        (lambda c: c["annotations"][0].update(segmentation=[2, 2, 10, 2, 10, 8]), "annotation 1 .*not a list of polyg"),
        (lambda c: c["annotations"][0].update(segmentation=[["a", 2] * 4]), "annotation 1 .*not a finite number"),
        (
            lambda c: c["annotations"][0].update(segmentation=[]),
            r"annotation 1 .* which is not a mask",
        ),
        (
            lambda c: c["annotations"][1]["segmentation"].update(counts=[1, 2]),
            "annotation 2 .*of 3 pixels, its size",
        ),
        (lambda c: c["annotations"][1].pop("category_id"), "annotation 2 .* has the category_id None"),
        (lambda c: c["annotations"][1].update(category_id=[3]), r"annotation 2 .* has the category_id \[3\]"),
        (lambda c: c["annotations"][1].update(area="big"), "annotation 2 .* has the area 'big'"),
        (lambda c: c["images"][0].pop("file_name"), "is not a COCO annotation.*KeyError: 'file_name'"),
    ],
)
def test_what_contradicts_itself_is_refused(folder, change, message):
    with pytest.raises(DataError, match=message):
        load_coco(*changed(folder, change))


def test_compressed_and_uncompressed_rle_are_one(folder):
    mask = np.zeros((16, 24), np.uint8, order="F")
    mask[0:5, 0:3] = mask[9:, 20:] = 1
    encoded = rle.encode(mask)
    path = changed(
        folder, lambda c: c["annotations"][1].update(segmentation={**encoded, "counts": encoded["counts"].decode()})
    )
    found = load_coco(*path)[0]["objects"]["rle"][1]
    assert rle.frPyObjects(found, 16, 24) == encoded


def test_tables_in_pieces_are_whole(folder, monkeypatch):
    path = folder / "annotations" / "instances_train2017.json", folder / "train2017"
    whole = load_coco(*path)
    monkeypatch.setattr("hf_mae_robust.finetuning.detection.coco.CHUNK", 1)
    pieces = load_coco(*path)
    assert pieces.features == whole.features and pieces["objects"][:] == whole["objects"][:]
    assert pieces["image_id"][:] == [70, 9]


def test_what_is_no_json_is_refused(folder):
    path = folder / "annotations" / "instances_train2017.json"
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        load_coco(path, folder / "train2017")
    with pytest.raises(DataError, match="cannot be read"):
        load_coco(folder / "nothing.json", folder / "train2017")
