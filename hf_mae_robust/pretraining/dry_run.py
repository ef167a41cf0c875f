"""--dry_run: what a run will cost, before it costs anything."""

import math
from itertools import groupby

from transformers import SchedulerType

from ..data.source import ImageSource
from ..model import ViTMAERobustConfig
from .adapting import describe_decoder_steps
from .arguments import MAETrainingArguments
from .cost import blocks, forward_flops, memory, num_parameters, patches_by_kind, training_flops
from .resolution import ResolutionSchedule

GIB = 2**30
# Where --images_per_second does not say: a CPU, a GPU, a machine of GPUs.
TYPICAL_RATES = (100, 1_000, 10_000)


def describe_plan(config: ViTMAERobustConfig, training: MAETrainingArguments, source: ImageSource) -> str:
    """Parameters, tokens by layer, operations an image, memory, steps and hours. `training` with learning rate and
    warm-up filled in (training/setup.py: set_schedule)."""
    schedule = training.resolution
    rows = [
        ("parameters", _parameters(config, training)),
        ("tokens", _tokens(config)),
        ("operations", _operations(config)),
        ("memory", _memory(config, training)),
        ("checkpoint", _checkpoint(config, training)),
        *_length(training, source, config, schedule),
    ]
    return "\n".join(
        ["Plan of the run; nothing is trained or written.", *(f"  {name:<12}{text}" for name, text in rows)]
    )


def _parameters(config: ViTMAERobustConfig, training: MAETrainingArguments) -> str:
    numbers = num_parameters(config, training.freeze_blocks)
    sizes = {name: f"{number / 1e6:,.2f} M" for name, number in numbers.items()}
    return f"encoder {sizes['encoder']}, decoder {sizes['decoder']}; {sizes['trained']} of them trained"


def _tokens(config: ViTMAERobustConfig) -> str:
    """Tokens attended to, by blocks; the last block of the decoder gives only the masked ones that are predicted."""
    parts = []
    layers = blocks(config)
    for (part, tokens), group in groupby(layers, lambda block: (block.name.split()[0], block.keys)):
        numbers = [block.name.split()[1] for block in group]
        span = numbers[0] if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        parts.append(f"{part} {span}: {tokens}")
    masked = sum(patches_by_kind(config)[1:])
    kept = f", {layers[-1].outputs} of them reconstructed in a step" if config.decoder_keep_ratio < 1 else ""
    return f"of an image: {', '.join(parts)} (masked patches: {masked}{kept})"


def _operations(config: ViTMAERobustConfig) -> str:
    forward = forward_flops(config)
    by_part = ", ".join(f"{name} {number / 1e9:,.3g}" for name, number in forward.items())
    total = sum(forward.values())
    return f"{total / 1e9:,.3g} GFLOP an image forward ({by_part}), {training_flops(config) / 1e9:,.3g} in training"


def _memory(config: ViTMAERobustConfig, training: MAETrainingArguments) -> str:
    size, activation_bytes = training.train_batch_size, 2 if training.bf16 or training.fp16 else 4
    frozen = training.freeze_blocks
    need = memory(config, size, bool(training.activation_checkpointing), activation_bytes, frozen)
    text = (
        f"about {need.peak / GIB:,.2f} GiB a process, at a batch of {size} (weights {need.weights / GIB:,.2f}, "
        f"gradients {need.gradients / GIB:,.2f}, AdamW {need.optimizer / GIB:,.2f}, "
        f"activations {need.activations / GIB:,.2f})"
    )
    if not training.activation_checkpointing:
        less = memory(config, size, True, activation_bytes, frozen)
        text += f"; {less.peak / GIB:,.2f} with --activation_checkpointing"
    return text


def _checkpoint(config: ViTMAERobustConfig, training: MAETrainingArguments) -> str:
    need = memory(config, 1, frozen_blocks=training.freeze_blocks)
    return f"about {(need.weights + need.optimizer) / GIB:,.2f} GiB on disk each"


def _operations_of_stages(schedule: ResolutionSchedule, config: ViTMAERobustConfig) -> list[float]:
    """Operations of an image in training at the size of each stage, as shares of those at the model's size."""
    return [training_flops(of_stage) / training_flops(config) for of_stage in schedule.configs(config)]


def _sizes(schedule: ResolutionSchedule, config: ViTMAERobustConfig) -> str:
    configs, total = schedule.configs(config), schedule.share_of(_operations_of_stages(schedule, config))
    by_size = ", ".join(
        f"{size} px up to {until * 100:.3g}% ({of_stage.num_patches} patches, "
        f"{training_flops(of_stage) / 1e9:,.3g} GFLOP an image in training)"
        for (size, until), of_stage in zip(schedule.stages, configs, strict=True)
    )
    return f"{by_size}: {total:.0%} of the operations of {schedule.sizes[-1]} px throughout"


def _length(
    training: MAETrainingArguments, source: ImageSource, config: ViTMAERobustConfig, schedule: ResolutionSchedule | None
) -> list[tuple[str, str]]:
    views, batch = training.repeated_augmentation, training.train_batch_size * training.world_size
    effective = batch * training.gradient_accumulation_steps
    steps, epochs = training.max_steps, ""
    if source.num_rows is not None:
        micro_steps = source.num_rows // (training.train_batch_size // views * training.world_size)
        an_epoch = max(-(-micro_steps // training.gradient_accumulation_steps), 1)
        if steps <= 0:
            steps = math.ceil(training.num_train_epochs * an_epoch)  # as the Trainer
        epochs = f" ({steps / an_epoch:,.4g} epochs of {an_epoch:,})"
    data = source.description if source.num_rows is None else f"{source.num_rows:,} images of {source.description}"
    share, of_size = 1.0, ""
    if schedule is not None:
        schedule.check_source(source)
        schedule.check_steps(steps)
        share = schedule.share_of(_operations_of_stages(schedule, config))
        of_size = f" of {schedule.sizes[-1]} px, if smaller ones are faster by their operations"
    hours = [
        f"{steps * effective / rate / 3600 * share:,.3g} h at {rate:,g} images/s"
        for rate in ([training.images_per_second] if training.images_per_second else TYPICAL_RATES)
    ]
    return [
        ("data", data + (f", {views} views of each" if views > 1 else "")),
        ("steps", f"{steps:,}{epochs}, effective batch {effective:,}, {training.warmup_steps:g} of warm-up"),
        *([("decoder", f"learns alone in {alone}")] if (alone := describe_decoder_steps(training, steps)) else []),
        ("rate", f"{training.learning_rate:.3g}, {SchedulerType(training.lr_scheduler_type).value} schedule"),
        *([("sizes", _sizes(schedule, config))] if schedule is not None else []),
        ("time", ", ".join(hours) + of_size),
    ]
