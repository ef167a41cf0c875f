"""How a training writes its checkpoints and its finished model: complete, or not at all."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME

from ..errors import SavingError
from ..files import allow_group, replace_files, seal
from ..hub.run_record import write_record
from .checkpoints import (
    STAGING,
    check_all_have_written,
    checkpoint_of_step,
    clear_staging,
    last_checkpoint,
    publish,
    rotate,
)
from .peers import is_loss
from .typed_trainer import TypedTrainer


def _remedy(error: Exception) -> str:
    """What to do before the run is started again."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error):
        return "Make room on that disk first. "
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "The folder must be one that you may write to. "
    if number in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
        return "The folder, or what was just written to it, is gone: was it deleted, moved or unmounted? "
    if number == errno.EIO:
        return "The disk or its connection is at fault. "
    return ""


class Checkpointing(TypedTrainer):
    """The part of `ImageTrainer` that writes folders. Each is written under `_staging/` first (see files.py).

    Args (beside the Trainer's):
        record: what a resumed run must have in common with this one, written into each checkpoint (hub/run_record.py).
        about: what else a model card says (hub/run_record.py); empty: no cards are written.

    A subclass whose folders hold something else than the model itself overrides `save_weights`.
    """

    def __init__(self, *, record: dict[str, Any] | None = None, about: dict[str, Any] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.record, self.about = record or {}, about or {}
        self._staging: Path | None = None

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """While entered, the Trainer writes to the staging folder. What goes wrong leaves nothing behind. Raises
        SavingError."""
        staging = Path(self.args.output_dir) / STAGING
        try:
            if self.args.should_save:
                clear_staging(staging)
            self.accelerator.wait_for_everyone()
            self._staging = staging
            yield staging
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_loss(error):
                raise  # not the disk's fault
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            newest = last_checkpoint(self.args.output_dir)
            raise SavingError(
                f"Step {self.state.global_step}: the checkpoint could not be written to {self.args.output_dir} "
                f"({type(error).__name__}: {error}). {_remedy(error)}The newest complete one is {newest or 'none'}; "
                "the same command resumes from it."
            ) from error
        finally:
            self._staging = None

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """As the Trainer's, but complete or not at all; older checkpoints are deleted afterwards."""
        final = checkpoint_of_step(self.args.output_dir, self.state.global_step)
        with self.staged() as staging:
            super()._save_checkpoint(model, trial)
            best = self.state.best_model_checkpoint
            if best is not None and Path(best).parent == staging:  # in every process, which loads it at the end
                self.state.best_model_checkpoint = str(final.with_name(Path(best).name))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self._finish_checkpoint(staging / final.name, final)
        if self.args.should_save:
            rotate(final, self.args.save_total_limit, keep=self.checkpoints_to_keep())
        self.accelerator.wait_for_everyone()

    def _finish_checkpoint(self, staged: Path, final: Path) -> None:
        """Complete what the Trainer wrote, and give it its name."""
        if (staged / TRAINER_STATE_NAME).exists():
            self._write_state(staged)
        if not self.args.save_only_model:
            check_all_have_written(staged, self.args.world_size)
        self.describe(staged, final)
        seal(staged)
        publish(staged, final)

    def _write_state(self, folder: Path) -> None:
        """Of the best checkpoint, whose path is another one on another machine, the name; see `Resuming`."""
        best = self.state.best_model_checkpoint
        try:
            self.state.best_model_checkpoint = None if best is None else Path(best).name
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        finally:
            self.state.best_model_checkpoint = best

    def save_state(self) -> None:
        if self.is_world_process_zero():
            self._write_state(Path(self.args.output_dir))

    def checkpoints_to_keep(self) -> tuple[str | Path | None, ...]:
        """Those that are not deleted, however old."""
        return (self.state.best_model_checkpoint,)

    def describe(self, folder: Path, final: Path) -> None:
        """What was run, for people and for a resume, beside the weights. final: where the folder will lie."""
        write_record(folder, {**self.record, "about": self.about})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Each file replaces its predecessor at once."""
        final = Path(output_dir or self.args.output_dir)
        if _internal_call or final != Path(self.args.output_dir):
            super().save_model(output_dir, _internal_call)
            return
        with self.staged() as staging:
            super().save_model(str(staging / "model"), _internal_call=True)
            if self.args.should_save:
                write_record(staging / "model", {**self.record, "about": self.about})
                replace_files(staging / "model", final)
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.save_weights(Path(output_dir or self.args.output_dir), state_dict)

    def save_weights(self, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
        """Write model, image processor and arguments into a folder; `is_checkpoint` tells a checkpoint from a finished
        model. By all processes; those that do not save write nothing.

        The arguments go beside the weights as JSON: the Trainer's pickle of them is read by nobody.
        """
        super()._save(str(folder), state_dict)
        if self.args.should_save:
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            (folder / "training_args.json").write_text(self.args.to_json_string() + "\n")
            allow_group(folder)
