"""How much memory does training take, by batch, with and without gradient checkpointing, and how good is the estimate?

    python benchmarks/memory.py
    python benchmarks/memory.py --models base large --batch_sizes 64 128 256 --bf16      # on a GPU

Each measurement is a process of its own: three steps on random images; the highest amount of resident memory above what
was there before the model (on a GPU: of allocated GPU memory). Estimated by hf_mae_robust/cost.py, as --dry_run does.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from paired import current_device, machine
from training_step import SIZES, resident_peak

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.pretraining.cost import memory
from hf_mae_robust.pretraining.cpu_attention import default_attention

GIB = 2**30


def peak(size: str, batch_size: int, checkpointing: bool, bf16: bool) -> float:
    """GiB."""
    torch.set_num_threads(1)
    before, device = resident_peak(), current_device()
    attention = default_attention(device, torch_compile=False)
    config = ViTMAERobustConfig(**SIZES[size])
    model = ViTMAERobustForPreTraining._from_config(config, attn_implementation=attention).train().to(device)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    images = torch.randn(batch_size, 3, 224, 224, device=device)
    for _ in range(3):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(images, return_logits=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else resident_peak() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["base", "large"], help="(base large)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[4, 8, 16], help="(4 8 16)")
    parser.add_argument("--bf16", action="store_true", help="Autocast.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write all figures there.")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        size, batch_size, checkpointing = arguments.one
        print(peak(size, int(batch_size), checkpointing == "True", arguments.bf16))
        return
    rows = []
    print("| ViT | batch | GiB | estimate | with gradient checkpointing | estimate |\n|---|---|---|---|---|---|")
    for size in arguments.models:
        for batch_size in arguments.batch_sizes:
            row = {"model": size, "batch_size": batch_size}
            for name, checkpointing in (("plain", False), ("checkpointing", True)):
                words = ["--one", size, str(batch_size), str(checkpointing), *(["--bf16"] if arguments.bf16 else [])]
                done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"ViT-{size}, batch {batch_size}: {done.stderr[-2000:]}")
                config = ViTMAERobustConfig(**SIZES[size])
                need = memory(config, batch_size, checkpointing, 2 if arguments.bf16 else 4)
                row[name] = {"measured": float(done.stdout.split()[-1]), "estimated": need.peak / GIB}
            rows.append(row)
            figures = [f"{row[name][kind]:.2f}" for name in ("plain", "checkpointing") for kind in row[name]]
            print(f"| {size} | {batch_size} | {' | '.join(figures)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "gib": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
