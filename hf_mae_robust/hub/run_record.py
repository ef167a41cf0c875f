"""What a run was, for the model card: written beside the weights. A run resumes without it, too."""

import json
import platform
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

import torch
from torch import nn
from transformers import Trainer

from ..version import __version__
from .paths import is_there

PACKAGES = ("transformers", "torch", "accelerate", "datasets", "timm", "torchvision")


def short_name(path_or_id: str | None) -> str | None:
    """A Hub id as it is; of a local path, which says nothing elsewhere, the last part."""
    return Path(path_or_id).name if path_or_id and is_there(path_or_id) else path_or_id


def portable(value: Any) -> Any:
    """The same content, as JSON has it, without absolute paths and those that lead out of a folder (`..`), which are
    nobody's business and say nothing on another machine: of each the last part."""
    if isinstance(value, dict):
        return {key: portable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(each) for each in value]
    if isinstance(value, str):
        for kind in (PurePosixPath, PureWindowsPath):
            path = kind(value)
            if path.is_absolute() or ".." in path.parts:
                return path.name
    return value


def in_millions(number: int) -> str:
    """Of parameters: "1.22 M", "1,235 M"."""
    return f"{number / 1e6:,.0f} M" if number >= 999.5e6 else f"{number / 1e6:.3g} M"


def processor_name() -> str:
    """Of the CPU, such as "AMD EPYC 9654"; "" where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def hardware_of(trainer: Trainer) -> str:
    """Such as "8 x NVIDIA H100" or "1 x CPU process (4 threads, AMD EPYC 9654)"."""
    device, count = trainer.args.device, trainer.args.world_size
    if device.type == "cuda":
        return f"{count} x {torch.cuda.get_device_name(device)}"
    num_threads = torch.get_num_threads()
    threads, name = f"{num_threads} thread{'s' * (num_threads > 1)}", processor_name()
    threads = f" ({', '.join(filter(None, (threads, name)))})" if device.type == "cpu" else ""
    return f"{count} x {device.type.upper()} process{'es' * (count > 1)}{threads}"


def about_run(
    trainer: Trainer,
    *,
    task: str,
    start: str | None,
    start_commit: str | None,
    dataset_name: str | None,
    built_in_dataset: str,
    recipe: str | None,
    model_license: str | None,
) -> dict[str, Any]:
    """What `model_card.card_of_run` needs beside a run's settings.

    Args:
        task: "pre-training", or the fine-tuning's.
        start, start_commit: model the run began with, None: from scratch; its commit, of one on the Hub.
        dataset_name: Hub id or path; None: `built_in_dataset`. recipe: value of --config.
        model_license: as the Hub writes it; None: nobody has given one.
    """
    evaluated: Any = trainer.eval_dataset  # an `ImageSource`, of which this package knows nothing
    model = cast(nn.Module, trainer.model)
    named = dataset_name and dataset_name.removeprefix("hf://datasets/")
    return {
        "task": task,
        "start": short_name(start),
        "start_commit": start_commit,
        "dataset": short_name(named) or built_in_dataset,
        "is_dataset_on_hub": named is not None and "://" not in named and not is_there(named),
        "evaluated_on": None if evaluated is None else evaluated.description.rpartition("/")[2],
        "split": None if evaluated is None else _split_of(evaluated),
        "num_evaluated": None if evaluated is None else evaluated.num_rows,
        "recipe": short_name(recipe),
        "license": model_license,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "hardware": hardware_of(trainer),
        "software": {
            "hf_mae_robust": __version__,
            **{name: version(name) for name in PACKAGES},
            "python": platform.python_version(),
        },
    }


def _split_of(source: Any) -> str:
    """Such as "test", or "train, held out": the source itself names the split that its images were held out of."""
    held_out = f"{source.split}, held out"
    return held_out if source.description.endswith(f"({held_out})") else source.split


# The settings of the run, beside the model's own in config.json.
RECORD = "run.json"


def write_record(folder: Path, record: dict[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(portable(record), indent=1) + "\n")


def read_record(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / RECORD).read_text())
