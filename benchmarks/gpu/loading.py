"""Do the processor's cores feed the card?

- Images/s from the JPEG bytes of photos to normalised batches on the card (crops of 0.2 to 1.0 of the area, 224 pixels,
  batch 256) with 1, 4, 8 and 16 workers, as run_pretrain.py loads them.
- run_pretrain.py --bf16 --torch_compile on the same photos with all workers: images/s, and how long a step waits for
  data by --profile.

The photos are repeated until they fill an epoch of 8,192. How many workers would do is what the steps measured before
need (compiled, drop edge 0.3, or the fastest way there is) over what one of 8 workers gives.
"""

import itertools
import json
import math
import os
import statistics
import time

import torch
from part import TINY, Part, finish, overrides, start_pretraining
from photos import encoded_photos, write_photo_set

from hf_mae_robust.data.loaders import training_loader
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import Normalization, evaluation_processor, training_transform
from hf_mae_robust.data.source import DataLocation

WORKERS = (1, 4, 8, 16)
TABLE, END_TO_END = "Data path, images/s to the card", "run_pretrain.py, end to end"


def rate(part: Part, device: torch.device, folder, workers: int, batch_size: int, seconds: float) -> float:
    source, _ = open_splits(DataLocation(str(folder), dataset_streaming=True), eval_split=None)
    size = 32 if part.rehearse else 224
    loader = training_loader(
        source,
        training_transform(size),
        3,
        noise_length=(size // 16) ** 2,
        batch_size=batch_size,
        seed=0,
        rank=0,
        world_size=1,
        buffer_size=8192,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    normalize = Normalization(evaluation_processor(size), device)

    def endless():
        for epoch in itertools.count():
            loader.set_epoch(epoch)
            yield from loader

    batches, images = endless(), 0
    # Until every worker has given two: what they have prepared before the clock starts does not count.
    for batch in itertools.islice(batches, 2 * workers):
        normalize(batch["pixel_values"].to(device, non_blocking=True))
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        batch = next(batches)
        normalize(batch["pixel_values"].to(device, non_blocking=True))
        images += batch_size
    if device.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - begun)


def needed(part: Part) -> float | None:
    """images/s of the compiled steps of ViT-B, batch 256."""
    rows = part.recorded("Training step, ViT-base/16, batch 256, compiled")
    rates = {row["way"]: row["images per second"] for row in rows if "images per second" in row}
    return rates.get("ours, compiled, drop edge 0.3", max(rates.values(), default=None))


def end_to_end(part: Part, folder, workers: int) -> None:
    output = part.work / f"end_to_end-{workers}"
    settings = {"dataset_name": folder, "dataset_streaming": True, "eval_split_name": "none", "output_dir": output}
    settings |= {"per_device_train_batch_size": 256, "max_steps": 60, "bf16": True, "torch_compile": True}
    settings |= {"profile": 20, "logging_steps": 5, "save_strategy": "no"}
    settings |= {"dataloader_num_workers": workers, "decoder_attention_probs_dropout_prob": 0.3}
    if part.rehearse:
        settings |= {"per_device_train_batch_size": 4, "max_steps": 9, "profile": 2, "torch_compile": False}
        settings |= {"logging_steps": 1, "config_overrides": overrides(TINY)}
    finish(start_pretraining(settings), part.left())
    profile = json.loads((output / "profile.json").read_text())
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    logged = [entry["images_per_second"] for entry in history if "images_per_second" in entry]
    parts = profile["milliseconds_a_step"]
    waiting = parts["waiting for data"] / sum(parts.values())
    part.record(
        END_TO_END,
        workers=workers,
        images_per_second=statistics.median(logged[len(logged) // 2 :]),
        while_profiled=profile["images_per_second"],
        waits_for_data=f"{waiting:.1%}",
        **{f"{name}, ms": value for name, value in parts.items()},
    )


def main() -> None:
    part = Part(__doc__)
    device = part.device
    num_rows, batch_size, seconds = (64, 4, 0.2) if part.rehearse else (8192, 256, 5)
    folder = write_photo_set(encoded_photos(part.photos, 16 if part.rehearse else None), part.work / "many", num_rows)
    cores = os.cpu_count() or 1
    found = {}
    for workers in (1, 2) if part.rehearse else [n for n in WORKERS if n <= max(cores, 4)]:
        found[workers] = rate(part, device, folder, workers, batch_size, seconds)
        part.record(TABLE, workers=workers, images_per_second=found[workers], of_one_worker=found[workers] / found[1])
    wanted, most = needed(part), max(found)
    if wanted:
        each = found[8] / 8 if 8 in found else found[most] / most
        part.record(
            TABLE,
            workers=f"{math.ceil(wanted / each)} would do",
            images_per_second=wanted,
            note=f"what a compiled step needs; {cores} cores here",
        )
    for workers in (1,) if part.rehearse else (most, most // 2):
        if part.left() < 20:
            part.record(END_TO_END, workers=workers, note=f"left out: {part.left():.0f} s left")
        else:
            end_to_end(part, folder, workers)
    part.end()


if __name__ == "__main__":
    main()
