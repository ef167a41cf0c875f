"""Writing a checkpoint so that it is there whole, or not at all.

All processes write into `_staging/`; then one of them lists every file with its size and checksum, flushes all of it to
the disk and renames the folder. The rename is the instant at which the checkpoint exists. Only then are older ones
deleted. Whatever a killed process leaves behind lies in `_staging/`, where nobody looks for a checkpoint.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

# The Trainer's upload to the Hub leaves out "_*".
STAGING = "_staging"
MANIFEST = "manifest.json"


class SavingError(OSError):
    """A checkpoint could not be written; the message says why and which one is the newest complete one."""


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """The `checkpoint-N` folders, newest (highest N) first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    folders = Path(output_dir).iterdir() if Path(output_dir).is_dir() else ()
    found = [(int(match[1]), path) for path in folders if path.is_dir() and (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
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
        _flush(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1) + "\n")
    _flush(manifest)
    for subfolder in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        _flush(subfolder)


def broken_file_of(folder: Path) -> str | None:
    """What differs between a folder and its manifest; None where it is whole."""
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
        if _sha256(path) != expected["sha256"]:
            return f"{name} has changed since it was written (SHA-256)"
    return None


def publish(staged: Path, final: Path) -> None:
    """Give a sealed folder its name. One that has the name already is kept until the new one stands."""
    replaced = staged.with_name(f"replaced-{final.name}")
    if final.exists():
        final.rename(replaced)
    staged.rename(final)
    _flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(output_dir: str | Path) -> None:
    """Undo what a killed process left half done: a sealed checkpoint that was about to get its name gets it; the rest
    of the staging folder is deleted."""
    staging = Path(output_dir) / STAGING
    if not staging.is_dir():
        return
    for staged in checkpoints_in(staging) + [
        path for path in staging.iterdir() if path.name.startswith(f"replaced-{PREFIX_CHECKPOINT_DIR}-")
    ]:
        final = Path(output_dir) / staged.name.removeprefix("replaced-")
        if not final.exists() and broken_file_of(staged) is None:
            staged.rename(final)
            _flush(final.parent)
    shutil.rmtree(staging)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; a kill in the middle leaves no part of it under its name."""
    staging = checkpoint.parent / STAGING
    staging.mkdir(exist_ok=True)
    doomed = staging / f"deleted-{checkpoint.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def rotate(newest: Path, limit: int | None, keep: Iterable[str | Path | None] = ()) -> None:
    """Delete all but `limit` checkpoints (none where None or 0): `newest`, which was just written, and those before
    it. Those with higher numbers are left from an abandoned run and go first. Those named in `keep` stay."""
    step = int(newest.name.rpartition("-")[2])
    others = [path for path in checkpoints_in(newest.parent) if path.name != newest.name]
    others.sort(key=lambda path: int(path.name.rpartition("-")[2]) > step)
    kept = {Path(path).name for path in keep if path is not None}
    for checkpoint in others[limit - 1 :] if limit else ():
        if checkpoint.name not in kept:
            remove(checkpoint)


def replace_files(staged: Path, folder: Path) -> None:
    """Move each file of a folder into another one, over older ones, so that none is ever there in part."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in _files_in(staged):
        _flush(path)
        final = folder / path.relative_to(staged)
        final.parent.mkdir(exist_ok=True)
        path.replace(final)
    for changed in {folder, *(folder / path.relative_to(staged) for path in staged.rglob("*") if path.is_dir())}:
        _flush(changed)
    shutil.rmtree(staged)


def allow_group(folder: Path) -> None:
    """safetensors creates files that only their owner can read; give all files the permissions of any new file."""
    mask = os.umask(0)
    os.umask(mask)
    for path in _files_in(folder):
        path.chmod(0o666 & ~mask)


def check_is_free(path: str | Path) -> None:
    """Raises FileExistsError where `path` is a file or a folder that is not empty."""
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder. Choose another one, or remove it.")


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path to write a file or a folder to, which becomes `path` at the end of the block. If the block fails, nothing
    is left. FileExistsError as in `check_is_free`."""
    path = Path(path).resolve()
    check_is_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, because a rename is atomic within one file system only.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        complete = Path(folder) / "complete"
        yield complete
        complete.replace(path)
