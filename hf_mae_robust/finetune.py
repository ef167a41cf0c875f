"""Fine-tuning, from arguments to a folder that `from_pretrained` loads without this package."""

import argparse

from .arguments import RecipeParser
from .finetune_arguments import (
    AugmentationArguments,
    FinetuneDataArguments,
    FinetuneModelArguments,
    FinetuneRecipeArguments,
    FinetuneTrainingArguments,
)
from .image_trainer import ImageTrainer
from .running import run_command
from .tasks import classification

TASKS = {"classification": classification}
DEFAULT_RECIPE = "finetune_digits"
DEFAULT_PROBE_RECIPE = "linear_probe_vit_base"


def make_parser(prog: str | None = None, description: str | None = None) -> RecipeParser:
    groups = [FinetuneModelArguments, FinetuneDataArguments, AugmentationArguments]
    groups += [FinetuneRecipeArguments, FinetuneTrainingArguments]

    def default_recipe(given: argparse.Namespace) -> str | None:
        if given.linear_probe:
            return DEFAULT_PROBE_RECIPE
        return None if given.dataset_name else DEFAULT_RECIPE

    return RecipeParser(groups, default_recipe, prog=prog, description=description)


def finetune(
    model: FinetuneModelArguments,
    data: FinetuneDataArguments,
    augmentation: AugmentationArguments,
    recipe: FinetuneRecipeArguments,
    training: FinetuneTrainingArguments,
) -> ImageTrainer:
    """Fine-tune an encoder for `model.task`. At the end the output folder holds a stock model (safetensors, config,
    image processor), `all_results.json`, `loss.png`, and what belongs to the task: for classification
    `confusion_matrix.png` and `confusion_matrix.json`, with the accuracy of each class.

    Raises:
        ValueError (DataError, CheckpointError among them), FileNotFoundError, NotADirectoryError: arguments, model,
            data or checkpoint cannot be used. Existing checkpoints are as they were.
        StopRequested, NonFiniteError, SavingError: as `ImageTrainer.train`; checkpoints written so far are complete.
    """
    task = TASKS[model.task]
    trainer, checkpoint = task.prepare(model, data, augmentation, recipe, training)
    task.run(trainer, checkpoint)
    return trainer


def main(argv: list[str] | None = None, description: str | None = None) -> None:
    """Command line of run_finetune.py; exit codes as in `run_command`."""
    parser = make_parser(description=description)
    arguments = parser.parse(argv)
    task = TASKS[arguments[0].task]
    run_command(parser, arguments, task.prepare, task.run)
