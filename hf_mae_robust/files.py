"""Writing files so that they are complete, or not there."""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import ExistingFileError, UserError

MANIFEST = "manifest.json"
# What Git leaves in the place of a large file that was not fetched.
GIT_LFS = b"version https://git-lfs.github.com/spec/"


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lfs_pointer(place: str | Path, pattern: str = "*") -> str | None:
    """The sentence on a file that Git LFS has not fetched: `place` itself, or the first one in that folder that fits
    `pattern`; None where all are there."""
    place = Path(place)
    files = sorted(place.rglob(pattern)) if place.is_dir() else [place]
    for file in files:
        if not file.is_file() or file.stat().st_size > 1024:
            continue
        with file.open("rb") as opened:
            if opened.read(len(GIT_LFS)) == GIT_LFS:
                return f"{file} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    return None


def flush(path: Path) -> None:
    """Make the disk hold what the operating system may still hold in memory; for a folder: its list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(folder: Path) -> None:
    """Write `manifest.json` (size in bytes and SHA-256 of every file) and flush everything to the disk."""
    files = {}
    for path in _files_in(folder):
        flush(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1) + "\n")
    flush(manifest)
    for subfolder in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        flush(subfolder)


def broken_file_of(folder: Path) -> str | None:
    """What differs between a folder and its manifest; None where it is complete."""
    try:
        listed = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return f"it holds no {MANIFEST}, so it was not written to the end (or not by this package)"
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, expected in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {expected['size']:,}"
        if sha256_of(path) != expected["sha256"]:
            return f"{name} has changed since it was written (SHA-256)"
    return None


def replace_files(staged: Path, folder: Path) -> None:
    """Move each file of a folder into another one, over older ones, so that none is ever there in part."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in _files_in(staged):
        flush(path)
        final = folder / path.relative_to(staged)
        final.parent.mkdir(exist_ok=True)
        path.replace(final)
    for changed in {folder, *(folder / path.relative_to(staged) for path in staged.rglob("*") if path.is_dir())}:
        flush(changed)
    shutil.rmtree(staged)


def allow_group(folder: Path) -> None:
    """safetensors creates files that only their owner can read; give all files the permissions of any new file."""
    mask = os.umask(0)
    os.umask(mask)
    for path in _files_in(folder):
        path.chmod(0o666 & ~mask)


def check_is_free(path: str | Path) -> None:
    """Raises ExistingFileError where `path` is a file or a folder that is not empty, or that none can be renamed to."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExistingFileError(f"{path} exists and is not an empty folder. Choose another one, or remove it.")
    # The system does not rename to a mount point, and the shell of the current folder would stay in a deleted one.
    kind = "a mount point" if path.is_mount() else "the current folder" if path.resolve() == Path.cwd() else None
    if kind is not None:
        raise ExistingFileError(
            f"{path} is {kind}, and the finished folder is renamed to its place. Name a folder in it."
        )


def check_ending(path: Path, name: str, ending: str) -> None:
    """Raises UserError where a file to write has another ending than `ending`, such as a picture that was named by
    mistake, which it would replace. One without an ending is as it is. name: of the flag that says the path."""
    if path.suffix not in ("", ending):
        raise UserError(f"{name} {path}: must end in {ending}, such as {path.name}{ending}.")


def check_can_write(path: str | Path, name: str) -> None:
    """Raises UserError where neither a file nor a folder can be made or changed at `path`. Nothing is written. name: of
    the flag that says the path."""
    path = Path(path)
    existing = next(each for each in (path, *path.absolute().parents) if os.path.lexists(each))
    if existing != path and not existing.is_dir():
        raise UserError(f"{name} {path}: {existing} is not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK if existing.is_dir() else os.W_OK):
        raise UserError(f"{name} {path}: {existing} cannot be written to. Choose another folder.")


def write_completely(path: Path, write: Callable[[Path], Any], folder: Path | None = None) -> None:
    """Let `write` write a file under another name, flush it to the disk, and give it its name: complete, or not there.
    An error leaves nothing; a signal may leave the file under the other name.
    folder: where it lies meanwhile, on the same disk; None: beside `path`."""
    unfinished = (folder or path.parent) / f".{path.name}-{secrets.token_hex(4)}"
    try:
        write(unfinished)
        flush(unfinished)
        unfinished.replace(path)
    except Exception:
        unfinished.unlink(missing_ok=True)
        raise
    flush(path.parent)


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path to write a file or a folder to, which becomes `path` at the end of the block. If the block fails, nothing
    is left. ExistingFileError as in `check_is_free`."""
    path = Path(path).resolve()
    check_is_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, because a rename is atomic within one file system only.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        complete = Path(folder) / "complete"
        yield complete
        complete.replace(path)


def with_home(path: str) -> str:
    """A path whose `~` stands for the home folder; everything else stays as it is, addresses included."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:  # of an unknown user
        return path
