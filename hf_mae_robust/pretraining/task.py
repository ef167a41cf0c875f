"""Masked-autoencoder pre-training as a task of training/run.py."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import is_flash_attn_2_available

from ..conversion.any_encoder import load_start
from ..conversion.pixels import Pixels, pixels_of
from ..conversion.pretraining_model import load_pretraining_model
from ..conversion.source import ModelSource
from ..data.source import ImageSource
from ..errors import UserError
from ..hub.before_after import before_and_after
from ..hub.model_card import PRETRAINING
from ..hub.run_record import in_millions
from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining
from ..model.configuration_vit_mae_robust import to_pair
from ..statistics.band_settings import sample_of, say_of_sample
from ..statistics.patch_statistics import PatchStatistics
from ..statistics.statistics_pass import cached_statistics_of_source
from ..training.parser import parse_config_overrides
from ..training.setup import describe_length, say
from ..training.task import Task
from .adapting import describe_decoder_steps, freeze_blocks
from .arguments import MAETrainingArguments, ModelArguments, PretrainArguments
from .cpu_attention import default_attention
from .model_config import config_of, settings_of_images
from .pictures import ERRORS_BY_BAND, RECONSTRUCTIONS, save_pictures
from .trainer import MAETrainer

STATISTICS_FILE = "target_statistics.safetensors"


class PretrainingTask(Task[PretrainArguments, ViTMAERobustForPreTraining, MAETrainer]):
    """add_diagnostics: adds what --diagnostics_steps asks for, given Trainer and arguments. It comes from the caller
    (pretrain.py), because analysis/ stands above this package."""

    name = PRETRAINING
    loss = "mean squared error of the target"

    def __init__(self, add_diagnostics: Callable[[MAETrainer, PretrainArguments], None] | None = None):
        self.add_diagnostics = add_diagnostics
        self.settings_of_images: dict[str, Any] = {}

    def check_settings(self, arguments: PretrainArguments) -> None:
        model, training = arguments.model, arguments.training
        if model.encoder_from is None:
            if model.checkpoint_key is not None:
                raise UserError("--checkpoint_key is for --encoder_from.")
        elif model.model_name_or_path != ModelArguments(encoder_from=model.encoder_from).model_name_or_path:
            raise UserError(
                "--encoder_from and --model_name_or_path both name a checkpoint to start from. Give one of them."
            )
        flags = {"decoder_warmup_steps": training.decoder_warmup_steps or None, "freeze_blocks": training.freeze_blocks}
        if model.model_name_or_path is None and (given := [name for name in flags if flags[name] is not None]):
            raise UserError(
                f"--{given[0]} guards what an encoder has learnt, and this run starts from scratch. Give "
                f"--encoder_from PATH, or leave --{given[0]} out (a recipe may set it)."
            )

    def check_model(self, arguments: PretrainArguments) -> None:
        config = config_of(arguments.model)
        if (schedule := arguments.training.resolution) is not None:
            schedule.configs(config)

    def num_views(self, arguments: PretrainArguments) -> int:
        return arguments.training.repeated_augmentation

    def look_at_images(self, arguments: PretrainArguments, source: ImageSource, checkpoint: str | None) -> None:
        self.settings_of_images = settings_of_images(arguments, source, checkpoint)

    def build_model(
        self, arguments: PretrainArguments, class_names: Sequence[str]
    ) -> tuple[ViTMAERobustForPreTraining, Pixels]:
        model, training = arguments.model, arguments.training
        config = config_of(model, self.settings_of_images)
        check_use_of_config(arguments, config)
        if model.attn_implementation is None:
            attention: Any = default_attention(training.device, training.torch_compile)
            model = replace(model, attn_implementation=attention)
        built = build_model(model, config)
        if training.freeze_blocks is not None:
            freeze_blocks(built, training.freeze_blocks)
        return built, pixels_of(config)

    def record(self, arguments: PretrainArguments, model: ViTMAERobustForPreTraining) -> dict[str, Any]:
        record: dict[str, Any] = {"target_statistics": arguments.model.target_statistics}
        if (num_views := self.num_views(arguments)) > 1:  # older checkpoints do not know of it
            record["repeated_augmentation"] = num_views
        if (samples := arguments.data.statistics_samples) is not None:
            record["statistics_samples"] = samples
        if (schedule := arguments.training.resolution) is not None:
            record["resolution_schedule"] = str(schedule)
        return record | guards_of_encoder(arguments.training, model)

    def make_trainer(
        self,
        arguments: PretrainArguments,
        model: ViTMAERobustForPreTraining,
        pixels: Pixels,
        class_names: Sequence[str],
        **common: Any,
    ) -> MAETrainer:
        config, data = model.config, arguments.data
        return MAETrainer(
            model=model,
            processing_class=pixels.processor(config.image_size, data.crop_pct, data.show_bands),
            crop_scale=(data.crop_scale[0], data.crop_scale[1]),
            horizontal_flip=data.horizontal_flip,
            vertical_flip=data.vertical_flip,
            rot90=data.rot90,
            repeated_augmentation=self.num_views(arguments),
            decoder_warmup_steps=arguments.training.decoder_warmup_steps,
            resolution_schedule=arguments.training.resolution,
            layer_decay=arguments.training.layer_decay if arguments.training.layer_decay < 1 else None,
            **common,
        )

    def add_callbacks(self, trainer: MAETrainer, arguments: PretrainArguments) -> None:
        if arguments.training.diagnostics_steps and self.add_diagnostics is not None:
            self.add_diagnostics(trainer, arguments)

    def describe(self, trainer: MAETrainer, arguments: PretrainArguments) -> str:
        config = trainer.model.config
        parameters = in_millions(sum(parameter.numel() for parameter in trainer.model.parameters()))
        target = config.target_normalization + (" + per patch" if config.norm_pix_loss else "")
        if config.norm_pix_loss and config.norm_pix_axis == "channel":
            target += " and channel"
        ingredients = f"decoder dropout {config.decoder_attention_probs_dropout_prob}, target {target}"
        if config.mid_mask_ratio:
            ingredients += f", {config.mid_mask_ratio:.0%} mid-level tokens from block {config.mid_mask_layer_idx}"
        if config.decoder_keep_ratio < 1:
            ingredients += f", {config.decoder_keep_ratio:.0%} of the masked patches reconstructed in a step"
        image, patch = ("x".join(map(str, to_pair(size))) for size in (config.image_size, config.patch_size))
        return (
            f"Pre-training a masked autoencoder (encoder {config.hidden_size}x{config.num_hidden_layers}, decoder "
            f"{config.decoder_hidden_size}x{config.decoder_num_hidden_layers}, {parameters} parameters; {image} "
            f"px, patch {patch}, {config.mask_ratio:.0%} masked; {ingredients}; attention "
            f"{config._attn_implementation}) on {describe_length(trainer)}"
            f"{describe_guards(trainer, arguments.training)}{describe_schedule(trainer)}"
        )

    def start(self, trainer: MAETrainer, arguments: PretrainArguments) -> None:
        """Give the model its target statistics, where it needs any."""
        training, config = trainer.args, trainer.model.config
        statistics = find_statistics(arguments, config, trainer.train_source)
        if statistics is not None:
            trainer.model.set_target_statistics(statistics.mean, statistics.std)
            if training.process_index == 0:
                statistics.save(Path(training.output_dir) / STATISTICS_FILE)
        elif config.target_normalization == "global_patch" and not trainer.model.target_normalizer.ready:
            raise UserError(
                f"--target_normalization global_patch: {arguments.model.model_name_or_path} holds no patch "
                "statistics; give --target_statistics auto."
            )

    def draw(self, trainer: MAETrainer) -> None:
        save_pictures(trainer)

    def report(self, trainer: MAETrainer) -> tuple[str, list[str]]:
        starts_from = trainer.about["start"]
        if starts_from is not None and (compared := before_and_after(trainer.state.log_history)):
            say(str(compared))
        drawn = [RECONSTRUCTIONS, ERRORS_BY_BAND] if trainer.model.config.is_band_model else [RECONSTRUCTIONS]
        return "", [name for name in drawn if (Path(trainer.args.output_dir) / name).is_file()]


def check_use_of_config(arguments: PretrainArguments, config: ViTMAERobustConfig) -> None:
    """Raises UserError for flags that the model of this configuration has no use for, and for those that it lacks."""
    model, samples = arguments.model, arguments.data.statistics_samples
    if samples is not None and not (
        model.target_statistics == "auto" or config.is_band_model or arguments.data.image_statistics == "auto"
    ):
        raise UserError(
            f"--statistics_samples {samples}: this run computes no statistics. Leave it out, or give "
            "--target_normalization global_patch --target_statistics auto."
        )
    if model.target_statistics and config.target_normalization != "global_patch":
        raise UserError(
            f"--target_statistics {model.target_statistics} is for --target_normalization global_patch, not "
            f"'{config.target_normalization}'. Give --target_statistics none if a recipe has set it."
        )
    if config.target_normalization == "global_patch" and not (model.target_statistics or model.model_name_or_path):
        raise UserError(
            "--target_normalization global_patch needs --target_statistics: 'auto' computes them from the training "
            "images; a path takes a file written by `python -m hf_mae_robust statistics`."
        )


def build_model(arguments: ModelArguments, config: ViTMAERobustConfig) -> ViTMAERobustForPreTraining:
    if arguments.attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError("--attn_implementation flash_attention_2 needs the package flash-attn and a GPU; use sdpa.")
    if arguments.model_name_or_path is None:
        return ViTMAERobustForPreTraining._from_config(config, attn_implementation=arguments.attn_implementation)
    load = load_pretraining_model if arguments.encoder_from is None else load_start
    source = ModelSource.of(arguments, parse_config_overrides(arguments.config_overrides))
    model, note = load(source, config, arguments.attn_implementation)
    if note:
        say(note)
    return model


def guards_of_encoder(training: MAETrainingArguments, model: ViTMAERobustForPreTraining) -> dict[str, Any]:
    """For the record of a run: what decides over which weights learn, and how fast. Older checkpoints do not know of
    it, so only what is on."""
    guards = {
        "decoder_warmup_steps": training.decoder_warmup_steps or None,
        "layer_decay": training.layer_decay if training.layer_decay < 1 else None,
        "freeze_blocks": training.freeze_blocks,
        "positions_train": model.vit.embeddings.position_embeddings.requires_grad or None,
    }
    return {name: value for name, value in guards.items() if value is not None}


def describe_schedule(trainer: MAETrainer) -> str:
    schedule = trainer.resolution_schedule
    if schedule is None:
        return ""
    compiled = f"; --torch_compile compiles for each of {len(set(schedule.sizes))} sizes"
    return f"; {schedule.describe()}{compiled if trainer.args.torch_compile else ''}"


def describe_guards(trainer: MAETrainer, training: MAETrainingArguments) -> str:
    parts = []
    if training.decoder_warmup_steps:
        parts.append(f"the decoder alone learns in {describe_decoder_steps(training, trainer.num_steps())}")
    if training.layer_decay < 1:
        parts.append(f"layer decay {training.layer_decay:g}")
    if training.freeze_blocks is not None:
        count = training.freeze_blocks
        blocks = f" and the first {count} blocks" if count > 1 else " and the first block" if count else ""
        parts.append(f"embeddings{blocks} frozen")
    return f"; {', '.join(parts)}" if parts else ""


def find_statistics(
    arguments: PretrainArguments, config: ViTMAERobustConfig, source: ImageSource
) -> PatchStatistics | None:
    """The population statistics that --target_statistics asks for. None: the model needs none, or brings them.

    Raises UserError where a file holds those of other patches, bands or units.
    """
    data, wanted = arguments.data, arguments.model.target_statistics
    if config.target_normalization != "global_patch" or wanted is None:
        return None
    if wanted != "auto":
        statistics = PatchStatistics.load(wanted, config.patch_dim)
        # Percentiles are those of the images that each was computed over.
        statistics.check_form(config, f"--target_statistics {wanted}", with_clipping=data.clip_percentiles is None)
        return statistics
    statistics = cached_statistics_of_source(
        source,
        config,
        crop_pct=data.crop_pct,
        num_workers=arguments.training.dataloader_num_workers,
        max_bad_images=data.max_bad_images,
        sample=sample_of(data, arguments.training.seed),
    )
    say_of_sample(statistics.metadata)
    return statistics
