"""How a training resumes from a checkpoint: strictly, at the place in the data where it was cut."""

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from ..errors import CheckpointError, refused_by_library
from ..hub.run_record import read_record
from .checkpoints import NEW_ORDER_FROM, checkpoint_of_step
from .typed_trainer import TypedTrainer

logger = logging.getLogger(__name__)


@contextmanager
def _without_false_alarms() -> Iterator[None]:
    """The Trainer says that the best checkpoint does not exist, where its name alone is not a path from here; and that
    intervals such as `save_steps: 0.1` changed, because a checkpoint has them in steps. What matters of the settings
    was compared before (run.json)."""

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(("The best checkpoint", "Warning: The following arguments do not"))

    loggers = [logging.getLogger(f"transformers.{module}") for module in ("trainer", "trainer_utils")]
    for each in loggers:
        each.addFilter(is_other)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(is_other)


class EvaluationDue(TrainerCallback):
    """At the start of a resumed training, the evaluation in whose place a signal has stopped the former one: the best
    checkpoint, early stopping and schedules that follow the evaluations depend on it."""

    def __init__(self, trainer: "Resuming"):
        self.trainer = weakref.proxy(trainer)  # a cycle would keep its loaders' workers alive

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        noted: Any = state.stateful_callbacks
        if not (isinstance(noted, dict) and "StopOnSignal" in noted):
            return
        if not noted["StopOnSignal"]["attributes"]["evaluation_due"]:
            return
        if self.trainer.eval_dataset is None or args.eval_strategy == "no":
            return
        metrics = self.trainer._evaluate(None, None)
        if self.trainer._determine_best_metric(metrics, None):
            checkpoint = checkpoint_of_step(str(args.output_dir), state.global_step)
            state.best_model_checkpoint = str(checkpoint) if checkpoint.is_dir() else state.best_model_checkpoint


class Resuming(TypedTrainer):
    """The part of `ImageTrainer` that resumes.

    Args (beside the Trainer's):
        allow_elastic_resume: the resumed run has other settings than its checkpoint. With another number of processes
            or another batch the same share of the epoch counts as done, in steps of the new size. The order of the
            images is another one then, so that in this one epoch some come twice and others not at all. Learning rate,
            weight decay and the other options of the optimizer are those of the new settings; of a schedule that
            follows the evaluations (reduce_lr_on_plateau, greedy), the rate is the checkpoint's.

    Attributes:
        was_finished: whether the checkpoint of the last training was of its last step.
    """

    def __init__(self, *, allow_elastic_resume: bool = False, **kwargs: Any):
        with refused_by_library("The Trainer of transformers refuses these settings"):
            super().__init__(**kwargs)
        self.allow_elastic_resume = allow_elastic_resume
        self.was_finished = False
        self.add_callback(EvaluationDue(self))

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_train_epochs: int, resume_from_checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        """Where in the data to resume: epochs done, batches done of the next one."""
        with _without_false_alarms():
            position = super()._init_training_state(
                max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
            )
        if resume_from_checkpoint is None:
            return position
        self._find_best(Path(resume_from_checkpoint))
        # The Trainer keeps the intervals of the interrupted run, whatever was asked for now.
        self.state.compute_steps(self.args, max_steps)
        if self.allow_elastic_resume and self.state.epoch is not None and self.train_source.num_rows is not None:
            self.state.global_step = min(round(self.state.epoch * steps_per_epoch), max_steps)
            batches = self.state.global_step % steps_per_epoch * self.args.gradient_accumulation_steps
            position = (self.state.global_step // steps_per_epoch, batches)
        if self.state.global_step >= max_steps or self._has_stopped_early():
            # Nothing is left to do; the Trainer would do one more step.
            self.was_finished = True
            return num_train_epochs, 0
        self._seek(Path(resume_from_checkpoint), *position)
        return position

    def _has_stopped_early(self) -> bool:
        """Tell early stopping how many evaluations were no better than the best one. Its counter is not in the state of
        callbacks that the Trainer restores, unless asked to restore all of them."""
        looked_at = f"eval_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
        evaluated = {entry["step"] for entry in self.state.log_history if looked_at in entry}
        worse = len([step for step in evaluated if step > (self.state.best_global_step or 0)])
        stopping = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        for callback in stopping:
            callback.early_stopping_patience_counter = worse
        return any(worse >= callback.early_stopping_patience for callback in stopping)

    def _seek(self, checkpoint: Path, epoch: int, num_batches: int) -> None:
        """Tell the sampler where the first epoch begins, and which epochs are in which order."""
        if self.train_sampler is None:
            return
        self.train_sampler.skip_next(num_batches)
        if NEW_ORDER_FROM in self.record:
            # An epoch that version 0.1.0 has begun ends as it would have.
            begun = epoch + 1 if num_batches else epoch
            self.record[NEW_ORDER_FROM] = read_record(checkpoint).get(NEW_ORDER_FROM, begun)
            self.train_sampler.new_order_from = self.record[NEW_ORDER_FROM]

    def _find_best(self, checkpoint: Path) -> None:
        """The state names the best checkpoint, which lies beside the one to resume from. The Trainer needs its path."""
        state = checkpoint / TRAINER_STATE_NAME
        named = TrainerState.load_from_json(str(state)).best_model_checkpoint if state.exists() else None
        if self.state.best_model_checkpoint is not None or named is None:
            return
        best = checkpoint.parent / Path(named).name
        if best.is_dir():
            self.state.best_model_checkpoint = str(best)
        else:
            logger.warning("%s, the best checkpoint so far, no longer exists.", best)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.allow_elastic_resume:
            self._load_fitting_optimizer(checkpoint)
            return
        optimizer = cast(Optimizer, self.optimizer)
        scheduler: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)  # accelerate wraps DeepSpeed's
        # The checkpoint brings its own weight decay, betas and so on, and the rate of its batch size.
        options = [
            {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
            for group in optimizer.param_groups
        ]
        base_rates = list(scheduler.base_lrs) if isinstance(scheduler, LambdaLR) else None
        self._load_fitting_optimizer(checkpoint)
        for group, own in zip(optimizer.param_groups, options, strict=True):
            group.update(own)
        if base_rates is None:  # reduce_lr_on_plateau and greedy: the rate is what evaluations have made of it
            return
        step = self.state.global_step
        scheduler.base_lrs, scheduler.last_epoch = base_rates, step
        scheduler._last_lr = [base * rate(step) for base, rate in zip(base_rates, scheduler.lr_lambdas)]
        for group, base, rate in zip(optimizer.param_groups, base_rates, scheduler._last_lr):
            group["initial_lr"], group["lr"] = base, rate

    def _load_fitting_optimizer(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:  # PyTorch's, where the groups of parameters are other ones
            raise CheckpointError(
                f"The optimizer of {checkpoint} does not fit this training: {error}. An earlier version may have "
                "written it, which trained or decayed other parameters. Start again with --overwrite_output_dir, or "
                "in another --output_dir with --model_name_or_path, which takes the weights of this checkpoint."
            ) from error

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Resuming loads the weights with `strict=False` and only warns; training on with fresh blocks would look like
        training."""
        if load_result.missing_keys or load_result.unexpected_keys:
            raise CheckpointError(
                "The checkpoint does not fit the model, and nothing was resumed. Missing in it: "
                f"{', '.join(load_result.missing_keys) or 'nothing'}; not known to the model: "
                f"{', '.join(load_result.unexpected_keys) or 'nothing'}. Use the settings it was trained with, or "
                "start again with --overwrite_output_dir."
            )
