"""The Trainer for semantic segmentation: UperNet's two losses, and evaluation by sliding windows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import resize
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ...errors import DataError, UserError
from ..trainer import FinetuningTrainer, shares_batch_norm, with_shared_batch_norm
from .maps import IGNORED
from .metrics import confusion_of, segmentation_metrics

CLASSES_AT_A_TIME = 16
MAX_SIDE_OF_PICTURES = 1000


def sum_over_pixels(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the pixels that are not ignored. logits `(B, K, h, w)`, classes `(B, h, w)`."""
    return nn.functional.cross_entropy(logits.float(), classes, ignore_index=IGNORED, reduction="sum")


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover a length; the last one ends with it."""
    return sorted({min(start, length - window) for start in range(0, length - window + stride, stride)})


@torch.no_grad()
def sliding_logits(
    predict: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, window: int, stride: int, batch_size: int
) -> torch.Tensor:
    """Logits `(K, H, W)` of a normalised image `(C, H, W)`: at each pixel the mean of those of all square windows it
    lies in. A side shorter than a window is filled up with zeros, the mean.
    predict: `(B, C, window, window)` -> `(B, K, window, window)`."""
    own_height, own_width = image.shape[-2:]
    image = nn.functional.pad(image, (0, max(window - own_width, 0), 0, max(window - own_height, 0)))
    height, width = image.shape[-2:]
    corners = [(y, x) for y in window_starts(height, window, stride) for x in window_starts(width, window, stride)]
    total: Any = None
    counts = image.new_zeros(height, width)
    for first in range(0, len(corners), batch_size):
        part = corners[first : first + batch_size]
        logits = predict(torch.stack([image[:, y : y + window, x : x + window] for y, x in part])).float()
        if total is None:
            total = logits.new_zeros(logits.shape[1], height, width)
        for (y, x), one in zip(part, logits):
            total[:, y : y + window, x : x + window] += one
            counts[y : y + window, x : x + window] += 1
    return (total / counts)[:, :own_height, :own_width]


def resized_classes(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The likeliest class `(h, w)` int64 of logits `(K, H, W)`, scaled to `size` (bilinear). A few classes at a time:
    photos of a dozen megapixels have gigabytes of logits."""
    best: Any = None
    classes: Any = None
    for first in range(0, len(logits), CLASSES_AT_A_TIME):
        part = logits[None, first : first + CLASSES_AT_A_TIME]
        values, found = nn.functional.interpolate(part, size=size, mode="bilinear", align_corners=False)[0].max(dim=0)
        if best is None:
            best, classes = values, found
        else:
            classes = torch.where(values > best, found + first, classes)
            best = torch.maximum(values, best)
    return classes


class SegmentationTrainer(FinetuningTrainer):
    """Fine-tunes a UperNet as mmsegmentation does.

    Args (beside `FinetuningTrainer`'s):
        crop_size: of the windows of the evaluation. stride: between them, in pixels.
        num_pictures: the first N images of the evaluation are kept with truth and prediction in `pictures`.

    The loss is the cross-entropy summed over the pixels that are not ignored, divided by the number of all pixels (as
    mmsegmentation's `avg_non_ignore=False`), plus that of the auxiliary head, where there is one, times its weight. So
    accumulated batches equal a large one, up to the statistics of the heads' BatchNorm (which several GPUs share), and
    an ignored crop gives 0 and not NaN.

    Raises ValueError where a process trains UperNet with one image at a time: BatchNorm has nothing to normalise with.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        args: TrainingArguments,
        crop_size: int,
        stride: int,
        num_pictures: int = 8,
        **kwargs: Any,
    ):
        trains_alone = kwargs.get("train_source") is not None and args.train_batch_size == 1
        has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        if trains_alone and has_batch_norm and not shares_batch_norm(args):
            # UperNet also looks at the crop as one place: one value a channel.
            raise UserError("--per_device_train_batch_size 1: UperNet's BatchNorm needs two images at least.")
        super().__init__(model=with_shared_batch_norm(model, args), args=args, **kwargs)
        if self.is_sharded and self.train_dataset is not None:
            # Evaluation runs the model as often as an image has windows, and not equally often in all processes, which
            # would wait for one another; and accelerate asks UperNet for its embeddings, which it does not tell.
            raise UserError("--task segmentation does not work with FSDP and ZeRO-3. Use DDP, or DeepSpeed's ZeRO-2.")
        self.crop_size, self.stride, self.num_pictures = crop_size, stride, num_pictures
        self.confusion: np.ndarray | None = None
        self.pictures: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        # The model gives its auxiliary logits to its own loss only.
        self._auxiliary_logits: torch.Tensor | None = None
        auxiliary_head = getattr(self.accelerator.unwrap_model(self.model), "auxiliary_head", None)
        if auxiliary_head is not None:
            auxiliary_head.register_forward_hook(self._keep_auxiliary_logits)

    def _keep_auxiliary_logits(self, module: nn.Module, inputs: Any, logits: torch.Tensor) -> None:
        self._auxiliary_logits = logits

    # ---- training ----

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        rows, classes = inputs.pop("row"), inputs.pop("labels")
        outputs = model(**inputs)
        auxiliary, self._auxiliary_logits = self._auxiliary_logits, None
        loss = sum_over_pixels(outputs.logits, classes)
        if auxiliary is not None:
            size = classes.shape[-2:]
            auxiliary = nn.functional.interpolate(auxiliary, size=size, mode="bilinear", align_corners=False)
            weight = self.accelerator.unwrap_model(self.model).config.auxiliary_loss_weight
            loss = loss + weight * sum_over_pixels(auxiliary, classes)
        loss = loss / classes.numel()
        self.guard.add_loss(loss, rows)
        return (loss, outputs) if return_outputs else loss

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
        """Mean IoU, mean accuracy and pixel accuracy over every image once, at its own size, exact with any number of
        processes: their confusion matrices add up."""
        model = self.accelerator.unwrap_model(self.model).eval()
        num_classes, device = len(self.class_names), self.args.device
        confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        counts = torch.zeros(1, dtype=torch.int64, device=device)
        self.pictures = []

        def predict(windows: torch.Tensor) -> torch.Tensor:
            with self.compute_loss_context_manager():
                return model(pixel_values=windows).logits

        for inputs, rows in self.evaluation_batches(dataloader):
            valid = rows >= 0
            for image, classes, counts_too in zip(inputs["pixel_values"], inputs["labels"], valid.tolist()):
                if not counts_too:
                    continue
                logits = sliding_logits(predict, image, self.crop_size, self.stride, self.args.eval_batch_size)
                predicted = resized_classes(logits, classes.shape)
                confusion += confusion_of(predicted, classes, num_classes)
                counts += 1
                if len(self.pictures) < self.num_pictures and self.is_world_process_zero():
                    shown = resize(self.normalization.undo(image), list(classes.shape)).permute(1, 2, 0)
                    step = -(-max(classes.shape) // MAX_SIDE_OF_PICTURES)
                    parts = (part[::step, ::step].contiguous() for part in (shown, classes, predicted))
                    picture, truth, prediction = (part.cpu().numpy() for part in parts)
                    self.pictures.append((picture, truth, prediction))
        if self.args.world_size > 1:
            confusion, counts = reduce(confusion, "sum"), reduce(counts, "sum")
        if not counts.item():
            raise DataError(f"None of the images of {self.eval_source.description} can be used.")
        self.confusion = confusion.cpu().numpy()
        # Without a pixel that counts there is no mean, and 0 would be taken for a result.
        metrics = segmentation_metrics(self.confusion) if self.confusion.any() else {}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return self.evaluation_output(metrics, int(counts))
