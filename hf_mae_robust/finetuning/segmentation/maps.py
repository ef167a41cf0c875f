"""Semantic maps of a data set: which column, which values are which class, and that map and image fit together."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Features

from ...data.decoding import decode_map, size_of, stored_and_read
from ...data.labels import MAX_VALUE, read_id2label
from ...data.notes import note
from ...data.source import ImageSource
from ...errors import DataError, ImageDecodingError, UserError

# What maps hold where there is no class, unless it has a name; the default of --ignore_index.
UNNAMED = 255
# Maps that are looked at before the training, and pixels of them together, at most: all over a table, and from the
# beginning of what is read row by row.
NUM_LOOKED_AT, NUM_LOOKED_AT_OF_STREAM = 64, 8
PIXELS_LOOKED_AT = 2**25
MAX_IGNORED = 0.5
# In targets; the data say it with --ignore_index, 255, or 0 where labels are reduced.
IGNORED = -1
NAMES_OF_COLUMNS = ("annotation", "label", "mask", "segmentation_map", "segmentation")
# What 0 is called where it is not a class.
NAMES_OF_NOTHING = (
    "other",
    "others",
    "unlabeled",
    "unlabelled",
    "background",
    "void",
    "ignore",
    "none",
    "other/unlabelled",
)
# Of these, what is hardly ever a class; so is 255 not one where it has such a name.
NAMES_OF_VOID = frozenset(NAMES_OF_NOTHING) - {"background", "other", "others"}
_NO_CLASS = -2


@dataclass(frozen=True)
class SemanticMaps:
    """A column of maps of the interface of `Labels`, joint with the image.

    Attributes:
        column: its name. class_names: of the classes 0, 1, ... description: of the data set, for errors.
        values: of a map, of each class.
        ignored_values: of a map, that stand for no class, and are not counted.
        is_count: whether the user gave the number of classes, not names of values, and no other split has shown which
            values these are.
    """

    column: str
    class_names: tuple[str, ...]
    values: tuple[int, ...]
    ignored_values: tuple[int, ...]
    description: str
    is_count: bool = False
    _classes: torch.Tensor = field(init=False, repr=False, compare=False)
    is_joint = True

    def __post_init__(self) -> None:
        classes = torch.full((MAX_VALUE + 1,), _NO_CLASS, dtype=torch.int32)
        classes[list(self.values)] = torch.arange(len(self.values), dtype=torch.int32)
        classes[list(self.ignored_values)] = IGNORED
        object.__setattr__(self, "_classes", classes)

    def check(self, values: Sequence[Any], first_row: int | None = 0) -> Sequence[Any]:
        """Raises DataError, naming the first row, where there is no map. They are not decoded yet."""
        if (missing := next((i for i, value in enumerate(values) if value is None), None)) is not None:
            where = "an image" if first_row is None else f"row {first_row + missing:,}"
            raise DataError(f"{self.description}: {where} has no map in column '{self.column}'. Leave out such rows.")
        return values

    def of_split(self, features: Features | None, description: str) -> "SemanticMaps":
        """The same classes for another split. Raises DataError where that one has no such column."""
        if features is not None and self.column not in features:
            raise DataError(f"{description} has no column '{self.column}', the maps of {self.description}.")
        return replace(self, description=description, is_count=False)

    def examined(self, source: ImageSource) -> "SemanticMaps":
        """What the maps of some rows show. Two classes without names, and maps of 0 and 255 alone: these are the two,
        unless another split has told. Prints which classes have no pixel in them, and a large share of ignored pixels.

        Raises DataError where every pixel is ignored, a map has a value that is not a class, or none can be read.
        """
        counts: Counter[int] = Counter()
        num_maps, errors = 0, []
        known = {*self.values, *self.ignored_values}
        unknown: dict[int, tuple[torch.Tensor, Any, int]] = {}
        for row, value in _maps_to_look_at(source):
            try:
                numbers = decode_map(value, row)
            except ImageDecodingError as error:
                errors.append(error)  # counted and named when it is trained on
                continue
            values, sizes = np.unique(numbers.numpy(), return_counts=True)
            if (number := next((number for number in values.tolist() if number not in known), None)) is not None:
                unknown.setdefault(number, (numbers, value, row))
            counts.update(dict(zip(values.tolist(), sizes.tolist())))
            num_maps += 1
        if errors and not num_maps:
            raise DataError(
                f"{self.description}: none of the {len(errors):,} maps looked at in column '{self.column}' can be "
                f"read. {errors[0]} A map is an image of one channel, or of a palette, whose numbers are classes."
            )
        if not counts:
            return self
        if self.is_count and set(counts) == {0, UNNAMED} and self.values == (0, 1):
            note(
                f"{self.description}: the maps hold 0 and 255, so 255 is taken for {self.class_names[1]} "
                '(--id2label with {"0": "name", "255": "name"} names them)'
            )
            return replace(self, values=(0, UNNAMED), ignored_values=()).examined(source)
        for numbers, value, row in unknown.values():
            self._classes_of(numbers, value, row)  # before anything is trained
        total = sum(counts.values())
        ignored = sum(counts[value] for value in self.ignored_values)
        looked_at = f"{self.description}: in {_described(num_maps, source)}"
        if ignored == total:
            raise DataError(
                f"{looked_at} every pixel is ignored (values {', '.join(map(str, sorted(counts)))}), so that there is "
                "nothing to learn. Name the values that are classes with --id2label, or change --ignore_index."
            )
        if ignored > MAX_IGNORED * total:
            note(f"Warning: {looked_at} {ignored / total:.0%} of the pixels are ignored (--ignore_index, --id2label)")
        without = [name for name, value in zip(self.class_names, self.values) if not counts[value]]
        if without:
            names = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
            note(f"Warning: {looked_at} {len(without):,} of {len(self.values):,} classes have no pixel: {names}")
        return self

    def decode(self, value: Any, image: torch.Tensor, row: int) -> torch.Tensor:
        """An encoded map -> classes `(h, w)` int32, IGNORED where there is none. image: `(C, h, w)`, of the same row.

        Raises:
            ImageDecodingError: it cannot be decoded, holds colours, or is of another size than the image.
            DataError: a value that is not a class.
        """
        numbers = decode_map(value, row)
        if numbers.shape != image.shape[1:]:
            sizes = "{1} x {0}".format(*numbers.shape), "{1} x {0}".format(*image.shape[1:])
            detail = f"the map has {sizes[0]} pixels, the image {sizes[1]}"
            if numbers.shape == image.shape[:0:-1]:
                detail += " (one of them may lack the other's EXIF orientation)"
            raise ImageDecodingError(f"Row {row}: {detail}.", "mismatch", detail)
        return self._classes_of(numbers, value, row)

    def _classes_of(self, numbers: torch.Tensor, encoded: Any, row: int) -> torch.Tensor:
        """The numbers of a map -> classes. Raises DataError for a value that is not a class."""
        classes = self._classes[numbers.clamp(0, MAX_VALUE).long()]
        unknown = (classes == _NO_CLASS) | (numbers < 0) | (numbers > MAX_VALUE)
        if unknown.any():
            value = int(numbers[unknown][0])
            what = f"{self.description}: the map of row {row:,} has the value {value}, which is none of the "
            what += f"{len(self.values)} classes ({self._range()}). "
            if value == 1 and UNNAMED in self.values and stored_and_read(encoded)[0] == "1":
                raise DataError(
                    f"{what}It has one bit a pixel (Pillow's mode 1), which is read as 0 and 1: name 1 in the place of "
                    '255, --id2label with {"0": "name", "1": "name"}, or --id2label 2.'
                )
            raise DataError(
                f"{what}--id2label names the values in the maps; leave a value out with --ignore_index {value}; "
                "--do_reduce_labels is for maps in which 0 is not a class."
            )
        return classes

    def _range(self) -> str:
        first, last = self.values[0], self.values[-1]
        return f"values {first} to {last}" if len(self.values) == last - first + 1 else f"{first} to {last}, with gaps"

    def filler(self) -> torch.Tensor:
        return torch.full((16, 16), IGNORED, dtype=torch.int32)


def _maps_to_look_at(source: ImageSource) -> Iterator[tuple[int, Any]]:
    """Rows and their maps, encoded: of a table all where they have few pixels, otherwise some from all over it; of what
    is read row by row the first ones."""
    if source.row_groups is None:
        for row, content in enumerate(source.rows.take(NUM_LOOKED_AT_OF_STREAM)):
            yield row, content["label"]
        return
    num_rows = source.num_rows or 0
    rows: Sequence[int] = range(min(NUM_LOOKED_AT_OF_STREAM, *source.row_groups[:1], num_rows))
    if source.seekable_at_no_cost and num_rows:
        try:
            height, width = size_of(source.rows.label(0))
        except ImageDecodingError:
            height, width = 1024, 1024
        number = min(num_rows, max(NUM_LOOKED_AT, PIXELS_LOOKED_AT // (height * width)))
        rows = np.linspace(0, num_rows - 1, num=number, dtype=int).tolist()
    for row in rows:
        yield row, source.rows.label(row)


def _described(num_maps: int, source: ImageSource) -> str:
    """Which maps were looked at."""
    if num_maps == source.num_rows:
        return "all maps" if num_maps > 1 else "the only map"
    if source.seekable_at_no_cost:
        return f"the {num_maps:,} maps looked at, from all over {source.num_rows:,},"
    return f"the first {num_maps:,} maps, and no others were looked at,"


def name_classes(
    names: dict[int, str], do_reduce_labels: bool, ignore_index: int
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Class names, the value of each in the maps, and the ignored values.

    names: of the values in the maps. Classes are numbered in the order of their values, without gaps. `ignore_index`
    is not a class, wherever it stands among them; nor is 255 (its default) without a name, or called "void", "ignore"
    and the like, as in files for Pascal VOC. With `do_reduce_labels`
    0 is not a class; there the names may also be those of the reduced classes (0 is the first one, as in the Hub's
    files for ADE20K): so they are read where 0 is called anything else than "other", "background" and the like.

    Raises ValueError where fewer than two classes are left, or two have the same name.
    """
    if do_reduce_labels and 0 in names and names[0].strip().lower() not in NAMES_OF_NOTHING:
        names = {value + 1: name for value, name in names.items()}
    is_void = names.get(UNNAMED, "void").strip().lower() in NAMES_OF_VOID
    ignored = {ignore_index, UNNAMED} if is_void else {ignore_index} - {UNNAMED}
    ignored |= {0} if do_reduce_labels else set()
    values = tuple(sorted(names.keys() - ignored))
    class_names = tuple(names[value] for value in values)
    if len(values) < 2:
        reduced = " --do_reduce_labels takes 0 for no class (--do_reduce_labels false)." if do_reduce_labels else ""
        raise UserError(f"Segmentation needs two classes at least; --id2label leaves {len(values)}.{reduced}")
    if len(set(class_names)) < len(class_names):
        twice = next(name for name in class_names if class_names.count(name) > 1)
        raise UserError(f"--id2label has two classes of the name '{twice}'.")
    return class_names, values, tuple(sorted(value for value in ignored if 0 <= value <= MAX_VALUE))


def may_hold_maps(feature: Any) -> bool:
    return isinstance(feature, datasets.Image | datasets.Array2D)


def find_maps(
    features: Features | None,
    wanted: str,
    description: str,
    *,
    id2label: str | None,
    folder: str | None = None,
    do_reduce_labels: bool = False,
    ignore_index: int = 255,
) -> SemanticMaps:
    """Choose the column of semantic maps, and name its classes.

    Args:
        wanted: a column, or "auto": the first of NAMES_OF_COLUMNS of type Image or Array2D, or the only one beside
            'image'.
        id2label: see `read_id2label`; None: `id2label.json` in `folder`, where the data are.
        do_reduce_labels, ignore_index: see `name_classes`.

    Raises DataError: no such column, none to choose, or no names for the classes; ValueError as `read_id2label`.
    """
    if features is None:
        raise DataError(f"{description} does not say which columns it has; its maps cannot be used.")
    columns = ", ".join(f"{name} ({getattr(feature, 'dtype', feature)})" for name, feature in features.items())
    images = [name for name, feature in features.items() if may_hold_maps(feature) and name != "image"]
    if wanted == "auto":
        known = [name for name in NAMES_OF_COLUMNS if name in images]
        if not known and len(images) != 1:
            found = f"{len(images)} columns could be semantic maps" if images else "no column looks like semantic maps"
            raise DataError(
                f"{description}: {found}. Name the one that holds them with --label_column_name. It has: {columns}. In "
                "a folder of files, maps lie beside the images under the same names: images/train/a.jpg, "
                "masks/train/a.png."
            )
        wanted = known[0] if known else images[0]
    if wanted not in features:
        raise DataError(f"{description} has no column '{wanted}' (--label_column_name). It has: {columns}.")
    if not may_hold_maps(features[wanted]):
        raise DataError(
            f"{description}: column '{wanted}' is not a column of images, as semantic maps are. Choose another one "
            f"with --label_column_name. It has: {columns}."
        )
    beside = Path(folder) / "id2label.json" if folder else None
    if id2label is None and beside is not None and beside.is_file():
        id2label = str(beside)
    if id2label is None:
        raise DataError(
            f'{description} does not name its classes: give --id2label FILE with {{"0": "name", ...}} for the values '
            "in the maps, or --id2label 150 for that many classes without names."
        )
    named = name_classes(read_id2label(id2label), do_reduce_labels, ignore_index)
    if do_reduce_labels:
        (first, *_, last), (least, *_, most), _ = named
        note(
            f"{description}: --do_reduce_labels takes 0 in the maps for no class, {least} for '{first}', ... and "
            f"{most} for '{last}'"
        )
    void = [(name, value) for name, value in zip(*named[:2]) if name.strip().lower() in {*NAMES_OF_VOID, "other"}]
    for name, value in void[:1]:
        flag = "--do_reduce_labels" if value == 0 else f"--ignore_index {value}"
        note(f"{description}: '{name}' ({value} in the maps) is learned as a class; {flag} leaves it out")
    return SemanticMaps(wanted, *named, description, is_count=str(id2label).isdigit())
