"""Configuration of Mask R-CNN on a plain ViT."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, VitDetConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


@strict
class ViTMAERobustInstanceSegmentationConfig(PreTrainedConfig):
    """Settings of [`ViTMAERobustForInstanceSegmentation`]: Mask R-CNN on a ViT with windows (Li et al. 2021,
    "Benchmarking Detection Transfer Learning with Vision Transformers"; ViTDet, Li et al. 2022, for
    `pyramid="simple"`).

    Args:
        image_size: side of the square that images are fitted into, in pixels; a multiple of `patch_size`.
        patch_size, num_channels, hidden_size, num_hidden_layers, num_attention_heads, mlp_ratio, hidden_act,
        layer_norm_eps, drop_path_rate: of the encoder. Drop path grows linearly from 0.
        window_size: patches a side within which blocks attend, all but the last of each quarter; 0: all to all.
        use_relative_position_embeddings: in each block, starting at zero.
        pyramid: "adaptor": maps at 4, 2, 1 and 1/2 times the resolution of the patches, from the last blocks of the
            four quarters, and an FPN; "simple": all four from the last block, without a top-down path.
        fpn_channels, rpn_num_convs, box_num_convs, box_fc_dim, mask_num_convs: of the heads.
        head_norm: "batch" (Li et al. 2021; for large batches), "layer" (over channels, ViTDet) or "none", in pyramid,
            box head and mask head.
        anchor_scale: side of the square anchors, in steps of the grid of their level.
        rpn_pre_nms_top_n, rpn_post_nms_top_n: (in training, in evaluation), of each level and image, of each image.
        rpn_nms_thresh, rpn_fg_iou_thresh, rpn_bg_iou_thresh, rpn_batch_size_per_image, rpn_positive_fraction,
        box_score_thresh, box_nms_thresh, box_fg_iou_thresh, box_bg_iou_thresh, box_batch_size_per_image,
        box_positive_fraction: as torchvision's Mask R-CNN.
        detections_per_image: objects found in an image, at most.
        image_mean, image_std: of `pixel_values`, for values in [0, 1].

    Raises ValueError (or the error of a strict dataclass) for values out of their range.
    """

    model_type = "vit_mae_robust_detection"

    image_size: int = 1024
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: int = 4
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    window_size: int = 16
    use_relative_position_embeddings: bool = True
    pyramid: Literal["adaptor", "simple"] = "adaptor"
    fpn_channels: int = 256
    head_norm: Literal["batch", "layer", "none"] = "layer"
    rpn_num_convs: int = 2
    box_num_convs: int = 4
    box_fc_dim: int = 1024
    mask_num_convs: int = 4
    anchor_scale: float | int = 8
    rpn_pre_nms_top_n: list[int] | tuple[int, ...] = (2000, 1000)
    rpn_post_nms_top_n: list[int] | tuple[int, ...] = (1000, 1000)
    rpn_nms_thresh: float = 0.7
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    box_score_thresh: float = 0.05
    box_nms_thresh: float = 0.5
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25
    detections_per_image: int = 100
    image_mean: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)

    def __post_init__(self, **kwargs: Any) -> None:
        positive: tuple[str, ...]
        positive = ("image_size", "patch_size", "num_channels", "hidden_size", "num_attention_heads", "fpn_channels")
        positive += ("box_fc_dim", "rpn_batch_size_per_image", "box_batch_size_per_image", "detections_per_image")
        positive += ("mlp_ratio", "rpn_num_convs")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1.")
        for name in ("window_size", "box_num_convs", "mask_num_convs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative.")
        for name in ("anchor_scale", "layer_norm_eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: must be positive.")
        shares: tuple[str, ...]
        shares = ("rpn_nms_thresh", "rpn_fg_iou_thresh", "rpn_bg_iou_thresh", "rpn_positive_fraction")
        shares += ("box_nms_thresh", "box_fg_iou_thresh", "box_bg_iou_thresh", "box_positive_fraction")
        for name in (*shares, "box_score_thresh"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: between 0 and 1.")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate}: at least 0, and below 1.")
        for part in ("rpn", "box"):
            low, high = (getattr(self, f"{part}_{which}_iou_thresh") for which in ("bg", "fg"))
            if low > high:
                raise ValueError(f"{part}_bg_iou_thresh={low} is above {part}_fg_iou_thresh={high}.")
        for name in ("rpn_pre_nms_top_n", "rpn_post_nms_top_n"):
            if len(getattr(self, name)) != 2 or min(getattr(self, name)) < 1:
                raise ValueError(f"{name}={list(getattr(self, name))}: two numbers, of training and of evaluation.")
        if self.num_hidden_layers < 4:
            raise ValueError(f"num_hidden_layers={self.num_hidden_layers}: the pyramid needs four blocks at least.")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}."
            )
        for name in ("image_mean", "image_std"):
            if len(getattr(self, name)) != self.num_channels:
                raise ValueError(f"{name} has {len(getattr(self, name))} numbers for num_channels={self.num_channels}.")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std={list(self.image_std)}: must be positive.")
        super().__post_init__(**kwargs)

    @property
    def ends_of_quarters(self) -> list[int]:
        """Blocks, counted from 1, which attend to all patches, and whose outputs the adaptor takes."""
        return [max(1, round(self.num_hidden_layers * quarter / 4)) for quarter in (1, 2, 3, 4)]

    def backbone(self) -> VitDetConfig:
        """The settings of the encoder, for transformers' `VitDetBackbone`."""
        ends = self.ends_of_quarters
        same: tuple[str, ...]
        same = ("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads")
        same += ("mlp_ratio", "hidden_act", "layer_norm_eps", "drop_path_rate", "window_size", "initializer_range")
        same += ("use_relative_position_embeddings",)
        settings: dict[str, Any] = {name: getattr(self, name) for name in same}
        settings["out_indices"] = ends if self.pyramid == "adaptor" else [self.num_hidden_layers]
        return VitDetConfig(
            **settings,
            pretrain_image_size=self.image_size,
            window_block_indices=[i for i in range(self.num_hidden_layers) if self.window_size and i + 1 not in ends],
        )


ViTMAERobustInstanceSegmentationConfig.register_for_auto_class()

__all__ = ["ViTMAERobustInstanceSegmentationConfig"]
