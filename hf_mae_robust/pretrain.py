"""Pre-training, from arguments to a folder that `from_pretrained` loads."""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError
from tqdm.auto import tqdm
from transformers import AutoConfig, set_seed
from transformers.utils import is_flash_attn_2_available

from .arguments import (
    DEFAULT_RECIPE,
    DataArguments,
    MAETrainingArguments,
    ModelArguments,
    RecipeArguments,
    RecipeParser,
    parse_config_overrides,
)
from .bad_images import describe
from .data import check_fills_a_batch, end_workers, sequential_loader
from .diagnostics import save_loss_plot, save_reconstructions
from .guards import NonFiniteError
from .launch import check_launch
from .model import ViTMAERobustConfig, ViTMAERobustForPreTraining
from .model.configuration_vit_mae_robust import to_pair
from .optimization import scale_learning_rate, warmup_steps
from .resume import (
    CheckpointError,
    check_config,
    differences_from_record,
    explain_differences,
    fault_of,
    newest_checkpoint,
    read_record,
    remove_checkpoints,
)
from .saving import SavingError, recover
from .sources import DataError, DataLocation, ImageSource, load_head_of_stream, open_splits
from .statistics import PatchStatistics
from .stopping import EXIT_STOPPED, StopRequested
from .target_statistics import cached_statistics_of_source
from .trainer import MAETrainer
from .transforms import evaluation_processor

STATISTICS_FILE = "target_statistics.safetensors"
NUM_PICTURES = 8
# An evaluation set that cannot seek is held in memory.
MAX_EVAL_SAMPLES_OF_STREAM = 5000
# What wrong arguments, data and checkpoints raise before the first step.
INPUT_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, PermissionError, StrictDataclassError)


# Written when a signal ended the run, for scripts: torchrun and `accelerate launch` do not pass an exit code on.
STOPPED_FILE = "stopped.json"


class InputError(Exception):
    """Something the user can mend; the message says how."""


EXIT_CODES = {InputError: 2, NonFiniteError: 3, SavingError: 4}


def say(message: str) -> None:
    """Print on the first process only, without breaking a progress bar."""
    if PartialState().is_main_process:
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()


def make_parser(prog: str | None = None, description: str | None = None) -> RecipeParser:
    groups = [ModelArguments, DataArguments, RecipeArguments, MAETrainingArguments]
    return RecipeParser(groups, default_recipe=DEFAULT_RECIPE, prog=prog, description=description)


def build_config(arguments: ModelArguments) -> ViTMAERobustConfig:
    """The configuration that checkpoint, --config_overrides and flags ask for; the later of these wins.

    Raises ValueError for unknown settings and values out of range.
    """
    known = {setting.name for setting in fields(ViTMAERobustConfig)}
    settings = {}
    if arguments.model_name_or_path:
        base = AutoConfig.from_pretrained(
            arguments.model_name_or_path, trust_remote_code=arguments.trust_remote_code, token=arguments.token
        )
        if base.model_type not in ("vit_mae", ViTMAERobustConfig.model_type):
            raise ValueError(
                f"--model_name_or_path {arguments.model_name_or_path} is a '{base.model_type}' model; pre-training "
                f"goes on from '{ViTMAERobustConfig.model_type}' or stock 'vit_mae' checkpoints."
            )
        settings = {key: value for key, value in base.to_dict().items() if key in known}
    overrides = parse_config_overrides(arguments.config_overrides)
    for flag in (
        "mask_ratio",
        "target_normalization",
        "norm_pix_loss",
        "decoder_attention_probs_dropout_prob",
        "mid_mask_ratio",
        "mid_mask_layer_idx",
    ):
        if getattr(arguments, flag) is not None:
            overrides[flag] = getattr(arguments, flag)
    if unknown := sorted(set(overrides) - known):
        raise ValueError(f"--config_overrides: ViTMAERobustConfig has no setting {', '.join(unknown)}.")
    return ViTMAERobustConfig(**{**settings, **overrides})


def build_model(arguments: ModelArguments, config: ViTMAERobustConfig) -> ViTMAERobustForPreTraining:
    if arguments.attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError("--attn_implementation flash_attention_2 needs the package flash-attn and a GPU; use sdpa.")
    if arguments.model_name_or_path is None:
        return ViTMAERobustForPreTraining._from_config(config, attn_implementation=arguments.attn_implementation)
    model, info = ViTMAERobustForPreTraining.from_pretrained(
        arguments.model_name_or_path,
        config=config,
        attn_implementation=arguments.attn_implementation,
        token=arguments.token,
        output_loading_info=True,
    )
    # Statistics come from --target_statistics; a mid-level token is new to most checkpoints.
    expected = ("target_normalizer.", "vit.mid_mask_token")
    if missing := sorted(key for key in info["missing_keys"] if not key.startswith(expected)):
        say(
            f"Note: {arguments.model_name_or_path} lacks {len(missing)} tensors, which start from scratch: "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''}"
        )
    return model


def find_statistics(
    arguments: ModelArguments, data: DataArguments, config: ViTMAERobustConfig, source: ImageSource, num_workers: int
) -> PatchStatistics | None:
    """The population statistics that --target_statistics asks for. None: the model needs none, or brings them."""
    wanted = arguments.target_statistics
    if config.target_normalization != "global_patch":
        if wanted:
            raise ValueError(
                f"--target_statistics {wanted} is for --target_normalization global_patch, not "
                f"'{config.target_normalization}'."
            )
        return None
    if wanted is None:
        if arguments.model_name_or_path:
            return None
        raise ValueError(
            "--target_normalization global_patch needs --target_statistics: 'auto' computes them from the training "
            "images; a path takes a file written by `python -m hf_mae_robust statistics`."
        )
    if wanted != "auto":
        return PatchStatistics.load(wanted, config.patch_dim)
    return cached_statistics_of_source(
        source, config, crop_pct=data.crop_pct, num_workers=num_workers, max_bad_images=data.max_bad_images
    )


def open_sources(model: ModelArguments, data: DataArguments, seed: int) -> tuple[ImageSource, ImageSource | None]:
    train, evaluation = open_splits(
        DataLocation.of(data, model.token),
        data.train_split_name,
        None if data.eval_split_name == "none" else data.eval_split_name,
        data.train_val_split,
        seed,
        data.shuffle_buffer_size,
    )
    train = train.head(data.max_train_samples)
    if evaluation is not None:
        if evaluation.row_groups is None:
            evaluation = load_head_of_stream(evaluation, data.max_eval_samples or MAX_EVAL_SAMPLES_OF_STREAM)
        evaluation = evaluation.head(data.max_eval_samples)
    return train, evaluation


def set_schedule(source: ImageSource, recipe: RecipeArguments, training: MAETrainingArguments) -> None:
    """Fill in learning rate and warm-up, which depend on the effective batch and the number of steps."""
    check_fills_a_batch(source, training.train_batch_size, training.world_size)
    batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    if training.learning_rate is None:
        training.learning_rate = scale_learning_rate(recipe.base_learning_rate, batch)
    if source.num_rows is None:
        if training.max_steps <= 0:
            raise ValueError(
                f"{source.description} does not tell how many images it has: give --max_steps (and --warmup_steps) "
                "instead of --num_train_epochs."
            )
        if recipe.warmup_epochs is not None:
            raise ValueError("--warmup_epochs needs a data set of known length; give --warmup_steps.")
        if training.save_strategy == "epoch":
            training.set_save(strategy="steps", steps=training.save_steps, total_limit=training.save_total_limit)
        total_steps, epochs = training.max_steps, None
    else:
        micro_steps = source.num_rows // (training.train_batch_size * training.world_size)
        steps_per_epoch = max(-(-micro_steps // training.gradient_accumulation_steps), 1)
        total_steps = (
            training.max_steps if training.max_steps > 0 else round(training.num_train_epochs * steps_per_epoch)
        )
        epochs = total_steps / steps_per_epoch
    if not training.warmup_steps:
        warmup = recipe.warmup_epochs if recipe.warmup_epochs is not None else 0.05 * (epochs or 1)
        training.warmup_steps = warmup_steps(warmup, epochs or 1, total_steps)


def describe_run(trainer: MAETrainer) -> str:
    """One line: what is trained on what."""
    args, config = trainer.args, trainer.model.config
    millions = sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6
    target = config.target_normalization + (" + per patch" if config.norm_pix_loss else "")
    ingredients = f"decoder dropout {config.decoder_attention_probs_dropout_prob}, target {target}"
    if config.mid_mask_ratio:
        ingredients += f", {config.mid_mask_ratio:.0%} mid-level tokens from block {config.mid_mask_layer_idx}"
    image, patch = ("x".join(map(str, to_pair(size))) for size in (config.image_size, config.patch_size))
    source = trainer.train_dataset
    images = source.description if source.num_rows is None else f"{source.num_rows:,} images of {source.description}"
    processes = f"{args.world_size} process{'es' * (args.world_size > 1)}"
    length = f"{args.num_train_epochs:g} epochs" if args.max_steps <= 0 else f"{args.max_steps:,} steps"
    return (
        f"Pre-training a masked autoencoder (encoder {config.hidden_size}x{config.num_hidden_layers}, decoder "
        f"{config.decoder_hidden_size}x{config.decoder_num_hidden_layers}, {millions:.3g} M parameters; {image} px, "
        f"patch {patch}, {config.mask_ratio:.0%} masked; {ingredients}) on {images}: {length}, effective batch "
        f"{trainer.get_total_train_batch_size(args):,} ({args.train_batch_size} x {processes} x "
        f"{args.gradient_accumulation_steps} accumulated), learning rate {args.learning_rate:.3g} after "
        f"{args.warmup_steps:g} steps of warm-up, {args.device.type}{' bf16' if args.bf16 else ''}"
    )


def record_of(
    model: ModelArguments,
    data: DataArguments,
    training: MAETrainingArguments,
    source: ImageSource,
) -> dict[str, Any]:
    """What decides over the course of a run, beside the model's settings: a resumed run must have the same."""
    names = (
        "world_size",
        "train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
        "seed",
        "data_seed",
        "learning_rate",
        "warmup_steps",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "optim",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "bf16",
        "fp16",
    )
    return {
        **{name: getattr(training, name) for name in names},
        "dataset_name": data.dataset_name,
        "dataset_revision": source.revision,
        "dataset_fingerprint": source.fingerprint,
        "num_images": source.num_rows,
        "dataset_streaming": data.dataset_streaming,
        "shuffle_buffer_size": data.shuffle_buffer_size if data.dataset_streaming else None,
        "crop_scale": list(data.crop_scale),
        "horizontal_flip": data.horizontal_flip,
        "target_statistics": model.target_statistics,
    }


def find_checkpoint(recipe: RecipeArguments, training: MAETrainingArguments, config: ViTMAERobustConfig) -> str | None:
    """The checkpoint to go on from: the one named, or the newest complete one in the output folder."""
    named = training.resume_from_checkpoint
    if recipe.overwrite_output_dir:
        if named:
            raise ValueError("--overwrite_output_dir starts anew; it cannot be combined with --resume_from_checkpoint.")
        return None
    if named and str(named).lower() not in ("true", "auto"):
        checkpoint = Path(named)
        if not checkpoint.is_dir():
            raise CheckpointError(f"--resume_from_checkpoint {named}: no such folder.")
        if fault := fault_of(checkpoint):
            raise CheckpointError(f"--resume_from_checkpoint {named} cannot be resumed from: {fault}.")
    else:
        recover(training.output_dir)
        checkpoint = newest_checkpoint(training.output_dir)
    if checkpoint is None:
        return None
    check_config(checkpoint, config)
    say(f"Going on from {checkpoint} (--overwrite_output_dir starts anew)")
    return str(checkpoint)


def agree_on_checkpoint(*arguments) -> str | None:
    """`find_checkpoint`, by one process for all: verifying takes time, and all must go on from the same one.

    Raises CheckpointError in all of them, and where a process does not see the checkpoint.
    """
    outcome = [None, None]
    if PartialState().is_main_process:
        try:
            outcome = [find_checkpoint(*arguments), None]
        except (ValueError, OSError) as error:
            outcome = [None, str(error)]
    checkpoint, error = broadcast_object_list(outcome)
    if error:
        raise CheckpointError(error)
    if checkpoint and not Path(checkpoint).is_dir():
        raise CheckpointError(f"Process {PartialState().process_index} does not see {checkpoint}, which others do.")
    return checkpoint


def pin_revision(data: DataArguments, checkpoint: str | None) -> None:
    """Go on with the commit of the data set that the run began with, though its branch may have moved since."""
    if checkpoint and data.dataset_revision is None:
        record = read_record(Path(checkpoint))
        if record.get("dataset_name") == data.dataset_name:
            data.dataset_revision = record.get("dataset_revision")


def prepare(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    recipe: RecipeArguments,
    training: MAETrainingArguments,
) -> tuple[MAETrainer, str | None]:
    """Everything up to the first step, its line of description included: the trainer, and the checkpoint to go on
    from."""
    if Path(training.output_dir).is_file():
        raise NotADirectoryError(f"--output_dir {training.output_dir} is a file.")
    check_launch(training)
    set_seed(training.seed)
    config = build_config(model_arguments)
    checkpoint = agree_on_checkpoint(recipe, training, config)
    pin_revision(data_arguments, checkpoint)
    train_source, eval_source = open_sources(model_arguments, data_arguments, training.seed)
    if eval_source is None and training.eval_strategy != "no":
        raise ValueError(
            f"--eval_strategy {training.eval_strategy.value}: {train_source.description} has no split to evaluate on; "
            "name one with --eval_split_name or hold images out with --train_val_split 0.05."
        )
    set_schedule(train_source, recipe, training)
    record = record_of(model_arguments, data_arguments, training, train_source)
    is_elastic = False
    if checkpoint and (differences := differences_from_record(Path(checkpoint), record)):
        if not recipe.allow_elastic_resume:
            raise CheckpointError(explain_differences(checkpoint, differences))
        is_elastic = True
        say(f"Other settings than {checkpoint} (--allow_elastic_resume): {'; '.join(differences)}")
    trainer = MAETrainer(
        model=build_model(model_arguments, config),
        args=training,
        train_source=train_source,
        eval_source=eval_source,
        processing_class=evaluation_processor(
            config.image_size, data_arguments.crop_pct, config.num_channels, config.image_mean, config.image_std
        ),
        crop_scale=tuple(data_arguments.crop_scale),
        horizontal_flip=data_arguments.horizontal_flip,
        shuffle_buffer_size=data_arguments.shuffle_buffer_size,
        record=record,
        allow_elastic_resume=is_elastic,
        max_bad_images=data_arguments.max_bad_images,
        skip_nonfinite_steps=recipe.skip_nonfinite_steps,
    )
    say(describe_run(trainer))
    if train_source.row_groups is None:
        say(
            f"Note: {train_source.description} can only be read from its beginning. There are no epochs; a resumed run "
            "starts it over, so some images come more often than others; shuffling is within "
            f"{data_arguments.shuffle_buffer_size:,} images. Parquet files, or a data set that is not streamed, have "
            "none of these limits."
        )
    if checkpoint is None:  # which holds them
        set_statistics(trainer, model_arguments, data_arguments)
    # Dropout must not depend on whether the statistics were computed or found in the cache.
    set_seed(training.seed)
    # Last of all: whatever was wrong with the arguments or the data has been found by now.
    starts_anew = recipe.overwrite_output_dir and training.process_index == 0
    if starts_anew and (removed := remove_checkpoints(training.output_dir)):
        say(f"Starting anew: removed {', '.join(str(path) for path in removed)}")
    PartialState().wait_for_everyone()
    return trainer, checkpoint


def set_statistics(trainer: MAETrainer, model_arguments: ModelArguments, data_arguments: DataArguments) -> None:
    """Give the model its target statistics, where it needs any."""
    training, config = trainer.args, trainer.model.config
    statistics = find_statistics(
        model_arguments, data_arguments, config, trainer.train_dataset, training.dataloader_num_workers
    )
    if statistics is not None:
        trainer.model.set_target_statistics(statistics.mean, statistics.std)
        if training.process_index == 0:
            statistics.save(Path(training.output_dir) / STATISTICS_FILE)
    elif config.target_normalization == "global_patch" and not trainer.model.target_normalizer.ready:
        raise ValueError(
            f"--target_normalization global_patch: {model_arguments.model_name_or_path} holds no patch statistics; "
            "give --target_statistics auto."
        )


def save_pictures(trainer: MAETrainer) -> None:
    """`reconstructions.png` of the first images held out (or trained on, where none are), and `loss.png`."""
    output_dir, args = Path(trainer.args.output_dir), trainer.args
    source = trainer.eval_dataset or trainer.train_dataset
    if source.row_groups is None:
        source = load_head_of_stream(source, NUM_PICTURES)
    config = trainer.model.config
    loader = sequential_loader(
        source.head(NUM_PICTURES),
        trainer.eval_transform,
        config.num_channels,
        batch_size=NUM_PICTURES,
        rank=0,
        world_size=1,
        noise_length=config.num_patches,
    )
    batch = next(iter(loader))
    is_image = batch["row"] >= 0
    images = trainer._prepare_inputs({"pixel_values": batch["pixel_values"][is_image]})["pixel_values"]
    noise = batch["noise"][is_image].to(args.device)
    model = trainer.accelerator.unwrap_model(trainer.model)
    with trainer.compute_loss_context_manager():  # flash attention works under autocast only
        save_reconstructions(model, images, noise, output_dir / "reconstructions.png")
    save_loss_plot(trainer.state.log_history, output_dir / "loss.png")


def run(trainer: MAETrainer, checkpoint: str | None) -> None:
    """Train, evaluate, and fill the output folder."""
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    result.metrics.pop("total_flos", None)  # not counted, see MAETrainer.floating_point_ops
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        save_pictures(trainer)
        if len(trainer.skipped_images):
            say(f"Not decodable: {describe(trainer.skipped_images.counts())}, listed in {trainer.skipped_images.path}")
        say(f"Done. {trainer.args.output_dir} holds the model, reconstructions.png, loss.png and all_results.json.")


def pretrain(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    recipe: RecipeArguments,
    training: MAETrainingArguments,
) -> MAETrainer:
    """Train a masked autoencoder. At the end the output folder holds weights (safetensors), config, image processor,
    model code, `reconstructions.png`, `loss.png`, `all_results.json`, and the statistics of the target, if any.

    Raises:
        ValueError (DataError, CheckpointError among them), FileNotFoundError, NotADirectoryError: arguments, data or
            checkpoint cannot be used. Existing checkpoints are as they were.
        StopRequested, NonFiniteError, SavingError: as `MAETrainer.train`; checkpoints written so far are complete.
    """
    trainer, checkpoint = prepare(model_arguments, data_arguments, recipe, training)
    run(trainer, checkpoint)
    return trainer


def main(argv: list[str] | None = None, description: str | None = None) -> None:
    """Command line of run_pretrain.py. Ends in one sentence instead of a traceback (which --log_level debug shows)
    and, beside 0, with exit code 2: bad input; 3: a loss or gradient that is not finite; 4: a checkpoint could not be
    written; 75: stopped by a signal, to be started again."""
    parser = make_parser(description=description)
    arguments = parser.parse(argv)
    transformers.utils.logging.set_verbosity_warning()
    transformers.utils.logging.disable_progress_bar()  # of every file that is written or read
    training: MAETrainingArguments = arguments[-1]
    stopped = Path(training.output_dir) / STOPPED_FILE
    try:
        try:
            trainer, checkpoint = prepare(*arguments)
            stopped.unlink(missing_ok=True)
        except INPUT_ERRORS as error:
            raise InputError(str(error)) from error
        try:
            run(trainer, checkpoint)
        except (CheckpointError, DataError) as error:
            # From a worker process the message comes as a traceback that ends in it.
            last_line = str(error).strip().splitlines()[-1]
            raise InputError(last_line.split(f"{type(error).__name__}: ", 1)[-1]) from error
    except StopRequested as stop:
        end_workers()
        say(f"{stop}. The same command goes on from there.")
        if PartialState().is_main_process:
            content = {"signal": stop.signal_name, "step": stop.step, "checkpoint": stop.checkpoint}
            stopped.write_text(json.dumps(content) + "\n")
        PartialState().destroy_process_group()
        sys.exit(EXIT_STOPPED)
    except KeyboardInterrupt:  # before or after the training, which takes note of it
        sys.exit(130)
    except (InputError, NonFiniteError, SavingError) as error:
        if training.log_level == "debug":
            raise
        end_workers()
        # Other processes may be waiting for this one; the launcher ends them.
        parser.fail(error, EXIT_CODES[type(error)])
    else:
        PartialState().destroy_process_group()
