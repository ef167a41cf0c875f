"""The Trainer for classifiers: mixup, smoothed labels, layer-wise learning rates, averaged weights, exact metrics."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType, gather_object
from safetensors.torch import load_file, save_file
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import nn
from transformers import TrainerCallback
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from .augmentation import seeded
from .classifiers import load_strictly
from .image_trainer import ImageTrainer
from .layer_decay import param_groups_layer_decay
from .metrics import classification_metrics
from .resume import CheckpointError
from .sources import DataError

EMA_FILE = "ema.safetensors"


class EmaCallback(TrainerCallback):
    """Moves the averaged weights after every step of the optimizer."""

    def __init__(self, trainer: "ClassificationTrainer"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        model = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)
        self.trainer.ema.update(model, step=state.global_step)


class ClassificationTrainer(ImageTrainer):
    """Fine-tunes a stock classifier with MAE's recipe (official code: main_finetune.py, engine_finetune.py).

    Args (beside `ImageTrainer`'s):
        class_names: of the classes 0, 1, ...
        mixup: timm's, for batches of even size; it draws anew for each batch of each process, as in the official code.
        label_smoothing: without mixup, which smooths by itself. layer_decay: see `param_groups_layer_decay`.
        ema_decay: keep an exponential moving average of the weights (timm's ModelEmaV3 with warm-up), which is what is
            evaluated and saved at the end; None: do not.

    The loss is a mean over the batch, so that accumulated batches equal a large one; the model's own loss would not do,
    and takes soft labels for a multi-label problem.
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *,
        class_names: Sequence[str],
        mixup: Mixup | None = None,
        label_smoothing: float = 0.0,
        layer_decay: float = 1.0,
        ema_decay: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False
        self.class_names, self.mixup, self.layer_decay = tuple(class_names), mixup, layer_decay
        if mixup is not None:
            self.criterion = SoftTargetCrossEntropy()
        else:
            self.criterion = LabelSmoothingCrossEntropy(label_smoothing) if label_smoothing else nn.CrossEntropyLoss()
        self.ema = None
        if ema_decay is not None:
            sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED)
            if self.accelerator.distributed_type in sharded:
                raise ValueError("--model_ema_decay does not work with FSDP and DeepSpeed, which split the weights.")
            self.ema = ModelEmaV3(self.model, decay=ema_decay, use_warmup=True)
            self.add_callback(EmaCallback(self))
        # Classes predicted and true, of all images of the last evaluation, in all processes.
        self.predicted: np.ndarray | None = None
        self.labels: np.ndarray | None = None
        self._mixed = (-1, 0)

    # ---- training ----

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained = self.model if model is None else model
            groups = param_groups_layer_decay(
                trained, self.args.learning_rate, self.layer_decay, self.args.weight_decay
            )
            optimizer, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer_cls_and_kwargs = (optimizer, {**options, "params": groups})
        return super().create_optimizer(model)

    def _get_learning_rate(self) -> float:
        """For the log: that of the head. The Trainer's would be that of the first group, the slowest layer."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def _mix(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed by random numbers of (seed, step, batch within the step, process), so that a resume mixes alike."""
        step = self.state.global_step
        batch = self._mixed[1] + 1 if self._mixed[0] == step else 0
        self._mixed = (step, batch)
        key = [self.args.seed, step, batch, self.args.process_index]
        with seeded(int(np.random.SeedSequence(key).generate_state(1, np.uint32)[0])):
            return self.mixup(images, labels)

    def compute_loss(self, model, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None):
        inputs = dict(inputs)
        rows, target = inputs.pop("row"), inputs.pop("labels")
        if self.mixup is not None:
            inputs["pixel_values"], target = self._mix(inputs["pixel_values"], target)
        outputs: ImageClassifierOutput = model(**inputs)
        loss = self.criterion(outputs.logits.float(), target)
        self.guard.add_loss(loss, rows)
        return (loss, outputs) if return_outputs else loss

    # ---- checkpoints ----

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        is_checkpoint = folder.name.startswith(PREFIX_CHECKPOINT_DIR)
        if self.ema is not None and not is_checkpoint:
            state_dict = self.ema.module.state_dict()
        super()._save(output_dir, state_dict)
        if self.ema is not None and is_checkpoint and self.args.should_save:
            save_file(self.ema.module.state_dict(), folder / EMA_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """The Trainer would load nothing of the blocks: checkpoints have other names for them than the model."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        model = self.model if model is None else model
        try:
            saved = load_strictly(type(model), resume_from_checkpoint, config=model.config)
        except ValueError as error:
            raise CheckpointError(f"{error} Nothing was resumed.") from error
        model.load_state_dict(saved.state_dict())
        if self.ema is not None:
            path = Path(resume_from_checkpoint) / EMA_FILE
            if not path.exists():
                raise CheckpointError(f"{path} is missing: the checkpoint was written without --model_ema_decay.")
            self.ema.module.load_state_dict(load_file(path))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    # ---- evaluation ----

    @torch.no_grad()
    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Cross-entropy, top-1 and top-5 accuracy over every image once, exact with any number of processes."""
        model = self.accelerator.unwrap_model(self.model) if self.ema is None else self.ema.module
        model.eval()
        num_shown = min(5, len(self.class_names))
        found = {"top": [], "labels": [], "losses": []}
        for inputs, valid in self.evaluation_batches(dataloader):
            labels = inputs.pop("labels")
            with self.compute_loss_context_manager():
                logits = model(**inputs).logits.float()
            found["top"].append(logits.topk(num_shown).indices[valid])
            found["labels"].append(labels[valid])
            found["losses"].append(nn.functional.cross_entropy(logits, labels, reduction="none")[valid])
        mine = {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()} if found["top"] else None
        parts = gather_object([mine]) if self.args.world_size > 1 else [mine]
        parts = [part for part in parts if part is not None]
        num_images = sum(len(part["labels"]) for part in parts)
        if not num_images:
            raise DataError(f"None of the images of {self.eval_dataset.description} can be decoded.")
        top, self.labels, losses = (
            np.concatenate([part[name] for part in parts]) for name in ("top", "labels", "losses")
        )
        self.predicted = top[:, 0]
        metrics = {"loss": float(losses.mean(dtype=np.float64)), **classification_metrics(top, self.labels)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=num_images)
