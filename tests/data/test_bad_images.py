import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.data.bad_images import SkippedImage, SkippedImages, path_within
from hf_mae_robust.data.dataset import MAX_BAD_IN_A_ROW, ImageDataset
from hf_mae_robust.data.loaders import sequential_loader, training_loader
from hf_mae_robust.data.opening import open_splits, source_of
from hf_mae_robust.data.preprocessing import EvaluationTransform, evaluation_processor, training_transform
from hf_mae_robust.data.source import DataLocation, ImageSource
from hf_mae_robust.errors import DataError
from hf_mae_robust.statistics.statistics_pass import statistics_of_source
from tests.data.test_decoding import BAD
from tests.helpers import photos

CONFIG = ViTMAERobustConfig(image_size=16, patch_size=4)


def encoded(count: int) -> list[dict]:
    return [datasets.Image().encode_example(pixels) for pixels in photos(count)]


def source(values: list, description: str = "mixture (train)") -> ImageSource:
    """Encoded images in memory, with random access."""
    return ImageSource(values, (len(values),), True, description, "fingerprint")


def mixture(count: int = 40, kinds: tuple[str, ...] = tuple(BAD), first_is_bad: bool = True) -> tuple[list, set[int]]:
    """Good images with bad ones between them, and the rows of those."""
    values: list = encoded(count)
    rows = list(range(0 if first_is_bad else 1, count, 2))[: len(kinds)]
    for row, name in zip(rows, kinds):
        values[row] = BAD[name][0]
    return values, set(rows)


def evaluation_transform() -> EvaluationTransform:
    return EvaluationTransform(evaluation_processor(CONFIG.image_size, crop_pct=1.0))


def training(images: ImageSource, **options):
    options = {"batch_size": 4, "seed": 3, "rank": 0, "world_size": 1, "buffer_size": 8, "noise_length": 5} | options
    return training_loader(images, training_transform(16), 3, **options)


def sequential(images: ImageSource, **options):
    options = {"batch_size": 4, "rank": 0, "world_size": 1} | options
    return sequential_loader(images, evaluation_transform(), 3, **options)


def rows_of(batches: list[dict]) -> list[int]:
    return [row for batch in batches for row in batch["row"].tolist()]


def skipped_of(batches: list[dict]) -> list[SkippedImage]:
    return [record for batch in batches for record in batch.get("skipped", ())]


# ---- training: replaced ----


def test_bad_images_are_replaced_and_reported():
    values, bad = mixture()
    batches = list(training(source(values)))
    assert sorted(rows_of(batches)) == list(range(40))
    assert all(batch["pixel_values"].shape == (4, 3, 16, 16) for batch in batches)
    skipped = skipped_of(batches)
    assert {record.row for record in skipped} == bad
    kinds = {row: BAD[name][1] for row, name in zip(sorted(bad), BAD)}
    assert all(record.kind == kinds[record.row] and record.split == "mixture (train)" for record in skipped)
    assert all(len(record.detail) <= 200 for record in skipped)


def test_the_next_image_comes_under_the_number_augmentation_and_noise_of_the_bad_one():
    values: list = encoded(6)
    dataset = ImageDataset(source(values), training_transform(16), 3, seed=1, noise_length=5)
    ours = dataset[2, 4]
    last = dataset[2, 5]
    values[5], values[0] = b"", None  # the next one of the last is the first, and bad as well
    replaced = dataset[2, 5]
    assert replaced["row"] == 5
    assert torch.equal(replaced["noise"], last["noise"])
    assert [(record.row, record.kind) for record in replaced["skipped"]] == [(5, "empty"), (0, "empty")]
    values[5] = values[1]
    assert torch.equal(replaced["pixel_values"], dataset[2, 5]["pixel_values"])
    assert torch.equal(ours["pixel_values"], dataset[2, 4]["pixel_values"]) and "skipped" not in ours


@pytest.mark.parametrize("workers", [0, 2])
def test_good_data_gives_batches_as_ever(workers):
    images = source(encoded(12))
    for batch in training(images, num_workers=workers):
        assert set(batch) == {"pixel_values", "row", "noise"}
    for batch in sequential(images, num_workers=workers):
        assert set(batch) == {"pixel_values", "row"}


def test_too_many_in_a_row_end_it():
    values = [b"", *encoded(1), *[b""] * (MAX_BAD_IN_A_ROW - 1), *encoded(1), *[b""] * MAX_BAD_IN_A_ROW]
    dataset = ImageDataset(source(values), evaluation_transform(), 3)
    assert len(dataset[0, 2]["skipped"]) == MAX_BAD_IN_A_ROW - 1
    with pytest.raises(DataError, match=r"32 images in a row of mixture \(train\).*empty.*--image_column_name"):
        dataset[0, MAX_BAD_IN_A_ROW + 2]
    with pytest.raises(DataError, match="2 images in a row"):
        ImageDataset(source([b"", b""]), evaluation_transform(), 3)[0, 0]


# ---- evaluation and statistics: left out ----


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_in_evaluation_bad_images_are_fillers(world_size, workers):
    values, bad = mixture(41)
    ranks = [
        list(sequential(source(values), rank=r, world_size=world_size, num_workers=workers)) for r in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    batches = sum(ranks, [])
    assert sorted(row for row in rows_of(batches) if row >= 0) == sorted(set(range(41)) - bad)
    skipped = skipped_of(batches)
    assert sorted(record.row for record in skipped) == sorted(bad)
    transform = evaluation_transform()
    expected = torch.from_numpy(np.stack(photos(41))).permute(0, 3, 1, 2)
    for batch in batches:
        assert batch["pixel_values"].dtype == torch.uint8
        for row, image in zip(batch["row"].tolist(), batch["pixel_values"]):
            assert torch.equal(image, transform(expected[row]) if row >= 0 else torch.zeros_like(image))


def test_fillers_need_no_good_image():
    dataset = ImageDataset(source([b""]), evaluation_transform(), 3, noise_length=7, replace_bad_images=False)
    for row in (-1, 0):
        item = dataset[0, row]
        assert item["row"] == -1 and item["pixel_values"].shape == (3, 16, 16) and item["noise"].shape == (7,)
        assert item["pixel_values"].max() == 0
    assert "skipped" not in dataset[0, -1]


def test_statistics_are_those_of_the_good_images(caplog):
    values, bad = mixture()
    with caplog.at_level(logging.WARNING):
        mixed = statistics_of_source(source(values), CONFIG, crop_pct=1.0, batch_size=7, max_bad_images=0.5)
    assert "20 of 40 images cannot be decoded" in caplog.text and "6 truncated" in caplog.text
    caplog.clear()
    clean = source([value for row, value in enumerate(values) if row not in bad])
    expected = statistics_of_source(clean, CONFIG, crop_pct=1.0)
    assert mixed.count == expected.count and mixed.metadata["num_images"] == 20
    torch.testing.assert_close(mixed.mean, expected.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(mixed.std, expected.std, rtol=1e-12, atol=0)
    assert not caplog.text


def test_statistics_of_too_few_images_are_refused():
    values, _ = mixture()
    with pytest.raises(DataError, match="of 40 images of mixture.*cannot be decoded"):
        statistics_of_source(source(values), CONFIG, crop_pct=1.0)
    with pytest.raises(DataError, match=r"No image of mixture \(train\) can be decoded \(3 empty\)"):
        statistics_of_source(source([None] * 3), CONFIG, crop_pct=1.0, max_bad_images=1.0)


# ---- streams ----


def stream(values: list) -> ImageSource:
    table = Dataset.from_dict({"image": values}, features=Features({"image": ImageFeature()}))
    return source_of(table.to_iterable_dataset(num_shards=4), "image", DataLocation(), "stream", 10)


@pytest.fixture
def bad_stream():
    # What a column of images can hold.
    kinds = tuple(name for name in BAD if name not in ("null struct", "no pixels", "a number", "floats"))
    values, bad = mixture(kinds=kinds)
    return stream([{"bytes": v, "path": None} if isinstance(v, bytes) else v for v in values]), len(bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_leaves_bad_images_out(bad_stream, workers):
    images, num_bad = bad_stream
    batches = iter(training(images, num_workers=workers))
    taken = [next(batches) for _ in range(2 * 40 // 4)]
    assert all(batch["pixel_values"].shape == (4, 3, 16, 16) and min(batch["row"]) >= 0 for batch in taken)
    numbers = [record.row for record in skipped_of(taken)]
    assert len(numbers) >= num_bad and len(set(numbers + rows_of(taken))) == len(numbers) + 80


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_of_evaluation_shows_every_good_image_once(bad_stream, workers, world_size):
    images, num_bad = bad_stream
    batches = [
        batch
        for rank in range(world_size)
        for batch in sequential(images, rank=rank, world_size=world_size, num_workers=workers)
    ]
    rows = [row for row in rows_of(batches) if row >= 0]
    numbers = [record.row for record in skipped_of(batches)]
    assert len(rows) == 40 - num_bad and len(numbers) == num_bad
    assert len(set(rows + numbers)) == 40


def test_a_stream_of_nothing_but_bad_images_ends():
    values = [{"bytes": b"text", "path": None}] * 40
    with pytest.raises(DataError, match="32 images in a row of stream"):
        next(iter(training(stream(values))))
    with pytest.raises(DataError, match="40 of 40 images of stream"):
        statistics_of_source(stream(values), CONFIG, crop_pct=1.0)


# ---- the real corpus ----


@pytest.fixture(scope="module")
def corpus() -> tuple[ImageSource, dict[int, str]]:
    """The set of broken and odd files that lies beside the checkout, and its undecodable rows with their kinds."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "corrupt-images"
    if not folder.is_dir():
        pytest.skip("the corpus of corrupt images is not here")
    images, _ = open_splits(DataLocation(str(folder)), eval_split=None)
    table = datasets.load_dataset(str(folder), split="train").select_columns(["case", "expect"])
    kinds = {
        "null_image": "empty",
        "zero_byte": "empty",
        "missing_file": "missing_file",
        "bomb_50000x50000": "bomb",
        "png_huge_text": "bomb",
        "png_bad_crc": "corrupt",
        "text_named_jpg": "not_an_image",
        "html_error_page": "not_an_image",
        "gzipped": "not_an_image",
    }
    return images, {
        row: kinds.get(case, "truncated")
        for row, (case, expect) in enumerate(zip(table["case"], table["expect"]))
        if expect == "undecodable"
    }


def test_corpus_in_training(corpus):
    images, bad = corpus
    assert images.num_rows == 111 and len(bad) == 15

    def epochs(workers):
        loader = training(images, batch_size=37, num_workers=workers, persistent_workers=workers > 0)
        batches = []
        for epoch in range(2):
            loader.set_epoch(epoch)
            batches.append(list(loader))
        return batches

    alone, with_workers = epochs(0), epochs(2)
    for batches, others in zip(alone, with_workers):
        assert sorted(rows_of(batches)) == list(range(111))
        assert {record.row: record.kind for record in skipped_of(batches)} == bad
        for batch, other in zip(batches, others, strict=True):
            assert batch["pixel_values"].shape == (37, 3, 16, 16)
            assert all(torch.equal(batch[key], other[key]) for key in ("pixel_values", "row", "noise"))
            assert batch.get("skipped") == other.get("skipped")


def test_corpus_in_evaluation(corpus):
    images, bad = corpus
    batches = list(sequential(images))
    assert {record.row: record.kind for record in skipped_of(batches)} == bad
    assert sorted(row for row in rows_of(batches) if row >= 0) == sorted(set(range(111)) - set(bad))


# ---- the record ----

RECORDS = [SkippedImage("a (train)", row, kind, f"ü/{row}.jpg: why") for row, kind in enumerate(["empty", "bomb"] * 2)]


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_image_is_listed_once_ever(tmp_path):
    path = tmp_path / "new" / "skipped_images.jsonl"
    skipped = SkippedImages(path, 0.5)
    skipped.write()
    assert not path.exists()
    assert skipped.add(RECORDS[:2]) == RECORDS[:2] and skipped.add(RECORDS[1:3]) == RECORDS[2:3]
    skipped.write()
    skipped.add(RECORDS[:1])
    skipped.write()
    assert lines_of(path) == [asdict(record) for record in RECORDS[:3]]
    assert list(lines_of(path)[0]) == ["split", "row", "kind", "detail"]

    resumed = SkippedImages(path, 0.5)
    assert resumed.counts() == {"empty": 2, "bomb": 1} and len(resumed) == 3
    other_split = SkippedImage("a (test)", 0, "corrupt", "why")
    assert resumed.add([*RECORDS, other_split]) == [RECORDS[3], other_split]
    resumed.write()
    assert lines_of(path) == [asdict(record) for record in [*RECORDS, other_split]]
    assert resumed.counts("a (test)") == {"corrupt": 1}


@pytest.mark.parametrize("torn", [b'{"split": "a (train)", "ro', b"\xc3", asdict(RECORDS[1])])
def test_a_line_torn_by_a_crash_is_overwritten(tmp_path, torn):
    path = tmp_path / "skipped_images.jsonl"
    whole = (json.dumps(asdict(RECORDS[0])) + "\n").encode()
    path.write_bytes(whole + (torn if isinstance(torn, bytes) else json.dumps(torn).encode()))
    skipped = SkippedImages(path, 0.5)
    assert list(skipped) == RECORDS[:1]
    skipped.add(RECORDS[:2])
    skipped.write()
    assert lines_of(path) == [asdict(record) for record in RECORDS[:2]]


def test_what_a_full_disk_cut_off_is_written_again(tmp_path, monkeypatch):
    path = tmp_path / "skipped_images.jsonl"
    skipped = SkippedImages(path, 0.5)
    skipped.add(RECORDS[:1])
    skipped.write()
    skipped.add(RECORDS[1:])

    def fail(descriptor):
        os.truncate(path, path.stat().st_size - 10)
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            skipped.write()
    skipped.write()
    assert lines_of(path) == [asdict(record) for record in RECORDS]


def test_an_empty_file_and_lines_of_others_do_not_matter(tmp_path):
    path = tmp_path / "skipped_images.jsonl"
    path.write_text("")
    assert len(SkippedImages(path, 0.5)) == 0
    path.write_text(
        '# a note\n\n[1]\n{"split": 3}\n{"split": [], "row": 1, "kind": "", "detail": ""}\n'
        + json.dumps(asdict(RECORDS[0]))
        + "\n"
    )
    assert list(SkippedImages(path, 0.5)) == RECORDS[:1]


def test_without_a_file():
    skipped = SkippedImages(None, 0.0)
    skipped.add(RECORDS)
    skipped.write()
    with pytest.raises(DataError) as caught:
        skipped.check("a (train)", 100)
    assert "The first: row 0: ü/0.jpg: why; row 1: ü/1.jpg: why; row 2" in str(caught.value)


def test_the_limit_is_a_sentence_that_says_what_to_do(tmp_path):
    skipped = SkippedImages(tmp_path / "skipped_images.jsonl", 0.01)
    skipped.add(RECORDS)
    skipped.add(RECORDS)
    skipped.check("a (train)", 400)
    skipped.check("another split", 1)
    with pytest.raises(DataError) as caught:
        skipped.check("a (train)", 399)
    for words in (
        "4 of 399 images of a (train) cannot be decoded (2 bomb, 2 empty)",
        "--max_bad_images 0.01 allows a share of 1.00%",
        f"listed in {skipped.path}",
        "Repair or remove them",
        "raise --max_bad_images",
    ):
        assert words in str(caught.value)


def test_the_limit_of_a_stream_is_one_of_the_images_seen():
    skipped = SkippedImages(None, 0.001)
    skipped.add(RECORDS[:2])
    skipped.check("a (train)", None, num_seen=999)
    skipped.check("a (train)", None, num_seen=2000)
    with pytest.raises(DataError, match="2 of the first 1,000 images"):
        skipped.check("a (train)", None, num_seen=1000)


def test_a_limit_of_none_and_of_all():
    strict, patient = SkippedImages(None, 0), SkippedImages(None, 1)
    for num_rows, num_seen in ((10**9, 0), (None, 3)):
        strict.check("a (train)", num_rows, num_seen)
    for skipped in (strict, patient):
        skipped.add(RECORDS)
    for num_rows, num_seen in ((10**9, 0), (None, 4)):
        patient.check("a (train)", 4)
        with pytest.raises(DataError, match="share of 0.00%"):
            strict.check("a (train)", num_rows, num_seen)


@pytest.mark.parametrize("fraction", [-0.1, 1.01, float("nan")])
def test_the_fraction_is_checked(fraction):
    with pytest.raises(ValueError, match="max_bad_images"):
        SkippedImages(None, fraction)


@pytest.mark.parametrize("path", ["/a/b/c/d.png", "/a/b//c/d.png", "/a/bc/d.png", "/q/d.png", "d.png", "b/d.png"])
@pytest.mark.parametrize("root", ["/a/b", "/", "b", ".", ""])
def test_paths_are_counted_from_the_folder_of_the_data(path, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [folder for folder in (Path(root), Path(root).resolve()) if root and Path(path).is_relative_to(folder)]
    elsewhere = Path(path).name if path.startswith("/") else path
    assert path_within(path, root) == (Path(path).relative_to(folders[0]).as_posix() if folders else elsewhere)
