"""Image classification: fine-tuning and linear probes with MAE's recipes (official code: main_finetune.py,
main_linprobe.py)."""

import json
from dataclasses import asdict
from pathlib import Path

from timm.data import Mixup
from transformers import EarlyStoppingCallback, PreTrainedModel, set_seed

from ..arguments import parse_config_overrides
from ..augmentation import FinetuningTransform
from ..classification_trainer import ClassificationTrainer
from ..classifiers import HEAD_STD, PROBE_HEAD_STD, Pixels, build_classifier, read_processor
from ..diagnostics import save_loss_plot
from ..finetune_arguments import (
    AugmentationArguments,
    FinetuneDataArguments,
    FinetuneModelArguments,
    FinetuneRecipeArguments,
    FinetuneTrainingArguments,
)
from ..metrics import save_confusion
from ..model.configuration_vit_mae_robust import to_pair
from ..probes import LinearProbe, ProbeTrainer
from ..resume import check_config
from ..running import (
    accept,
    agree_on_checkpoint,
    begin,
    check_can_evaluate,
    describe_length,
    evaluate_and_save,
    open_sources,
    pin_revision,
    record_of,
    report_skipped_images,
    say,
    set_schedule,
    start_anew_if_asked,
    train_and_save,
    warn_of_stream,
)
from ..transforms import EvaluationTransform, evaluation_processor

MIN_LR_SCHEDULE = "cosine_with_min_lr"


def build_model(
    arguments: FinetuneModelArguments, class_names: tuple[str, ...], eval_only: bool
) -> tuple[PreTrainedModel, Pixels]:
    pooling = arguments.pooling
    if arguments.linear_probe and pooling is None and not eval_only:
        pooling = "cls"
    return build_classifier(
        arguments.model_name_or_path,
        class_names,
        from_scratch=arguments.from_scratch,
        overrides=parse_config_overrides(arguments.config_overrides),
        image_size=arguments.image_size,
        pooling=pooling,
        drop_path_rate=0.0 if arguments.linear_probe or eval_only else arguments.drop_path_rate,
        head_std=PROBE_HEAD_STD if arguments.linear_probe else HEAD_STD,
        new_head=arguments.ignore_mismatched_sizes,
        needs_head=eval_only,
        attn_implementation=arguments.attn_implementation,
        trust_remote_code=arguments.trust_remote_code,
        token=arguments.token,
    )


def build_mixup(
    arguments: AugmentationArguments, training: FinetuneTrainingArguments, num_classes: int
) -> Mixup | None:
    """timm's, or None where it is off. Raises ValueError for a batch that does not fall into pairs."""
    if not arguments.mixes:
        return None
    if training.train_batch_size % 2:
        raise ValueError(
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


def set_minimum_rate(recipe: FinetuneRecipeArguments, training: FinetuneTrainingArguments) -> None:
    """Hand --min_learning_rate to the schedule, which scales it in each layer as it does the peak."""
    if str(training.lr_scheduler_type).rpartition(".")[2].lower() != MIN_LR_SCHEDULE or training.lr_scheduler_kwargs:
        return
    if not 0 <= recipe.min_learning_rate <= training.learning_rate:
        raise ValueError(
            f"--min_learning_rate {recipe.min_learning_rate:g}: must lie between 0 and the peak, which is "
            f"{training.learning_rate:g} (--base_learning_rate x effective batch / 256)."
        )
    training.lr_scheduler_kwargs = {"min_lr": recipe.min_learning_rate}


def describe_run(trainer: ClassificationTrainer, start: str, augmentation: AugmentationArguments) -> str:
    """One line: what is trained on what."""
    model, is_probe = trainer.model, isinstance(trainer, ProbeTrainer)
    config = model.config
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    image, patch = ("x".join(map(str, to_pair(size))) for size in (config.image_size, config.patch_size))
    uses_mean = getattr(config, "use_mean_pooling", None)
    pooling = "" if uses_mean is None else f", {'mean' if uses_mean else 'CLS'} pooling"
    details = f"layer decay {trainer.layer_decay:g}, drop path {getattr(config, 'drop_path_rate', 0):g}, "
    details = "LARS, " if is_probe else details
    shown = f"{augmentation.auto_augment}, random erasing {augmentation.random_erasing:g}"
    shown += f", mixup {augmentation.mixup:g}, CutMix {augmentation.cutmix:g}" if augmentation.mixes else ""
    details += shown if augmentation.augmentation else "no augmentation"
    return (
        f"{'Linear probe of' if is_probe else 'Fine-tuning'} {start} ({config.model_type} {config.hidden_size}x"
        f"{config.num_hidden_layers}, {millions:.3g} M parameters; {image} px, patch {patch}{pooling}; {details}) for "
        f"{len(trainer.class_names)} classes on {describe_length(trainer)}"
    )


def prepare(
    model_arguments: FinetuneModelArguments,
    data_arguments: FinetuneDataArguments,
    augmentation: AugmentationArguments,
    recipe: FinetuneRecipeArguments,
    training: FinetuneTrainingArguments,
) -> tuple[ClassificationTrainer, str | None]:
    """Everything up to the first step, its line of description included."""
    begin(training)
    if recipe.eval_only:
        return _prepare_evaluation(model_arguments, data_arguments, training), None
    checkpoint = agree_on_checkpoint(recipe, training)
    pin_revision(data_arguments, checkpoint)
    train_source, eval_source = open_sources(data_arguments, model_arguments.token, training.seed)
    check_can_evaluate(train_source, eval_source, training)
    class_names, is_probe = train_source.class_names, model_arguments.linear_probe
    mixup = build_mixup(augmentation, training, len(class_names))
    set_schedule(train_source, recipe, training)
    set_minimum_rate(recipe, training)
    model, pixels = build_model(model_arguments, class_names, eval_only=False)
    if checkpoint:
        check_config(Path(checkpoint), model.config)
    record = record_of(
        training,
        data_arguments,
        train_source,
        **asdict(augmentation),
        **{name: getattr(recipe, name) for name in ("layer_decay", "min_learning_rate", "model_ema_decay")},
        label_smoothing_factor=training.label_smoothing_factor,
        linear_probe=is_probe,
    )
    is_elastic = accept(checkpoint, record, recipe)
    processor = evaluation_processor(model.config.image_size, data_arguments.crop_pct, **asdict(pixels))
    transform = EvaluationTransform(processor)
    if augmentation.augmentation:
        transform = FinetuningTransform(
            model.config.image_size,
            pixels.image_mean,
            pixels.image_std,
            tuple(data_arguments.crop_scale),
            data_arguments.horizontal_flip,
            None if augmentation.auto_augment == "none" else augmentation.auto_augment,
            augmentation.random_erasing,
        )
    options = {} if is_probe else {"layer_decay": recipe.layer_decay, "ema_decay": recipe.model_ema_decay}
    if is_probe and recipe.model_ema_decay is not None:
        raise ValueError("--model_ema_decay is not for --linear_probe.")
    trainer = (ProbeTrainer if is_probe else ClassificationTrainer)(
        model=LinearProbe(model) if is_probe else model,
        args=training,
        class_names=class_names,
        train_source=train_source,
        eval_source=eval_source,
        processing_class=processor,
        train_transform=transform,
        num_channels=pixels.num_channels,
        mixup=mixup,
        label_smoothing=training.label_smoothing_factor,
        shuffle_buffer_size=data_arguments.shuffle_buffer_size,
        record=record,
        allow_elastic_resume=is_elastic,
        max_bad_images=data_arguments.max_bad_images,
        skip_nonfinite_steps=recipe.skip_nonfinite_steps,
        **options,
    )
    if recipe.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping_patience))
    start = "from scratch" if model_arguments.from_scratch else model_arguments.model_name_or_path
    say(describe_run(trainer, start, augmentation))
    warn_of_stream(train_source, data_arguments)
    if is_probe and not augmentation.augmentation and train_source.row_groups is not None:
        trainer.cache_features()
    set_seed(training.seed)
    start_anew_if_asked(recipe, training)
    return trainer, checkpoint


def _prepare_evaluation(
    model_arguments: FinetuneModelArguments, data_arguments: FinetuneDataArguments, training: FinetuneTrainingArguments
) -> ClassificationTrainer:
    _, source = open_sources(data_arguments, model_arguments.token, training.seed, eval_only=True)
    if source is None:
        raise ValueError("--eval_only: there is no split to evaluate on; name one with --eval_split_name.")
    model, pixels = build_model(model_arguments, source.class_names, eval_only=True)
    name = model_arguments.model_name_or_path
    # What it was evaluated with when it was trained, whatever --crop_pct is.
    processor = read_processor(name, model_arguments.token)
    if processor is None:
        processor = evaluation_processor(model.config.image_size, data_arguments.crop_pct, **asdict(pixels))
    say(f"Evaluating {name} on {source.description} ({EvaluationTransform(processor)})")
    return ClassificationTrainer(
        model=model,
        args=training,
        class_names=source.class_names,
        eval_source=source,
        processing_class=processor,
        num_channels=pixels.num_channels,
        max_bad_images=data_arguments.max_bad_images,
    )


def run(trainer: ClassificationTrainer, checkpoint: str | None) -> None:
    """Train, evaluate, and fill the output folder."""
    output_dir = Path(trainer.args.output_dir)
    trains = trainer.train_dataset is not None
    if trains:
        train_and_save(trainer, checkpoint)
    if trainer.eval_dataset is not None:
        evaluate_and_save(trainer)
    if trainer.is_world_process_zero():
        if trains:
            save_loss_plot(trainer.state.log_history, output_dir / "loss.png", "cross-entropy")
        if trainer.labels is not None:
            save_confusion(trainer.predicted, trainer.labels, trainer.class_names, output_dir)
        report_skipped_images(trainer)
        results = json.loads((output_dir / "all_results.json").read_text())
        accuracy = f" Accuracy {results['eval_accuracy']:.4f}." if trainer.labels is not None else ""
        model = "the model, loss.png, " if trains else ""
        say(f"Done.{accuracy} {output_dir} holds {model}confusion_matrix.png and .json, and all_results.json.")
