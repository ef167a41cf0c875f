"""Local folders of image files: what is taken for what, what is said, and what is refused."""

import os
import shutil
import sys
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_mae_robust.data.folders import read_folder
from hf_mae_robust.data.layouts import split_of
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from hf_mae_robust.finetuning.segmentation.maps import find_maps
from tests.helpers import photos

PICTURES = photos(4)


def write(root: Path, *paths: str) -> Path:
    """Photos; a semantic map where the folder or the name says so."""
    for number, path in enumerate(paths):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        is_map = file.suffix == ".png"
        Image.fromarray(np.full((16, 16), number % 3, np.uint8) if is_map else PICTURES[number % 4]).save(file)
    return root


def each(folders: str, names: str = "0.jpg 1.jpg 2.jpg") -> list[str]:
    return [f"{folder}/{name}" for folder in folders.split() for name in names.split()]


def opened(root: Path, **options):
    return open_splits(DataLocation(str(root), **options))


def rows(source) -> list[str]:
    return [source.rows[i]["path"] for i in range(source.num_rows)]


def sizes(root: Path) -> tuple[dict[str, int], tuple[str, ...] | None]:
    folder = read_folder(str(root))
    return {name: len(split.images) for name, split in folder.splits.items()}, folder.class_names


LAYOUTS = {
    "flat": (["a.jpg", "b.jpg"], {"train": 2}, None),
    "classes": (each("cat dog"), {"train": 6}, ("cat", "dog")),
    "a class called train": (each("car plane ship train"), {"train": 12}, ("car", "plane", "ship", "train")),
    "a class called test": (each("car plane test"), {"train": 9}, ("car", "plane", "test")),
    "splits in any case": (each("Train VAL"), {"train": 3, "validation": 3}, None),
    "splits and classes": (
        each("train/cat train/dog valid/cat valid/dog"),
        {"train": 6, "validation": 6},
        ("cat", "dog"),
    ),
    "years": (each("train2017 val2017"), {"train": 3, "validation": 3}, None),
    "a class called train in a split": (each("train/train train/car"), {"train": 6}, ("car", "train")),
    "ImageNet": (
        [*each("ILSVRC/Data/CLS-LOC/train/n01 ILSVRC/Data/CLS-LOC/train/n02"), *each("ILSVRC/Data/CLS-LOC/val")],
        {"train": 6, "validation": 3},
        ("n01", "n02"),
    ),
    "splits within classes": (each("cat/train cat/test dog/train dog/test"), {"train": 6, "test": 6}, ("cat", "dog")),
    "YOLO": (each("images/train images/val"), {"train": 3, "validation": 3}, None),
    "a split of another name with the same classes": (
        each("train/cat train/dog holdout/cat holdout/dog"),
        {"train": 6, "holdout": 6},
        ("cat", "dog"),
    ),
    "numbered photos": (["image_1.jpg", "image_2.jpg", "img_1.jpg"], {"train": 3}, None),
    "nested classes": ([*each("train/cat train/dog/puppy")], {"train": 6}, ("cat", "dog")),
    "file names of splits among others": (["train_1.jpg", "test_1.jpg", "c.jpg"], {"train": 3}, None),
    "file names of splits": (["train_1.jpg", "train_2.jpg", "test_1.jpg"], {"train": 2, "test": 1}, None),
    "endings in any case": (["a.JPG", "b.Jpeg", "c.jpe", "d.WebP"], {"train": 4}, None),
    "classes called mask": (each("with_mask without_mask"), {"train": 6}, ("with_mask", "without_mask")),
    "mask and another class": (each("mask face"), {"train": 6}, ("face", "mask")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_image_is_in_a_split(tmp_path, layout):
    paths, expected, classes = LAYOUTS[layout]
    assert sizes(write(tmp_path, *paths)) == (expected, classes)


MAP_LAYOUTS = {
    "images and masks": (each("images"), each("masks", "0.png 1.png 2.png")),
    "Images and Labels": (each("Images"), each("Labels", "0.png 1.png 2.png")),
    "maps in a folder of the images": (["0.jpg", "1.jpg"], each("mask", "0.png 1.png")),
    "ADE20K": (
        each("images/training images/validation"),
        each("annotations/training annotations/validation", "0.png 1.png 2.png"),
    ),
    "VOC": (each("JPEGImages"), each("SegmentationClass", "0.png 1.png 2.png")),
    "CamVid": (each("train val"), each("trainannot valannot", "0.png 1.png 2.png")),
    "Carvana": (each("train"), each("train_masks", "0_mask.png 1_mask.png 2_mask.png")),
    "splits outside": (each("train/images val/images"), each("train/masks val/masks", "0.png 1.png 2.png")),
    "Cityscapes": (
        each("leftImg8bit/train/ulm leftImg8bit/val/bonn", "a_leftImg8bit.jpg b_leftImg8bit.jpg"),
        each("gtFine/train/ulm gtFine/val/bonn", "a_gtFine_labelIds.png b_gtFine_labelIds.png"),
    ),
    "names": (["0.jpg", "1.jpg"], ["0_mask.png", "1_mask.png"]),
    "DeepGlobe": (["0_sat.jpg", "1_sat.jpg"], ["0_mask.png", "1_mask.png"]),
    "starts of names": (["image_0.jpg", "image_1.jpg"], ["mask_0.png", "mask_1.png"]),
    "folders and starts of names": (["images/img0.jpg", "images/img1.jpg"], ["masks/mask0.png", "masks/mask1.png"]),
    "endings": (["0.jpg", "1.jpg"], ["0.png", "1.png"]),
    "folders that say nothing": (each("A"), each("B", "0.png 1.png 2.png")),
}


@pytest.mark.parametrize("layout", MAP_LAYOUTS)
def test_maps_are_no_images_to_train_on(tmp_path, layout, capsys):
    images, maps = MAP_LAYOUTS[layout]
    write(tmp_path, *images, *maps)
    train, evaluation = opened(tmp_path)
    found = rows(train) + (rows(evaluation) if evaluation is not None else [])
    assert sorted(found) == sorted(str(tmp_path / path) for path in images)
    assert f"{len(maps)} files such as" in capsys.readouterr().out
    folder = read_folder(str(tmp_path))
    assert sorted(folder.pairs.maps.values()) == sorted(maps)
    table = folder.tables(False)["train"]()
    assert isinstance(table.features["annotation"], datasets.Image) and table[0]["annotation"].size == (16, 16)


def test_of_several_maps_the_numbers_of_classes_are_taken(tmp_path):
    images = each("leftImg8bit/train/ulm", "a_leftImg8bit.jpg b_leftImg8bit.jpg")
    kinds = ("color", "instanceIds", "labelIds", "labelTrainIds")
    maps = [f"gtFine/train/ulm/{name}_gtFine_{kind}.png" for name in "ab" for kind in kinds]
    folder = read_folder(str(write(tmp_path, *images, *maps)))
    assert sorted(folder.pairs.maps.values()) == [f"gtFine/train/ulm/{name}_gtFine_labelTrainIds.png" for name in "ab"]
    assert len(folder.pairs.others) == 6


def test_maps_that_belong_to_no_image_and_folders_of_maps_stop_the_run(tmp_path):
    write(tmp_path / "city", *each("images"), *each("masks", "x.png y.png"))
    with pytest.raises(DataError, match=r"masks/x.png.*no image is called so.*--allow_unused_files"):
        opened(tmp_path / "city")
    assert opened(tmp_path / "city", allow_unused_files=True)[0].num_rows == 3
    with pytest.raises(DataError, match="holds semantic maps, not images"):
        opened(tmp_path / "city" / "masks")


def test_links_are_followed_and_loops_are_not(tmp_path, capsys):
    write(tmp_path / "set/train", *each("cat"))
    write(tmp_path / "elsewhere", *each("fox"))
    (tmp_path / "set/train/fox").symlink_to(tmp_path / "elsewhere/fox")
    (tmp_path / "set/train/cat/again").symlink_to(tmp_path / "set")
    (tmp_path / "set/train/cat/3.jpg").symlink_to(tmp_path / "set/train/cat/0.jpg")
    train, _ = opened(tmp_path / "set", label_column_name="auto")
    assert train.num_rows == 7 and train.class_names == ("cat", "fox")
    assert "train/cat/again" in capsys.readouterr().out


def test_more_than_one_in_a_hundred_left_out_stops_the_run(tmp_path, capsys):
    root = write(tmp_path / "set", *(f"{i}.jpg" for i in range(99)))
    (root / "a.heic").write_bytes(b"")
    assert opened(root)[0].num_rows == 99
    assert "pip install pillow-heif" in capsys.readouterr().out
    (root / "b.SVG").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"2 of 101 image files would be left out.*or convert them to PNG.*--allow_unused_files"
    ):
        opened(root)
    assert opened(root, allow_unused_files=True)[0].num_rows == 99


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse such names")
def test_names_that_are_not_utf_8_are_left_out_and_named(tmp_path, capsys):
    """As archives of Windows unpack them. Arrow's strings cannot hold them."""
    root = write(tmp_path / "set", *(f"cat/{i}.jpg" for i in range(99)))
    for name in (b"cat/M\xfcller.jpg", b"cat/M\xfcller.txt"):
        shutil.copy(root / "cat" / "0.jpg", root / os.fsdecode(name))
    assert opened(root)[0].num_rows == 99
    assert r"left out: 1 (cat/M\xfcller.jpg): names that are not UTF-8" in capsys.readouterr().out
    (root / "cat").rename(root / os.fsdecode(b"Katz\xe4"))
    with pytest.raises(DataError, match=r"100 image files are not UTF-8, first Katz\\xe4/0.jpg. Rename them"):
        opened(root)
    write(root, "dog/0.jpg")
    with pytest.raises(DataError, match=r"100 of 101 .* have names that are not UTF-8. Rename them"):
        opened(root)
    assert opened(root, allow_unused_files=True)[0].num_rows == 1


def test_a_folder_that_no_split_uses_stops_the_run_unless_it_is_chosen(tmp_path):
    root = write(tmp_path, *each("train test unlabeled"))
    with pytest.raises(DataError, match="3 of 9 image files.*unlabeled.*--train_split_name"):
        opened(root)
    train, _ = open_splits(DataLocation(str(root)), "unlabeled")
    assert train.num_rows == 3 and train.split == "unlabeled"


def test_broken_links_and_closed_folders_are_named(tmp_path, monkeypatch):
    root = write(tmp_path / "set", *each("cat dog"))
    (root / "cat/9.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="cat/9.jpg.*links to files that are not there"):
        opened(root)
    (root / "cat/9.jpg").unlink()
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match="dog may not be read"):
        opened(root)


def test_images_without_an_ending_are_read_and_other_files_are_named(tmp_path, capsys):
    root = write(tmp_path, "a.jpg", "labels/b.jpg")
    (root / "a.jpg").rename(root / "a")
    (root / "b.txt").write_text("0 .5 .5 .2 .2")
    assert opened(root)[0].num_rows == 2
    assert "1 .txt (YOLO" in capsys.readouterr().out


def test_what_a_run_wrote_is_not_read_by_the_next(tmp_path):
    root = write(tmp_path, "0.jpg", "1.jpg")
    before = opened(root)[0].fingerprint
    write(root / "out", "loss.jpg", "checkpoint-1/x.jpg")
    (root / "out/trainer_state.json").write_text("{}")
    write(root / "stopped/checkpoint-20", "x.jpg")
    assert opened(root)[0].fingerprint == before


def test_metadata_beside_class_folders_does_not_hide_the_classes(tmp_path):
    root = write(tmp_path, *each("train/cat train/dog"))
    (root / "train/metadata.csv").write_text("file_name,width\ncat/0.jpg,16\n")
    assert opened(root, label_column_name="auto")[0].class_names == ("cat", "dog")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("splits", [("",), ("train/", "test/")])
def test_rows_and_fingerprints_are_those_of_datasets(tmp_path, splits, streaming):
    """Where `datasets` takes everything, in its order."""
    names = [f"{c}/{n}.jpg" for c in ("cat", "Dog", "cat-2", "cat 3") for n in ("10", "9", "b", "B")]
    root = write(tmp_path / "set", *(split + name for split in splits for name in names))
    loaded = datasets.load_dataset(str(root), split="train", streaming=streaming)
    loaded = loaded.cast_column("image", datasets.Image(decode=False))
    train, _ = opened(root, dataset_streaming=streaming, label_column_name="auto")
    assert train.class_names == tuple(loaded.features["label"].names)
    if streaming:
        ours, theirs = (part.shuffle(seed=3, buffer_size=4) for part in (train.rows, loaded))
        found = [(row["image"]["path"], row["label"]) for row in ours]
        assert found == [(row["image"]["path"], row["label"]) for row in theirs]
    else:
        assert rows(train) == [value["path"] for value in loaded["image"]]
        assert [train.rows.label(i) for i in range(len(train))] == loaded["label"][:]


@pytest.mark.parametrize(
    ("name", "split"),
    [("Train", "train"), ("train_images", "train"), ("val2017", "validation"), ("dev", "validation"),
     ("Testing", "test"), ("trains", None), ("train_cat", None), ("unlabeled", None), ("train_test", None)],
)  # fmt: skip
def test_names_of_splits(name, split):
    assert split_of(name) == split


def test_links_to_classes_that_are_gone_stop_the_run(tmp_path):
    root = write(tmp_path / "set", *each("train/cat train/dog", " ".join(f"{i}.jpg" for i in range(60))))
    (root / "train/fox").symlink_to(tmp_path / "gone")
    (root / "train/cat/self").symlink_to(root / "train/cat/self")
    with pytest.raises(DataError, match=r"train/cat/self.*link to a folder or file that is not there, maybe a class"):
        opened(root)
    assert opened(root, allow_unused_files=True)[0].num_rows == 120


@pytest.mark.parametrize(
    ("files", "message"),
    [(["a.HEIC", "b.heic"], "none of its 2 image files.*first a.HEIC: pip install pillow-heif"), ([], "gone.jpg")],
)
def test_folders_without_an_image_that_can_be_read(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    if not files:
        (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    write(tmp_path, "a.jpg")

    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match="may not be read"):
        opened(tmp_path)


def test_an_image_beside_the_class_folders_is_named(tmp_path, capsys):
    opened(write(tmp_path, "cat/a.jpg", "dog/b.jpg", "stray.jpg"))
    assert "no classes in train: 1 image lies beside the folders (stray.jpg)" in capsys.readouterr().out


def test_images_without_a_map_need_to_be_meant(tmp_path, capsys):
    root = write(tmp_path, *each("images"), "masks/0.png", "masks/1.png")
    find = partial(find_maps, id2label="3")
    options = {"find_labels": lambda features, wanted, description, _: find(features, wanted, description)}
    with pytest.raises(DataError, match="1 of 3 images have no map of their name, first images/2.*--allow"):
        open_splits(DataLocation(str(root), label_column_name="auto"), **options)
    location = DataLocation(str(root), label_column_name="auto", allow_unused_files=True)
    assert open_splits(location, **options)[0].num_rows == 2
    assert "left out: 1 images without a map" in capsys.readouterr().out


def test_what_a_run_wrote_beside_the_images_themselves_stops_the_next(tmp_path):
    root = write(tmp_path, "0.jpg", "loss.jpg")
    (root / "run.json").write_text("{}")
    with pytest.raises(DataError, match="beside them what a training run wrote"):
        opened(root)


def test_classes_that_only_validation_has_are_said(tmp_path, capsys):
    write(tmp_path, *each("train/cat train/dog val/dog val/Cat"))
    assert opened(tmp_path, label_column_name="auto")[0].class_names == ("Cat", "cat", "dog")
    assert "1 of 3 classes are in validation, but have no image in train: Cat" in capsys.readouterr().out


def test_a_split_that_is_not_there_is_named_with_the_flag(tmp_path):
    with pytest.raises(DataError, match="no split 'train'. It has: test. Choose one with --train_split_name"):
        opened(write(tmp_path, *each("test")))
