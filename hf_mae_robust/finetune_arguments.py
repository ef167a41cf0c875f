"""Command-line arguments of fine-tuning, beside those it shares with pre-training (arguments.py)."""

from dataclasses import dataclass, field
from typing import Literal

from transformers.trainer_utils import IntervalStrategy, SchedulerType

from .arguments import DataArguments, ImageTrainingArguments, RecipeArguments, option


@dataclass
class FinetuneModelArguments:
    """The pre-trained encoder, and what is put on it."""

    _argument_group_name = "model"

    task: Literal["classification"] = option("classification", "What to fine-tune for.")
    model_name_or_path: str | None = option(
        None,
        "Start from this encoder or classifier: Hub id or folder of ours, ViTMAE, ViT (so DINO, MoCo v3, iBOT), BEiT, "
        "data2vec, DeiT, MSN or DINOv2; or an official MAE file.",
    )
    from_scratch: bool = option(False, "Take only the sizes of --model_name_or_path (or of --config_overrides).")
    config_overrides: str | None = option(
        None,
        "With --from_scratch: settings such as 'image_size=64,patch_size=8'. For an official file: "
        "num_attention_heads=12.",
    )
    image_size: int | None = option(None, "Other than the encoder's; its positions are interpolated.")
    pooling: Literal["mean", "cls"] | None = option(
        None, "Classify the mean of the patch tokens or the CLS token (mean; with --linear_probe cls)."
    )
    drop_path_rate: float = option(0.1, "Stochastic depth of the last block; it grows linearly from 0.")
    linear_probe: bool = option(
        False,
        "Train BatchNorm and a linear layer on frozen features, with LARS. Without --config: the recipe "
        "linear_probe_vit_base.",
    )
    ignore_mismatched_sizes: bool = option(False, "Put a new head on a classifier of other classes.")
    attn_implementation: Literal["eager", "sdpa"] = option("sdpa", "Attention kernel.")
    trust_remote_code: bool = option(False, "Run code that a model repository brings along.")
    token: str | None = option(None, "Hub token; default: that of `hf auth login` or HF_TOKEN.")

    def __post_init__(self):
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"--drop_path_rate {self.drop_path_rate}: a probability below 1.")


@dataclass
class FinetuneDataArguments(DataArguments):
    """The images and their labels."""

    label_column_name: str = option(
        "auto", "Column with the labels; auto: 'label', or the only one of type ClassLabel."
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.08, 1.0],
        metadata={"help": "Random crops cover LO to HI of the image's area.", "nargs": 2},
    )


@dataclass
class AugmentationArguments:
    """timm's augmentation with MAE's settings (FINETUNE.md of facebookresearch/mae)."""

    _argument_group_name = "augmentation"

    augmentation: bool = option(
        True, "Off: training images are prepared as in evaluation, and a linear probe computes features only once."
    )
    auto_augment: str = option("rand-m9-mstd0.5-inc1", "timm's string for RandAugment and the like, or none.")
    random_erasing: float = option(0.25, "Probability of erasing a part of an image (with random pixels).")
    mixup: float = option(0.8, "Mixup's alpha; 0: off.")
    cutmix: float = option(1.0, "CutMix's alpha; 0: off.")
    mixup_prob: float = option(1.0, "Probability that a batch is mixed.")
    mixup_switch_prob: float = option(0.5, "Probability of CutMix instead of mixup, where both are on.")

    def __post_init__(self):
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)}: must not be negative.")
        for name in ("mixup_prob", "mixup_switch_prob", "random_erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} {getattr(self, name)}: a probability, from 0 to 1.")

    @property
    def mixes(self) -> bool:
        return self.augmentation and (self.mixup > 0 or self.cutmix > 0) and self.mixup_prob > 0


@dataclass
class FinetuneRecipeArguments(RecipeArguments):
    """MAE's rules for learning rates and warm-up; what to do with checkpoints; when to stop."""

    base_learning_rate: float = option(
        5e-4, "Learning rate of 256 images a step; the rate used is this x effective batch / 256."
    )
    min_learning_rate: float = option(1e-6, "Where the cosine ends (times the scale of each layer).")
    layer_decay: float = option(0.65, "Each layer learns so much slower than the one after it; 1: alike.")
    model_ema_decay: float | None = option(
        None, "Average the weights over the steps, and evaluate and keep the average (such as 0.9999); default: off."
    )
    early_stopping_patience: int | None = option(
        None, "Stop after so many evaluations without a better --metric_for_best_model; default: never."
    )
    eval_only: bool = option(False, "Evaluate --model_name_or_path, a classifier, and do not train.")

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer_decay {self.layer_decay:g}: must lie in (0, 1].")
        if self.model_ema_decay is not None and not 0 < self.model_ema_decay < 1:
            raise ValueError(f"--model_ema_decay {self.model_ema_decay}: must lie between 0 and 1.")
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"--early_stopping_patience {self.early_stopping_patience}: at least 1.")


@dataclass
class FinetuneTrainingArguments(ImageTrainingArguments):
    """`ImageTrainingArguments` with MAE's settings for fine-tuning (FINETUNE.md of facebookresearch/mae).

    Defaults that differ from the parent's: `output_dir` "outputs/finetune", `num_train_epochs` 100,
    `lr_scheduler_type` "cosine_with_min_lr" (the minimum is --min_learning_rate), `label_smoothing_factor` 0.1,
    `eval_strategy` "epoch", `metric_for_best_model` "accuracy".
    """

    output_dir: str | None = option("outputs/finetune", "Where checkpoints, the model, pictures and metrics go.")
    num_train_epochs: float = option(100, "Passes over the training images.")
    lr_scheduler_type: SchedulerType | str = option("cosine_with_min_lr", "Schedule after the warm-up, set per step.")
    label_smoothing_factor: float = option(0.1, "Share of the target that is spread over all classes.")
    eval_strategy: IntervalStrategy | str = option("epoch", "When to evaluate: no, steps, epoch.")
    metric_for_best_model: str | None = option(
        "accuracy", "Of accuracy, top5_accuracy and loss: what --load_best_model_at_end and early stopping look at."
    )
