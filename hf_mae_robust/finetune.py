"""Fine-tuning: the command line of run_finetune.py, and the same from Python."""

import argparse

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
from .finetuning.classification.task import ClassificationTask
from .finetuning.detection.task import DetectionTask
from .finetuning.segmentation.task import SegmentationTask
from .finetuning.task import FinetuningTask
from .finetuning.trainer import FinetuningTrainer
from .training import run
from .training.parser import RecipeParser

TASKS: dict[str, FinetuningTask] = {
    task.name: task for task in (ClassificationTask(), SegmentationTask(), DetectionTask())
}
DEFAULT_RECIPE = "finetune_digits"
DEFAULT_PROBE_RECIPE = "linear_probe_vit_base"
# The flags' own defaults are those of classification.
DEFAULT_TASK_RECIPES = {"segmentation": "upernet_vit_base", "detection": "mask_rcnn_vit_base"}


def make_parser(prog: str | None = None, description: str | None = None) -> RecipeParser[FinetuneArguments]:
    def default_recipe(given: argparse.Namespace) -> str | None:
        if given.task in DEFAULT_TASK_RECIPES:
            return DEFAULT_TASK_RECIPES[given.task]
        if given.linear_probe:
            return DEFAULT_PROBE_RECIPE
        return None if given.dataset_name else DEFAULT_RECIPE

    return RecipeParser(FinetuneArguments, default_recipe, prog=prog, description=description)


def prepare(arguments: FinetuneArguments) -> tuple[FinetuningTrainer, str | None]:
    """Everything up to the first step: the Trainer, and the checkpoint to resume from. Raises as `finetune`."""
    return run.prepare(TASKS[arguments.model.task], arguments)


def finetune(
    model: FinetuneModelArguments,
    data: FinetuneDataArguments,
    augmentation: AugmentationArguments,
    segmentation: SegmentationArguments,
    detection: DetectionArguments,
    recipe: FinetuneRecipeArguments,
    training: FinetuneTrainingArguments,
) -> FinetuningTrainer:
    """Fine-tune an encoder for `model.task`. At the end the output folder holds the model (safetensors, config, image
    processor), a model card, `all_results.json`, `loss.png`, and what belongs to the task: for classification
    `confusion_matrix.png` and `confusion_matrix.json`, for segmentation `classes.png`, for both others `classes.json`
    with the results of each class, and `predictions.png`.

    Raises:
        ValueError (DataError, CheckpointError among them), FileNotFoundError, NotADirectoryError: arguments, model,
            data or checkpoint cannot be used. Existing checkpoints are as they were.
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
    trainer, checkpoint = prepare(arguments)
    run.run(TASKS[model.task], trainer, checkpoint)
    return trainer


def main(argv: list[str] | None = None, description: str | None = None) -> None:
    """Command line of run_finetune.py; exit codes as in errors.py."""
    parser = make_parser(description=description)
    arguments = parser.parse(argv)
    run.run_command(parser, TASKS[arguments.model.task], arguments)
