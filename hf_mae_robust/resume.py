"""Finding the checkpoint to go on from, and refusing one that does not fit."""

import json
import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from .saving import broken_file_of, checkpoints_in, remove

logger = logging.getLogger(__name__)


# The settings of the run, beside the model's own in config.json.
RECORD = "run.json"
NO_CONDITION = ("dataset_name", "about")


class CheckpointError(ValueError):
    """A checkpoint cannot be resumed from; the message says which and why."""


def write_record(folder: Path, record: dict[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def check_all_have_written(checkpoint: Path, num_processes: int) -> None:
    """Raises OSError where one of the `num_processes` that share the folder has not written its part."""
    present = len(list(checkpoint.glob("rng_state*.pth")))
    if (checkpoint / "optimizer.pt").exists() and present < num_processes:
        raise OSError(
            f"the random-number states of {num_processes - present} of {num_processes} processes did not arrive: all "
            "machines must share --output_dir, or each must keep its own (--save_on_each_node)"
        )


def read_record(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / RECORD).read_text())


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder; None where it can be resumed from."""
    if fault := broken_file_of(checkpoint):
        return fault
    names = {path.name for path in checkpoint.iterdir()}
    sharded = any(path.is_dir() for path in checkpoint.iterdir())  # FSDP and DeepSpeed keep folders
    if not sharded and not names & {"optimizer.pt", "optimizer.bin"}:
        return "it holds no optimizer state (was it written with --save_only_model?)"
    if missing := {"trainer_state.json", "config.json", RECORD} - names:
        return f"{', '.join(sorted(missing))} is missing"
    return None


def newest_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint in a folder; broken ones are skipped with a warning.

    Raises CheckpointError where there are checkpoints, but no complete one.
    """
    checkpoints = checkpoints_in(output_dir)
    for checkpoint in checkpoints:
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning("Skipping %s: %s.", checkpoint, fault)
    if checkpoints:
        raise CheckpointError(
            f"None of the {len(checkpoints)} checkpoint(s) in {output_dir} can be resumed from (see above). Choose "
            "another --output_dir, or start anew with --overwrite_output_dir, which deletes them."
        )
    return None


def remove_checkpoints(output_dir: str | Path) -> list[Path]:
    """Delete the `checkpoint-N` folders, and nothing else."""
    removed = checkpoints_in(output_dir)
    for checkpoint in removed:
        remove(checkpoint)
    return removed


def check_config(checkpoint: Path, config: PreTrainedConfig) -> None:
    """Raises CheckpointError naming every model setting in which a checkpoint differs from the run."""
    there, here = json.loads((checkpoint / "config.json").read_text()), config.to_dict()
    if there.get("model_type") == config.model_type:  # of another kind, that says enough
        there = type(config).from_pretrained(checkpoint).to_dict()
    else:
        here = {"model_type": config.model_type}
    bookkeeping = {"architectures", "auto_map", "dtype", "transformers_version", "_name_or_path"}
    differences = [
        f"{name}: {there.get(name)!r} there, {here[name]!r} here"
        for name in sorted(set(here) - bookkeeping)
        if _plain(there.get(name)) != _plain(here[name])
    ]
    if differences:
        raise CheckpointError(
            f"{checkpoint} was trained with other settings ({'; '.join(differences)}). Use those, choose another "
            "--output_dir, or start anew with --overwrite_output_dir."
        )


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def differences_from_record(checkpoint: Path, record: dict[str, Any]) -> list[str]:
    """Each setting of `record` that was another one when the checkpoint was written, with both values. The name of the
    data set may change, as when it was copied to another disk; its fingerprint may not."""
    there, here = read_record(checkpoint), json.loads(json.dumps(record))
    for name in NO_CONDITION:
        there.pop(name, None), here.pop(name, None)
    return [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(set(there) | set(here))
        if there.get(name) != here.get(name)
    ]


def explain_differences(checkpoint: str | Path, differences: list[str]) -> str:
    return (
        f"{checkpoint} belongs to a run with other settings ({'; '.join(differences)}). With those, the resumed run "
        "equals an uninterrupted one. --allow_elastic_resume goes on with the new ones: not with the same losses, and "
        "in the epoch of the resume some images come twice and others not at all. --overwrite_output_dir starts anew."
    )
