"""The paper's tables and its Figure 2 as studies, and some of our own: which variants are compared, and with which
flags."""

from dataclasses import dataclass, field, replace
from typing import Any

from ..paper import FIGURES

# What all variants leave off but for their own flags: MAE, whose target is normalised by channel, then by patch.
BASELINE = {
    "target_normalization": "global_rgb",
    "target_statistics": "none",
    "norm_pix_loss": True,
    "decoder_attention_probs_dropout_prob": 0.0,
    "mid_mask_ratio": 0.0,
}
DROP_EDGE = {"decoder_attention_probs_dropout_prob": 0.3}
GLOBAL_PATCH = {"target_normalization": "global_patch", "target_statistics": "auto"}


@dataclass(frozen=True)
class Variant:
    """name: of its folders. label: in reports. changes: flags of run_pretrain that differ from BASELINE; None: no
    pre-training. recipe: for `--scale paper`; the changes are added to that of the baseline. by_scale: further flags of
    run_pretrain. epochs: by scale, how many times those of the others. tuned: whose learning rate of LEARNING_RATES it
    has at `--scale medium`. learning_rate: its own, in the place of every other."""

    name: str
    label: str
    changes: dict[str, Any] | None = field(default_factory=dict, hash=False)
    recipe: str = "vit_base_mae_800ep"
    by_scale: dict[str, dict[str, Any]] = field(default_factory=dict, hash=False)
    epochs: dict[str, float] = field(default_factory=dict, hash=False)
    tuned: str = "mae"
    learning_rate: float | None = None

    def flags(self) -> dict[str, Any]:
        return {**BASELINE, **(self.changes or {})}


def _mid(ratio: float, layer: int) -> dict[str, Any]:
    return {"mid_mask_ratio": ratio, "mid_mask_layer_idx": layer}


def _keep(ratio: float) -> dict[str, Any]:
    return {"decoder_keep_ratio": ratio}


NUM_BLOCKS = {"smoke": 4, "small": 4, "medium": 4, "paper": 12}
# Images a second with `decoder_keep_ratio` 0.5 over those with all masked patches: of the small model with its data,
# measured; of ViT-B by its operations (benchmarks/README.md, "A part of the masked patches").
SPEED_AT_HALF = {"small": 1.13, "medium": 1.13, "paper": 1.27}

SCRATCH = Variant("scratch", "from scratch", None)
MAE = Variant("mae", "MAE")
EDGE = Variant("drop_edge", "MAE + drop edge", DROP_EDGE)
PATCH = Variant("global_patch", "MAE + global patch statistics", GLOBAL_PATCH)
RAW = Variant("raw", "MAE without population statistics", {"target_normalization": "none"})
# Sizes in about the proportions of 128, 192 and 224. The epochs take as long as the baseline's: by images a second
# (small; benchmarks/README.md), or by the operations that --dry_run counts (paper).
RISING = Variant(
    "rising",
    "MAE, the image size rises, as long a time",
    by_scale={
        "smoke": {"resolution_schedule": "12:0.5,20:0.8,24:1.0"},
        "small": {"resolution_schedule": "16:0.5,24:0.8,32:1.0"},
        "medium": {"resolution_schedule": "16:0.5,24:0.8,32:1.0"},
        "paper": {"resolution_schedule": "128:0.5,192:0.8,224:1.0"},
    },
    epochs={"small": 1.49, "medium": 1.49, "paper": 1.718},
)
ROBUST = Variant(
    "robust",
    "drop edge + global patch statistics",
    {**DROP_EDGE, **GLOBAL_PATCH},
    recipe="vit_base_800ep",
    tuned="robust",
)
DOUBLE = {"smoke": 2.0, "small": 2.0, "medium": 2.0}  # paper: the recipe's own
MAE_TWICE = Variant("mae_2x", "MAE, twice the epochs", recipe="vit_base_mae_1600ep", epochs=DOUBLE)


@dataclass(frozen=True)
class Comparison:
    """measure: of MEASURES. variant, against: names of variants; what is asked is the former minus the latter."""

    measure: str
    variant: str
    against: str


@dataclass(frozen=True)
class Plan:
    """What is compared, decided before the first run. primary: the one question of the study: is the variant at most
    `margin` behind? secondary: tested with a correction for their number. document: where it is written, in this
    repository."""

    primary: Comparison
    margin: float
    secondary: tuple[Comparison, ...]
    document: str


@dataclass(frozen=True)
class Study:
    """title: of the report. variants: MAE among them, which the others are compared with. task: of the fine-tuning,
    None: only the pre-training is looked at. metrics: of the evaluation, with what they are called. paper: variant ->
    the paper's figures, in the order of the metrics, and where they stand. same_target: of all variants, so that their
    losses may be compared. frozen: how each pre-trained model is evaluated without training it, of FROZEN. seeds: of
    each variant (by name), of which `--seeds` takes the first ones; none: all have as many as `--seeds` says. plan:
    which comparisons are reported. held_out: share of the training images that is evaluated in the place of the test
    images."""

    name: str
    title: str
    variants: tuple[Variant, ...]
    task: str | None = "classification"
    metrics: tuple[tuple[str, str], ...] = (("eval_accuracy", "top-1"),)
    paper: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    paper_source: str = ""
    same_target: bool = False
    frozen: tuple[str, ...] = ()
    seeds: dict[str, tuple[int, ...]] = field(default_factory=dict, hash=False)
    plan: Plan | None = None
    held_out: float | None = None

    @property
    def baseline(self) -> Variant:
        return next(variant for variant in self.variants if variant.name == MAE.name)

    def answers_first(self) -> set[str]:
        """Names of the variants of the plan's primary comparison, and of MAE; none without a plan."""
        return {self.baseline.name, self.plan.primary.variant, self.plan.primary.against} if self.plan else set()

    @property
    def is_dense(self) -> bool:
        return self.task in ("detection", "segmentation")


# ---- the study of half the epochs: benchmarks/reproduce/medium/PLAN.md ----
# Seeds of each variant. Where the estimate is too long, they are cut here, as the plan says, before the first run.
SEEDS_HALF_EPOCHS = {
    "mae": 5,
    "drop_edge": 5,
    "global_patch": 5,
    "robust": 5,
    "mae_2x": 5,
    "mid_12": 3,
    "all_12": 3,
    "raw": 3,
}
# Base learning rates of `--scale medium`, of MAE and of drop edge with global patch statistics: what `reproduce
# learning_rates --scale medium` has chosen (benchmarks/reproduce/medium/reports/learning_rates.md).
LEARNING_RATES = {"mae": 1.6e-2, "robust": 1.6e-2}
# What is tried for each of the two, on a seed that no study has, with half the epochs, and judged on a tenth of the
# training images, which are held out.
TRIED_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
TUNING_SEED, TUNING_HELD_OUT = 7, 0.1
TUNING_EPOCHS = {"smoke": 0.5, "small": 0.5, "medium": 0.5}
# measure of a comparison -> kind of run, metric, what it is called
MEASURES = {
    "linear": ("linear", "eval_accuracy", "linear probe"),
    "attentive": ("attentive", "eval_accuracy", "attentive probe"),
    "knn": ("knn", "accuracy", "nearest neighbours"),
    "finetune": ("finetune", "eval_accuracy", "fine-tuned"),
    "probe_mean": ("pretrain", "linear_probe_mean", "small linear probe, mean over the epochs"),
    "uniformity": ("analyze", "last block/uniformity", "uniformity of tokens, last block"),
}
ACCURACIES = ("linear", "attentive", "knn", "finetune")
FROZEN_KINDS = ("knn", "linear", "attentive")


def _plan_of_half_epochs(variants: tuple[Variant, ...]) -> Plan:
    others = [variant.name for variant in variants if variant.name not in (MAE.name, MAE_TWICE.name)]
    pairs = [(ROBUST.name, MAE_TWICE.name), *((name, MAE.name) for name in others), (MAE_TWICE.name, MAE.name)]
    primary = Comparison("linear", ROBUST.name, MAE_TWICE.name)
    on_images = (Comparison(measure, *pair) for pair in pairs for measure in ACCURACIES)
    # What the small study was the first to see.
    earlier = [Comparison("probe_mean", "mid_12", MAE.name)]
    earlier += [Comparison("uniformity", name, MAE.name) for name in (EDGE.name, PATCH.name, ROBUST.name)]
    secondary = (*(each for each in on_images if each != primary), *earlier)
    return Plan(primary, 0.005, secondary, "benchmarks/reproduce/medium/PLAN.md")


def _tried_rates() -> tuple[Variant, ...]:
    return tuple(
        replace(
            recipe, name=f"{recipe.name}_{rate:g}", label=f"{recipe.label}, {rate:g}", learning_rate=rate,
            epochs=TUNING_EPOCHS,
        )
        for recipe in (MAE, ROBUST)
        for rate in TRIED_RATES
    )  # fmt: skip


def studies(num_blocks: int) -> dict[str, Study]:
    """All studies. num_blocks: of the encoder; mid-level tokens join at two thirds of its depth (the paper: before
    block 8 of 12), or at a third."""
    late, early = round(num_blocks * 2 / 3), round(num_blocks / 3)
    middle = Variant(
        "mid_25", f"MAE + 25% mid-level tokens from block {late}", _mid(0.25, late), recipe="vit_base_midlevel_800ep"
    )
    everything = Variant("all", "all three", {**DROP_EDGE, **GLOBAL_PATCH, **_mid(0.25, late)}, tuned="robust")
    few = Variant("mid_12", f"12.5% from block {late}", _mid(0.125, late))
    half_epochs = (
        MAE,
        EDGE,
        PATCH,
        ROBUST,
        replace(few, label=f"MAE + 12.5% mid-level tokens from block {late}"),
        Variant(
            "all_12",
            "all three, 12.5% mid-level tokens",
            {**DROP_EDGE, **GLOBAL_PATCH, **_mid(0.125, late)},
            tuned="robust",
        ),
        MAE_TWICE,
        RAW,
    )
    tried = _tried_rates()
    # The targets with the step per patch are Table 1's variants, and share their runs.
    scalings = (("none", RAW, "none"), ("rgb", MAE, "global RGB"), ("patch", PATCH, "global patch"))
    targets = [
        *(replace(variant, label=f"{label}, per patch") for _, variant, label in scalings),
        *(
            Variant(f"{name}_without_intra", label, {**(variant.changes or {}), "norm_pix_loss": False})
            for name, variant, label in scalings
        ),
    ]
    paper = {table: encoders["ViT-B"] for table, encoders in FIGURES.items()}
    imagenet = "ImageNet-1K, ViT-B/16, 800 epochs"
    made = [
        Study(
            "table1",
            "Table 1: the population statistics of the target, with the step per patch",
            (SCRATCH, MAE, RAW, PATCH),
            paper=paper["Table 1"],
            paper_source=imagenet,
        ),
        Study(
            "table2",
            "Table 2: scratch, MAE, and what the ingredients add",
            (SCRATCH, MAE, EDGE, PATCH, middle, ROBUST, everything),
            paper=paper["Table 2"],
            paper_source=imagenet,
        ),
        Study(
            "table3",
            "Table 3: detection and instance segmentation",
            (SCRATCH, MAE, ROBUST),
            task="detection",
            metrics=(("eval_box_ap", "box AP"), ("eval_mask_ap", "mask AP")),
            paper=paper["Table 3"],
            paper_source="COCO, ViT-B, learning rate 1.6e-4",
        ),
        Study(
            "table4",
            "Table 4: semantic segmentation",
            (SCRATCH, MAE, ROBUST),
            task="segmentation",
            metrics=(("eval_mean_iou", "mean IoU"),),
            paper=paper["Table 4"],
            paper_source="ADE20K, ViT-B, UperNet",
        ),
        Study(
            "table5",
            "Table 5: mid-level mask tokens by ratio and depth",
            (
                SCRATCH,
                MAE,
                few,
                middle,
                Variant("mid_50", f"50% from block {late}", _mid(0.5, late)),
                Variant("mid_25_early", f"25% from block {early}", _mid(0.25, early)),
            ),
            paper=paper["Table 5"],
            paper_source=imagenet,
        ),
        Study("resolution", "Smaller images first, in as long a time", (SCRATCH, MAE, RISING)),
        Study("figure2", "Figure 2: the losses of the six targets", tuple(targets), task=None, metrics=()),
        Study(
            "decoder_keep",
            "A part of the masked patches in the decoder (decoder_keep_ratio)",
            (
                MAE,
                Variant("keep_50", "50%", _keep(0.5)),
                Variant("keep_25", "25%", _keep(0.25)),
                # More epochs, in the time that MAE takes.
                Variant(
                    "keep_50_time",
                    "50%, for as long",
                    _keep(0.5),
                    epochs=SPEED_AT_HALF,
                ),
            ),
            task=None,
            metrics=(),
            same_target=True,
        ),
        Study(
            "half_epochs",
            "Half the epochs: does the robust recipe reach what MAE reaches in twice as many?",
            half_epochs,
            frozen=FROZEN_KINDS,
            seeds={name: tuple(range(count)) for name, count in SEEDS_HALF_EPOCHS.items()},
            plan=_plan_of_half_epochs(half_epochs),
        ),
        Study(
            "learning_rates",
            "Learning rates for MAE and for the robust recipe, by a linear probe on held-out training images",
            tried,
            task=None,
            metrics=(),
            frozen=("linear",),
            seeds={variant.name: (TUNING_SEED,) for variant in tried},
            held_out=TUNING_HELD_OUT,
        ),
    ]
    return {study.name: study for study in made}


STUDIES = tuple(studies(NUM_BLOCKS["paper"]))

# ---- scales ----
SEEDS = {"smoke": 1, "small": 3, "medium": 5}

SMALL_32 = (
    "image_size=32,patch_size=4,hidden_size=96,num_hidden_layers=4,num_attention_heads=3,intermediate_size=384,"
    "decoder_hidden_size=64,decoder_num_hidden_layers=2,decoder_num_attention_heads=2,decoder_intermediate_size=256"
)
# Flags by scale: of run_pretrain, and of run_finetune by task.
PRETRAIN = {
    "smoke": {"config": "digits", "num_train_epochs": 6, "base_learning_rate": 1e-2},
    "small": {
        "config": "small_32px",
        "config_overrides": SMALL_32,
        "mid_mask_layer_idx": 3,
        "num_train_epochs": 5,
        "base_learning_rate": 8e-3,
        "per_device_train_batch_size": 64,
        "max_train_samples": 10_000,
        "max_eval_samples": 2_000,
        "dataloader_num_workers": 0,
    },
}
# Dense tasks: larger pictures, of a set of their own (--pretrain_dataset_name).
PRETRAIN_DENSE = {"config": "small_64px", "num_train_epochs": 8, "dataloader_num_workers": 0}
# All images, longer; in bf16, which takes a CPU about three quarters of the time; learning rates: LEARNING_RATES.
PRETRAIN["medium"] = {
    **{
        name: value
        for name, value in PRETRAIN["small"].items()
        if name not in ("max_train_samples", "base_learning_rate")
    },
    "num_train_epochs": 20,
    "bf16": True,
}
# Of small pre-training with labels: only nearest neighbours and a linear probe while it trains; the rest at its end, by
# `analyze`.
PROBES = {"diagnostics": "none", "diagnostics_steps": 0.2}
# At `--scale medium`: the share of the steps of MAE's pre-training after which each variant is probed again, so that
# all are probed at the same epochs.
PROBED_EVERY = 0.1
ANALYSIS = {"max_samples": 512, "crop_pct": 1.0}
# What is told of the features of a pre-trained model, and of its tokens: measure -> what it is called.
FEATURE_MEASURES = {
    "linear_probe_accuracy": "linear probe",
    "linear_probe_mean": "linear probe, mean over the epochs",
    "knn_accuracy": "nearest neighbours",
}
# Of the pre-training itself, where all variants have the same target.
TRAINING_MEASURES = {"eval_loss": "held-out loss"}
TOKEN_MEASURES = {  # the first one is the paper's
    "last block/uniformity": "uniformity of tokens, last block",
    "last block/similarity": "similarity of tokens, last block",
    "last block/rank": "effective rank of tokens, last block",
    "mean/uniformity": "uniformity of images",
    "mean/alignment": "alignment of two views",
    "mean/rank": "effective rank of images",
}
DENSE = {"num_train_epochs": 4, "eval_strategy": "no", "dataloader_num_workers": 0}
FINETUNE = {
    "smoke": {"classification": {"config": "finetune_digits", "num_train_epochs": 6}},
    "small": {
        "classification": {
            "num_train_epochs": 5,
            "base_learning_rate": 5e-3,
            "per_device_train_batch_size": 64,
            "max_train_samples": 2_500,
            "max_eval_samples": 5_000,
            "layer_decay": 0.75,
            "drop_path_rate": 0.0,
            "auto_augment": "none",
            "random_erasing": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "crop_scale": [0.5, 1.0],
            "crop_pct": 1.0,
            "save_strategy": "no",
            "dataloader_num_workers": 0,
        },
        "detection": {"config": "mask_rcnn_small", **DENSE},
        "segmentation": {"config": "upernet_small", **DENSE},
    },
}
FINETUNE["medium"] = {
    "classification": {
        **{name: value for name, value in FINETUNE["small"]["classification"].items() if name != "max_eval_samples"},
        "num_train_epochs": 10,
        "max_train_samples": 5_000,
        "eval_strategy": "no",
    }
}
# Flags of the evaluations of frozen features, on all labelled images but for `--scale small`.
_PROBE = {"save_strategy": "no", "dataloader_num_workers": 0}
FROZEN: dict[str, dict[str, Any]] = {
    "knn": {"pooling": "mean", "crop_pct": 1.0, "num_workers": 0},
    "linear": {"config": "linear_probe_small", **_PROBE},
    "attentive": {"config": "attentive_probe_small", **_PROBE},
}
FROZEN_SAMPLES: dict[str, dict[str, Any]] = {
    "small": {"max_train_samples": 10_000, "max_eval_samples": 5_000},
    "medium": {},
}
FROZEN_PAPER = {"linear": "linear_probe_vit_base", "attentive": "attentive_probe_vit_base"}
FINETUNE_PAPER = {
    "classification": "finetune_vit_base",
    "detection": "mask_rcnn_vit_base",
    "segmentation": "upernet_vit_base",
}
NUM_BLOCKS_DENSE = 6
