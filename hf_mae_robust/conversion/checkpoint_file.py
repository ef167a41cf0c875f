"""The tensors of a checkpoint file: safely read, and taken out of whatever a training code wraps them in."""

import argparse
import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import MissingFileError, UserError
from ..files import lfs_pointer
from .loading import listed

logger = logging.getLogger(__name__)

# Types that a file names beside the weights, such as the default of a `defaultdict`.
_DEFAULTS = ("list", "dict", "int", "float", "str", "bool", "tuple", "frozenset", "range", "slice")
# Where this tensor is, is a ViT in the names of the official code; what stands before the name is the wrapping.
LANDMARK = "patch_embed.proj.weight"
# Beside these, DINO and MoCo v3 keep projection heads, which are not part of the encoder.
_ENCODERS_ONLY = ("backbone", "base_encoder", "momentum_encoder")


class _Ignored:
    """Stands for a number of numpy, a path or a date beside the weights, which nobody needs. No code of their
    modules runs on what a file says: a forged dtype would make numpy read memory that is not its own."""

    def __new__(cls, *args: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *args: Any):
        """Takes whatever the file gives."""

    def __setstate__(self, state: Any) -> None:
        """Takes whatever the file gives."""


def _table(*default: Any) -> dict[Any, Any]:
    """In the place of a `defaultdict`, whose default is never called. PyTorch's reader fills no subclass of dict."""
    return {}


def _list(*rest: Any) -> list[Any]:
    """In the place of a `deque`."""
    return []


# By name, for torch.load(weights_only=True), which refuses all others but what tensors need.
_BESIDE_WEIGHTS: list[Any] = [
    argparse.Namespace,
    (_table, "collections.defaultdict"),
    (_list, "collections.deque"),
    *(
        (_Ignored, name)
        for name in (
            *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
            "numpy.dtype",
            "numpy.ndarray",
            "_codecs.encode",
            *(f"builtins.{name}" for name in _DEFAULTS),
            *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
            *("zoneinfo.ZoneInfo", "zoneinfo.ZoneInfo._unpickle", "uuid.UUID", "uuid.SafeUUID"),
            *("decimal.Decimal", "fractions.Fraction", "types.SimpleNamespace"),
            *(
                f"{module}.{flavour}Path"
                for module in ("pathlib", "pathlib._local")
                for flavour in ("", "Pure", "Posix", "PurePosix", "Windows", "PureWindows")
            ),
        )
    ),
]


class _Found(NamedTuple):
    """A ViT in a file: `table[prefix + official name]`. name: the way to it, dotted."""

    table: Mapping[Any, Any]
    prefix: str
    name: str


def read_original(path: str | Path, checkpoint_key: str | None = None) -> dict[str, Tensor]:
    """The tensors of an official checkpoint, on the CPU, under their official names.

    Reads `{"model": state_dict, ...}`, as main_pretrain.py writes it, or a bare state dict, from a PyTorch file or a
    `.safetensors` one. Wrappings of other training codes are taken off, and a warning says so: any tables around the
    state dict ("state_dict", "teacher", ...) and any prefix before all of the names ("module.", "_orig_mod.",
    "backbone.", "module.base_encoder.", ...).

    No code in the file is run. Apart from tensors only an `argparse.Namespace`, the containers of `collections`,
    numbers of numpy, paths, dates and the like are allowed.

    Args:
        checkpoint_key: which model to take where the file holds several: the way to it ("teacher.backbone"), its
            beginning ("teacher") or its end ("backbone").

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file asks for other code to be run, is damaged, holds no (or not only) tensors, or several
            models, or tensors beside the model's that may belong to it.
    """
    path = Path(path)
    content = _load(path)
    tables = list(_tables(content))
    found = [_Found(table, prefix, name) for name, table in tables for prefix in _prefixes(table)]
    found = [each._replace(name=".".join(filter(None, (each.name, each.prefix[:-1])))) for each in found]
    if not found:  # the one who renames says what is missing
        found = [_Found(table, "", name) for name, table in tables if name in ("", "model")][-1:]
    if not found:
        raise UserError(
            f'{path} holds no tensors that are known: needs a state dict, bare or under "model", with '
            f"{LANDMARK} among its names; its own are {listed(name for name, _ in tables)}."
            if tables
            else f'{path} holds no tensors: needs a state dict, bare or under "model".'
        )
    one = _chosen(found, checkpoint_key, path)
    inside = {key: value for key, value in one.table.items() if str(key).startswith(one.prefix)}
    others = [str(key) for key, value in inside.items() if not isinstance(value, Tensor) or not isinstance(key, str)]
    if others:
        raise UserError(f"{path} is not a state dict: these entries are not named tensors: {listed(others)}.")
    tensors = {key.removeprefix(one.prefix): value for key, value in inside.items()}
    left_out = [str(key) for key, value in one.table.items() if key not in inside and isinstance(value, Tensor)]
    last = one.name.rpartition(".")[2]
    if left_out and not checkpoint_key and last not in _ENCODERS_ONLY:
        raise UserError(
            f"{path} has {listed(left_out)} beside the tensors under '{one.prefix}', and they may belong to the model. "
            f"To leave them out, give --checkpoint_key {one.name} to `python -m hf_mae_robust convert`."
        )
    if last in ("base_encoder", "momentum_encoder"):  # MoCo v3's projector has the name of the classifier
        head = [key for key in tensors if key.startswith("head.")]
        left_out += [one.prefix + key for key in head]
        tensors = {key: value for key, value in tensors.items() if key not in head}
    if one.name not in ("", "model"):
        without = f"; left out: {listed(left_out)}" if left_out else ""
        logger.warning("%s: the tensors are taken from '%s'%s.", path, one.name, without)
    return tensors


def _load(path: Path) -> Any:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_BESIDE_WEIGHTS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # damaged bytes make PyTorch's reader fail in any way, OSError included
        wanted = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if wanted:
            raise UserError(
                f"{path} was refused, and none of its code was run: loading it would call {wanted[1]}, which has no "
                "place in a file of tensors."
            ) from None
        if (sentence := lfs_pointer(path)) is not None:
            raise UserError(f"{sentence}.") from error
        kind = "safetensors" if isinstance(error, SafetensorError) else "PyTorch"
        raise UserError(f"{path} is truncated, damaged or not a {kind} file ({type(error).__name__}).") from error


def _tables(content: Any, name: str = "") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """The mappings that hold tensors, at any depth, and the way to each, dotted."""
    if not isinstance(content, Mapping):
        return
    if any(isinstance(value, Tensor) for value in content.values()):
        yield name, content
    for key, value in content.items():
        yield from _tables(value, f"{name}.{key}" if name else str(key))


def _prefixes(table: Mapping[Any, Any]) -> list[str]:
    """What stands before the names of each ViT in a table: "", "module.", ..."""
    names = (key for key, value in table.items() if isinstance(key, str) and isinstance(value, Tensor))
    return sorted(name.removesuffix(LANDMARK) for name in names if f".{name}".endswith(f".{LANDMARK}"))


def _chosen(found: list[_Found], checkpoint_key: str | None, path: Path) -> _Found:
    if checkpoint_key is not None:
        key = checkpoint_key.strip(".")
        fitting = [each for each in found if f".{each.name}.".startswith(f".{key}.")]
        fitting = fitting or [each for each in found if f".{each.name}.".endswith(f".{key}.")]
        if len(fitting) == 1:
            return fitting[0]
        raise UserError(
            f"--checkpoint_key {checkpoint_key}: names {len(fitting)} models of {path}, which holds "
            f"{', '.join(repr(each.name) for each in found)}."
        )
    if len(found) > 1:
        raise UserError(
            f"{path} holds {len(found)} models: {', '.join(repr(each.name) for each in found)}. Choose one by "
            f"`python -m hf_mae_robust convert {path} OUT --checkpoint_key {found[0].name or found[1].name}`."
        )
    return found[0]
