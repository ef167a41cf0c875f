"""Semantic segmentation: UperNet, after mmsegmentation's MAE on ADE20K (the paper's Table 4)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel, SegformerImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from ...conversion.finetuned import LINEAR_HEAD, nothing_to_evaluate
from ...conversion.pixels import Pixels
from ...errors import UserError
from ..arguments import FinetuneArguments
from ..image_settings import model_source, pixels_for
from ..task import FinetuningTask
from .linear_head import (
    FrozenSegmentationTrainer,
    LinearSegmenter,
    has_linear_head,
    linear_segmenter,
    linear_segmenter_for_evaluation,
)
from .maps import find_maps
from .metrics import save_classes, save_overlays, segmentation_metrics
from .models import (
    DEFAULT_IMAGE_SIZE,
    SegmenterSettings,
    segmenter_for_evaluation,
    segmenter_from_encoder,
    segmenter_from_scratch,
)
from .trainer import SegmentationTrainer
from .transforms import SegmentationEvaluationTransform, SegmentationTransform

DEFAULT_SCALE_RANGE = (0.5, 2.0)


def encoder_config(model: Any) -> Any:
    """Of a UperNet that of its backbone; of a linear head that of the frozen encoder."""
    return getattr(model.config, "backbone_config", None) or model.config


class SegmentationTask(FinetuningTask[SegmentationTrainer]):
    """UperNet on the encoder, or a linear head on the frozen one."""

    name = "segmentation"
    loss = "cross-entropy a pixel, of both heads"
    metrics = ("mean_iou", "mean_accuracy", "pixel_accuracy")
    small_recipe = "upernet_small"

    def source_options(self, arguments: FinetuneArguments) -> dict[str, Any]:
        data, segmentation = arguments.data, arguments.segmentation
        find = partial(
            find_maps,
            id2label=data.id2label,
            folder=data.dataset_name,
            do_reduce_labels=segmentation.do_reduce_labels,
            ignore_index=segmentation.ignore_index,
        )
        return {"find_labels": lambda features, wanted, description, read_column: find(features, wanted, description)}

    def build_model(self, arguments: FinetuneArguments, class_names: Sequence[str]) -> tuple[PreTrainedModel, Pixels]:
        model, segmentation = arguments.model, arguments.segmentation
        source = model_source(arguments, self.settings_of_images)
        if arguments.recipe.eval_only:
            if model.from_scratch:
                raise nothing_to_evaluate("segmenter")
            if has_linear_head(source):
                linear, pixels = linear_segmenter_for_evaluation(source, class_names)
                return self.as_trained(arguments, (cast(PreTrainedModel, linear), pixels))
            return self.as_trained(arguments, segmenter_for_evaluation(source, class_names))
        size = model.image_size or DEFAULT_IMAGE_SIZE
        if model.freeze_encoder:
            linear, pixels = linear_segmenter(
                source, class_names, size, model.attn_implementation, from_scratch=model.from_scratch
            )
            return cast(PreTrainedModel, linear), pixels_for(pixels, self.settings_of_images)
        settings = SegmenterSettings(
            image_size=size,
            drop_path_rate=model.drop_path_rate,
            relative_position_bias=segmentation.relative_position_bias,
            auxiliary_loss_weight=segmentation.auxiliary_loss_weight,
            channels=segmentation.segmentation_channels,
            attn_implementation=model.attn_implementation,
        )
        build = segmenter_from_scratch if model.from_scratch else segmenter_from_encoder
        segmenter, pixels = build(source, class_names, settings)
        return segmenter, pixels_for(pixels, self.settings_of_images)

    def record(self, arguments: FinetuneArguments, model: PreTrainedModel) -> dict[str, Any]:
        record = super().record(arguments, model)
        return {**record, "freeze_encoder": True} if arguments.model.freeze_encoder else record

    def make_trainer(
        self,
        arguments: FinetuneArguments,
        model: PreTrainedModel,
        pixels: Pixels,
        class_names: Sequence[str],
        **common: Any,
    ) -> SegmentationTrainer:
        augmentation, segmentation = arguments.augmentation, arguments.segmentation
        size = encoder_config(model).image_size
        # For pipelines, which scale each image to the size of a crop.
        square = {"height": size, "width": size}
        processor: BaseImageProcessor
        if pixels.band_form is None:
            statistics: dict[str, Any] = {"image_mean": list(pixels.image_mean), "image_std": list(pixels.image_std)}
            processor = SegformerImageProcessor(size=square, **statistics)
        else:
            processor = pixels.processor(size, 1.0, arguments.data.show_bands)
            processor.size, processor.do_center_crop = square, False
        recipe: dict[str, Any]
        if arguments.recipe.eval_only:
            recipe = {}
        else:
            no_change = not augmentation.augmentation
            low, high = augmentation.scale_range or DEFAULT_SCALE_RANGE
            recipe = {
                "layer_decay": arguments.recipe.layer_decay,
                "train_transform": SegmentationTransform(
                    size,
                    (1.0, 1.0) if no_change else (low, high),
                    arguments.data.horizontal_flip and not no_change,
                    augmentation.photometric_distortion and not no_change,
                    pixels.image_mean,
                    arguments.data.vertical_flip and not no_change,
                    arguments.data.rot90 and not no_change,
                    normalized=pixels.band_form is not None,
                ),
            }
        if segmentation.stride is not None and segmentation.stride > size:
            raise UserError(f"--stride {segmentation.stride}: windows of {size} pixels would leave gaps.")
        trainer_class = FrozenSegmentationTrainer if isinstance(model, LinearSegmenter) else SegmentationTrainer
        return trainer_class(
            model=model,
            processing_class=processor,
            eval_transform=SegmentationEvaluationTransform(size),
            crop_size=size,
            stride=segmentation.stride or max(1, size * 2 // 3),
            num_pictures=arguments.recipe.num_pictures,
            class_names=class_names,
            num_channels=pixels.num_channels,
            **recipe,
            **common,
        )

    def describe_details(self, trainer: SegmentationTrainer, arguments: FinetuneArguments) -> str:
        config = encoder_config(trainer.model)
        size, patch = trainer.crop_size, config.patch_size
        windows = f"windows of {size} px every {trainer.stride} px"
        if arguments.recipe.eval_only:
            return windows
        scale, drop_path_rate = trainer.train_transform.scale_range, config.drop_path_rate
        trained = f"layer decay {trainer.layer_decay:g}, drop path {drop_path_rate:g}"
        if arguments.model.freeze_encoder:
            trained = "a linear layer on the frozen encoder"
        return (
            f"crops of {size} px at scale {scale[0]:g} to {scale[1]:g}, patch {patch}; {trained}; "
            f"evaluation with {windows}"
        )

    def report(self, trainer: SegmentationTrainer) -> tuple[str, list[str]]:
        output_dir = Path(trainer.args.output_dir)
        if trainer.confusion is None:
            return "", []
        save_classes(trainer.confusion, trainer.class_names, output_dir)
        files = ["classes.png", "classes.json"]
        if isinstance(trainer, FrozenSegmentationTrainer) and trainer.train_dataset is not None:
            files.insert(0, LINEAR_HEAD)
        if trainer.pictures:
            save_overlays(trainer.pictures, trainer.class_names, output_dir / "predictions.png")
            files.append("predictions.png")
        if not trainer.confusion.any():
            return "No mean IoU: every pixel of the evaluation is ignored.", files
        return f"Mean IoU {segmentation_metrics(trainer.confusion)['mean_iou']:.4f}.", files
