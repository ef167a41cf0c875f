"""Images for, and results of, `ViTMAERobustForInstanceSegmentation`."""

from typing import Any

import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image
from transformers import DetrImageProcessor
from transformers.image_utils import SizeDict

# Masks of the size of an image that are held as probabilities.
MASKS_AT_ONCE = 8


class ViTMAERobustDetectionImageProcessor(DetrImageProcessor):
    """Fits each image into a square, keeping its aspect ratio, and pads it below and on the right: DETR's processor
    with `size={"shortest_edge": S, "longest_edge": S}` and `pad_size={"height": S, "width": S}`. Gives `pixel_values`
    and `pixel_mask`, 1 where there is image."""

    def resize(self, image: torch.Tensor, size: SizeDict, **kwargs: Any) -> torch.Tensor:
        """As in training. DETR's makes thin images 0 pixels wide, or longer than the square, and fails."""
        if size.longest_edge and size.longest_edge == size.shortest_edge:
            factor = size.longest_edge / max(image.shape[-2:])
            height, width = (max(1, round(length * factor)) for length in image.shape[-2:])
            size = SizeDict(height=height, width=width)
        return super().resize(image, size, **kwargs)

    def post_process_object_detection(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None
    ) -> list[dict[str, torch.Tensor]]:
        """The detections surer than `threshold` of each image: `scores` `(n,)`, `labels` `(n,)`, `boxes` `(n, 4)`,
        (x0, y0, x1, y1) in pixels of the original image. target_sizes: its (height, width), for each image; without,
        boxes are in pixels of the model's input."""
        results = []
        for i, scores in enumerate(outputs.scores):
            keep, boxes = scores > threshold, outputs.pred_boxes[i]
            if target_sizes is not None:
                height, width = (int(side) for side in target_sizes[i])
                input_height, input_width = outputs.image_sizes[i].tolist()
                scale = [width / input_width, height / input_height] * 2
                boxes = boxes * torch.tensor(scale, device=boxes.device, dtype=boxes.dtype)
            results.append({"scores": scores[keep], "labels": outputs.labels[i][keep], "boxes": boxes[keep]})
        return results

    def post_process_instance_segmentation(
        self, outputs: Any, threshold: float = 0.5, target_sizes: Any = None, mask_threshold: float = 0.5
    ) -> list[dict[str, torch.Tensor]]:
        """As `post_process_object_detection`, with `masks` `(n, height, width)` bool: where the probability is above
        `mask_threshold`. Without target_sizes: of the model's input, without its padding."""
        results = self.post_process_object_detection(outputs, threshold, target_sizes)
        for i, result in enumerate(results):
            size = outputs.image_sizes[i] if target_sizes is None else target_sizes[i]
            size = tuple(int(side) for side in size)
            masks = outputs.pred_masks[i][outputs.scores[i] > threshold]
            # Some at a time: the probabilities of 100 masks of a photo of 12 megapixels are 5 GB.
            pasted = [
                paste_masks_in_image(some[:, None], boxes, size)[:, 0] > mask_threshold
                for some, boxes in zip(masks.split(MASKS_AT_ONCE), result["boxes"].split(MASKS_AT_ONCE))
            ]
            result["masks"] = torch.cat(pasted)
        return results


ViTMAERobustDetectionImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["ViTMAERobustDetectionImageProcessor"]
