"""The Trainer for masked autoencoders."""

import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from .data import sequential_loader, training_loader
from .optimization import decayed_parameter_names
from .resume import CheckpointError
from .sources import ImageSource
from .transforms import EvaluationTransform, training_transform


class MAEProgressCallback(ProgressCallback):
    """A progress bar that carries loss, learning rate and images/s, instead of a line for every log entry."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            shown = {"loss": f"{logs['loss']:.4f}", "lr": f"{logs['learning_rate']:.2e}"}
            if "images_per_second" in logs:
                shown["images/s"] = f"{logs['images_per_second']:,.0f}"
            self.training_bar.set_postfix(shown)
        elif "eval_loss" in logs:
            self.training_bar.write(
                f"epoch {state.epoch:.4g}: evaluation loss {logs['eval_loss']:.4f} "
                f"(predicting the mean: {logs['eval_loss_of_mean']:.4f})"
            )


class MAETrainer(Trainer):
    """`Trainer` that feeds `ImageSource`s and measures the evaluation loss exactly.

    Args (beside the Trainer's):
        train_source, eval_source: the images. `processing_class`: the image processor of evaluation.
        crop_scale, horizontal_flip: see `training_transform`. shuffle_buffer_size: see `epoch_batches`.
    """

    def __init__(
        self,
        *,
        train_source: ImageSource | None = None,
        eval_source: ImageSource | None = None,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        horizontal_flip: bool = True,
        shuffle_buffer_size: int = 8192,
        **kwargs,
    ):
        super().__init__(train_dataset=train_source, eval_dataset=eval_source, **kwargs)
        config = self.model.config
        self.train_transform = training_transform(config.image_size, crop_scale, horizontal_flip)
        self.eval_transform = EvaluationTransform(self.processing_class)
        self.shuffle_buffer_size = shuffle_buffer_size
        mean, std = (
            torch.tensor(value, device=self.args.device).view(-1, 1, 1)
            for value in (config.image_mean, config.image_std)
        )
        self.pixel_scale, self.pixel_shift = 1 / (255 * std), -mean / std
        self._logged_at: tuple[int, float] | None = None
        if self.pop_callback(ProgressCallback):
            self.add_callback(MAEProgressCallback)

    # ---- data ----

    def _loader_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.args.dataloader_num_workers,
            "persistent_workers": self.args.dataloader_num_workers > 0,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context,
            "pin_memory": self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        }

    def get_train_dataloader(self) -> DataLoader:
        """Not prepared by accelerate: the plan has already given each rank its own batches."""
        return training_loader(
            self.train_dataset,
            self.train_transform,
            self.model.config.num_channels,
            noise_length=self.model.config.num_patches,
            batch_size=self._train_batch_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            buffer_size=self.shuffle_buffer_size,
            **self._loader_options(),
        )

    def get_eval_dataloader(self, eval_dataset: ImageSource | None = None) -> DataLoader:
        return sequential_loader(
            eval_dataset or self.eval_dataset,
            self.eval_transform,
            self.model.config.num_channels,
            noise_length=self.model.config.num_patches,
            batch_size=self.args.eval_batch_size,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            **self._loader_options(),
        )

    def num_examples(self, dataloader: DataLoader) -> int:
        """Images of an epoch over all ranks; without the remainder that fills no batch."""
        return len(dataloader) * self._train_batch_size * self.args.world_size

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """uint8 images -> normalised float ones, on the device: a quarter of the bytes to hand over and copy."""
        inputs = super()._prepare_inputs(inputs)
        pixel_values = inputs["pixel_values"]
        if pixel_values.dtype == torch.uint8:
            pixel_values = torch.addcmul(self.pixel_shift, pixel_values.float(), self.pixel_scale)
        return {**inputs, "pixel_values": pixel_values}

    # ---- training ----

    def get_decay_parameter_names(self, model) -> list[str]:
        return decayed_parameter_names(model)

    def compute_loss(self, model, inputs, *args, **kwargs):
        return super().compute_loss(model, {k: v for k, v in inputs.items() if k != "row"}, *args, **kwargs)

    def _get_grad_norm(self, model, grad_norm=None):
        # The Trainer computes it in every step, even where nothing is clipped, at a cost in time for nothing.
        return super()._get_grad_norm(model, grad_norm) if self.args.max_grad_norm > 0 else None

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

    # ---- evaluation ----

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Mean loss over all images, exact with any number of processes, with masks that depend on the row alone, so
        that the losses of different epochs, runs and numbers of processes can be compared.

        `loss_of_mean` beside it is the loss of predicting the population's mean: 0 in a normalised target, the mean
        colour in raw pixels.
        """
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        constant = torch.zeros(model.config.patch_dim, device=self.args.device)
        if model.config.target_normalization == "none" and not model.config.norm_pix_loss:
            constant = torch.tensor(model.config.image_mean, device=self.args.device)
            constant = constant.repeat(model.config.patch_dim // len(constant))
        sums = torch.zeros(3, dtype=torch.float64, device=self.args.device)  # loss, loss of the mean, images
        for batch in dataloader:
            rows = batch.pop("row")
            inputs = self._prepare_inputs(batch)
            with self.compute_loss_context_manager():
                outputs = model(**inputs)
            valid = (rows >= 0).to(self.args.device)
            target = model.compute_target(inputs["pixel_values"])
            for i, prediction in enumerate((outputs.logits.float(), constant)):
                error = ((prediction - target) ** 2).mean(dim=-1)
                per_image = (error * outputs.mask).sum(dim=1) / outputs.mask.sum(dim=1)
                sums[i] += per_image[valid].sum()
            sums[2] += valid.sum()
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        sums = self.accelerator.reduce(sums, reduction="sum")
        num_images = int(sums[2].item())
        metrics = {
            f"{metric_key_prefix}_loss": (sums[0] / num_images).item(),
            f"{metric_key_prefix}_loss_of_mean": (sums[1] / num_images).item(),
        }
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_images)
