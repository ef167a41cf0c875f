"""Pre-training, from arguments to a folder that `from_pretrained` loads."""

import argparse
from dataclasses import fields, replace
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoConfig, set_seed
from transformers.utils import is_flash_attn_2_available

from .analysis.online import add_online_diagnostics
from .conversion.encoders import unreadable
from .data.loaders import sequential_loader
from .data.opening import EMBEDDED
from .data.preprocessing import evaluation_processor
from .data.source import ImageSource, load_head_of_stream
from .hub.model_card import PRETRAINING
from .hub.run_record import about_run
from .model import ViTMAERobustConfig, ViTMAERobustForPreTraining
from .model.configuration_vit_mae_robust import to_pair
from .pretraining.arguments import DEFAULT_RECIPE, MAETrainingArguments, ModelArguments
from .pretraining.dry_run import describe_plan
from .pretraining.patch_statistics import PatchStatistics
from .pretraining.statistics_pass import cached_statistics_of_source
from .pretraining.trainer import MAETrainer
from .training.arguments import DataArguments, RecipeArguments
from .training.parser import RecipeParser, parse_config_overrides
from .training.pictures import save_loss_plot, save_reconstructions
from .training.run import (
    evaluate_and_save,
    push_if_asked,
    report_skipped_images,
    run_command,
    save_examples_and_card,
    train_and_save,
)
from .training.setup import (
    accept,
    agree_on_checkpoint,
    begin,
    check_can_evaluate,
    describe_length,
    fetch_model,
    open_sources,
    pin_revision,
    record_of,
    say,
    set_schedule,
    start_anew_if_asked,
    warn_of_stream,
)

STATISTICS_FILE = "target_statistics.safetensors"
NUM_PICTURES = 8


def make_parser(prog: str | None = None, description: str | None = None) -> RecipeParser:
    groups = [ModelArguments, DataArguments, RecipeArguments, MAETrainingArguments]

    def default_recipe(given: argparse.Namespace) -> str | None:
        return None if given.dataset_name else DEFAULT_RECIPE

    return RecipeParser(groups, default_recipe, prog=prog, description=description)


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
    try:
        model, info = ViTMAERobustForPreTraining.from_pretrained(
            arguments.model_name_or_path,
            config=config,
            attn_implementation=arguments.attn_implementation,
            token=arguments.token,
            output_loading_info=True,
        )
    except (OSError, SafetensorError) as error:
        raise unreadable(arguments.model_name_or_path, error) from error
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


def describe_run(trainer: MAETrainer) -> str:
    """One line: what is trained on what."""
    config = trainer.model.config
    millions = sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6
    target = config.target_normalization + (" + per patch" if config.norm_pix_loss else "")
    ingredients = f"decoder dropout {config.decoder_attention_probs_dropout_prob}, target {target}"
    if config.mid_mask_ratio:
        ingredients += f", {config.mid_mask_ratio:.0%} mid-level tokens from block {config.mid_mask_layer_idx}"
    image, patch = ("x".join(map(str, to_pair(size))) for size in (config.image_size, config.patch_size))
    return (
        f"Pre-training a masked autoencoder (encoder {config.hidden_size}x{config.num_hidden_layers}, decoder "
        f"{config.decoder_hidden_size}x{config.decoder_num_hidden_layers}, {millions:.3g} M parameters; {image} px, "
        f"patch {patch}, {config.mask_ratio:.0%} masked; {ingredients}) on {describe_length(trainer)}"
    )


def prepare(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    recipe: RecipeArguments,
    training: MAETrainingArguments,
) -> tuple[MAETrainer, str | None]:
    """Everything up to the first step, its line of description included: the trainer, and the checkpoint to go on
    from."""
    begin(training)
    start, commit = model_arguments.model_name_or_path, None
    training.hub_token = training.hub_token or model_arguments.token
    if start is not None:
        path, commit = fetch_model(start, model_arguments.model_revision, model_arguments.token)
        model_arguments = replace(model_arguments, model_name_or_path=path)
    config = build_config(model_arguments)
    checkpoint = agree_on_checkpoint(recipe, training, config)
    pin_revision(data_arguments, checkpoint)
    train_source, eval_source = open_sources(data_arguments, model_arguments.token, training.seed)
    check_can_evaluate(train_source, eval_source, training)
    num_views = training.repeated_augmentation
    set_schedule(train_source, recipe, training, num_views)
    more = {"repeated_augmentation": num_views} if num_views > 1 else {}  # older checkpoints do not know of it
    record = record_of(
        training, data_arguments, train_source, target_statistics=model_arguments.target_statistics, **more
    )
    is_elastic = accept(checkpoint, record, recipe)
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
        repeated_augmentation=num_views,
        record=record,
        allow_elastic_resume=is_elastic,
        max_bad_images=data_arguments.max_bad_images,
        skip_nonfinite_steps=recipe.skip_nonfinite_steps,
    )
    trainer.about = about_run(
        trainer,
        task=PRETRAINING,
        start=start,
        start_commit=commit,
        dataset_name=data_arguments.dataset_name,
        built_in_dataset=EMBEDDED,
        recipe=recipe.config,
        model_license=recipe.model_license,
    )
    if training.diagnostics_steps:
        add_online_diagnostics(trainer, data_arguments, training, model_arguments.token)
    say(describe_run(trainer))
    warn_of_stream(train_source, data_arguments)
    if checkpoint is None:  # which holds them
        set_statistics(trainer, model_arguments, data_arguments)
    # Dropout must not depend on whether the statistics were computed or found in the cache.
    set_seed(training.seed)
    start_anew_if_asked(recipe, training)
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
    train_and_save(trainer, checkpoint)
    if trainer.eval_dataset is not None:
        evaluate_and_save(trainer)
    if trainer.is_world_process_zero():
        save_pictures(trainer)
        report_skipped_images(trainer)
        save_examples_and_card(trainer)
        say(
            f"Done. {trainer.args.output_dir} holds the model, README.md (its card), reconstructions.png, loss.png and "
            "all_results.json."
        )
    push_if_asked(trainer)


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


def plan(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    recipe: RecipeArguments,
    training: MAETrainingArguments,
) -> tuple[str, None]:
    """--dry_run: the text of the plan. Raises as `prepare` for arguments and data that cannot be used."""
    begin(training)
    if model_arguments.model_name_or_path is not None:
        path, _ = fetch_model(model_arguments.model_name_or_path, model_arguments.model_revision, model_arguments.token)
        model_arguments = replace(model_arguments, model_name_or_path=path)
    config = build_config(model_arguments)
    train_source, eval_source = open_sources(data_arguments, model_arguments.token, training.seed)
    check_can_evaluate(train_source, eval_source, training)
    set_schedule(train_source, recipe, training, training.repeated_augmentation)
    return describe_plan(config, training, train_source), None


def main(argv: list[str] | None = None, description: str | None = None) -> None:
    """Command line of run_pretrain.py; exit codes as in `run_command`."""
    parser = make_parser(description=description)
    arguments = parser.parse(argv)
    if arguments[-1].dry_run:
        run_command(parser, arguments, plan, lambda text, _: say(text))
    else:
        run_command(parser, arguments, prepare, run)
