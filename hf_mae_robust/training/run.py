"""A run from its arguments to a finished folder, the same way for every task, and what a command ends with."""

import copy
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, NoReturn, cast

import torch
import transformers
from accelerate import PartialState
from transformers import set_seed

from ..data.bad_images import describe
from ..data.loaders import end_workers
from ..data.opening import EMBEDDED
from ..data.source import ImageSource
from ..errors import (
    EXIT_BUG,
    EXIT_CODES,
    EXIT_STOPPED,
    LostProcessError,
    StopOutsideTraining,
    StopRequested,
    UserError,
    fault_of_place,
    sentence_of,
)
from ..hub.model_card import EXAMPLES
from ..hub.run_record import PACKAGES, RECORD, about_run, write_record
from ..hub.uploads import check_license
from ..version import __version__
from .arguments import ImageTrainingArguments
from .checkpoints import check_config, last_checkpoint
from .image_form import as_wanted, with_flags
from .machine import check_activation_checkpointing, check_compiling
from .parser import RecipeParser
from .peers import describe_loss, is_loss
from .pictures import save_examples, save_loss_plot
from .processes import first_process
from .profiling import StepProfile
from .run_lock import LOCK_FILE, locked_by_first_process
from .setup import (
    accept,
    agree_on_checkpoint,
    begin,
    check_can_evaluate,
    check_evaluates_elsewhere,
    check_metric,
    check_not_in_data_folder,
    check_not_start_folder,
    check_output_dir,
    check_schedule,
    fetch_model,
    open_sources,
    output_of_earlier_run,
    pin_decoding,
    pin_revision,
    record_of,
    say,
    set_schedule,
    start_over_if_asked,
    warn_of_stream,
)
from .sharding import complete_models
from .shared_folder import check_shared
from .signals import SIGNALS
from .stopping import stop_if_asked
from .task import AnyTrainer, Arguments, Task
from .trainer import ImageTrainer

# Written when a signal ended the run, for scripts: torchrun and `accelerate launch` do not pass an exit code on.
STOPPED_FILE = "stopped.json"


@dataclass(frozen=True)
class OpenedRun(Generic[Arguments]):
    """What is known before a model is built.

    Attributes:
        arguments: with `model.model_name_or_path` local, and learning rate and warm-up filled in.
        start, start_commit: the model as the user named it; its commit, of one on the Hub.
        checkpoint: to resume from; None: there is none.
        source, eval_source: images to train on (None where the run only evaluates) and to evaluate on.
    """

    arguments: Arguments
    start: str | None
    start_commit: str | None
    checkpoint: str | None
    source: ImageSource | None
    eval_source: ImageSource | None


def open_run(task: Task[Arguments, Any, Any], arguments: Arguments, resumes: bool = True) -> OpenedRun[Arguments]:
    """Find model, checkpoint and data, and fill in the schedule, in a copy of the arguments. resumes: look for a
    checkpoint to resume from."""
    groups = ("model", "data", "recipe", "training")  # which another run may take, and fill in its own
    arguments = arguments._replace(**{name: copy.copy(getattr(arguments, name)) for name in groups})
    data, recipe, training = arguments.data, arguments.recipe, arguments.training
    task.check_settings(arguments)
    evaluates_only, checkpoint = task.evaluates_only(arguments), None
    if not evaluates_only:
        check_metric(training, task.metrics, getattr(recipe, "early_stopping_patience", None) is not None)
    check_not_in_data_folder(Path(training.output_dir), data.dataset_name)
    begin(training)
    stop_if_asked()
    start, commit = arguments.model.model_name_or_path, None
    training.hub_token = training.hub_token or arguments.model.token
    if start is not None:
        path, commit = fetch_model(start, arguments.model.model_revision, arguments.model.token)
        arguments = arguments._replace(model=replace(arguments.model, model_name_or_path=path))
    task.check_model(arguments)
    if resumes and not evaluates_only:
        checkpoint = agree_on_checkpoint(recipe, training)
        pin_revision(data, checkpoint)
        pin_decoding(data, checkpoint)
    if evaluates_only:
        check_evaluates_elsewhere(Path(training.output_dir))
    elif checkpoint is None:
        flag = "--encoder_from" if getattr(arguments.model, "encoder_from", None) else "--model_name_or_path"
        check_not_start_folder(Path(training.output_dir), start, flag, recipe.overwrite_output_dir)
    stop_if_asked()
    options = task.source_options(arguments)
    source, eval_source = open_sources(data, arguments.model.token, training.seed, evaluates_only, **options)
    stop_if_asked()
    if source is not None:
        check_can_evaluate(source, eval_source, training)
        set_schedule(source, recipe, training, task.num_views(arguments))
        task.finish_schedule(arguments)
    elif eval_source is None:
        raise UserError(
            "--eval_only: there is no split to evaluate on; name one with --eval_split_name, or hold out the images "
            "that the training held out, with the same --train_val_split and --seed."
        )
    return OpenedRun(arguments, start, commit, checkpoint, source, eval_source)


def prepare(task: Task[Arguments, Any, AnyTrainer], given: Arguments) -> tuple[AnyTrainer, str | None]:
    """Everything up to the first step, the run's line of description included: the Trainer, and the checkpoint to
    resume from.

    Raises UserError (DataError, CheckpointError among them) for whatever is wrong with arguments, model, data and
    checkpoint, before anything is written.
    """
    with complete_models(given.training):
        opened = open_run(task, given)
    arguments, source, checkpoint = opened.arguments, opened.source, opened.checkpoint
    data, recipe, training = arguments.data, arguments.recipe, arguments.training
    if training.push_to_hub and (model_license := recipe.model_license) is not None:
        first_process(lambda: check_license(model_license))
    labelled = cast(ImageSource, source if source is not None else opened.eval_source)
    class_names = labelled.class_names or ()
    with complete_models(training):
        with torch.random.fork_rng(devices=[]):  # weights must not depend on what is computed here, or found in a cache
            task.look_at_images(arguments, labelled, checkpoint)
        stop_if_asked()
        model, pixels = task.build_model(arguments, class_names)
    pixels = with_flags(pixels, data, opened.start)
    stop_if_asked()
    parts = (source, opened.eval_source)
    source, eval_source = (as_wanted(model, pixels, part, task.takes_bands) for part in parts)
    common: dict[str, Any] = {
        "args": training,
        "eval_source": eval_source,
        "max_bad_images": data.max_bad_images,
    }
    if source is None:
        trainer = task.make_trainer(arguments, model, pixels, class_names, **common)
        say(task.describe(trainer, given))
        return trainer, None
    check_schedule(model, training)
    check_activation_checkpointing(training)
    check_compiling(training)
    if checkpoint:
        check_config(Path(checkpoint), model.config)
    record = record_of(training, data, source, **task.record(arguments, model))
    trainer = task.make_trainer(
        arguments,
        model,
        pixels,
        class_names,
        train_source=source,
        shuffle_buffer_size=data.shuffle_buffer_size,
        record=record,
        allow_elastic_resume=accept(checkpoint, record, recipe),
        skip_nonfinite_steps=recipe.skip_nonfinite_steps,
        **common,
    )
    from_scratch = getattr(arguments.model, "from_scratch", False)
    trainer.about = about_run(
        trainer,
        task=task.name,
        start=None if from_scratch else opened.start,
        start_commit=None if from_scratch else opened.start_commit,
        dataset_name=data.dataset_name,
        built_in_dataset=EMBEDDED,
        recipe=recipe.config,
        model_license=recipe.model_license,
    )
    task.add_callbacks(trainer, arguments)
    say(task.describe(trainer, given))
    warn_of_stream(source, data)
    check_shared(training.output_dir)
    earlier: dict[Path, int] = {}
    if checkpoint is None:
        earlier = first_process(lambda: output_of_earlier_run(arguments))
        task.start(trainer, arguments)
    stop_if_asked()
    # Dropout must not depend on what was computed so far, or found in a cache.
    set_seed(training.seed)
    start_over_if_asked(recipe, training, earlier)
    return trainer, checkpoint


def prepare_and_run(task: Task[Arguments, Any, AnyTrainer], arguments: Arguments) -> AnyTrainer:
    """All of a run, as a function. Raises as `prepare` and `run`."""
    with output_folder(arguments.training):
        trainer, checkpoint = prepare(task, arguments)
        run(task, trainer, checkpoint)
    return trainer


def run(task: Task[Any, Any, Any], trainer: ImageTrainer, checkpoint: str | None) -> None:
    """Train, evaluate, and fill the output folder."""
    output_dir, trains = Path(trainer.args.output_dir), trainer.train_dataset is not None
    if trains:
        train_and_save(trainer, checkpoint)
    if trainer.eval_dataset is not None:
        evaluate_and_save(trainer)
    task.draw(trainer)
    if trainer.is_world_process_zero():
        result, files = task.report(trainer)
        report_skipped_images(trainer)
        if trains:
            save_loss_plot(trainer.state.log_history, output_dir / "loss.png", task.loss)
            save_examples_and_card(trainer)
            files = ["the model", "README.md (its card)", "loss.png", *files]
        files.append("all_results.json")
        say(f"Done. {result}{' ' * bool(result)}{output_dir} holds {', '.join(files[:-1])} and {files[-1]}.")
    if trains:
        push_if_asked(trainer)


@contextmanager
def output_folder(training: ImageTrainingArguments) -> Iterator[None]:
    """Around `prepare` and `run`: the output folder belongs to this run alone. To be entered by all processes; the
    first one holds the lock. Raises UserError in all of them."""
    folder = Path(training.output_dir)
    first_process(lambda: check_output_dir(folder))
    with locked_by_first_process(folder):
        yield


def train_and_save(trainer: ImageTrainer, checkpoint: str | None) -> None:
    """Train, save the model and the metrics of the training."""
    if trainer.is_world_process_zero():
        mark_output(trainer, is_new=checkpoint is None)
    if trainer.args.profile:
        trainer.add_callback(StepProfile(trainer, trainer.args.profile))
    result = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = {name: value for name, value in result.metrics.items() if name != "total_flos"}  # which is not counted
    if trainer.was_finished:
        drop_empty_summary(trainer)
    trainer.save_model()
    trainer.save_state()
    drop_torn_results(trainer)
    if trainer.was_finished:
        say(f"Nothing is left to train: {checkpoint} is finished. Results of the training stay as they are.")
        if first_process((Path(trainer.args.output_dir) / "train_results.json").exists):
            return
        # It was stopped before it wrote them. How long it took, and its mean loss, are not known any more.
        metrics = {name: value for name, value in metrics.items() if name == "epoch"}
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)


def drop_empty_summary(trainer: ImageTrainer) -> None:
    """Of a training without a step: zeros, which the Trainer adds to the log."""
    history = trainer.state.log_history
    if history and "train_runtime" in history[-1]:
        history.pop()


def mark_output(trainer: ImageTrainer, is_new: bool) -> None:
    """Write the record of the run before there are weights, where there is none of it yet. By it the output folder is
    known where it lies within the data, though the run ends before its first checkpoint (data/tree.py)."""
    folder = Path(trainer.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if is_new or not (folder / RECORD).exists():
        write_record(folder, {**trainer.record, "about": trainer.about})


def drop_torn_results(trainer: ImageTrainer) -> None:
    """Delete `all_results.json` where a kill or a full disk has cut it: the Trainer reads it to add to it."""
    path = Path(trainer.args.output_dir) / "all_results.json"
    if trainer.is_world_process_zero() and path.exists():
        try:
            json.loads(path.read_text())
        except ValueError:
            path.unlink()


def evaluate_and_save(trainer: ImageTrainer) -> None:
    metrics = trainer.evaluate()
    drop_torn_results(trainer)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)


def save_examples_and_card(trainer: ImageTrainer) -> None:
    """Last of all, because the card says and shows what the folder holds."""
    folder, source = Path(trainer.args.output_dir), trainer.eval_dataset or trainer.train_source
    for name in EXAMPLES:
        (folder / name).unlink(missing_ok=True)  # of another run
    # Pipelines and widgets of the Hub take no images of bands.
    if source.band_form is None and trainer.may_show_images:
        save_examples(source, EXAMPLES, folder, trainer.num_channels)
    trainer.create_model_card()


def push_if_asked(trainer: ImageTrainer) -> None:
    """By all processes, when the folder is complete. Raises HubError."""
    if trainer.args.push_to_hub and (address := trainer.push_to_hub()):
        say(f"Pushed to {address}")


def report_skipped_images(trainer: ImageTrainer) -> None:
    if len(trainer.skipped_images):
        say(f"Not decodable: {describe(trainer.skipped_images.counts())}, listed in {trainer.skipped_images.path}")


def run_command(parser: RecipeParser[Any], task: Task[Arguments, Any, Any], arguments: Arguments) -> None:
    """`prepare`, then `run`. Ends in one sentence instead of a traceback, and with the exit code of errors.py.

    Signals are answered if the caller has entered `SIGNALS.answered()`: at once outside of the training where this is
    the only process, otherwise as soon as all processes know.
    """
    training = arguments.training
    trainer: ImageTrainer | None = None
    left_out = flags_to_leave_out(arguments)
    resuming = f"The same command{left_out}"
    with sentences(parser, training, left_out):
        for note in parser.notes:
            say(note)
        try:
            with SIGNALS.at_once(training.world_size == 1), output_folder(training):
                trainer, checkpoint = prepare(task, arguments)
                (Path(training.output_dir) / STOPPED_FILE).unlink(missing_ok=True)
                try:
                    run(task, trainer, checkpoint)
                except UserError as error:
                    raise UserError(sentence_of(error)) from error
        except StopRequested as stop:
            say(f"{stop}. {resuming} resumes from there.")
            end_stopped(training, trainer, stop.signal_name, stop.step, stop.checkpoint)
        except StopOutsideTraining as stop:
            newest = last_checkpoint(training.output_dir)
            step = trainer.state.global_step if trainer is not None else 0
            say(
                f"Stopped by {stop} {'after the last' if step else 'before the first'} step. "
                f"{f'{resuming} resumes from {newest}' if newest else 'The same command starts again'}."
            )
            end_stopped(training, trainer, str(stop), step, str(newest) if newest else None)


def flags_to_leave_out(arguments: Any) -> str:
    """What "the same command" must not have to resume from the newest checkpoint; "" where it may stay as it is."""
    if arguments.recipe.overwrite_output_dir:
        return " without --overwrite_output_dir"
    named = str(arguments.training.resume_from_checkpoint or "auto").lower()
    return "" if named in ("true", "auto") else " without --resume_from_checkpoint"


def end_stopped(
    training: ImageTrainingArguments, trainer: ImageTrainer | None, name: str, step: int, checkpoint: str | None
) -> NoReturn:
    """Leave a run that a signal has stopped. Under a torchrun that starts failed processes again (--max-restarts) the
    exit code is 0: it would start this one again, too."""
    end_workers()
    folder = Path(training.output_dir)
    # This run's own lock is gone: one that is there is another run's, for whose end this one may have waited.
    if PartialState().is_main_process and not (folder / LOCK_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        content = {"signal": name, "step": step, "checkpoint": checkpoint}
        (folder / STOPPED_FILE).write_text(json.dumps(content) + "\n")
    if trainer is not None and trainer.pushes is not None:
        trainer.pushes.wait()  # leaving the process would wait as well, but not say what failed
    PartialState().destroy_process_group()
    sys.exit(0 if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) else EXIT_STOPPED)


def print_command(parser: RecipeParser[Any], training: ImageTrainingArguments, text: Callable[[], str]) -> None:
    """Print what `text` gives; errors end as in `run_command`."""
    with sentences(parser, training), SIGNALS.at_once(training.world_size == 1):
        for note in parser.notes:
            say(note)
        say(text())


def describe_bug(error: Exception, record: Path | None = None) -> str:
    """The sentence below the traceback of an error that is none of the user's, and what to report.

    Args:
        record: where the settings of the run stand, or would stand.
    """
    versions = [f"hf_mae_robust {__version__}", *(f"{name} {version(name)}" for name in PACKAGES)]
    settings = "" if record is None else f" {record} or that of the newest checkpoint if there is one,"
    return (
        f"this is a bug of hf_mae_robust ({type(error).__name__}), not a fault of your input. Please report the text "
        f"above, the command ({shlex.join(sys.argv)}),{settings} and the versions: {', '.join(versions)}."
    )


@contextmanager
def sentences(parser: RecipeParser[Any], training: ImageTrainingArguments, left_out: str = "") -> Iterator[None]:
    """End the program with one sentence and the error's exit code; --log_level debug shows the traceback instead. What
    is not an error of the user's (errors.py) is a bug: its traceback is shown, and what to report. left_out: as
    `flags_to_leave_out`."""
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()  # of every file that is written or read
    try:
        yield
    except KeyboardInterrupt:  # where nobody answers signals
        sys.exit(130)
    except torch.OutOfMemoryError as error:
        end_workers()
        accumulated = f"--gradient_accumulation_steps {training.gradient_accumulation_steps * 2}"
        parser.fail(
            f"the memory of the device does not suffice ({str(error).partition('. ')[0]}). Halve "
            f"--per_device_train_batch_size {training.per_device_train_batch_size} and give {accumulated}, or give "
            "--bf16 or --activation_checkpointing."
        )
    except tuple(EXIT_CODES) as error:
        if training.log_level == "debug":
            raise
        end_workers()
        # Other processes may be waiting for this one; the launcher ends them.
        parser.fail(str(error).replace("he same command", f"he same command{left_out}"), error.exit_code)
    except Exception as error:
        if training.world_size > 1 and is_loss(error):
            end_workers()
            newest = last_checkpoint(training.output_dir)
            resume = "It has written no checkpoint."
            if newest:
                resume = f"The same command{left_out} resumes from {newest}."
            parser.fail(f"{describe_loss(training.ddp_timeout)} {resume}", LostProcessError.exit_code)
        if (fault := fault_of_place(error)) is not None and training.log_level != "debug":
            end_workers()
            parser.fail(fault, fault.exit_code)
        traceback.print_exc()
        end_workers()
        parser.fail(describe_bug(error, Path(training.output_dir) / RECORD), EXIT_BUG)
    PartialState().destroy_process_group()
