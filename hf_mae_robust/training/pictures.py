"""Pictures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid, save_image

from ..data.decoding import decode_image
from ..data.shown import to_shown
from ..data.source import ImageSource, load_head_of_stream
from ..errors import ImageDecodingError
from ..model import ViTMAERobustForPreTraining

MASK_GRAY = 0.5


@torch.no_grad()
def reconstruction_grid(
    model: ViTMAERobustForPreTraining,
    pixel_values: torch.Tensor,
    noise: torch.Tensor,
    channels: Sequence[int] | None = None,
) -> torch.Tensor:
    """Three rows of pictures: original, masked (gray where masked), reconstruction.

    Args:
        pixel_values (`(N, C, H, W)`): normalised images. noise (`(N, L)`): decides the masks.
        channels: of a band model, see `to_shown`; an image and its reconstruction are shown with the same contrast.

    Returns:
        `(3, h, w)` in [0, 1]. Small images are enlarged by an integer factor, without smoothing.
    """
    mask = _masked_pixels(model, pixel_values, noise)
    original, rebuilt = _original(model, pixel_values), model.reconstruct(pixel_values, noise=noise)
    if model.config.is_band_model:
        rebuilt = torch.stack([to_shown(image, channels, like=like) for image, like in zip(rebuilt, original)])
        original = torch.stack([to_shown(image, channels) for image in original])
        mask = mask[:, :1]
    masked = torch.where(mask, MASK_GRAY, original)
    images = torch.cat([original, masked, rebuilt]).clamp(0, 1)
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    scale = max(1, 96 // max(images.shape[-2:]))
    images = images.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
    return make_grid(images.cpu(), nrow=len(pixel_values), padding=max(2, scale), pad_value=1.0)


def _masked_pixels(model: ViTMAERobustForPreTraining, pixel_values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """`(N, C, H, W)` bool. Where the noise says "masked" follows from its ranks, as in the model."""
    num_visible = int(noise.shape[1] * (1 - model.config.mask_ratio))
    mask = (noise.argsort(dim=1).argsort(dim=1) >= num_visible).float()
    mask = mask.unsqueeze(-1).expand(-1, -1, model.config.patch_dim)
    return model.unpatchify(mask, pixel_values.shape[-2:]).bool()


def _original(model: ViTMAERobustForPreTraining, pixel_values: torch.Tensor) -> torch.Tensor:
    """In [0, 1], or of a band model in the units of the files."""
    mean, std = (
        torch.tensor(value, device=pixel_values.device).view(-1, 1, 1)
        for value in (model.config.image_mean, model.config.image_std)
    )
    return pixel_values.float() * std + mean


def save_reconstructions(
    model: ViTMAERobustForPreTraining,
    pixel_values: torch.Tensor,
    noise: torch.Tensor,
    path: str | Path,
    channels: Sequence[int] | None = None,
) -> None:
    """Write `reconstruction_grid` as a PNG."""
    save_image(reconstruction_grid(model, pixel_values, noise, channels), path)


@torch.no_grad()
def reconstruction_errors(
    model: ViTMAERobustForPreTraining, pixel_values: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared errors of the pixels that a model fills in, by band, in squares of the band's deviation over the data.

    Args: as of `reconstruction_grid`.

    Returns:
        `(C,)` each, float64, on the CPU: the sum over the masked valid pixels, and how many these are.
    """
    std = torch.tensor(model.config.image_std, device=pixel_values.device).view(-1, 1, 1)
    error = (model.reconstruct(pixel_values, noise=noise) - _original(model, pixel_values)) / std
    counted = _masked_pixels(model, pixel_values, noise) & ~pixel_values.isnan()
    squares = error.double().square().masked_fill(~counted, 0)
    return squares.sum(dim=(0, 2, 3)).cpu(), counted.sum(dim=(0, 2, 3)).double().cpu()


def save_errors_by_band(
    errors: Sequence[float], path: str | Path, bands: Sequence[int] | None = None, norm_pix_loss: bool = False
) -> None:
    """Mean squared errors of the bands, in squares of their deviations, as a PNG. bands: their numbers in the files.
    norm_pix_loss: of the model, which then has the mean and the deviation of each patch from the original."""
    figure, axes = plt.subplots(figsize=(max(6, min(16, 1 + 0.35 * len(errors))), 4), layout="constrained")
    places = range(len(errors))
    axes.bar(places, errors, width=0.8 if len(errors) <= 60 else 1.0)
    if norm_pix_loss:
        axes.set_title("mean and deviation of each patch are the original's", fontsize="medium")
    else:
        axes.axhline(1, linestyle="--", color="gray", label="predicting the mean of the band")
        axes.legend()
    step = -(-len(errors) // 40)
    axes.set_xticks(places[::step], [str(band) for band in (bands or places)][::step])
    axes.set(xlabel="band", ylabel="error / (deviation of the band)²", ylim=(0, None))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_examples(source: ImageSource, names: Sequence[str], folder: Path, num_channels: int) -> None:
    """The first images of a split as PNGs of at most 512 pixels a side: what the widget of the Hub and the code in the
    model card try the model on. One that cannot be decoded is left out."""
    if source.row_groups is None:
        source = load_head_of_stream(source, len(names))
    for row, name in zip(range(len(source)), names):
        try:
            image = to_pil_image(decode_image(source.rows[row], num_channels, row))
        except ImageDecodingError:
            continue
        image.thumbnail((512, 512))
        image.save(folder / name)


CURVES_OF_LOSS = {
    "loss": ("training", "-"),
    "eval_loss": ("evaluation", "o-"),
    "eval_loss_of_mean": ("evaluation, predicting the mean", "--"),
}
# By the name of the axis.
CURVES_OF_RESULTS = {
    "accuracy": {"eval_accuracy": ("top-1", "o-"), "eval_top5_accuracy": ("top-5", "o--")},
    "segmentation": {"eval_mean_iou": ("mean IoU", "o-"), "eval_mean_accuracy": ("mean accuracy", "o--")},
    "AP": {"eval_box_ap": ("box AP", "o-"), "eval_mask_ap": ("mask AP", "o--")},
}


def save_loss_plot(log_history: list[dict[str, Any]], path: str | Path, kind: str) -> None:
    """Training and evaluation loss, and the task's results where there are any, against the epoch, from
    `trainer.state.log_history`, as a PNG. kind: of the loss."""
    panels = [(CURVES_OF_LOSS, f"loss ({kind})")]
    logged = {key for entry in log_history for key in entry}
    panels += [(curves, name) for name, curves in CURVES_OF_RESULTS.items() if curves.keys() & logged]
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(1 + 6 * len(panels), 4.5), layout="constrained", squeeze=False
    )
    for axes, (curves, name) in zip(all_axes[0], panels):
        for key, (label, style) in curves.items():
            points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry]
            if points:
                axes.plot(*zip(*points), style, label=label, markersize=3)
        axes.set(xlabel="epoch", ylabel=name, ylim=(0, None))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
