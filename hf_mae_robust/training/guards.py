"""Noticing losses and gradients that are not finite, and telling which images they came from."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.bad_images import portable_description
from ..errors import NonFiniteError


@dataclass
class _Step:
    losses: list[torch.Tensor] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)
    number: int = 0
    gradient_norm: torch.Tensor | None = None


class NonFiniteGuard(TrainerCallback):
    """Collects loss, gradient norm and row numbers of each step, and looks at them where the trainer waits for the
    device anyway: before logging, evaluating and saving. So it costs no waiting, and no checkpoint holds weights that
    such a step has touched.

    With `allowed_steps` > 0 a bad step has to be known before the weights are touched: it is looked at in every step.
    Losses and gradient norms come from the trainer: no event hands them to a callback.
    """

    def __init__(self, output_dir: str | Path, rank: int, description: str, allowed_steps: int = 0):
        self.output_dir, self.rank, self.description = Path(output_dir), rank, description
        self.allowed_steps, self.skipped_steps = allowed_steps, 0
        self.current = _Step()
        self.closed: list[_Step] = []

    def add_loss(self, loss: torch.Tensor, rows: torch.Tensor) -> None:
        """Of one micro-batch. rows: on the CPU."""
        self.current.losses.append(loss.detach())
        self.current.rows.append(rows)

    def close_step(self, number: int, gradient_norm: torch.Tensor | None) -> None:
        """At the end of an optimizer step, before the weights change. gradient_norm: the same in all processes."""
        self.current.number, self.current.gradient_norm = number, gradient_norm
        self.closed.append(self.current)
        self.current = _Step()

    def take_bad_step(self) -> _Step | None:
        """The first bad step since the last call. Waits for the device once."""
        steps, self.closed = self.closed, []
        if not steps:
            return None
        finite = torch.stack([self._is_finite(step) for step in steps]).tolist()
        return steps[finite.index(False)] if False in finite else None

    @staticmethod
    def _is_finite(step: _Step) -> torch.Tensor:
        values = torch.stack(step.losses + ([step.gradient_norm] if step.gradient_norm is not None else []))
        return torch.isfinite(values).all()

    def check(self) -> None:
        """Raises NonFiniteError where a step since the last check was bad."""
        if (step := self.take_bad_step()) is not None:
            raise NonFiniteError(
                f"{self.describe(step)} Nothing was saved after it. Look at those images; lower the learning rate or "
                "lengthen the warm-up; use --bf16 rather than --fp16; or skip such steps with "
                "--skip_nonfinite_steps N. The same command resumes from the last checkpoint."
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self.check()

    on_epoch_end = on_step_end

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.check()  # the steps since the last of these events; the model is saved next

    def skip(self) -> str | None:
        """With `allowed_steps`: whether to skip the step that was just closed; says why.

        Raises NonFiniteError once too many were.
        """
        if (step := self.take_bad_step()) is None:
            return None
        self.skipped_steps += 1
        if self.skipped_steps > self.allowed_steps:
            raise NonFiniteError(
                f"{self.describe(step)} {self.allowed_steps} such step(s) were skipped already "
                f"(--skip_nonfinite_steps {self.allowed_steps})."
            )
        return f"{self.describe(step)} Passed over ({self.skipped_steps} of {self.allowed_steps})."

    def describe(self, step: _Step) -> str:
        """One sentence; the details go to `nonfinite-step-N-rank-R.json`."""
        losses = [loss.item() for loss in step.losses]
        norm = None if step.gradient_norm is None else step.gradient_norm.item()
        path = self.output_dir / f"nonfinite-step-{step.number}-rank-{self.rank}.json"
        content = {
            "step": step.number,
            "rank": self.rank,
            "losses": [str(loss) for loss in losses],
            "gradient_norm": str(norm),
            "data": portable_description(self.description),
            "rows": [rows.tolist() for rows in step.rows],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content) + "\n")
        what = f"loss {', '.join(f'{loss:g}' for loss in losses)}"
        what += "" if norm is None else f", gradient norm {norm:g}"
        return f"Step {step.number}: {what} on process {self.rank}; its rows are in {path}."
