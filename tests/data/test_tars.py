"""Images in tars that the webdataset package wrote, as sources with random access, epochs and labels."""

import io
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import webdataset
from datasets import ClassLabel, Features
from PIL import Image

from hf_mae_robust.data.loaders import sequential_loader, training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import training_transform
from hf_mae_robust.data.source import DataLocation, alone
from hf_mae_robust.data.stamps import stamp_of
from hf_mae_robust.data.tar_files import TarFiles
from hf_mae_robust.data.tar_table import index_tars, open_tars
from hf_mae_robust.data.tars import GROUP, MAX_OPEN, tar_source
from hf_mae_robust.errors import DataError
from hf_mae_robust.finetuning.segmentation.maps import find_maps
from tests.helpers import photos


def identity(image):
    return image


def encoded(pixels, kind="png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_tars(folder, splits, tars=2, **others):
    """`SPLIT-00000N.tar`; others: what a sample holds -> function of its number."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(splits.items()):
        pictures = [encoded(pixels) for pixels in photos(count, seed=seed)]
        pattern = f"file:{folder}/{split}-%06d.tar"
        with webdataset.ShardWriter(pattern, maxcount=-(-count // tars), verbose=0) as writer:
            for i, picture in enumerate(pictures):
                writer.write({"__key__": f"{i:04d}", "png": picture} | {kind: of(i) for kind, of in others.items()})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tars(
        tmp_path_factory.mktemp("tars"),
        {"train": 60, "val": 14},
        cls=lambda i: 7 * (i % 3),
        json=lambda i: {"label": "xyz"[i % 3], "width": 1.5, "tags": ["a"], "id": i},
    )


def opened(name, **options):
    return open_splits(DataLocation(str(name), **options))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_tars_holds_what_the_webdataset_package_reads(folder, streaming):
    train, validation = opened(folder, dataset_streaming=streaming, label_column_name="auto")
    assert (train.num_rows, validation.num_rows, train.class_names) == (60, 14, ("0", "7", "14"))
    assert (train.split, validation.split) == ("train", "validation")
    assert train.seekable_at_no_cost is not streaming
    tars = [str(path) for path in sorted(folder.glob("train-*"))]
    expected = list(webdataset.WebDataset(tars, shardshuffle=False))
    for row in (59, 0, 30, 29):
        assert train.rows[row]["bytes"] == expected[row]["png"]
        assert train.rows[row]["path"] == f"train-00000{row // 30}.tar/{expected[row]['__key__']}.png"
        assert train.rows.label(row) == int(expected[row]["cls"]) // 7
    assert not [path for path in folder.iterdir() if path.suffix != ".tar"]


@pytest.mark.parametrize("column", ["cls", "json.label"])
def test_streamed_and_map_style_epochs_hold_every_image_once_in_an_order_that_the_seed_fixes(folder, column):
    orders = {}
    for streaming in (False, True):
        train, _ = opened(folder, dataset_streaming=streaming, label_column_name=column)
        plan = {"batch_size": 5, "seed": 1, "rank": 0, "world_size": 1, "buffer_size": 16}
        loader = training_loader(train, identity, 3, **plan)
        epochs = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            batches = list(loader)
            rows = np.concatenate([batch["row"].numpy() for batch in batches])
            assert sorted(rows) == list(range(60))
            assert all((batch["labels"] == batch["row"] % 3).all() for batch in batches)
            epochs.append(rows.tolist())
        assert epochs[0] != epochs[1]
        orders[streaming] = epochs
    assert orders[True] != orders[False]
    assert (
        sum(len(batch["row"]) for batch in sequential_loader(train, identity, 3, batch_size=7, rank=0, world_size=1))
        == 60
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_an_epoch_that_begins_in_its_middle_has_the_same_rest(folder, streaming):
    plan = {"batch_size": 4, "seed": 1, "rank": 1, "world_size": 2, "buffer_size": 16}

    def epoch(skipped):
        train, _ = opened(folder, dataset_streaming=streaming)
        loader = training_loader(train, training_transform(8), 3, **plan)
        loader.set_epoch(3)
        loader.batch_sampler.skip_next(skipped)
        keys = [keys for keys in loader.batch_sampler if keys]
        return [loader.dataset.__getitems__(each) for each in keys]

    whole, rest = epoch(0), epoch(5)
    assert len(whole) == 7 and len(rest) == 2
    for batch, again in zip(whole[5:], rest):
        assert [item["row"] for item in batch] == [item["row"] for item in again]
        assert all((one["pixel_values"] == other["pixel_values"]).all() for one, other in zip(batch, again))


def test_workers_read_the_same(folder):
    train, _ = opened(folder)
    assert train.rows[3] == pickle.loads(pickle.dumps(train.rows))[3]
    plan = {"batch_size": 10, "seed": 1, "rank": 0, "world_size": 1, "buffer_size": 16}
    alone = [batch["pixel_values"] for batch in training_loader(train, identity, 3, **plan)]
    workers = [batch["pixel_values"] for batch in training_loader(train, identity, 3, num_workers=2, **plan)]
    assert all((one == other).all() for one, other in zip(alone, workers, strict=True))


def test_streamed_images_come_in_groups_that_are_read_ahead(tmp_path, monkeypatch):
    write_tars(tmp_path, {"train": 2 * GROUP + 4}, tars=2)
    train, _ = opened(tmp_path, dataset_streaming=True)
    assert list(train.row_groups) == [GROUP, 2] * 2
    ahead = []
    train.rows._ahead.clear()  # a look at some images came first
    monkeypatch.setattr(train.rows.reader, "will_need", lambda *place: ahead.append(place))
    for row in (GROUP + 5, GROUP + 4, 1, 2 * GROUP + 3):
        assert train.rows[row]["path"].endswith(f"{row:04d}.png")
    assert [tar for tar, _, _ in ahead] == [1, 0, 1]
    content = (tmp_path / "train-000000.tar").read_bytes()
    _, start, size = ahead[1]
    assert content[start:].startswith(b"\x89PNG") and content[start : start + size].count(b"IEND") == GROUP


def test_braces_a_list_and_one_tar(folder, tmp_path):
    whole, _ = opened(folder)
    (tmp_path / "list.txt").write_text("".join(f"{folder}/train-00000{i}.tar\n" for i in range(2)))
    for name in (f"{folder}/train-{{000000..000001}}.tar", tmp_path / "list.txt"):
        train, validation = opened(name)
        assert validation is None and train.fingerprint == whole.fingerprint
        assert stamp_of(train) == stamp_of(whole)
    one, _ = opened(folder / "train-000001.tar")
    assert one.num_rows == 30 and one.rows[0]["path"] == "train-000001.tar/0030.png"
    streamed, _ = opened(f"{folder}/train-{{000000..000001}}.tar", dataset_streaming=True)
    assert streamed.stored.is_8_bit and streamed.fingerprint == whole.fingerprint


def test_images_are_held_out(folder):
    parts = open_splits(DataLocation(str(folder), label_column_name="auto"), "train", None, train_val_split=0.25)
    paths = [[part.rows[i]["path"] for i in range(len(part))] for part in parts]
    assert [len(part) for part in paths] == [45, 15] and len(set(paths[0] + paths[1])) == 60
    assert [parts[1].rows.label(i) for i in range(15)] == [int(path[-8:-4]) % 3 for path in paths[1]]
    assert len({part.fingerprint for part in parts}) == 2
    with pytest.raises(DataError, match="needs a data set that is not streamed"):
        open_splits(DataLocation(str(folder), dataset_streaming=True), "train", None, train_val_split=0.25)


def test_the_data_change_with_what_they_hold_and_not_with_where_they_lie(tmp_path):
    first = write_tars(tmp_path / "a", {"train": 6}, cls=lambda i: i % 2)
    same = write_tars(tmp_path / "b", {"train": 6}, cls=lambda i: i % 2)
    other = write_tars(tmp_path / "c", {"train": 6}, cls=lambda i: 1 - i % 2)
    prints = [opened(each, label_column_name="auto")[0].fingerprint for each in (first, same, other)]
    assert prints[0] == prints[1] != prints[2]
    train, _ = opened(first)
    stamp = stamp_of(train)
    other, _ = opened(first)
    write_tars(first, {"train": 7})  # of the same size, because tars are filled up
    with pytest.raises(DataError, match=r"train-000000.tar does not hold the member at byte .* that it held"):
        other.rows[2]
    write_tars(first, {"train": 60})
    with pytest.raises(DataError, match=r"train-000000.tar has .* bytes, and had .* when the data set was opened"):
        pickle.loads(pickle.dumps(train)).rows[0]
    assert stamp_of(train) != stamp


def test_names_of_classes(tmp_path, capsys):
    texts = write_tars(tmp_path / "texts", {"train": 6}, txt=lambda i: "cat dog"[4 * (i % 2) :][:3])
    assert opened(texts, label_column_name="txt")[0].class_names == ("cat", "dog")
    numbers = write_tars(tmp_path / "numbers", {"train": 6, "val": 6}, cls=lambda i: i % 2)
    card = {"config_name": "default", "data_files": [{"split": "train", "path": "train-*"}]}
    info = {"features": [{"name": "cls", "dtype": {"class_label": {"names": {"0": "cat", "1": "dog", "2": "owl"}}}}]}
    (numbers / "README.md").write_text(f"---\nconfigs: [{json.dumps(card)}]\ndataset_info: {json.dumps(info)}\n---\n")
    assert opened(numbers, label_column_name="auto")[0].class_names == ("cat", "dog", "owl")
    assert "nothing to tell apart" not in capsys.readouterr().out
    write_tars(numbers, {"train": 6}, cls=lambda i: 1)
    opened(numbers, label_column_name="auto")
    assert "all 6 images are of the class 'dog'" in capsys.readouterr().out


def test_labels_that_cannot_be_read_are_named(tmp_path):
    def sample(i):
        return {"label": "a" if i < 4 else 4, "other": [i]}

    tars = write_tars(tmp_path / "some", {"train": 8}, tars=1, cls=lambda i: b"1" if i < 6 else b"one", json=sample)
    with pytest.raises(DataError, match=r"0006.cls of .*train-000000.tar holds no value for column 'cls' \(ValueError"):
        opened(tars, label_column_name="auto")
    with pytest.raises(DataError, match="has no column 'json.label'"):  # of several types
        opened(tars, label_column_name="json.label")
    none = write_tars(tmp_path / "none", {"train": 4}, json=lambda i: {"caption": "a"})
    with pytest.raises(DataError, match=r"a file beside each image, 1\.cls, holds the number of its class"):
        opened(none, label_column_name="auto")
    gaps = tmp_path / "gaps.tar"
    with webdataset.TarWriter(str(gaps)) as writer:
        for i, pixels in enumerate(photos(4)):
            writer.write({"__key__": f"{i}", "png": encoded(pixels)} | ({} if i == 2 else {"cls": i % 2}))
    with pytest.raises(DataError, match="row 2 has no label in column 'cls'"):
        opened(gaps, label_column_name="auto")


def test_images_of_several_endings_are_one_column_and_two_in_a_sample_are_two(tmp_path, capsys):
    pixels = photos(4)
    with webdataset.TarWriter(str(tmp_path / "mixed.tar")) as writer:
        for i, kind in enumerate(("jpg", "png", "webp", "tiff")):
            writer.write({"__key__": f"{i}", kind: encoded(pixels[i], {"jpg": "jpeg"}.get(kind, kind)), "txt": "a"})
    mixed, _ = opened(tmp_path / "mixed.tar")
    assert [mixed.rows[i]["path"] for i in range(4)] == [
        f"mixed.tar/{i}" for i in ("0.jpg", "1.png", "2.webp", "3.tiff")
    ]
    with webdataset.TarWriter(str(tmp_path / "texts.tar")) as writer:
        writer.write({"__key__": "0", "txt": "a"})
    with pytest.raises(DataError, match="no member of its tars is an image"):
        opened(tmp_path / "texts.tar")
    with pytest.raises(DataError, match=r"3 of 4 samples have no image \(column 'jpg'\), first that of 1\.png"):
        opened(tmp_path / "mixed.tar", image_column_name="jpg")
    some, _ = opened(tmp_path / "mixed.tar", image_column_name="jpg", allow_unused_files=True)
    assert len(some) == 1 and "left out: 3 of 4 samples have no image" in capsys.readouterr().out
    with webdataset.TarWriter(str(tmp_path / "two.tar")) as writer:
        for i in range(4):
            writer.write({"__key__": f"{i}", "jpg": encoded(pixels[i], "jpeg"), "png": encoded(pixels[0])})
    with pytest.raises(DataError, match="has 2 image columns: choose one with --image_column_name"):
        opened(tmp_path / "two.tar")
    assert opened(tmp_path / "two.tar", image_column_name="png")[0].rows[3]["bytes"] == encoded(pixels[0])


def test_arrays_are_images_where_nothing_else_is_one(tmp_path):
    arrays = np.random.default_rng(0).integers(0, 5000, (3, 5, 16, 16)).astype(np.uint16)
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i, array in enumerate(arrays):
            writer.write({"__key__": f"{i}", "npy": array})
    for streaming in (False, True):
        train, _ = opened(tmp_path / "a.tar", dataset_streaming=streaming)
        assert len(train) == 3 and (train.stored.num_channels, train.stored.dtype) == (5, "uint16")


def test_tars_without_samples_say_what_they_hold(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "n01440764", "tar": b"images"})
    with pytest.raises(DataError, match="no member of its tars is an image"):
        opened(tmp_path / "a.tar")
    with webdataset.TarWriter(str(tmp_path / "b.tar")) as writer:
        writer.write({"__key__": ".hidden", "jpg": b"image"})
    with pytest.raises(
        DataError, match=r"holds no sample of a WebDataset: .* left out: 1 members \(.hidden.jpg\) are hidden"
    ):
        opened(tmp_path / "b.tar")


def test_more_tars_than_files_may_be_open(tmp_path):
    write_tars(tmp_path, {"train": MAX_OPEN + 6}, tars=MAX_OPEN + 6)
    train, _ = opened(tmp_path)
    for row in (*range(len(train)), 0):
        assert train.rows[row]["bytes"].startswith(b"\x89PNG")
    assert len(train.rows.reader.files) == MAX_OPEN


def test_one_process_reads_the_indexes_and_the_others_are_told(folder, tmp_path, monkeypatch):
    told = []

    def first(function):
        told.append(function())
        return pickle.loads(pickle.dumps(told[-1]))

    location = DataLocation(str(folder), dataset_streaming=True, label_column_name="auto")
    source, _ = open_splits(location, eval_split=None, share=first)
    values = iter(told)
    monkeypatch.setattr("hf_mae_robust.data.tar_table.make_index", None)
    monkeypatch.setattr("hf_mae_robust.data.tar_table.load_index", None)
    again, _ = open_splits(location, eval_split=None, share=lambda function: next(values))
    assert again.fingerprint == source.fingerprint and again.rows[7] == source.rows[7]
    other = write_tars(tmp_path, {"train": 6}, tars=3)
    values = iter(told)
    with pytest.raises(DataError, match=r"another process sees other tars \(2, here 3\)"):
        open_splits(replace(location, dataset_name=str(other)), eval_split=None, share=lambda function: next(values))


def test_semantic_maps_beside_images(tmp_path, capsys):
    """A map is a member whose name says so; a sample without one is left out."""
    classes = np.arange(256, dtype=np.uint8).reshape(16, 16) % 3
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i, pixels in enumerate(photos(5)):
            sample = {"__key__": f"{i}", "jpg": encoded(pixels, "jpeg"), "seg.png": encoded(classes)}
            writer.write({kind: value for kind, value in sample.items() if i != 2 or kind != "seg.png"})
    location = DataLocation(str(tmp_path / "a.tar"), label_column_name="auto")

    def find(features, wanted, description, read_column):
        return find_maps(features, wanted, description, id2label="3")

    with pytest.raises(DataError, match=r"1 of 5 samples have no map \(column 'seg.png'\), first that of 2.jpg"):
        open_splits(location, find_labels=find)
    train, _ = open_splits(replace(location, allow_unused_files=True), find_labels=find)
    assert len(train) == 4 and train.labels.column == "seg.png"
    assert train.rows[2]["path"] == "a.tar/3.jpg" and train.rows.label(2)["path"] == "a.tar/3.seg.png"
    assert capsys.readouterr().out.count("left out: 1 of 5 samples have no map") == 1


def test_names_that_a_card_gives_are_types(folder):
    given = Features({"cls": ClassLabel(names=["a", "b"]), "other": ClassLabel(names=["c"])})
    files = TarFiles([str(folder / "train-000000.tar")], given)
    found = index_tars(files, (), None).features
    assert found["cls"].names == ["a", "b"] and "other" not in found
    assert set(found) == {"__key__", "image", "cls", "json.label", "json.id"}
    table = open_tars(files, (), None, "set", False, alone)
    assert table.read_column("__key__")[:2] == ["0000", "0001"]
    assert tar_source(table, "image", False, "set", None, False).num_rows == 30


def test_tars_of_the_hub_are_read_from_the_cache_and_indexed_once(folder):
    """tests/hub/test_many_readers.py fetches them from a server."""

    class Cache:
        opened: list[str] = []
        has_room = True

        def open_by(self, url, open_path):
            self.opened.append(url)
            return open_path(str(folder / url.rpartition("/")[2])) if self.has_room else None

    urls = [f"hf://datasets/org/photos@{'1' * 40}/train-00000{i}.tar" for i in range(2)]
    table = open_tars(TarFiles(urls), (), Cache(), "set", False, alone)
    source = tar_source(table, "image", True, "set", None, False)
    local, _ = opened(folder, dataset_streaming=True)
    assert source.fingerprint == local.fingerprint and source.rows[59] == local.rows[59]
    Cache.opened.clear()
    found = index_tars(TarFiles(urls[1:]), (), Cache())
    assert len(found.members) == 90 and set(Cache.opened) == {urls[1]}  # for the first texts alone
    Cache.has_room = False
    with pytest.raises(DataError, match="does not fit into --stream_cache, and tars have to lie on the disk"):
        index_tars(TarFiles([f"hf://datasets/org/photos@{'2' * 40}/train-000000.tar"]), (), Cache())
