"""Layer-wise learning rates, in fine-tuning and where pre-training starts from an encoder."""

from typing import Any, cast

import torch

from .optimization import param_groups_layer_decay
from .typed_trainer import TypedTrainer


class LayerDecay(TypedTrainer):
    """The part of a Trainer that gives each layer its own learning rate.

    Args (beside the Trainer's):
        layer_decay: see `param_groups_layer_decay`. None: all layers learn at one rate, with the Trainer's groups.
    """

    def __init__(self, *, layer_decay: float | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.layer_decay = layer_decay

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.layer_decay is not None:
            trained = self.model if model is None else model
            groups = param_groups_layer_decay(
                trained, cast(float, self.args.learning_rate), self.layer_decay, self.args.weight_decay
            )
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer_cls_and_kwargs = (optimizer, {**options, "params": groups})
        return super().create_optimizer(model)

    def _get_learning_rate(self) -> float:
        """For the log: that of the head. The Trainer's would be that of the first group, the slowest layer."""
        if self.layer_decay is None:
            return super()._get_learning_rate()
        return max(group["lr"] for group in cast(torch.optim.Optimizer, self.optimizer).param_groups)
