"""From prepared trainer to finished folder, and what a command ends with."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import transformers
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError

from ..data.bad_images import describe
from ..data.loaders import end_workers
from ..errors import (
    EXIT_CODES,
    EXIT_STOPPED,
    CheckpointError,
    DataError,
    HubError,
    InputError,
    NonFiniteError,
    SavingError,
    StopRequested,
)
from ..hub.model_card import EXAMPLES
from .arguments import ImageTrainingArguments
from .parser import RecipeParser
from .pictures import save_examples
from .profiling import StepProfile
from .setup import say
from .trainer import ImageTrainer

# What wrong arguments, data and checkpoints raise before the first step.
INPUT_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, StrictDataclassError)

# Written when a signal ended the run, for scripts: torchrun and `accelerate launch` do not pass an exit code on.
STOPPED_FILE = "stopped.json"


def train_and_save(trainer: ImageTrainer, checkpoint: str | None) -> None:
    """Train, save the model and the metrics of the training."""
    if trainer.args.profile:
        trainer.add_callback(StepProfile(trainer, trainer.args.profile))
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    result.metrics.pop("total_flos", None)  # not counted, see ImageTrainer.floating_point_ops
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)


def evaluate_and_save(trainer: ImageTrainer) -> None:
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)


def save_examples_and_card(trainer: ImageTrainer) -> None:
    """Last of all, because the card says and shows what the folder holds."""
    folder, source = Path(trainer.args.output_dir), trainer.eval_dataset or trainer.train_dataset
    for name in EXAMPLES:
        (folder / name).unlink(missing_ok=True)  # of another run
    save_examples(source, EXAMPLES, folder, trainer.num_channels)
    trainer.create_model_card()


def push_if_asked(trainer: ImageTrainer) -> None:
    """By all processes, when the folder is complete. Raises HubError."""
    if trainer.args.push_to_hub and (address := trainer.push_to_hub()):
        say(f"Pushed to {address}")


def report_skipped_images(trainer: ImageTrainer) -> None:
    if len(trainer.skipped_images):
        say(f"Not decodable: {describe(trainer.skipped_images.counts())}, listed in {trainer.skipped_images.path}")


def run_command(
    parser: RecipeParser,
    arguments: tuple,
    prepare: Callable[..., tuple[ImageTrainer, str | None]],
    run: Callable[[ImageTrainer, str | None], None],
) -> None:
    """`prepare(*arguments)`, then `run` what it gives. Ends in one sentence instead of a traceback (which --log_level
    debug shows) and, beside 0, with exit code 2: bad input; 3: a loss or gradient that is not finite; 4: a checkpoint
    could not be written; 5: the finished model could not be pushed; 75: stopped by a signal, to be started again. The
    last of `arguments` are the training's."""
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()  # of every file that is written or read
    training: ImageTrainingArguments = arguments[-1]
    stopped = Path(training.output_dir) / STOPPED_FILE
    try:
        try:
            trainer, checkpoint = prepare(*arguments)
            stopped.unlink(missing_ok=True)
        except INPUT_ERRORS as error:
            raise InputError(str(error)) from error
        try:
            run(trainer, checkpoint)
        except (CheckpointError, DataError) as error:
            # From a worker process the message comes as a traceback that ends in it.
            last_line = str(error).strip().splitlines()[-1]
            raise InputError(last_line.split(f"{type(error).__name__}: ", 1)[-1]) from error
    except StopRequested as stop:
        end_workers()
        say(f"{stop}. The same command goes on from there.")
        if PartialState().is_main_process:
            content = {"signal": stop.signal_name, "step": stop.step, "checkpoint": stop.checkpoint}
            stopped.write_text(json.dumps(content) + "\n")
        if trainer.pushes is not None:
            trainer.pushes.wait()  # leaving the process would wait as well, but not say what failed
        PartialState().destroy_process_group()
        sys.exit(EXIT_STOPPED)
    except KeyboardInterrupt:  # before or after the training, which takes note of it
        sys.exit(130)
    except (InputError, NonFiniteError, SavingError, HubError) as error:
        if training.log_level == "debug":
            raise
        end_workers()
        # Other processes may be waiting for this one; the launcher ends them.
        parser.fail(error, EXIT_CODES[type(error)])
    else:
        PartialState().destroy_process_group()
