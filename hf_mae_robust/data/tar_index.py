"""Which samples a tar of a WebDataset holds, and where: found out once, and kept on disk (kept.py).

The convention (github.com/webdataset/webdataset): members whose names are equal up to the first dot of the last part
are one sample, `000/0001.jpg` and `000/0001.cls`; what stands after that dot says what a member holds.
"""

import json
import os
import posixpath
import re
import tarfile
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import DataError
from ..hub.faults import public
from .kept import keep, load_kept

# Raise the number when the content changes.
KIND = ("webdataset", "indexes-1")
# Key of the sample, and what its member holds.
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_COMPRESSED = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ\x00": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}
MAX_LINKS = 8  # one after the other
SCHEMA = pa.schema(
    [
        ("sample", pa.int64()),
        ("kind", pa.dictionary(pa.int32(), pa.string())),
        ("name", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


@dataclass(frozen=True, eq=False)
class TarIndex:
    """What one tar holds.

    Attributes:
        members: `SCHEMA`, those of a sample next to one another: its number in the tar (from 0), what stands after the
            first dot of the name, in lower case ("jpg", "cls", "seg.png"), the name, and where its bytes are.
        size: of the tar, in bytes.
        left_out: why members belong to no sample -> how many, and the first of them.
        has_end: whether a tar's end mark stands at its end.
    """

    members: pa.Table
    size: int
    left_out: dict[str, tuple[int, str]]
    has_end: bool

    @property
    def num_samples(self) -> int:
        return self.members["sample"][-1].as_py() + 1 if len(self.members) else 0


@dataclass
class _Member:
    """name: as the tar has it. target: normalised name of the member that a link leads to; None: no link."""

    name: str
    offset: int
    size: int
    target: str | None = None


def load_index(url: str) -> TarIndex | None:
    """The index that was kept of a tar, where it is as it was."""
    content = load_kept(url, KIND)
    if content is None:
        return None
    table = pq.read_table(pa.BufferReader(content))
    about = json.loads((table.schema.metadata or {})[b"about"])
    left_out = {why: (number, first) for why, (number, first) in about["left_out"].items()}
    return TarIndex(table.replace_schema_metadata(None).cast(SCHEMA), about["size"], left_out, about["has_end"])


def make_index(url: str, file: BinaryIO) -> TarIndex:
    """The index of a tar by its headers; it is kept. file: the tar, opened. Raises DataError as `walk`."""
    index = walk(url, file, os.fstat(file.fileno()).st_size)
    about = {"size": index.size, "left_out": index.left_out, "has_end": index.has_end}
    sink = pa.BufferOutputStream()
    pq.write_table(index.members.replace_schema_metadata({"about": json.dumps(about)}), sink)
    keep(url, KIND, sink.getvalue().to_pybytes())
    return index


def walk(url: str, file: BinaryIO, size: int) -> TarIndex:
    """Go through the headers of a tar.

    Raises DataError, with the member, where it is compressed, is not a tar, ends within a member, is damaged, has
    something behind its end mark, or holds a sparse member.
    """
    name = public(url)
    start = file.read(8)
    if (command := next((each for magic, each in _COMPRESSED.items() if start.startswith(magic)), None)) is not None:
        raise DataError(f"{name} is compressed, so that no image in it can be reached directly: unpack it ({command}).")
    file.seek(0)
    members: list[_Member] = []
    left_out: dict[str, tuple[int, str]] = {}

    def leave_out(why: str, member: str) -> None:
        number, first = left_out.get(why, (0, member))
        left_out[why] = (number + 1, first)

    last = "its beginning"
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (found := archive.next()) is not None:
                # Of a million members, a gigabyte. The types of the library lack this attribute.
                archive.members.clear()  # type: ignore[attr-defined]
                last = f"member {found.name}"
                if found.isreg() and found.offset_data + (0 if found.issparse() else found.size) > size:
                    raise DataError(
                        f"{name} ends within {last}: it has {size:,} bytes, and the member ends at byte "
                        f"{found.offset_data + found.size:,}. Copy or write it again."
                    )
                if found.issparse():
                    raise DataError(
                        f"{name}: {last} is stored with holes, which is not read. Write the tar without --sparse."
                    )
                if found.issym():
                    target = posixpath.normpath(posixpath.join(posixpath.dirname(found.name), found.linkname))
                    members.append(_Member(found.name, 0, 0, target))
                elif found.islnk():
                    members.append(_Member(found.name, 0, 0, posixpath.normpath(found.linkname)))
                elif found.isreg():
                    members.append(_Member(found.name, found.offset_data, found.size))
            end = archive.offset
    except tarfile.TarError as error:
        if last == "its beginning":
            raise DataError(f"{name} cannot be read as a tar ({error}).") from error
        raise DataError(f"{name} ends or is damaged after {last} ({error}). Copy or write it again.") from error
    return TarIndex(_grouped(members, leave_out), size, left_out, _check_end(file, end, name, last))


def _check_end(file: BinaryIO, end: int, name: str, last: str) -> bool:
    """Whether there is an end mark: tarfile takes damaged headers for the end, too. Raises DataError."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if not block:
        return False
    if block.strip(b"\0"):
        cut = "ends" if len(block) < tarfile.BLOCKSIZE else "is damaged"
        raise DataError(f"{name} {cut} after {last}: no header stands at byte {end:,}. Copy or write it again.")
    while rest := file.read(1 << 20):
        if rest.strip(b"\0"):
            raise DataError(
                f"{name} has more behind its end mark, which stands after {last}, as two tars have that were written "
                "one behind the other. Keep them apart, and give both."
            )
    return True


def _grouped(members: list[_Member], leave_out: Any) -> pa.Table:
    """Members that belong to samples, by sample. A member joins the last sample of its key that has none of its kind:
    the members of a sample need not be next to one another."""
    by_name = {posixpath.normpath(member.name): member for member in members}
    numbers: dict[str, int] = {}
    kinds: list[set[str]] = []
    rows: list[tuple[int, str, str, int, int]] = []
    for member in members:
        parts = [part for part in member.name.split("/") if part not in ("", ".", "..")]
        if any(part.startswith((".", "__MACOSX")) for part in parts):
            leave_out("are hidden, or lie in hidden folders", member.name)
            continue
        match = _NAME.fullmatch(member.name.removeprefix("./"))
        if match is None:
            leave_out("have no ending", member.name)
            continue
        stored: _Member | None = member
        for _ in range(MAX_LINKS):
            if stored is not None and stored.target is not None:
                stored = by_name.get(stored.target)
        if stored is None or stored.target is not None:
            leave_out("are links to members that are not there", member.name)
            continue
        key, kind = match[1], match[2].lower()
        number = numbers.get(key)
        if number is None or kind in kinds[number]:
            number = numbers[key] = len(kinds)
            kinds.append(set())
        kinds[number].add(kind)
        rows.append((number, kind, member.name, stored.offset, stored.size))
    rows.sort(key=lambda row: row[0])  # stable
    columns = list(zip(*rows)) or [()] * len(SCHEMA)
    arrays = [pa.array(list(values), type=field.type) for values, field in zip(columns, SCHEMA)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)
