"""Pictures of a finished pre-training."""

from pathlib import Path

from torchvision.utils import save_image

from ..data.loaders import sequential_loader
from ..data.source import load_head_of_stream
from ..training.pictures import reconstruction_grid
from .trainer import MAETrainer

RECONSTRUCTIONS = "reconstructions.png"
NUM_PICTURES = 8


def save_pictures(trainer: MAETrainer) -> None:
    """`reconstructions.png` of the first images held out (or trained on, where none are), in the output folder.
    By all processes: they run a model together that is sharded; of another one the first process is enough."""
    if not (trainer.is_sharded or trainer.is_world_process_zero()):
        return
    args, config = trainer.args, trainer.model.config
    source = trainer.eval_dataset or trainer.train_source
    if source.row_groups is None:
        source = load_head_of_stream(source, NUM_PICTURES)
    loader = sequential_loader(
        source.head(NUM_PICTURES),
        trainer.eval_transform,
        config.num_channels,
        batch_size=NUM_PICTURES,
        rank=0,
        world_size=1,
        noise_length=config.num_patches,
    )
    batch = next(iter(loader))
    is_image = batch["row"] >= 0
    images = trainer._prepare_inputs({"pixel_values": batch["pixel_values"][is_image]})["pixel_values"]
    noise = batch["noise"][is_image].to(args.device)
    model = trainer.accelerator.unwrap_model(trainer.model)
    with trainer.compute_loss_context_manager():  # flash attention works under autocast only
        grid = reconstruction_grid(model, images, noise)
    if trainer.is_world_process_zero():
        save_image(grid, Path(args.output_dir) / RECONSTRUCTIONS)
