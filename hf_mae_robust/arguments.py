"""Command-line arguments, as dataclasses for `HfArgumentParser`, and `--config` files."""

import argparse
import difflib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import SaveStrategy, SchedulerType

DEFAULT_RECIPE = "digits"
# Of --diagnostics; also sub-commands of `python -m hf_mae_robust analyze`.
DIAGNOSTICS = ("features", "attention", "loss_map")


def option(default: Any, help: str, **metadata) -> Any:
    """A field of a dataclass of arguments."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class ModelArguments:
    """The model and the paper's three ingredients. None leaves a setting as the checkpoint or the default has it."""

    _argument_group_name = "model"

    model_name_or_path: str | None = option(
        None, "Start from this checkpoint (ours or a stock ViTMAE one: Hub id or folder) instead of from scratch."
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
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] = option("sdpa", "Attention kernel.")
    model_revision: str | None = option(None, "Branch, tag or commit of a model on the Hub.")
    trust_remote_code: bool = option(False, "Run code that a model repository brings along.")
    token: str | None = option(None, "Hub token; default: that of `hf auth login` or HF_TOKEN.")

    def __post_init__(self):
        if self.target_statistics == "none":
            self.target_statistics = None


@dataclass
class DataArguments:
    """The images. Without --dataset_name and --config: scikit-learn's digits and the recipe made for them."""

    _argument_group_name = "data"

    dataset_name: str | None = option(None, "Hub id, or a folder: images, Parquet files, or what `save_to_disk` wrote.")
    dataset_config_name: str | None = option(None, "Configuration of the data set.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of the data set on the Hub.")
    image_column_name: str | None = option(
        None, "Column with the images; default: 'image', or the only one of type Image."
    )
    dataset_streaming: bool = option(
        False, "Read while training instead of downloading and preparing first. Parquet keeps epochs and exact order."
    )
    train_split_name: str = option("train", "Split to train on.")
    eval_split_name: str = option(
        "auto",
        "Split to evaluate on; auto: validation, valid, val or test, whichever comes first; none: no evaluation.",
    )
    train_val_split: float | None = option(
        None, "Share of the training images to hold out for evaluation where the data set has no split for it."
    )
    max_train_samples: int | None = option(None, "Train on the first so many images.")
    max_eval_samples: int | None = option(None, "Evaluate on the first so many images.")
    shuffle_buffer_size: int = option(
        8192, "With --dataset_streaming: images (encoded) that each process holds to shuffle among."
    )
    dataset_retry_seconds: float = option(
        300.0, "When data on the network cannot be read: keep trying for so long, then stop."
    )
    max_bad_images: float = option(
        0.01, "Share of the images that may be undecodable; those are replaced and listed in skipped_images.jsonl."
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0],
        metadata={
            "help": "Random crops cover LO to HI of the image's area (paper: 0.5 1.0 for ViT-B, 0.2 1.0 for ViT-L).",
            "nargs": 2,
        },
    )
    horizontal_flip: bool = option(True, "Flip half of the images.")
    crop_pct: float = option(
        0.875, "Evaluation resizes to image_size / crop_pct and crops the centre; 1.0 for images of the model's size."
    )

    def __post_init__(self):
        if len(self.crop_scale) != 2:
            raise ValueError(f"--crop_scale takes two numbers, LO and HI, not {self.crop_scale}.")
        if not 0 <= self.max_bad_images <= 1:
            raise ValueError(f"--max_bad_images {self.max_bad_images}: a fraction, from 0 to 1.")
        if self.dataset_retry_seconds < 0:
            raise ValueError(f"--dataset_retry_seconds {self.dataset_retry_seconds}: must not be negative.")


@dataclass
class RecipeArguments:
    """MAE's rules for learning rate and warm-up; going on from checkpoints; what to do when a step goes wrong."""

    _argument_group_name = "recipe"

    config: str | None = option(
        None, "YAML file of flags, or the name of a shipped recipe. Flags on the command line win.", metavar="FILE"
    )
    base_learning_rate: float = option(
        1.5e-4, "Learning rate of 256 images a step; the rate used is this x effective batch / 256."
    )
    warmup_epochs: float | None = option(
        None, "Linear warm-up, in epochs; default: 5%% of the training (MAE: 40 of 800). --warmup_steps wins."
    )
    overwrite_output_dir: bool = option(
        False, "Start anew: delete the checkpoints in --output_dir. Default: go on from the newest."
    )
    allow_elastic_resume: bool = option(
        False,
        "Go on from a checkpoint of another number of processes, batch, data or schedule. Gives up equality with an "
        "uninterrupted run, and in the epoch of the resume some images come twice and others not at all.",
    )
    skip_nonfinite_steps: int = option(
        0,
        "Pass over so many steps with a NaN or infinite loss or gradient before stopping. More than 0 makes the GPU "
        "wait for the CPU once a step.",
    )
    model_license: str = option("apache-2.0", "Licence of the weights, for the model card (identifier of the Hub).")

    def __post_init__(self):
        if self.skip_nonfinite_steps < 0:
            raise ValueError(f"--skip_nonfinite_steps {self.skip_nonfinite_steps}: must not be negative.")


@dataclass
class ImageTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what all of MAE's training settings share.

    Defaults that differ from the parent's: `per_device_train_batch_size` and `per_device_eval_batch_size` 64,
    `learning_rate` None (--base_learning_rate x batch / 256), `weight_decay` 0.05, `max_grad_norm` 0 (no clipping),
    `lr_scheduler_type` "cosine", `save_strategy` "epoch", `save_total_limit` 2, `logging_steps` 20,
    `logging_nan_inf_filter` False (it hides NaNs and makes the GPU wait), `dataloader_num_workers` 4,
    `ddp_find_unused_parameters` False, `remove_unused_columns` False, `report_to` "tensorboard" where that is
    installed, `seed` stays 42.
    """

    _argument_group_name = "training (transformers.TrainingArguments)"

    per_device_train_batch_size: int = option(64, "Images per step, device and accumulation step.")
    per_device_eval_batch_size: int = option(64, "Images per evaluation step and device.")
    learning_rate: float | None = option(
        None, "Peak learning rate; default: --base_learning_rate x effective batch / 256."
    )
    weight_decay: float = option(0.05, "AdamW's weight decay; biases and other 1-D parameters are not decayed.")
    max_grad_norm: float = option(0.0, "Clip gradients to this norm; 0: do not.")
    lr_scheduler_type: SchedulerType | str = option("cosine", "Schedule after the warm-up, set per step.")
    save_strategy: SaveStrategy | str = option("epoch", "When to write checkpoints: no, steps, epoch.")
    save_total_limit: int | None = option(2, "Checkpoints to keep.")
    logging_steps: float = option(20, "Log every so many steps; below 1: a share of all steps.")
    logging_nan_inf_filter: bool = option(False, "Leave NaN and infinite losses out of the log.")
    dataloader_num_workers: int = option(4, "Processes that decode images, for each training process.")
    ddp_find_unused_parameters: bool | None = option(False, "See torch's DistributedDataParallel.")
    remove_unused_columns: bool | None = option(False, "Has no effect here: only the image column is read.")
    profile: int = option(
        0, "Measure where the time of so many steps goes, print it, write profile.json, and train on. 0: do not."
    )
    report_to: None | str | list[str] = field(
        default_factory=lambda: "tensorboard" if is_tensorboard_available() else "none",
        metadata={"help": "Where to log: tensorboard, wandb, trackio, ... (several too), or none.", "nargs": "+"},
    )

    def __post_init__(self):
        # Without this, torchrun on a machine without an accelerator starts processes that do not know of each other,
        # and each trains the whole model.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        if self.profile < 0:
            raise ValueError(f"--profile {self.profile}: a number of steps, or 0 for none.")
        if self.enable_jit_checkpoint:
            raise ValueError("--enable_jit_checkpoint is not needed: SIGTERM and SIGINT always save and stop.")
        if self.ignore_data_skip:
            raise ValueError("--ignore_data_skip would show other images; finding the place in the data takes no time.")


@dataclass
class MAETrainingArguments(ImageTrainingArguments):
    """`ImageTrainingArguments` with MAE's settings for pre-training (PRETRAIN.md of facebookresearch/mae).

    Defaults that differ from the parent's: `output_dir` "outputs/pretrain", `num_train_epochs` 800, `adam_beta2` 0.95.
    """

    output_dir: str | None = option("outputs/pretrain", "Where checkpoints, the model, pictures and metrics go.")
    num_train_epochs: float = option(800, "Passes over the training images.")
    adam_beta2: float = option(0.95, "AdamW's second beta.")
    repeated_augmentation: int = option(
        1,
        "Put so many crops of each image into a batch and decode it once, where decoding is the bottleneck. An epoch "
        "still passes over all images, and so has so many times the steps.",
    )
    diagnostics_steps: float = option(
        0,
        "Before the first step, every so many (below 1: a share of all steps) and after the last: what happens between "
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
    diagnostics_samples: int = option(512, "With --diagnostics_steps: look at so many images.")
    label_column_name: str | None = option(
        None,
        "With --diagnostics_steps: also nearest neighbours and a linear probe, by this column (or auto).",
    )
    probe_samples: int = option(
        2000, "With --label_column_name: so many images to learn from, and so many others to classify."
    )
    dry_run: bool = option(
        False,
        "Print what the run would cost (parameters, tokens, operations, memory, steps, hours), and train nothing.",
    )
    images_per_second: float | None = option(None, "With --dry_run: the speed to count the hours with.")

    def __post_init__(self):
        super().__post_init__()
        if self.images_per_second is not None and not self.images_per_second > 0:
            raise ValueError(f"--images_per_second {self.images_per_second}: must be above 0.")
        if self.diagnostics_steps < 0 or self.diagnostics_samples < 2 or self.probe_samples < 2:
            raise ValueError(
                f"--diagnostics_steps {self.diagnostics_steps:g} --diagnostics_samples {self.diagnostics_samples} "
                f"--probe_samples {self.probe_samples}: at least 0, 2 and 2."
            )
        if self.diagnostics_steps > 1 and self.diagnostics_steps != int(self.diagnostics_steps):
            raise ValueError(f"--diagnostics_steps {self.diagnostics_steps:g}: above 1, a whole number of steps.")
        self.diagnostics = [name for name in self.diagnostics if name != "none"]
        if self.label_column_name is not None and not self.diagnostics_steps:
            raise ValueError("--label_column_name is for --diagnostics_steps; pre-training itself needs no labels.")


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Which data set, for the commands of `python -m hf_mae_robust`; `DataLocation.of` reads them. More can be added to
    the group."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", required=True, help="Hub id, or a folder.")
    data.add_argument("--dataset_config_name", help="Configuration of the data set.")
    data.add_argument("--dataset_revision", help="Branch, tag or commit of the data set on the Hub.")
    data.add_argument("--dataset_streaming", action="store_true", help="Read without downloading and preparing first.")
    data.add_argument(
        "--image_column_name", help="Column with the images; default: 'image', or the only one of type Image."
    )
    data.add_argument("--token", help="Hub token; default: that of `hf auth login` or HF_TOKEN.")
    return data


def recipe_path(name: str) -> Path:
    """A file, or one of the recipes that the package brings along (`--config digits`). Raises FileNotFoundError."""
    shipped = resources.files(__package__) / "recipes"
    for candidate in (Path(name), Path(str(shipped / name)), Path(str(shipped / f"{name}.yaml"))):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(Path(str(file)).stem for file in shipped.iterdir() if str(file).endswith(".yaml")))
    raise FileNotFoundError(f"--config {name}: no such file, and no recipe of that name. Recipes: {names}.")


def _similar(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the description as it was written, one spelling of each flag, and no default where there is none."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=42)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        kind = getattr(action.type, "__name__", "").upper()
        metavar = action.metavar or (kind if kind in ("INT", "FLOAT") else "VALUE")
        return f"{action.option_strings[0]} {self._format_args(action, metavar)}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class RecipeParser(HfArgumentParser):
    """`HfArgumentParser` that reads `--config file.yaml` first: its keys are the names of the flags, a flag on the
    command line wins, and a key that is no flag is an error."""

    def __init__(
        self, dataclass_types, default_recipe: Callable[[argparse.Namespace], str | None] | None = None, **options
    ):
        """default_recipe: gives the recipe to use without --config, from the flags on the command line."""
        super().__init__(
            dataclass_types,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
            usage="%(prog)s [--config FILE] [--FLAG VALUE ...]",  # the default lists some 150 flags, twice
            **options,
        )
        self.default_recipe = default_recipe

    def read_recipe(self, name: str) -> list[str]:
        """A YAML file as command-line words."""
        path = recipe_path(name)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"--config {path} is not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"--config {path} must hold 'flag: value' lines, not a {type(content).__name__}.")
        flags = [action.dest for action in self._actions if action.dest not in ("help", "config")]
        words = []
        for key, value in content.items():
            if key not in flags:
                raise ValueError(f"--config {path}: unknown key '{key}'{_similar(str(key), flags)}.")
            if value is None:
                continue
            if key == "config_overrides" and isinstance(value, dict):
                value = ",".join(f"{name}={setting}" for name, setting in value.items())
            elif isinstance(value, dict):
                value = json.dumps(value)
            values = value if isinstance(value, list) else [value]
            words += [f"--{key}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
        return words

    def parse(self, argv: list[str] | None = None) -> tuple:
        """The dataclass instances, in the order they were named. Ends the program with a message on bad input."""
        argv = list(sys.argv[1:] if argv is None else argv)
        given, _ = self.parse_known_args([word for word in argv if word not in ("-h", "--help")] if argv else [])
        recipe = given.config or (self.default_recipe(given) if self.default_recipe is not None else None)
        try:
            words = (["--config", recipe, *self.read_recipe(recipe)] if recipe else []) + argv
            *parsed, unknown = self.parse_args_into_dataclasses(
                words, return_remaining_strings=True, look_for_args_file=False
            )
        except (OSError, ValueError) as error:
            self.fail(error)
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            self.error("unknown " + ", ".join(f"{word}{_similar(word, flags)}" for word in unknown))
        return tuple(parsed)

    def fail(self, error: Exception, code: int = 2) -> NoReturn:
        self.exit(code, f"\n{self.prog}: error: {error}\n")  # below a progress bar that may stand there


def parse_config_overrides(text: str | None) -> dict[str, Any]:
    """`"image_size=32,patch_size=[8, 4]"` -> `{"image_size": 32, "patch_size": [8, 4]}`. Raises ValueError."""
    if not text:
        return {}
    try:
        settings = yaml.safe_load("{" + text.replace("=", ": ") + "}")
    except yaml.YAMLError as error:
        raise ValueError(f"--config_overrides {text!r}: write 'name=value,name=value' ({error}).") from error
    # YAML 1.1 takes 1e-6 for text.
    return {name: _number(value) for name, value in settings.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
