"""Pascal VOC's lists say which image is in which split."""

import pytest

from hf_mae_robust.errors import DataError
from tests.data.test_folders import each, opened, rows, write

NUMBERS = "0.jpg 1.jpg 2.jpg 3.jpg"


def voc(root, kind="Segmentation", place="", **lists):
    maps = each(f"{place}SegmentationClass", NUMBERS.replace("jpg", "png")) if kind == "Segmentation" else []
    write(root, *each(f"{place}JPEGImages", NUMBERS), *maps)
    folder = root / place / "ImageSets" / kind
    folder.mkdir(parents=True)
    for name, text in lists.items():
        (folder / f"{name}.txt").write_text(text)
    return root


@pytest.mark.parametrize("place", ["", "VOCdevkit/VOC2012/"])
@pytest.mark.parametrize("kind", ["Segmentation", "Main"])
def test_splits_are_those_of_the_lists(tmp_path, capsys, kind, place):
    """Lists of single classes (cat_train.txt) say no splits."""
    root = voc(tmp_path, kind, place, train="2\n0\n", val="1\n3\n", trainval="0\n1\n2\n3\n", cat_train="1 1\n3 -1\n")
    train, evaluation = opened(root)
    assert [path[-5:] for path in rows(train)] == ["2.jpg", "0.jpg"]
    assert [path[-5:] for path in rows(evaluation)] == ["1.jpg", "3.jpg"]
    assert f"the splits are those of ImageSets/{kind}" in capsys.readouterr().out


def test_trainval_is_the_training_split_where_there_is_no_other(tmp_path):
    train, evaluation = opened(voc(tmp_path, trainval="0 1\n1 1\n2 1\n", test="3\n"))
    assert train.num_rows == 3 and evaluation.num_rows == 1


def test_images_in_no_list_stop_the_run(tmp_path):
    root = voc(tmp_path, train="0\n1\n", val="2\n")
    with pytest.raises(DataError, match=r"1 of 4 image files would be left out, first JPEGImages/3.jpg.*in no list"):
        opened(root)
    assert opened(root, allow_unused_files=True)[0].num_rows == 2
    assert opened(root / "JPEGImages")[0].num_rows == 4


def test_lists_of_other_files_are_not_followed(tmp_path):
    assert opened(voc(tmp_path, "Main", train="somewhere_else\n"))[0].num_rows == 4
