"""What a run asks of the machine and of PyTorch: precision, compilation, recomputed activations."""

from typing import Any, cast

import torch
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments

from ..errors import UserError, refused_by_library

# Of torch.compile.
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
# Keys of --activation_checkpointing_kwargs that are true or false: of torch.utils.checkpoint, and the Trainer's.
CHECKPOINT_SWITCHES = ("use_reentrant", "preserve_rng_state", "debug", "early_stop", "offload")


def check_precision(training: TrainingArguments) -> None:
    """Raises UserError for a precision that the device does not have, or that no evaluation here computes in.

    accelerate ignores fp16 on a CPU: the run would train in float32 and say float16.
    """
    for flag in ("fp16_full_eval", "bf16_full_eval"):
        if getattr(training, flag):
            raise UserError(
                f"--{flag} is not for evaluations here, which compute as the training does: give --bf16 or --fp16."
            )
    if training.mixed_precision in ("fp16", "fp8") and training.device.type == "cpu":
        name = training.mixed_precision
        flag = "--fp16" if training.fp16 else f"--mixed_precision {name} of `accelerate launch`"
        raise UserError(
            f"{flag} needs a GPU, and this run is on a CPU, where it would compute in float32. Leave it out, or give "
            "--bf16, which a CPU can do."
        )


def check_compiling(training: TrainingArguments) -> None:
    """Raises UserError for a backend or a mode of --torch_compile that torch does not know, and where what compiles
    (a C++ compiler on a CPU, Triton on a GPU) is missing. The smallest function is compiled to find out: up to a minute
    on a machine that has never compiled, seconds after that."""
    if not training.torch_compile:
        return
    backend, mode = training.torch_compile_backend, training.torch_compile_mode
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        raise UserError(f"--torch_compile_backend {backend}: one of {', '.join(torch.compiler.list_backends())}.")
    if mode not in (None, *COMPILE_MODES):
        raise UserError(f"--torch_compile_mode {mode}: one of {', '.join(COMPILE_MODES)}.")
    with refused_by_library("--torch_compile cannot compile on this machine; leave it out, or mend this"):
        torch.compile(_double, backend=backend, mode=mode)(torch.zeros(1, device=training.device))


def _double(numbers: torch.Tensor) -> torch.Tensor:
    return numbers * 2


def check_activation_checkpointing(training: TrainingArguments) -> None:
    """Raises UserError for --activation_checkpointing_kwargs that torch.utils.checkpoint does not take, or that
    nothing uses."""
    given = training.activation_checkpointing_kwargs
    if given is None:
        return
    flag = f"--activation_checkpointing_kwargs {given}"
    if not training.activation_checkpointing:
        raise UserError(f"{flag}: has no effect without --activation_checkpointing.")
    settings: dict[str, Any] = {"use_reentrant": False, **cast(dict[str, Any], given)}
    known = (*CHECKPOINT_SWITCHES, "determinism_check", "every_n_layers")
    for name, value in settings.items():
        if name not in known:
            raise UserError(f"{flag}: unknown '{name}'; there are {', '.join(known)}.")
        if name in CHECKPOINT_SWITCHES and not isinstance(value, bool):
            raise UserError(f"{flag}: {name} must be true or false.")
    every, _ = settings.pop("every_n_layers", 1), settings.pop("offload", None)  # the Trainer's own
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise UserError(f"{flag}: every_n_layers must be an integer of at least 1.")
    with refused_by_library(flag):
        checkpoint(_double, torch.zeros(1, requires_grad=True), **settings).backward()
