"""Models, gradients and optimizers that are sharded among processes, by FSDP2 or DeepSpeed: what is set for them, and
what cannot be had with them and is refused before the first step."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from transformers import TrainingArguments
from transformers.integrations import set_hf_deepspeed_config, unset_hf_deepspeed_config
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import UserError
from .typed_trainer import TypedTrainer

logger = logging.getLogger(__name__)


class Sharding(TypedTrainer):
    """The part of `ImageTrainer` that has to do with FSDP and DeepSpeed.

    Raises UserError where a run could not be trained or saved as it was asked for.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        if self.is_fsdp_enabled:
            check_fsdp(self.accelerator.state.fsdp_plugin, self.model)
            if self.accelerator.is_fsdp2:
                set_layers(self.accelerator.state.fsdp_plugin, self.model)
                # `autocast_smart_context_manager` below does what this policy would.
                self.accelerator.state.fsdp_plugin.mixed_precision_policy = None
        elif self.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
            logger.warning(
                "FSDP was asked for, but accelerate has none on %s: every process holds the complete model (DDP).",
                self.args.device.type.upper(),
            )
        if self.is_deepspeed_enabled:
            plugin = self.accelerator.state.deepspeed_plugin
            check_deepspeed(plugin.hf_ds_config)
            # Otherwise the weights of ZeRO-3 would come in parts that only DeepSpeed reads.
            plugin.deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of the weights only, so that all must take part where the model runs."""
        return self.is_fsdp_enabled or (
            self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        )

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager[Any]:
        """The same arithmetic with FSDP2 as with DDP: weights in float32, and autocast.

        accelerate sets FSDP2's own mixed precision instead, which casts all inputs of the model, so that masks come
        from the ranks of rounded noise (2 to 7% of the images get another visible set) and targets from rounded pixels;
        which keeps the sums of the residual stream in bf16, and rounds the loss to it; and which hands bf16 weights to
        LayerNorm, whose kernel for CPUs adds their gradient up in bf16, too, and loses up to two thirds of it.
        """
        if self.accelerator.is_fsdp2:
            return self.accelerator.autocast()
        return super().autocast_smart_context_manager(cache_enabled)


@contextmanager
def complete_models(training: TrainingArguments) -> Iterator[None]:
    """While entered, models are built and read complete in each process. With ZeRO-3 transformers would leave a part of
    each weight in each process at once: the tensors of another model, from which a model may start, would be empty, and
    new weights would be other ones than with DDP. DeepSpeed divides the model when the Trainer prepares it."""
    plugin = training.deepspeed_plugin
    if plugin is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(getattr(plugin, "dschf", plugin.hf_ds_config))  # of `accelerate launch`; of --deepspeed


def layers_of(model: nn.Module) -> list[str]:
    """Names of the classes of a model's Transformer blocks, each of which is gathered by itself."""
    blocks = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    return sorted({type(block).__name__ for block in blocks})


def check_fsdp(plugin: Any, model: nn.Module) -> None:
    """Raises UserError for a setting with which no model could be saved, and for layers that the model lacks."""
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        kind = getattr(plugin.state_dict_type, "name", plugin.state_dict_type)
        raise UserError(
            f"FSDP's state dict type {kind} writes parts of the weights that `from_pretrained` cannot read. Set "
            "fsdp_state_dict_type: FULL_STATE_DICT in the file of accelerate, or leave it out of --fsdp_config."
        )
    names = {type(module).__name__ for module in model.modules()}
    if missing := [name for name in plugin.transformer_cls_names_to_wrap or () if name not in names]:
        raise UserError(
            f"FSDP is to divide the model at its layers {', '.join(missing)} (fsdp_transformer_layer_cls_to_wrap), but "
            f"{type(model).__name__} has none. Leave that setting out: its layers, {', '.join(layers_of(model))}, are "
            "found without it."
        )


def set_layers(plugin: Any, model: nn.Module) -> None:
    """Say at which modules FSDP2 divides a model, where the user has not. What transformers takes, `_no_split_modules`,
    names embeddings too in some classes, and nothing in others."""
    policy = plugin.auto_wrap_policy
    policy = policy.func if isinstance(policy, partial) else policy
    if policy is transformer_auto_wrap_policy and not plugin.transformer_cls_names_to_wrap:
        plugin.transformer_cls_names_to_wrap = layers_of(model)


def check_deepspeed(config: Any) -> None:
    """Raises UserError for what a file of DeepSpeed says otherwise than the command, and for what it leaves to
    DeepSpeed that is ours."""
    if taken := [name for name in ("optimizer", "scheduler") if name in config.config]:
        raise UserError(
            f"The file of DeepSpeed has a section {' and one '.join(taken)}. Leave it out: --optim, --weight_decay and "
            "--lr_scheduler_type decide, and biases are not decayed."
        )
    if config.mismatches:
        # "- ds bf16.enabled=True vs hf bf16|bf16_full_eval=False"
        pairs = (line.removeprefix("- ds ").split(" vs hf ") for line in config.mismatches)
        differences = "; ".join(f"{there} there, {re.sub('[|+].*=', '=', here)} here" for there, here in pairs)
        raise UserError(
            f'The file of DeepSpeed and the command differ ({differences}). Set those to "auto" in the file.'
        )
