"""--optim_args: which settings each optimizer of transformers takes. The Trainer ignores those it does not know."""

import math
from typing import NamedTuple

from ..errors import UserError
from .suggestions import suggest


class Kind(NamedTuple):
    """Of values. words: those that are allowed; none: numbers."""

    name: str
    words: tuple[str, ...] = ()
    is_whole: bool = False

    def takes(self, value: str) -> bool:
        if self.words:
            return value.lower() in self.words
        if self.name == "text":
            return bool(value)
        try:
            return math.isfinite(int(value) if self.is_whole else float(value))
        except ValueError:
            return False


NUMBER, INTEGER, TEXT = Kind("a number"), Kind("an integer", is_whole=True), Kind("text")
SWITCH = Kind("true or false", ("true", "1", "yes", "false", "0", "no"))
# transformers takes any word for true, "false" among them.
ONLY_ON = Kind("true, or left out", ("true", "1", "yes"))

_BETAS = {"beta1": NUMBER, "beta2": NUMBER, "beta3": NUMBER, "alpha": NUMBER, "eps": NUMBER}
_ADEMAMIX = {**_BETAS, "t_alpha": INTEGER, "t_beta3": INTEGER}
_GALORE = {"rank": INTEGER, "update_proj_gap": INTEGER, "scale": NUMBER, "proj_type": TEXT}
_APOLLO = {**_GALORE, "proj": TEXT, "scale_type": TEXT}
_SCHEDULE_FREE = {"weight_lr_power": NUMBER, "r": NUMBER}
_DTYPES = ("momentum_dtype", "variance_dtype", "compensation_buffer_dtype")
# By the name of --optim. RMSprop of bitsandbytes is not among them: what it is given goes to its class as it is, which
# refuses what it does not know.
SETTINGS: dict[str, dict[str, Kind]] = {
    **{name: {} for name in ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused")},
    **{name: {} for name in ("adafactor", "lomo", "adalomo", "adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit")},
    **{name: {} for name in ("paged_adamw_8bit", "lion_32bit", "lion_8bit", "paged_lion_32bit", "paged_lion_8bit")},
    "sgd": {"momentum": NUMBER, "dampening": NUMBER, "weight_decay": NUMBER, "nesterov": SWITCH},
    "adagrad": {"lr_decay": NUMBER, "weight_decay": NUMBER, "eps": NUMBER},
    "rmsprop": {"momentum": NUMBER, "alpha": NUMBER, "eps": NUMBER, "weight_decay": NUMBER, "centered": SWITCH},
    "adamw_anyprecision": {"use_kahan_summation": SWITCH, **dict.fromkeys(_DTYPES, TEXT)},
    **dict.fromkeys(("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"), _ADEMAMIX),
    **dict.fromkeys(("galore_adamw", "galore_adamw_8bit", "galore_adafactor"), _GALORE),
    **dict.fromkeys(("galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise"), _GALORE),
    **dict.fromkeys(("apollo_adamw", "apollo_adamw_layerwise"), _APOLLO),
    "grokadamw": dict.fromkeys(
        ("alpha_init", "lamb", "gamma", "grokking_signal_decay_rate", "gradient_clipping"), NUMBER
    ),
    **dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), {"block_size": INTEGER, "bf16_stochastic_round": SWITCH}),
    **dict.fromkeys(("schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd"), _SCHEDULE_FREE),
    "stable_adamw": {"max_lr": NUMBER, "kahan_sum": ONLY_ON, "decouple_lr": ONLY_ON},
}


def check_optim_args(optim: str, given: str | None) -> None:
    """Raises UserError for settings that are not `name=value,name=value`, that the optimizer does not take (named are
    those that it does), that come twice, or whose value is not of their kind. Of an optimizer that is not in the table
    only the form is looked at."""
    if not given:
        return
    settings, seen = SETTINGS.get(optim), set()
    for part in given.replace(" ", "").split(","):
        name, equals, value = part.partition("=")
        if not (name and equals and value) or "=" in value:
            raise UserError(f"--optim_args {given}: '{part}' is not name=value; write 'name=value,name=value'.")
        if name in seen:
            raise UserError(f"--optim_args {given}: {name} comes twice.")
        seen.add(name)
        if settings is None:
            continue
        if name not in settings:
            takes = f"takes {', '.join(settings)}" if settings else "takes none (--adam_beta1 and others are flags)"
            raise UserError(f"--optim_args {name}: unknown{suggest(name, list(settings))}; --optim {optim} {takes}.")
        if not settings[name].takes(value):
            raise UserError(f"--optim_args {name}={value}: must be {settings[name].name}.")
