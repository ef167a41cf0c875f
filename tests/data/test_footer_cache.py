"""Footers that are kept on the disk."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_mae_robust.data import kept
from hf_mae_robust.data.footer_cache import keep_footer, load_footer
from hf_mae_robust.data.parquet_files import read_footer


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where they are kept."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.setattr(kept, "cached_assets_path", lambda *names, **more: folder)
    return folder


@pytest.fixture
def path(tmp_path):
    table = pa.table({"image": [b"1", b"2", b"3"]}).replace_schema_metadata({"huggingface": "{}"})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    return tmp_path / "x.parquet"


def test_a_footer_that_is_kept_is_the_footer(place, path):
    assert load_footer(str(path)) is None
    original = read_footer(str(path))
    kept = load_footer(f"file://{path}")
    assert kept is not None and len(list(place.iterdir())) == 1
    assert [kept.row_group(i).num_rows for i in range(kept.num_row_groups)] == [2, 1]
    assert kept.row_group(0).total_byte_size == original.row_group(0).total_byte_size
    assert kept.schema.to_arrow_schema().equals(original.schema.to_arrow_schema(), check_metadata=True)
    assert kept.schema.to_arrow_schema().metadata[b"huggingface"] == b"{}"


def test_another_file_in_its_place_has_another_footer(place, path):
    read_footer(str(path))
    pq.write_table(pa.table({"image": [b"4"]}), path)
    assert load_footer(str(path)) is None and read_footer(str(path)).num_rows == 1
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert load_footer(str(path)) is None


@pytest.mark.parametrize("damage", ["empty", "cut", "bit", "other content"])
def test_what_is_broken_is_not_trusted(place, path, damage):
    read_footer(str(path))
    (kept,) = place.iterdir()
    content = kept.read_bytes()
    kept.write_bytes(
        {
            "empty": b"",
            "cut": content[:-1],
            "bit": content[:50] + bytes([content[50] ^ 1]) + content[51:],
            "other content": bytes(500),
        }[damage]
    )
    assert load_footer(str(path)) is None
    assert read_footer(str(path)).num_rows == 3
    assert kept.read_bytes() == content  # written again


def test_footers_at_other_addresses_are_not_kept(place, path):
    for url in ("memory://x.parquet", "hf://datasets/org/photos@main/x.parquet", "/no/such/file.parquet"):
        keep_footer(url, pq.read_metadata(path))
        assert load_footer(url) is None
    assert not list(place.iterdir())
    keep_footer(f"hf://datasets/org/photos@{'1' * 40}/x.parquet", pq.read_metadata(path))
    assert load_footer(f"hf://datasets/org/photos@{'1' * 40}/x.parquet").num_rows == 3
    assert load_footer(f"hf://datasets/org/photos@{'2' * 40}/x.parquet") is None


def test_a_place_that_cannot_be_written_to_does_not_stop_anything(place, path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(kept.tempfile, "TemporaryDirectory", full)
    assert read_footer(str(path)).num_rows == 3 and load_footer(str(path)) is None
    monkeypatch.setattr(kept, "cached_assets_path", full)
    assert read_footer(str(path)).num_rows == 3
