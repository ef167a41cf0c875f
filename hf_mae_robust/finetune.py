"""Fine-tuning: the command line of run_finetune.py, and the same from Python.

What trains is imported where it is used, so that --help answers at once.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .finetuning.arguments import (
    AugmentationArguments,
    DetectionArguments,
    FinetuneArguments,
    FinetuneDataArguments,
    FinetuneModelArguments,
    FinetuneRecipeArguments,
    FinetuneTrainingArguments,
    SegmentationArguments,
)
from .hub.unused_settings import notes_on_unused
from .training.parser import RecipeParser
from .training.signals import SIGNALS

if TYPE_CHECKING:
    from .finetuning.task import FinetuningTask
    from .finetuning.trainer import FinetuningTrainer

DEFAULT_RECIPE = "finetune_digits"
DEFAULT_PROBE_RECIPE, DEFAULT_ATTENTIVE_RECIPE = "linear_probe_vit_base", "attentive_probe_vit_base"
DEFAULT_FROZEN_RECIPE = "frozen_segmentation_vit_base"
# The flags' own defaults are those of classification.
DEFAULT_TASK_RECIPES = {"segmentation": "upernet_vit_base", "detection": "mask_rcnn_vit_base"}


class FinetuneParser(RecipeParser[FinetuneArguments]):
    """Also says which flags of the command line have no effect: those of all tasks are there at once."""

    def parse(self, argv: list[str] | None = None) -> FinetuneArguments:
        arguments = super().parse(argv)
        if arguments.recipe.eval_only:
            self._leave_settings_of_training(arguments)
        flags = {name: value for group in arguments for name, value in vars(group).items()}
        self.notes += notes_on_unused(self.flags_on_line, flags)
        return arguments

    def _leave_settings_of_training(self, arguments: FinetuneArguments) -> None:
        """Image size and folder that come from a recipe or a default are not for --eval_only."""
        from .hub.run_record import RECORD

        model, training = arguments.model, arguments.training
        if "image_size" not in self.flags_on_line:
            if model.image_size is not None and "config" in self.flags_on_line:
                size = model.image_size
                self.notes.append(
                    f"--eval_only takes the model's own image size, not the recipe's --image_size {size}."
                )
            model.image_size = None
        folder = Path(training.output_dir)
        if "output_dir" not in self.flags_on_line and (folder / RECORD).exists():
            training.output_dir = str(folder / "evaluation")
            self.notes.append(f"{folder} holds a training; the results of --eval_only go to {training.output_dir}.")


def make_parser(prog: str | None = None, description: str | None = None) -> FinetuneParser:
    def default_recipe(given: argparse.Namespace) -> str | None:
        if given.task == "segmentation" and given.freeze_encoder:
            return DEFAULT_FROZEN_RECIPE
        if given.task in DEFAULT_TASK_RECIPES:
            return DEFAULT_TASK_RECIPES[given.task]
        if given.probe == "attentive":
            return DEFAULT_ATTENTIVE_RECIPE
        if given.linear_probe or given.probe == "linear":
            return DEFAULT_PROBE_RECIPE
        return None if given.dataset_name else DEFAULT_RECIPE

    return FinetuneParser(
        FinetuneArguments, default_recipe, settings_of_model=("image_size",), prog=prog, description=description
    )


def make_task(name: str) -> "FinetuningTask[Any]":
    """The task of --task."""
    if name == "segmentation":
        from .finetuning.segmentation.task import SegmentationTask

        return SegmentationTask()
    if name == "detection":
        from .finetuning.detection.task import DetectionTask

        return DetectionTask()
    from .finetuning.classification.task import ClassificationTask

    return ClassificationTask()


def prepare(arguments: FinetuneArguments) -> tuple["FinetuningTrainer", str | None]:
    """Everything up to the first step: the Trainer, and the checkpoint to resume from. Raises as `finetune`."""
    from .training import run

    return run.prepare(make_task(arguments.model.task), arguments)


def finetune(
    model: FinetuneModelArguments,
    data: FinetuneDataArguments,
    augmentation: AugmentationArguments,
    segmentation: SegmentationArguments,
    detection: DetectionArguments,
    recipe: FinetuneRecipeArguments,
    training: FinetuneTrainingArguments,
) -> "FinetuningTrainer":
    """Fine-tune an encoder for `model.task`. At the end the output folder holds the model (safetensors, config, image
    processor), a model card, `all_results.json`, `loss.png`, and what belongs to the task: for classification
    `confusion_matrix.png` and `confusion_matrix.json`, for segmentation `classes.png`, for both others `classes.json`
    with the results of each class, and `predictions.png`.

    Raises:
        UserError (DataError, CheckpointError among them; a ValueError): arguments, model, data or checkpoint cannot be
            used. Existing checkpoints are as they were.
        StopRequested, NonFiniteError, SavingError: as `ImageTrainer.train`; checkpoints written so far are complete.
    """
    arguments = FinetuneArguments(
        model=model,
        data=data,
        augmentation=augmentation,
        segmentation=segmentation,
        detection=detection,
        recipe=recipe,
        training=training,
    )
    from .training import run

    return run.prepare_and_run(make_task(model.task), arguments)


def main(argv: list[str] | None = None, description: str | None = None) -> None:
    """Command line of run_finetune.py; exit codes as in errors.py."""
    with SIGNALS.answered():
        parser = make_parser(description=description)
        arguments = parser.parse(argv)
        from .training import run

        run.run_command(parser, make_task(arguments.model.task), arguments)
