"""Mask R-CNN on a plain ViT: transformers' VitDet backbone, torchvision's pyramid, proposals and heads.

B images, C channels, H x W pixels; boxes are (x0, y0, x1, y1) in pixels of the model's input.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, box_area
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper
from transformers import PreTrainedModel, VitDetBackbone
from transformers import initialization as init
from transformers.models.vitdet.modeling_vitdet import VitDetAttention, VitDetEmbeddings, VitDetLayerNorm
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .configuration_vit_mae_robust_detection import ViTMAERobustInstanceSegmentationConfig
from .modeling_vit_mae_robust import class_before_sharding, sincos_position_embedding

# Of an anchor's or proposal's area within a crowd region, from where on it is not a negative.
CROWD_OVERLAP = 0.5
LEVELS = ("0", "1", "2", "3")


@dataclass
class InstanceSegmentationOutput(ModelOutput):
    """Args:
    loss: sum of the five parts, in training.
    loss_objectness, loss_rpn_box_reg, loss_classifier, loss_box_reg, loss_mask: the parts.
    scores (`(B, K)`): in evaluation; most confident first, 0 without a detection. K: `detections_per_image`.
    labels (`(B, K)`): classes from 0.
    pred_boxes (`(B, K, 4)`): in pixels of the input.
    pred_masks (`(B, K, 28, 28)`): probabilities within each box.
    image_sizes (`(B, 2)`): (height, width) of the part of each input that is image.
    """

    loss: torch.Tensor | None = None
    loss_objectness: torch.Tensor | None = None
    loss_rpn_box_reg: torch.Tensor | None = None
    loss_classifier: torch.Tensor | None = None
    loss_box_reg: torch.Tensor | None = None
    loss_mask: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    pred_masks: torch.Tensor | None = None
    image_sizes: torch.Tensor | None = None


# Of a number of channels.
Norm = Callable[[int], nn.Module]


def in_full_precision(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """`function`, as `nn.Module._apply` takes it, without lowering types: `.to(torch.bfloat16)` changes nothing,
    and `.to("cuda", torch.bfloat16)` moves the float32 values, which are not rounded."""

    def applied(tensor: torch.Tensor) -> torch.Tensor:
        result = function(tensor)
        is_lower = result.is_floating_point() and torch.finfo(result.dtype).bits < 32
        return tensor.to(result.device, torch.float32) if is_lower else result

    return applied


def norm_of(kind: str) -> Norm | None:
    """A constructor `(channels) -> module`, or None."""
    return {"batch": nn.BatchNorm2d, "layer": VitDetLayerNorm, "none": None}[kind]


class Encoder(VitDetBackbone):
    """transformers' backbone with MAE's initialisation: Xavier weights, sine-cosine positions, which train, and
    relative positions of zero."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, VitDetEmbeddings):
            weight, positions = module.projection.weight, module.position_embeddings
            init.copy_(weight, nn.init.xavier_uniform_(torch.empty_like(weight).flatten(1)).view_as(weight))
            init.zeros_(cast(torch.Tensor, module.projection.bias))
            config: Any = self.config  # transformers allows pairs as sizes; ours are numbers
            grid = (config.image_size // config.patch_size,) * 2
            init.copy_(positions, sincos_position_embedding(grid, config.hidden_size).to(positions))
        elif isinstance(module, VitDetAttention) and module.use_relative_position_embeddings:
            init.zeros_(module.rel_pos_h)
            init.zeros_(module.rel_pos_w)


class SeededSampler(BalancedPositiveNegativeSampler):
    """torchvision's, but what it takes from an image follows from that image's seed, where there is one: not from the
    rest of the batch, nor from what was drawn before."""

    seeds: list[int | None] | None = None

    def __call__(self, labels: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        chosen: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for number, of_image in enumerate(labels):
            seed = self.seeds[number] if self.seeds is not None else None
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            positive, negative = torch.where(of_image >= 1)[0], torch.where(of_image == 0)[0]
            num_positive = min(len(positive), int(self.batch_size_per_image * self.positive_fraction))
            num_negative = min(len(negative), self.batch_size_per_image - num_positive)
            for masks, indices, count in zip(chosen, (positive, negative), (num_positive, num_negative)):
                order = torch.randperm(len(indices), generator=generator)[:count].to(indices.device)
                mask = torch.zeros_like(of_image, dtype=torch.bool)
                mask[indices[order]] = True
                masks.append(mask)
        return chosen


def in_crowd(boxes: torch.Tensor, crowds: torch.Tensor) -> torch.Tensor:
    """`(n,)` bool: which boxes lie with more than half of their area in one of the crowd regions `(m, 4)`."""
    if not len(crowds):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    low = torch.max(boxes[:, None, :2], crowds[None, :, :2])
    high = torch.min(boxes[:, None, 2:], crowds[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    return (shared > CROWD_OVERLAP * box_area(boxes)[:, None]).any(dim=1)


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's, with losses that are means over images, and crowd regions that make no negatives."""

    def assign_targets_to_anchors(self, anchors: Any, targets: Any) -> tuple[Any, Any]:
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for of_image, anchors_of_image, target in zip(labels, anchors, targets):
            of_image[(of_image == 0) & in_crowd(anchors_of_image, target["ignored_boxes"])] = -1
        return labels, boxes

    def compute_loss(
        self, objectness: torch.Tensor, pred_bbox_deltas: torch.Tensor, labels: Any, regression_targets: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_images = len(labels)
        objectness_losses, box_losses = [], []
        for scores, deltas, target, box_target, positive, negative in zip(
            objectness.view(num_images, -1),
            pred_bbox_deltas.view(num_images, -1, 4),
            labels,
            regression_targets,
            *self.fg_bg_sampler(labels),
        ):
            sampled = positive | negative
            count = sampled.sum().clamp(min=1)
            objectness_losses.append(
                nn.functional.binary_cross_entropy_with_logits(scores[sampled], target[sampled], reduction="sum")
                / count
            )
            box_losses.append(
                nn.functional.smooth_l1_loss(deltas[positive], box_target[positive], beta=1 / 9, reduction="sum")
                / count
            )
        return torch.stack(objectness_losses).mean(), torch.stack(box_losses).mean()


class Heads(RoIHeads):
    """torchvision's, with losses that are means over images, and crowd regions that make no negatives."""

    def assign_targets_to_proposals(self, proposals: Any, gt_boxes: Any, gt_labels: Any) -> tuple[Any, Any]:
        matched, labels = super().assign_targets_to_proposals(proposals, gt_boxes, gt_labels)
        for of_image, boxes, crowds in zip(labels, proposals, self.crowds):
            of_image[(of_image == 0) & in_crowd(boxes, crowds)] = -1
        return matched, labels

    def losses(self, features: Any, proposals: Any, image_shapes: Any, targets: Any) -> dict[str, torch.Tensor]:
        self.crowds = [target["ignored_boxes"] for target in targets]
        proposals, matched, labels, box_targets = self.select_training_samples(proposals, targets)
        counts = [len(boxes) for boxes in proposals]
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits, deltas = self.box_predictor(box_features)
        parts = [
            fastrcnn_loss(*parts) if len(parts[0]) else (parts[0].sum(), parts[1].sum())
            for parts in zip(
                logits.split(counts),
                deltas.split(counts),
                [[of_image] for of_image in labels],
                [[of_image] for of_image in box_targets],
            )
        ]
        classifier, box_reg = (torch.stack(losses).mean() for losses in zip(*parts))

        positive = [torch.where(of_image > 0)[0] for of_image in labels]
        boxes = [of_image[index] for of_image, index in zip(proposals, positive)]
        matched = [of_image[index] for of_image, index in zip(matched, positive)]
        counts = [len(index) for index in positive]
        if not sum(counts):
            # A shared BatchNorm and DDP wait for the mask head of every process: a place of no weight goes through it.
            boxes[0], matched[0], counts[0] = proposals[0].new_tensor([[0.0, 0.0, 1.0, 1.0]]), positive[0], 1
        mask_logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, image_shapes)))
        mask = torch.stack(
            [
                maskrcnn_loss(of_image, [box], [target["masks"]], [target["labels"]], [index])
                if len(index)
                else of_image.sum() * 0
                for of_image, box, target, index in zip(mask_logits.split(counts), boxes, targets, matched)
            ]
        ).mean()
        return {"loss_classifier": classifier, "loss_box_reg": box_reg, "loss_mask": mask}


class RoIPooling(MultiScaleRoIAlign):
    """torchvision's, with the steps of the grids known from the patch size. torchvision's own guesses them, as powers
    of two, from the sizes of the images of the first batch it sees, and keeps the guess: among images that fill less
    than their padded squares it pools elsewhere.

    Boxes of 224 pixels go to the third level at patches of 16 (Lin et al. 2017), of other sizes in proportion.
    """

    def __init__(self, output_size: int, patch_size: int):
        super().__init__(list(LEVELS), output_size, sampling_ratio=2)
        self.scales = [4 / patch_size / 2**level for level in range(len(LEVELS))]
        self.map_levels = LevelMapper(2, 1 + len(LEVELS), canonical_scale=224 * patch_size / 16)


class Rescaling(nn.ModuleList):
    """Maps at 4, 2, 1 and 1/2 times the resolution of a ViT's, from four of its maps (Li et al. 2021), or four times
    the same one."""

    def __init__(self, dim: int, norm: Norm | None):
        super().__init__(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(dim, dim, 2, stride=2),
                    norm(dim) if norm else nn.Identity(),
                    nn.GELU(),
                    nn.ConvTranspose2d(dim, dim, 2, stride=2),
                ),
                nn.ConvTranspose2d(dim, dim, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return [module(of_level) for module, of_level in zip(self, maps)]


class SimplePyramid(nn.ModuleList):
    """ViTDet's: a 1 x 1 and a 3 x 3 convolution of each map, and the coarsest again at half its resolution."""

    def __init__(self, dim: int, channels: int, norm: Norm | None):
        def convolution(source: int, size: int) -> list[nn.Module]:
            steps: list[nn.Module] = [nn.Conv2d(source, channels, size, padding=size // 2, bias=norm is None)]
            return [*steps, norm(channels)] if norm else steps

        super().__init__([nn.Sequential(*convolution(dim, 1), *convolution(channels, 3)) for _ in LEVELS])

    def forward(self, maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        levels = OrderedDict((name, module(maps[name])) for name, module in zip(LEVELS, self))
        levels["pool"] = nn.functional.max_pool2d(levels[LEVELS[-1]], 1, stride=2)
        return levels


class ViTMAERobustForInstanceSegmentation(PreTrainedModel):
    """Mask R-CNN on a ViT whose blocks attend within windows, but for the last of each quarter; see
    [`ViTMAERobustInstanceSegmentationConfig`].

    The sine-cosine positions are those of MAE at the grid of `image_size`, and train. There is no CLS token and no
    final norm. Everything behind the encoder computes in float32, under autocast and in a model of half precision too:
    in bfloat16 anchors would be pixels off, and torchvision has no kernels for it.
    """

    config_class = ViTMAERobustInstanceSegmentationConfig
    config: ViTMAERobustInstanceSegmentationConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # transformers' own models have tuples too
    supports_gradient_checkpointing = True
    # By loading; `__init__` and `_apply` do the same for models that are built in half precision, or cast to it.
    _keep_in_fp32_modules_strict = ["rescaling", "pyramid", "rpn", "roi_heads"]

    def __init__(self, config: ViTMAERobustInstanceSegmentationConfig):
        super().__init__(config)
        num_classes = cast(int, config.num_labels) + 1  # and the background
        dim, channels, norm = config.hidden_size, config.fpn_channels, norm_of(config.head_norm)
        self.backbone = Encoder(config.backbone())
        self.rescaling = Rescaling(dim, norm)
        if config.pyramid == "adaptor":
            self.pyramid = FeaturePyramidNetwork([dim] * 4, channels, LastLevelMaxPool(), norm_layer=norm)
        else:
            self.pyramid = SimplePyramid(dim, channels, norm)
        # Level i has a cell every patch_size / 4 * 2**i pixels.
        sides = [config.anchor_scale * config.patch_size / 4 * 2**level for level in range(len(LEVELS) + 1)]
        anchors = AnchorGenerator(tuple((side,) for side in sides), ((0.5, 1.0, 2.0),) * len(sides))
        self.rpn = ProposalNetwork(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=config.rpn_num_convs),
            config.rpn_fg_iou_thresh,
            config.rpn_bg_iou_thresh,
            config.rpn_batch_size_per_image,
            config.rpn_positive_fraction,
            dict(zip(("training", "testing"), config.rpn_pre_nms_top_n)),
            dict(zip(("training", "testing"), config.rpn_post_nms_top_n)),
            config.rpn_nms_thresh,
        )
        convs = [channels] * config.box_num_convs
        self.roi_heads = Heads(
            RoIPooling(7, config.patch_size),
            FastRCNNConvFCHead((channels, 7, 7), convs, [config.box_fc_dim], norm_layer=norm),
            FastRCNNPredictor(config.box_fc_dim, num_classes),
            config.box_fg_iou_thresh,
            config.box_bg_iou_thresh,
            config.box_batch_size_per_image,
            config.box_positive_fraction,
            None,
            config.box_score_thresh,
            config.box_nms_thresh,
            config.detections_per_image,
            RoIPooling(14, config.patch_size),
            MaskRCNNHeads(channels, [channels] * config.mask_num_convs, 1, norm_layer=norm),
            MaskRCNNPredictor(channels, channels, num_classes),
        )
        for sampling in (self.rpn, self.roi_heads):
            sampler = sampling.fg_bg_sampler
            sampling.fg_bg_sampler = SeededSampler(sampler.batch_size_per_image, sampler.positive_fraction)
        head, predictor = self.rpn.head, self.roi_heads.box_predictor
        for layer in (*(block[0] for block in head.conv), head.cls_logits, head.bbox_pred, predictor.cls_score):
            layer.init_std = 0.01
        predictor.bbox_pred.init_std = 0.001
        for part in self._heads():
            part.float()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's; accelerate asks for them where it shards a model."""
        return self.backbone.get_input_embeddings()

    def _heads(self) -> list[nn.Module]:
        return [self.rescaling, self.pyramid, self.rpn, self.roi_heads]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "ViTMAERobustForInstanceSegmentation":
        """`.to()`, `.half()` and their kin may move the heads, but not lower their type."""
        if recurse:
            self.backbone._apply(fn)
            for part in self._heads():
                part._apply(in_full_precision(fn))
        return super()._apply(fn, recurse=False)

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        """The RPN and the last layers of the box head as detectron2's, convolutions as torchvision's mask head."""
        if hasattr(module, "init_std"):
            init.normal_(module.weight, std=module.init_std)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d, VitDetLayerNorm)):
            init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            norm: Any = module  # keeps statistics, though it need not
            init.zeros_(norm.running_mean)
            init.ones_(norm.running_var)
            init.zeros_(norm.num_batches_tracked)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> InstanceSegmentationOutput:
        """
        Args:
            pixel_values (`(B, C, H, W)`): normalised images, H and W multiples of the patch size, at the top left.
            pixel_mask (`(B, H, W)`, *optional*): 1 where there is image, 0 in the padding below and on the right,
                which is set to the mean colour.
            labels (*optional*, with it: the losses): for each image `boxes` `(n, 4)`, `class_labels` `(n,)` from 0,
                `masks` `(n, H, W)` of 0 and 1, and, if any, `ignored_boxes` `(m, 4)`, crowd regions in which nothing is
                taken for background, and `seed`, a number from which follows which anchors and proposals are sampled.

        Each part of the loss is a mean over an image's sampled anchors, proposals or masks, 0 where it has none, and
        then over the images, so that accumulated batches equal a large one. torchvision takes it over all of the batch
        at once.

        Raises ValueError for sizes that the patch size does not divide, or labels that do not fit the batch: boxes
        without area, unknown classes, masks of another size.
        """
        height, width = pixel_values.shape[-2:]
        if height % self.config.patch_size or width % self.config.patch_size:
            raise ValueError(
                f"Images of {height} x {width} pixels: not a multiple of patch_size={self.config.patch_size}."
            )
        if labels is not None and len(labels) != len(pixel_values):
            raise ValueError(f"{len(labels)} labels for {len(pixel_values)} images.")
        for number, target in enumerate(labels or ()):
            self._check(target, number, (height, width))
        if pixel_mask is None:
            pixel_mask = pixel_values.new_ones(len(pixel_values), height, width)
        mask = pixel_mask.bool()
        pixel_values = pixel_values * mask[:, None]
        sizes = torch.stack([mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)], dim=1)
        maps = self.backbone(pixel_values).feature_maps
        with torch.autocast(pixel_values.device.type, enabled=False):
            dtype = self.rpn.head.cls_logits.weight.dtype
            maps = [of_level.to(dtype) for of_level in (maps if len(maps) == 4 else maps * 4)]
            features = self.pyramid(OrderedDict(zip(LEVELS, self.rescaling(maps))))
            image_shapes = [tuple(size) for size in sizes.tolist()]
            images = ImageList(pixel_values.to(dtype), image_shapes)
            if labels is not None:
                return self._losses(images, features, labels, sizes)
            return self._detections(images, features, sizes)

    def _check(self, target: dict[str, torch.Tensor], number: int, size: tuple[int, int]) -> None:
        """Of what would end as a loss that is not a number, or be taken for something else in silence."""
        boxes, classes, masks = (target[name] for name in ("boxes", "class_labels", "masks"))
        if not len(boxes) == len(classes) == len(masks) or tuple(masks.shape[1:]) != size:
            raise ValueError(
                f"labels[{number}]: {len(boxes)} boxes, {len(classes)} classes and masks of shape {tuple(masks.shape)} "
                f"for an image of {size[0]} x {size[1]} pixels."
            )
        with_area = (boxes.isfinite().all(dim=1) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)).all()
        known = ((classes >= 0) & (classes < cast(int, self.config.num_labels))).all()
        if (with_area & known).item():  # looked up once: a GPU waits for it
            return
        if not with_area:
            raise ValueError(f"labels[{number}]: a box without area, or not of (x0, y0, x1, y1), in {boxes.tolist()}.")
        raise ValueError(f"labels[{number}]: classes {classes.tolist()}, and there are {self.config.num_labels}.")

    def _losses(
        self, images: ImageList, features: Any, labels: list[dict[str, torch.Tensor]], sizes: torch.Tensor
    ) -> InstanceSegmentationOutput:
        targets = [
            {
                "boxes": target["boxes"].float(),
                "labels": target["class_labels"] + 1,  # 0 is the background
                "masks": target["masks"],
                "ignored_boxes": target.get("ignored_boxes", target["boxes"][:0]).float(),
            }
            for target in labels
        ]
        seeds = [int(target["seed"]) if "seed" in target else None for target in labels]
        self.rpn.fg_bg_sampler.seeds = self.roi_heads.fg_bg_sampler.seeds = seeds
        was_training = self.rpn.training
        try:  # labels ask for losses, in evaluation mode too
            self.rpn.training = True
            proposals, losses = self.rpn(images, features, targets)
        finally:
            self.rpn.training = was_training
        losses |= self.roi_heads.losses(features, proposals, images.image_sizes, targets)
        return InstanceSegmentationOutput(loss=sum(losses.values()), **losses, image_sizes=sizes)

    def _detections(self, images: ImageList, features: Any, sizes: torch.Tensor) -> InstanceSegmentationOutput:
        was_training = self.training
        try:  # without labels there is nothing to train with
            self.rpn.training = self.roi_heads.training = False
            proposals, _ = self.rpn(images, features)
            found, _ = self.roi_heads(features, proposals, images.image_sizes)
        finally:
            self.rpn.training = self.roi_heads.training = was_training
        count = self.config.detections_per_image

        def padded(key: str, *shape: int) -> torch.Tensor:
            values = [of_image[key].view(-1, *shape) for of_image in found]
            return torch.stack([torch.cat([v, v.new_zeros(count - len(v), *shape)]) for v in values])

        return InstanceSegmentationOutput(
            scores=padded("scores"),
            labels=(padded("labels") - 1).clamp(min=0),
            pred_boxes=padded("boxes", 4),
            pred_masks=padded("masks", 28, 28),
            image_sizes=sizes,
        )

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers; config.json names all Auto classes that pipelines and users may ask for."""
        module = "modeling_vit_mae_robust_detection.ViTMAERobustForInstanceSegmentation"
        self.config.auto_map = {
            "AutoConfig": "configuration_vit_mae_robust_detection.ViTMAERobustInstanceSegmentationConfig",
            "AutoModelForObjectDetection": module,
            "AutoModelForInstanceSegmentation": module,
        }
        with class_before_sharding(self):
            super().save_pretrained(*args, **kwargs)


# Copies the files of this folder next to every checkpoint, for `trust_remote_code=True`.
ViTMAERobustForInstanceSegmentation.register_for_auto_class("AutoModelForObjectDetection")

__all__ = ["InstanceSegmentationOutput", "ViTMAERobustForInstanceSegmentation"]
