"""Pascal VOC's lists of the images of each split: ImageSets/{Segmentation,Main}/{train,val,trainval,test}.txt."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

from .layouts import Pairs, Split
from .tree import Tree

_LIST = re.compile(r"((?:.*/)?)(ImageSets/(Segmentation|Main))/(train|val|trainval|test)\.txt", re.IGNORECASE)
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass
class VocLists:
    """Splits that lists name.

    Attributes:
        folder: such as "ImageSets/Segmentation". splits: by name. unlisted: images that no list names.
    """

    folder: str
    splits: dict[str, Split]
    unlisted: list[str]


def find_lists(tree: Tree, pairs: Pairs) -> VocLists | None:
    """The splits as lists say them: those of `Segmentation` where images have maps, otherwise those of `Main`. A list
    of trainval is the training split where there is none of train. None where no list names an image to train on."""
    found: dict[str, dict[str, list[tuple[str, str]]]] = defaultdict(dict)
    folders: dict[str, str] = {}
    for path in tree.names:
        if (match := _LIST.fullmatch(path)) is not None:
            kind = match[3].lower()
            folders[kind] = match[2]
            found[kind].setdefault(match[4].lower(), []).append((match[1], path))
    kinds = ("segmentation", "main") if pairs.maps else ("main",)
    kind = next((kind for kind in kinds if kind in found), "")
    if not kind:
        return None
    files = found[kind]
    if "train" not in files and "trainval" in files:
        files["train"] = files["trainval"]
    by_name: dict[tuple[str, str], str] = {}
    for place in {place for listed in files.values() for place, _ in listed}:
        for image in pairs.images:
            if image.startswith(place):
                by_name.setdefault((place, PurePosixPath(image).stem), image)
    splits: dict[str, Split] = {}
    taken: set[str] = set()
    for name, split in _SPLITS.items():
        images = [by_name[key] for key in _names(tree, files.get(name, [])) if key in by_name]
        if images:
            splits[split] = Split()
            for image in images:
                splits[split].add(image, image.split("/")[:-1])
            taken |= set(images)
    if "train" not in splits:
        return None
    return VocLists(folders[kind], splits, [image for image in pairs.images if image not in taken])


def _names(tree: Tree, listed: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Place and name of the images of lists, each once, in their order."""
    names: dict[tuple[str, str], None] = {}
    for place, path in listed:
        for line in (tree.root / path).read_text(encoding="utf-8", errors="replace").splitlines():
            if words := line.split():
                name = PurePosixPath(words[0]).name
                names[place, re.sub(r"\.(jpe?g|png)$", "", name, flags=re.IGNORECASE)] = None
    return list(names)
