"""A local folder of image files as tables of paths: what is taken for what, what is left out, and whether that can be
meant."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Features, IterableDataset
from datasets.table import InMemoryTable, table_cast
from PIL import Image

from ..errors import DataError
from .formats import PLUGINS
from .layouts import MAP_WORDS, Pairs, Split, classes_of, find_splits, pair_maps, words_of
from .listed import VocLists, find_lists
from .notes import note
from .tree import Tree, read_tree

# A larger share of the image files that no split holds cannot be meant.
MAX_UNUSED = 0.01
# Files of a folder that are looked at to tell maps from photos.
NUM_LOOKED_AT = 8
OVERRIDE = "--allow_unused_files"
# What a table of this reader says of its origin.
FOLDER = "image_files"
LABELS, MAPS = "label", "annotation"


@dataclass
class ImageFolder:
    """A local folder of image files, read.

    Attributes:
        name: as the user gave it. splits: by name. own_splits: those that only their folder's name makes a split.
        class_names: of all splits together, sorted; None where no folder tells a class.
        loose: split -> images beside its class folders. lists: Pascal VOC's, which say the splits.
    """

    name: str
    tree: Tree
    pairs: Pairs
    splits: dict[str, Split]
    own_splits: set[str]
    class_names: tuple[str, ...] | None
    loose: dict[str, list[str]] = field(default_factory=dict)
    lists: VocLists | None = None

    def tables(self, streams: bool) -> dict[str, Callable[[], Dataset | IterableDataset]]:
        """Split name -> function that gives its table: `image`, the path of a file, and where there are any `label`
        (ClassLabel) and `annotation` (a semantic map; null for an image without one)."""
        build = _stream if streams else _table
        return {name: partial(build, *self._columns(name)) for name in self.splits}

    def _columns(self, name: str) -> tuple[Features, dict[str, list[Any]]]:
        split, root = self.splits[name], self.tree.root
        features: dict[str, Any] = {"image": datasets.Image()}
        columns: dict[str, list[Any]] = {"image": [str(root / path) for path in split.images]}
        classes, _ = classes_of(split)
        if classes is not None and self.class_names is not None:
            numbers = {name: i for i, name in enumerate(self.class_names)}
            features[LABELS] = ClassLabel(names=list(self.class_names))
            columns[LABELS] = [numbers[name] for name in classes]
        maps = [self.pairs.maps.get(path) for path in split.images]
        if any(maps):
            features[MAPS] = datasets.Image()
            columns[MAPS] = [path and str(root / path) for path in maps]
        return Features(features), columns

    def describe(self) -> list[str]:
        """What was taken for what, and what was left out and why."""
        tree, pairs = self.tree, self.pairs
        sizes = ", ".join(f"{name} {len(split.images):,}" for name, split in self.splits.items())
        lines = [f"{self.name}: {len(pairs.images):,} image files read: {sizes}"]
        if self.class_names is not None:
            lines[0] += f"; {len(self.class_names):,} class{'es' * (len(self.class_names) != 1)} by folder"
        for name, missing in self._classes_without_training().items():
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            lines.append(
                f"{self.name}: Warning: {len(missing):,} of {len(self.class_names or ()):,} classes are in {name}, but "
                f"have no image in train: {shown}"
            )
        for name, paths in self.loose.items():
            images = f"{len(paths):,} images lie" if len(paths) > 1 else "1 image lies"
            lines.append(f"{self.name}: no classes in {name}: {images} beside the folders ({_some(paths)})")
        if self.lists is not None:
            lines.append(f"{self.name}: the splits are those of {self.lists.folder}")
        if pairs.maps:
            example = next(iter(pairs.maps.values()))
            lines.append(
                f"{self.name}: {len(pairs.maps):,} files such as {example} are semantic maps of images, in column "
                f"'{MAPS}', and no images to train on"
            )
        left = [
            (pairs.others, "further drawings of images (instances, colours, parts)"),
            (pairs.unpaired, "lie in a folder of maps by its name, but belong to no image"),
            (self.lists.unlisted if self.lists is not None else [], "in none of the lists"),
            (tree.broken_links, "links to files that are not there"),
            (tree.undecodable, "names that are not UTF-8; convmv -f latin1 -t utf8 renames them"),
            (tree.loops, "links to a folder that holds them"),
            (tree.denied, "folders that may not be read"),
            ([path for path in tree.outputs if path != "."], "folders that a training run wrote"),
        ]
        for ending in sorted({Path(path).suffix.lower() for path in tree.unreadable}):
            paths = [path for path in tree.unreadable if path.lower().endswith(ending)]
            left.append((paths, f"{ending} files cannot be read here: {PLUGINS[ending]}"))
        for paths, why in left:
            if paths:
                lines.append(f"{self.name}: left out: {len(paths):,} ({_some(paths)}): {why}")
        if tree.hidden:
            lines.append(f"{self.name}: left out: {tree.hidden:,} images in hidden folders, or hidden themselves")
        if tree.others:
            kinds = ", ".join(
                f"{number:,} {ending or 'without ending'}" for ending, number in tree.others.most_common(4)
            )
            lines.append(f"{self.name}: not images, so not read: {kinds}{annotations_note(tree)}")
        return lines

    def _classes_without_training(self) -> dict[str, list[str]]:
        """Split -> its classes that "train" does not have, where there are any; of maps the folders are not classes."""
        classes = {name: set(classes_of(split)[0] or ()) for name, split in self.splits.items()}
        trained = classes.get("train")
        if not trained or self.pairs.maps:
            return {}
        missing = {name: sorted(found - trained) for name, found in classes.items()}
        return {name: names for name, names in missing.items() if names}

    def check(self, chosen: Sequence[str], allows_unused: bool) -> None:
        """Raises DataError where what the splits leave out cannot be meant. chosen: splits that the run uses."""
        if allows_unused:
            return
        tree, pairs = self.tree, self.pairs
        if pairs.unpaired:
            raise DataError(
                f"{self.name}: {_some(pairs.unpaired)} lies in a folder of semantic maps by its name, but no image is "
                f"called so. Name maps like their images (images/a.jpg, masks/a.png), or move them out of "
                f"{self.name}; {OVERRIDE} leaves them out."
            )
        if tree.denied:
            raise DataError(
                f"{self.name}: {_some(tree.denied)} may not be read (permission denied). Make it readable, or give "
                f"{OVERRIDE}."
            )
        if lost := [path for path in tree.broken_links if not Path(path).suffix]:
            raise DataError(
                f"{self.name}: {_some(lost)} is a link to a folder or file that is not there, maybe a class. Make it "
                f"again, or remove it; {OVERRIDE} trains without it."
            )
        if self.lists is not None and len(self.lists.unlisted) > MAX_UNUSED * len(pairs.images):
            raise DataError(
                f"{self.name}: {len(self.lists.unlisted):,} of {len(pairs.images):,} image files would be left out, "
                f"first {self.lists.unlisted[0]}: {self.lists.folder} names them in no list. {OVERRIDE} trains without "
                "them; for all of them give the folder of the images alone."
            )
        unused = {name: self.splits[name].images for name in self.own_splits - set(chosen) if name in self.splits}
        reasons = [(images, f"lie in {name}, which is none of the splits") for name, images in unused.items()]
        reasons.append((tree.unreadable, "cannot be read here"))
        reasons.append((tree.broken_links, "are links to files that are not there"))
        reasons.append((tree.undecodable, "have names that are not UTF-8"))
        num_left = sum(len(paths) for paths, _ in reasons)
        total = len(pairs.images) + len(tree.unreadable) + len(tree.broken_links) + len(tree.undecodable)
        if num_left <= MAX_UNUSED * total:
            return
        paths, why = max(reasons, key=lambda reason: len(reason[0]))
        plugin = PLUGINS.get(Path(paths[0]).suffix.lower()) if paths is tree.unreadable else None
        advice = "Put the images of each split into train/ and val/, or choose with --train_split_name"
        if paths is tree.unreadable:
            ending = Path(paths[0]).suffix.lower()
            can_install = plugin is not None and "install" in plugin
            advice = f"Install what reads {ending} files, or convert them" if can_install else "Convert them"
            advice += " to PNG or JPEG"
        elif paths is tree.broken_links:
            advice = "Make the links again, or remove them"
        elif paths is tree.undecodable:
            advice = "Rename them, for example by convmv -r -f latin1 -t utf8 --notest"
        raise DataError(
            f"{self.name}: {num_left:,} of {total:,} image files would be left out, first {paths[0]}: {len(paths):,} "
            f"{why}{f' ({plugin})' if plugin else ''}. {advice}; {OVERRIDE} trains without them."
        )


def read_folder(name: str) -> ImageFolder | None:
    """Read a local folder; None where it holds no image file, or is one for `datasets` (tables, `save_to_disk`, a
    `metadata` file that describes the images). Raises DataError where it is a folder of semantic maps."""
    root = Path(name)
    if any((root / marker).exists() for marker in ("dataset_dict.json", "state.json")) or _has_configurations(root):
        return None
    tree = read_tree(root)
    if not tree.images:
        if (tree.unreadable or tree.broken_links or tree.undecodable) and not _is_of_tables(tree):
            raise DataError(_nothing_to_read(name, tree))
        return None
    if _is_of_tables(tree) or _describes_itself(tree):
        return None
    if "." in tree.outputs:
        raise DataError(
            f"{name} holds images, and beside them what a training run wrote (its --output_dir), so that its pictures "
            "would be trained on. Move the images into a folder of their own."
        )
    pairs = pair_maps(tree.images)
    _pair_by_content(pairs, root)
    if any(set(words_of(part)) & MAP_WORDS for part in root.resolve().parts[-2:]) and _are_maps(root, tree.images):
        raise DataError(
            f"{name} holds semantic maps, not images to train on (first {tree.images[0]}). Give the folder that holds "
            "images/ and maps together, or that of the images."
        )
    splits, own_splits = find_splits(pairs.images)
    lists = find_lists(tree, pairs)
    if lists is not None:
        splits, own_splits = lists.splits, set()
    found = {split: classes_of(part) for split, part in splits.items()}
    names = sorted({name for classes, _ in found.values() for name in classes or ()})
    loose = {split: paths for split, (_, paths) in found.items() if paths}
    return ImageFolder(name, tree, pairs, splits, own_splits, tuple(names) or None, loose, lists)


def open_folder(
    folder: ImageFolder, streams: bool, allows_unused: bool, tells: bool
) -> tuple[dict[str, Callable[[], Any]], Callable[[Sequence[str]], None]]:
    """The tables of a folder, and the check of what the chosen splits leave out. tells: print what was read."""
    if tells:
        for line in folder.describe():
            note(line)
    return folder.tables(streams), lambda chosen: folder.check(chosen, allows_unused)


def _table(features: Features, columns: dict[str, list[Any]]) -> Dataset:
    paths = {name: datasets.Value("string") for name, kind in features.items() if isinstance(kind, datasets.Image)}
    stored = Features({**features, **paths})
    table = Dataset.from_dict(columns, features=stored)
    # The cast of the Arrow table: `Dataset.cast` would write it in batches, with a progress bar.
    return Dataset(
        InMemoryTable(table_cast(table.data.table, features.arrow_schema)),
        info=datasets.DatasetInfo(features=features, builder_name=FOLDER),
    )


def _stream(features: Features, columns: dict[str, list[Any]]) -> IterableDataset:
    # Tuples: lists would be taken for shards, and make another order than that of `datasets`' own folders.
    rows = {name: tuple(values) for name, values in columns.items()}
    return IterableDataset.from_generator(_rows, features=features, gen_kwargs=rows)


def _rows(**columns: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for values in zip(*columns.values()):
        yield dict(zip(columns, values))


def _nothing_to_read(name: str, tree: Tree) -> str:
    """The sentence on a folder whose image files cannot be opened."""
    if tree.unreadable:
        plugin = PLUGINS[Path(tree.unreadable[0]).suffix.lower()]
        return (
            f"{name}: none of its {len(tree.unreadable):,} image files can be read here, first {tree.unreadable[0]}: "
            f"{plugin}."
        )
    if tree.undecodable:
        return (
            f"{name}: the names of its {len(tree.undecodable):,} image files are not UTF-8, first "
            f"{tree.undecodable[0]}. Rename them, for example by convmv -r -f latin1 -t utf8 --notest."
        )
    return (
        f"{name} holds no image file, but {len(tree.broken_links):,} links to files or folders that are not there, "
        f"first {tree.broken_links[0]}. Make them again."
    )


def _some(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{paths[0]}, ..."


# ---- what is not for this reader ----


def _has_configurations(root: Path) -> bool:
    """Whether a data set card says which files are which split."""
    card = root / "README.md"
    if not card.is_file():
        return False
    start = card.read_text(encoding="utf-8", errors="replace")[:20_000]
    return start.startswith("---") and "\nconfigs:" in start.partition("\n---")[0]


def _is_of_tables(tree: Tree) -> bool:
    """Whether Parquet or Arrow files weigh more than the images beside them."""
    tables = [path for path in tree.names if path.endswith((".parquet", ".arrow"))]
    if not tables or all(Path(path).stem == "metadata" for path in tables):
        return False
    size = sum((tree.root / path).stat().st_size for path in tables)
    return size > sum((tree.root / path).stat().st_size for path in tree.images)


def _describes_itself(tree: Tree) -> bool:
    """Whether a `metadata` file, as `datasets` knows it, says more of the images than their folders do."""
    found = [path for path in tree.names if Path(path).name in ("metadata.csv", "metadata.jsonl", "metadata.parquet")]
    if not found:
        return False
    splits, _ = find_splits(pair_maps(tree.images).images)
    has_classes = any(len(set(classes_of(split)[0] or ())) > 1 for split in splits.values())
    first = tree.root / found[0]
    if not has_classes or first.suffix == ".parquet":
        return True
    with first.open(encoding="utf-8", errors="replace") as file:
        header = file.readline().lower()
    return any(word in header for word in ("label", "objects", "mask", "annotation", "class", "categor"))


# ---- maps by what is in the files ----


def _are_maps(root: Path, paths: Sequence[str]) -> bool:
    """Whether files hold few whole numbers, as semantic maps do: of a palette or one channel, and not JPEG."""
    step = max(1, len(paths) // NUM_LOOKED_AT)
    looked_at = paths[::step][:NUM_LOOKED_AT]
    for path in looked_at:
        try:
            with Image.open(root / path) as image:
                if image.format == "JPEG" or not (image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16")):
                    return False
                if image.width * image.height <= 64_000_000 and len(np.unique(np.asarray(image))) > 64:
                    return False
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return False
    return bool(looked_at)


def _pair_by_content(pairs: Pairs, root: Path) -> None:
    """Two files of one name: in one folder with other endings (`0.jpg`, `0.png`), or in two folders side by side. The
    one is the map of the other where the files show it."""
    places: dict[tuple[str, str], list[str]] = {}
    for path in pairs.images:
        folder, _, file = path.rpartition("/")
        places.setdefault((folder, file.lower().rpartition(".")[2]), []).append(path)
    stems = {place: {Path(path).stem for path in paths} for place, paths in places.items()}
    by_stems: dict[frozenset[str], list[tuple[str, str]]] = {}
    for place, names in stems.items():
        by_stems.setdefault(frozenset(names), []).append(place)
    taken: set[str] = set()
    for same in by_stems.values():
        # Classes often have files of the same names; maps and images are two.
        if len(same) != 2 or same[0][0].rpartition("/")[0] != same[1][0].rpartition("/")[0]:
            continue
        if len(stems[same[0]]) < 2 and same[0][0] != same[1][0]:
            continue
        is_map = [_are_maps(root, places[place]) for place in same]
        if sum(is_map) != 1:
            continue
        maps, images = places[same[is_map.index(True)]], places[same[is_map.index(False)]]
        by_stem = {Path(path).stem: path for path in images}
        for path in maps:
            pairs.maps.setdefault(by_stem[Path(path).stem], path)
            taken.add(path)
    pairs.images = [path for path in pairs.images if path not in taken]


# ---- annotations that are not images ----


def annotations_of(tree: Tree) -> str | None:
    """Which of the usual layouts of boxes and outlines lies beside the images; None where none is known."""
    names = [path.rpartition("/")[2].lower() for path in tree.names]
    endings, stems = Counter(Path(name).suffix for name in names), {Path(path).stem for path in tree.images}
    beside = Counter(Path(name).suffix for name in names if Path(name).stem in {stem.lower() for stem in stems})
    if any(name.endswith(".coco.json") for name in names):
        return "Roboflow's COCO"
    if any(name.startswith("lvis_") and name.endswith(".json") for name in names):
        return "LVIS"
    if any(name.startswith("instances_") and name.endswith(".json") for name in names):
        return "COCO"
    if "annotations.xml" in names:
        return "CVAT's XML"
    if beside[".txt"] and 2 * beside[".txt"] >= endings[".txt"]:
        return "YOLO"
    if beside[".xml"]:
        return "Pascal VOC"
    if beside[".json"]:
        return "labelme"
    return None


def annotations_note(tree: Tree) -> str:
    layout = annotations_of(tree)
    return f" ({layout}'s annotations; --task detection reads COCO's)" if layout else ""
