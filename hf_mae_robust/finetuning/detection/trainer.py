"""The Trainer for Mask R-CNN: its losses, and COCO's average precision over all processes."""

from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resize
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ...errors import DataError
from ..trainer import FinetuningTrainer, with_shared_batch_norm
from .metrics import Detections, coco_metrics
from .objects import Objects

# Of the model's output in evaluation, a row for each image.
FOUND = ("scores", "labels", "pred_boxes", "pred_masks", "image_sizes")
LOSS_PARTS = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")


class DetectionTrainer(FinetuningTrainer):
    """Fine-tunes a detector of objects and their masks.

    Args (beside `FinetuningTrainer`'s):
        num_pictures: the first N images of the evaluation are kept with their detections in `pictures`.

    AP counts the most confident `detections_per_image` (of the model's config) of each image; COCO's counts 100.
    """

    def __init__(self, *, model: PreTrainedModel, args: TrainingArguments, num_pictures: int = 8, **kwargs: Any):
        super().__init__(model=with_shared_batch_norm(model, args), args=args, **kwargs)
        self.num_pictures = num_pictures
        self._loss_parts: list[torch.Tensor] = []
        # Of the last evaluation.
        self.pictures: list[tuple[torch.Tensor, Objects, Detections]] = []
        self.results_of_classes: list[dict[str, Any]] = []

    # ---- training ----

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        rows = inputs.pop("row")
        outputs = model(**inputs)
        self._loss_parts.append(torch.stack([outputs[name].detach() for name in LOSS_PARTS]))
        self.guard.add_loss(outputs.loss, rows)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._loss_parts:
            # Those of the first process: to watch, not to steer by.
            means = torch.stack(self._loss_parts).mean(dim=0).tolist()
            self._loss_parts.clear()
            logs.update(dict(zip(LOSS_PARTS, means)))
        super().log(logs, start_time)

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
        """COCO's AP of boxes and masks over every image once, at its own size, exact with any number of processes: the
        first one computes it from what all have found."""
        model = self.accelerator.unwrap_model(self.model).eval()
        mine: list[tuple[int, Objects, Detections]] = []
        processor: Any = self.processing_class
        self.pictures = []
        for inputs, rows in self.evaluation_batches(dataloader):
            valid = rows >= 0
            found = [label["objects"] for label in inputs.pop("labels")]
            with self.compute_loss_context_manager():
                outputs = model(**inputs)
            for i, (objects, is_valid) in enumerate(zip(found, valid.tolist())):
                if not is_valid:
                    continue
                of_image = SimpleNamespace(**{name: outputs[name][i : i + 1] for name in FOUND})
                # Image by image: the masks of one large photo may be a gigabyte.
                (result,) = processor.post_process_instance_segmentation(
                    of_image, threshold=0.0, target_sizes=[objects.size]
                )
                # Each image comes once over all processes: any numbers will do that are all different.
                number = len(mine) * self.args.world_size + self.args.process_index
                mine.append((number, objects, Detections.of(result)))
                if len(self.pictures) < self.num_pictures and self.is_world_process_zero():
                    height, width = outputs.image_sizes[i].tolist()
                    shown = self.normalization.undo(inputs["pixel_values"][i])[:, :height, :width]
                    self.pictures.append((resize(shown, list(objects.size)).cpu(), *mine[-1][1:]))
        everything = gather_object(mine) if self.args.world_size > 1 else mine
        if not everything:
            raise DataError(f"None of the images of {self.eval_source.description} can be used.")
        outcome: list[Any] = [None, None]
        if self.is_world_process_zero():
            objects = {number: of_image for number, of_image, _ in everything}
            detections = {number: of_image for number, _, of_image in everything}
            count = model.config.detections_per_image
            outcome = list(coco_metrics(objects, detections, self.class_names, count))
        metrics, self.results_of_classes = broadcast_object_list(outcome) if self.args.world_size > 1 else outcome
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return self.evaluation_output(metrics, len(everything))
