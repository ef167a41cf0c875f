"""Semantic maps: the stored numbers become the right classes, whatever the format; what does not fit is named."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, Image, Value
from PIL import Image as PILImage

from hf_mae_robust.data.decoding import decode_image
from hf_mae_robust.data.labels import read_id2label
from hf_mae_robust.errors import DataError, ImageDecodingError
from hf_mae_robust.finetuning.segmentation.maps import IGNORED, SemanticMaps, find_maps, name_classes

FEATURES = Features({"image": Image(), "annotation": Image()})
NUMBERS = np.array([[0, 1, 2, 255], [2, 2, 1, 0], [0, 0, 255, 1]], dtype=np.uint8)
NOISE = np.random.default_rng(0).integers(0, 3, (200, 200), dtype=np.uint8)


def png(image: PILImage.Image | np.ndarray, kind: str = "PNG", **options) -> dict:
    file = io.BytesIO()
    (PILImage.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return {"bytes": file.getvalue(), "path": None}


def maps(count: int = 3, **settings) -> SemanticMaps:
    return find_maps(FEATURES, "auto", "set (train)", id2label=str(count), **settings)


def blank(height: int, width: int) -> torch.Tensor:
    return torch.zeros(3, height, width, dtype=torch.uint8)


def palette(numbers: np.ndarray) -> PILImage.Image:
    image = PILImage.fromarray(numbers)
    image.putpalette(np.random.default_rng(0).permutation(768).astype(np.uint8).tolist())
    assert image.mode == "P"
    return image


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(png(NUMBERS), id="gray"),
        pytest.param(png(palette(NUMBERS)), id="palette"),
        pytest.param(png(NUMBERS.astype(np.uint16)), id="16 bit"),
        pytest.param(png(NUMBERS.astype(np.int32), "TIFF"), id="32 bit"),
        pytest.param(PILImage.fromarray(NUMBERS), id="decoded already"),
    ],
)
def test_the_stored_numbers_are_the_classes(value):
    classes = maps().decode(value, blank(3, 4), 0)
    assert classes.dtype == torch.int32
    assert np.array_equal(classes, np.where(NUMBERS == 255, IGNORED, NUMBERS.astype(int)))


def test_maps_of_one_bit_and_of_large_numbers():
    drawn = np.array([[True, False], [False, True]])
    assert maps(2).decode(png(PILImage.fromarray(drawn)), blank(2, 2), 0).tolist() == [[1, 0], [0, 1]]
    large = np.array([[0, 300], [999, 65535]], dtype=np.uint16)
    found = maps(1000, ignore_index=65535).decode(png(large), blank(2, 2), 0)
    assert found.tolist() == [[0, 300], [999, IGNORED]]


def test_reduced_labels_count_from_one():
    """ADE20K: 0 is not a class, 1 the first one; as the image processors of transformers do it."""
    found = maps(150, do_reduce_labels=True)
    numbers = np.array([[0, 1, 2], [149, 150, 255]], dtype=np.uint8)
    reduced = numbers - 1  # 0 becomes 255
    expected = np.where((numbers == 0) | (numbers == 255), IGNORED, reduced.astype(int))
    assert np.array_equal(found.decode(png(numbers), blank(2, 3), 0), expected)
    assert len(found.class_names) == 150


@pytest.mark.parametrize(
    ("names", "reduce", "ignored", "expected"),
    [
        ({0: "sky", 1: "road", 2: "void"}, False, 2, (("sky", "road"), (0, 1))),
        ({0: "sky", 1: "void", 2: "road", 3: "car"}, False, 1, (("sky", "road", "car"), (0, 2, 3))),
        ({7: "road", 24: "person", 26: "car"}, False, 255, (("road", "person", "car"), (7, 24, 26))),
        ({0: "unlabeled", 1: "wall", 2: "sky"}, True, 255, (("wall", "sky"), (1, 2))),
        ({0: "wall", 1: "sky"}, True, 255, (("wall", "sky"), (1, 2))),  # the names on the Hub for ADE20K
        ({0: "background", 1: "cat", 255: "void"}, False, 255, (("background", "cat"), (0, 1))),  # Pascal VOC's
        ({0: "cat", 255: "background"}, False, 255, (("cat", "background"), (0, 255))),
        ({0: "background", 1: "cat"}, False, 255, (("background", "cat"), (0, 1))),
    ],
)
def test_classes_are_numbered_without_gaps(names, reduce, ignored, expected):
    class_names, values, ignored_values = name_classes(names, reduce, ignored)
    assert (class_names, values) == expected
    assert {255, ignored} - set(values) <= set(ignored_values) and (not reduce or 0 in ignored_values)


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        ({0: "other", 1: "wall", 2: "sky"}, {}, "'other' (0 in the maps) is learned as a class; --do_reduce_labels"),
        (
            {0: "other", 1: "wall", 2: "sky"},
            {"do_reduce_labels": True},
            "takes 0 in the maps for no class, 1 for 'wall'",
        ),
        ({0: "wall", 1: "sky"}, {"do_reduce_labels": True}, "1 for 'wall', ... and 2 for 'sky'"),
        ({0: "sky", 1: "road", 2: "void"}, {}, "'void' (2 in the maps) is learned as a class; --ignore_index 2"),
        ({0: "sky", 1: "road", 2: "void"}, {"ignore_index": 2}, None),
        ({0: "background", 1: "cat"}, {}, None),
    ],
)
def test_which_value_has_which_name_is_said(tmp_path, capsys, names, options, expected):
    (tmp_path / "id2label.json").write_text(json.dumps(names))
    find_maps(FEATURES, "auto", "set (train)", id2label=None, folder=str(tmp_path), **options)
    printed = "".join(capsys.readouterr())
    assert expected in printed if expected else "learned as a class" not in printed


def test_an_ignored_class_in_the_middle_and_gaps_are_closed():
    class_names, values, ignored = name_classes({0: "sky", 1: "void", 3: "road", 9: "car"}, False, 1)
    found = SemanticMaps("annotation", class_names, values, ignored, "set")
    numbers = np.array([[0, 1, 3, 9, 255]], dtype=np.uint8)
    assert found.decode(png(numbers), blank(1, 5), 0).tolist() == [[0, IGNORED, 1, 2, IGNORED]]


@pytest.mark.parametrize("value", [3, 254, 65000])
def test_a_number_that_is_no_class_ends_the_run(value):
    numbers = np.array([[0, 1], [2, value]], dtype=np.uint16)
    with pytest.raises(DataError) as error:
        maps().decode(png(numbers), blank(2, 2), 1234)
    for words in ("set (train)", "row 1,234", f"value {value},", "3 classes", f"--ignore_index {value}", "--id2label"):
        assert words in str(error.value)


def test_map_and_image_must_be_of_one_size():
    with pytest.raises(ImageDecodingError, match="the map has 4 x 3 pixels, the image 5 x 3") as error:
        maps().decode(png(NUMBERS), blank(3, 5), 7)
    assert error.value.kind == "mismatch" and "EXIF" not in str(error.value)


def test_a_map_of_a_turned_photo():
    """Photos are decoded upright; a map is expected to be as it is shown, too."""
    exif = PILImage.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo = decode_image(png(PILImage.new("RGB", (3, 4)), "JPEG", exif=exif))
    assert photo.shape == (3, 3, 4)
    assert maps().decode(png(NUMBERS), photo, 0).shape == (3, 4)
    assert maps().decode(png(PILImage.fromarray(NUMBERS.T.copy()), exif=exif), photo, 0).shape == (3, 4)
    with pytest.raises(ImageDecodingError, match="EXIF orientation") as error:
        maps().decode(png(NUMBERS.T.copy()), photo, 0)
    assert error.value.kind == "mismatch"


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        pytest.param({"bytes": png(NOISE)["bytes"][:2000], "path": None}, "truncated", id="truncated"),
        pytest.param(png(np.zeros((3, 4, 3), np.uint8)), "unsupported", id="colours"),
        pytest.param({"bytes": b"no image at all", "path": None}, "not_an_image", id="no image"),
        pytest.param({"bytes": None, "path": "nowhere.png"}, "missing_file", id="no file"),
        pytest.param({"bytes": b"", "path": None}, "empty", id="no bytes"),
    ],
)
def test_maps_that_cannot_be_read_count_as_bad_images(value, kind):
    with pytest.raises(ImageDecodingError, match="Row 5") as error:
        maps().decode(value, blank(3, 4), 5)
    assert error.value.kind == kind


def test_a_map_of_colours_is_named_as_such():
    with pytest.raises(ImageDecodingError, match="its mode is RGB: colours, not numbers of classes"):
        maps().decode(png(np.zeros((3, 4, 3), np.uint8)), blank(3, 4), 0)


def test_a_missing_map_is_an_error_with_its_row():
    value = png(NUMBERS)
    assert maps().check([value, value]) == [value, value]
    with pytest.raises(DataError, match=r"row 1,001 has no map in column 'annotation'"):
        maps().check([value, None], 1000)
    with pytest.raises(DataError, match="an image has no map"):
        maps().check([None], None)


def test_fillers_are_ignored():
    assert maps().filler().shape == (16, 16) and maps().filler().unique().tolist() == [IGNORED]


def test_the_other_split_has_the_same_classes():
    other = maps().of_split(FEATURES, "set (validation)")
    assert (other.column, other.class_names, other.description) == (
        "annotation",
        maps().class_names,
        "set (validation)",
    )
    with pytest.raises(DataError, match="has no column 'annotation'"):
        maps().of_split(Features({"image": Image()}), "set (validation)")


# ---- columns ----


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("image", "annotation"), "annotation"),
        (("image", "mask", "depth"), "mask"),
        (("image", "depth", "label"), "label"),
        (("image", "regions"), "regions"),
        (("photo", "segmentation_map"), "segmentation_map"),
    ],
)
def test_the_column_of_maps_is_found(columns, expected):
    features = Features({**{name: Image() for name in columns}, "name": Value("string")})
    assert find_maps(features, "auto", "set", id2label="3").column == expected


@pytest.mark.parametrize(
    ("features", "wanted", "message"),
    [
        ({"image": Image(), "left": Image(), "right": Image()}, "auto", "2 columns could be semantic maps"),
        ({"image": Image()}, "auto", "no column looks like semantic maps"),
        ({"image": Image(), "mask": Image()}, "masks", "no column 'masks'"),
        ({"image": Image(), "label": ClassLabel(names=["a", "b"])}, "label", "'label' is not a column of images"),
    ],
)
def test_a_column_that_cannot_be_found_is_an_error(features, wanted, message):
    with pytest.raises(DataError, match=message) as error:
        find_maps(Features(features), wanted, "set", id2label="3")
    assert "--label_column_name" in str(error.value) and "It has: image" in str(error.value)


def test_unknown_columns_are_an_error():
    with pytest.raises(DataError, match="does not say which columns it has"):
        find_maps(None, "auto", "set", id2label="3")


# ---- names of the classes ----


def test_names_lie_beside_the_data_or_are_given(tmp_path):
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "sky", "1": "road", "2": "void"}))
    found = find_maps(FEATURES, "auto", "set", id2label=None, folder=str(tmp_path), ignore_index=2)
    assert found.class_names == ("sky", "road")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"0": "a", "1": "b"}))
    assert find_maps(FEATURES, "auto", "set", id2label=str(other), folder=str(tmp_path)).class_names == ("a", "b")
    assert find_maps(FEATURES, "auto", "set", id2label="2", folder=str(tmp_path)).class_names == ("class_0", "class_1")


@pytest.mark.parametrize("folder", [None, "user/set", "nowhere"])
def test_classes_without_names_are_an_error(folder):
    with pytest.raises(DataError, match=r"does not name its classes: give --id2label FILE .* or --id2label 150"):
        find_maps(FEATURES, "auto", "set", id2label=None, folder=folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "must hold"),
        ('{"sky": 0}', "must hold"),
        ("{", "must hold"),
        ("{}", "go from 0 to 65,535"),
        ('{"-1": "sky", "0": "road"}', "go from 0 to 65,535"),
    ],
)
def test_a_file_that_names_no_classes_is_an_error(tmp_path, content, message):
    path = tmp_path / "names.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_id2label(str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("source", ["nowhere.json", "0", "70000"])
def test_a_source_of_no_names_is_an_error(source):
    with pytest.raises(ValueError, match=f"--id2label {source}"):
        read_id2label(source)


@pytest.mark.parametrize(
    ("names", "message"),
    [({0: "sky", 1: "void"}, "two classes at least; --id2label leaves 1"), ({0: "a", 2: "a"}, "of the name 'a'")],
)
def test_classes_that_cannot_be_told_apart_are_an_error(names, message):
    with pytest.raises(ValueError, match=message):
        name_classes(names, False, 1)


def source_of_maps(*numbers: np.ndarray):
    rows = [png(value) for value in numbers]
    return SimpleNamespace(
        num_rows=len(rows),
        row_groups=(len(rows),),
        seekable_at_no_cost=True,
        rows=SimpleNamespace(label=lambda row: rows[row]),
    )


BINARY = np.array([[0, 255], [255, 0]], dtype=np.uint8)


def test_a_value_that_is_named_is_a_class():
    assert name_classes({0: "background", 255: "polyp"}, False, 255) == (("background", "polyp"), (0, 255), ())
    assert 255 in name_classes(read_id2label("301"), False, 255)[1]
    assert name_classes({0: "background", 1: "a", 255: "edge"}, False, 255)[2] == ()


def test_two_classes_of_maps_with_0_and_255(capsys):
    found = maps(2).examined(source_of_maps(BINARY))
    assert found.decode(png(BINARY), blank(2, 2), 0).tolist() == [[0, 1], [1, 0]]
    assert "255 is taken for class_1" in capsys.readouterr().out
    usual = np.array([[0, 255], [1, 0]], dtype=np.uint8)  # here 255 is what is ignored
    assert maps(2).examined(source_of_maps(usual)).decode(png(usual), blank(2, 2), 0).tolist() == [[0, -1], [1, 0]]


def test_what_255_stands_for_is_the_same_in_both_splits():
    """A small validation split may hold 0 and 255 alone, where the training split has class 1 and ignores 255."""
    usual = np.array([[0, 255], [1, 0]], dtype=np.uint8)
    for numbers, expected in ((usual, [[0, -1], [-1, 0]]), (BINARY, [[0, 1], [1, 0]])):
        train = maps(2).examined(source_of_maps(numbers))
        evaluation = train.of_split(FEATURES, "set (validation)").examined(source_of_maps(BINARY))
        assert evaluation.values == train.values
        assert evaluation.decode(png(BINARY), blank(2, 2), 0).tolist() == expected


def test_classes_without_a_pixel_and_ignored_pixels_are_said(capsys):
    maps(3).examined(source_of_maps(np.array([[0, 255], [255, 255]], dtype=np.uint8)))
    said = capsys.readouterr().out
    assert "75% of the pixels are ignored" in said and "2 of 3 classes have no pixel: class_1, class_2" in said
    with pytest.raises(DataError, match="every pixel is ignored"):
        maps(3).examined(source_of_maps(np.full((2, 2), 255, np.uint8)))


def test_which_maps_were_looked_at_is_said(capsys):
    maps(3).examined(source_of_maps(*[BINARY // 255] * 5))
    assert "in all maps 1 of 3 classes have no pixel: class_2" in capsys.readouterr().out
    large = np.zeros((1024, 1024), np.uint8)
    large[0, 0] = 1
    rows = [png(large)] * 100
    source = source_of_maps()
    source.num_rows, source.row_groups, source.rows = 100, (100,), SimpleNamespace(label=lambda row: rows[row])
    maps(3).examined(source)
    assert "in the 64 maps looked at, from all over 100, 1 of 3 classes" in capsys.readouterr().out
    source.seekable_at_no_cost = False
    maps(3).examined(source)
    assert "in the first 8 maps, and no others were looked at, 1 of 3 classes" in capsys.readouterr().out


def test_maps_at_the_end_of_a_table_are_looked_at_too(capsys):
    last = np.array([[0, 2]], dtype=np.uint8)
    maps(3).examined(source_of_maps(*[BINARY // 255] * 99, last))
    assert "have no pixel" not in capsys.readouterr().out


def test_maps_of_colours_are_refused_before_the_training():
    with pytest.raises(DataError, match="none of the 2 maps looked at.*its mode is RGB.*one channel"):
        maps(2).examined(source_of_maps(*[np.zeros((2, 2, 3), np.uint8)] * 2))


def test_maps_of_one_bit_whose_names_say_255_are_refused_before_the_training():
    one_bit = png(PILImage.fromarray(BINARY).convert("1"))
    source = source_of_maps(BINARY)
    found = SemanticMaps("label", ("background", "polyp"), (0, 255), (), "set (train)")
    assert found.examined(source) is found
    source.rows.label = lambda row: one_bit
    with pytest.raises(DataError, match=r"value 1, .* \(Pillow's mode 1\), .* read as 0 and 1.*name 1 in"):
        found.examined(source)
    with pytest.raises(DataError, match="row 0 has the value 1, .* leave a value out with --ignore_index 1"):
        found.examined(source_of_maps(np.array([[0, 1]], dtype=np.uint8)))
