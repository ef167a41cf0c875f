"""Fine-tuned models: the names of their classes, and those that are read as they are."""

from collections.abc import Sequence
from typing import Any, cast

from transformers import PreTrainedConfig

from ..errors import UserError
from .encoders import read_config
from .loading import Model, load_strictly
from .source import ModelSource

# Beside an encoder: what `run_finetune.py --task segmentation --freeze_encoder` has trained.
LINEAR_HEAD = "linear_head.safetensors"


def label_settings(class_names: Sequence[str]) -> dict[str, Any]:
    """Fields of a config. class_names: in the order of their numbers."""
    return {"id2label": dict(enumerate(class_names)), "label2id": {name: i for i, name in enumerate(class_names)}}


def check_classes(
    name: str, config: PreTrainedConfig, class_names: Sequence[str], kind: str = "classifier", hint: str = ""
) -> None:
    """Raises ValueError where the classes of a fine-tuned checkpoint are not those of the data. hint: what to do."""
    names: Any = config.id2label
    there = [names[i] for i in sorted(names)]
    named = not all(label == f"LABEL_{i}" for i, label in enumerate(there))
    if len(there) == len(class_names) and (not named or list(class_names) == there):
        return
    difference = f"{len(there)} classes, and the data have {len(class_names)}"
    if len(there) == len(class_names):
        i = next(i for i, pair in enumerate(zip(there, class_names)) if pair[0] != pair[1])
        difference = f"other classes than the data: class {i} is '{there[i]}' there and '{class_names[i]}' in the data"
    raise UserError(f"--model_name_or_path {name} is a {kind} of {difference}.{' ' * bool(hint)}{hint}")


def nothing_to_evaluate(kind: str) -> UserError:
    return UserError(f"--eval_only needs a {kind}: a folder or Hub id in --model_name_or_path.")


def read_finetuned(source: ModelSource, model_class: type[Model], class_names: Sequence[str], kind: str) -> Model:
    """A fine-tuned model of this class, in evaluation mode. kind: what a user calls it, such as "segmenter".

    Raises ValueError: an official file, another architecture, other classes than the data's, a missing tensor.
    """
    config_class = cast(type[PreTrainedConfig], model_class.config_class)
    config = read_config(source, (config_class.model_type,))
    if config is None:
        raise nothing_to_evaluate(kind)
    check_classes(source.checkpoint, config, class_names, kind)
    return load_strictly(model_class, source.checkpoint, token=source.access.token).eval()
