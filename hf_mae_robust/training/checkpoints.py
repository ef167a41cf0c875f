"""Checkpoint folders: publishing one at once, finding the one to resume from, refusing one that does not fit."""

import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import CheckpointError
from ..files import broken_file_of, flush
from ..hub.run_record import RECORD, portable, read_record
from ..hub.unused_settings import without_effect

logger = logging.getLogger(__name__)

# The Trainer's upload to the Hub leaves out "_*".
STAGING = "_staging"
# In the record of a run on streamed Parquet: the first epoch in the order of data/order.py. Version 0.1.0 did not write
# it, and had the order of data/former_order.py.
NEW_ORDER_FROM = "new_order_from_epoch"
# In the record of a run whose large JPEG files were not decoded at full size. Before that was possible, none were.
SCALED_DECODING = "scaled_decoding"
# What a run record says that a resumed run may have otherwise.
NO_CONDITION = ("dataset_name", "about", NEW_ORDER_FROM)


def checkpoint_of_step(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is named as a checkpoint; others hold a finished model."""
    return folder.name.startswith(PREFIX_CHECKPOINT_DIR)


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """The `checkpoint-N` folders, newest (highest N) first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    folders = Path(output_dir).iterdir() if Path(output_dir).is_dir() else ()
    found = [(int(match[1]), path) for path in folders if path.is_dir() and (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def last_checkpoint(output_dir: str | Path) -> Path | None:
    """The one with the highest N, not verified, for messages; to resume from: `newest_checkpoint`."""
    return next(iter(checkpoints_in(output_dir)), None)


def clear_staging(staging: Path) -> None:
    """Make the staging folder, or delete all in it. On NFS a file that a reader holds open cannot be deleted: its
    folder gets a name that nothing takes for a checkpoint, and is deleted another time."""
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True, exist_ok=True)
    for left in staging.iterdir():
        if left.is_dir():
            left.rename(_deleted(staging))


def _deleted(staging: Path) -> Path:
    return staging / f"deleted-{secrets.token_hex(4)}"


def publish(staged: Path, final: Path) -> None:
    """Give a sealed folder its name. One that has the name already is kept until the new one stands."""
    replaced = staged.with_name(f"replaced-{final.name}")
    if final.exists():
        final.rename(replaced)
    staged.rename(final)
    flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def recover(output_dir: str | Path) -> None:
    """Undo what a killed process left half done: a sealed checkpoint that was about to get its name gets it; the rest
    of the staging folder is deleted."""
    staging = Path(output_dir) / STAGING
    if not staging.is_dir():
        return
    for staged in checkpoints_in(staging) + [
        path for path in staging.iterdir() if path.name.startswith(f"replaced-{PREFIX_CHECKPOINT_DIR}-")
    ]:
        final = Path(output_dir) / staged.name.removeprefix("replaced-")
        if not final.exists() and broken_file_of(staged) is None:
            staged.rename(final)
            flush(final.parent)
    clear_staging(staging)
    with suppress(OSError):  # not everything can be deleted yet
        staging.rmdir()


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint; a kill in the middle leaves no part of it under its name. A file that cannot be deleted does
    not end the training."""
    staging = checkpoint.parent / STAGING
    staging.mkdir(exist_ok=True)
    doomed = checkpoint.rename(_deleted(staging))
    shutil.rmtree(doomed, ignore_errors=True)
    if doomed.exists():
        logger.warning(
            "%s is removed, but not all of it can be deleted: does a program hold a file of it open? The rest lies in "
            "%s; a later checkpoint or run deletes it.",
            checkpoint,
            staging,
        )


def rotate(newest: Path, limit: int | None, keep: Iterable[str | Path | None] = ()) -> None:
    """Delete all but `limit` checkpoints (none where None or 0): `newest`, which was just written, and those before
    it. Those with higher numbers are left from an abandoned run, or from another batch size, and go at once: the next
    start would resume from them. Those named in `keep` stay."""
    step = int(newest.name.rpartition("-")[2])
    found = {path: int(path.name.rpartition("-")[2]) for path in checkpoints_in(newest.parent)}
    abandoned = [path for path, number in found.items() if number > step]
    before = [path for path, number in found.items() if number < step]
    kept = {Path(path).name for path in keep if path is not None}
    for checkpoint in [*abandoned, *before[limit - 1 :]] if limit else ():
        if checkpoint.name not in kept:
            if checkpoint in abandoned:
                logger.warning("Removed %s, which this run has not come from.", checkpoint)
            remove(checkpoint)


def check_all_have_written(checkpoint: Path, num_processes: int) -> None:
    """Raises OSError where one of the processes, which share the folder, has not written its part of a checkpoint that
    can be resumed from."""
    present = len(list(checkpoint.glob("rng_state*.pth")))
    if present < num_processes:
        raise OSError(
            f"the random-number states of {num_processes - present} of {num_processes} processes did not arrive: all "
            "machines must share --output_dir"
        )


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
            "another --output_dir, or train from the beginning with --overwrite_output_dir, which deletes them."
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
        stored = type(config).from_pretrained(checkpoint)
        there = stored.to_dict()
        # A setting that is as usual may be left out of either.
        here |= {name: getattr(config, name) for name in set(there) - set(here) if hasattr(config, name)}
        there |= {name: getattr(stored, name) for name in set(here) - set(there) if hasattr(stored, name)}
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
            "--output_dir, or train from the beginning with --overwrite_output_dir."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def differences_from_record(checkpoint: Path, record: dict[str, Any]) -> list[str]:
    """Each setting of `record` that was another one when the checkpoint was written, with both values. The name of the
    data set may change, as when it was copied to another disk; its fingerprint may not. So may settings that have no
    effect in either run."""
    there, here = (portable(each) for each in (read_record(checkpoint), json.loads(json.dumps(record))))
    for name in NO_CONDITION:
        there.pop(name, None), here.pop(name, None)
    for name in without_effect(there).keys() & without_effect(here).keys():
        there.pop(name, None), here.pop(name, None)
    return [
        f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(set(there) | set(here))
        if there.get(name) != here.get(name)
    ]


def explain_differences(checkpoint: str | Path, differences: list[str]) -> str:
    return (
        f"{checkpoint} belongs to a run with other settings ({'; '.join(differences)}). With its settings, the "
        "resumed run equals an uninterrupted one. --allow_elastic_resume resumes with the new ones: the losses differ, "
        "and in the epoch of the resume some images come twice and others not at all. --overwrite_output_dir trains "
        "from the beginning."
    )
