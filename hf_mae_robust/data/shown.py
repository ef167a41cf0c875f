"""Images of any number of bands as pictures for the screen."""

from collections.abc import Sequence

import numpy as np
import torch

# A light gray, which is not that of masked patches.
MISSING_GRAY = 0.8
# Of the valid pixels of a band: they become black and white.
CONTRAST_PERCENTILES = (2.0, 98.0)


def to_shown(
    image: torch.Tensor,
    channels: Sequence[int] | None = None,
    percentiles: tuple[float, float] = CONTRAST_PERCENTILES,
    like: torch.Tensor | None = None,
) -> torch.Tensor:
    """One or three bands of an image in gray or in colours, the contrast of each stretched.

    Args:
        image (`(C, H, W)`): normalised or in the units of the files, which gives the same picture; NaN where a pixel is
            missing.
        channels: numbers of one or three channels, 0-based; default: the first three, or the first.
        percentiles: of the valid pixels of a band, which become black and white.
        like (`(C, h, w)`): image whose contrast is taken, such as the original of a reconstruction; default: its own.

    Returns:
        `(3, H, W)` float32 in [0, 1], missing pixels in MISSING_GRAY.
    """
    chosen = list(channels if channels is not None else range(3 if len(image) >= 3 else 1))
    bands = image[chosen].float()
    limits = [_limits(band, percentiles) for band in (image if like is None else like)[chosen].float()]
    low, high = torch.tensor(limits, device=image.device).T.view(2, -1, 1, 1)
    shown = ((bands - low) / (high - low)).clamp(0, 1)
    return shown.masked_fill(bands.isnan(), MISSING_GRAY).expand(3, -1, -1)


def _limits(band: torch.Tensor, percentiles: tuple[float, float]) -> tuple[float, float]:
    """What becomes black and what white, which are not the same."""
    values = band.cpu().numpy()
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    for low, high in (np.percentile(values, percentiles), (values.min(), values.max())):
        if low < high:
            return float(low), float(high)
    return float(low) - 0.5, float(high) + 0.5  # all the same: a middle gray
