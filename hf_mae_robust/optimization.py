"""MAE's parameter groups and learning-rate rule (official code: main_pretrain.py, util/lr_sched.py)."""

from torch import nn


def scale_learning_rate(base_learning_rate: float, total_batch_size: int) -> float:
    """The linear rule of Goyal et al. 2017 that MAE uses: base rate x effective batch / 256."""
    return base_learning_rate * total_batch_size / 256


def decayed_parameter_names(model: nn.Module) -> list[str]:
    """Trainable parameters that weight decay acts on: all but biases and other 1-D ones. CLS and mask tokens are 3-D,
    so they **are** decayed, as in the official code; the Trainer's own rule goes by layer types instead."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim > 1 and not name.endswith(".bias")
    ]


def warmup_steps(warmup_epochs: float, total_epochs: float, total_steps: int) -> int:
    """Steps of the linear warm-up, for a warm-up given in epochs."""
    return round(total_steps * min(warmup_epochs / total_epochs, 1.0))
