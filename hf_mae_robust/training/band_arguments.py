"""Flags for images that are not 8-bit pictures: more channels, more bits, fractions, missing pixels."""

import math
from dataclasses import dataclass, field
from typing import Literal

from ..errors import UserError
from ..model.bands_vit_mae_robust import BandForm
from .option import option


@dataclass
class BandArguments:
    """How the numbers of such files become pixel values. All of it is saved with the model, and a run that starts from
    that model needs none of these flags."""

    bands: list[int] | None = field(
        default=None,
        metadata={
            "help": "Bands (channels) to take, counted from 0, in this order; default: all.",
            "nargs": "+",
        },
    )
    nodata: float | None = option(
        None,
        "Number that marks a missing pixel, beside NaN and what the file itself names: left out of statistics and "
        "loss, and filled with the mean of its band.",
    )
    value_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "Clip the numbers to LO HI: one pair for all bands, or a pair for each. In the units of the files.",
            "nargs": "+",
        },
    )
    clip_percentiles: list[float] | None = field(
        default=None,
        metadata={
            "help": "Clip each band to these percentiles of the training images, such as 0.1 99.9; instead of "
            "--value_range.",
            "nargs": 2,
        },
    )
    image_statistics: Literal["auto", "default"] | None = option(
        None,
        "Mean and deviation of the input: 'auto' computes those of each band over the training images (the default for "
        "images that are not 8-bit pictures), 'default' takes ImageNet's, or 0.5 for other than 3 channels.",
    )
    channel_axis: Literal["first", "last"] | None = option(
        None, "Which axis of an array holds its channels; default: told by its shape."
    )
    frame: int | None = option(None, "Which frame or page to read of a file that holds several, counted from 0.")
    show_bands: list[int] | None = field(
        default=None,
        metadata={
            "help": "Bands that pictures show as red, green and blue, or one as gray, with their numbers in the files; "
            "default: the first three, or the first.",
            "nargs": "+",
        },
    )

    def __post_init__(self) -> None:
        if self.bands is not None and (min(self.bands) < 0 or len(set(self.bands)) < len(self.bands)):
            raise UserError(
                f"--bands {' '.join(map(str, self.bands))}: must be different numbers of bands, counted from 0."
            )
        if self.show_bands is not None and (len(self.show_bands) not in (1, 3) or min(self.show_bands) < 0):
            raise UserError(
                f"--show_bands {' '.join(map(str, self.show_bands))}: must be one band or three, counted from 0."
            )
        if self.frame is not None and self.frame < 0:
            raise UserError(f"--frame {self.frame}: must be at least 0, the first one.")
        if self.nodata is not None and math.isnan(self.nodata):
            self.nodata = None  # it always is
        if self.nodata is not None and math.isinf(self.nodata):
            raise UserError(f"--nodata {self.nodata}: must be a finite number; NaN always means a missing pixel.")
        if self.value_range is not None:
            _check_value_range(self.value_range)
            if self.clip_percentiles is not None:
                raise UserError("--value_range and --clip_percentiles both say where to clip; give one of them.")
        if self.clip_percentiles is not None:
            if len(self.clip_percentiles) != 2:
                given = " ".join(f"{value:g}" for value in self.clip_percentiles)
                raise UserError(f"--clip_percentiles takes two numbers, LO and HI, not {given}.")
            low, high = self.clip_percentiles
            if not 0 <= low < high <= 100:
                raise UserError(f"--clip_percentiles {low:g} {high:g}: needs 0 <= LO < HI <= 100.")

    @property
    def asks_for_bands(self) -> bool:
        """Whether a flag was given that 8-bit pictures have no use for."""
        return self.first_band_flag is not None

    @property
    def first_band_flag(self) -> str | None:
        """The first of them, for errors."""
        names = ("bands", "nodata", "value_range", "clip_percentiles")
        return next((f"--{name}" for name in names if getattr(self, name) is not None), None)

    def check_pictures(self) -> None:
        """Raises UserError where images are to be read as 8-bit pictures, and another flag asks for bands."""
        if self.image_statistics == "default" and self.asks_for_bands:
            raise UserError(
                f"{self.first_band_flag} is for images of bands, and --image_statistics default for 8-bit pictures. "
                "Leave one of them out: mean and deviation of bands are those of the training images."
            )

    def band_form(self, num_channels: int) -> BandForm:
        """By the flags alone, without mean and deviation. num_channels: of the files. Raises UserError where
        --value_range has another number of pairs."""
        number = len(self.bands) if self.bands is not None else num_channels
        pairs = None
        if self.value_range is not None:
            values = self.value_range if len(self.value_range) > 2 else self.value_range * number
            pairs = tuple((values[i], values[i + 1]) for i in range(0, len(values), 2))
            if len(pairs) != number:
                raise UserError(
                    f"--value_range has {len(pairs)} pairs for {number} bands: give LO HI, or a pair for each band."
                )
        bands = None if self.bands is None else tuple(self.bands)
        return BandForm(bands, self.nodata, pairs, channel_axis=self.channel_axis, frame=self.frame)


def _check_value_range(values: list[float]) -> None:
    pairs = list(zip(values[::2], values[1::2]))
    if len(values) % 2 or any(not (math.isfinite(low) and math.isfinite(high) and low < high) for low, high in pairs):
        raise UserError(
            f"--value_range {' '.join(f'{value:g}' for value in values)}: needs pairs LO HI of finite numbers, LO "
            "below HI."
        )
