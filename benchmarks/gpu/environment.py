"""Card, driver, versions, processor, and what a large bf16 matrix product reaches here."""

import os
import platform
import subprocess
from importlib import metadata

import torch
from part import Part
from peak import datasheet_peak, matrix_rate

PACKAGES = (
    *("torch", "torchvision", "triton", "transformers", "accelerate", "datasets", "timm", "simplejpeg", "pillow"),
    *("safetensors", "huggingface_hub", "pyarrow", "numpy", "scikit-learn", "evaluate", "flash-attn"),
)
TABLE = "Environment"


def nvidia_smi(field: str) -> str | None:
    try:
        command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    part = Part(__doc__)
    device = part.device
    found = {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    found |= {"CUDA of torch": torch.version.cuda, "system": platform.platform(), "CPU cores": os.cpu_count()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"card": properties.name, "GiB of the card": round(properties.total_memory / 2**30, 1)}
        found |= {"driver": nvidia_smi("driver_version"), "power limit": nvidia_smi("power.limit")}
        found |= {"clock, idle": nvidia_smi("clocks.sm"), "utilisation before": nvidia_smi("utilization.gpu")}
        found["cuDNN"] = torch.backends.cudnn.version()
    size = 256 if part.rehearse else 8192
    reached, sheet = matrix_rate(device, size), datasheet_peak(device)
    found["bf16 product, TFLOP/s"] = round(reached / 1e12, 3)
    found["bf16 peak of the datasheet, TFLOP/s"] = sheet / 1e12 if sheet else "unknown"
    for name, value in found.items():
        part.record(TABLE, what=name, value="unknown" if value is None else str(value))
    part.end()


if __name__ == "__main__":
    main()
