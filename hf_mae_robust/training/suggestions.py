"""What an unknown flag was meant to be: names that are nearly right, and those of the official MAE code."""

import difflib
from collections.abc import Sequence

# Flags of facebookresearch/mae (main_pretrain.py, main_finetune.py, main_linprobe.py) and of the Hugging Face examples
# that have another name here. The first of several that a script has is suggested.
OTHER_NAMES = {
    "accum_iter": ("gradient_accumulation_steps",),
    "aa": ("auto_augment",),
    "batch_size": ("per_device_train_batch_size",),
    "blr": ("base_learning_rate",),
    "clip_grad": ("max_grad_norm",),
    "cls_token": ("pooling",),
    "data": ("dataset_name",),
    "data_dir": ("dataset_name",),
    "data_path": ("dataset_name",),
    "dataset": ("dataset_name",),
    "device": ("use_cpu",),
    "drop_path": ("drop_path_rate",),
    "epochs": ("num_train_epochs",),
    "eval": ("eval_only",),
    "eval_batch_size": ("per_device_eval_batch_size",),
    "finetune": ("model_name_or_path",),
    "global_pool": ("pooling",),
    "image_size": ("config_overrides",),
    "img_size": ("image_size", "config_overrides"),
    "input_size": ("image_size", "config_overrides"),
    "log_dir": ("report_to",),
    "logging_dir": ("report_to",),
    "lr": ("learning_rate",),
    "min_lr": ("min_learning_rate", "lr_scheduler_kwargs"),
    "model": ("config",),
    "num_workers": ("dataloader_num_workers",),
    "patch_size": ("config_overrides",),
    "pin_mem": ("dataloader_pin_memory",),
    "no_pin_mem": ("no_dataloader_pin_memory",),
    "no_cuda": ("use_cpu",),
    "reprob": ("random_erasing",),
    "resume": ("resume_from_checkpoint",),
    "smoothing": ("label_smoothing_factor",),
    "train_batch_size": ("per_device_train_batch_size",),
    "train_dir": ("dataset_name",),
    "warmup_ratio": ("warmup_steps",),
    "workers": ("dataloader_num_workers",),
}
# Where no flag has the same meaning, or one that takes other values.
_LAUNCH = "torchrun --nproc_per_node 8, before the script, sets the number of processes"
_TIMM = "timm's default is used"
ADVICE = {
    "model": "'--config vit_base_mae_800ep' or another recipe, or --config_overrides hidden_size=...",
    "world_size": _LAUNCH,
    "dist_url": _LAUNCH,
    "dist_on_itp": _LAUNCH,
    "dist_eval": "evaluation is always shared by all processes",
    "start_epoch": "a run resumes by itself from the newest checkpoint in --output_dir",
    "nb_classes": "the data name their classes",
    "color_jitter": "--auto_augment does this",
    "remode": _TIMM,
    "recount": _TIMM,
    "resplit": _TIMM,
    "mixup_mode": _TIMM,
    "cutmix_minmax": _TIMM,
    "global_pool": "'--pooling mean'",
    "cls_token": "'--pooling cls'",
}
# A key of recipes -> the only script that has it.
SCRIPT_OF_KEY = {
    "task": "run_finetune.py",
    "target_normalization": "run_pretrain.py",
    "encoder_from": "run_pretrain.py",
    "decoder_warmup_steps": "run_pretrain.py",
}


def suggest(word: str, flags: Sequence[str]) -> str:
    """What to add to "unknown `word`": a name of `flags`, an advice, or nothing. Dashes before the name stay."""
    name = word.lstrip("-").replace("-", "_")
    dashes = word[: len(word) - len(word.lstrip("-"))]
    known = {flag.lstrip("-"): flag for flag in flags}
    if name.startswith("no_") and name not in OTHER_NAMES and (positive := name.removeprefix("no_")) in known:
        return f" (did you mean '{known[positive]} false'?)"
    if not dashes and "=" in word and "config_overrides" in known:
        return " (a part of --config_overrides? Write its settings without spaces: image_size=64,patch_size=8)"
    if name in ADVICE:
        return f" (here: {ADVICE[name]})"
    for other in (name, *OTHER_NAMES.get(name, ())):
        if other in known:
            size = "patch_size" if name == "patch_size" else "image_size"
            example = f" {size}=..." if other == "config_overrides" and name != other else ""
            return f" (did you mean '{known[other]}{example}'?)"
    if name in OTHER_NAMES and dashes:  # all of them are in the other script
        return f" (run_finetune.py has --{OTHER_NAMES[name][0]})"
    close = difflib.get_close_matches(dashes + name, flags, n=1, cutoff=0.75)
    return f" (did you mean '{close[0]}'?)" if close else ""
