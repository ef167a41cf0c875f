"""Class names and columns of the Parquet files of one data set."""

import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from tests.helpers import photos


def write(path, names, labels=(0, 1), column="label"):
    path.parent.mkdir(parents=True, exist_ok=True)
    features = Features({"image": Image(), column: ClassLabel(names=names)})
    Dataset.from_dict({"image": photos(2), column: list(labels)}, features=features).to_parquet(path)


def opened(folder, streaming, label="auto"):
    return open_splits(DataLocation(str(folder), dataset_streaming=streaming, label_column_name=label))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("other", ["validation.parquet", "train-00001-of-00002.parquet"])
def test_files_that_number_their_classes_otherwise_are_refused(tmp_path, streaming, other):
    first = "train.parquet" if other.startswith("val") else "train-00000-of-00002.parquet"
    write(tmp_path / first, ["ant", "bee"])
    write(tmp_path / other, ["bee", "ant"])
    with pytest.raises(DataError, match="different classes in column 'label': class 0 is 'ant' and 'bee'"):
        opened(tmp_path, streaming)
    assert opened(tmp_path, streaming, None)[0].num_rows  # without labels they do not matter
    write(tmp_path / other, ["ant", "bee"])
    assert opened(tmp_path, streaming)[0].class_names == ("ant", "bee")


def test_a_streamed_shard_without_the_labels_is_named(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", ["ant", "bee"])
    features = Features({"image": Image()})
    path = tmp_path / "train-00001-of-00002.parquet"
    Dataset.from_dict({"image": photos(2)}, features=features).to_parquet(path)
    for streaming in (False, True):
        with pytest.raises(DataError, match="label"):
            opened(tmp_path, streaming)
    with pytest.raises(DataError, match="00001-of-00002.parquet has no column 'label'"):
        opened(tmp_path, True)


def test_classes_within_lists_of_objects_count_too(tmp_path):
    for split, names in (("train", ["ant", "bee"]), ("validation", ["bee", "ant"])):
        objects = {"category": List(ClassLabel(names=names)), "area": List(Value("float64"))}
        table = {"image": photos(1), "objects": [{"category": [0], "area": [1.0]}]}
        features = Features({"image": Image(), "objects": objects})
        Dataset.from_dict(table, features=features).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(DataError, match="in column 'objects.category'"):
        opened(tmp_path, True, "objects")
