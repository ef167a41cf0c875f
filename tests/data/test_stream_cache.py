"""--stream_cache: sizes, and which files make room. tests/hub/test_many_readers.py reads through it."""

import errno
import os
import time
from pathlib import Path

import pytest

from hf_mae_robust.data.stream_cache import ABANDONED_SECONDS, StreamCache, parse_size
from hf_mae_robust.errors import DataError

OURS, OLDER = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("text", "expected"),
    [("200GB", 2 * 10**11), ("1.5TiB", 3 * 2**39), ("64 gib", 2**36), ("10MB", 10**7), ("1KB", 1000)],
)
def test_sizes(text, expected):
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "200", "GB", "0GB", "-1GB", "1e3GB", "200 gigabytes", "nanGB", "1,5TB", "5Gb!"])
def test_what_is_not_a_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size: write a number above 0 and a unit, such as 200GB"):
        parse_size(text)


def put(folder: Path, repo: str, commit: str, name: str, size: int, minutes_ago: float, kind: str = "datasets") -> Path:
    """A file as huggingface_hub keeps it; the blob."""
    place = folder / f"{kind}--{repo.replace('/', '--')}"
    blob, link = place / "blobs" / f"{name}-{commit[:4]}", place / "snapshots" / commit / name
    for path in (blob, link):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(bytes(size))
    link.symlink_to(os.path.relpath(blob, link.parent))
    then = time.time() - 60 * minutes_ago
    os.utime(blob, (then, then))
    return blob


@pytest.fixture
def files(tmp_path):
    return {
        "ours": put(tmp_path, "org/photos", OURS, "1.parquet", 400, minutes_ago=99),
        "older": put(tmp_path, "org/photos", OLDER, "1.parquet", 200, minutes_ago=30),
        "other": put(tmp_path, "org/other", OURS, "1.parquet", 200, minutes_ago=20),
        "newest": put(tmp_path, "org/other", OURS, "2.parquet", 200, minutes_ago=10),
    }


@pytest.mark.parametrize(
    ("needed", "left"),
    [
        (0, ["ours", "older", "other", "newest"]),
        (200, ["ours", "other", "newest"]),
        (201, ["ours", "newest"]),
        (600, ["ours"]),
    ],
)
def test_the_least_recently_used_files_of_others_make_room(tmp_path, files, needed, left):
    cache = StreamCache(tmp_path, 1000)
    assert cache._make_room(needed, "org/photos", OURS)
    assert [name for name, blob in files.items() if blob.exists()] == left
    assert all(link.exists() for link in tmp_path.rglob("snapshots/*/*"))  # and no link without a file


def test_files_of_the_data_set_that_is_read_stay(tmp_path, files):
    assert not StreamCache(tmp_path, 1000)._make_room(601, "org/photos", OURS)
    assert files["ours"].exists()
    assert not StreamCache(tmp_path, 1000)._make_room(1001, "org/photos", OURS)


def test_partial_downloads_count_and_abandoned_ones_go(tmp_path, files):
    blobs = files["ours"].parent
    for name, seconds in (("new", 0), ("old", ABANDONED_SECONDS + 60)):
        (blobs / f"{name}.incomplete").write_bytes(bytes(100))
        os.utime(blobs / f"{name}.incomplete", (time.time() - seconds,) * 2)
    assert StreamCache(tmp_path, 1200)._make_room(100, "org/photos", OURS)
    assert (blobs / "new.incomplete").exists() and not (blobs / "old.incomplete").exists()
    assert all(blob.exists() for blob in files.values())  # 1,000 and 100 and 100


def test_models_in_the_same_folder_stay_and_do_not_count(tmp_path, files):
    """As in huggingface_hub's own cache; a model may have the name of the data set."""
    models = [
        put(tmp_path, repo, OURS, "model.safetensors", 5000, minutes_ago=999, kind="models")
        for repo in ("org/photos", "org/vit")
    ]
    models.append(models[0].with_name("half.incomplete"))
    models[-1].write_bytes(bytes(5000))
    os.utime(models[-1], (time.time() - ABANDONED_SECONDS - 60,) * 2)
    assert StreamCache(tmp_path, 1000)._make_room(200, "org/photos", OURS)
    assert [name for name, blob in files.items() if blob.exists()] == ["ours", "other", "newest"]
    assert [model.stat().st_size for model in models] == [5000] * 3


def test_a_file_that_was_not_verified_or_has_changed_since_is_not_used(tmp_path):
    cache, url = StreamCache(tmp_path), f"hf://datasets/org/photos@{OURS}/1.parquet"
    assert cache.find(url) is None
    blob = put(tmp_path, "org/photos", OURS, "1.parquet", 40, minutes_ago=5)
    link = tmp_path / "datasets--org--photos" / "snapshots" / OURS / "1.parquet"
    assert cache.find(url) is None
    assert cache._verify(link) and cache.find(url).size() == 40
    assert time.time() - blob.stat().st_atime < 60  # used now
    blob.write_bytes(bytes(39))
    assert cache.find(url) is None


def test_files_of_another_user_are_read(tmp_path, monkeypatch):
    """Their times are their owner's to change."""
    cache, url = StreamCache(tmp_path), f"hf://datasets/org/photos@{OURS}/1.parquet"
    put(tmp_path, "org/photos", OURS, "1.parquet", 40, minutes_ago=5)
    assert cache._verify(tmp_path / "datasets--org--photos" / "snapshots" / OURS / "1.parquet")

    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.open(url).size() == 40


def test_only_files_of_the_hub_at_a_commit_are_kept(tmp_path):
    cache = StreamCache(tmp_path)
    for url in ("/data/x.parquet", "s3://bucket/x.parquet", "hf://datasets/org/photos@main/x.parquet"):
        assert cache.open(url) is None and cache.find(url) is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="--stream_cache .*file/kept: cannot be written to"):
        StreamCache(tmp_path / "file" / "kept")
