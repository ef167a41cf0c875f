"""Pre-training: the command line of run_pretrain.py, and the same from Python.

What trains is imported where it is used, so that --help answers at once.
"""

import argparse
from typing import TYPE_CHECKING, cast

from .pretraining.arguments import (
    CONFIG_FLAGS,
    DEFAULT_RECIPE,
    DataArguments,
    MAETrainingArguments,
    ModelArguments,
    PretrainArguments,
    RecipeArguments,
)
from .training.parser import RecipeParser
from .training.signals import SIGNALS

if TYPE_CHECKING:
    from .data.source import ImageSource
    from .pretraining.task import PretrainingTask
    from .pretraining.trainer import MAETrainer


def add_diagnostics(trainer: "MAETrainer", arguments: PretrainArguments) -> None:
    from .analysis.online import add_online_diagnostics

    training = arguments.training
    add_online_diagnostics(
        trainer,
        arguments.data,
        kinds=training.diagnostics,
        num_samples=training.diagnostics_samples,
        label_column_name=training.label_column_name,
        probe_samples=training.probe_samples,
        token=arguments.model.token,
    )


def make_task() -> "PretrainingTask":
    from .pretraining.task import PretrainingTask

    return PretrainingTask(add_diagnostics)


def make_parser(prog: str | None = None, description: str | None = None) -> RecipeParser[PretrainArguments]:
    def default_recipe(given: argparse.Namespace) -> str | None:
        return None if given.dataset_name else DEFAULT_RECIPE

    return RecipeParser(
        PretrainArguments, default_recipe, settings_of_model=CONFIG_FLAGS, prog=prog, description=description
    )


def prepare(arguments: PretrainArguments) -> tuple["MAETrainer", str | None]:
    """Everything up to the first step: the Trainer, and the checkpoint to resume from. Raises as `pretrain`."""
    from .training import run

    return run.prepare(make_task(), arguments)


def pretrain(
    model: ModelArguments, data: DataArguments, recipe: RecipeArguments, training: MAETrainingArguments
) -> "MAETrainer":
    """Train a masked autoencoder. At the end the output folder holds weights (safetensors), config, image processor,
    model code, `reconstructions.png`, `loss.png`, `all_results.json`, and the statistics of the target, if any.

    Raises:
        UserError (DataError, CheckpointError among them; a ValueError): arguments, data or checkpoint cannot be used.
            Existing checkpoints are as they were.
        StopRequested, NonFiniteError, SavingError: as `MAETrainer.train`; checkpoints written so far are complete.
    """
    from .training import run

    return run.prepare_and_run(make_task(), PretrainArguments(model=model, data=data, recipe=recipe, training=training))


def plan(arguments: PretrainArguments) -> str:
    """--dry_run: the text of the plan. Raises as `prepare` for arguments and data that cannot be used."""
    import torch

    from .analysis.online import open_labelled_splits
    from .model import ViTMAERobustForPreTraining
    from .pretraining.adapting import freeze_blocks
    from .pretraining.dry_run import describe_plan
    from .pretraining.model_config import config_of, settings_of_images
    from .pretraining.task import check_use_of_config, find_statistics
    from .training import run
    from .training.machine import check_activation_checkpointing
    from .training.setup import check_schedule

    opened = run.open_run(make_task(), arguments, resumes=False)
    source = cast("ImageSource", opened.source)
    of_images = settings_of_images(opened.arguments, source, computes=False)
    config, training = config_of(opened.arguments.model, of_images), opened.arguments.training
    check_use_of_config(opened.arguments, config)
    if opened.arguments.model.target_statistics != "auto":  # which is a pass over the images
        find_statistics(opened.arguments, config, source)
    with torch.device("meta"):
        model = ViTMAERobustForPreTraining(config)
    if training.freeze_blocks is not None:
        freeze_blocks(model, training.freeze_blocks)
    check_schedule(model, training)
    check_activation_checkpointing(training)
    if training.label_column_name is not None:
        open_labelled_splits(
            opened.arguments.data, training.label_column_name, training.seed, opened.arguments.model.token
        )
    return describe_plan(config, training, source)


def main(argv: list[str] | None = None, description: str | None = None) -> None:
    """Command line of run_pretrain.py; exit codes as in errors.py."""
    with SIGNALS.answered():
        parser = make_parser(description=description)
        arguments = parser.parse(argv)
        from .training import run

        if arguments.training.dry_run:
            run.print_command(parser, arguments.training, lambda: plan(arguments))
        else:
            run.run_command(parser, make_task(), arguments)
