"""What a tar holds, by its headers: samples as the webdataset package makes them, and tars that are broken."""

import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from hf_mae_robust.data import kept
from hf_mae_robust.data.tar_index import load_index, make_index
from hf_mae_robust.errors import DataError


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Where indexes are kept."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.setattr(kept, "cached_assets_path", lambda *names, **more: folder)
    return folder


def write(path: Path, members: dict[str, bytes], **options) -> Path:
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items():
            add(archive, name, content)
    return path


def add(archive, name, content=b"", kind=tarfile.REGTYPE, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, len(content), target
    archive.addfile(member, io.BytesIO(content))


def indexed(path):
    with path.open("rb") as file:
        return make_index(str(path), file)


def samples_of(path) -> list[dict[str, bytes]]:
    """Contents by what they are, read at the places that the index names."""
    index, content = indexed(path), path.read_bytes()
    samples: list[dict[str, bytes]] = [{} for _ in range(index.num_samples)]
    for member in index.members.to_pylist():
        samples[member["sample"]][member["kind"]] = content[member["offset"] :][: member["size"]]
    return samples


def by_webdataset(path) -> list[dict[str, bytes]]:
    rows = webdataset.WebDataset(str(path), shardshuffle=False)
    return [{kind: value for kind, value in row.items() if not kind.startswith("__")} for row in rows]


NAMES = {
    "plain": ["0.jpg", "0.cls", "1.jpg", "1.cls"],
    "folders": ["a.b/0.jpg", "a.b/0.seg.png", "c/0.jpg", "c/0.seg.png"],
    "upper case": ["x/0.JPEG", "x/0.Cls", "x/1.jpg"],
    "with a dot before": ["./0.jpg", "./0.cls", "./1.jpg"],
    "long": [f"{'n' * 140}/{'f' * 90}.jpg", f"{'n' * 140}/{'f' * 90}.cls", "é日本.jpg"],
}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_samples_are_those_of_the_webdataset_package(tmp_path, names, form):
    path = write(tmp_path / "a.tar", {name: name.encode() * 200 for name in names}, format=form)
    assert samples_of(path) == by_webdataset(path) != []


def test_members_that_are_apart_are_one_sample_and_repeated_ones_are_two(tmp_path):
    """The webdataset package makes four samples of the first tar, and refuses the second one."""
    apart = write(tmp_path / "a.tar", {"0.jpg": b"a", "1.jpg": b"b", "0.cls": b"0", "1.cls": b"1"})
    assert samples_of(apart) == [{"jpg": b"a", "cls": b"0"}, {"jpg": b"b", "cls": b"1"}]
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for content in (b"a", b"b"):
            add(archive, "0.jpg", content)
            add(archive, "0.cls", content)
    assert samples_of(tmp_path / "b.tar") == [{"jpg": b"a", "cls": b"a"}, {"jpg": b"b", "cls": b"b"}]


def test_links_folders_and_hidden_files(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "x", kind=tarfile.DIRTYPE)
        add(archive, "x/0.jpg", b"photo")
        add(archive, "x/1.jpg", kind=tarfile.LNKTYPE, target="x/0.jpg")
        add(archive, "y/2.jpg", kind=tarfile.SYMTYPE, target="../x/1.jpg")
        add(archive, "y/3.jpg", kind=tarfile.SYMTYPE, target="../gone.jpg")
        add(archive, "y/4.jpg", kind=tarfile.SYMTYPE, target="4.jpg")
        add(archive, "._x/0.jpg", b"of a Mac")
        add(archive, "x/._0.jpg", b"of a Mac")
        add(archive, "README", b"text")
        add(archive, "fifo.jpg", kind=tarfile.FIFOTYPE)
    assert samples_of(tmp_path / "a.tar") == [{"jpg": b"photo"}] * 3
    assert indexed(tmp_path / "a.tar").left_out == {
        "are links to members that are not there": (2, "y/3.jpg"),
        "are hidden, or lie in hidden folders": (2, "._x/0.jpg"),
        "have no ending": (1, "README"),
    }


def test_an_index_is_kept_until_the_tar_changes(tmp_path, place, monkeypatch):
    path = write(tmp_path / "a.tar", {"0.jpg": b"a", "0.cls": b"7", ".x.jpg": b""})
    assert load_index(str(path)) is None
    index = indexed(path)
    again = load_index(str(path))
    assert again is not None and again.members.equals(index.members)
    assert (again.size, again.left_out, again.has_end) == (path.stat().st_size, index.left_out, True)
    write(path, {"0.jpg": b"b", "1.jpg": b"c"})
    assert load_index(str(path)) is None and len(samples_of(path)) == 2
    for file in place.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    assert load_index(str(path)) is None


MEMBERS = {f"{i}.jpg": bytes([65 + i]) * 3000 for i in range(3)}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (2 * 3584 + 700, r"a\.tar ends within member 2\.jpg: it has 7,868 bytes, and the member ends at byte 10,680"),
        (2 * 3584 + 512, r"ends within member 2\.jpg"),
        (2 * 3584 + 300, r"a\.tar ends after member 1\.jpg: no header stands at byte 7,168"),
        (300, r"a\.tar cannot be read as a tar \(truncated header\)"),
        (0, r"a\.tar cannot be read as a tar \(empty file\)"),
    ],
)
def test_truncated_tars_say_where(tmp_path, size, message):
    path = write(tmp_path / "a.tar", MEMBERS)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=message):
        indexed(path)


def test_a_tar_cut_between_two_members_lacks_its_end_mark(tmp_path):
    path = write(tmp_path / "a.tar", MEMBERS)
    assert indexed(path).has_end
    path.write_bytes(path.read_bytes()[: 2 * 3584])
    index = indexed(path)
    assert index.num_samples == 2 and not index.has_end


def test_damaged_double_sparse_and_compressed_tars_are_refused(tmp_path):
    path = write(tmp_path / "a.tar", MEMBERS)
    content = bytearray(path.read_bytes())
    content[3584 + 100 : 3584 + 200] = bytes(range(100))
    (tmp_path / "damaged.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"damaged\.tar is damaged after member 0\.jpg: no header stands at byte 3,584"):
        indexed(tmp_path / "damaged.tar")
    (tmp_path / "twice.tar").write_bytes(path.read_bytes() * 2)
    with pytest.raises(DataError, match=r"has more behind its end mark, which stands after member 2\.jpg"):
        indexed(tmp_path / "twice.tar")
    with tarfile.open(tmp_path / "sparse.tar", "w") as archive:
        add(archive, "0.jpg", b"0" * 512, kind=tarfile.GNUTYPE_SPARSE)
    with pytest.raises(DataError, match=r"member 0\.jpg is stored with holes"):
        indexed(tmp_path / "sparse.tar")
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        add(archive, "0.jpg", b"a")
    with pytest.raises(DataError, match=r"packed\.tar is compressed, .*gzip -d"):
        indexed(tmp_path / "packed.tar")
    (tmp_path / "text.tar").write_text("no tar " * 200)
    with pytest.raises(DataError, match=r"text\.tar cannot be read as a tar"):
        indexed(tmp_path / "text.tar")
