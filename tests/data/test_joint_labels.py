"""Labels that belong to places in the image (semantic maps, objects): read in step with it, by every kind of source."""

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, Value

from hf_mae_robust.data.loaders import sequential_loader, training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation, load_head_of_stream
from hf_mae_robust.errors import DataError, ImageDecodingError
from tests.helpers import photos

NUM_IMAGES = 23


class CentrePixel:
    """A label that can only be right together with its own image: the image's centre pixel, as text."""

    is_joint = True
    class_names = ("any",)

    def __init__(self, features, wanted, description, read_column):
        assert wanted == "auto"
        self.column, self.description = "note", description

    def check(self, values, first_row):
        if None in values:
            raise DataError(f"{self.description}: row {first_row} has no note.")
        return values

    def of_split(self, features, description):
        return self

    def decode(self, value, image, row):
        if value == "bad":
            raise ImageDecodingError(f"row {row}: the note is bad")
        return [int(number) for number in value.split()]

    def filler(self):
        return [0, 0, 0]


def with_centre(image, label):
    """Also a tensor whose shape varies, and random numbers."""
    varying = torch.zeros(1 + label[0] % 3)
    random = {"number": torch.randint(2**31, ())}
    return {"pixel_values": image, "centre": torch.tensor(label), "labels": random, "varying": varying}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noted")
    pictures = photos(NUM_IMAGES)
    notes = [" ".join(map(str, picture[8, 8])) for picture in pictures]
    notes[4] = "bad"
    features = Features({"image": Image(), "note": Value("string"), "other": Value("int64")})
    table = Dataset.from_dict({"image": pictures, "note": notes, "other": range(NUM_IMAGES)}, features=features)
    (folder / "data").mkdir()
    table.to_parquet(folder / "data" / "train-00000-of-00001.parquet", batch_size=5)
    return folder


def open_train(folder, streaming):
    location = DataLocation(str(folder), dataset_streaming=streaming, label_column_name="auto")
    return open_splits(location, eval_split=None, find_labels=CentrePixel)[0]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_hold_each_image_with_its_own_label(folder, streaming, workers):
    source = open_train(folder, streaming)
    options = {"batch_size": 4, "seed": 3, "rank": 0, "world_size": 1, "buffer_size": 8, "num_workers": workers}
    batches = list(training_loader(source, with_centre, 3, **options))
    assert len(batches) == NUM_IMAGES // 4
    for batch in batches:
        assert torch.equal(batch["pixel_values"][:, :, 8, 8].long(), batch["centre"])
        assert isinstance(batch["labels"], list) and len(batch["labels"]) == 4
        assert isinstance(batch["varying"], list) or len({part.shape for part in batch["varying"]}) == 1
    skipped = [record for batch in batches for record in batch.get("skipped", ())]
    assert {record.row for record in skipped} <= {4}
    again = list(training_loader(source, with_centre, 3, **options))
    numbers = [[label["number"] for label in batch["labels"]] for batch in batches]
    assert numbers == [[label["number"] for label in batch["labels"]] for batch in again]
    assert len({int(number) for row in numbers for number in row}) > 15


@pytest.mark.parametrize("streaming", [False, True])
def test_evaluation_leaves_out_what_cannot_be_decoded(folder, streaming):
    source = open_train(folder, streaming)
    loader = sequential_loader(source, with_centre, 3, batch_size=5, rank=0, world_size=1)
    rows, centres = [], []
    for batch in loader:
        rows += batch["row"].tolist()
        centres.append(batch["centre"])
    centres = torch.cat(centres)
    assert [row for row in rows if row >= 0] == [row for row in range(NUM_IMAGES) if row != 4]
    assert centres[4].tolist() == [0, 0, 0] and rows[4] == -1
    expected = [picture[8, 8].tolist() for picture in photos(NUM_IMAGES)]
    assert np.array_equal([centres[row] for row in rows if row >= 0], [expected[row] for row in rows if row >= 0])


def test_other_streams_give_labels_too(tmp_path):
    folder = tmp_path / "jsonl"
    folder.mkdir()
    for i, picture in enumerate(photos(6)):
        PIL.Image.fromarray(picture).save(folder / f"{i}.png")
    lines = [
        f'{{"file_name": "{i}.png", "note": "{" ".join(map(str, picture[8, 8]))}"}}'
        for i, picture in enumerate(photos(6))
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    source = open_train(folder, True)
    assert source.row_groups is None
    held = load_head_of_stream(source, 6)
    for loader in (
        sequential_loader(held, with_centre, 3, batch_size=6, rank=0, world_size=1),
        sequential_loader(source, with_centre, 3, batch_size=6, rank=0, world_size=1),
    ):
        batch = next(iter(loader))
        assert torch.equal(batch["pixel_values"][:, :, 8, 8].long(), batch["centre"])


def test_a_label_that_is_missing_ends_the_run_with_its_row(tmp_path):
    features = Features({"image": Image(), "note": Value("string")})
    table = Dataset.from_dict({"image": photos(3), "note": ["1 2 3", None, "1 2 3"]}, features=features)
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    source = open_train(tmp_path, False)
    loader = sequential_loader(source, with_centre, 3, batch_size=1, rank=0, world_size=1)
    with pytest.raises(DataError, match="row 1 has no note"):
        list(loader)
