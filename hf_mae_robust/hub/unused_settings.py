"""Settings of a run that have no effect in it: which, and why.

A fine-tuning has the flags of all tasks. Its command line names those that it was given in vain, and its model card
leaves them out.
"""

from collections.abc import Mapping
from typing import Any

# Not of a linear head on a frozen encoder.
OF_UPERNET = {"auxiliary_loss_weight", "relative_position_bias", "segmentation_channels"}
# Settings that not all tasks have.
_OF_TASKS = {
    "classification": {
        *("crop_scale", "crop_pct", "auto_augment", "random_erasing", "mixup", "cutmix", "mixup_prob"),
        *("mixup_switch_prob", "label_smoothing_factor", "pooling", "ignore_mismatched_sizes", "attn_implementation"),
    },
    "segmentation": {
        *("scale_range", "photometric_distortion", "do_reduce_labels", "ignore_index", "stride", "id2label"),
        *("num_pictures", "attn_implementation", *OF_UPERNET),
    },
    "detection": {
        *("scale_range", "pyramid", "window_size", "use_relative_position_embeddings", "head_norm"),
        *("detections_per_image", "id2label", "num_pictures"),
    },
}
_OF_AUGMENTATION = {
    *("crop_scale", "horizontal_flip", "vertical_flip", "rot90", "auto_augment", "random_erasing", "mixup", "cutmix"),
    *("mixup_prob", "mixup_switch_prob", "scale_range", "photometric_distortion"),
}
_OF_LORA = {"lora_alpha", "lora_dropout", "lora_target_modules"}
# Of a model that is evaluated as it is: they were decided when it was trained.
_OF_TRAINED_MODELS = {
    *_OF_AUGMENTATION,
    *_OF_LORA,
    *("augmentation", "lora_r", "layer_decay", "label_smoothing_factor"),
    *("base_learning_rate", "learning_rate", "min_learning_rate", "warmup_epochs", "warmup_steps", "weight_decay"),
    *("num_train_epochs", "max_steps", "lr_scheduler_type", "model_ema_decay", "early_stopping_patience"),
    *("auxiliary_loss_weight", "max_train_samples", "gradient_accumulation_steps", "per_device_train_batch_size"),
    *("pooling", "drop_path_rate", "ignore_mismatched_sizes", "relative_position_bias", "segmentation_channels"),
    *("pyramid", "window_size", "use_relative_position_embeddings", "head_norm", "detections_per_image"),
}


def without_effect(run: Mapping[str, Any]) -> dict[str, str]:
    """Settings that the task of a run, or another of its settings, has no use for.

    Args:
        run: settings by name: the flags of a fine-tuning, or its record. What is not there is taken for off; of `task`,
            for a run to which nothing of this applies (pre-training).

    Returns:
        for each of them why, as the end of "--NAME has no effect ...": "with --task detection".
    """
    unused: dict[str, str] = {}
    if (task := run.get("task")) in _OF_TASKS:
        others = set().union(*_OF_TASKS.values()) - _OF_TASKS[task]
        unused |= dict.fromkeys(others, f"with --task {task}")
    if run.get("augmentation") is False:
        unused |= dict.fromkeys(_OF_AUGMENTATION, "with --no_augmentation")
    for flag, is_on in (
        ("--linear_probe", run.get("linear_probe")),
        (f"--probe {run.get('probe')}", run.get("probe")),
        ("--freeze_encoder", run.get("freeze_encoder")),
    ):
        if is_on:
            unused |= dict.fromkeys(("layer_decay", "drop_path_rate"), f"with {flag}")
    if run.get("freeze_encoder"):
        unused |= dict.fromkeys(OF_UPERNET, "with --freeze_encoder")
    schedule = run.get("lr_scheduler_type")
    schedule = getattr(schedule, "value", schedule)
    if schedule != "cosine_with_min_lr":
        unused["min_learning_rate"] = f"with --lr_scheduler_type {schedule}"
    if "lora_r" in run and run["lora_r"] is None:
        unused |= dict.fromkeys(_OF_LORA, "without --lora_r")
    if run.get("eval_only"):
        unused |= dict.fromkeys(_OF_TRAINED_MODELS, "with --eval_only, which takes the model as it was trained")
    return unused


def notes_on_unused(given: set[str], flags: Mapping[str, Any]) -> list[str]:
    """A sentence for each reason for which flags of the command line have no effect.

    given: names of the flags that stand on the command line; flags: the values of all flags, by name.
    """
    by_reason: dict[str, list[str]] = {}
    unused = without_effect(flags)
    if "lr_scheduler_kwargs" in given:  # in a record they are also what --min_learning_rate has become
        unused["min_learning_rate"] = "beside --lr_scheduler_kwargs"
    for name, reason in unused.items():
        if name in given:
            by_reason.setdefault(reason, []).append(f"--{name}")
    return [
        f"{', '.join(sorted(names))} {'has' if len(names) == 1 else 'have'} no effect {reason}."
        for reason, names in by_reason.items()
    ]
