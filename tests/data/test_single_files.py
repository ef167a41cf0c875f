"""A file as --dataset_name is read, or the message says what to give."""

import re
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from tests.helpers import image_table, photos


@pytest.fixture
def folder(tmp_path):
    for i, pixels in enumerate(photos(4)):
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.jpg")
    return tmp_path


def opened(path, **options):
    return open_splits(DataLocation(str(path), **options))[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_one_parquet_file(folder, streaming):
    image_table(6).to_parquet(folder / "some.parquet")
    source = opened(folder / "some.parquet", dataset_streaming=streaming, label_column_name="auto")
    assert source.num_rows == 6 and source.class_names == ("a", "b") and source.split == "train"


def write_tar(folder, ending=None, contents=()):
    """A WebDataset of the photos; contents: of a file of each beside it."""
    with tarfile.open(folder / "some.tar", "w") as archive:
        for path in sorted((folder / "photos").rglob("*.jpg"), key=lambda path: path.name):
            archive.add(path, path.name)
            if ending is not None:
                path.with_suffix(ending).write_text(contents[int(path.stem)])
                archive.add(path.with_suffix(ending), path.with_suffix(ending).name)
    return folder / "some.tar"


def test_a_tar_of_images(folder):
    assert opened(write_tar(folder)).num_rows == 4


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_of_a_webdataset(folder, streaming):
    """The ending cls is its convention."""
    path = write_tar(folder, ".cls", "7077")
    source = opened(path, label_column_name="auto", dataset_streaming=streaming)
    assert source.class_names == ("0", "7") and source.num_rows == 4
    assert [source.rows.label(i) for i in range(4)] == [1, 0, 1, 1]


def test_a_webdataset_without_classes_says_where_they_belong(folder):
    with pytest.raises(DataError, match=r"In a WebDataset a file beside each image, 1\.cls, holds the number of its"):
        opened(write_tar(folder, ".json", ['{"caption": [1]}'] * 4), label_column_name="auto")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", "image,label\nphotos/a/0.jpg,x\nphotos/b/1.jpg,y\n"),
        ("list.csv", "photos/a/0.jpg,x\nphotos/b/1.jpg,y\n"),
        ("list.tsv", "label\tpath\nx\tphotos/a/0.jpg\ny\tphotos/b/1.jpg\n"),
        ("list.txt", "photos/a/0.jpg x\nphotos/b/1.jpg y\n"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_lists_of_files(folder, name, text, streaming):
    (folder / name).write_text(text)
    source = opened(folder / name, dataset_streaming=streaming, label_column_name="label")
    assert [source.rows[i]["path"][-5:] for i in range(2)] == ["0.jpg", "1.jpg"]
    assert source.class_names == ("x", "y") and [source.rows.label(i) for i in range(2)] == [0, 1]


@pytest.mark.parametrize("missing", ["", "-1"])
@pytest.mark.parametrize("others", [("0", "1", "10"), ("x", "y", "z")])
def test_a_missing_label_of_a_list_is_not_a_class(folder, others, missing):
    """It renumbers no other one; of names, -1 may be one."""
    names = ["a/0.jpg", "b/1.jpg", "a/2.jpg", "b/3.jpg"]
    text = "".join(f"photos/{name},{label}\n" for name, label in zip(names, [*others, missing]))
    (folder / "list.csv").write_text(f"image,label\n{text}")
    if missing == "-1" and others[0] == "x":
        assert opened(folder / "list.csv", label_column_name="label").class_names == ("-1", *others)
        return
    expected = re.escape(f"row 3 has no label in column 'label' (classes: {', '.join(others)})")
    with pytest.raises(DataError, match=expected):
        opened(folder / "list.csv", label_column_name="label")


def test_labels_of_minus_one_and_one_are_two_classes(folder):
    names = ["a/0.jpg", "b/1.jpg", "a/2.jpg", "b/3.jpg"]
    lines = [f"photos/{name},{label}\n" for name, label in zip(names, (-1, 1, 1, -1))]
    (folder / "list.csv").write_text("image,label\n" + "".join(lines))
    assert opened(folder / "list.csv", label_column_name="label").class_names == ("-1", "1")


def test_the_column_split_of_a_list_says_the_splits(folder, capsys):
    rows = ["photos/a/0.jpg,x,train", "photos/b/1.jpg,y,Val", "photos/a/2.jpg,y,train", "photos/b/3.jpg,x,test"]
    (folder / "list.csv").write_text("\n".join(["image,label,Split", *rows]))
    train, evaluation = open_splits(DataLocation(str(folder / "list.csv"), label_column_name="label"))
    assert [source.split for source in (train, evaluation)] == ["train", "validation"]
    assert [train.rows[i]["path"][-5:] for i in range(len(train))] == ["0.jpg", "2.jpg"]
    assert evaluation.rows[0]["path"].endswith("1.jpg") and evaluation.class_names == train.class_names == ("x", "y")
    assert "the column 'Split' says the splits: train 2, validation 1, test 1" in capsys.readouterr().out


def test_a_column_split_without_names_of_splits_is_told(folder, capsys):
    (folder / "list.csv").write_text("image,split\nphotos/a/0.jpg,train\nphotos/b/1.jpg,3\n")
    assert opened(folder / "list.csv").num_rows == 2
    assert "the column 'split' holds '3', which names no split, so that all rows are taken" in capsys.readouterr().out


def test_measurements_in_a_list_are_not_classes(folder):
    (folder / "list.csv").write_text("image,score\nphotos/a/0.jpg,0.5\nphotos/b/1.jpg,1.25e1\nphotos/a/2.jpg,\n")
    with pytest.raises(DataError, match="column 'score' is of type float64, which are not class labels"):
        opened(folder / "list.csv", label_column_name="score")
    (folder / "list.csv").write_text("image,label\nphotos/a/0.jpg,1.0\nphotos/b/1.jpg,2.0\n")
    assert opened(folder / "list.csv", label_column_name="label").class_names == ("1.0", "2.0")


def test_a_list_of_paths_only(folder):
    (folder / "list.txt").write_text("photos/a/0.jpg\nphotos/b/1.jpg\n")
    assert opened(folder / "list.txt").num_rows == 2


def test_what_is_no_data_set_is_named_with_what_to_give(folder):
    shutil.make_archive(str(folder / "photos"), "zip", folder / "photos")
    (folder / "notes.doc").write_text("")
    (folder / "gone.csv").write_text("image\nnowhere.jpg\n")
    (folder / "words.csv").write_text("image\nhello\n")
    for name, message in (
        ("photos.zip", "is an archive: unpack it"),
        ("photos/a/0.jpg", "one image file: give the folder"),
        ("notes.doc", "no kind that holds images"),
        ("gone.csv", "1 of 1 files are not there, first .*nowhere.jpg"),
        ("words.csv", "no column holds paths"),
    ):
        with pytest.raises(DataError, match=message):
            opened(folder / name)


def test_an_archive_within_a_folder_is_read_or_shows_the_cause(folder):
    """datasets 4.0 reads it, 5.2 does not."""
    (folder / "zipped").mkdir()
    shutil.make_archive(str(folder / "zipped" / "train"), "zip", folder / "photos")
    try:
        source = opened(folder / "zipped")
    except DataError as error:
        assert re.search(r"train.zip cannot be read.*label.*Unpack it", str(error))
    else:
        assert source.num_rows == 4


@pytest.mark.parametrize("text", ["image,label\nphotos\\a\\0.jpg,x\n", "image;label\nphotos/a/0.jpg;x\n"])
def test_lists_as_windows_and_spreadsheets_write_them(folder, text):
    (folder / "list.csv").write_text(text)
    assert opened(folder / "list.csv").rows[0]["path"].endswith("photos/a/0.jpg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\nhttps://some.where/a.jpg,x\n", "lists addresses, first https://some.where/a.jpg"),
        ("image,label\nphotos/a/0.jpg\n", r"list.csv: row 1 has 1 value\(s\), not 2 \(image, label\)"),
    ],
)
def test_lists_that_cannot_be_read_say_why(folder, text, message):
    (folder / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        opened(folder / "list.csv")


@pytest.mark.parametrize("column", [None, "image"])
@pytest.mark.parametrize(
    ("name", "delimiter", "message"),
    [
        ("list.csv", "\t", "tabs separate its columns. .*by commas: write it with these, or call it .tsv"),
        ("list.csv", "|", "pipes .{3} separate its columns. .*by commas: write it with these"),
        ("list.tsv", ",", "commas separate its columns. .*by tabs: write it with these"),
    ],
)
def test_another_delimiter_is_named(folder, name, delimiter, message, column):
    rows = [("image", "label"), ("photos/a/0.jpg", "x"), ("photos/b/1.jpg", "y")]
    (folder / name).write_text("".join(delimiter.join(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        opened(folder / name, image_column_name=column)


def test_a_column_that_a_list_does_not_have_is_named(folder):
    (folder / "list.csv").write_text("name\nhello\n")
    with pytest.raises(DataError, match="list.csv has no column 'image' .*It has: name"):
        opened(folder / "list.csv", image_column_name="image")


@pytest.mark.parametrize(("encoding", "found"), [("utf-16", "is UTF-16"), ("latin-1", "is not UTF-8")])
def test_lists_in_another_encoding_say_which_is_wanted(folder, encoding, found):
    (folder / "list.csv").write_text("image,label\nphotos/a/0.jpg,é\n", encoding=encoding)
    with pytest.raises(DataError, match=f"list.csv {found} .*Save the list as UTF-8"):
        opened(folder / "list.csv")


@pytest.mark.parametrize("name", ["list.csv", "list.txt"])
def test_lists_of_arrays(tmp_path, name):
    arrays = np.random.default_rng(0).integers(0, 5000, (3, 5, 16, 16)).astype(np.uint16)
    for i, array in enumerate(arrays):
        np.save(tmp_path / f"{i}.npy", array)
    lines = [f"{i}.npy" for i in range(3)]
    (tmp_path / name).write_text("\n".join(lines if name.endswith("txt") else ["image", *lines]))
    source = opened(tmp_path / name)
    assert len(source) == 3 and source.stored.num_channels == 5
