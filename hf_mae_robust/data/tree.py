"""The image files below a folder, and what lies there beside them."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .formats import PLUGINS, endings_alone, looks_like_an_image, readable_endings

# What a folder holds that a training run wrote.
_TRACES_OF_A_RUN = frozenset(
    [
        "all_results.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "run.json",
        "skipped_images.jsonl",
        "stopped.json",
        "target_statistics.safetensors",
        "trainer_state.json",
        "training_args.bin",
    ]
)
_CHECKPOINT = re.compile(r"checkpoint-\d+")


@dataclass
class Tree:
    """All paths are relative to the folder, with "/" between, sorted as text.

    Attributes:
        images: files that can be decoded here; arrays (.npy, .npz), and what imagecodecs reads, where nothing else is
            an image. unreadable: image files that need a plugin, which is not installed.
        others: ending (lower case, "" for none) -> number of other files; names: of these, those that tell
            a layout, such as `_annotations.coco.json`.
        broken_links: to image files, or without an ending as links to folders are, that are not there.
        denied: folders that may not be read.
        loops: links to a folder that holds them. hidden: number of image files whose path has a part that begins with
            "." or "__".
        outputs: folders that a training run wrote, which are not looked into, but for the folder itself.
        undecodable: image files whose path is not UTF-8, as archives of other systems unpack them: Arrow cannot hold
            it. Paths are shown with escapes.
    """

    root: Path
    images: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)
    denied: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    undecodable: list[str] = field(default_factory=list)
    hidden: int = 0


def _is_there(entry: os.DirEntry[str]) -> bool:
    """Whether a link leads anywhere: not to itself, and not into a folder that may not be read."""
    try:
        return entry.stat() is not None
    except OSError:
        return False


def _shown(path: str) -> str:
    """What UTF-8, and so Arrow, cannot hold as escapes; every other path as it is."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def read_tree(root: str | Path) -> Tree:
    """Walk through a folder, links to folders and files included."""
    tree, readable, alone = Tree(Path(root)), readable_endings(), endings_alone()
    found_alone: list[str] = []

    def add_file(entry: os.DirEntry[str], path: str) -> None:
        ending = Path(entry.name).suffix.lower()
        if (shown := _shown(path)) != path:
            if ending in readable or ending in PLUGINS:
                tree.undecodable.append(shown)
            else:
                tree.others[_shown(ending)] += 1
        elif entry.is_symlink() and not _is_there(entry):
            if not ending or ending in readable or ending in PLUGINS:
                tree.broken_links.append(path)
        elif ending in readable:
            tree.images.append(path)
        elif ending in alone:
            found_alone.append(path)
        elif ending in PLUGINS:
            tree.unreadable.append(path)
        elif looks_like_an_image(Path(entry.path)):
            tree.images.append(path)
        else:
            tree.others[ending] += 1
            tree.names.append(path)

    def walk(folder: str, prefix: str, above: tuple[str, ...]) -> None:
        try:
            entries = list(os.scandir(folder))
        except PermissionError:
            tree.denied.append(_shown(prefix.rstrip("/") or "."))
            return
        names = {entry.name for entry in entries}
        if names & _TRACES_OF_A_RUN or any(_CHECKPOINT.fullmatch(name) for name in names):
            tree.outputs.append(_shown(prefix.rstrip("/") or "."))
            if prefix:
                return
        for entry in entries:
            path = prefix + entry.name
            if entry.name.startswith((".", "__")):
                if Path(entry.name).suffix.lower() in readable and not entry.name.startswith("._"):
                    tree.hidden += 1
            elif _is_there(entry) and entry.is_dir():
                real = os.path.realpath(entry.path)
                if real in above:
                    tree.loops.append(_shown(path))
                else:
                    walk(entry.path, f"{path}/", (*above, real))
            else:
                add_file(entry, path)

    walk(os.fspath(root), "", (os.path.realpath(root),))
    if tree.images or tree.unreadable:  # beside images, arrays are something else: features, masks
        for path in found_alone:
            if (ending := Path(path).suffix.lower()) in PLUGINS:
                tree.unreadable.append(path)
            else:
                tree.others[ending] += 1
                tree.names.append(path)
    else:
        tree.images = found_alone
    for paths in (
        tree.images,
        tree.unreadable,
        tree.names,
        tree.broken_links,
        tree.denied,
        tree.loops,
        tree.outputs,
        tree.undecodable,
    ):
        paths.sort()
    return tree
