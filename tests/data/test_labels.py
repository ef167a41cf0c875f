"""Class labels: which column, which classes, and that every image keeps its own."""

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value

from hf_mae_robust.data.dataset import ImageDataset
from hf_mae_robust.data.labels import find_labels
from hf_mae_robust.data.loaders import sequential_loader, training_loader
from hf_mae_robust.data.opening import open_splits, source_of
from hf_mae_robust.data.source import DataLocation, load_head_of_stream
from hf_mae_robust.errors import DataError
from tests.helpers import photos, write_parquet_set

NAMES = ["cat", "dog", "emu"]


def identity(image):
    return image


def flat(value: int) -> np.ndarray:
    """A picture of one colour, by which its row is known again."""
    return np.full((4, 4, 3), value, dtype=np.uint8)


def table(labels: list, feature=None, column: str = "label", **more) -> Dataset:
    """Row i is a picture of the colour i."""
    features = {"image": Image(), column: feature or Value("int64"), **{name: kind for name, (kind, _) in more.items()}}
    columns = {"image": [flat(i) for i in range(len(labels))], column: labels}
    columns |= {name: values for name, (_, values) in more.items()}
    return Dataset.from_dict(columns, features=Features(features))


def opened(folder, train: Dataset, test: Dataset | None = None, label: str | None = "auto", **options):
    tables = {"train": train} if test is None else {"train": train, "test": test}
    DatasetDict(tables).save_to_disk(folder)
    return open_splits(DataLocation(str(folder), label_column_name=label), **options)


def labels_of(source) -> list[int]:
    return [source.rows.label(row) for row in range(source.num_rows)]


def pairs_of(batches) -> list[tuple[int, int]]:
    """(colour, label) of every image."""
    return [
        (int(image.max()), int(label))
        for batch in batches
        for image, label in zip(batch["pixel_values"], batch["labels"])
    ]


def parquet(folder, split_to_table: dict[str, Dataset], row_group: int = 3):
    (folder / "data").mkdir(parents=True)
    for split, data in split_to_table.items():
        data.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", batch_size=row_group)
    return folder


# ---- which column ----


def test_the_column_called_label_is_preferred(tmp_path):
    data = table([2, 0, 1], ClassLabel(names=NAMES), fine=(ClassLabel(names=["x", "y"]), [0, 1, 1]))
    train, none = opened(tmp_path, data)
    assert none is None and labels_of(train) == [2, 0, 1] and train.class_names == tuple(NAMES)


def test_the_only_column_of_classes_is_found_by_its_type(tmp_path):
    data = table([1, 0], ClassLabel(names=["x", "y"]), "kind", number=(Value("int64"), [5, 6]))
    assert labels_of(opened(tmp_path, data)[0]) == [1, 0]


@pytest.mark.parametrize("second", [ClassLabel(names=["x"]), None])
def test_where_no_column_can_be_chosen_the_error_lists_them(tmp_path, second):
    first = ClassLabel(names=["x"]) if second is not None else Value("string")
    values = [0, 0] if second is not None else ["a", "b"]
    data = table(values, first, "kind", other=(second or Value("float32"), [0, 0]))
    found = "2 columns of type ClassLabel" if second is not None else "no column of labels"
    with pytest.raises(DataError, match=rf"{found}.*--label_column_name.*image.*kind.*other"):
        opened(tmp_path, data)


def test_a_named_column_wins(tmp_path):
    data = table([1, 0], ClassLabel(names=["x", "y"]), fine=(Value("string"), ["q", "p"]))
    train, _ = opened(tmp_path, data, label="fine")
    assert labels_of(train) == [1, 0] and train.class_names == ("p", "q")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("weight", "'weight' is of type float32, which are not class labels.*image.*weight"),
        ("image", "'image' is of type Image, which are not class labels"),
        ("labels", "no column 'labels'.*image.*label.*weight"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_without_classes_is_refused(tmp_path, wanted, message, streaming):
    data = table([0, 0], ClassLabel(names=["x"]), weight=(Value("float32"), [0.5, 1.0]))
    folder = parquet(tmp_path, {"train": data})
    with pytest.raises(DataError, match=message):
        open_splits(DataLocation(str(folder), label_column_name=wanted, dataset_streaming=streaming))


# ---- which classes ----


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("int64", [30, 7, 7, 100]),
        ("uint8", [3, 0, 9, 3]),
        ("string", ["dog", "cat", "dog", "an emu"]),
        ("large_string", ["b", "a", "a", "b"]),
        ("bool", [True, False, True, True]),
    ],
)
def test_the_different_values_of_a_plain_column_sorted_are_the_classes(tmp_path, kind, values):
    train, _ = opened(tmp_path, table(values, Value(kind)))
    unique, inverse = np.unique(values, return_inverse=True)
    assert labels_of(train) == inverse.tolist()
    assert train.class_names == tuple(str(value) for value in unique)


def test_the_evaluation_split_gets_the_classes_of_training(tmp_path):
    """On its own, "emu" would be class 0 of the second split."""
    train, test = opened(
        tmp_path, table(["dog", "emu", "cat"], Value("string")), table(["emu", "dog"], Value("string"))
    )
    assert test.class_names == train.class_names == ("cat", "dog", "emu")
    assert labels_of(train) == [1, 2, 0] and labels_of(test) == [2, 1]


def test_a_value_that_training_does_not_know_is_an_error(tmp_path):
    train, test = table(["cat", "dog"], Value("string")), table(["dog", "cat", "emu"], Value("string"))
    with pytest.raises(DataError, match=r"\(test\): row 2 has the label 'emu' in column 'label' \(classes: cat, dog\)"):
        opened(tmp_path, train, test)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (["cat", "emu", "dog"], "class 1 is 'dog' and 'emu'"),
        (["cat", "dog"], "3 and 2 classes"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_splits_that_name_other_classes_are_an_error(tmp_path, other, difference, streaming):
    data = DatasetDict(train=table([0], ClassLabel(names=NAMES)), test=table([1], ClassLabel(names=other)))
    if streaming:
        labels = find_labels(data["train"].features, "auto", "here (train)", None)
        with pytest.raises(DataError, match=rf"here \(train\) and here \(test\) name different classes: {difference}"):
            labels.of_split(data["test"].features, "here (test)")
    else:
        with pytest.raises(DataError, match=rf"\(train\) and .*\(test\) name different classes: {difference}"):
            opened(tmp_path, *data.values())


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (
            Dataset.from_dict({"image": [flat(0)]}, features=Features({"image": Image()})),
            r"\(test\) has no column 'label'",
        ),
        (table(["cat"], Value("string")), r"\(test\): column 'label' is string, in .*\(train\) ClassLabel"),
    ],
)
def test_a_split_without_the_labels_of_the_other_is_an_error(tmp_path, test, message):
    with pytest.raises(DataError, match=message):
        opened(tmp_path, table([0], ClassLabel(names=NAMES)), test)


# ---- missing labels ----


@pytest.mark.parametrize("feature", [ClassLabel(names=["x", "y"]), Value("int64")])
@pytest.mark.parametrize("missing", [None, -1])
def test_a_missing_label_is_an_error_that_names_the_row(tmp_path, feature, missing):
    with pytest.raises(DataError, match=r"row 3 has no label in column 'label' \(classes: "):
        opened(tmp_path, table([0, 1, 1, missing, missing], feature))


def test_a_missing_string_is_an_error_that_names_the_row(tmp_path):
    with pytest.raises(DataError, match="row 1 has no label in column 'label'"):
        opened(tmp_path, table(["a", None], Value("string")))


def test_a_column_of_nothing_is_an_error(tmp_path):
    with pytest.raises(DataError, match="'label' holds no label"):
        opened(tmp_path, table([-1, None], Value("int64")))


def test_a_missing_label_in_streamed_parquet_is_an_error_when_it_is_read(tmp_path):
    folder = parquet(tmp_path, {"train": table([0, 1, 0, 1, -1, 0], ClassLabel(names=["x", "y"]))})
    train, _ = open_splits(DataLocation(str(folder), dataset_streaming=True, label_column_name="auto"))
    assert train.rows.label(1) == 1
    with pytest.raises(DataError, match="row 4 has no label"):
        train.rows.label(3)  # in the same row group


# ---- streams ----


def test_streamed_parquet_gives_every_row_the_label_of_the_table(tmp_path):
    truth = [i * 7 % 3 for i in range(20)]
    folder = parquet(tmp_path, {"train": table(truth, ClassLabel(names=NAMES))})
    for streaming in (False, True):
        train, _ = open_splits(DataLocation(str(folder), dataset_streaming=streaming, label_column_name="auto"))
        assert train.class_names == tuple(NAMES)
        batches = sequential_loader(train, identity, 3, batch_size=6, rank=0, world_size=1, num_workers=0)
        assert pairs_of(batches)[:20] == list(enumerate(truth))  # then fillers
        shuffled = training_loader(train, identity, 3, batch_size=5, seed=3, rank=0, world_size=1, buffer_size=6)
        assert sorted(pairs_of(shuffled)) == list(enumerate(truth))


def test_a_stream_that_cannot_seek_gives_every_image_its_label():
    truth = [i * 5 % 3 for i in range(12)]
    data = table(truth, ClassLabel(names=NAMES), "kind")
    stream = IterableDataset.from_generator(lambda: iter(data), features=data.features)
    labels = find_labels(stream.features, "auto", "generator", None)
    source = source_of(stream, "image", DataLocation(), "generator", 10, labels)
    assert source.class_names == tuple(NAMES)
    loader = sequential_loader(source, identity, 3, batch_size=5, rank=0, world_size=1)
    assert pairs_of(loader) == list(enumerate(truth))
    batches = iter(training_loader(source, identity, 3, batch_size=6, seed=0, rank=0, world_size=1, buffer_size=8))
    assert sorted(pairs_of([next(batches), next(batches)])) == list(enumerate(truth))
    assert labels_of(load_head_of_stream(source, 7)) == truth[:7]


def test_a_stream_says_that_a_label_is_missing():
    data = table([1, 0, -1], ClassLabel(names=NAMES))
    stream = IterableDataset.from_generator(lambda: iter(data), features=data.features)
    labels = find_labels(stream.features, "label", "generator", None)
    source = source_of(stream, "image", DataLocation(), "generator", 10, labels)
    with pytest.raises(DataError, match="generator: an image has no label"):
        list(sequential_loader(source, identity, 3, batch_size=3, rank=0, world_size=1))


@pytest.mark.parametrize(("kind", "values"), [("int64", [3, 4]), ("string", ["a", "b"])])
def test_plain_labels_cannot_be_streamed(tmp_path, kind, values):
    folder = parquet(tmp_path, {"train": table(values, Value(kind))})
    with pytest.raises(DataError, match=rf"'label' \({kind}\).*--dataset_streaming.*ClassLabel"):
        open_splits(DataLocation(str(folder), dataset_streaming=True, label_column_name="auto"))
    assert labels_of(open_splits(DataLocation(str(folder), label_column_name="auto"))[0]) == [0, 1]


# ---- in batches ----


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_replaced_image_brings_its_own_label(tmp_path, streaming, workers):
    """Rows 3, 4 and 11, the last one, cannot be decoded; rows 5, 5 and 0 stand in for them."""
    truth = [i * 5 % 3 for i in range(12)]
    data = table(truth, ClassLabel(names=NAMES)).cast_column("image", Image(decode=False))
    bad = {3, 4, 11}

    def spoil(row, i):
        return {"image": {"bytes": b"no image" if i in bad else row["image"]["bytes"], "path": None}}

    data = data.map(spoil, with_indices=True, features=data.features).cast_column("image", Image())
    folder = parquet(tmp_path, {"train": data})
    train, _ = open_splits(DataLocation(str(folder), dataset_streaming=streaming, label_column_name="auto"))
    options = {"batch_size": 4, "seed": 0, "rank": 0, "world_size": 1, "buffer_size": 8, "num_workers": workers}
    batches = list(training_loader(train, identity, 3, **options))
    found = {
        row: (int(image.max()), label)
        for batch in batches
        for row, image, label in zip(batch["row"].tolist(), batch["pixel_values"], batch["labels"].tolist())
    }
    stands = {row: row for row in range(12)} | {3: 5, 4: 5, 11: 0}
    assert found == {row: (other, truth[other]) for row, other in stands.items()}
    assert all(batch["labels"].dtype == torch.int64 for batch in batches)


@pytest.mark.parametrize(("classes", "is_said"), [([1, 1, 1], True), ([1, 0, 1], False)])
def test_a_class_that_all_images_have_is_said(tmp_path, capsys, classes, is_said):
    features = Features({"image": Image(), "label": ClassLabel(names=["ant", "bee"])})
    pictures = photos(3)
    Dataset.from_dict({"image": pictures, "label": classes}, features=features).to_parquet(tmp_path / "train.parquet")
    open_splits(DataLocation(str(tmp_path), label_column_name="label"), eval_split=None)
    assert ("all 3 images are of the class 'bee'" in capsys.readouterr().out) == is_said


def test_parts_of_a_split_keep_their_labels(tmp_path):
    truth = [i * 7 % 3 for i in range(20)]
    data = table([NAMES[label] for label in truth], Value("string"))
    parts = opened(tmp_path, data, train_val_split=0.3)
    assert [part.num_rows for part in parts] == [14, 6]
    pairs = []
    for part in parts:
        assert part.class_names == tuple(NAMES)
        items = [ImageDataset(part, identity, 3)[0, row] for row in range(part.num_rows)]
        pairs += [(int(item["pixel_values"].max()), item["labels"]) for item in items]
    assert sorted(pairs) == list(enumerate(truth))


def test_the_first_rows_keep_their_labels(tmp_path):
    train, _ = opened(tmp_path, table([1, 0, 1, 1], ClassLabel(names=["x", "y"])))
    assert labels_of(train.head(3)) == [1, 0, 1] and train.head(3).class_names == ("x", "y")


def test_labels_and_classes_belong_to_the_fingerprint(tmp_path):
    def fingerprint(labels, names=("x", "y"), label="auto"):
        folder = tmp_path / f"{labels}-{names}-{label}"
        return opened(folder, table(labels, ClassLabel(names=list(names))), label=label)[0].fingerprint

    same = fingerprint([0, 1, 1])
    assert opened(tmp_path / "again", table([0, 1, 1], ClassLabel(names=["x", "y"])))[0].fingerprint == same
    others = [fingerprint([0, 1, 0]), fingerprint([0, 1, 1], ("x", "z")), fingerprint([0, 1, 1], label=None)]
    assert len({same, *others}) == 4


def test_of_streamed_parquet_the_classes_belong_to_the_fingerprint(tmp_path):
    found = set()
    for names in (["x", "y"], ["x", "z"]):
        folder = parquet(tmp_path / names[1], {"train": table([0, 1], ClassLabel(names=names))})
        for label in ("auto", None):
            location = DataLocation(str(folder), dataset_streaming=True, label_column_name=label)
            found.add(open_splits(location)[0].fingerprint)
    assert len(found) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_that_nobody_asked_for_are_not_read(tmp_path, streaming):
    folder = write_parquet_set(tmp_path / "set", {"train": 10})
    train, _ = open_splits(DataLocation(str(folder), dataset_streaming=streaming))
    assert train.class_names is None
    batch = next(iter(training_loader(train, identity, 3, batch_size=4, seed=0, rank=0, world_size=1, buffer_size=8)))
    assert "labels" not in batch
    withheld = parquet(tmp_path / "withheld", {"train": table([-1, -1], ClassLabel(names=NAMES))})
    assert open_splits(DataLocation(str(withheld), dataset_streaming=streaming))[0].num_rows == 2


def test_labels_and_pictures_of_a_real_set_agree(tmp_path):
    """Alternating classes, as helpers write them, over two files and several row groups."""
    folder = write_parquet_set(tmp_path / "set", {"train": 17})
    train, _ = open_splits(DataLocation(str(folder), dataset_streaming=True, label_column_name="auto"))
    dataset, expected = ImageDataset(train, identity, 3), photos(17)
    for row in range(17):
        item = dataset[0, row]
        assert item["labels"] == row % 2
        assert np.array_equal(item["pixel_values"].permute(1, 2, 0).numpy(), expected[row])


def test_names_in_one_shard_and_numbers_in_another_are_a_sentence():
    """Where shards are read one by one; `datasets` turns names into the numbers of the ClassLabel."""
    labels = find_labels(Features({"image": Image(), "label": ClassLabel(names=NAMES)}), "label", "photos", None)
    with pytest.raises(DataError, match="column 'label' holds 'cat' where the number of a class is wanted"):
        labels.check(["cat", "dog"], 4)
