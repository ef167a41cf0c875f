"""Class names and columns of the Parquet files of one data set."""

import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from hf_mae_robust.data import footers
from hf_mae_robust.data.footers import read_footers
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from tests.helpers import image_table, photos, write_parquet_set


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


@pytest.fixture
def many(tmp_path):
    """Twelve files of 5 rows, with a summary."""
    folder = write_parquet_set(tmp_path / "set", {"train": 60}, files=12, row_group=2) / "data"
    urls = [str(path) for path in sorted(folder.iterdir())]
    summarise(folder, urls)
    return folder, urls


def summarise(folder, urls):
    footers = [pq.read_metadata(url) for url in urls]
    for footer, url in zip(footers, urls):
        footer.set_file_path(url.rsplit("/", 1)[-1])
    pq.write_metadata(footers[0].schema.to_arrow_schema(), folder / "_metadata", footers)


def names_read(monkeypatch, urls):
    """What `read_footers` gives, and the names of the files whose footers it reads."""
    names = []

    def read(url, _):
        names.append(url.rsplit("/", 1)[-1])
        return pq.read_metadata(url)

    monkeypatch.setattr(footers, "read_footer", read)
    return read_footers(urls), names


def test_a_summary_stands_for_the_footers_after_a_look_at_some(many, monkeypatch):
    _, urls = many
    expected = [pq.read_metadata(url) for url in urls]
    found, names = names_read(monkeypatch, urls)
    assert names[0] == "_metadata" and len(names) == 1 + 8
    for footer, of_file, url in zip(found, expected, urls, strict=True):
        groups = [of_file.row_group(i) for i in range(of_file.num_row_groups)]
        assert footer.url == url and footer.num_rows.tolist() == [group.num_rows for group in groups] == [2, 2, 1]
        assert footer.num_bytes.tolist() == [group.total_byte_size for group in groups]


def test_a_summary_that_is_wrong_or_lacks_a_file_is_not_believed(many, monkeypatch, caplog):
    folder, urls = many
    image_table(9).to_parquet(urls[0], batch_size=3)
    found, names = names_read(monkeypatch, urls)
    assert found[0].num_rows.tolist() == [3, 3, 3] and len(set(names)) == 1 + len(urls)
    assert "does not fit the _metadata beside it" in caplog.text
    summarise(folder, urls[1:])
    found, _ = names_read(monkeypatch, urls)
    assert sum(footer.num_rows.sum() for footer in found) == 64


def test_few_files_are_read_themselves(many, monkeypatch):
    _, urls = many
    assert names_read(monkeypatch, urls[:8])[1].count("_metadata") == 0


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("other", ["validation.parquet", "train-00001-of-00002.parquet"])
def test_numbers_beside_named_classes_are_said_and_refused_beyond_the_names(tmp_path, capsys, streaming, other):
    first = "train.parquet" if other.startswith("val") else "train-00000-of-00002.parquet"
    write(tmp_path / first, ["ant", "bee"])
    features = Features({"image": Image(), "label": Value("int64")})
    for largest in (1, 5):
        Dataset.from_dict({"image": photos(2), "label": [0, largest]}, features=features).to_parquet(tmp_path / other)
        if largest == 1:
            assert opened(tmp_path, streaming)[0].class_names == ("ant", "bee")
            said = capsys.readouterr().out
            assert f"{other} has plain numbers in column 'label'" in said and "0 is taken for 'ant'" in said
    with pytest.raises(DataError, match=rf"{other} has the number 5 in column 'label'.*names 2 classes there, 0 to 1"):
        opened(tmp_path, streaming)
    assert opened(tmp_path, streaming, None)[0].num_rows


def test_numbers_before_named_classes_are_said(tmp_path, capsys):
    write(tmp_path / "train-00001-of-00002.parquet", ["ant", "bee"])
    features = Features({"image": Image(), "label": Value("int32")})
    path = tmp_path / "train-00000-of-00002.parquet"
    Dataset.from_dict({"image": photos(2), "label": [0, 1]}, features=features).to_parquet(path)
    assert opened(tmp_path, False)[0].class_names == ("0", "1")
    assert "the numbers are taken for the names" in capsys.readouterr().out
