"""Stages of a training whose images come out differently, such as in another size: which batch belongs to which."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class Stage:
    """until: share of the steps at which it ends, in (0, 1]. transform, noise_length: as of `ImageDataset`."""

    until: float
    transform: Callable[..., Any]
    noise_length: int | None


@dataclass(frozen=True)
class StagePlan:
    """Which stage a batch belongs to: arithmetic on its epoch and number, so that a resumed run, each process, and who
    fetches ahead find the same.

    Attributes:
        ends: of each stage, the number of steps until its end. batches: of one process in an epoch.
        accumulation: batches for one step; the last step of an epoch may have fewer.
    """

    ends: tuple[int, ...]
    batches: int
    accumulation: int

    @classmethod
    def of(cls, shares: Sequence[float], num_steps: int, batches: int, accumulation: int) -> Self:
        """shares: at which share of all steps each stage ends, rising; the last one is 1."""
        return cls(tuple(round(share * num_steps) for share in shares), batches, accumulation)

    def stage_of_step(self, step: int) -> int:
        """Number of the stage, from 0, of a step, from 0. Behind the end it is the last stage."""
        return min(bisect_right(self.ends, step), len(self.ends) - 1)

    def stage_of_batch(self, epoch: int, number: int) -> int:
        """Of a batch, numbered within its epoch, from 0."""
        steps_an_epoch = -(-self.batches // self.accumulation)
        return self.stage_of_step(epoch * steps_an_epoch + number // self.accumulation)
