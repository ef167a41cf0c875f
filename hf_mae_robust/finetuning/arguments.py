"""Command-line arguments of fine-tuning, beside those it shares with pre-training (training/arguments.py)."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.utils import is_peft_available

from ..errors import UserError
from ..training.arguments import DataArguments, ImageTrainingArguments, RecipeArguments, option
from ..training.overrides import parse_config_overrides
from ..training.ranges import check_ranges


@dataclass
class FinetuneModelArguments:
    """The pre-trained encoder, and what is put on it."""

    _argument_group_name = "model"

    task: Literal["classification", "segmentation", "detection"] = option("classification", "What to fine-tune for.")
    model_name_or_path: str | None = option(
        None,
        "Start from this encoder or fine-tuned model: Hub id or folder of ours, ViTMAE, ViT (so DINO, MoCo v3, iBOT), "
        "MSN; for classification also BEiT, data2vec, DeiT or DINOv2; or an official MAE file.",
    )
    inflate_channels: Literal["mean", "repeat", "zero_new"] | None = option(
        None,
        "Start from a model of 8-bit images (--model_name_or_path) for images of bands: the patch projection takes the "
        "mean of its old weights for each band, repeats them, or keeps them and adds zeros.",
    )
    from_scratch: bool = option(False, "Take only the sizes of --model_name_or_path (or of --config_overrides).")
    config_overrides: str | None = option(
        None,
        "With --from_scratch: settings such as 'image_size=64,patch_size=8'. For an official file: "
        "num_attention_heads=12. For detection also settings of the heads, such as 'fpn_channels=64'.",
    )
    image_size: int | None = option(
        None,
        "Other than the encoder's; its positions are interpolated. Segmentation: the crop (512); detection: the "
        "square that images are fitted into (1024).",
    )
    pooling: Literal["mean", "cls"] | None = option(
        None, "Classify the mean of the patch tokens or the CLS token (mean; with --linear_probe cls)."
    )
    drop_path_rate: float = option(0.1, "Stochastic depth of the last block; it grows linearly from 0.")
    linear_probe: bool = option(
        False,
        "Train BatchNorm and a linear layer on frozen features, with LARS. Without --config: the recipe "
        "linear_probe_vit_base.",
    )
    probe: Literal["linear", "attentive"] | None = option(
        None,
        "linear: the same as --linear_probe. attentive: train timm's attention pooling of the patch tokens and a "
        "linear layer on the frozen encoder, with AdamW. Without --config: the recipe attentive_probe_vit_base.",
    )
    freeze_encoder: bool = option(
        False,
        "Segmentation: train a linear layer on the patch tokens of the frozen encoder instead of UperNet. Without "
        "--config: the recipe frozen_segmentation_vit_base.",
    )
    lora_r: int | None = option(
        None,
        "Classification: leave the encoder as it is, and train LoRA matrices of this rank beside its linear layers "
        "(peft), the head and the norm before it; default: off.",
    )
    lora_alpha: float = option(16, "LoRA: the product of the matrices is scaled by this / rank.")
    lora_dropout: float = option(0.0, "LoRA: dropout of the input of the matrices.")
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "v_proj"],
        metadata={"help": "LoRA: names of the linear layers in each block, or all-linear.", "nargs": "+"},
    )
    ignore_mismatched_sizes: bool = option(False, "Put a new head on a classifier of other classes.")
    attn_implementation: Literal["eager", "sdpa"] = option("sdpa", "Attention kernel.")
    model_revision: str | None = option(None, "Branch, tag or commit of a model on the Hub.")
    trust_remote_code: bool = option(False, "Run code that a model repository brings along.")
    token: str | None = option(None, "Hub token; default: that of `hf auth login` or HF_TOKEN.")

    def __post_init__(self) -> None:
        check_ranges(vars(self))
        overrides = parse_config_overrides(self.config_overrides)
        if self.image_size is not None and overrides.get("image_size", self.image_size) != self.image_size:
            raise UserError(
                f"--config_overrides image_size={overrides['image_size']} contradicts --image_size {self.image_size}. "
                "Give one size, as --image_size."
            )
        if self.probe == "attentive" and self.linear_probe:
            raise UserError("--probe attentive contradicts --linear_probe (or that of the --config file). Give one.")
        self.linear_probe = self.linear_probe or self.probe == "linear"
        if self.lora_r is None:
            return
        if self.probe == "attentive":
            raise UserError("--lora_r is not for --probe attentive, which leaves the encoder as it is.")
        if self.linear_probe or self.task != "classification":
            raise UserError("--lora_r works only with --task classification, and not together with --linear_probe.")
        if not is_peft_available():
            raise UserError('--lora_r needs peft: pip install ".[peft]", in a clone of hf_mae_robust.')


@dataclass
class FinetuneDataArguments(DataArguments):
    """The images and their labels."""

    label_column_name: str = option(
        "auto",
        "Column with the labels. auto: 'label', the only one of type ClassLabel, or 'cls'; for segmentation "
        "'annotation', or the only other image column; for detection 'objects'.",
    )
    id2label: str | None = option(
        None,
        'Segmentation and detection: JSON file with the names of the classes, {"0": "sky", ...}, where the data do '
        "not name them; or their number. Default, for segmentation: id2label.json beside the data.",
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
    scale_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "Segmentation and detection: images are scaled by a random factor of LO to HI before they are "
            "cropped (0.5 2; 0.1 2).",
            "nargs": 2,
        },
    )
    photometric_distortion: bool = option(True, "Segmentation: distort brightness, contrast and colours at random.")

    def __post_init__(self) -> None:
        check_ranges(vars(self))
        if self.scale_range is not None and not (
            len(self.scale_range) == 2 and 0 < self.scale_range[0] <= self.scale_range[1]
        ):
            raise UserError(f"--scale_range {self.scale_range}: needs 0 < LO <= HI.")

    @property
    def mixes(self) -> bool:
        return self.augmentation and (self.mixup > 0 or self.cutmix > 0) and self.mixup_prob > 0


@dataclass
class SegmentationArguments:
    """UperNet on BEiT's backbone, after mmsegmentation's MAE on ADE20K."""

    _argument_group_name = "segmentation"

    do_reduce_labels: bool = option(False, "0 in the maps is not a class, and 1 is the first one (as in ADE20K).")
    ignore_index: int = option(255, "Value in the maps that is left out of loss and metrics, beside 255.")
    stride: int | None = option(
        None, "Pixels by which evaluation slides a window of the crop's size over the image (2/3 of the crop)."
    )
    auxiliary_loss_weight: float = option(0.4, "Weight of the loss of the auxiliary head.")
    relative_position_bias: bool = option(False, "Add BEiT's relative positions, from zero, to each block.")
    segmentation_channels: int = option(512, "Channels of UperNet's head.")

    def __post_init__(self) -> None:
        check_ranges(vars(self))


@dataclass
class DetectionArguments:
    """Mask R-CNN on a ViT with windows (Li et al. 2021)."""

    _argument_group_name = "detection"

    pyramid: Literal["adaptor", "simple"] = option(
        "adaptor", "Four scales from the outputs of four blocks (Li et al. 2021), or from the last one's (ViTDet)."
    )
    window_size: int = option(16, "Patches a side within which all blocks but four attend; 0: all attend to all.")
    use_relative_position_embeddings: bool = option(True, "Relative positions, from zero, in each block.")
    head_norm: Literal["batch", "layer", "none"] = option(
        "layer", "Norm in pyramid, box head and mask head; batch is for large batches."
    )
    detections_per_image: int = option(100, "Objects to find in an image, at most; COCO's AP takes 100.")

    def __post_init__(self) -> None:
        check_ranges(vars(self))


@dataclass
class FinetuneRecipeArguments(RecipeArguments):
    """MAE's rules for learning rates and warm-up; what to do with checkpoints; when to stop."""

    base_learning_rate: float = option(
        5e-4, "Learning rate of 256 images a step; the rate used is this x effective batch / 256."
    )
    min_learning_rate: float = option(
        1e-6, "Where the cosine (cosine_with_min_lr) ends, times the scale of each layer."
    )
    layer_decay: float = option(0.65, "Learning rate of each layer, as a share of the next one's; 1: all the same.")
    model_ema_decay: float | None = option(
        None, "Average the weights over the steps, and evaluate and keep the average (such as 0.9999); default: off."
    )
    early_stopping_patience: int | None = option(
        None, "Stop after N evaluations without a better --metric_for_best_model; default: never."
    )
    eval_only: bool = option(False, "Evaluate --model_name_or_path, which was fine-tuned, and do not train.")
    num_pictures: int = option(
        8, "Segmentation and detection: images of the evaluation whose predictions are drawn (predictions.png)."
    )


@dataclass
class FinetuneTrainingArguments(ImageTrainingArguments):
    """`ImageTrainingArguments` with MAE's settings for fine-tuning (FINETUNE.md of facebookresearch/mae).

    Defaults that differ from the parent's: `output_dir` "outputs/finetune", `num_train_epochs` 100,
    `lr_scheduler_type` "cosine_with_min_lr" (the minimum is --min_learning_rate), `label_smoothing_factor` 0.1,
    `eval_strategy` "epoch", `metric_for_best_model` "accuracy".
    """

    output_dir: str = option("outputs/finetune", "Where checkpoints, the model, pictures and metrics go.")
    num_train_epochs: float = option(100, "Passes over the training images.")
    lr_scheduler_type: SchedulerType | str = option("cosine_with_min_lr", "Schedule after the warm-up, set per step.")
    label_smoothing_factor: float = option(0.1, "Share of the target that is spread over all classes.")
    eval_strategy: IntervalStrategy | str = option("epoch", "When to evaluate: no, steps, epoch.")
    metric_for_best_model: str | None = option(
        "accuracy", "Of accuracy, top5_accuracy and loss: what --load_best_model_at_end and early stopping look at."
    )


class FinetuneArguments(NamedTuple):
    """All flags of run_finetune.py. The groups of the tasks that are not `model.task` have no effect."""

    model: FinetuneModelArguments
    data: FinetuneDataArguments
    augmentation: AugmentationArguments
    segmentation: SegmentationArguments
    detection: DetectionArguments
    recipe: FinetuneRecipeArguments
    training: FinetuneTrainingArguments
