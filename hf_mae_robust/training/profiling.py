"""Where the time of a training step goes."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import UserError
from .typed_trainer import TypedTrainer

# Steps that are not counted: the first ones start workers, choose kernels and compile.
WARM_UP = 5
DATA, COPY, FORWARD, BACKWARD, OPTIMIZER, LOGGING, REST = PARTS = (
    "waiting for data",
    "copy and normalisation",
    "forward",
    "backward",
    "optimiser",
    "logging, evaluation, checkpoints",
    "rest",
)
FILE_NAME = "profile.json"
# Above this share, waiting for data is what to work on.
MUCH_WAITING = 0.1


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


class StepProfile(TrainerCallback):
    """Measures `num_steps` steps of a Trainer, after WARM_UP ones, then prints a table, writes `profile.json` into the
    output folder, and leaves the Trainer as it was. Where a run is shorter, what there is counts.

    On an accelerator each part is waited for while steps are profiled, which makes those a little slower. The first
    process measures itself. Losses stay the same.
    """

    def __init__(self, trainer: TypedTrainer, num_steps: int):
        if num_steps < 1:
            raise UserError(f"--profile {num_steps}: a number of steps, at least 1.")
        self.trainer, self.num_steps = trainer, num_steps
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.steps = -WARM_UP
        self._begun: float | None = None
        self._optimizer_begun: float | None = None
        self._wrapped: list[tuple[object, str]] = []
        for owner, name, part in (
            (trainer, "get_batch_samples", DATA),
            (trainer, "_prepare_inputs", COPY),
            (trainer, "compute_loss", FORWARD),
            (trainer.accelerator, "backward", BACKWARD),
            (trainer, "_maybe_log_save_evaluate", LOGGING),
        ):
            self._wrap(owner, name, part)

    def _wrap(self, owner: object, name: str, part: str) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._timing(part):
                return inner(*args, **kwargs)

        setattr(owner, name, timed)
        self._wrapped.append((owner, name))

    @contextmanager
    def _timing(self, part: str) -> Iterator[None]:
        _synchronize()
        begun, before = time.perf_counter(), sum(self.seconds.values())
        try:
            yield
        finally:
            _synchronize()
            # Parts within this part (an evaluation computes losses, too) are counted there.
            within = sum(self.seconds.values()) - before
            self.seconds[part] += time.perf_counter() - begun - within

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        _synchronize()
        self._optimizer_begun = time.perf_counter()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        _synchronize()
        if self._optimizer_begun is not None:
            self.seconds[OPTIMIZER] += time.perf_counter() - self._optimizer_begun

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Comes after the wait for the step's data, so that a span of steps goes from one of these to another."""
        if self.steps == 0:
            self.seconds.clear()
            self._begun = time.perf_counter()
        elif self.steps == self.num_steps:
            self._finish()
        self.steps += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._wrapped:
            self.steps -= 1
            self._finish()

    def _finish(self) -> None:
        total = time.perf_counter() - self._begun if self._begun is not None else 0.0
        for owner, name in self._wrapped:
            delattr(owner, name)  # the method of the class shows again
        self._wrapped = []
        self.trainer.remove_callback(self)
        if not self.trainer.is_world_process_zero():
            return
        if self.steps < 1:
            tqdm.write(f"--profile {self.num_steps}: the run was over before step {WARM_UP + 2}; nothing was measured.")
            return
        self.seconds[REST] = total - sum(self.seconds.values())
        milliseconds = {part: 1000 * self.seconds[part] / self.steps for part in PARTS}
        images = self.trainer.get_total_train_batch_size(self.trainer.args) * self.steps / total
        tqdm.write(table(milliseconds, self.steps, images))
        _write(Path(self.trainer.args.output_dir) / FILE_NAME, self.steps, images, milliseconds)


def table(milliseconds: dict[str, float], steps: int, images_per_second: float) -> str:
    """What `--profile` prints. milliseconds: of a step, by part."""
    total = sum(milliseconds.values())
    lines = [f"Profile of {steps} steps: {total:,.1f} ms a step, {images_per_second:,.0f} images/s"]
    lines += [f"  {part:<34}{value:>10,.1f} ms {value / total:>6.1%}" for part, value in milliseconds.items()]
    if milliseconds[DATA] > MUCH_WAITING * total:
        lines.append(
            "  The step waits for data: more --dataloader_num_workers, or --repeated_augmentation, may make it faster."
        )
    return "\n".join(lines)


def _write(path: Path, steps: int, images_per_second: float, milliseconds: dict[str, float]) -> None:
    content = {"steps": steps, "images_per_second": images_per_second, "milliseconds_a_step": milliseconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
