"""The bf16 peak of a card."""

import statistics
import time

import torch

# Dense bf16 (no sparsity), TFLOP/s, by the makers' datasheets; the first name that the card's name contains counts.
DATASHEETS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "GH200": 989,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "A100": 312,
    "A800": 312,
    "L40S": 362,
    "L4": 121,
    "A40": 150,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


def datasheet_peak(device: torch.device) -> float | None:
    """Operations a second; None for a card that is not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate * 1e12 for known, rate in DATASHEETS.items() if known in name), None)


def matrix_rate(device: torch.device, size: int, repeats: int = 10) -> float:
    """Operations a second of a square bf16 product of random numbers: the median."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(repeats + 3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(seconds[3:])
