"""Reading weights by `from_pretrained`, strictly, and sentences for what is wrong with them."""

import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging

from ..errors import UserError, refused_by_library
from ..files import lfs_pointer

Model = TypeVar("Model", bound=PreTrainedModel)

# A tensor of these that finds no place: the model computes something else than the one that was saved.
_PARTS_OF_ENCODER = re.compile(r"(?:^|\.)(?:embeddings\.(?!mask_token)|layers?\.\d+\.)")


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def listed(keys: Iterable[str], limit: int = 6) -> str:
    """The first of the keys, in alphabetical order, and the number of the others."""
    keys = sorted(keys)
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def load_with_report(model_class: type[Model], name: str | None, **options: Any) -> tuple[Model, dict[str, Any]]:
    """`from_pretrained`, and its report of tensors that are missing, left over or of another shape.

    Raises ValueError for weights that are damaged or missing."""
    with refused_by_library(f"{name}: its config.json and its weights make no {model_class.__name__}"):
        try:
            loaded: Any = model_class.from_pretrained(name, **options, output_loading_info=True)
            return loaded
        except (OSError, SafetensorError, pickle.PickleError) as error:
            if name is not None and (sentence := lfs_pointer(name)) is not None:
                raise UserError(f"{sentence}.") from error
            raise UserError(
                f"{name}: its weights are missing or damaged: {first_line(error).rstrip('.')}. "
                "Copy or download the model again."
            ) from error


@contextmanager
def without_report() -> Iterator[None]:
    """transformers would list every tensor that is new or left over."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def load_strictly(model_class: type[Model], name: str, may_be_missing: tuple[str, ...] = (), **options: Any) -> Model:
    """`from_pretrained` in float32 that raises ValueError, with names, where a tensor is missing or of another shape,
    except for those that begin with `may_be_missing`; where a block or the embeddings have a tensor that the model has
    no place for; and where the weights cannot be read."""
    options = {"dtype": torch.float32, **options, "ignore_mismatched_sizes": True}
    with without_report():  # what matters of it is raised
        model, info = load_with_report(model_class, name, **options)
    problems = {
        "lacks": [key for key in info["missing_keys"] if not key.startswith(may_be_missing)],
        "has another shape of": [key for key, *_ in info["mismatched_keys"] if not key.startswith(may_be_missing)],
        "has, beside those of the model,": [key for key in info["unexpected_keys"] if _PARTS_OF_ENCODER.search(key)],
    }
    if any(problems.values()):
        named = [f"{what} {len(keys)} tensors: {listed(keys, 4)}" for what, keys in problems.items() if keys]
        raise UserError(
            f"{name} is incomplete, or a checkpoint of another architecture than its config.json says: for a "
            f"{model_class.__name__} it {'; it '.join(named)}."
        )
    return model
