"""LoRA: a classifier whose encoder stays as it is, with small trained matrices beside its linear layers, by peft.

This module needs peft; it is imported where an adapter was asked for.
"""

import copy
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from accelerate.utils import DistributedType
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import TrainOutput

from ...errors import CheckpointError, UserError
from ...files import allow_group, replace_files
from ...training.checkpoints import is_checkpoint
from .trainer import ClassificationTrainer

ALL_LINEAR = "all-linear"
# In the output folder: the adapter, and the classifier it belongs on.
ADAPTER, BASE = "adapter", "base"


def base_folder(training: TrainingArguments) -> str:
    """How an adapter names the classifier that it belongs on: by its path from the current folder, with which peft and
    transformers find it from there, or from the repository that it is pushed to. Where the output folder lies outside
    the current one, the path would be one of this machine, and adapter_config.json travels: it is `base`, and peft is
    given the base (docs/classification.md)."""
    base, here = Path(training.output_dir or "").absolute() / BASE, Path.cwd()
    return str(base.relative_to(here)) if base.is_relative_to(here) and not training.push_to_hub else BASE


def add_adapter(
    model: PreTrainedModel, rank: int, alpha: float, dropout: float, targets: Sequence[str], base: str | Path
) -> PeftModel:
    """A classifier with a LoRA adapter beside its linear layers. The adapter, the head and the norm before it train.

    Args:
        rank, alpha, dropout: of `peft.LoraConfig`: the product of the two matrices is scaled by alpha / rank.
        targets: names of linear layers, or their last parts (`"q_proj"` of all blocks); `["all-linear"]`: all.
        base: where the classifier without the adapter will be, for `base_model_name_or_path`.

    Raises ValueError where a target is not a linear layer of the model.
    """
    linear = [name for name, module in model.base_model.named_modules() if isinstance(module, nn.Linear)]
    kinds = sorted({name.rpartition(".")[2] for name in linear})
    targets = kinds if list(targets) == [ALL_LINEAR] else list(targets)
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise UserError(
                f"--lora_target_modules {target}: no linear layer of {type(model).__name__} has this name; there are "
                f"{', '.join(kinds)}, or {ALL_LINEAR} alone for all of them."
            )
    # With mean pooling there is a norm before the head, which pre-training does not have; without, the pooler is empty.
    pooler = getattr(model.base_model, "pooler", None)
    has_norm = pooler is not None and any(True for _ in pooler.parameters())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # only a factor, whatever peft declares
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=["classifier", *["pooler"] * has_norm],
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    return adapted.train()


def share_trained(model: nn.Module) -> float:
    """Trained parameters as a share of all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trains in sizes if trains) / sum(size for size, _ in sizes)


def record_of_adapter(model: PeftModel) -> dict[str, Any]:
    """What a resumed run must have in common: the settings of the adapter, and the weights that do not train, which no
    checkpoint holds."""
    config, digest = cast(LoraConfig, model.peft_config["default"]), hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad and "original_module" not in name:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().numpy().data)
    return {
        "rank": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "target_modules": sorted(config.target_modules or ()),
        "weights of the encoder (SHA-256)": digest.hexdigest(),
    }


class LoraTrainer(ClassificationTrainer):
    """Trains what `add_adapter` gives.

    The output folder gets the stock classifier with the adapter merged into it, so that it is like any other;
    `adapter/`, which peft and transformers load; and, from the beginning, `base/`, the classifier that the adapter
    belongs on. Checkpoints hold the adapter only.
    """

    MORE_FOLDERS = (f"{ADAPTER}/", f"{BASE}/")

    def __init__(self, *, model: PeftModel, **kwargs: Any):
        super().__init__(model=model, **kwargs)
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise UserError("--lora_r does not work with FSDP and DeepSpeed, which split the weights.")

    @property
    def adapted(self) -> PeftModel:
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        with self.staged() as staging:
            if self.args.should_save:
                copy.deepcopy(self.adapted).unload().save_pretrained(staging / BASE)
                self.processing_class.save_pretrained(staging / BASE)
                allow_group(staging / BASE)
                replace_files(staging / BASE, Path(self.args.output_dir) / BASE)
                shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_weights(self, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
        trained, adapted = self.model, self.adapted
        if is_checkpoint(folder):
            super().save_weights(folder, state_dict)
            (folder / "README.md").unlink(missing_ok=True)  # peft's form to fill in
            adapted.config.save_pretrained(folder)
            return
        try:
            self.model = copy.deepcopy(adapted).merge_and_unload()
            super().save_weights(folder)
        finally:
            self.model = trained
        adapted.save_pretrained(str(folder / ADAPTER))
        (folder / ADAPTER / "README.md").unlink()
        self.processing_class.save_pretrained(folder / ADAPTER)
        allow_group(folder)

    def loaded_weights(self, checkpoint: str) -> dict[str, Any]:
        """All tensors by the names of the model: those of the checkpoint's adapter, and those that do not train."""
        adapted = self.adapted
        try:
            tensors = load_peft_weights(checkpoint, device="cpu")
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                f"{checkpoint} holds no adapter that can be read ({reason}). Nothing was resumed."
            ) from error
        shapes, expected = (
            {name: tuple(tensor.shape) for name, tensor in found.items()}
            for found in (tensors, get_peft_model_state_dict(adapted))
        )
        wrong = sorted({name for name, _ in shapes.items() ^ expected.items()})
        if wrong:
            raise CheckpointError(
                f"{checkpoint} does not hold this adapter: missing, of another shape, or not known are "
                f"{', '.join(wrong)}. Nothing was resumed."
            )
        set_peft_model_state_dict(adapted, tensors)
        return adapted.state_dict()
