"""Is the robust recipe better than MAE on CIFAR-10? 100 epochs of the model of `--config small_32px`, seeds in turn.

All images lie on the card as uint8 and are augmented there (crops of 0.5 to 1.0 of the area, bicubic, and flips), so
that no core is needed: a batch of 4,096, bf16 autocast, torch.compile, AdamW with MAE's base learning rate of 1.5e-4
(2.4e-3 at this batch), 5% warm-up, cosine. At the end, of the mean of the patches' tokens: nearest neighbours (k 20)
and a linear probe (logistic regression), learnt from the 50,000 training images, of the 10,000 test images.

Variants are those of `reproduce` (studies/definitions.py). Each finished run's `result.json`, in the layout that
`reproduce` writes, goes into `cifar10.tar` in the output folder, as `VARIANT-SEED/pretrain/result.json`.
"""

import io
import itertools
import json
import math
import platform
import tarfile
import time
from importlib import metadata
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import yaml
from part import Part
from PIL import Image
from torch.nn.functional import affine_grid, grid_sample

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.analysis.knn import knn_accuracy
from hf_mae_robust.data.preprocessing import ASPECT_RATIOS, Normalization, evaluation_processor
from hf_mae_robust.recipes import recipe_path
from hf_mae_robust.statistics.patch_statistics import patches_of
from hf_mae_robust.studies.definitions import MAE, ROBUST, Variant
from hf_mae_robust.training.optimization import decayed_parameter_names, scale_learning_rate

TABLE, SUMMARY = "CIFAR-10, MAE against robust", "CIFAR-10, by variant"
CROP_SCALE, BASE_LEARNING_RATE, WARMUP = (0.5, 1.0), 1.5e-4, 0.05
PACKAGES = ("torch", "transformers", "accelerate", "datasets")


def images_of(part: Part, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`(N, 3, 32, 32)` uint8 and `(N,)` of a split."""
    images, labels = [], []
    for path in sorted(part.cifar10.rglob(f"{split}-*.parquet")):
        table = pq.read_table(path, columns=["image", "label"])
        for row in table["image"].to_pylist()[: 64 if part.rehearse else None]:
            images.append(np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")))
        labels += table["label"].to_pylist()[: 64 if part.rehearse else None]
        if part.rehearse:
            break
    if not images:
        raise FileNotFoundError(f"{part.cifar10}: no files {split}-*.parquet.")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`(B, C, H, W)` uint8 -> float32 of the same shape in 0 to 255: a random crop of each image (share of the area
    CROP_SCALE, aspect ratio 3/4 to 4/3, bicubic) and a flip of half of them."""
    size, device = len(images), images.device
    area, aspect, down, right, flip = torch.rand(5, size, device=device, generator=generator)
    low, high = CROP_SCALE
    narrow, wide = map(math.log, ASPECT_RATIOS)
    area, aspect = low + (high - low) * area, (narrow + (wide - narrow) * aspect).exp()
    height, width = (area / aspect).sqrt().clamp(max=1), (area * aspect).sqrt().clamp(max=1)
    transform = torch.zeros(size, 2, 3, device=device)
    transform[:, 0, 0] = width * torch.where(flip < 0.5, 1.0, -1.0)
    transform[:, 1, 1] = height
    transform[:, 0, 2], transform[:, 1, 2] = (1 - width) * (2 * right - 1), (1 - height) * (2 * down - 1)
    grid = affine_grid(transform, list(images.shape), align_corners=False)
    crops = grid_sample(images.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return crops.clamp(0, 255)


def config_of(variant: Variant) -> ViTMAERobustConfig:
    sizes = yaml.safe_load(recipe_path("small_32px").read_text())["config_overrides"]
    settings = {name: value for name, value in variant.flags().items() if name != "target_statistics"}
    return ViTMAERobustConfig(**sizes, **settings)


def patch_statistics(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each of the D numbers of a patch, float64: those that `python -m hf_mae_robust statistics`
    finds image by image, here at once on the card."""
    patch_size = config_of(ROBUST).patch_size
    patches = patches_of(images, (patch_size, patch_size)).double() / 255
    deviation, mean = torch.std_mean(patches, dim=0, correction=0)
    return mean.cpu(), deviation.cpu()


@torch.no_grad()
def features_of(model: ViTMAERobustForPreTraining, images: torch.Tensor, normalize: Normalization) -> torch.Tensor:
    found = []
    for batch in images.split(2048):
        with torch.autocast(images.device.type, torch.bfloat16):
            tokens = model.vit(normalize(batch)).last_hidden_state
        found.append(tokens[:, 1:].float().mean(dim=1))
    return torch.cat(found)


def evaluate(model, train: tuple, test: tuple, normalize: Normalization) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model.eval()
    known, classified = features_of(model, train[0], normalize), features_of(model, test[0], normalize)
    noise = torch.rand(len(test[0]), model.config.num_patches, generator=torch.Generator().manual_seed(0))
    losses = []
    with torch.no_grad():
        for batch, order in zip(test[0].split(2048), noise.split(2048)):
            losses.append(model(normalize(batch), noise=order.to(batch.device)).loss.item() * len(batch))
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    probe.fit(known.cpu().numpy(), train[1].cpu().numpy())
    return {
        "eval_loss": sum(losses) / len(test[0]),
        "knn_accuracy": knn_accuracy(known, train[1], classified, test[1])["accuracy"],
        "linear_probe_accuracy": float(probe.score(classified.cpu().numpy(), test[1].cpu().numpy())),
    }


def train(
    part: Part,
    variant: Variant,
    seed: int,
    data: tuple,
    test: tuple,
    statistics: tuple[torch.Tensor, torch.Tensor],
    num_epochs: int,
    batch_size: int,
) -> dict[str, Any] | None:
    """The content of `result.json`; None where the time would not do."""
    torch.manual_seed(seed)
    config, (images, _), begun = config_of(variant), data, time.perf_counter()
    device = images.device
    model = ViTMAERobustForPreTraining(config)
    if config.target_normalization == "global_patch":
        model.set_target_statistics(*statistics)
    model.train().to(device)
    decayed = set(decayed_parameter_names(model))
    groups = [{"params": [], "weight_decay": 0.05}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name not in decayed]["params"].append(parameter)
    rate = scale_learning_rate(BASE_LEARNING_RATE, batch_size)
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    per_epoch = len(images) // batch_size
    total = num_epochs * per_epoch
    warmup = max(1, round(WARMUP * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / (total - warmup)))),
    )
    called = model if part.rehearse else torch.compile(model)
    normalize = Normalization(evaluation_processor(32), device)
    # Shuffling and crops are the same for all variants of a seed.
    generator = torch.Generator(device).manual_seed(seed)
    curve, started, trained = [], None, 0
    for epoch in range(1, num_epochs + 1):
        losses = []
        for rows in torch.randperm(len(images), device=device, generator=generator).split(batch_size)[:per_epoch]:
            # Normalization takes floats for normalised, so its arithmetic is done here.
            crops = torch.addcmul(normalize.shift, augment(images[rows], generator), normalize.scale)
            with torch.autocast(device.type, torch.bfloat16):
                loss = called(crops, return_logits=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.detach())
        curve.append([float(epoch), torch.stack(losses).mean().item()])
        if started is None:  # the first epoch compiles
            started = time.perf_counter()
        else:
            trained += per_epoch * batch_size
        still = (time.perf_counter() - started) / max(epoch - 1, 1) * (num_epochs - epoch)
        if epoch == 3 and still + 15 > part.left():
            part.record(TABLE, variant=variant.label, seed=seed, note=f"left out: needs {still:.0f} s more")
            return None
    seconds = time.perf_counter() - started
    metrics = {"epoch": float(num_epochs), "train_loss": sum(loss for _, loss in curve) / num_epochs}
    metrics |= {"train_runtime": time.perf_counter() - begun, "train_samples_per_second": trained / max(seconds, 1e-9)}
    metrics |= evaluate(model, data, test, normalize)
    curves = {"loss": curve}
    curves |= {name: [[float(num_epochs), metrics[name]]] for name in ("linear_probe_accuracy", "knn_accuracy")}
    settings = {**variant.flags(), "config": "small_32px", "num_train_epochs": num_epochs, "seed": seed}
    settings |= {"per_device_train_batch_size": batch_size, "base_learning_rate": BASE_LEARNING_RATE, "bf16": True}
    settings |= {"crop_scale": list(CROP_SCALE), "warmup_epochs": WARMUP * num_epochs, "torch_compile": True}
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    return {
        "variant": variant.name,
        "seed": seed,
        "module": "pretrain",
        "settings": {**settings, "after": None},
        "curves": curves,
        "metrics": metrics,
        "command": "python benchmarks/gpu.py --parts cifar10",
        "versions": f"Python {platform.python_version()}, {versions}",
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
    }


def write_results(part: Part, results: list[dict[str, Any]]) -> None:
    partial = part.output / "cifar10.tar.partial"
    with tarfile.open(partial, "w") as archive:
        for result in results:
            content = (json.dumps(result, indent=1) + "\n").encode()
            entry = tarfile.TarInfo(f"{result['variant']}-{result['seed']}/pretrain/result.json")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    partial.replace(part.output / "cifar10.tar")


def main() -> None:
    part = Part(__doc__)
    device = part.device
    if part.cifar10 is None:
        part.leave_out("needs --cifar10 FOLDER")
    num_epochs, batch_size = (4, 16) if part.rehearse else (100, 4096)
    data, test = (tuple(tensor.to(device) for tensor in images_of(part, split)) for split in ("train", "test"))
    statistics = patch_statistics(data[0])
    results: list[dict[str, Any]] = []
    in_turn = ((seed, variant) for seed in itertools.count() for variant in (MAE, ROBUST))
    for seed, variant in itertools.islice(in_turn, 2 if part.rehearse else None):
        begun = time.perf_counter()
        result = train(part, variant, seed, data, test, statistics, num_epochs, batch_size)
        if result is None:
            break
        results.append(result)
        write_results(part, results)
        metrics = result["metrics"]
        part.record(
            TABLE,
            variant=variant.label,
            seed=seed,
            linear_probe=round(metrics["linear_probe_accuracy"], 4),
            nearest_neighbours=round(metrics["knn_accuracy"], 4),
            held_out_loss=round(metrics["eval_loss"], 4),
            images_per_second=metrics["train_samples_per_second"],
            seconds=time.perf_counter() - begun,
        )
        torch._dynamo.reset()
    part.end()


if __name__ == "__main__":
    main()
