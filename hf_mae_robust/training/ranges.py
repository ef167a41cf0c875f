"""Which values each numeric flag may have: a table for the flags of both scripts, ours and TrainingArguments' own, and
one for what only the commands of `python -m hf_mae_robust` have."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import UserError

# argparse's own, before Python 3.14, takes -3.4e38 for a flag.
NEGATIVE_NUMBER = re.compile(r"-(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$")


class Range(NamedTuple):
    """From `low` to `high`, ends included unless `above` or `below` says otherwise. Infinity is in none.

    Attributes:
        also: a value outside that has a meaning of its own. meaning: of that value.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    also: float | None = None
    meaning: str = ""

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        is_above = value > self.low if self.above else value >= self.low
        is_below = value < self.high if self.below else value <= self.high
        return (is_above and is_below) or value == self.also

    def __str__(self) -> str:
        ends = []
        if self.low > -math.inf:
            ends.append(f"above {self.low:g}" if self.above else f"at least {self.low:g}")
        if self.high < math.inf:
            ends.append(f"below {self.high:g}" if self.below else f"at most {self.high:.10g}")
        text = " and ".join(ends) or "any finite number"
        return text if self.also is None else f"{text}, or {self.also:g} {self.meaning}"


ANY = Range()
POSITIVE, NOT_NEGATIVE, AT_LEAST_1, AT_LEAST_2 = Range(0, above=True), Range(0), Range(1), Range(2)
# A share that may be all; a probability that must not be 1; a share that is neither none nor all.
SHARE, BELOW_1, INSIDE = Range(0, 1), Range(0, 1, below=True), Range(0, 1, above=True, below=True)
UP_TO_1 = Range(0, 1, above=True)
SEED = Range(0, 2**32 - 1)  # NumPy's

RANGES: dict[str, Range] = {
    # the model
    "mask_ratio": INSIDE,
    "decoder_attention_probs_dropout_prob": BELOW_1,
    "mid_mask_ratio": BELOW_1,
    "mid_mask_layer_idx": NOT_NEGATIVE,
    "decoder_keep_ratio": UP_TO_1,
    "image_size": AT_LEAST_1,
    "drop_path_rate": BELOW_1,
    "lora_r": AT_LEAST_1,
    "lora_alpha": POSITIVE,
    "lora_dropout": BELOW_1,
    # the data
    "train_val_split": BELOW_1,
    "max_train_samples": AT_LEAST_1,
    "max_eval_samples": AT_LEAST_1,
    "statistics_samples": AT_LEAST_2,
    "shuffle_buffer_size": AT_LEAST_1,
    "dataset_retry_seconds": NOT_NEGATIVE,
    "max_bad_images": SHARE,
    "crop_scale": UP_TO_1,
    "bands": NOT_NEGATIVE,
    "show_bands": NOT_NEGATIVE,
    "nodata": ANY,
    "value_range": ANY,
    "clip_percentiles": Range(0, 100),
    "frame": NOT_NEGATIVE,
    "crop_pct": Range(0.1, 1),  # below, evaluation would resize to more than ten times the size of the crop
    # augmentation of fine-tuning
    "random_erasing": SHARE,
    "mixup": NOT_NEGATIVE,
    "cutmix": NOT_NEGATIVE,
    "mixup_prob": SHARE,
    "mixup_switch_prob": SHARE,
    "scale_range": POSITIVE,
    # the heads of segmentation and detection
    "ignore_index": ANY,
    "stride": AT_LEAST_1,
    "auxiliary_loss_weight": NOT_NEGATIVE,
    "segmentation_channels": AT_LEAST_1,
    "window_size": NOT_NEGATIVE,
    "detections_per_image": AT_LEAST_1,
    "num_pictures": NOT_NEGATIVE,
    # learning rates
    "base_learning_rate": POSITIVE,
    "learning_rate": POSITIVE,
    "min_learning_rate": NOT_NEGATIVE,
    "warmup_epochs": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "layer_decay": UP_TO_1,
    "decoder_warmup_steps": NOT_NEGATIVE,
    "freeze_blocks": NOT_NEGATIVE,
    "model_ema_decay": INSIDE,
    # the optimizer
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": BELOW_1,
    "adam_beta2": BELOW_1,
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "label_smoothing_factor": BELOW_1,
    "neftune_noise_alpha": NOT_NEGATIVE,
    # batches and lengths
    "per_device_train_batch_size": AT_LEAST_1,
    "per_device_eval_batch_size": AT_LEAST_1,
    "gradient_accumulation_steps": AT_LEAST_1,
    "repeated_augmentation": AT_LEAST_1,
    "num_train_epochs": POSITIVE,
    "max_steps": Range(1, also=-1, meaning="for --num_train_epochs"),
    "skip_nonfinite_steps": NOT_NEGATIVE,
    "early_stopping_patience": AT_LEAST_1,
    # how often
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "eval_delay": NOT_NEGATIVE,
    "eval_accumulation_steps": AT_LEAST_1,
    "save_steps": POSITIVE,
    "save_total_limit": NOT_NEGATIVE,
    "torch_empty_cache_steps": AT_LEAST_1,
    "profile": NOT_NEGATIVE,
    "diagnostics_steps": NOT_NEGATIVE,
    "diagnostics_samples": AT_LEAST_2,
    "probe_samples": AT_LEAST_2,
    "images_per_second": POSITIVE,
    # processes
    "seed": SEED,
    "data_seed": SEED,
    "dataloader_num_workers": NOT_NEGATIVE,
    "dataloader_prefetch_factor": AT_LEAST_1,
    "ddp_bucket_cap_mb": AT_LEAST_1,
    "ddp_timeout": AT_LEAST_1,
    "local_rank": Range(-1),
}


# Of `python -m hf_mae_robust`; names that both tables have mean the same.
COMMAND_RANGES: dict[str, Range] = {
    "patch_size": AT_LEAST_1,
    "num_channels": AT_LEAST_1,
    "short_side": AT_LEAST_1,
    "jpeg_quality": Range(1, 100),
    "row_group_size": AT_LEAST_1,
    "max_samples": AT_LEAST_1,
    "batch_size": AT_LEAST_1,
    "num_workers": NOT_NEGATIVE,
    "near_duplicates": UP_TO_1,
    "max_pairs": AT_LEAST_1,
    "map_samples": Range(4),
    "k": AT_LEAST_1,
    "temperature": POSITIVE,
    "num_attention_heads": AT_LEAST_1,
    "decoder_num_attention_heads": AT_LEAST_1,
    "server_port": Range(1, 65535),
    "seeds": AT_LEAST_1,
    "parallel": AT_LEAST_1,
    "num_gpus": AT_LEAST_1,
}


def check_ranges(flags: Mapping[str, Any], ranges: Mapping[str, Range] = RANGES) -> None:
    """Raises UserError for the first flag whose value lies outside its range: flag, value, range. What is None, no
    number or not in the table is left alone; of a list, each number is looked at."""
    for name, value in flags.items():
        wanted = ranges.get(name)
        if wanted is None:
            continue
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and number not in wanted:
                finite = " and finite" if number == math.inf and "finite" not in str(wanted) else ""
                raise UserError(f"--{name} {number:.12g}: must be {wanted}{finite}.")
