"""Detection and instance segmentation: Mask R-CNN on a plain ViT (Li et al. 2021; the paper's Table 3)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ...conversion.encoders import open_config
from ...conversion.finetuned import nothing_to_evaluate
from ...conversion.pixels import Pixels
from ...conversion.source import ModelSource
from ...data.labels import read_id2label
from ...data.source import ImageSource
from ...errors import UserError
from ...model import ViTMAERobustDetectionImageProcessor
from ...training.parser import parse_config_overrides
from ..arguments import FinetuneArguments
from ..task import FinetuningTask
from .layouts import object_splits
from .metrics import save_pictures
from .models import DetectorSettings, detector_for_evaluation, detector_from_encoder, detector_from_scratch
from .objects import find_objects
from .trainer import DetectionTrainer
from .transforms import DetectionEvaluationTransform, LargeScaleJitter

DEFAULT_SCALE_RANGE = (0.1, 2.0)
SETTINGS = ("pyramid", "window_size", "use_relative_position_embeddings", "head_norm", "detections_per_image")


class DetectionTask(FinetuningTask[DetectionTrainer]):
    """Mask R-CNN on the encoder."""

    name = "detection"
    loss = "sum of Mask R-CNN's five parts"
    metrics = tuple(
        f"{part}_ap{which}" for part in ("box", "mask") for which in ("", "50", "75", "_small", "_medium", "_large")
    )
    small_recipe = "mask_rcnn_small"
    takes_bands = False

    def source_options(self, arguments: FinetuneArguments) -> dict[str, Any]:
        names = None
        if arguments.data.id2label is not None:
            by_number = read_id2label(arguments.data.id2label)
            names = [by_number.get(i, f"class_{i}") for i in range(max(by_number) + 1)]
        return {
            "find_labels": lambda features, wanted, description, _: find_objects(features, wanted, description, names),
            "find_splits": object_splits,
        }

    def check_settings(self, arguments: FinetuneArguments) -> None:
        super().check_settings(arguments)
        if arguments.model.inflate_channels is not None:
            raise UserError("--inflate_channels is not for --task detection, which is for 8-bit images.")

    def look_at_images(self, arguments: FinetuneArguments, source: ImageSource, checkpoint: str | None) -> None:
        """What they hold does not decide over the model: they are read as 8-bit pictures."""

    def check_model(self, arguments: FinetuneArguments) -> None:
        """Before the data are opened: their objects are looked for in vain where the model takes none of them."""
        model = arguments.model
        if model.model_name_or_path is None:
            return
        config = open_config(ModelSource.of(model, {}))
        if config is not None and getattr(config, "is_band_model", False):
            raise UserError(
                f"--task detection is for 8-bit images, and {model.model_name_or_path} was trained on images of "
                f"{config.num_channels} bands in other units. Mark the objects in maps and use --task segmentation."
            )

    def build_model(self, arguments: FinetuneArguments, class_names: Sequence[str]) -> tuple[PreTrainedModel, Pixels]:
        model, detection = arguments.model, arguments.detection
        source = ModelSource.of(model, parse_config_overrides(model.config_overrides))
        if arguments.recipe.eval_only:
            if model.from_scratch:
                raise nothing_to_evaluate("detector")
            return self.as_trained(arguments, detector_for_evaluation(source, class_names))
        settings = DetectorSettings(
            image_size=model.image_size or DetectorSettings.image_size,
            drop_path_rate=model.drop_path_rate,
            fields={name: getattr(detection, name) for name in SETTINGS},
        )
        build = detector_from_scratch if model.from_scratch else detector_from_encoder
        return build(source, class_names, settings)

    def make_trainer(
        self,
        arguments: FinetuneArguments,
        model: PreTrainedModel,
        pixels: Pixels,
        class_names: Sequence[str],
        **common: Any,
    ) -> DetectionTrainer:
        if pixels.band_form is not None:
            raise UserError(
                f"--task detection is for 8-bit images, and {arguments.model.model_name_or_path} was trained on images "
                f"of {pixels.num_channels} bands in other units. Mark the objects in maps and use --task segmentation."
            )
        augmentation, side = arguments.augmentation, model.config.image_size
        processor = ViTMAERobustDetectionImageProcessor(
            size={"shortest_edge": side, "longest_edge": side},
            pad_size={"height": side, "width": side},
            image_mean=list(pixels.image_mean),
            image_std=list(pixels.image_std),
        )
        recipe: dict[str, Any] = {}
        if not arguments.recipe.eval_only:
            augments = augmentation.augmentation
            low, high = augmentation.scale_range or DEFAULT_SCALE_RANGE
            recipe = {
                "layer_decay": arguments.recipe.layer_decay,
                "train_transform": LargeScaleJitter(
                    side,
                    (low, high) if augments else (1.0, 1.0),
                    arguments.data.horizontal_flip and augments,
                    arguments.data.vertical_flip and augments,
                    arguments.data.rot90 and augments,
                ),
            }
        return DetectionTrainer(
            model=model,
            processing_class=processor,
            eval_transform=DetectionEvaluationTransform(processor),
            num_pictures=arguments.recipe.num_pictures,
            class_names=class_names,
            num_channels=pixels.num_channels,
            **recipe,
            **common,
        )

    def describe_details(self, trainer: DetectionTrainer, arguments: FinetuneArguments) -> str:
        config = trainer.model.config
        shape = f"{config.image_size} px, patch {config.patch_size}, windows of {config.window_size} patches"
        if arguments.recipe.eval_only:
            return shape
        scale = trainer.train_transform.scale_range
        return (
            f"{shape}, pyramid {config.pyramid}; scale {scale[0]:g} to {scale[1]:g}, "
            f"layer decay {trainer.layer_decay:g}, drop path {config.drop_path_rate:g}"
        )

    def report(self, trainer: DetectionTrainer) -> tuple[str, list[str]]:
        output_dir = Path(trainer.args.output_dir)
        if not trainer.results_of_classes:
            return "", []
        (output_dir / "classes.json").write_text(json.dumps({"classes": trainer.results_of_classes}) + "\n")
        files = ["classes.json"]
        if trainer.pictures:
            save_pictures(trainer.pictures, trainer.class_names, output_dir / "predictions.png")
            files.append("predictions.png")
        results = json.loads((output_dir / "all_results.json").read_text())
        return f"Box AP {results['eval_box_ap']:.4f}, mask AP {results['eval_mask_ap']:.4f}.", files
