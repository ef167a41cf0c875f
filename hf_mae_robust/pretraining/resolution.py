"""--resolution_schedule: images are small at first, and larger in later stages of the training."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from ..errors import UserError

if TYPE_CHECKING:  # flags are parsed with this, and --help has to answer at once
    from ..data.source import ImageSource
    from ..model import ViTMAERobustConfig

EXAMPLE = "128:0.5,192:0.8,224:1.0"


@dataclass(frozen=True)
class ResolutionSchedule:
    """Progressive resolution: that of Wu et al. 2024, "DailyMAE: Towards Pretraining Masked Autoencoders in One Day",
    in kind. Their schedule, and what they do beside it, are others.

    Attributes:
        stages: image size in pixels, and at which share of the steps its stage ends. given: as the user wrote it.
    """

    stages: tuple[tuple[int, float], ...]
    given: str = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises UserError where the text is none of `SIZE:SHARE,SIZE:SHARE,...`, or the shares do not rise to 1."""
        flag = f"--resolution_schedule {text}"
        stages: list[tuple[int, float]] = []
        for part in text.split(","):
            try:
                number, until = part.split(":")
                stages.append((int(number), float(until)))
            except ValueError as error:
                raise UserError(f"{flag}: write it as SIZE:SHARE,SIZE:SHARE, such as {EXAMPLE}.") from error
        before = 0.0
        for size, share in stages:
            if size < 1:
                raise UserError(f"{flag}: {size} is not a size in pixels, which is at least 1.")
            if not share > 0:
                raise UserError(f"{flag}: {share:g} is not a share above 0 and at most 1.")
            if share <= before:
                raise UserError(f"{flag}: the shares must rise, and {share:g} follows {before:g}.")
            before = share
        if before != 1:
            raise UserError(f"{flag}: the last share must be 1.0, not {before:g}.")
        return cls(tuple(stages), text)

    def __str__(self) -> str:
        return ",".join(f"{size}:{share:g}" for size, share in self.stages)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(size for size, _ in self.stages)

    @property
    def shares(self) -> tuple[float, ...]:
        """At which share of the steps each stage ends."""
        return tuple(share for _, share in self.stages)

    @property
    def lengths(self) -> tuple[float, ...]:
        """Share of the steps of each stage."""
        return tuple(end - begin for begin, end in zip((0.0, *self.shares), self.shares))

    def share_of(self, of_stages: Sequence[float]) -> float:
        """The mean over the steps of what `of_stages` says of each stage."""
        return sum(length * value for length, value in zip(self.lengths, of_stages, strict=True))

    def describe(self) -> str:
        """Such as "8 px in the first 30% of the steps, then 12 px up to 70%, then 16 px"."""
        (first, share), *others = self.stages
        if not others:
            return f"{first} px"
        middle = "".join(f", then {size} px up to {until * 100:.3g}%" for size, until in others[:-1])
        return f"{first} px in the first {share * 100:.3g}% of the steps{middle}, then {others[-1][0]} px"

    def configs(self, config: "ViTMAERobustConfig") -> list["ViTMAERobustConfig"]:
        """The model's configuration at the size of each stage, for numbers of patches and operations.

        Raises UserError where the schedule does not fit the model.
        """
        flag, size_of_model = f"--resolution_schedule {self.given}", config.image_size
        if isinstance(size_of_model, list | tuple):
            if len(set(size_of_model)) > 1:
                raise UserError(f"{flag}: is for square images, and image_size is {list(size_of_model)}.")
            size_of_model = size_of_model[0]
        patch = config.patch_size
        patch_sizes = patch if isinstance(patch, list | tuple) else [patch]
        found = []
        for size in self.sizes:
            if any(size % side for side in patch_sizes):
                raise UserError(f"{flag}: {size} is not a multiple of patch_size {patch}.")
            if size > size_of_model:
                raise UserError(f"{flag}: {size} is larger than image_size {size_of_model}.")
            of_stage = deepcopy(config)
            of_stage.image_size = size
            try:
                found.append(type(config)(**of_stage.to_dict()))
            except ValueError as error:
                raise UserError(f"{flag}: at {size} pixels: {error}") from error
        if self.sizes[-1] != size_of_model:
            raise UserError(
                f"{flag}: the last size must be image_size {size_of_model}, not {self.sizes[-1]}: positions, target "
                "statistics and evaluation are of that size."
            )
        return found

    def check_source(self, source: "ImageSource") -> None:
        """Raises UserError for a stream that cannot seek: which step a batch is for depends on its readers there."""
        if source.row_groups is None:
            raise UserError(
                f"--resolution_schedule {self.given}: {source.description} can only be read from its beginning. Use "
                "Parquet files, or leave out --dataset_streaming."
            )

    def check_steps(self, num_steps: int) -> None:
        """Raises UserError where a stage would have no step."""
        from ..data.stages import StagePlan  # --help has to answer at once

        ends = StagePlan.of(self.shares, num_steps, 1, 1).ends
        for (size, _), begin, end in zip(self.stages, (0, *ends), ends):
            if begin >= end:
                raise UserError(
                    f"--resolution_schedule {self.given}: {size} px gets none of the {num_steps:,} steps. Give it a "
                    "larger share, or leave it out."
                )
