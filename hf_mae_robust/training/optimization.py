"""Parameter groups and learning-rate rules of MAE's pre-training, fine-tuning and linear probes."""

from types import SimpleNamespace
from typing import Any

import timm.optim
import torch
from timm.optim import param_groups_layer_decay as timm_groups
from torch import nn

from ..errors import UserError


def scale_learning_rate(base_learning_rate: float, total_batch_size: int) -> float:
    """The linear rule of Goyal et al. 2017 that MAE uses: base rate x effective batch / 256."""
    return base_learning_rate * total_batch_size / 256


def decayed_parameter_names(model: nn.Module) -> list[str]:
    """Trainable parameters that weight decay acts on: all but biases and other 1-D ones. CLS and mask tokens are 3-D,
    so they **are** decayed, as in the official code; the Trainer's own rule looks at layer types instead."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim > 1 and not name.endswith(".bias")
    ]


def warmup_steps(warmup_epochs: float, total_epochs: float, total_steps: int) -> int:
    """Steps of the linear warm-up, for a warm-up given in epochs.

    total_steps: of the Trainer, which makes a step of the batches that are left at the end of an epoch where the
    accumulation does not divide it, averaged over these alone. The official code throws their gradients away: of 1,251
    batches, 4 a step, it makes 312 steps and the Trainer 313.
    """
    return round(total_steps * min(warmup_epochs / total_epochs, 1.0))


# Layers of the stock classes of the ViT family, of those used as a backbone, and of those within a PeftModel; what
# matches none belongs to the last one, with the head.
_MODEL = r"^(?:base_model\.model\.)?(?:backbone\.)?\w+\."
LAYERS = {
    "stem": rf"{_MODEL}embeddings",
    "blocks": [(rf"{_MODEL}(?:encoder\.)?layers?\.(\d+)", None)],
}
# Beside 1-D parameters. The official code names positions and CLS token; the others are of other models.
UNDECAYED = (
    "*.position_embeddings",
    "*.cls_token",
    "*.mask_token",
    "*.mid_mask_token",
    "*.distillation_token",
    "*.register_tokens",
)


def param_groups_layer_decay(
    model: nn.Module, learning_rate: float, layer_decay: float = 0.75, weight_decay: float = 0.05
) -> list[dict[str, Any]]:
    """Layer-wise learning-rate decay of a stock classifier: groups for an optimizer, with `lr` scaled already, as
    PyTorch and the Trainer know nothing of timm's `lr_scale`.

    Layer 0 is CLS token, positions and patch projection, i + 1 is block i, and depth + 1 the rest: the scale is
    `layer_decay ** (depth + 1 - layer)`. 1-D parameters, positions and CLS token are not decayed (official:
    util/lr_decay.py; values: 0.65 for ViT-B, 0.75 for ViT-L and ViT-H).

    Raises ValueError where `layer_decay` does not lie in (0, 1], or the model has no blocks that are known.
    """
    if not 0 < layer_decay <= 1:
        raise UserError(f"--layer_decay {layer_decay}: must lie in (0, 1].")
    # timm asks the model for its layers.
    described: Any = SimpleNamespace(named_parameters=model.named_parameters, group_matcher=lambda coarse: LAYERS)
    groups = timm_groups(described, weight_decay, no_weight_decay_list=UNDECAYED, layer_decay=layer_decay)
    if layer_decay < 1 and len({group["lr_scale"] for group in groups}) < 3:
        raise UserError(f"--layer_decay {layer_decay}: the layers of {type(model).__name__} are not known; give 1.")
    return [{**group, "lr": learning_rate * group["lr_scale"]} for group in groups]


class Lars(timm.optim.Lars):
    """LARS as the official code has it (util/lars.py), for groups of `lars_groups`.

    timm's has the trust ratio of You et al. 2017, |w| / (|g| + decay |w|), for the update g + decay w; the official
    one, |w| / |g + decay w|, is of the update itself. Without decay, MAE's setting, both are the same.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if all(group["weight_decay"] == 0 for group in self.param_groups):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # timm's gets the decay as a part of the gradient, and none of its own.
        decays = [group["weight_decay"] for group in self.param_groups]
        gradients = {parameter: parameter.grad for group in self.param_groups for parameter in group["params"]}
        try:
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = 0.0
                for parameter in group["params"] if decay else ():
                    if parameter.grad is not None:
                        parameter.grad = parameter.grad.add(parameter, alpha=decay)
            super().step()
        finally:
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = decay
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
        return loss


def lars_groups(head: nn.Module) -> list[dict[str, Any]]:
    """For `Lars`: trust ratio and weight decay are for weights, not for biases (official: util/lars.py). timm's adapts
    whatever is decayed, and nothing else unless told to."""
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    biases = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [
        {"params": weights, "always_adapt": True},
        {"params": biases, "always_adapt": False, "weight_decay": 0.0},
    ]
