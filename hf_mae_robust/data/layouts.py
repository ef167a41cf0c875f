"""Which folder is a split, which a class, and which files are semantic maps of others: from the names alone.

Paths are relative to the data set's folder, with "/" between.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

_SPLITS = {
    **dict.fromkeys(("train", "training", "trainset"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "valset"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "testset"), "test"),
}
_IMAGE_WORDS = frozenset(
    [
        "image",
        "images",
        "img",
        "imgs",
        "jpegimages",
        "pngimages",
        "leftimg8bit",
        "photo",
        "photos",
        "picture",
        "pictures",
        "rgb",
        "input",
        "inputs",
    ]
)
MAP_WORDS = frozenset(
    [
        "mask",
        "masks",
        "label",
        "labels",
        "annotation",
        "annotations",
        "annot",
        "annots",
        "ann",
        "anns",
        "anno",
        "gt",
        "gts",
        "gtfine",
        "gtcoarse",
        "groundtruth",
        "ground",
        "truth",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "segmentationclass",
        "segmentationclassaug",
        "segmentationclassraw",
        "segmentationobject",
        "segmap",
        "segmaps",
        "semantic",
        "semantics",
        "trimap",
        "trimaps",
        "instance",
        "instances",
        "color",
        "colors",
    ]
)
# `trainannot` (CamVid) and the like.
_JOINED = re.compile(r"(train|val|valid|validation|test)(annot|annots|mask|masks|label|labels|gt|seg)")
# What a map's name has after the image's; the first one that an image has is its map.
_SUFFIX = re.compile(
    r"[-_. ](gtfine_labeltrainids|gtcoarse_labeltrainids|labeltrainids|gtfine_labelids|gtcoarse_labelids|labelids|"
    r"mask|masks|label|labels|gt|segmentation|seg|annotation|annotations|anno|groundtruth|ground_truth|trimap|"
    r"gtfine_color|gtcoarse_color|gtfine_instanceids|gtcoarse_instanceids|instanceids|parts_\d+|l)$",
    re.IGNORECASE,
)
_NEVER_THE_MAP = re.compile(r"color|instance|parts_|segmentationobject", re.IGNORECASE)
_OF_IMAGES = re.compile(r"[-_. ](leftimg8bit|sat|image|img|rgb)$", re.IGNORECASE)
# The same before a number: `image_1.png` and `mask_1.png`.
_BEFORE_MAPS = re.compile(
    r"^(mask|masks|label|labels|gt|segmentation|seg|annotation|annotations|anno|groundtruth|ground_truth|trimap)"
    r"[-_. ]?(?=\d)",
    re.IGNORECASE,
)
_BEFORE_IMAGES = re.compile(r"^(sat|image|img|rgb|photo|picture)[-_. ]?(?=\d)", re.IGNORECASE)


def split_of(name: str) -> str | None:
    """ "train", "validation" or "test" for a folder called `Train`, `val2017`, `test_images`, ...; None for others."""
    words = [word for word in re.split(r"[-_. 0-9]+", name.lower()) if word]
    found = [_SPLITS[word] for word in words if word in _SPLITS]
    others = {word for word in words if word not in _SPLITS} - _IMAGE_WORDS - {"set", "data", "split"}
    return found[0] if len(found) == 1 and not others else None


# ---- semantic maps ----


@dataclass
class Pairs:
    """Images, and the map of each that has one.

    Attributes:
        images: in their order. maps: image -> its map. others: further files that are drawings of images (instances,
            colours, parts). unpaired: maps by the names of their folders, which belong to no image.
    """

    images: list[str]
    maps: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    unpaired: list[str] = field(default_factory=list)


def words_of(name: str) -> list[str]:
    joined = _JOINED.fullmatch(name.lower())
    return list(joined.groups()) if joined else [word for word in re.split(r"[-_. ]+", name.lower()) if word]


def _key(path: str) -> tuple[tuple[str, ...], str, bool, bool]:
    """What image and map have in common (folders, name), and whether a folder's name says map, and image."""
    *folders, name = path.split("/")
    common, is_map, is_image = [], False, False
    for folder in folders:
        words = words_of(folder)
        map_words, image_words = set(words) & MAP_WORDS, set(words) & _IMAGE_WORDS
        is_map, is_image = is_map or bool(map_words), is_image or bool(image_words)
        rest = [word for word in words if word not in map_words | image_words]
        common += ["_".join(rest)] if rest else []
    return tuple(common), PurePosixPath(name).stem, is_map, is_image


def pair_maps(paths: Sequence[str]) -> Pairs:
    """Tell images from semantic maps: by folders (`images/` and `masks/`, ADE20K, Cityscapes, VOC, CamVid) or by the
    ends and starts of names (`0.jpg` or `0_sat.jpg` and `0_mask.png`, `image_0.jpg` and `mask_0.png`). A folder is one
    of maps only where its files are called like images elsewhere, so that classes called `mask` and `no_mask` stay
    classes."""
    keys = {path: _key(path) for path in paths}
    plain = [path for path in paths if not keys[path][2]]
    candidates = [path for path in paths if keys[path][2]]
    if not plain:
        plain, candidates = list(paths), []
    by_key: dict[tuple[tuple[str, ...], str], str] = {}
    for path in plain:
        folders, stem, *_ = keys[path]
        for name in (stem, _OF_IMAGES.sub("", stem), _BEFORE_IMAGES.sub("", stem)):
            by_key.setdefault((folders, name), path)

    def owner(path: str) -> str | None:
        folders, stem, *_ = keys[path]
        names = (stem, _SUFFIX.sub("", stem), _BEFORE_MAPS.sub("", stem))
        found = (by_key.get((folders, name)) for name in names)
        return next((image for image in found if image not in (None, path)), None)

    groups: dict[str, list[str]] = defaultdict(list)
    for path in candidates:  # by the folder whose name says map
        folder = next(folder for folder in path.split("/") if set(words_of(folder)) & MAP_WORDS)
        groups[folder].append(path)
    has_image_folders = any(keys[path][3] for path in plain)
    pairs, found = Pairs([]), set()
    for group in groups.values():
        if 2 * sum(owner(path) is not None for path in group) >= len(group):
            found |= set(group)
        elif has_image_folders:
            pairs.unpaired += group
    by_mark: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in plain:
        for place, marks in (("end", _SUFFIX), ("start", _BEFORE_MAPS)):
            if (match := marks.search(keys[path][1])) is not None:
                by_mark[place, re.sub(r"\d", "", match[1].lower())].append(path)
    for group in by_mark.values():
        if 2 * sum(owner(path) is not None for path in group) >= len(group):
            found |= {path for path in group if owner(path) is not None}
    # Folders called like an image beside them hold its parts (ADE20K in full).
    stems = {(path.rpartition("/")[0] + "/" if "/" in path else "") + keys[path][1] for path in plain}
    parts = {path for path in paths if path.rpartition("/")[0] in stems} - found
    if 2 * len(parts) > len(paths):
        parts = set()
    left = found | parts | set(pairs.unpaired)
    pairs.images = [path for path in paths if path not in left]
    images = set(pairs.images)
    for path in sorted(found, key=_preference):
        image = owner(path)
        if image in images and image not in pairs.maps and not _NEVER_THE_MAP.search(path):
            pairs.maps[image] = path
        else:
            pairs.others.append(path)
    pairs.others += sorted(parts)
    return pairs


def _preference(path: str) -> tuple[int, str]:
    name = PurePosixPath(path).stem.lower()
    return 0 if name.endswith("labeltrainids") else 1, path


# ---- splits and classes ----


@dataclass
class Split:
    """Images of a split, in their order, with the folders that may tell classes (the split's own left out)."""

    images: list[str] = field(default_factory=list)
    folders: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, path: str, folders: Sequence[str]) -> None:
        self.images.append(path)
        self.folders.append(tuple(folders))


def find_splits(paths: Sequence[str]) -> tuple[dict[str, Split], set[str]]:
    """Split name -> its images; and the names of those that only their folder's own name makes a split.

    The rule: the first level of folders on which every image lies in a folder called like a split holds the splits. One
    such folder among others is a class (`car/`, `plane/`, `train/`), unless it alone has folders in it, another one has
    folders of the same names (`train/cat`, `holdout/cat`), or images lie loose beside it; two different ones among
    others are splits, and each of the others is one of its own name. File names decide only where each of them begins
    with a split's name. Without any, everything is "train".
    """
    folders = {path: path.split("/")[:-1] for path in paths}
    depth = min((len(parts) for parts in folders.values()), default=0)
    for level in range(depth):
        if all(split_of(parts[level]) for parts in folders.values()):
            return _by_level(paths, folders, level), set()
    level = next(
        (i for i in range(depth) if len({parts[i] for parts in folders.values()}) > 1),
        depth,
    )
    named: dict[str, list[str]] = defaultdict(list)
    for path, parts in folders.items():
        named[parts[level] if len(parts) > level else ""].append(path)
    known = {name: split_of(name) for name in named if split_of(name)}
    is_flat = {name: all(len(folders[path]) <= level + 1 for path in named[name]) for name in named}
    among_others = set(named) - set(known)
    alone = len(known) == 1 and (
        "" in named or (not is_flat[next(iter(known))] and all(is_flat[name] for name in among_others))
    )
    inner = {
        name: {folders[path][level + 1] for path in named[name] if len(folders[path]) > level + 1} for name in named
    }
    repeats = len(known) == 1 and any(inner[name] & inner[next(iter(known))] for name in among_others)
    if len(set(known.values())) > 1 or alone or repeats:
        splits = _by_level(paths, folders, level)
        return splits, {name or "." for name in among_others}
    starts = [re.split(r"[-_. 0-9]+", path.rpartition("/")[2].lower())[0] for path in paths]
    if len(set(starts)) > 1 and all(start in _SPLITS for start in starts) and "train" in map(_SPLITS.get, starts):
        splits = defaultdict(Split)
        for path, start in zip(paths, starts):
            splits[_SPLITS[start]].add(path, folders[path])
        return dict(splits), set()
    whole = Split()
    for path in paths:
        whole.add(path, folders[path])
    return {"train": whole}, set()


def _by_level(paths: Sequence[str], folders: dict[str, list[str]], level: int) -> dict[str, Split]:
    splits: dict[str, Split] = defaultdict(Split)
    outer = [folders[path][:level] for path in paths]
    shared = len(os.path.commonprefix(outer))
    for path in paths:
        parts = folders[path]
        name = parts[level] if len(parts) > level else "."
        splits[split_of(name) or name].add(path, parts[shared:level] + parts[level + 1 :])
    order = {"train": 0, "validation": 1, "test": 2}
    return dict(sorted(splits.items(), key=lambda item: (order.get(item[0], 3), item[0])))


def classes_of(split: Split) -> tuple[list[str] | None, list[str]]:
    """The class of each image, None where the folders tell none; and the images that lie beside the class folders.

    Where all images lie equally deep, the folder of an image is its class; otherwise the outermost folder in which not
    all of them lie.
    """
    depths = Counter(len(parts) for parts in split.folders)
    if set(depths) == {0}:
        return None, []
    if len(depths) == 1:
        classes = [parts[-1] for parts in split.folders]
        if len(set(classes)) == 1 and set(words_of(classes[0])) <= _IMAGE_WORDS:
            return None, []  # images/ is not a class
        return classes, []
    shared = 0
    while shared < min(depths) and len({parts[shared] for parts in split.folders}) == 1:
        shared += 1
    if loose := [path for path, parts in zip(split.images, split.folders) if len(parts) <= shared]:
        return None, loose
    return [parts[shared] for parts in split.folders], []
