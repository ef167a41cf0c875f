"""The Trainer for masked autoencoders."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from ..data.preprocessing import training_transform
from ..data.stages import Stage
from ..errors import DataError, UserError
from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining
from ..model.configuration_vit_mae_robust import to_pair
from ..training.layer_decay import LayerDecay
from ..training.optimization import decayed_parameter_names
from ..training.trainer import ImageTrainer
from .adapting import decoder_steps, drop_encoder_gradients
from .resolution import ResolutionSchedule


def _stages(schedule: ResolutionSchedule, config: ViTMAERobustConfig, augmentation: tuple[Any, ...]) -> list[Stage]:
    """augmentation: further arguments of `training_transform`. The draws of a crop do not depend on the size."""
    return [
        Stage(until, training_transform(size, *augmentation), of_stage.num_patches)
        for (size, until), of_stage in zip(schedule.stages, schedule.configs(config), strict=True)
    ]


class MAETrainer(LayerDecay, ImageTrainer):
    """Masked-autoencoder training with MAE's parameter groups, and an evaluation loss that is exact.

    Args (beside those of `ImageTrainer` and `LayerDecay`):
        crop_scale, horizontal_flip, vertical_flip, rot90: see `training_transform`.
        resolution_schedule: image sizes by share of the steps; None: all images have the model's.
        decoder_warmup_steps: steps at the start in which the decoder alone learns; below 1: their share of all.
    """

    model: ViTMAERobustForPreTraining
    KEEPS_MISSING = True  # out of its loss

    def __init__(
        self,
        *,
        model: ViTMAERobustForPreTraining,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        rot90: bool = False,
        decoder_warmup_steps: float = 0,
        resolution_schedule: ResolutionSchedule | None = None,
        **kwargs: Any,
    ):
        config, augmentation = model.config, (crop_scale, horizontal_flip, vertical_flip, rot90)
        super().__init__(
            model=model,
            train_transform=training_transform(config.image_size, *augmentation),
            num_channels=config.num_channels,
            noise_length=config.num_patches,
            stages=_stages(resolution_schedule, config, augmentation) if resolution_schedule is not None else (),
            **kwargs,
        )
        self.resolution_schedule = resolution_schedule
        if resolution_schedule is not None and self.train_dataset is not None:
            resolution_schedule.check_source(self.train_source)
            resolution_schedule.check_steps(self.num_steps())
        self.decoder_warmup_steps = decoder_warmup_steps
        if decoder_warmup_steps and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise UserError(
                f"--decoder_warmup_steps {decoder_warmup_steps:g}: each process needs the gradients of the complete "
                "model, so not with FSDP or DeepSpeed."
            )

    def num_steps(self) -> int:
        """Of the training."""
        loader = super().get_train_dataloader()  # nothing is read before it is iterated over
        return int(self.set_initial_training_values(self.args, loader)[-1])

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # Positions that train (of an encoder that learned them) are not drawn to zero.
        return [name for name in decayed_parameter_names(model) if not name.endswith("position_embeddings")]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step < decoder_steps(self.decoder_warmup_steps, self.state.max_steps):
            drop_encoder_gradients(self.model)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        rows = inputs["row"]
        inputs = {k: v for k, v in inputs.items() if k != "row"} | {"return_logits": return_outputs}
        if self.stages and inputs["pixel_values"].shape[-2:] != to_pair(self.model.config.image_size):
            inputs["interpolate_pos_encoding"] = True
        if self.stages and self.args.torch_compile:
            # Otherwise dynamo compiles the second size for any size; so each of the few sizes has a graph of its own.
            for name in ("pixel_values", "noise"):
                torch._dynamo.mark_static(inputs[name])
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.guard.add_loss(result[0] if isinstance(result, tuple) else result, rows)
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.resolution_schedule is not None and (sampler := self.train_sampler) is not None:
            plan: Any = sampler.stages  # there is one for each loader of a run with a schedule
            logs["image_size"] = self.resolution_schedule.sizes[plan.stage_of_step(self.state.global_step - 1)]
        super().log(logs, start_time)

    # ---- evaluation ----

    @staticmethod
    def _loss_by_image(
        model: ViTMAERobustForPreTraining, prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean over the masked patches of each image, of a band model over those of their numbers that are not
        missing, `(B,)`; and which images have any, `(B,)` bool."""
        if not model.config.is_band_model:
            error = ((prediction - target) ** 2).mean(dim=-1)
            return (error * mask).sum(dim=1) / mask.sum(dim=1), torch.ones_like(mask[:, 0], dtype=torch.bool)
        errors, numbers = model.reconstruction_error(prediction.expand_as(target), target)
        numbers = (numbers * mask).sum(dim=1)
        return (errors * mask).sum(dim=1) / numbers.clamp(min=1), numbers > 0

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Mean loss over all images, exact with any number of processes, with masks that depend on the row alone, so
        that the losses of different epochs, runs and numbers of processes can be compared.

        `loss_of_mean` beside it is the loss of predicting the population's mean: 0 in a normalised target, the mean
        colour in raw pixels.
        """
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        constant = model.target_of_mean()
        sums = torch.zeros(3, dtype=torch.float64, device=self.args.device)  # loss, loss of the mean, images
        for inputs, rows in self.evaluation_batches(dataloader):
            valid = rows >= 0
            with self.compute_loss_context_manager():
                outputs = model(**inputs)
            target = model.compute_target(inputs["pixel_values"])
            for i, prediction in enumerate((outputs.logits.float(), constant)):
                per_image, counts = self._loss_by_image(model, prediction, target, outputs.mask)
                sums[i] += per_image[valid & counts].sum()
            sums[2] += (valid & counts).sum()
        sums = self.accelerator.reduce(sums, reduction="sum")
        num_images = int(sums[2].item())
        if not num_images:
            raise DataError(f"None of the images of {self.eval_source.description} can be decoded.")
        metrics = {
            f"{metric_key_prefix}_loss": (sums[0] / num_images).item(),
            f"{metric_key_prefix}_loss_of_mean": (sums[1] / num_images).item(),
        }
        return self.evaluation_output(metrics, num_images)
