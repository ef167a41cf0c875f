"""Pictures of a finished pre-training."""

from pathlib import Path

import torch
from torchvision.utils import save_image

from ..data.loaders import sequential_loader
from ..data.source import load_head_of_stream
from ..training.pictures import reconstruction_errors, reconstruction_grid, save_errors_by_band
from .trainer import MAETrainer

RECONSTRUCTIONS = "reconstructions.png"
ERRORS_BY_BAND = "reconstruction_error_by_band.png"
NUM_PICTURES = 8
# Of band models: errors are means over so many images.
NUM_MEASURED = 64


def save_pictures(trainer: MAETrainer) -> None:
    """`reconstructions.png` of the first images held out (or trained on, where none are and nothing is pushed), in the
    output folder, and of a band model `reconstruction_error_by_band.png` of some more.
    By all processes: they run a model together that is sharded; of another one the first process is enough."""
    if not (trainer.is_sharded or trainer.is_world_process_zero()):
        return
    args, config = trainer.args, trainer.model.config
    count = NUM_MEASURED if config.is_band_model else NUM_PICTURES
    source = trainer.eval_dataset or trainer.train_source
    if source.row_groups is None:
        source = load_head_of_stream(source, count)
    loader = sequential_loader(
        source.head(count),
        trainer.eval_transform,
        config.num_channels,
        batch_size=NUM_PICTURES,
        rank=0,
        world_size=1,
        noise_length=config.num_patches,
    )
    model, folder = trainer.accelerator.unwrap_model(trainer.model), Path(args.output_dir)
    channels = trainer.normalization.shown_channels
    sums = torch.zeros(2, config.num_channels, dtype=torch.float64)
    grid = None
    for batch in loader:
        is_image = batch["row"] >= 0
        if not is_image.any():
            continue
        images = trainer._prepare_inputs({"pixel_values": batch["pixel_values"][is_image]})["pixel_values"]
        noise = batch["noise"][is_image].to(args.device)
        with trainer.compute_loss_context_manager():  # flash attention works under autocast only
            if grid is None:
                grid = reconstruction_grid(model, images, noise, channels)
            if config.is_band_model:
                sums += torch.stack(reconstruction_errors(model, images, noise))
    if trainer.is_world_process_zero() and grid is not None:  # None: none of them can be decoded
        if trainer.may_show_images:
            save_image(grid, folder / RECONSTRUCTIONS)
        else:
            (folder / RECONSTRUCTIONS).unlink(missing_ok=True)  # of another run
        if config.is_band_model:
            errors = (sums[0] / sums[1].clamp(min=1)).tolist()
            save_errors_by_band(errors, folder / ERRORS_BY_BAND, config.bands, config.norm_pix_loss)
