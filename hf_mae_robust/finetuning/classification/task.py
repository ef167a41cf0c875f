"""Image classification: fine-tuning and linear probes with MAE's recipes (official code: main_finetune.py,
main_linprobe.py)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from timm.data import Mixup
from transformers import PreTrainedModel, TimmWrapperForImageClassification

from ...conversion.pixels import Pixels, read_processor
from ...data.preprocessing import EvaluationTransform
from ...errors import UserError
from ...hub.run_record import in_millions
from ...model.configuration_vit_mae_robust import to_pair
from ...training.intervals import accuracy_interval
from ...training.predictions import PREDICTIONS
from ..arguments import AugmentationArguments, FinetuneArguments, FinetuneTrainingArguments
from ..image_settings import model_source, pixels_for
from ..task import FinetuningTask
from .attentive_probe import AttentiveProbeTrainer, attentive_probe, check_kind
from .augmentation import BandFinetuningTransform, FinetuningTransform
from .linear_probe import LinearProbe, ProbeTrainer
from .metrics import save_confusion
from .models import (
    HEAD_STD,
    PROBE_HEAD_STD,
    ClassifierSettings,
    classifier_for_evaluation,
    classifier_from_checkpoint,
    classifier_from_scratch,
)
from .trainer import ClassificationTrainer

if TYPE_CHECKING:  # peft is optional
    from peft import PeftModel


class ClassificationTask(FinetuningTask[ClassificationTrainer]):
    """Fine-tuning, linear or attentive probe, or LoRA."""

    name = "classification"
    loss = "cross-entropy"
    metrics = ("accuracy", "top5_accuracy", "loss")

    def build_model(self, arguments: FinetuneArguments, class_names: Sequence[str]) -> tuple[PreTrainedModel, Pixels]:
        model = arguments.model
        source = model_source(arguments, self.settings_of_images)
        if arguments.recipe.eval_only:
            if model.from_scratch:
                raise UserError("--eval_only needs a trained classifier; leave out --from_scratch.")
            return self.as_trained(arguments, classifier_for_evaluation(source, class_names, model.attn_implementation))
        is_attentive = model.probe == "attentive"
        is_probe = model.linear_probe or is_attentive
        if is_attentive:
            check_kind(source)
        settings = ClassifierSettings(
            image_size=model.image_size,
            pooling="cls" if is_probe and model.pooling is None else model.pooling,
            drop_path_rate=0.0 if is_probe else model.drop_path_rate,
            head_std=PROBE_HEAD_STD if is_probe else HEAD_STD,
            new_head=model.ignore_mismatched_sizes,
            attn_implementation=model.attn_implementation,
        )
        build = classifier_from_scratch if model.from_scratch else classifier_from_checkpoint
        classifier, pixels = build(source, class_names, settings)
        pixels = pixels_for(pixels, self.settings_of_images)
        if model.lora_r is not None:
            from .lora import add_adapter, base_folder  # peft is optional

            adapter = (model.lora_r, model.lora_alpha, model.lora_dropout, model.lora_target_modules)
            adapted: Any = add_adapter(classifier, *adapter, base=base_folder(arguments.training))
            return adapted, pixels  # wraps the classifier, and answers to the same names
        return attentive_probe(classifier, PROBE_HEAD_STD) if is_attentive else classifier, pixels

    def record(self, arguments: FinetuneArguments, model: PreTrainedModel) -> dict[str, Any]:
        record = super().record(arguments, model)
        if arguments.model.lora_r is not None:
            from .lora import record_of_adapter  # peft is optional

            record["lora"] = record_of_adapter(cast("PeftModel", model))
        if arguments.model.probe == "attentive":
            record["probe"] = "attentive"
        return record

    def make_trainer(
        self,
        arguments: FinetuneArguments,
        model: PreTrainedModel,
        pixels: Pixels,
        class_names: Sequence[str],
        **common: Any,
    ) -> ClassificationTrainer:
        data, augmentation, recipe = arguments.data, arguments.augmentation, arguments.recipe
        common |= {"class_names": class_names, "num_channels": pixels.num_channels}
        if recipe.eval_only:
            # What it was evaluated with when it was trained, whatever --crop_pct is.
            processor = read_processor(cast(str, arguments.model.model_name_or_path), arguments.model.token)
            if processor is None:
                processor = pixels.processor(model.config.image_size, data.crop_pct, data.show_bands)
            return ClassificationTrainer(model=model, processing_class=processor, **common)
        processor = pixels.processor(model.config.image_size, data.crop_pct, data.show_bands)
        transform: Any = EvaluationTransform(processor)
        if augmentation.augmentation:
            settings: dict[str, Any] = {
                "crop_scale": (data.crop_scale[0], data.crop_scale[1]),
                "horizontal_flip": data.horizontal_flip,
                "auto_augment": None if augmentation.auto_augment == "none" else augmentation.auto_augment,
                "random_erasing": augmentation.random_erasing,
                "single_draw": arguments.model.linear_probe,
                "vertical_flip": data.vertical_flip,
                "rot90": data.rot90,
            }
            size = model.config.image_size
            if pixels.band_form is None:
                transform = FinetuningTransform(size, pixels.image_mean, pixels.image_std, **settings)
            else:
                transform = BandFinetuningTransform(size, **settings)
        common |= {
            "processing_class": processor,
            "train_transform": transform,
            "mixup": build_mixup(augmentation, arguments.training, len(class_names)),
            "label_smoothing": arguments.training.label_smoothing_factor,
        }
        if arguments.model.lora_r is not None:
            from .lora import LoraTrainer  # peft is optional

            if recipe.model_ema_decay is not None:
                raise UserError("--model_ema_decay is not for --lora_r.")
            return LoraTrainer(model=cast("PeftModel", model), layer_decay=recipe.layer_decay, **common)
        if arguments.model.probe == "attentive":
            return AttentiveProbeTrainer(model=cast(TimmWrapperForImageClassification, model), **common)
        if not arguments.model.linear_probe:
            return ClassificationTrainer(
                model=model, layer_decay=recipe.layer_decay, ema_decay=recipe.model_ema_decay, **common
            )
        if recipe.model_ema_decay is not None:
            raise UserError("--model_ema_decay is not for --linear_probe.")
        trainer = ProbeTrainer(model=LinearProbe(model), **common)
        if not augmentation.augmentation and trainer.train_source.row_groups is not None:
            trainer.cache_features()
        return trainer

    def describe_details(self, trainer: ClassificationTrainer, arguments: FinetuneArguments) -> str:
        augmentation, config = arguments.augmentation, trainer.model.config
        if arguments.recipe.eval_only:
            return f"{trainer.eval_transform}"
        image, patch = ("x".join(map(str, to_pair(size))) for size in (config.image_size, config.patch_size))
        uses_mean = getattr(config, "use_mean_pooling", None)
        pooling = "" if uses_mean is None else f", {'mean' if uses_mean else 'CLS'} pooling"
        details = f"layer decay {trainer.layer_decay:g}, drop path {getattr(config, 'drop_path_rate', 0):g}, "
        details = "linear probe with LARS, " if arguments.model.linear_probe else details
        if arguments.model.probe == "attentive":
            trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
            details = f"attentive probe of {in_millions(trained)} parameters, "
        if arguments.model.lora_r is not None:
            from .lora import share_trained  # peft is optional

            targets = ", ".join(arguments.model.lora_target_modules)
            share = share_trained(trainer.model)
            details = (
                f"LoRA of rank {arguments.model.lora_r} on {targets}, {share:.2%} of the parameters train, {details}"
            )
        shown = f"{augmentation.auto_augment}, random erasing {augmentation.random_erasing:g}"
        shown += f", mixup {augmentation.mixup:g}, CutMix {augmentation.cutmix:g}" if augmentation.mixes else ""
        details += shown if augmentation.augmentation else "no augmentation"
        return f"{image} px, patch {patch}{pooling}; {details}"

    def report(self, trainer: ClassificationTrainer) -> tuple[str, list[str]]:
        output_dir = Path(trainer.args.output_dir)
        if trainer.labels is None or trainer.predicted is None or trainer.predictions is None:
            return "", []
        trainer.predictions.write(output_dir / PREDICTIONS, trainer.class_names)
        save_confusion(trainer.predicted, trainer.labels, trainer.class_names, output_dir)
        hits = trainer.predicted == trainer.labels
        low, high = accuracy_interval(hits)
        sentence = f"Accuracy {hits.mean():.4f} (95% interval {low:.4f} to {high:.4f})."
        return sentence, [PREDICTIONS, "confusion_matrix.png", "confusion_matrix.json", *trainer.MORE_FOLDERS]


def build_mixup(
    arguments: AugmentationArguments, training: FinetuneTrainingArguments, num_classes: int
) -> Mixup | None:
    """timm's, or None where it is off. Raises ValueError for a batch that does not fall into pairs."""
    if not arguments.mixes:
        return None
    if training.train_batch_size % 2:
        raise UserError(
            f"--per_device_train_batch_size {training.train_batch_size}: mixup and CutMix need an even number; or turn "
            "them off with --mixup 0 --cutmix 0."
        )
    return Mixup(
        mixup_alpha=arguments.mixup,
        cutmix_alpha=arguments.cutmix,
        prob=arguments.mixup_prob,
        switch_prob=arguments.mixup_switch_prob,
        label_smoothing=training.label_smoothing_factor,
        num_classes=num_classes,
    )
