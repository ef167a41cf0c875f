"""Flags of run_pretrain.py."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..errors import UserError
from ..training.arguments import DataArguments, ImageTrainingArguments, RecipeArguments, option
from ..training.ranges import check_ranges
from .resolution import EXAMPLE, ResolutionSchedule

DEFAULT_RECIPE = "digits"
# Of --diagnostics; also sub-commands of `python -m hf_mae_robust analyze`.
DIAGNOSTICS = ("features", "attention", "loss_map")
# Flags that are fields of ViTMAERobustConfig of the same name.
CONFIG_FLAGS = (
    "mask_ratio",
    "target_normalization",
    "norm_pix_loss",
    "norm_pix_axis",
    "decoder_attention_probs_dropout_prob",
    "mid_mask_ratio",
    "mid_mask_layer_idx",
    "decoder_keep_ratio",
)


@dataclass
class ModelArguments:
    """The model and the paper's three ingredients. None leaves a setting as the checkpoint or the default has it."""

    _argument_group_name = "model"

    model_name_or_path: str | None = option(
        None, "Start from this checkpoint (ours or a stock ViTMAE one: Hub id or folder) instead of from scratch."
    )
    encoder_from: str | None = option(
        None,
        "Start from this encoder of any kind that `convert` takes, or a classifier of ours: Hub id, folder or official "
        "file. A decoder that is there is kept.",
    )
    checkpoint_key: str | None = option(
        None, "With --encoder_from: which model of a file that holds several, such as teacher.backbone."
    )
    config_overrides: str | None = option(
        None, "Settings of ViTMAERobustConfig, such as 'image_size=32,patch_size=4,hidden_size=192'."
    )
    mask_ratio: float | None = option(None, "Share of the patches that are masked (0.75).")
    target_normalization: Literal["none", "global_rgb", "global_patch"] | None = option(
        None, "Population statistics of the target, applied before the per-patch step (global_rgb)."
    )
    target_statistics: str | None = option(
        None,
        "With --target_normalization global_patch: 'auto' computes the statistics of the training images (and caches "
        "them); a path takes a file written by `python -m hf_mae_robust statistics`; 'none' undoes a recipe's.",
    )
    norm_pix_loss: bool | None = option(
        None, "Normalise each patch of the target with its own mean and variance (true).", nargs="?", const=True
    )
    decoder_attention_probs_dropout_prob: float | None = option(
        None, "Drop edge: dropout of the decoder's attention probabilities (0.3)."
    )
    mid_mask_ratio: float | None = option(
        None, "Share of all patches that join inside the encoder as mid-level mask tokens (0; the paper's study: 0.25)."
    )
    mid_mask_layer_idx: int | None = option(None, "Block (0-based) before which they join (8).")
    decoder_keep_ratio: float | None = option(
        None,
        "Share of the masked patches, drawn at random, that the decoder reconstructs in training (1: all); evaluation "
        "takes all.",
    )
    norm_pix_axis: Literal["patch", "channel"] | None = option(
        None,
        "With --norm_pix_loss: normalise all numbers of a patch together (patch, as MAE), or each of its channels by "
        "itself (channel, as VideoMAE); default: patch.",
    )
    inflate_channels: Literal["mean", "repeat", "zero_new"] | None = option(
        None,
        "Start from a model of 8-bit images for images of bands: the patch projection takes the mean of its old "
        "weights for each band, repeats them, or keeps them and adds zeros.",
    )
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "drop_edge_cpu"] | None = option(
        None, "Attention kernel; default: drop_edge_cpu on a CPU without --torch_compile, else sdpa."
    )
    model_revision: str | None = option(None, "Branch, tag or commit of a model on the Hub.")
    trust_remote_code: bool = option(False, "Run code that a model repository brings along.")
    token: str | None = option(None, "Hub token; default: that of `hf auth login` or HF_TOKEN.")

    def __post_init__(self) -> None:
        check_ranges(vars(self))
        if self.encoder_from is not None and self.model_name_or_path is None:
            self.model_name_or_path = self.encoder_from.removeprefix("local-dir:").removeprefix("hf-hub:")
        if self.target_statistics == "none":
            self.target_statistics = None


@dataclass
class MAETrainingArguments(ImageTrainingArguments):
    """`ImageTrainingArguments` with MAE's settings for pre-training (PRETRAIN.md of facebookresearch/mae).

    Defaults that differ from the parent's: `output_dir` "outputs/pretrain", `num_train_epochs` 800, `adam_beta2` 0.95.
    """

    output_dir: str = option("outputs/pretrain", "Where checkpoints, the model, pictures and metrics go.")
    num_train_epochs: float = option(800, "Passes over the training images.")
    adam_beta2: float = option(0.95, "AdamW's second beta.")
    repeated_augmentation: int = option(
        1,
        "Put N crops of each image into a batch and decode it once, where decoding is the bottleneck. An epoch "
        "still passes over all images, and so has N times the steps.",
    )
    resolution_schedule: str | None = option(
        None,
        f"Train on smaller images first: image size, and up to which share of the steps, such as {EXAMPLE}. The last "
        "size is the model's, which evaluation always has. 'none' undoes a recipe's.",
        metavar="SIZE:SHARE,...",
    )
    decoder_warmup_steps: float = option(
        0,
        "With a checkpoint to start from: the decoder alone learns in the first N steps (below 1: in that share of "
        "all), on the frozen encoder.",
    )
    layer_decay: float = option(
        1.0, "Learning rate of each block relative to the next one; the decoder has the full rate. 1: all have it."
    )
    freeze_blocks: int | None = option(
        None, "With a checkpoint to start from: its embeddings and first N blocks stay as they are. 0: the embeddings."
    )
    diagnostics_steps: float = option(
        0,
        "Before the first step, every N steps (below 1: a share of all) and after the last: what happens between "
        "the tokens (similarity, rank, attention, ...). 0: never.",
    )
    diagnostics: list[str] = field(
        default_factory=lambda: [*DIAGNOSTICS],
        metadata={
            "help": "With --diagnostics_steps: what to look at, of features (and tokens by block), attention, loss_map "
            "(the loss by place); none: only what --label_column_name adds.",
            "choices": (*DIAGNOSTICS, "none"),
        },
    )
    diagnostics_samples: int = option(512, "With --diagnostics_steps: images to look at.")
    label_column_name: str | None = option(
        None,
        "With --diagnostics_steps: also nearest neighbours and a linear probe, by this column (or auto).",
    )
    probe_samples: int = option(2000, "With --label_column_name: images to learn from, and as many others to classify.")
    dry_run: bool = option(
        False,
        "Print what the run would cost (parameters, tokens, operations, memory, steps, hours), and train nothing.",
    )
    images_per_second: float | None = option(None, "With --dry_run: the speed to count the hours with.")

    @property
    def resolution(self) -> ResolutionSchedule | None:
        """Of --resolution_schedule; None: all steps have images of the size of the model."""
        text = self.resolution_schedule
        return None if text is None else ResolutionSchedule.parse(text)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diagnostics_steps > 1 and self.diagnostics_steps != int(self.diagnostics_steps):
            raise UserError(f"--diagnostics_steps {self.diagnostics_steps:g}: above 1, a whole number of steps.")
        if self.decoder_warmup_steps > 1 and self.decoder_warmup_steps != int(self.decoder_warmup_steps):
            raise UserError(f"--decoder_warmup_steps {self.decoder_warmup_steps:g}: above 1, a whole number of steps.")
        if self.resolution_schedule == "none":
            self.resolution_schedule = None
        if self.label_smoothing_factor:
            raise UserError(f"--label_smoothing_factor {self.label_smoothing_factor:g}: pre-training has no labels.")
        _ = self.resolution  # refuses what is no schedule
        self.diagnostics = [name for name in self.diagnostics if name != "none"]
        if self.label_column_name is not None and not self.diagnostics_steps:
            raise UserError("--label_column_name is for --diagnostics_steps; pre-training itself needs no labels.")


class PretrainArguments(NamedTuple):
    """All flags of run_pretrain.py."""

    model: ModelArguments
    data: DataArguments
    recipe: RecipeArguments
    training: MAETrainingArguments
