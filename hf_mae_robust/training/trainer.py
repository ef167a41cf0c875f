"""The Trainer of all tasks: images in, checkpoints that are complete, and an end in order."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ProgressCallback, TrainerState
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ..errors import CheckpointError, StopRequested, UserError
from .checkpoints import newest_checkpoint
from .data_feeding import DataFeeding
from .energy import EnergyCallback
from .guards import NonFiniteGuard
from .progress import ImageProgressCallback, Throughput
from .publishing import Publishing
from .resuming import Resuming
from .sharding import Sharding
from .signals import SIGNALS
from .stopping import StopOnSignal, stop_if_asked

logger = logging.getLogger(__name__)

# Where `parameter.grad` is the gradient, averaged over all processes.
_PLAIN_GRADIENTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class ImageTrainer(DataFeeding, Publishing, Resuming, Sharding):
    """`Trainer` that feeds `ImageSource`s.

    Args (beside those of `DataFeeding`, `Checkpointing`, `Resuming` and the Trainer):
        skip_nonfinite_steps: steps with a loss or gradient that is not finite that are skipped, at most.

    A subclass says how a batch becomes a loss (`compute_loss`, handing it to `guard.add_loss`) and how a split is
    evaluated (`evaluation_loop`, over `evaluation_batches`).

    `train` raises, beside what the Trainer raises:
        StopRequested: SIGTERM or SIGINT came; a checkpoint was written.
        NonFiniteError: see training/guards.py. SavingError: a checkpoint could not be written.
        CheckpointError: the checkpoint to resume from lacks a tensor.
        DataError: too many images cannot be decoded, or the data cannot be read any more.
    """

    def __init__(self, *, skip_nonfinite_steps: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        if skip_nonfinite_steps and self.is_deepspeed_enabled:
            raise UserError(
                f"--skip_nonfinite_steps {skip_nonfinite_steps}: DeepSpeed changes the weights before anything can be "
                "known of the gradients. Leave it out; such a step ends the run, and nothing is saved after it."
            )
        description = self.train_dataset.description if self.train_dataset is not None else ""
        self.guard = NonFiniteGuard(
            self.args.output_dir, self.args.process_index, description, allowed_steps=skip_nonfinite_steps
        )
        self.stop, self.throughput, self.energy = StopOnSignal(), Throughput(), EnergyCallback()
        if self.pop_callback(ProgressCallback):
            self.add_callback(ImageProgressCallback)
        # In this order: the others look where a checkpoint is to be written, which `stop` may ask for.
        for callback in (self.stop, self.bad_images, self.guard, self.energy):
            self.add_callback(callback)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the Trainer's; True means the newest checkpoint that is complete, not the newest folder."""
        if resume_from_checkpoint is True:
            newest = newest_checkpoint(self.args.output_dir)
            if newest is None:
                raise CheckpointError(f"{self.args.output_dir} holds no checkpoint to resume from.")
            resume_from_checkpoint = str(newest)
        self.bad_images.begin(resumes=bool(resume_from_checkpoint))
        if resume_from_checkpoint:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            self.resumed_step = state.global_step
        with SIGNALS.answered(), SIGNALS.at_once(False):
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            except StopRequested:
                # The Trainer ends its callbacks (progress bar, reports) only after the last step.
                self.callback_handler.on_train_end(self.args, self.state, self.control)
                raise
            finally:
                self.is_in_train = False

    # ---- each step ----

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Of all processes together, for the guard and the log.

        An override: no event knows the norm before the weights change, nor the wrapped model, whose gradients are
        dropped to skip a step. And the Trainer's own way multiplies all gradients by 1 when nothing is clipped.
        """
        step = self.state.global_step + 1
        if self.accelerator.scaler is not None:
            # fp16: gradients are scaled here, and the scaler itself skips those that are not finite.
            self.guard.close_step(step, None)
            return grad_norm
        if grad_norm is None and (self.accelerator.distributed_type in _PLAIN_GRADIENTS or self.accelerator.is_fsdp2):
            grad_norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        else:
            grad_norm = super()._get_grad_norm(model, grad_norm)
        if hasattr(grad_norm, "full_tensor"):  # FSDP2: each process holds a part of each gradient
            grad_norm = grad_norm.full_tensor()
        known = grad_norm is not None  # DeepSpeed does not always tell
        self.guard.close_step(step, torch.as_tensor(grad_norm, device=self.args.device) if known else None)
        if self.guard.allowed_steps and (reason := self.guard.skip()):
            logger.warning(reason)
            # The optimizer leaves parameters without a gradient, and its state for them, as they are.
            model.zero_grad(set_to_none=True)
        return grad_norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        # The Trainer's estimate walks all modules in every step, and is made for text.
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # Not in `on_log`: that event comes after the entry was added to the history.
        if "loss" in logs:
            batch_size = self.get_total_train_batch_size(self.args)
            rate = self.throughput.images_per_second(self.state.global_step, batch_size)
            logs |= {"images_per_second": rate} if rate is not None else {}
        if "train_runtime" in logs:
            logs |= self.energy.metrics()
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        self.guard.check()  # a callback that comes after the guard may have asked for this checkpoint
        super()._save_checkpoint(model, trial)

    # ---- evaluation ----

    def evaluation_output(self, metrics: dict[str, float], num_samples: int) -> EvalLoopOutput:
        """What `evaluation_loop` returns: the predictions are not kept."""
        return EvalLoopOutput(
            predictions=None,  # type: ignore[arg-type]  # nothing asks for them
            label_ids=None,
            metrics=metrics,
            num_samples=num_samples,
        )

    def evaluation_batches(self, dataloader: DataLoader[Any]) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """(inputs on the device, `(B,)` int64: the rows of the images). Fillers and images that cannot be decoded have
        negative ones, and do not count, so sums over all processes are exact. A signal during training is answered
        here: an evaluation can take long. It starts again when the run resumes."""
        for batch in dataloader:
            if not self.is_in_train:
                stop_if_asked()
            elif self.stop.is_asked_for(self.args, evaluation_due=self.state.global_step > 0):
                self._save_checkpoint(self.model_wrapped)
                self.stop.end(self.args, self.state)
            inputs = self._prepare_inputs(batch)
            yield inputs, inputs.pop("row").to(self.args.device)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        self.bad_images.check()
