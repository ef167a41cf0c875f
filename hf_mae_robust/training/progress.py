"""What a run shows while it trains: a progress bar, and images per second."""

import time
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback


class ImageProgressCallback(ProgressCallback):
    """A progress bar that carries loss, learning rate and images/s, instead of a line for every log entry."""

    training_bar: Any  # a bar of tqdm while it trains, else None

    EVALUATION_NAMES = {
        "eval_loss": "loss",
        "eval_loss_of_mean": "loss of predicting the mean",
        "eval_accuracy": "accuracy",
        "eval_top5_accuracy": "top-5 accuracy",
        "eval_mean_iou": "mean IoU",
        "eval_box_ap": "box AP",
        "eval_mask_ap": "mask AP",
    }

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            shown: dict[str, Any] = {"loss": f"{logs['loss']:.4f}", "lr": f"{logs['learning_rate']:.2e}"}
            if "images_per_second" in logs:
                shown["images/s"] = f"{logs['images_per_second']:,.0f}"
            if "image_size" in logs:
                shown["px"] = f"{logs['image_size']:g}"
            self.training_bar.set_postfix(shown)
        elif shown := {name: value for name, value in logs.items() if name in self.EVALUATION_NAMES}:
            text = ", ".join(f"{self.EVALUATION_NAMES[name]} {value:.4f}" for name, value in shown.items())
            self.training_bar.write(f"epoch {state.epoch:.4g}: evaluation {text}")


class Throughput:
    """Images per second between one log entry and the next."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.seconds = 0.0

    def images_per_second(self, step: int, batch_size: int) -> float | None:
        """Since the last call, at optimizer step `step`; None in the first call. batch_size: images in a step, over all
        processes."""
        now, rate = time.perf_counter(), None
        if self.step is not None and step > self.step:
            rate = (step - self.step) * batch_size / (now - self.seconds)
        self.step, self.seconds = step, now
        return rate
