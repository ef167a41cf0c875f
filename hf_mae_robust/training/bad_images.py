"""Images that could not be decoded, brought together from all processes while they train."""

import logging
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.bad_images import FILE_NAME, SkippedImage, SkippedImages, describe
from .typed_trainer import TypedTrainer

logger = logging.getLogger(__name__)


class BadImages(TrainerCallback):
    """Ends the training where too many images cannot be decoded. It looks before anything is logged, evaluated or
    saved, and at the end: a short run may do none of these before its weights are written.

    Args:
        trainer: whose `train_dataset` and `eval_dataset` are `ImageSource`s. max_fraction: see `SkippedImages`.
    """

    def __init__(self, trainer: TypedTrainer, max_fraction: float):
        # Weak: a cycle would keep the trainer, and so the workers of its loaders, alive until the garbage collector
        # runs. A process that waits for its children as it exits would wait forever.
        self.trainer = weakref.proxy(trainer)
        self.skipped = SkippedImages(None, max_fraction)
        self._found: list[SkippedImage] = []

    def begin(self, resumes: bool) -> None:
        """Take up the list in the output folder, or, in a run from the start, delete it."""
        listed = Path(self.trainer.args.output_dir) / FILE_NAME
        if not resumes and self.trainer.is_world_process_zero():
            listed.unlink(missing_ok=True)
        self.trainer.accelerator.wait_for_everyone()
        # All processes count, and so come to the same conclusion; the first one writes.
        self.skipped = SkippedImages(listed, self.skipped.max_fraction)

    def add(self, found: Iterable[SkippedImage]) -> None:
        """Of one batch of this process."""
        self._found += found

    def check(self) -> None:
        """Bring together what all processes found, and write it down. To be called by all of them. Raises DataError in
        all of them where it is too much."""
        trainer, found, self._found = self.trainer, self._found, []
        is_new = self.skipped.add(gather_object(found) if trainer.args.world_size > 1 else found)
        if is_new and trainer.is_world_process_zero():
            self.skipped.write()
            logger.warning(
                "%d images could not be decoded so far (%s); listed in %s.",
                len(self.skipped),
                describe(self.skipped.counts()),
                self.skipped.path,
            )
        views = trainer.state.global_step * trainer.get_total_train_batch_size(trainer.args)
        for source in (trainer.train_dataset, trainer.eval_dataset):
            if source is not None:
                self.skipped.check(source.description, source.num_rows, views // trainer.repeated_augmentation)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self.check()

    on_epoch_end = on_step_end

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.check()
