"""What all Trainers here share: `ImageSource`s in, checkpoints that are whole, signals, guards, bad images."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import ProgressCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.bad_images import FILE_NAME, SkippedImage, SkippedImages, describe
from ..data.loaders import sequential_loader, training_loader
from ..data.preprocessing import EvaluationTransform, Normalization
from ..data.source import ImageSource
from ..errors import CheckpointError, SavingError, StopRequested
from ..files import allow_group, replace_files, seal
from ..hub.model_card import save_card
from ..hub.run_record import write_record
from ..hub.uploads import Pushes, open_repository
from .checkpoints import STAGING, check_all_have_written, checkpoints_in, newest_checkpoint, publish, rotate
from .guards import NonFiniteGuard
from .stopping import StopSignals

logger = logging.getLogger(__name__)

# Where `parameter.grad` is the gradient, averaged over all processes.
_PLAIN_GRADIENTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class ImageProgressCallback(ProgressCallback):
    """A progress bar that carries loss, learning rate and images/s, instead of a line for every log entry."""

    EVALUATION_NAMES = {
        "eval_loss": "loss",
        "eval_loss_of_mean": "loss of predicting the mean",
        "eval_accuracy": "accuracy",
        "eval_top5_accuracy": "top-5 accuracy",
        "eval_mean_iou": "mean IoU",
        "eval_box_ap": "box AP",
        "eval_mask_ap": "mask AP",
    }

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            shown = {"loss": f"{logs['loss']:.4f}", "lr": f"{logs['learning_rate']:.2e}"}
            if "images_per_second" in logs:
                shown["images/s"] = f"{logs['images_per_second']:,.0f}"
            self.training_bar.set_postfix(shown)
        elif shown := {name: value for name, value in logs.items() if name in self.EVALUATION_NAMES}:
            text = ", ".join(f"{self.EVALUATION_NAMES[name]} {value:.4f}" for name, value in shown.items())
            self.training_bar.write(f"epoch {state.epoch:.4g}: evaluation {text}")


class ImageTrainer(Trainer):
    """`Trainer` that feeds `ImageSource`s.

    Args (beside the Trainer's):
        train_source, eval_source: the images. `processing_class`: the image processor of evaluation, which also says
            how uint8 batches are normalised on the device.
        train_transform: `(C, h, w)` uint8 -> `(C, H, W)`, uint8 or, normalised already, float; see also `ImageDataset`.
        eval_transform: the same for evaluation; None: the geometric part of the image processor.
        num_channels: of the images. noise_length: see `ImageDataset`. shuffle_buffer_size: see `epoch_batches`.
        repeated_augmentation: views of each image in a batch, see `training_loader`; what is called images elsewhere
            (per second, an epoch's number of samples) are views then.
        record: what a resumed run must have in common with this one, written into each checkpoint (hub/run_record.py).
        about: what else a model card says (hub/run_record.py); empty: no cards are written.
        allow_elastic_resume: it may differ; see `_init_training_state`.
        max_bad_images: share of the images that may be undecodable, see data/bad_images.py.
        skip_nonfinite_steps: so many steps with a loss or gradient that is not finite are passed over.

    A subclass says how a batch becomes a loss (`compute_loss`, handing it to `guard.add_loss`) and how a split is
    evaluated (`evaluation_loop`, over `evaluation_batches`).

    `train` raises, beside what the Trainer raises:
        StopRequested: SIGTERM or SIGINT came; a checkpoint was written.
        NonFiniteError: see training/guards.py. SavingError: a checkpoint could not be written.
        CheckpointError: the checkpoint to resume from lacks a tensor.
        DataError: too many images cannot be decoded, or the data cannot be read any more.
    """

    def __init__(
        self,
        *,
        train_source: ImageSource | None = None,
        eval_source: ImageSource | None = None,
        train_transform: Callable | None = None,
        eval_transform: Callable | None = None,
        num_channels: int = 3,
        noise_length: int | None = None,
        shuffle_buffer_size: int = 8192,
        repeated_augmentation: int = 1,
        record: dict[str, Any] | None = None,
        about: dict[str, Any] | None = None,
        allow_elastic_resume: bool = False,
        max_bad_images: float = 0.01,
        skip_nonfinite_steps: int = 0,
        **kwargs,
    ):
        self.pushes: Pushes | None = None  # of the first process, with --push_to_hub
        super().__init__(train_dataset=train_source, eval_dataset=eval_source, **kwargs)
        self.train_transform = train_transform
        self.eval_transform = eval_transform or EvaluationTransform(self.processing_class)
        self.num_channels, self.noise_length = num_channels, noise_length
        self.shuffle_buffer_size, self.repeated_augmentation = shuffle_buffer_size, repeated_augmentation
        self.normalization = Normalization(self.processing_class, self.args.device)
        self.record, self.allow_elastic_resume = record or {}, allow_elastic_resume
        self.about = about or {}
        self.skipped_images = SkippedImages(None, max_bad_images)
        self._newly_skipped: list[SkippedImage] = []
        self.stop_signals = StopSignals()
        description = train_source.description if train_source is not None else ""
        self.guard = NonFiniteGuard(
            self.args.output_dir, self.args.process_index, description, allowed_steps=skip_nonfinite_steps
        )
        self._staging: Path | None = None
        self._resumed_step = 0
        if train_source is not None and train_source.row_groups is None:
            # Otherwise a resume would read and decode everything up to its place, in an order that is not exact anyway.
            self.args.ignore_data_skip = True
        self._logged_at: tuple[int, float] | None = None
        if self.pop_callback(ProgressCallback):
            self.add_callback(ImageProgressCallback)

    # ---- data ----

    def _loader_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.args.dataloader_num_workers,
            "persistent_workers": self.args.dataloader_num_workers > 0,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context,
            "pin_memory": self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            # Otherwise each epoch draws a number from the generator that dropout uses, or not: that depends on whether
            # there are worker processes.
            "generator": torch.Generator(),
        }

    def get_train_dataloader(self) -> DataLoader:
        """Not prepared by accelerate: the plan has already given each rank its own batches."""
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        if self.train_dataset.row_groups is None:
            # A stream starts over after a resume; at least not with the same images.
            seed += self._resumed_step
        return training_loader(
            self.train_dataset,
            self.train_transform,
            self.num_channels,
            noise_length=self.noise_length,
            batch_size=self._train_batch_size,
            seed=seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            buffer_size=self.shuffle_buffer_size,
            num_views=self.repeated_augmentation,
            **self._loader_options(),
        )

    def get_eval_dataloader(self, eval_dataset: ImageSource | None = None) -> DataLoader:
        return sequential_loader(
            eval_dataset or self.eval_dataset,
            self.eval_transform,
            self.num_channels,
            noise_length=self.noise_length,
            batch_size=self.args.eval_batch_size,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            **self._loader_options(),
        )

    def num_examples(self, dataloader: DataLoader) -> int:
        """Images (with repeated augmentation: views) of an epoch over all ranks; without the remainder that fills no
        batch."""
        return len(dataloader) * self._train_batch_size * self.args.world_size

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """uint8 images -> normalised float ones, on the device: a quarter of the bytes to hand over and copy. Row
        numbers stay on the CPU."""
        rows = inputs.pop("row", None)
        self._newly_skipped += inputs.pop("skipped", ())
        inputs = super()._prepare_inputs(inputs)
        if rows is not None:
            inputs["row"] = rows
        images = inputs.get("pixel_values")
        if images is not None:
            # Images of different sizes are a list.
            is_batch = isinstance(images, torch.Tensor)
            inputs["pixel_values"] = self.normalization(images) if is_batch else list(map(self.normalization, images))
        return inputs

    # ---- training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """As the Trainer's; True means the newest checkpoint that is whole, not the newest folder."""
        if resume_from_checkpoint is True:
            newest = newest_checkpoint(self.args.output_dir)
            if newest is None:
                raise CheckpointError(f"{self.args.output_dir} holds no checkpoint to resume from.")
            resume_from_checkpoint = str(newest)
        listed = Path(self.args.output_dir) / FILE_NAME
        if not resume_from_checkpoint and self.is_world_process_zero():
            listed.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        # All processes count, and so come to the same conclusion; the first one writes.
        self.skipped_images = SkippedImages(listed, self.skipped_images.max_fraction)
        if resume_from_checkpoint:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
            self._resumed_step = state.global_step
        try:
            with self.stop_signals:
                return super().train(resume_from_checkpoint, **kwargs)
        finally:
            self.is_in_train = False

    def _take_note_of_skipped_images(self) -> None:
        """Bring together what all processes could not decode. Raises DataError in all of them where it is too much."""
        found, self._newly_skipped = self._newly_skipped, []
        is_new = self.skipped_images.add(gather_object(found) if self.args.world_size > 1 else found)
        if is_new and self.is_world_process_zero():
            self.skipped_images.write()
            logger.warning(
                "%d images could not be decoded so far (%s); listed in %s.",
                len(self.skipped_images),
                describe(self.skipped_images.counts()),
                self.skipped_images.path,
            )
        for source in (self.train_dataset, self.eval_dataset):
            if source is not None:
                seen = self.state.global_step * self.get_total_train_batch_size(self.args) // self.repeated_augmentation
                self.skipped_images.check(source.description, source.num_rows, seen)

    def _get_grad_norm(self, model, grad_norm=None):
        """Of all processes together, before the weights change; for the guard and the log. The Trainer's own way
        multiplies all gradients by 1 when nothing is clipped."""
        step = self.state.global_step + 1
        if self.accelerator.scaler is not None:
            # fp16: gradients are scaled here, and the scaler itself passes over those that are not finite.
            self.guard.close_step(step, None)
            return grad_norm
        if grad_norm is None and (self.accelerator.distributed_type in _PLAIN_GRADIENTS or self.accelerator.is_fsdp2):
            grad_norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            if hasattr(grad_norm, "full_tensor"):  # FSDP2: each process holds a part of each gradient
                grad_norm = grad_norm.full_tensor()
        else:
            grad_norm = super()._get_grad_norm(model, grad_norm)
        known = grad_norm is not None  # DeepSpeed does not always tell
        self.guard.close_step(step, torch.as_tensor(grad_norm, device=self.args.device) if known else None)
        if self.guard.allowed_steps and (reason := self.guard.skip()):
            logger.warning(reason)
            # The optimizer leaves parameters without a gradient, and its state for them, as they are.
            model.zero_grad(set_to_none=True)
        return grad_norm

    def floating_point_ops(self, inputs) -> int:
        # The Trainer's estimate walks all modules in every step, and is made for text.
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            step, now = self.state.global_step, time.perf_counter()
            if self._logged_at is not None and step > self._logged_at[0]:
                images = (step - self._logged_at[0]) * self.get_total_train_batch_size(self.args)
                logs["images_per_second"] = images / (now - self._logged_at[1])
            self._logged_at = (step, now)
        super().log(logs, start_time)

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, trial, *args, **kwargs) -> None:
        """After each step."""
        stop = self.stop_signals.agreed()
        if stop or self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self._take_note_of_skipped_images()
            self.guard.check()
        if stop:
            self.control.should_evaluate = self.control.should_save = False
            super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
            self._save_and_stop(stop, model, trial)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)

    def _save_and_stop(self, stop: int, model, trial=None) -> None:
        self._save_checkpoint(model, trial)
        self.callback_handler.on_train_end(self.args, self.state, self.control)
        checkpoint = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        raise StopRequested(stop, self.state.global_step, str(Path(self.args.output_dir) / checkpoint))

    # ---- checkpoints ----

    def _init_training_state(self, max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial):
        """Where in the data to go on.

        With another number of processes or another batch (`allow_elastic_resume`) the same share of the epoch counts
        as done, in steps of the new size. The order of the images is another one then, so that in this one epoch
        some come twice and others not at all.
        """
        position = super()._init_training_state(
            max_steps, steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return position
        # The Trainer goes on with the intervals of the interrupted run, whatever was asked for now.
        self.state.compute_steps(self.args, max_steps)
        if self.allow_elastic_resume and self.state.epoch is not None and self.train_dataset.num_rows is not None:
            self.state.global_step = min(round(self.state.epoch * steps_per_epoch), max_steps)
            batches = self.state.global_step % steps_per_epoch * self.args.gradient_accumulation_steps
            position = (self.state.global_step // steps_per_epoch, batches)
        if self.state.global_step >= max_steps:
            # Nothing is left to do; the Trainer would do one more step.
            return num_train_epochs, 0
        return position

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        elastic, scheduler, step = self.allow_elastic_resume, self.lr_scheduler, self.state.global_step
        base_rates = list(scheduler.base_lrs) if checkpoint is not None and elastic else []
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and elastic:
            # The checkpoint's learning rate was that of its batch size, and its step one of its steps.
            scheduler.base_lrs = base_rates
            scheduler.last_epoch = step
            scheduler._last_lr = [base * rate(step) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
            for group, base, rate in zip(self.optimizer.param_groups, scheduler.base_lrs, scheduler._last_lr):
                group["initial_lr"], group["lr"] = base, rate

    def _get_output_dir(self, trial=None) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """While entered, the Trainer writes to the staging folder. What goes wrong leaves nothing behind."""
        staging = Path(self.args.output_dir) / STAGING
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._staging = staging
        try:
            yield staging
        except (OSError, RuntimeError, SafetensorError) as error:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            newest = next(iter(checkpoints_in(self.args.output_dir)), None)
            raise SavingError(
                f"Step {self.state.global_step}: the checkpoint could not be written to {self.args.output_dir} "
                f"({type(error).__name__}: {error}). The newest complete one is {newest or 'none'}; the same command "
                "goes on from it once there is space again."
            ) from error
        finally:
            self._staging = None

    def _save_checkpoint(self, model, trial=None) -> None:
        """As the Trainer's, but whole or not at all (files.py); older checkpoints are deleted afterwards."""
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        final = Path(self.args.output_dir) / name
        with self._staged() as staging:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                best = self.state.best_model_checkpoint
                if best is not None and Path(best).parent == staging:
                    self.state.best_model_checkpoint = str(final.with_name(Path(best).name))
                    self.state.save_to_json(str(staging / name / TRAINER_STATE_NAME))
                each_node = self.args.save_on_each_node
                sharing = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if each_node else self.args.world_size
                check_all_have_written(staging / name, sharing)
                self._describe(staging / name, final)
                seal(staging / name)
                publish(staging / name, final)
        if self.args.should_save:
            pushed = self.pushes.busy_with if self.pushes is not None else None
            rotate(final, self.args.save_total_limit, keep=(self.state.best_model_checkpoint, pushed))
        self.accelerator.wait_for_everyone()
        if self.pushes is not None:
            args = self.args
            self.pushes.push_checkpoint(final, self.state.global_step, args.hub_strategy, args.hub_always_push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not from the staging folder: `_save_checkpoint` does it when the checkpoint is whole."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, or see whether there is one to write to: before the training, not after it. Only the
        first process talks to the Hub; ValueError is raised in all of them."""
        args, token = self.args, token or self.args.hub_token
        private = args.hub_private_repo if private is None else private
        outcome = [None, None]
        if self.is_world_process_zero():
            name = args.hub_model_id or Path(args.output_dir).absolute().name
            try:
                outcome = [open_repository(name, token, args.hub_revision, private), None]
            except ValueError as error:
                outcome = [None, str(error)]
        self.hub_model_id, error = broadcast_object_list(outcome)
        if error:
            raise ValueError(error)
        if self.is_world_process_zero():
            self.pushes = Pushes(self.hub_model_id, token, args.hub_revision)

    def push_to_hub(
        self, commit_message: str = "End of training", token: str | None = None, revision: str | None = None, **_
    ) -> str | None:
        """Save the model to the output folder and upload what a run leaves there, in one commit. To be called by all
        processes; the first one gets the commit's address. Raises HubError where the upload fails."""
        if self.hub_model_id is None:
            self.init_hf_repo(token)
        self.save_model()
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        self.pushes.revision = revision or self.pushes.revision
        return self.pushes.push_output(Path(self.args.output_dir), commit_message)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Each file replaces its predecessor as a whole."""
        final = Path(output_dir or self.args.output_dir)
        if _internal_call or final != Path(self.args.output_dir):
            super().save_model(output_dir, _internal_call)
            return
        with self._staged() as staging:
            super().save_model(str(staging / "model"), _internal_call=True)
            if self.args.should_save:
                write_record(staging / "model", {**self.record, "about": self.about})
                replace_files(staging / "model", final)
                staging.rmdir()
        self.accelerator.wait_for_everyone()

    def _describe(self, folder: Path, final: Path) -> None:
        """What was run, for people and for a resume, beside the weights. final: where the folder will lie."""
        write_record(folder, {**self.record, "about": self.about})
        if self.about:
            save_card(folder, self.hub_model_id, final)

    def create_model_card(self, *args, **kwargs) -> None:
        """The Trainer's own card knows neither the data nor how to use the model."""
        if self.is_world_process_zero() and self.about:
            save_card(self.args.output_dir, self.hub_model_id)

    def _issue_warnings_after_load(self, load_result) -> None:
        """Resuming loads the weights with `strict=False` and only warns; training on with fresh blocks would look like
        training."""
        if load_result.missing_keys or load_result.unexpected_keys:
            raise CheckpointError(
                "The checkpoint does not fit the model, and nothing was resumed. Missing in it: "
                f"{', '.join(load_result.missing_keys) or 'nothing'}; not known to the model: "
                f"{', '.join(load_result.unexpected_keys) or 'nothing'}. Use the settings it was trained with, or "
                "start anew with --overwrite_output_dir."
            )

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        """The arguments go beside the weights as JSON: the Trainer's pickle of them is read by nobody."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            (folder / "training_args.json").write_text(self.args.to_json_string() + "\n")
            allow_group(folder)

    # ---- evaluation ----

    def evaluation_batches(self, dataloader: DataLoader) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        """(inputs on the device, `(B,)` bool: which images count). Fillers and images that cannot be decoded do not,
        so sums over all processes are exact. A signal during training is answered here: an evaluation can take long,
        and it is not repeated when the run goes on."""
        for batch in dataloader:
            if self.is_in_train and (stop := self.stop_signals.agreed()):
                self._save_and_stop(stop, self.model_wrapped)
            inputs = self._prepare_inputs(batch)
            valid = (inputs.pop("row") >= 0).to(self.args.device)
            yield inputs, valid
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        self._take_note_of_skipped_images()
