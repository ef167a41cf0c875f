"""The steps by which run.py prepares a run: sources, schedule, the checkpoint to resume from."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, get_scheduler, set_seed
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from ..data.loaders import images_in_batch
from ..data.opening import open_splits
from ..data.source import DataLocation, ImageSource, load_head_of_stream
from ..errors import CheckpointError, UserError, refused_by_library
from ..files import check_can_write
from ..hub.model_card import PICTURES, PROCESSOR
from ..hub.models import local_model
from ..hub.run_record import RECORD, read_record
from ..hub.uploads import LOGS
from .arguments import DataArguments, ImageTrainingArguments, RecipeArguments
from .checkpoints import (
    NEW_ORDER_FROM,
    SCALED_DECODING,
    checkpoints_in,
    differences_from_record,
    explain_differences,
    fault_of,
    last_checkpoint,
    newest_checkpoint,
    recover,
    remove_checkpoints,
)
from .launch import check_launch
from .optim_args import check_optim_args
from .optimization import scale_learning_rate, warmup_steps
from .predictions import PREDICTIONS
from .processes import first_process
from .trainer import ImageTrainer

# An evaluation set that cannot seek is held in memory.
MAX_EVAL_SAMPLES_OF_STREAM = 5000
# They say which numbers of the files are trained on, and the model's settings do not tell.
IMAGE_FLAGS = ("channel_axis", "frame", "clip_percentiles")
# What not every run writes into its output folder, so that it may be an earlier one's: results, and parts of a model.
_RESULTS = [*(f"{kind}_results.json" for kind in ("all", "train", "eval")), *PICTURES]
_RESULTS += ["classes.json", "confusion_matrix.json", PREDICTIONS, LOGS]
_PARTS = ["linear_head.safetensors", "target_statistics.safetensors", "base/model.safetensors.index.json"]
_PARTS += [f"adapter/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")]
_PARTS += [f"base/{name}" for name in ("config.json", "model.safetensors", "model-*-of-*.safetensors")]
_PARTS += [f"{folder}/{name}" for folder in ("adapter", "base") for name in (PROCESSOR, "*_vit_mae_robust*.py")]


def say(message: str) -> None:
    """Print on the first process only, without breaking a progress bar."""
    if PartialState().is_main_process:
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()


def open_sources(
    data: DataArguments, token: str | None, seed: int, eval_only: bool = False, **options: Any
) -> tuple[ImageSource | None, ImageSource | None]:
    """The images to train (None with `eval_only`) and to evaluate on. options: of `open_splits`. Raises DataError."""
    location = DataLocation.of(data, token)
    eval_split = None if data.eval_split_name == "none" else data.eval_split_name
    options |= {"train_val_split": data.train_val_split, "seed": seed, "buffer_size": data.shuffle_buffer_size}
    options |= {"share": first_process}
    train, evaluation = open_splits(location, None if eval_only else data.train_split_name, eval_split, **options)
    if eval_only and evaluation is None and data.train_val_split:
        _, evaluation = open_splits(location, data.train_split_name, eval_split, **{**options, "tells": False})
    train = train.sample(data.max_train_samples, seed, data.shuffle_buffer_size) if train is not None else None
    if evaluation is not None:
        evaluation = evaluation.sample(data.max_eval_samples, seed, data.shuffle_buffer_size)
        if evaluation.row_groups is None:
            evaluation = load_head_of_stream(evaluation, data.max_eval_samples or MAX_EVAL_SAMPLES_OF_STREAM)
    return train, evaluation


def check_can_evaluate(source: ImageSource, eval_source: ImageSource | None, training: ImageTrainingArguments) -> None:
    """Raises ValueError where an evaluation is asked for, and there is nothing to evaluate on."""
    if eval_source is None and (training.eval_strategy != "no" or training.eval_on_start):
        asked = (
            "--eval_on_start"
            if training.eval_on_start
            else f"--eval_strategy {IntervalStrategy(training.eval_strategy).value}"
        )
        raise UserError(
            f"{asked}: {source.description} has no split to evaluate on; "
            "name one with --eval_split_name, hold images out with --train_val_split 0.05, or give --eval_strategy no."
        )


# Schedules of transformers that take no warm-up.
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")


def set_schedule(
    source: ImageSource, recipe: RecipeArguments, training: ImageTrainingArguments, num_views: int = 1
) -> None:
    """Fill in learning rate and warm-up, which depend on the effective batch and the number of steps. num_views: of
    each image in a batch. Raises UserError."""
    _limit_batch(source, training, num_views)
    num_images = images_in_batch(source, training.train_batch_size, training.world_size, num_views)
    micro_steps = None if source.num_rows is None else source.num_rows // (num_images * training.world_size)
    if micro_steps is not None:
        _limit_accumulation(source, training, micro_steps)
    batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    if training.learning_rate is None:
        training.learning_rate = scale_learning_rate(recipe.base_learning_rate, batch)
    if micro_steps is None:
        if training.max_steps <= 0:
            raise UserError(
                f"{source.description} does not tell how many images it has: give --max_steps (and --warmup_steps) "
                "instead of --num_train_epochs."
            )
        if recipe.warmup_epochs is not None:
            raise UserError("--warmup_epochs needs a data set of known length; give --warmup_steps.")
        if training.save_strategy == "epoch":
            steps: Any = training.save_steps  # a number or a share, though the method says int
            training.set_save(strategy="steps", steps=steps, total_limit=training.save_total_limit)
        total_steps, epochs = training.max_steps, None
    else:
        steps_per_epoch = max(-(-micro_steps // training.gradient_accumulation_steps), 1)
        total_steps = (
            training.max_steps if training.max_steps > 0 else round(training.num_train_epochs * steps_per_epoch)
        )
        epochs = total_steps / steps_per_epoch
    _set_warmup(recipe, training, total_steps, epochs or 1)
    warn_of_warmup(recipe, training, total_steps)


def _limit_batch(source: ImageSource, training: ImageTrainingArguments, num_views: int) -> None:
    """Take batches of at most as many images as there are: those of recipes are for larger sets. Not under DeepSpeed,
    whose settings name the number; what does not fit is refused by `images_in_batch`."""
    if source.num_rows is None or num_views < 1 or training.train_batch_size % num_views or training.uses_deepspeed:
        return
    largest = source.num_rows // training.world_size * num_views // max(training.n_gpu, 1)
    given = training.per_device_train_batch_size
    if 0 < largest < given:
        each = f" for {training.world_size} processes" if training.world_size > 1 else ""
        say(
            f"Note: --per_device_train_batch_size {given} is lowered to {largest}, because {source.description} has "
            f"{source.num_rows:,} images{each}."
        )
        training.per_device_train_batch_size = largest


def _limit_accumulation(source: ImageSource, training: ImageTrainingArguments, micro_steps: int) -> None:
    """Accumulate at most the batches of an epoch, `micro_steps`: a step takes none of the next epoch, so the learning
    rate would be that of a batch that never comes. Raises UserError under DeepSpeed, whose settings name the number."""
    if training.gradient_accumulation_steps <= micro_steps:
        return
    given = f"--gradient_accumulation_steps {training.gradient_accumulation_steps}"
    has = f"an epoch of {source.description} ({source.num_rows:,} images) has {micro_steps:,} batch"
    has += "" if micro_steps == 1 else "es"
    if training.uses_deepspeed:
        raise UserError(f"{given}: {has}, and a step takes none of the next epoch. Give at most {micro_steps}.")
    say(f"Note: {given} is lowered to {micro_steps}, because {has}.")
    training.gradient_accumulation_steps = micro_steps


def _set_warmup(recipe: RecipeArguments, training: ImageTrainingArguments, total_steps: int, epochs: float) -> None:
    """Fill in the steps of the warm-up. epochs: of the training; 1 of a stream without epochs. Raises UserError."""
    if (schedule := SchedulerType(training.lr_scheduler_type).value) in WITHOUT_WARMUP:
        given = {"warmup_steps": training.warmup_steps, "warmup_epochs": recipe.warmup_epochs}
        for flag, length in given.items():
            if length:
                other = "constant_with_warmup" if schedule == "constant" else "another --lr_scheduler_type"
                raise UserError(
                    f"--{flag} {length:g}: --lr_scheduler_type {schedule} has no warm-up. Use {other}, or give "
                    f"--{flag} 0."
                )
        training.warmup_steps = 0
    elif training.warmup_steps is None:
        warmup = recipe.warmup_epochs if recipe.warmup_epochs is not None else 0.05 * epochs
        training.warmup_steps = warmup_steps(warmup, epochs, total_steps)
        if is_polynomial(training):
            training.warmup_steps = min(training.warmup_steps, max(total_steps - 1, 0))
    elif is_polynomial(training) and training.get_warmup_steps(total_steps) == total_steps:
        raise UserError(
            f"--warmup_steps {training.warmup_steps:g} is as long as the run ({total_steps:,} steps), which leaves "
            f"none for the decay of --lr_scheduler_type polynomial. Give --warmup_steps {round(0.05 * total_steps)}."
        )
    training.warmup_steps = training.get_warmup_steps(total_steps)  # of a share, the steps


def is_polynomial(training: ImageTrainingArguments) -> bool:
    """Whether the rate decays as a polynomial, which divides by the number of steps after the warm-up."""
    return SchedulerType(training.lr_scheduler_type) == SchedulerType.POLYNOMIAL


def warn_of_warmup(recipe: RecipeArguments, training: ImageTrainingArguments, total_steps: int) -> None:
    """Say so where the learning rate never reaches its peak."""
    warmup = training.get_warmup_steps(total_steps)
    if warmup < max(total_steps, 1) or total_steps < 2:
        return
    given, peak = f"{warmup:,} steps", training.learning_rate or 0.0
    if recipe.warmup_epochs is not None and warmup == total_steps:
        given = f"--warmup_epochs {recipe.warmup_epochs:g}"
    say(
        f"Warning: the warm-up ({given}) is as long as the run ({total_steps:,} steps) or longer, so the learning rate "
        f"rises to {peak * min(total_steps / warmup, 1):.3g} and no further; its peak is {peak:.3g}. "
        f"Give --warmup_steps {max(round(0.05 * total_steps), 1)}, 5% of the run."
    )


def check_metric(training: ImageTrainingArguments, metrics: Sequence[str], stops_early: bool) -> None:
    """Raises UserError where the best checkpoint is to be found by what no evaluation tells, or without evaluations.
    metrics: names of the results of an evaluation. The Trainer says so after the first evaluation, if at all.

    Where nothing looks at --metric_for_best_model, one that no evaluation tells becomes None: a recipe may be of
    another task, and the Trainer looks it up after each evaluation all the same."""
    is_told = str(training.metric_for_best_model or "loss").removeprefix("eval_") in metrics
    asked = {
        "--early_stopping_patience": stops_early,
        "--load_best_model_at_end": training.load_best_model_at_end,
        "--save_strategy best": training.save_strategy == "best",
        "--lr_scheduler_type": training.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY),
    }
    flag = next((flag for flag, is_asked in asked.items() if is_asked), None)
    if flag is None:
        training.metric_for_best_model = training.metric_for_best_model if is_told else None
        return
    if training.eval_strategy == "no":
        raise UserError(f"{flag} needs evaluations: give --eval_strategy epoch.")
    if not is_told:
        raise UserError(
            f"--metric_for_best_model {training.metric_for_best_model}, which {flag} looks at: an evaluation gives "
            f"{', '.join(metrics)}."
        )


def check_schedule(model: PreTrainedModel, training: ImageTrainingArguments) -> None:
    """Build optimizer and schedule of a single number, to find out whether they can be had before the training does.

    Raises UserError: a package is missing, or settings are not known to them.
    """
    check_optim_args(str(getattr(training.optim, "value", training.optim)), training.optim_args)
    given = f" --optim_args {training.optim_args}" if training.optim_args else ""
    with refused_by_library(f"--optim {getattr(training.optim, 'value', training.optim)}{given}"):
        kind, options = Trainer.get_optimizer_cls_and_kwargs(training, model)
        if not options.keys() & {"optimizer_dict", "params", "model"}:  # those of layers, which need the real ones
            kind([torch.nn.Parameter(torch.zeros(2, 2))], **options)
    given = f" --lr_scheduler_kwargs {training.lr_scheduler_kwargs}" if training.lr_scheduler_kwargs else ""
    with refused_by_library(
        f"--lr_scheduler_type {getattr(training.lr_scheduler_type, 'value', training.lr_scheduler_type)}{given}"
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate or 0.0)
        steps, settings = max(training.max_steps, 2), training.lr_scheduler_kwargs
        get_scheduler(
            training.lr_scheduler_type,
            optimizer,
            num_warmup_steps=min(training.get_warmup_steps(steps), steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=settings if isinstance(settings, dict) else {},
        )


def record_of(
    training: ImageTrainingArguments, data: DataArguments, source: ImageSource, **more: Any
) -> dict[str, Any]:
    """What decides over the course of a run, beside the model's settings: a resumed run must have the same. `more`:
    what only one of the commands has."""
    names = (
        "world_size",
        "train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
        "seed",
        "data_seed",
        "learning_rate",
        "warmup_steps",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "optim",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "bf16",
        "fp16",
    )
    return {
        **{name: getattr(training, name) for name in names},
        "dataset_name": data.dataset_name,
        "dataset_revision": source.revision,
        "dataset_fingerprint": source.fingerprint,
        "num_images": source.num_rows,
        "dataset_streaming": data.dataset_streaming,
        "shuffle_buffer_size": data.shuffle_buffer_size if data.dataset_streaming else None,
        "crop_scale": list(data.crop_scale),
        "horizontal_flip": data.horizontal_flip,
        # Only where they are on: older checkpoints do not know of them.
        **({"optim_args": training.optim_args} if training.optim_args else {}),
        **{flag: True for flag in ("vertical_flip", "rot90") if getattr(data, flag)},
        **{flag: value for flag in IMAGE_FLAGS if (value := getattr(data, flag)) is not None},
        **({SCALED_DECODING: True} if source.decodes_scaled else {}),
        **({NEW_ORDER_FROM: 0} if source.row_groups is not None and not source.seekable_at_no_cost else {}),
        **more,
    }


def check_output_dir(output_dir: Path) -> None:
    """Raises UserError where no folder can be made or written to. Nothing is written."""
    if output_dir.is_file():
        raise UserError(f"--output_dir {output_dir} is a file.")
    check_can_write(output_dir, "--output_dir")


def check_not_in_data_folder(output_dir: Path, dataset_name: str | None) -> None:
    """Raises UserError where a run would write its files among the images, which it then could not be resumed from:
    they could not be told from its own pictures."""
    if (
        dataset_name is not None
        and Path(dataset_name).is_dir()
        and output_dir.resolve() == Path(dataset_name).resolve()
    ):
        raise UserError(
            f"--output_dir {output_dir} is the folder of the data. Give another one, such as a new one in it."
        )


def check_not_start_folder(output_dir: Path, start: str | None, flag: str, overwrites: bool) -> None:
    """Raises UserError where a run would write its model over the one that it starts from, or delete it. start: a
    folder, or a name on the Hub. overwrites: --overwrite_output_dir."""
    if start is None or not Path(start).is_dir():
        return
    if overwrites and Path(start).resolve() in [path.resolve() for path in checkpoints_in(output_dir)]:
        raise UserError(
            f"--overwrite_output_dir would delete {start}, which {flag} names. Give another --output_dir, or leave "
            "--overwrite_output_dir out to resume from the newest checkpoint."
        )
    if output_dir.resolve() == Path(start).resolve():
        raise UserError(
            f"--output_dir {output_dir} is the folder of {flag}, whose model the run would overwrite. Give another one."
        )


def check_evaluates_elsewhere(output_dir: Path) -> None:
    """Raises UserError where an evaluation would write its results over those of a run that has trained."""
    if (output_dir / RECORD).exists():
        raise UserError(
            f"--output_dir {output_dir} is the folder of a training run, whose results --eval_only would overwrite. "
            f"Give another one, such as {output_dir / 'evaluation'}."
        )


def begin(training: ImageTrainingArguments) -> None:
    """Checks that need neither model nor data, and the seed."""
    check_output_dir(Path(training.output_dir))
    check_launch(training)
    set_seed(training.seed)


def find_checkpoint(recipe: RecipeArguments, training: ImageTrainingArguments) -> str | None:
    """The checkpoint to resume from: the one named, or the newest complete one in the output folder."""
    checkpoint: Path | None
    named = training.resume_from_checkpoint
    if recipe.overwrite_output_dir:
        if named:
            raise UserError(
                "--overwrite_output_dir cannot be combined with --resume_from_checkpoint: it trains from the beginning."
            )
        return None
    if named and str(named).lower() not in ("true", "auto"):
        checkpoint = Path(named)
        if not checkpoint.is_dir():
            raise CheckpointError(f"--resume_from_checkpoint {named}: no such folder.")
        if newest := last_checkpoint(checkpoint):
            raise CheckpointError(
                f"--resume_from_checkpoint {named} is the folder of a run. Name one of its checkpoints, such as "
                f"{newest}, or give --output_dir {named} alone, which resumes from the newest."
            )
        if fault := fault_of(checkpoint):
            raise CheckpointError(f"--resume_from_checkpoint {named} cannot be resumed from: {fault}.")
    else:
        recover(training.output_dir)
        checkpoint = newest_checkpoint(training.output_dir)
    if checkpoint is None:
        return None
    say(f"Resuming from {checkpoint} (--overwrite_output_dir trains from the beginning)")
    return str(checkpoint)


def agree_on_checkpoint(recipe: RecipeArguments, training: ImageTrainingArguments) -> str | None:
    """`find_checkpoint`, by one process for all: verifying takes time, and all must resume from the same one.

    Raises CheckpointError in all of them, and where a process does not see the checkpoint.
    """
    checkpoint = first_process(lambda: find_checkpoint(recipe, training))
    if checkpoint and not Path(checkpoint).is_dir():
        raise CheckpointError(f"Process {PartialState().process_index} does not see {checkpoint}, which others do.")
    return checkpoint


def fetch_model(name: str, revision: str | None, token: str | None) -> tuple[str, str | None]:
    """`local_model`, at the same commit in all processes, though the branch may move between their requests: the first
    one asks. Raises ValueError in all of them."""
    path, commit = first_process(lambda: local_model(name, revision, token))
    if commit is None or PartialState().is_main_process:
        return path, commit
    return local_model(name, commit, token)  # another machine has another cache


def pin_revision(data: DataArguments, checkpoint: str | None) -> None:
    """Keep the commit of the data set that the run began with, though its branch may have moved since."""
    if checkpoint and data.dataset_revision is None:
        record = read_record(Path(checkpoint))
        if record.get("dataset_name") == data.dataset_name:
            data.dataset_revision = record.get("dataset_revision")


def pin_decoding(data: DataArguments, checkpoint: str | None) -> None:
    """Decode at full size where the run began so: with --full_size_decoding, or before there was anything else."""
    if checkpoint and SCALED_DECODING not in read_record(Path(checkpoint)):
        data.full_size_decoding = True


def accept(checkpoint: str | None, record: dict[str, Any], recipe: RecipeArguments) -> bool:
    """Whether a run resumes with other settings than its checkpoint's. Raises CheckpointError where it must not."""
    if not checkpoint or not (differences := differences_from_record(Path(checkpoint), record)):
        return False
    if not recipe.allow_elastic_resume:
        raise CheckpointError(explain_differences(checkpoint, differences))
    say(f"Other settings than {checkpoint} (--allow_elastic_resume): {'; '.join(differences)}")
    return True


def describe_length(trainer: ImageTrainer) -> str:
    """Images, steps, batch, learning rate and device, as the first line of a run ends."""
    args, source = trainer.args, trainer.train_source
    images = source.description if source.num_rows is None else f"{source.num_rows:,} images of {source.description}"
    precision = "" if args.mixed_precision == "no" else f" {args.mixed_precision}"
    processes = f"{args.world_size} process{'es' * (args.world_size > 1)}"
    length = f"{args.num_train_epochs:g} epochs" if args.max_steps <= 0 else f"{args.max_steps:,} steps"
    if trainer.repeated_augmentation > 1:
        images += f", {trainer.repeated_augmentation} views of each"
    return (
        f"{images}: {length}, effective batch {trainer.get_total_train_batch_size(args):,} ({args.train_batch_size} x "
        f"{processes} x {args.gradient_accumulation_steps} accumulated), learning rate {args.learning_rate:.3g} after "
        f"{args.warmup_steps:g} steps of warm-up, {args.device.type}{precision}"
    )


def warn_of_stream(source: ImageSource, data: DataArguments) -> None:
    if source.row_groups is None:
        say(
            f"Note: {source.description} can only be read from its beginning. There are no epochs; a resumed run "
            "starts it over, so some images come more often than others; shuffling is within "
            f"{data.shuffle_buffer_size:,} images. Parquet files, or a data set that is not streamed, have "
            "none of these limits."
        )


def output_of_earlier_run(arguments: Any) -> dict[Path, int]:
    """Files in the output folder that an earlier run wrote, and that would be published as this one's, with the time of
    their last change. Without links and what a flag names: a file, or a folder that holds parts of a model."""
    folder = Path(arguments.training.output_dir).resolve()
    if not (folder / RECORD).exists():
        return {}
    groups = [vars(group).values() for group in arguments if group is not arguments.training]
    given = {Path(value).resolve() for group in groups for value in group if isinstance(value, str)}
    inputs = {path for path in given if path.is_relative_to(folder)}
    found = [path for name in _RESULTS for path in folder.glob(name) if path not in inputs]
    found += [path for name in _PARTS for path in folder.glob(name) if not inputs & {path, path.parent}]
    return {path: path.stat().st_mtime_ns for path in found if path.is_file() and path == path.resolve()}


def remove_unchanged(files: Mapping[Path, int], folder: str) -> None:
    """Delete files that were not written again since the time given, and folders that this leaves empty."""
    removed = [path for path, changed in files.items() if path.exists() and path.stat().st_mtime_ns == changed]
    for path in removed:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds other files
            path.parent.rmdir()
    if removed:
        names = ", ".join(path.relative_to(Path(folder).resolve()).as_posix() for path in removed)
        say(f"Removed results of an earlier run from {folder}: {names}")


def start_over_if_asked(recipe: RecipeArguments, training: ImageTrainingArguments, earlier: Mapping[Path, int]) -> None:
    """--overwrite_output_dir. To be called last of all before the training, when whatever was wrong with the arguments
    or the data has been found. earlier: as `output_of_earlier_run`, removed in any case."""
    first_process(lambda: remove_unchanged(earlier, training.output_dir))
    starts_over = recipe.overwrite_output_dir and training.process_index == 0
    if starts_over and (removed := remove_checkpoints(training.output_dir)):
        say(f"Training starts from the beginning: removed {', '.join(str(path) for path in removed)}")
    PartialState().wait_for_everyone()
