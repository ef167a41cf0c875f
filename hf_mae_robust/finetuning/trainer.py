"""What the trainers of all downstream tasks share: layer-wise learning rates, checkpoints that are loaded strictly."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, TrainingArguments

from ..conversion.loading import load_strictly
from ..errors import CheckpointError
from ..training.layer_decay import LayerDecay
from ..training.trainer import ImageTrainer


def shares_batch_norm(args: TrainingArguments) -> bool:
    """Whether BatchNorm takes its statistics over several GPUs."""
    return args.world_size > 1 and args.device.type == "cuda"


def with_shared_batch_norm(model: PreTrainedModel, args: TrainingArguments) -> PreTrainedModel:
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if shares_batch_norm(args) else model


class FinetuningTrainer(LayerDecay, ImageTrainer):
    """Trains a model on top of a pre-trained encoder.

    Args (beside `ImageTrainer`'s):
        class_names: of the classes 0, 1, ... layer_decay: see `param_groups_layer_decay`.

    A subclass computes losses that are means over the images of a batch, so that accumulated batches and several
    processes equal one large batch.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, *, class_names: Sequence[str], layer_decay: float = 1.0, **kwargs: Any):
        super().__init__(layer_decay=layer_decay, **kwargs)
        # They would take the loss for one that is summed over the accumulated batches.
        self.model_accepts_loss_kwargs = False
        self.class_names = tuple(class_names)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """With DeepSpeed, under which nothing casts, images in the type of the weights: stock models take no other."""
        inputs = super()._prepare_inputs(inputs)
        if self.is_deepspeed_enabled and (images := inputs.get("pixel_values")) is not None:
            dtype = self.accelerator.state.deepspeed_plugin.hf_ds_config.dtype()
            is_batch = isinstance(images, torch.Tensor)
            inputs["pixel_values"] = images.to(dtype) if is_batch else [image.to(dtype) for image in images]
        return inputs

    def loaded_weights(self, checkpoint: str) -> dict[str, Any]:
        """The tensors of a checkpoint, by the names of the model. The Trainer would load nothing of the blocks:
        checkpoints have other names for them than the model. Raises CheckpointError where one is missing."""
        try:
            return load_strictly(type(self.model), checkpoint, config=self.model.config).state_dict()
        except ValueError as error:
            raise CheckpointError(f"{error} Nothing was resumed.") from error

    def load_weights(self, checkpoint: str) -> None:
        """Strictly, into the model; with FSDP and DeepSpeed the Trainer loads instead. Raises CheckpointError."""
        self.model.load_state_dict(self.loaded_weights(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self.load_weights(cast(str, self.state.best_model_checkpoint))
