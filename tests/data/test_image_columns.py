"""What is said of columns that hold something other than images, at the first step."""

import pytest
from datasets import Dataset

from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from tests.helpers import image_table


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("name", "column", "message"), [("a.mp4", "video", "ffmpeg -i"), ("a.pdf", "pdf", "pdftoppm")])
def test_videos_and_pdf_files_are_refused_with_a_way_out(tmp_path, name, column, message, streaming):
    (tmp_path / name).write_bytes(b"%PDF-1.4")
    for wanted in (None, column):
        with pytest.raises(DataError, match=f"column '{column}' holds .*which are not read.*{message}"):
            open_splits(DataLocation(str(tmp_path), image_column_name=wanted, dataset_streaming=streaming))


@pytest.mark.parametrize("wanted", [None, "image"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("text", ["../photos/000.jpg", "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJ"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_texts_are_refused_with_one_sentence_whichever_way_they_come(tmp_path, kind, text, streaming, wanted):
    table = Dataset.from_dict({"image": [text] * 3, "label": ["a", "b", "a"]})
    path = tmp_path / f"set.{kind}"
    table.to_json(path) if kind == "jsonl" else table.to_parquet(path)
    with pytest.raises(DataError, match="column 'image' holds text.* not images. Write paths as a .csv list, or cast"):
        open_splits(DataLocation(str(path), image_column_name=wanted, dataset_streaming=streaming))


def test_a_folder_that_holds_only_a_list_is_told_to_give_the_list(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\nphotos/0.jpg,a\nphotos/1.jpg,b\n")
    with pytest.raises(DataError, match=f"column 'path' holds text.*Give the list itself: .*{tmp_path}/list.csv"):
        open_splits(DataLocation(str(tmp_path)))


def test_a_column_of_numbers_is_refused(tmp_path):
    image_table(4).to_parquet(tmp_path / "set.parquet")
    with pytest.raises(DataError, match="column 'label' holds int64, not images"):
        open_splits(DataLocation(str(tmp_path / "set.parquet"), image_column_name="label"))
