"""Does training in bf16 follow training in fp32? ViT-B/16, 200 steps on photos, losses side by side.

MAE, and the robust recipe (drop edge 0.3, global patch statistics of these photos). Both precisions see the same crops,
masks and initial weights in the same order; only dropped edges may differ, where the kernels of the two draw
differently. AdamW, 1e-3 at most with a warm-up of 20 steps. fp32 is without TF32.
"""

import math
import time

import torch
from part import TINY, Part
from photos import encoded_photos, write_photo_set

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.data.loaders import training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import Normalization, evaluation_processor, training_transform
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.statistics.patch_statistics import compute_patch_statistics

TABLE = "bf16 against fp32"
RECIPES = {"MAE": {}, "robust": {"target_normalization": "global_patch"}}
WINDOW = 10


def crops(part: Part, size: int, num_images: int) -> torch.Tensor:
    """`(N, 3, H, W)` uint8 crops of the photos."""
    folder = write_photo_set(encoded_photos(part.photos, num_images), part.work / "few", num_images, num_files=1)
    source, _ = open_splits(DataLocation(str(folder), dataset_streaming=True), eval_split=None)
    loader = training_loader(
        source,
        training_transform(size, (0.5, 1.0)),
        3,
        batch_size=num_images,
        seed=0,
        rank=0,
        world_size=1,
        buffer_size=1024,
        num_workers=0,
    )
    loader.set_epoch(0)
    return next(iter(loader))["pixel_values"]


def losses(part: Part, recipe: str, images: torch.Tensor, is_bf16: bool, num_steps: int, batch_size: int) -> list:
    torch.manual_seed(0)
    dropout = 0.3 if recipe == "robust" else 0.0
    settings = {**(TINY if part.rehearse else {}), **RECIPES[recipe], "decoder_attention_probs_dropout_prob": dropout}
    config, device = ViTMAERobustConfig(**settings), images.device
    model = ViTMAERobustForPreTraining(config)
    if recipe == "robust":
        batch = {"pixel_values": images.cpu(), "row": torch.arange(len(images))}
        patch = (config.patch_size, config.patch_size)
        statistics = compute_patch_statistics([batch], patch, 3)
        model.set_target_statistics(statistics.mean, statistics.std)
    model.train().to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    normalize = Normalization(evaluation_processor(config.image_size), device)
    generator, found = torch.Generator().manual_seed(0), []
    for step in range(num_steps):
        progress = max(0, step - 20) / num_steps
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * progress))
        rows = torch.randperm(len(images), generator=generator)[:batch_size]
        noise = torch.rand(batch_size, config.num_patches, generator=generator).to(device)
        torch.manual_seed(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            loss = model(normalize(images[rows.to(device)]), noise=noise, return_logits=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())
    return torch.stack(found).tolist()


def means(values: list[float]) -> list[float]:
    """Of windows of 10 steps: single losses go up and down with their batch."""
    return [sum(values[i : i + WINDOW]) / WINDOW for i in range(0, len(values) - WINDOW + 1, WINDOW)]


def main() -> None:
    part = Part(__doc__)
    device = part.device
    num_steps, batch_size = (20, 4) if part.rehearse else (200, 64)
    images = crops(part, 32 if part.rehearse else 224, 8 if part.rehearse else 192).to(device)
    for recipe in RECIPES:
        curves = {}
        for name, is_bf16 in (("bf16", True), ("fp32", False)):
            begun = time.perf_counter()
            curves[name] = losses(part, recipe, images, is_bf16, num_steps, batch_size)
            part.record("Time of these runs", run=f"{recipe}, {name}", seconds=time.perf_counter() - begun)
        bf16, fp32 = (means(curves[name]) for name in ("bf16", "fp32"))
        differences = [abs(a - b) / b for a, b in zip(bf16, fp32)]
        for window in sorted({0, len(fp32) // 4, len(fp32) // 2, 3 * len(fp32) // 4, len(fp32) - 1}):
            part.record(
                TABLE,
                recipe=recipe,
                steps=f"{window * WINDOW + 1} to {(window + 1) * WINDOW}",
                bf16=round(bf16[window], 5),
                fp32=round(fp32[window], 5),
                difference=f"{bf16[window] / fp32[window] - 1:+.2%}",
                largest_so_far=f"{max(differences[: window + 1]):.2%}",
            )
        part.record("Losses of every step", recipe=recipe, bf16=curves["bf16"], fp32=curves["fp32"])
    part.end()


if __name__ == "__main__":
    main()
