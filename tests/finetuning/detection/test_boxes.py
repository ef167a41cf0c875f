"""Boxes of tables against masks and images: what contradicts is refused at the start, with its row. Those of JSON files
are in test_layouts.py."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from faster_coco_eval.core import mask as rle
from PIL import Image as PILImage

from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from hf_mae_robust.finetuning.detection.objects import find_objects

FEATURES = Features(
    {
        "image": Image(),
        "objects": {
            "bbox": List(List(Value("float64"))),
            "category": List(ClassLabel(names=["thing"])),
            "segmentation": List(List(List(Value("float64")))),
        },
    }
)
X, Y, WIDTH, HEIGHT = 8.0, 6.0, 20.0, 16.0
OUTLINE = [[X, Y, X + WIDTH, Y, X + WIDTH, Y + HEIGHT, X, Y + HEIGHT]]
CORNERS = [X, Y, X + WIDTH, Y + HEIGHT]
NEGATIVE = [X + WIDTH, Y + HEIGHT, -WIDTH, -HEIGHT]


def write(folder, boxes):
    """A row for each box, all with the same mask."""
    image = PILImage.new("RGB", (64, 48), "red")
    rows = [{"image": image, "objects": {"bbox": [box], "category": [0], "segmentation": [OUTLINE]}} for box in boxes]
    Dataset.from_list(rows, features=FEATURES).to_parquet(folder / "train.parquet")
    return folder


def opened(folder, streaming=False):
    location = DataLocation(str(folder), dataset_streaming=streaming, label_column_name="auto")
    return open_splits(location, find_labels=lambda features, wanted, name, _: find_objects(features, wanted, name))[0]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("box", "message"),
    [
        (CORNERS, r"row 0 has the box.*x0, y0, x1, y1 = 8, 6, 28, 22; 4 of 4 .*seem to be corners"),
        ([X / 64, Y / 48, WIDTH / 64, HEIGHT / 48], "row 0 .*shares of the image"),
        (NEGATIVE, "row 0 .*a negative size, as 4 of 4"),
        ([X + WIDTH / 2, Y + HEIGHT / 2, WIDTH, HEIGHT], "row 0 .*its mask reaches over"),
        ([X + 640, Y, WIDTH, HEIGHT], "row 0 has the box"),
    ],
)
def test_boxes_that_contradict_masks_and_images(tmp_path, box, message, streaming):
    with pytest.raises(DataError, match=message):
        opened(write(tmp_path, [box] * 4), streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_good_boxes_are_taken(tmp_path, streaming, capsys):
    assert opened(write(tmp_path, [[X, Y, WIDTH, HEIGHT]] * 4), streaming).num_rows == 4
    assert "boxes" not in capsys.readouterr().out


def test_one_row_of_many_is_found_and_named(tmp_path):
    good = [X, Y, WIDTH, HEIGHT]
    with pytest.raises(DataError, match=r"object 0 of row 157 has the box .*a negative size, as 1 of 200"):
        opened(write(tmp_path, [*[good] * 157, NEGATIVE, *[good] * 42]))


def test_a_few_boxes_beside_their_masks_and_without_area_are_counted(tmp_path, capsys):
    good = [X, Y, WIDTH, HEIGHT]
    opened(write(tmp_path, [*[good] * 18, [X, Y, 4, 4], [X, Y, 0, 4]]))
    said = capsys.readouterr().out
    assert "1 of 20 boxes have no area" in said and "2 of 20 boxes differ from their masks" in said


def test_masks_of_run_lengths_are_compared_too(tmp_path):
    drawn = np.zeros((48, 64), np.uint8, order="F")
    drawn[6:22, 8:28] = 1
    encoded = rle.encode(drawn)
    features = Features({"image": Image(), "objects": dict(FEATURES["objects"])})
    del features["objects"]["segmentation"]
    features["objects"]["rle"] = List({"size": List(Value("int64")), "counts": Value("string")})
    mask = {"size": [48, 64], "counts": encoded["counts"].decode()}
    row = {"image": PILImage.new("RGB", (64, 48)), "objects": {"bbox": [CORNERS], "category": [0], "rle": [mask]}}
    Dataset.from_list([row] * 3, features=features).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="seem to be corners"):
        opened(tmp_path)


def test_no_object_at_all_is_said(tmp_path, capsys):
    rows = [{"image": PILImage.new("RGB", (64, 48)), "objects": {name: [] for name in FEATURES["objects"]}}] * 2
    Dataset.from_list(rows, features=FEATURES).to_parquet(tmp_path / "train.parquet")
    assert opened(tmp_path).num_rows == 2
    assert "Warning" in (said := capsys.readouterr().out) and "no row has an object" in said
