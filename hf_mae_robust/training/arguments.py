"""Flags that every training run has, as dataclasses for `HfArgumentParser`."""

import argparse
import json
import multiprocessing
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import SaveStrategy, SchedulerType

from ..errors import UserError, refused_by_library
from .band_arguments import BandArguments
from .machine import check_precision
from .option import option
from .optional import check_package, check_reports
from .peers import joining
from .ranges import check_ranges


@dataclass
class DatasetArguments:
    """Which images, and how they are cropped."""

    _argument_group_name = "data"

    dataset_name: str | None = option(
        None, "Hub id, or a folder: images, Parquet files, tars, or what `save_to_disk` wrote."
    )
    dataset_config_name: str | None = option(None, "Configuration of the data set.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of the data set on the Hub.")
    image_column_name: str | None = option(
        None, "Column with the images; default: 'image', or the only one of type Image."
    )
    dataset_streaming: bool = option(
        False,
        "Read while training instead of downloading and preparing first. Parquet, and tars on the disk, keep epochs "
        "and exact order.",
    )
    train_split_name: str = option("train", "Split to train on.")
    eval_split_name: str = option(
        "auto",
        "Split to evaluate on; auto: validation, valid, val or test, whichever comes first; none: no split (so no "
        "evaluation, unless --train_val_split holds out images).",
    )
    train_val_split: float | None = option(
        None, "Share of the training images to hold out for evaluation where the data set has no split for it."
    )
    max_train_samples: int | None = option(None, "Train on N images only, a random sample that depends on --seed.")
    max_eval_samples: int | None = option(None, "Evaluate on N images only, a random sample that depends on --seed.")
    statistics_samples: int | None = option(
        None,
        "Compute statistics of the images (--target_statistics auto, and those of bands) over N of them, a random "
        "sample that depends on --seed; the standard error is printed. Default: over all.",
    )
    shuffle_buffer_size: int = option(
        8192, "With --dataset_streaming: images (encoded) that each process holds to shuffle among."
    )
    dataset_retry_seconds: float = option(
        300.0, "Seconds to retry data that the network does not give, before the run stops."
    )
    stream_cache: str | None = option(
        None,
        "With --dataset_streaming: folder on this machine that keeps the Parquet files and tars of the Hub that were "
        "read, for all processes and runs. Files are fetched completely when they are first needed, tars at the start.",
        metavar="DIR",
    )
    stream_cache_size: str | None = option(
        None,
        "Size limit of --stream_cache, such as 200GB or 1.5TiB; files of other data sets make room, the least "
        "recently used first; of Parquet, what does not fit is streamed. Default: as much as the disk holds.",
        metavar="SIZE",
    )
    allow_unused_files: bool = option(
        False, "Train although the splits leave out more than 1%% of the image files of a local folder."
    )
    max_bad_images: float = option(
        0.01, "Share of the images that may be undecodable; those are replaced and listed in skipped_images.jsonl."
    )
    full_size_decoding: bool = option(
        False,
        "Decode JPEG files at full size also where 1/2, 1/4 or 1/8 of it leaves twice the pixels that are needed.",
    )
    crop_scale: list[float] = field(
        default_factory=lambda: [0.2, 1.0],
        metadata={
            "help": "Random crops cover LO to HI of the image's area (paper: 0.5 1.0 for ViT-B, 0.2 1.0 for ViT-L).",
            "nargs": 2,
        },
    )
    horizontal_flip: bool = option(True, "Flip half of the images.")
    vertical_flip: bool = option(False, "Flip half of the images vertically, too: for images from above.")
    rot90: bool = option(False, "Turn images by 0, 90, 180 or 270 degrees at random: for images from above.")
    crop_pct: float = option(
        0.875,
        "Evaluation resizes to image_size / crop_pct and crops the centre. Give 1.0 for images of that size.",
    )

    def __post_init__(self) -> None:
        check_ranges(vars(self))
        if len(self.crop_scale) != 2:
            raise UserError(f"--crop_scale takes two numbers, LO and HI, not {self.crop_scale}.")
        if self.crop_scale[0] > self.crop_scale[1]:
            raise UserError(f"--crop_scale {self.crop_scale[0]:g} {self.crop_scale[1]:g}: LO is above HI.")
        if self.stream_cache is not None and not self.dataset_streaming:
            raise UserError("--stream_cache keeps what is streamed: give --dataset_streaming, too.")
        if self.stream_cache_size is not None:
            if self.stream_cache is None:
                raise UserError("--stream_cache_size needs a folder: give --stream_cache DIR, too.")
            from ..data.stream_cache import parse_size  # as for `portable` below

            try:
                parse_size(self.stream_cache_size)
            except ValueError as error:
                raise UserError(f"--stream_cache_size: {error}") from error


@dataclass
class DataArguments(BandArguments, DatasetArguments):
    """The images. Without --dataset_name and --config: scikit-learn's digits and the recipe made for them."""

    def __post_init__(self) -> None:
        BandArguments.__post_init__(self)
        DatasetArguments.__post_init__(self)


@dataclass
class RecipeArguments:
    """MAE's rules for learning rate and warm-up; resuming from checkpoints; what to do when a step goes wrong."""

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
        False, "Delete the checkpoints in --output_dir and start again. Default: resume from the newest."
    )
    allow_elastic_resume: bool = option(
        False,
        "Resume from a checkpoint of another number of processes, batch, data or schedule. Gives up equality with an "
        "uninterrupted run, and in the epoch of the resume some images come twice and others not at all.",
    )
    skip_nonfinite_steps: int = option(
        0,
        "Skip at most N steps with a NaN or infinite loss or gradient before stopping. More than 0 makes the GPU "
        "wait for the CPU once a step.",
    )
    model_license: str | None = option(
        None, "Licence of the weights, for the model card: an identifier of the Hub, such as apache-2.0; default: none."
    )

    def __post_init__(self) -> None:
        check_ranges(vars(self))


@dataclass
class ImageTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what all of MAE's training settings share.

    Defaults that differ from the parent's: `per_device_train_batch_size` and `per_device_eval_batch_size` 64,
    `learning_rate` None (--base_learning_rate x batch / 256), `weight_decay` 0.05, `max_grad_norm` 0 (no clipping),
    `warmup_steps` None (5% of the training), `lr_scheduler_type` "cosine", `save_strategy` "epoch",
    `save_total_limit` 2, `logging_steps` 20, `logging_nan_inf_filter` False (it hides NaNs and makes the GPU wait),
    `dataloader_num_workers` 4, `ddp_find_unused_parameters` False, `remove_unused_columns` False, `report_to`
    "tensorboard" where that is installed, `seed` stays 42.
    """

    _argument_group_name = "training (transformers.TrainingArguments)"

    if TYPE_CHECKING:
        output_dir: str = ""  # TrainingArguments says `| None`, but fills it in

    per_device_train_batch_size: int = option(64, "Images per step, device and accumulation step.")
    per_device_eval_batch_size: int = option(64, "Images per evaluation step and device.")
    gradient_accumulation_steps: int = option(
        1,
        "Batches for one step. Where this does not divide the batches of an epoch, its last step has those that are "
        "left, averaged over these alone; the official MAE code drops them.",
    )
    learning_rate: float | None = option(  # type: ignore[assignment]  # a number once `set_schedule` has run
        None, "Peak learning rate; default: --base_learning_rate x effective batch / 256."
    )
    weight_decay: float = option(0.05, "AdamW's weight decay; biases and other 1-D parameters are not decayed.")
    max_grad_norm: float = option(0.0, "Clip gradients to this norm; 0: do not.")
    warmup_steps: float | None = option(  # type: ignore[assignment]  # a number once `set_schedule` has run
        None, "Linear warm-up, in steps; below 1: a share of all; 0: none. Default: --warmup_epochs."
    )
    lr_scheduler_type: SchedulerType | str = option("cosine", "Schedule after the warm-up, set per step.")
    auto_find_batch_size: bool = option(False, "Is refused: the learning rate follows from the batch size.")
    save_strategy: SaveStrategy | str = option(
        "epoch", "When to write checkpoints: no, steps, epoch, best. --save_steps N alone means steps."
    )
    save_total_limit: int | None = option(2, "Checkpoints to keep.")
    logging_steps: float = option(20, "Log every N steps; below 1: a share of all steps.")
    logging_nan_inf_filter: bool = option(False, "Leave NaN and infinite losses out of the log.")
    dataloader_num_workers: int = option(4, "Processes that decode images, for each training process.")
    dataloader_drop_last: bool = option(
        False, "Has no effect here: training drops an incomplete batch, evaluation none."
    )
    dataloader_persistent_workers: bool = option(False, "Has no effect here: worker processes stay for all epochs.")
    dataloader_in_order: bool = option(True, "Has no effect here: batches always come in order, so that runs resume.")
    train_sampling_strategy: str = option("random", "Must be random: the order follows from --seed.")
    length_column_name: str = option("length", "Has no effect here: images have no lengths.")
    do_train: bool = option(False, "Has no effect here: a run always trains, except with --eval_only (fine-tuning).")
    do_eval: bool = option(False, "Has no effect here: see --eval_strategy and --eval_split_name.")
    do_predict: bool = option(False, "Has no effect here: `embed` and `analyze knn --predictions` write predictions.")
    ddp_find_unused_parameters: bool | None = option(False, "See torch's DistributedDataParallel.")
    remove_unused_columns: bool = option(False, "Has no effect here: only the image column is read.")
    profile: int = option(
        0, "Measure where the time of N steps goes, print it, write profile.json, and train on. 0: do not."
    )
    report_to: None | str | list[str] = field(
        default_factory=lambda: "tensorboard" if is_tensorboard_available() else "none",
        metadata={"help": "Where to log: tensorboard, wandb, trackio, ... (several too), or none.", "nargs": "+"},
    )

    @property
    def uses_deepspeed(self) -> bool:
        """Whether this process, or `accelerate launch`, was asked for DeepSpeed."""
        return bool(self.deepspeed) or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"

    def choose_cpu(self) -> None:
        """Without this, torchrun on a machine without an accelerator starts processes that do not know of each other,
        and each trains a model of its own. Raises UserError."""
        if self.deepspeed and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(
                f"--deepspeed {self.deepspeed}: on a machine without an accelerator its processes would not know of "
                "each other. Use: accelerate launch --use_deepspeed --deepspeed_config_file FILE ..."
            )
        if self.uses_deepspeed:  # accelerate drops DeepSpeed with `use_cpu`
            os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
            self.ddp_backend = self.ddp_backend or "gloo"
        else:
            self.use_cpu = True

    def _validate_args(self) -> None:
        """As the parent's, which allows bf16 on a CPU with `use_cpu` only, and DeepSpeed cannot have that."""
        given = self.use_cpu
        self.use_cpu = given or not torch.accelerator.is_available()
        try:
            super()._validate_args()
        finally:
            self.use_cpu = given

    def to_json_string(self) -> str:
        """For training_args.json and TensorBoard, which are pushed: without absolute paths."""
        from ..hub.run_record import portable  # takes seconds, and --help needs to answer at once

        return json.dumps(portable(self.to_dict()), indent=2)

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.choose_cpu()
        check_ranges(vars(self))
        check_reports(self.report_to)
        for flag, package, is_asked in (
            ("deepspeed", "deepspeed", self.uses_deepspeed),
            ("use_liger_kernel", "liger_kernel", self.use_liger_kernel),
        ):
            if is_asked:
                check_package(f"--{flag}", package)
        self._check_batch()
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            self.fsdp = self.fsdp.lower() == "true"  # type: ignore[assignment]  # which the parent takes as well
        warmup, self.warmup_steps = self.warmup_steps, self.warmup_steps or 0
        with (
            refused_by_library("These settings of transformers.TrainingArguments cannot be used"),
            joining(self.ddp_timeout, self.use_cpu, self.ddp_backend),
        ):
            super().__post_init__()
        self.warmup_steps = warmup
        self._check_accelerator_config()
        check_precision(self)
        # `accelerate launch` and its file may ask for a precision, and the Trainer obeys.
        self.bf16, self.fp16 = self.mixed_precision == "bf16", self.mixed_precision == "fp16"
        for name in ("lr_scheduler_kwargs", "activation_checkpointing_kwargs"):
            if not isinstance(getattr(self, name), dict | None):
                raise UserError(f"--{name} {getattr(self, name)}: write it as JSON, such as '{{\"a\": 1}}'.")
        if self.dataloader_multiprocessing_context not in (None, *multiprocessing.get_all_start_methods()):
            raise UserError(
                f"--dataloader_multiprocessing_context {self.dataloader_multiprocessing_context}: one of "
                f"{', '.join(multiprocessing.get_all_start_methods())}."
            )
        if self.enable_jit_checkpoint:
            raise UserError("--enable_jit_checkpoint is not needed: SIGTERM and SIGINT always save and stop.")
        if self.save_on_each_node:
            raise UserError(
                "--save_on_each_node: transformers writes models in the first process of all only, so that the other "
                "machines would have none. Leave it out; all machines have to share --output_dir."
            )
        if self.ignore_data_skip:
            raise UserError("--ignore_data_skip would show other images; finding the place in the data takes no time.")

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """As the parent's; none where neither a flag nor `set_schedule` has said how many."""
        return 0 if self.warmup_steps is None else super().get_warmup_steps(num_training_steps)

    def _check_batch(self) -> None:
        if self.auto_find_batch_size:
            raise UserError(
                "--auto_find_batch_size would change the batch, but not the learning rate, the warm-up and the masks "
                "that follow from it. Halve --per_device_train_batch_size and double --gradient_accumulation_steps."
            )
        if self.train_sampling_strategy != "random":
            raise UserError(
                f"--train_sampling_strategy {self.train_sampling_strategy}: images are always drawn at random, in an "
                "order that follows from --seed. Leave it out."
            )

    def _check_accelerator_config(self) -> None:
        """Of what it can say about batches, none is for the loaders of this package."""
        given = self.accelerator_config
        if (getattr(given, "gradient_accumulation_kwargs", None) or {}).get("num_steps") is not None:
            raise UserError("--accelerator_config: for 'num_steps' there is --gradient_accumulation_steps.")
        for name in ("split_batches", "dispatch_batches"):
            if getattr(given, name, None):
                raise UserError(
                    f"--accelerator_config: '{name}' has no effect here; each process reads its own images."
                )


def add_data_arguments(parser: argparse.ArgumentParser, positional: bool = False) -> argparse._ArgumentGroup:
    """Which data set, for the commands of `python -m hf_mae_robust`; `DataLocation.of` reads them. More can be added to
    the group. positional: the data set is the command's first word, SRC, instead of --dataset_name."""
    data = parser.add_argument_group("data")
    if positional:
        data.add_argument("dataset_name", metavar="SRC", help="Hub id, or a folder, as --dataset_name of training.")
    else:
        data.add_argument("--dataset_name", required=True, help="Hub id, or a folder.")
    data.add_argument("--dataset_config_name", help="Configuration of the data set.")
    data.add_argument("--dataset_revision", help="Branch, tag or commit of the data set on the Hub.")
    data.add_argument("--dataset_streaming", action="store_true", help="Read without downloading and preparing first.")
    data.add_argument(
        "--image_column_name", help="Column with the images; default: 'image', or the only one of type Image."
    )
    data.add_argument(
        "--allow_unused_files", action="store_true", help="Read a local folder although image files are left out."
    )
    data.add_argument("--channel_axis", choices=["first", "last"], help="Which axis of an array holds its channels.")
    data.add_argument("--frame", type=int, help="Frame or page to take of files that hold several, counted from 0.")
    data.add_argument("--token", help="Hub token; default: that of `hf auth login` or HF_TOKEN.")
    return data


def add_form_arguments(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """How a model sees its images, for the commands of `python -m hf_mae_robust`. title: of the group."""
    form = parser.add_argument_group(title)
    form.add_argument("--image_size", type=int, nargs="+", default=[224], help="One number, or height and width (224).")
    form.add_argument("--patch_size", type=int, nargs="+", default=[16], help="One number, or height and width (16).")
    form.add_argument("--crop_pct", type=float, default=0.875, help="See run_pretrain.py (%(default)s).")
    return form


def add_bands_argument(data: argparse._ArgumentGroup) -> None:
    """--bands of the commands that look at a checkpoint."""
    data.add_argument(
        "--bands", type=int, nargs="+", help="Where the model's bands are in these files, counted from 0, in its order."
    )


def add_bad_images_argument(group: argparse._ArgumentGroup, outcome: str) -> None:
    """How many images may be undecodable, for the commands of `python -m hf_mae_robust`. outcome: what becomes of
    them."""
    text = f"Share of the images that may be undecodable; {outcome} (%(default)s)."
    group.add_argument("--max_bad_images", type=float, default=0.01, help=text)


def add_worker_argument(group: argparse._ArgumentGroup) -> None:
    """How many processes decode images, for the commands of `python -m hf_mae_robust`. PyTorch warns of more than there
    are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    group.add_argument(
        "--num_workers",
        type=int,
        default=min(4, cores),
        help="Processes that decode; default: 4, or the number of CPU cores where it is lower (%(default)s).",
    )
