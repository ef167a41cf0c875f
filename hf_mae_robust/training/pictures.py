"""Pictures of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid, save_image

from ..data.decoding import decode_image
from ..data.source import ImageSource, load_head_of_stream
from ..errors import ImageDecodingError
from ..model import ViTMAERobustForPreTraining

MASK_GRAY = 0.5


@torch.no_grad()
def reconstruction_grid(
    model: ViTMAERobustForPreTraining, pixel_values: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Three rows of pictures: original, masked (gray where masked), reconstruction.

    Args:
        pixel_values (`(N, C, H, W)`): normalised images. noise (`(N, L)`): decides the masks.

    Returns:
        `(3, h, w)` in [0, 1]. Small images are enlarged by an integer factor, without smoothing.
    """
    # Where the noise says "masked" follows from its ranks, as in the model.
    num_visible = int(noise.shape[1] * (1 - model.config.mask_ratio))
    mask = (noise.argsort(dim=1).argsort(dim=1) >= num_visible).float()
    mask = model.unpatchify(mask.unsqueeze(-1).expand(-1, -1, model.config.patch_dim), pixel_values.shape[-2:])
    mean, std = (
        torch.tensor(value, device=pixel_values.device).view(-1, 1, 1)
        for value in (model.config.image_mean, model.config.image_std)
    )
    original = pixel_values.float() * std + mean
    masked = torch.where(mask.bool(), MASK_GRAY, original)
    images = torch.cat([original, masked, model.reconstruct(pixel_values, noise=noise)]).clamp(0, 1)
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
    scale = max(1, 96 // max(images.shape[-2:]))
    images = images.repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
    return make_grid(images.cpu(), nrow=len(pixel_values), padding=max(2, scale), pad_value=1.0)


def save_reconstructions(
    model: ViTMAERobustForPreTraining, pixel_values: torch.Tensor, noise: torch.Tensor, path: str | Path
) -> None:
    """Write `reconstruction_grid` as a PNG."""
    save_image(reconstruction_grid(model, pixel_values, noise), path)


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
