"""Fine-tuning, from arguments to a folder that `from_pretrained` loads without this package."""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedModel, set_seed

from .data.opening import EMBEDDED
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
from .finetuning.classification import task as classification
from .finetuning.detection import task as detection
from .finetuning.segmentation import task as segmentation
from .finetuning.trainer import FinetuningTrainer
from .hub.run_record import about_run
from .training.checkpoints import check_config
from .training.parser import RecipeParser
from .training.pictures import save_loss_plot
from .training.run import (
    evaluate_and_save,
    push_if_asked,
    report_skipped_images,
    run_command,
    save_examples_and_card,
    train_and_save,
)
from .training.setup import (
    accept,
    agree_on_checkpoint,
    begin,
    check_can_evaluate,
    describe_length,
    fetch_model,
    open_sources,
    pin_revision,
    record_of,
    say,
    set_schedule,
    start_anew_if_asked,
    warn_of_stream,
)
from .training.trainer import ImageTrainer

TASKS = {"classification": classification, "segmentation": segmentation, "detection": detection}
DEFAULT_RECIPE = "finetune_digits"
DEFAULT_PROBE_RECIPE = "linear_probe_vit_base"
# The flags' own defaults are those of classification.
DEFAULT_TASK_RECIPES = {"segmentation": "upernet_vit_base", "detection": "mask_rcnn_vit_base"}
MIN_LR_SCHEDULE = "cosine_with_min_lr"


def make_parser(prog: str | None = None, description: str | None = None) -> RecipeParser:
    groups = [FinetuneModelArguments, FinetuneDataArguments, AugmentationArguments, SegmentationArguments]
    groups += [DetectionArguments, FinetuneRecipeArguments, FinetuneTrainingArguments]

    def default_recipe(given: argparse.Namespace) -> str | None:
        if given.task in DEFAULT_TASK_RECIPES:
            return DEFAULT_TASK_RECIPES[given.task]
        if given.linear_probe:
            return DEFAULT_PROBE_RECIPE
        return None if given.dataset_name else DEFAULT_RECIPE

    return RecipeParser(groups, default_recipe, prog=prog, description=description)


def set_minimum_rate(recipe: FinetuneRecipeArguments, training: FinetuneTrainingArguments) -> None:
    """Hand --min_learning_rate to the schedule, which scales it in each layer as it does the peak."""
    if str(training.lr_scheduler_type).rpartition(".")[2].lower() != MIN_LR_SCHEDULE or training.lr_scheduler_kwargs:
        return
    if not 0 <= recipe.min_learning_rate <= training.learning_rate:
        raise ValueError(
            f"--min_learning_rate {recipe.min_learning_rate:g}: must lie between 0 and the peak, which is "
            f"{training.learning_rate:g} (--base_learning_rate x effective batch / 256)."
        )
    training.lr_scheduler_kwargs = {"min_lr": recipe.min_learning_rate}


def record_of_lora(arguments: FinetuneArguments, model: PreTrainedModel) -> dict[str, Any] | None:
    if arguments.model.lora_r is None:
        return None
    from .finetuning.classification.lora import record_of_adapter  # peft is optional

    return record_of_adapter(model)


def describe(trainer: ImageTrainer, arguments: FinetuneArguments) -> str:
    """What is done to what, in a line."""
    task, config = TASKS[arguments.model.task], trainer.model.config
    start = "from scratch" if arguments.model.from_scratch else arguments.model.model_name_or_path
    details = task.describe(trainer, arguments)
    if arguments.recipe.eval_only:
        return f"Evaluating {start} on {trainer.eval_dataset.description} ({details})"
    encoder = getattr(config, "backbone_config", config)
    millions = sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6
    sizes = f"{encoder.model_type} {encoder.hidden_size}x{encoder.num_hidden_layers}, {millions:.3g} M parameters"
    return (
        f"Fine-tuning {start} ({sizes}; {details}) for {arguments.model.task} of "
        f"{len(trainer.train_dataset.class_names)} classes on {describe_length(trainer)}"
    )


def prepare(*groups) -> tuple[FinetuningTrainer, str | None]:
    """Everything up to the first step, its line of description included. Raises whatever is wrong with arguments, model
    and data before anything is written."""
    arguments = FinetuneArguments(*groups)
    data, recipe, training = arguments.data, arguments.recipe, arguments.training
    task, checkpoint = TASKS[arguments.model.task], None
    if task is not classification and (arguments.model.linear_probe or recipe.model_ema_decay is not None):
        raise ValueError("--linear_probe and --model_ema_decay are for --task classification.")
    if recipe.eval_only and training.push_to_hub:
        raise ValueError("--eval_only writes no model, so there is nothing for --push_to_hub. Leave one of them out.")
    begin(training)
    asked, commit = arguments.model, None
    training.hub_token = training.hub_token or asked.token
    if asked.model_name_or_path is not None:
        path, commit = fetch_model(asked.model_name_or_path, asked.model_revision, asked.token)
        arguments = arguments._replace(model=replace(asked, model_name_or_path=path))
    if not recipe.eval_only:
        checkpoint = agree_on_checkpoint(recipe, training)
        pin_revision(data, checkpoint)
    options = task.source_options(arguments)
    source, eval_source = open_sources(data, arguments.model.token, training.seed, recipe.eval_only, **options)
    if recipe.eval_only and eval_source is None:
        raise ValueError("--eval_only: there is no split to evaluate on; name one with --eval_split_name.")
    class_names = (source or eval_source).class_names
    common = {
        "args": training,
        "class_names": class_names,
        "eval_source": eval_source,
        "max_bad_images": data.max_bad_images,
    }
    if recipe.eval_only:
        model, pixels = task.build_model(arguments, class_names)
        trainer = task.make_trainer(arguments, model, pixels, num_channels=pixels.num_channels, **common)
        say(describe(trainer, FinetuneArguments(*groups)))
        return trainer, None
    check_can_evaluate(source, eval_source, training)
    set_schedule(source, recipe, training)
    set_minimum_rate(recipe, training)
    model, pixels = task.build_model(arguments, class_names)
    if checkpoint:
        check_config(Path(checkpoint), model.config)
    record = record_of(
        training,
        data,
        source,
        task=arguments.model.task,
        linear_probe=arguments.model.linear_probe,
        lora=record_of_lora(arguments, model),
        label_smoothing_factor=training.label_smoothing_factor,
        **{name: getattr(recipe, name) for name in ("layer_decay", "min_learning_rate", "model_ema_decay")},
        **{name: value for group in arguments[2:5] for name, value in asdict(group).items()},
    )
    trainer = task.make_trainer(
        arguments,
        model,
        pixels,
        num_channels=pixels.num_channels,
        train_source=source,
        shuffle_buffer_size=data.shuffle_buffer_size,
        record=record,
        allow_elastic_resume=accept(checkpoint, record, recipe),
        skip_nonfinite_steps=recipe.skip_nonfinite_steps,
        **common,
    )
    if recipe.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))
    trainer.about = about_run(
        trainer,
        task=arguments.model.task,
        start=None if asked.from_scratch else asked.model_name_or_path,
        start_commit=None if asked.from_scratch else commit,
        dataset_name=data.dataset_name,
        built_in_dataset=EMBEDDED,
        recipe=recipe.config,
        model_license=recipe.model_license,
    )
    say(describe(trainer, FinetuneArguments(*groups)))
    warn_of_stream(source, data)
    set_seed(training.seed)
    start_anew_if_asked(recipe, training)
    return trainer, checkpoint


def run(trainer: FinetuningTrainer, checkpoint: str | None, arguments: FinetuneArguments) -> None:
    """Train, evaluate, and fill the output folder."""
    task = arguments.model.task
    output_dir, trains = Path(trainer.args.output_dir), trainer.train_dataset is not None
    if trains:
        train_and_save(trainer, checkpoint)
    if trainer.eval_dataset is not None:
        evaluate_and_save(trainer)
    if trainer.is_world_process_zero():
        result, files = TASKS[task].report(trainer)
        report_skipped_images(trainer)
        if trains:
            save_loss_plot(trainer.state.log_history, output_dir / "loss.png", TASKS[task].LOSS)
            save_examples_and_card(trainer)
            files = ["the model", "README.md (its card)", "loss.png", *files]
        files.append("all_results.json")
        say(f"Done. {result}{' ' * bool(result)}{output_dir} holds {', '.join(files[:-1])} and {files[-1]}.")
    if trains:
        push_if_asked(trainer)


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
    arguments = FinetuneArguments(model, data, augmentation, segmentation, detection, recipe, training)
    trainer, checkpoint = prepare(*arguments)
    run(trainer, checkpoint, arguments)
    return trainer


def main(argv: list[str] | None = None, description: str | None = None) -> None:
    """Command line of run_finetune.py; exit codes as in `run_command`."""
    parser = make_parser(description=description)
    arguments = FinetuneArguments(*parser.parse(argv))
    run_command(parser, arguments, prepare, lambda trainer, checkpoint: run(trainer, checkpoint, arguments))
