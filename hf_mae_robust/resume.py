"""Finding the checkpoint to go on from, and refusing one that does not fit."""

import json
import logging
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .model import ViTMAERobustConfig

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint cannot be resumed from; the message says which and why."""


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """The `checkpoint-N` folders, newest (highest N) first."""
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    folders = Path(output_dir).iterdir() if Path(output_dir).is_dir() else ()
    found = [(int(match[1]), path) for path in folders if path.is_dir() and (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def fault_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint folder; None where it can be resumed from."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
        weights = list(checkpoint.glob("*.safetensors"))
        sharded = any(path.is_dir() for path in checkpoint.iterdir())  # FSDP and DeepSpeed keep folders
        if not weights and not sharded:
            return "it holds no weights"
        for path in weights:
            with safe_open(path, framework="pt"):
                pass
        if not sharded and not any((checkpoint / name).is_file() for name in ("optimizer.pt", "optimizer.bin")):
            return "it holds no optimizer state"
    except (OSError, ValueError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def newest_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint in a folder; broken ones are skipped with a warning."""
    for checkpoint in checkpoints_in(output_dir):
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning("Skipping %s: %s.", checkpoint, fault)
    return None


def remove_checkpoints(output_dir: str | Path) -> list[Path]:
    """Delete the `checkpoint-N` folders, and nothing else."""
    removed = checkpoints_in(output_dir)
    for checkpoint in removed:
        shutil.rmtree(checkpoint)
    return removed


def check_config(checkpoint: Path, config: ViTMAERobustConfig) -> None:
    """Raises CheckpointError naming every model setting in which a checkpoint differs from the run."""
    path = checkpoint / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} holds no config.json.")
    there, here = ViTMAERobustConfig.from_pretrained(checkpoint).to_dict(), config.to_dict()
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
