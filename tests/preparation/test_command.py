"""prepare: what it writes of each kind of data set; killed and resumed, and on two processes; runs that train on it."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value, load_dataset
from PIL import Image as PILImage

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining, files, finetune, pretrain
from hf_mae_robust.__main__ import main
from hf_mae_robust.preparation.writing import SplitWriter
from hf_mae_robust.statistics import statistics_pass
from hf_mae_robust.training import parts as parts_module
from tests.data.test_tars import encoded, write_tars
from tests.finetuning.detection.test_task import HEADS
from tests.helpers import TINY, TINY_OVERRIDES, as_flags, finetuning_settings, photos, write_parquet_set
from tests.processes import offline

# The images of the sets below have 24 pixels or more; the statistics are for the tiny model of the other tests.
FORM = {"short_side": 20, "image_size": 16, "patch_size": 4, "crop_pct": 1.0, "row_group_size": 8, "num_workers": 0}


def words(source, output, *more) -> list[str]:
    return ["prepare", str(source), "--output_dir", str(output), *as_flags(FORM, *more)]


def prepare(source, output, *more) -> Path:
    main(words(source, output, *more))
    return Path(output)


def refusal(line: list[str], capsys, code: int = 2) -> str:
    with pytest.raises(SystemExit) as end:
        main(line)
    assert end.value.code == code
    return capsys.readouterr().err.splitlines()[-1]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def original_dir(tmp_path_factory) -> Path:
    """Parquet of 40 labelled pictures of 32 x 32 pixels to train on and 11 to evaluate."""
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 40, "validation": 11}, size=32)


def photo_folder(folder: Path, bad=()) -> Path:
    """Twelve JPEG files of 48 x 32 pixels, of two classes, and three without a class in test/; some hold no image."""
    for i, picture in enumerate(photos(15, 48)):
        path = folder / (f"train/{('cat', 'dog')[i % 2]}/{i:02d}.jpg" if i < 12 else f"test/{i:02d}.jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        if i in bad:
            path.write_bytes(b"no image")
        else:
            PILImage.fromarray(picture[:32]).save(path, quality=95)
    return folder


def test_splits_labels_and_pictures_are_kept(original_dir, tmp_path, capsys):
    folder = prepare(original_dir, tmp_path / "prepared", "--max_shard_size", "8KB")
    printed = capsys.readouterr().out
    assert "labels of 2 classes in column 'label'" in printed and "times as many" in printed
    found, former = load_dataset(str(folder)), load_dataset(str(original_dir))
    assert {name: len(split) for name, split in found.items()} == {"train": 40, "validation": 11}
    for split in found:
        assert found[split].features == Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
        assert found[split]["label"][:] == former[split]["label"][:]
        for row in (0, 9):
            image, expected = found[split][row]["image"], former[split][row]["image"].resize((20, 20), 3)
            assert image.format == "JPEG" and image.size == (20, 20)
            assert np.abs(np.asarray(image, float) - np.asarray(expected, float)).mean() < 8
    shards = sorted(path.name for path in (folder / "data").iterdir())
    assert shards[0] == f"train-00000-of-{len(shards) - 1 if len(shards) > 2 else 1:05d}.parquet" or len(shards) > 3
    groups = [pq.ParquetFile(folder / "data" / name).metadata for name in shards]
    assert all(each.row_group(i).num_rows in (8, 3) for each in groups for i in range(each.num_row_groups))
    assert not (tmp_path / "prepared.parts").exists()


def test_folders_of_one_name_keep_their_own_images(original_dir, tmp_path):
    """`datasets` has a cache, in which some folders are known by their last name."""
    larger = write_parquet_set(tmp_path / "larger" / "set", {"train": 9}, size=40)
    sizes = []
    for i, source in enumerate((original_dir, larger)):
        folder = prepare(source, tmp_path / str(i) / "prepared")
        sizes.append(len(load_dataset(str(folder), split="train")))
    assert sizes == [40, 9]


def test_the_card_says_what_was_done_and_no_path(tmp_path, capsys):
    source = photo_folder(tmp_path / "my-photos", bad=(4,))
    folder = prepare(source, tmp_path / "prepared", "--max_bad_images", 0.1)
    card = (folder / "README.md").read_text()
    for words_of_card in (
        "# my-photos, prepared",
        "longer than 20 pixels",
        "JPEG of quality 90",
        "| train | 11 | 1 | 1 |",
    ):
        assert words_of_card in card
    assert "labels of 2 classes in column 'label'" in card and "patches of 4x4 pixels" in card
    listed = [json.loads(line) for line in (folder / "skipped_images.jsonl").read_text().splitlines()]
    assert [(each["row"], each["kind"]) for each in listed] == [(2, "not_an_image")] and "cat/04.jpg" in listed[0][
        "detail"
    ]
    assert "1 images cannot be decoded" in capsys.readouterr().out
    assert not [name for name, content in contents(folder).items() if str(tmp_path).encode() in content]
    table = pq.read_table(next(folder.glob("data/train-*"))).column("image").to_pylist()
    assert table[0]["path"] == "train/cat/00.jpg" and len(table) == 11
    # A split without classes has no labels; -1 stands for none, as in other data sets.
    assert set(load_dataset(str(folder), split="test")["label"]) == {-1}


def test_of_changed_pictures_it_is_said_that_they_are_not_those_that_were_prepared(tmp_path, capsys):
    folder, output = photo_folder(tmp_path / "photos"), tmp_path / "out"
    prepare(folder, output)
    prepare(folder, output)
    printed = capsys.readouterr().out
    assert "is there already, of the same data" in printed and "were written again" not in printed
    assert f"--dataset_name {output}" in printed
    os.utime(folder / "train" / "cat" / "00.jpg", (1, 1))  # the fingerprint knows the sizes of some files
    prepare(folder, output)
    assert f"Note: files of {folder} were written again since {output} was made" in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
def test_too_many_bad_images_end_it(tmp_path, capsys, streaming):
    source = photo_folder(tmp_path / "set", bad=(4, 7))
    more = ["--dataset_streaming"] if streaming else []
    error = refusal([*words(source, tmp_path / "out"), *more], capsys)
    assert (
        " of 1" in error
        and "cannot be decoded" in error
        and "--max_bad_images 0.01" in error
        and not (tmp_path / "out").exists()
    )


def test_a_repaired_image_is_written_and_other_bad_ones_cost_no_part(tmp_path, capsys, monkeypatch):
    source, more = photo_folder(tmp_path / "set"), ("--splits", "train", "--row_group_size", 3, "--max_bad_images", 0.2)
    files_of = sorted((source / "train").rglob("*.jpg"))
    good = {row: files_of[row].read_bytes() for row in (1, 4, 10)}
    for row, content in good.items():
        files_of[row].write_bytes(bytes(len(content)))
    assert "3 of 12 images" in refusal(words(source, tmp_path / "out", *more), capsys)
    files_of[4].write_bytes(good[4])
    written, write = [], parts_module.Parts.write
    monkeypatch.setattr(
        parts_module.Parts, "write", lambda self, part, table: [written.append(part.number), write(self, part, table)]
    )
    table = pq.read_table(next(prepare(source, tmp_path / "out", *more).glob("data/*"))).column("image").to_pylist()
    names = [path.relative_to(source).as_posix() for row, path in enumerate(files_of) if row not in (1, 10)]
    assert [each["path"] for each in table] == names and written == [1, 3]


def test_streams_give_the_same_images(tmp_path):
    source = photo_folder(tmp_path / "set", bad=(4,))
    table = prepare(source, tmp_path / "a", "--max_bad_images", 0.1, "--splits", "train")
    stream = prepare(source, tmp_path / "b", "--max_bad_images", 0.1, "--splits", "train", "--dataset_streaming")
    shard = "data/train-00000-of-00001.parquet"
    assert (table / shard).read_bytes() == (stream / shard).read_bytes()


def test_dry_run_says_what_is_gained_and_writes_nothing(original_dir, tmp_path, capsys):
    main([*words(original_dir, tmp_path / "out"), "--dry_run"])
    printed = capsys.readouterr().out
    assert re.search(r"Of 40 images, one process reads [\d,.]+ a second for training as they are, and", printed)
    assert re.search(r"All 51 images take (about [\d,.]+ (seconds|minutes)|a second or two) to prepare", printed)
    assert list(tmp_path.iterdir()) == []


def test_lossless_small_images_stay_exactly_as_they_are(original_dir, tmp_path):
    folder = prepare(original_dir, tmp_path / "out", "--lossless", "--short_side", 32)
    former = pq.read_table(sorted(original_dir.glob("data/train-*"))[0]).column("image").to_pylist()
    found = pq.read_table(next(folder.glob("data/train-*"))).column("image").to_pylist()
    assert [each["bytes"] for each in found[: len(former)]] == [each["bytes"] for each in former]


class Killed(BaseException):
    pass


def killed_after(number: int, monkeypatch, name: str = ".part-") -> None:
    """The process ends while it writes file `number` of this name, which stays in part under its temporary name."""
    flush, seen = files.flush, []

    def flush_and_die(path):
        if path.name.startswith(name):
            seen.append(path)
            if len(seen) > number:
                path.write_bytes(path.read_bytes()[:-50])
                raise Killed
        flush(path)

    monkeypatch.setattr(files, "flush", flush_and_die)


@pytest.mark.parametrize(
    ("at", "number"),
    [
        (".part-", 6),
        (".train-", 1),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((".part-", 0), (".shards.json", 0), (".validation-", 0))
        ),
    ],
)
def test_killed_and_resumed_is_the_same_folder(at, number, original_dir, tmp_path, monkeypatch, capsys):
    more = ("--max_shard_size", "9KB")
    expected = contents(prepare(original_dir, tmp_path / "a", *more))
    assert sum(name.startswith("data/train") for name in expected) > 2
    with monkeypatch.context() as patch:
        killed_after(number, patch, at)
        with pytest.raises(Killed):
            prepare(original_dir, tmp_path / "b", *more)
    assert not (tmp_path / "b").exists()
    written, write = [], parts_module.Parts.write
    with monkeypatch.context() as patch:  # finished parts are not made again
        patch.setattr(
            parts_module.Parts, "write", lambda self, part, table: [written.append(part), write(self, part, table)]
        )
        prepare(original_dir, tmp_path / "b", *more)
    assert len(written) == {".part-": 7 - number}.get(at, 0)
    assert contents(tmp_path / "b") == expected and not (tmp_path / "b.parts").exists()


def test_other_settings_and_other_folders_are_refused(original_dir, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        killed_after(1, patch)
        with pytest.raises(Killed):
            prepare(original_dir, tmp_path / "out")
    error = refusal(words(original_dir, tmp_path / "out", "--short_side", 16), capsys)
    assert "--short_side was 20 and is 16 now" in error and "--output_dir" in error
    before = contents(prepare(original_dir, tmp_path / "out"))
    capsys.readouterr()
    prepare(original_dir, tmp_path / "out")
    assert "is there already" in capsys.readouterr().out and contents(tmp_path / "out") == before
    error = refusal(words(original_dir, tmp_path / "out", "--jpeg_quality", 80), capsys)
    assert "exists and is of other settings: --jpeg_quality was 90 and is 80 now" in error
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert "is not an empty folder" in refusal(words(original_dir, tmp_path / "mine"), capsys)


@pytest.mark.parametrize(
    ("other", "has_as_many"), [(("--jpeg_quality", 85), True), (("--max_shard_size", "1MB"), False)]
)
def test_shards_of_other_settings_are_not_kept(other, has_as_many, original_dir, tmp_path, monkeypatch, capsys):
    """Of a run that was killed while it joined them, and whose folders of parts were deleted."""
    former = ("--max_shard_size", "9KB")
    with monkeypatch.context() as patch:
        killed_after(1, patch, ".train-")
        with pytest.raises(Killed):
            prepare(original_dir, tmp_path / "out", *former)
    work = tmp_path / "out.parts"
    error = refusal(words(original_dir, tmp_path / "out", *former, *other), capsys)
    assert f"delete {work} to begin again" in error
    for split in ("train", "validation"):
        shutil.rmtree(work / split)
    with monkeypatch.context() as patch:
        killed_after(1, patch)
        with pytest.raises(Killed):
            prepare(original_dir, tmp_path / "out", *former, *other)
    # The former settings would join the new parts.
    assert "holds parts of a run with other settings" in refusal(words(original_dir, tmp_path / "out", *former), capsys)
    found = contents(prepare(original_dir, tmp_path / "out", *former, *other))
    assert found == contents(prepare(original_dir, tmp_path / "fresh", *former, *other))
    before = contents(prepare(original_dir, tmp_path / "before", *former))
    assert (sum("train-" in name for name in found) == sum("train-" in name for name in before)) == has_as_many


def test_shards_of_other_splits_are_not_deleted(original_dir, tmp_path, monkeypatch, capsys):
    """Of a run that was killed while it joined them: its images are in them alone."""
    former = ("--splits", "train", "--max_shard_size", "9KB")
    expected = contents(prepare(original_dir, tmp_path / "fresh", *former))
    with monkeypatch.context() as patch:
        killed_after(2, patch, ".train-")
        with pytest.raises(Killed):
            prepare(original_dir, tmp_path / "out", *former)
    before = contents(tmp_path / "out.parts")
    error = refusal(words(original_dir, tmp_path / "out", "--splits", "validation"), capsys)
    assert "holds parts of a run with another split (train)" in error and contents(tmp_path / "out.parts") == before
    assert contents(prepare(original_dir, tmp_path / "out", *former)) == expected


@pytest.mark.parametrize("streaming", [False, True])
def test_a_part_that_is_lost_before_the_shards_are_planned(streaming, tmp_path, monkeypatch, capsys):
    source, more = photo_folder(tmp_path / "set"), ("--splits", "train", "--row_group_size", 5)
    line = [*words(source, tmp_path / "out", *more), *(["--dataset_streaming"] if streaming else [])]
    run = SplitWriter.run

    def run_and_lose(self):
        num_rows = run(self)
        (tmp_path / "out.parts" / "train" / "part-000001.parquet").unlink()
        return num_rows

    with monkeypatch.context() as patch:
        patch.setattr(SplitWriter, "run", run_and_lose)
        error = refusal(line, capsys)
    assert f"{tmp_path / 'out.parts' / 'train'} lacks the images from row 5" in error and "same command" in error
    assert not (tmp_path / "out").exists()
    main(line)
    assert contents(tmp_path / "out") == contents(prepare(source, tmp_path / "fresh", *more)) or streaming
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 12


def test_a_disk_that_fails_for_a_while_loses_no_part(original_dir, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(Killed):
            prepare(original_dir, tmp_path / "out")

    opened = pq.ParquetFile

    def open_or_fail(path, **options):
        if "part-" in str(path):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetFile", open_or_fail)
        assert "Input/output error" in refusal(words(original_dir, tmp_path / "out"), capsys)
    assert len(list((tmp_path / "out.parts" / "train").glob("part-*"))) == 2


def test_a_stream_whose_files_changed_is_refused(tmp_path, monkeypatch, capsys):
    source, output = photo_folder(tmp_path / "set"), tmp_path / "out"
    line = [*words(source, output, "--splits", "train", "--row_group_size", 5), "--dataset_streaming"]
    with monkeypatch.context() as patch:
        killed_after(1, patch)
        with pytest.raises(Killed):
            main(line)
    first = source / "train" / "cat" / "0.jpg"
    shutil.copy(source / "test" / "12.jpg", first)
    error = refusal(line, capsys)
    assert "the files of the stream (SRC) changed" in error and f"delete {output}.parts" in error
    first.unlink()
    main(line)
    assert len(load_dataset(str(output), split="train")) == 12
    shutil.copy(source / "test" / "12.jpg", first)
    assert "exists and is of other settings: the files of the stream (SRC) changed" in refusal(line, capsys)


@pytest.mark.parametrize(("is_mount", "message"), [(False, "the current folder"), (True, "a mount point")])
def test_a_folder_that_cannot_be_replaced_is_refused(is_mount, message, original_dir, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out"
    output.mkdir()
    if is_mount:
        monkeypatch.setattr(Path, "is_mount", lambda self: self == output)
    else:
        monkeypatch.chdir(output)
    error = refusal(words(original_dir, output if is_mount else "."), capsys)
    assert f"{output} is {message}" in error and "Name a folder in it" in error
    assert [*tmp_path.iterdir()] == [output] and not any(output.iterdir())


def test_an_empty_folder_behind_a_link_is_filled(original_dir, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert len(load_dataset(str(prepare(original_dir, tmp_path / "out")), split="train")) == 40
    assert (tmp_path / "out").is_symlink()


def test_images_of_bands_are_refused(bands_dir, tmp_path, capsys):
    error = refusal(words(bands_dir, tmp_path / "out"), capsys)
    assert "prepare shrinks 8-bit pictures only" in error and "5 bands" in error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--patch_size", 5), "--patch_size 5 does not divide --image_size 16"),
        (("--max_shard_size", "big"), "--max_shard_size"),
        (("--splits", "dev"), "has no split 'dev'. It has: train, validation. Choose one with --splits."),
        (("--jpeg_quality", 0), "--jpeg_quality 0: must be at least 1 and at most 100"),
        (("--task", "detection"), "0 columns of objects"),
    ],
)
def test_flags_that_do_not_fit_are_refused(more, message, original_dir, tmp_path, capsys):
    assert message in refusal(words(original_dir, tmp_path / "out", *more), capsys)


def test_what_is_written_does_not_lie_among_what_is_read(original_dir, capsys):
    assert "would read each image twice" in refusal(words(original_dir, original_dir / "small"), capsys)
    assert not (original_dir / "small").exists()


# ---- training on what was prepared ----


def test_pretraining_needs_no_statistics_pass(original_dir, tmp_path, monkeypatch):
    folder = prepare(original_dir, tmp_path / "prepared")
    monkeypatch.setattr(statistics_pass, "statistics_of_source", None)
    monkeypatch.setattr(statistics_pass, "statistics_of_band_source", None)
    settings = {
        "dataset_name": folder,
        "config_overrides": TINY_OVERRIDES,
        "output_dir": tmp_path / "run",
        "target_normalization": "global_patch",
        "target_statistics": "auto",
        "image_statistics": "auto",
        "per_device_train_batch_size": 8,
        "max_steps": 2,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "crop_pct": 1.0,
    }
    pretrain.main(as_flags(settings))
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert np.isfinite(results["eval_loss"]) and 0.3 < config["image_mean"][0] < 0.7


@pytest.mark.parametrize("streaming", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_classifier_is_trained_on_it(streaming, original_dir, encoder_dir, tmp_path):
    settings = finetuning_settings(prepare(original_dir, tmp_path / "prepared"), encoder_dir, tmp_path / "run")
    finetune.main(as_flags(settings, "--max_steps", 2, "--dataset_streaming", streaming))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["id2label"] == {"0": "a", "1": "b"}
    assert "eval_accuracy" in json.loads((tmp_path / "run" / "all_results.json").read_text())


def map_folder(folder: Path) -> Path:
    """Twelve JPEG photos of 60 x 40 pixels with maps of three classes, and names for these."""
    for i, picture in enumerate(photos(12, 60)):
        for kind in ("images", "masks"):
            (folder / kind / "train").mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(picture[:40]).save(folder / "images" / "train" / f"{i}.jpg", quality=95)
        values = (picture[:40, :, 0] // 86).astype(np.uint8)
        PILImage.fromarray(values).save(folder / "masks" / "train" / f"{i}.png")
    (folder / "id2label.json").write_text(json.dumps({"0": "dark", "1": "gray", "2": "bright"}))
    return folder


def test_maps_of_a_webdataset_are_kept(tmp_path, monkeypatch):
    """Which are called as the files beside an image are; and the tars are named without their folder."""
    maps = {"seg.png": lambda i: encoded(np.full((16, 16), i % 3, np.uint8))}
    write_tars(tmp_path / "of_mine", {"train": 6}, **maps)
    monkeypatch.chdir(tmp_path)
    folder = prepare("of_mine/train-{000000..000001}.tar", tmp_path / "prepared")
    rows = load_dataset(str(folder), split="train")
    assert [np.unique(row["seg.png"]).tolist() for row in rows] == [[i % 3] for i in range(6)]
    card = (folder / "README.md").read_text()
    assert "# train-{000000..000001}.tar, prepared" in card and "of_mine" not in card


def test_maps_fit_their_images(tmp_path):
    source = map_folder(tmp_path / "set")
    folder = prepare(source, tmp_path / "prepared")
    assert (folder / "id2label.json").read_bytes() == (source / "id2label.json").read_bytes()
    row = load_dataset(str(folder), split="train")[1]
    assert row["image"].size == row["annotation"].size == (30, 20) and row["annotation"].format == "PNG"
    former = np.asarray(PILImage.open(source / "masks" / "train" / "1.png"))
    np.testing.assert_array_equal(np.asarray(row["annotation"]), former[1::2, 1::2])


@pytest.mark.slow
def test_a_segmenter_is_trained_on_it(tmp_path):
    folder = prepare(map_folder(tmp_path / "set"), tmp_path / "prepared")
    config = ViTMAERobustConfig(**{**TINY, "num_hidden_layers": 6})
    ViTMAERobustForPreTraining(config).save_pretrained(tmp_path / "encoder")
    settings = {
        "task": "segmentation",
        "dataset_name": folder,
        "model_name_or_path": tmp_path / "encoder",
        "output_dir": tmp_path / "run",
        "image_size": 16,
        "segmentation_channels": 8,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "eval_split_name": "train",
    }
    finetune.main(as_flags(settings))
    assert "eval_mean_iou" in json.loads((tmp_path / "run" / "all_results.json").read_text())


def object_set(folder: Path) -> Path:
    """Eight images of 96 x 64 pixels with two rectangles each."""
    features = Features(
        {
            "image": Image(),
            "objects": {
                "bbox": List(List(Value("float64"))),
                "category": List(ClassLabel(names=["red", "blue"])),
                "segmentation": List(List(List(Value("float64")))),
            },
        }
    )
    rows = []
    for i in range(8):
        picture, objects = np.full((64, 96, 3), 100, np.uint8), {"bbox": [], "category": [], "segmentation": []}
        for category, (x, y, w, h) in enumerate([(4 + i, 8, 30, 20), (50, 20 + i, 28, 32)]):
            picture[y : y + h, x : x + w] = ((220, 40, 40), (40, 40, 220))[category]
            objects["bbox"].append([x, y, w, h])
            objects["category"].append(category)
            objects["segmentation"].append([[x, y, x + w, y, x + w, y + h, x, y + h]])
        rows.append({"image": PILImage.fromarray(picture), "objects": objects})
    (folder / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        Dataset.from_list(rows, features=features).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_objects_fit_their_images(tmp_path):
    folder = prepare(object_set(tmp_path / "set"), tmp_path / "prepared", "--short_side", 32, "--lossless")
    found = load_dataset(str(folder), split="train")
    assert found.features["objects"]["category"].feature.names == ["red", "blue"]
    for row in found:
        pixels = np.asarray(row["image"])
        assert pixels.shape == (32, 48, 3)
        for (x, y, w, h), category in zip(row["objects"]["bbox"], row["objects"]["category"]):
            inside = pixels[int(y) + 2 : int(y + h) - 2, int(x) + 2 : int(x + w) - 2]
            assert (inside.argmax(axis=-1) == (0, 2)[category]).all()
        assert row["objects"]["segmentation"][0][0][:2] == row["objects"]["bbox"][0][:2]


def test_categories_of_another_list_are_written_as_those_of_the_first_split(tmp_path):
    splits = load_dataset(str(object_set(tmp_path / "set")))
    features = splits["validation"].features.copy()
    features["objects"]["category"] = List(ClassLabel(names=["blue", "red"]))
    splits["validation"] = splits["validation"].cast(features)
    splits.save_to_disk(tmp_path / "saved")
    folder = prepare(tmp_path / "saved", tmp_path / "prepared", "--short_side", 32)
    written = load_dataset(str(folder))
    assert {split: table["objects"][0]["category"] for split, table in written.items()} == {
        "train": [0, 1],
        "validation": [1, 0],
    }


@pytest.mark.slow
def test_a_detector_is_trained_on_it(tmp_path):
    config = ViTMAERobustConfig(**{**TINY, "num_hidden_layers": 4, "patch_size": 8, "image_size": 32})
    ViTMAERobustForPreTraining(config).save_pretrained(tmp_path / "encoder")
    settings = {
        "config": "mask_rcnn_small",
        "dataset_name": prepare(object_set(tmp_path / "set"), tmp_path / "prepared", "--short_side", 32),
        "model_name_or_path": tmp_path / "encoder",
        "output_dir": tmp_path / "run",
        "image_size": 64,
        "window_size": 4,
        "config_overrides": HEADS,
        "per_device_train_batch_size": 4,
        "max_steps": 2,
        "dataloader_num_workers": 0,
        "report_to": "none",
    }
    finetune.main(as_flags(settings))
    assert "eval_box_ap" in json.loads((tmp_path / "run" / "all_results.json").read_text())


@pytest.mark.slow
def test_two_processes_and_a_kill_give_the_same_bytes(original_dir, tmp_path):
    more = ("--max_shard_size", "9KB")
    expected = contents(prepare(original_dir, tmp_path / "a", *more))
    run = ["-m", "hf_mae_robust", *words(original_dir, tmp_path / "b", *more)]
    both = offline().run(run, tmp_path / "two", processes=2)
    assert both.codes == [0, 0], both.output
    assert contents(tmp_path / "b") == expected
    killed = ["-m", "hf_mae_robust", *words(original_dir, tmp_path / "c", *more)]
    parts = f"__import__('glob').glob({str(tmp_path / 'c.parts' / 'train' / 'part-*')!r})"
    fault = {"FAULT_AT": "hf_mae_robust.files.flush", "FAULT": f"len({parts}) == 2 and os.kill(os.getpid(), 9)"}
    assert offline().run(killed, tmp_path / "three", **fault).codes == [-9]
    resumed = offline().run(killed, tmp_path / "four", processes=2)
    assert resumed.codes == [0, 0] and "resuming" in resumed.stdout, resumed.output
    assert contents(tmp_path / "c") == expected


@pytest.mark.slow
def test_bad_images_of_one_process_end_both(tmp_path):
    source = photo_folder(tmp_path / "set", bad=(4, 7))
    run = ["-m", "hf_mae_robust", *words(source, tmp_path / "out", "--row_group_size", 3)]
    both = offline().run(run, tmp_path / "printed", processes=2)
    assert both.codes == [2, 2] and "--max_bad_images 0.01" in both.output
