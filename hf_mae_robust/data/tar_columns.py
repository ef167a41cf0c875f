"""What the samples of a WebDataset hold, as columns of a table: `image`, `cls`, `json.label`, `seg.png`."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Features, Value

from ..errors import DataError
from .formats import endings_alone, readable_endings
from .labels import WEBDATASET_KEY
from .layouts import MAP_WORDS, words_of

# The column of images, whatever their endings are.
IMAGE = "image"
TEXTS = ("cls", "txt", "text")
# Samples whose texts are looked at, to see whether they are numbers, and which fields JSON files have.
NUM_LOOKED_AT = 5
_TYPES = {bool: "bool", int: "int64", str: "string"}


def _ending(kind: str) -> str:
    return "." + kind.rpartition(".")[2]


def image_kinds(kinds: Iterable[str]) -> list[str]:
    """Those that are images; arrays (.npy, .npz) where nothing else is one, as in folders."""
    readable, alone, kinds = readable_endings(), endings_alone(), list(kinds)
    pictures = [kind for kind in kinds if _ending(kind) in readable]
    return pictures or [kind for kind in kinds if _ending(kind) in alone]


def is_of_maps(kind: str) -> bool:
    """Whether its name says a semantic map, as that of seg.png and mask.png does."""
    return bool(set(words_of(kind.rpartition(".")[0])) & MAP_WORDS)


def picture_kinds(kinds: Iterable[str]) -> list[str]:
    """The images that are no maps, which the column `image` holds; all of them where each is a map by its name."""
    pictures = image_kinds(kinds)
    return [kind for kind in pictures if not is_of_maps(kind)] or pictures


def find_features(
    members: Mapping[str, np.ndarray],
    texts: Mapping[str, Sequence[bytes]],
    wanted: Iterable[str | None],
    given: Features | None,
) -> Features:
    """The columns of some samples.

    Args:
        members: what a member holds -> `(samples,)`, -1 for those that have none.
        texts: of the same, for texts and JSON: contents of the first ones. wanted: columns that the user names.
        given: types that a card names.
    """
    pictures, plain = image_kinds(members), picture_kinds(members)
    columns: dict[str, Any] = {WEBDATASET_KEY: Value("string")}
    counts = sum(((members[kind] >= 0).astype(np.int8) for kind in plain), start=np.int8(0))
    is_one = bool(plain) and int(np.max(counts)) == 1
    for kind in [IMAGE] if is_one else plain:
        columns[kind] = datasets.Image()
    for kind in pictures:
        if kind not in plain or kind in wanted:
            columns[kind] = datasets.Image()
    for kind, contents in texts.items():
        if _ending(kind) == ".json":
            columns |= _fields(kind, contents)
        else:
            is_number = kind == "cls" and all(_as_number(content) is not None for content in contents)
            columns[kind] = Value("int64" if is_number else "string")
    columns |= {name: kind for name, kind in (given or {}).items() if name in columns and isinstance(kind, ClassLabel)}
    return Features(columns)


def is_text(kind: str) -> bool:
    """Whether it is read as text or JSON."""
    return kind in TEXTS or _ending(kind) == ".json"


def _fields(kind: str, contents: Sequence[bytes]) -> dict[str, Value]:
    types: dict[str, set[str | None]] = {}
    for content in contents:
        try:
            fields = json.loads(content)
        except ValueError:
            continue  # named when it is wanted
        for name, value in fields.items() if isinstance(fields, dict) else ():
            if value is not None:
                types.setdefault(f"{kind}.{name}", set()).add(_TYPES.get(type(value)))
    # Fields of several types, of fractions, lists and objects are no classes.
    return {name: Value(found.pop()) for name, found in types.items() if len(found) == 1 and None not in found}


def _as_number(content: bytes) -> int | None:
    try:
        return int(content)
    except ValueError:
        return None


def reader_of(column: str, kinds: Iterable[str], feature: Any) -> tuple[str, Callable[[bytes], Any]]:
    """The kind of members that a column of texts comes from, and a function that makes the value of a member's bytes.
    That raises ValueError where the value is not of the column's type."""
    is_number = str(getattr(feature, "dtype", "")).startswith("int")
    known = list(kinds)
    if column in known:
        return column, int if is_number else (lambda content: content.decode().strip())
    kind = next((each for each in known if _ending(each) == ".json" and column.startswith(f"{each}.")), None)
    if kind is None:
        raise DataError(f"Column '{column}' holds no text.")

    def value_of(content: bytes) -> Any:
        fields = json.loads(content)
        value = fields.get(column[len(kind) + 1 :]) if isinstance(fields, dict) else None
        if value is not None and _TYPES.get(type(value)) != getattr(feature, "dtype", None):
            raise ValueError(f"{value!r} where other samples have {getattr(feature, 'dtype', feature)}")
        return value

    return kind, value_of
