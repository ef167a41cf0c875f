"""The Trainer for classifiers: mixup, smoothed labels, layer-wise learning rates, averaged weights, exact metrics."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import DistributedType, gather_object
from safetensors.torch import load_file, save_file
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import EvalLoopOutput

from ...errors import CheckpointError, DataError, UserError
from ...training.checkpoints import is_checkpoint
from ...training.intervals import interval_fields
from ...training.predictions import Predictions
from ..trainer import FinetuningTrainer
from .augmentation import seeded
from .metrics import classification_metrics

EMA_FILE = "ema.safetensors"


class EmaCallback(TrainerCallback):
    """Moves the averaged weights after every step of the optimizer."""

    def __init__(self, trainer: "ClassificationTrainer"):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model, keep_torch_compile=False)
        cast(ModelEmaV3, self.trainer.ema).update(model, step=state.global_step)


class ClassificationTrainer(FinetuningTrainer):
    """Fine-tunes a stock classifier with MAE's recipe (official code: main_finetune.py, engine_finetune.py).

    Args (beside `FinetuningTrainer`'s):
        mixup: timm's, for batches of even size; it draws again for each batch of each process, as in the official code.
        label_smoothing: without mixup, which smooths by itself.
        ema_decay: keep an exponential moving average of the weights (timm's ModelEmaV3 with warm-up), which is what is
            evaluated and saved at the end; None: do not.

    The loss is our own: the model's takes soft labels for a multi-label problem.
    """

    # In the output folder, beside what every classifier leaves there.
    MORE_FOLDERS: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        mixup: Mixup | None = None,
        label_smoothing: float = 0.0,
        ema_decay: float | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.mixup = mixup
        self.criterion: nn.Module
        if mixup is not None:
            self.criterion = SoftTargetCrossEntropy()
        else:
            self.criterion = LabelSmoothingCrossEntropy(label_smoothing) if label_smoothing else nn.CrossEntropyLoss()
        self.ema: ModelEmaV3 | None = None
        if ema_decay is not None:
            sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED)
            if self.accelerator.distributed_type in sharded:
                raise UserError("--model_ema_decay does not work with FSDP and DeepSpeed, which split the weights.")
            self.ema = ModelEmaV3(self.model, decay=ema_decay, use_warmup=True)
            self.add_callback(EmaCallback(self))
        # Classes predicted and true, of all images of the last evaluation, in all processes; and, row by row, what is
        # written of them.
        self.predicted: np.ndarray | None = None
        self.labels: np.ndarray | None = None
        self.predictions: Predictions | None = None
        self._mixed = (-1, 0)

    # ---- training ----

    def _mix(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed by random numbers of (seed, step, batch within the step, process), so that a resume mixes alike."""
        step = self.state.global_step
        batch = self._mixed[1] + 1 if self._mixed[0] == step else 0
        self._mixed = (step, batch)
        key = [self.args.seed, step, batch, self.args.process_index]
        with seeded(int(np.random.SeedSequence(key).generate_state(1, np.uint32)[0])):
            return cast(Mixup, self.mixup)(images, labels)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        rows, target = inputs.pop("row"), inputs.pop("labels")
        if self.mixup is not None:
            inputs["pixel_values"], target = self._mix(inputs["pixel_values"], target)
        outputs: ImageClassifierOutput = model(**inputs)
        loss = self.criterion(cast(torch.Tensor, outputs.logits).float(), target)
        self.guard.add_loss(loss, rows)
        return (loss, outputs) if return_outputs else loss

    # ---- checkpoints ----

    def save_weights(self, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
        if self.ema is not None and not is_checkpoint(folder):
            state_dict = self.ema.module.state_dict()
        super().save_weights(folder, state_dict)
        if self.ema is not None and is_checkpoint(folder) and self.args.should_save:
            save_file(self.ema.module.state_dict(), folder / EMA_FILE)

    def load_weights(self, checkpoint: str) -> None:
        super().load_weights(checkpoint)
        if self.ema is not None:
            path = Path(checkpoint) / EMA_FILE
            if not path.exists():
                raise CheckpointError(f"{path} is missing: the checkpoint was written without --model_ema_decay.")
            self.ema.module.load_state_dict(load_file(path))

    # ---- evaluation ----

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Cross-entropy, top-1 accuracy (with its 95% interval) and top-5 accuracy over every image once, exact with
        any number of processes."""
        model = self.accelerator.unwrap_model(self.model) if self.ema is None else self.ema.module
        model.eval()
        num_shown = min(5, len(self.class_names))
        found: dict[str, list[torch.Tensor]] = {"top": [], "labels": [], "losses": [], "probabilities": [], "rows": []}
        for inputs, rows in self.evaluation_batches(dataloader):
            valid, labels = rows >= 0, inputs.pop("labels")
            with self.compute_loss_context_manager():
                logits = model(**inputs).logits.float()
            found["top"].append(logits.topk(num_shown).indices[valid])
            found["labels"].append(labels[valid])
            found["probabilities"].append(logits.softmax(dim=1).amax(dim=1)[valid])
            found["rows"].append(rows[valid])
            found["losses"].append(nn.functional.cross_entropy(logits, labels, reduction="none")[valid])
        mine = {name: torch.cat(parts).cpu().numpy() for name, parts in found.items()} if found["top"] else None
        parts: list[Any] = gather_object([mine]) if self.args.world_size > 1 else [mine]
        parts = [part for part in parts if part is not None]
        num_images = sum(len(part["labels"]) for part in parts)
        if not num_images:
            raise DataError(f"None of the images of {self.eval_source.description} can be decoded.")
        top, self.labels, losses, probabilities, all_rows = (
            np.concatenate([part[name] for part in parts]) for name in found
        )
        self.predicted = top[:, 0]
        self.predictions = Predictions.sorted_by_row(all_rows, self.labels, self.predicted, probabilities)
        metrics = {"loss": float(losses.mean(dtype=np.float64)), **classification_metrics(top, self.labels)}
        metrics |= interval_fields("accuracy", self.predicted == self.labels)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return self.evaluation_output(metrics, num_images)
