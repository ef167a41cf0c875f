import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from faster_coco_eval.core import mask as rle
from PIL import Image as PILImage

from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError, ImageDecodingError
from hf_mae_robust.finetuning.detection.objects import Objects, find_objects

IMAGE = torch.zeros(3, 20, 30, dtype=torch.uint8)
FIELDS = {
    "bbox": List(List(Value("float64"))),
    "category": List(ClassLabel(names=["cat", "dog"])),
    "segmentation": List(List(List(Value("float64")))),
}


def labels_of(**fields):
    return find_objects(Features({"image": Image(), "objects": fields or FIELDS}), "auto", "photos (train)")


def square(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def value(**changes):
    """Two objects, as a struct of lists."""
    return {
        "bbox": [[2.0, 3.0, 5.0, 5.0], [10.0, 4.0, 8.0, 8.0]],
        "category": [1, 0],
        "segmentation": [square(2, 3, 5), square(10, 4, 8)],
        **changes,
    }


def test_polygons_become_masks_and_boxes_corners():
    objects = labels_of().decode(value(), IMAGE, 0)
    assert objects.boxes.tolist() == [[2, 3, 7, 8], [10, 4, 18, 12]]
    assert objects.classes.tolist() == [1, 0] and not objects.crowds.any()
    expected = np.zeros((20, 30, 2), np.uint8)
    expected[3:8, 2:7, 0] = expected[4:12, 10:18, 1] = 1
    assert np.array_equal(rle.decode(list(objects.masks)), expected)
    assert objects.areas.tolist() == [25, 64]


def test_a_list_of_structs_is_the_same():
    columns = value()
    structs = [dict(zip(columns, row)) for row in zip(*columns.values())]
    ours, other = (labels_of().decode(form, IMAGE, 0) for form in (columns, structs))
    assert np.array_equal(ours.boxes, other.boxes) and ours.masks == other.masks


def test_uncompressed_and_compressed_rle_are_read_in_either_place():
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[5:9, 6:20] = 1
    flat = mask.flatten(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends, len(flat)]).tolist()
    compressed = rle.encode(mask)
    for encoded in (
        {"size": [20, 30], "counts": counts},
        compressed,
        {**compressed, "counts": compressed["counts"].decode()},
    ):
        for place in ("segmentation", "rle"):
            found = {
                "bbox": [6, 5, 14, 4],
                "category": 0,
                "iscrowd": 1,
                "segmentation": [],
                "rle": None,
                place: encoded,
            }
            objects = labels_of().decode([found], IMAGE, 0)
            assert objects.crowds.tolist() == [True]
            assert np.array_equal(rle.decode(list(objects.masks))[..., 0], mask)


def test_an_image_without_objects_is_kept():
    for nothing in ([], {"bbox": [], "category": [], "segmentation": []}):
        assert len(labels_of().decode(nothing, IMAGE, 0)) == 0
    assert len(labels_of().filler()) == 0


def test_boxes_without_area_are_left_out_and_others_cut_to_the_image():
    boxes = [[5.0, 5.0, 0.0, 4.0], [28.0, 18.0, 3.0, 3.0]]
    objects = labels_of().decode(value(bbox=boxes), IMAGE, 0)
    assert objects.boxes.tolist() == [[28, 18, 30, 20]] and objects.classes.tolist() == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category": [1, 7]}, "object 1 of row 3 has the category 7; there are the categories 0 to 1"),
        ({"category": [None, 0]}, "object 0 of row 3 has the category None"),
        ({"segmentation": [square(2, 3, 5), []]}, "object 1 of row 3 has no mask"),
        ({"bbox": [[1, 2, 3], [1, 2, 3, 4]]}, r"the box \[1, 2, 3\]"),
        ({"bbox": [[1, 2, float("nan"), 4], [1, 2, 3, 4]]}, "not finite"),
        ({"category": ["cat", 0]}, "object 0 of row 3 has the category 'cat'"),
        ({"category": [1]}, r"row 3, column 'objects': .* differ in length \(bbox 2, category 1, segmentation 2\)"),
        ({"segmentation": [square(2, 3, 5), [1.0, 2.0]]}, "object 1 of row 3 has a mask that is neither polygons"),
        ({"segmentation": [[[1, 2, 3, 4, 5, 6, 7]], []]}, "object 0 .* a polygon of 7 numbers"),
        # Drawn, this would take all memory.
        ({"segmentation": [[[1, 2, 3, 4, 5, float("nan")]], []]}, "object 0 .* a polygon of 6 numbers"),
        ({"segmentation": [{"counts": [600]}, []]}, "object 0 .*KeyError: 'size'"),
        ({"segmentation": [{"size": [20, 30], "counts": [10, 5]}, []]}, "object 0 .* counts of 15 pixels"),
        ({"segmentation": [{"size": [20, 30], "counts": [10, 5000]}, []]}, "object 0 of row 3 has a mask"),
        ({"segmentation": [{"size": [20, 30], "counts": "zzzz~~~~"}, []]}, "object 0 of row 3 has a mask"),
    ],
)
def test_what_is_wrong_ends_the_run_with_its_place(changes, message):
    with pytest.raises(DataError, match=message):
        labels_of().decode(value(**changes), IMAGE, 3)


def test_annotations_of_another_size_count_as_a_bad_image():
    with pytest.raises(ImageDecodingError, match=r"box \[100.0") as error:
        labels_of().decode(value(bbox=[[100.0, 3.0, 5.0, 5.0], [1.0, 1.0, 2.0, 2.0]]), IMAGE, 3)
    assert error.value.kind == "mismatch"
    other = {"bbox": [1, 1, 5, 5], "category": 0, "rle": rle.encode(np.ones((8, 8), np.uint8, order="F"))}
    with pytest.raises(ImageDecodingError, match="mask of 8 x 8 pixels, and the image 30 x 20"):
        labels_of().decode([other], IMAGE, 3)


def test_a_polygon_far_outside_counts_as_a_bad_image():
    with pytest.raises(ImageDecodingError, match="a polygon that reaches to 5000, and the image 30 x 20"):
        labels_of().decode(value(segmentation=[[[1, 2, 5000, 4, 5, 6]], square(10, 4, 8)]), IMAGE, 3)


def test_areas_that_are_no_numbers_are_those_of_the_masks():
    areas = labels_of().decode(value(area=[float("nan"), None]), IMAGE, 0).areas
    assert areas.tolist() == [25, 64] and labels_of().decode(value(area=[7.5, 8]), IMAGE, 0).areas.tolist() == [7.5, 8]


def tables(**names):
    """A split of one image for each list of names, with the categories 1 and 0 of it."""
    row = {"image": PILImage.new("RGB", (30, 20)), "objects": value()}
    found = DatasetDict()
    for split, of_split in names.items():
        fields = {**FIELDS, "category": List(ClassLabel(names=of_split))}
        found[split] = Dataset.from_list([row], features=Features({"image": Image(), "objects": fields}))
    return found


def opened(folder):
    return open_splits(
        DataLocation(str(folder), label_column_name="auto"),
        find_labels=lambda features, wanted, description, _: find_objects(features, wanted, description),
    )


def test_categories_of_another_split_are_those_of_the_same_name(tmp_path):
    tables(train=["cat", "dog", "bird"], validation=["cat", "bird"]).save_to_disk(tmp_path)
    sources = opened(tmp_path)
    found = [source.labels.decode(source.rows.label(0), IMAGE, 0).classes.tolist() for source in sources]
    assert found == [[1, 0], [2, 0]] and sources[1].class_names == ("cat", "dog", "bird")
    with pytest.raises(DataError, match="category 2; there are the categories 0 to 1"):
        sources[1].labels.decode(value(category=[2, 0]), IMAGE, 0)


def test_a_category_that_the_training_split_lacks_is_an_error(tmp_path):
    tables(train=["cat", "dog"], validation=["cat", "bird"]).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=r"\(train\) and .*\(validation\) name different classes: .*lacks 'bird'"):
        opened(tmp_path)


def test_parquet_files_of_different_categories_are_refused(tmp_path):
    for split, table in tables(train=["cat", "dog", "bird"], validation=["cat", "bird"]).items():
        table.to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match="in column 'objects.category': class 1 is 'dog' and 'bird'"):
        opened(tmp_path)


def test_a_category_that_names_two_classes_is_an_error():
    plain = Features({"objects": {**FIELDS, "category": List(Value("int64"))}})
    labels = find_objects(plain, "auto", "photos (train)", ["cat", "dog", "dog"])
    with pytest.raises(DataError, match="2 classes of the name 'dog'"):
        labels.of_split(Features({"objects": FIELDS}), "photos (validation)")
    assert labels.of_split(plain, "photos (validation)").class_names == ("cat", "dog", "dog")


def test_null_is_an_error_that_names_the_row():
    with pytest.raises(DataError, match="row 12 has null"):
        labels_of().check([[], None], 11)


def test_columns_are_chosen_by_what_they_hold():
    features = Features({"image": Image(), "things": FIELDS, "other": Value("int64")})
    labels = find_objects(features, "auto", "photos")
    assert labels.column == "things" and labels.class_names == ("cat", "dog")
    plain = Features({"image": Image(), "things": {**FIELDS, "category": List(Value("int64"))}})
    assert find_objects(plain, "things", "photos", ["a", "b"]).class_names == ("a", "b")
    with pytest.raises(DataError, match="numbers without names: give --id2label"):
        find_objects(plain, "things", "photos")
    with pytest.raises(DataError, match="no column 'nothing'"):
        find_objects(features, "nothing", "photos")
    without = {name: feature for name, feature in FIELDS.items() if name != "segmentation"}
    with pytest.raises(DataError, match="have no masks"):
        find_objects(Features({"objects": without}), "auto", "photos")
    with pytest.raises(DataError, match="0 columns of objects"):
        find_objects(Features({"image": Image()}), "auto", "photos")


def test_choosing_keeps_what_belongs_together():
    objects = labels_of().decode(value(), IMAGE, 0)
    second = objects.choose(np.array([False, True]))
    assert second.boxes.tolist() == [[10, 4, 18, 12]] and second.masks == objects.masks[1:]
    assert len(Objects.none((4, 4)).choose(np.zeros(0, dtype=bool))) == 0


def test_a_box_of_a_negative_size_is_named():
    with pytest.raises(DataError, match="object 1 of row 3 has the box .*of a negative size"):
        labels_of().decode(value(bbox=[[2.0, 3, 5, 5], [18.0, 12, -8, -8]]), IMAGE, 3)
