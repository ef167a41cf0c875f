"""The energy of a training, where the machine counts it: RAPL for processors, NVML for NVIDIA's GPUs. Nothing is
guessed: a machine without a counter that this process may read gives None."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

POWERCAP = Path("/sys/class/powercap")
# A package; the zones below it (intel-rapl:0:0) are parts of it. AMD's have the same name.
_PACKAGE = re.compile(r"intel-rapl:\d+")
_JOULES_A_KWH = 3.6e6


class RaplCounters:
    """Counters of the processor packages of this machine, which start again at 0 after some minutes to an hour: call
    `update` more often than that. They count all that runs on the processors, not this process alone.

    Args:
        folder: where the kernel shows them. Most systems let only root read them.
    """

    def __init__(self, folder: Path = POWERCAP):
        self.zones = sorted(path for path in folder.glob("*") if _PACKAGE.fullmatch(path.name))
        self.microjoules = 0
        try:
            self._last = self._read()
            self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self.zones]
        except (OSError, ValueError):
            self.zones, self._last, self._ranges = [], [], []

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self.zones]

    def update(self) -> None:
        try:
            now = self._read()
        except (OSError, ValueError):  # a counter went away: what was counted is not all
            self.zones, self._last, self._ranges = [], [], []
            return
        for before, after, size in zip(self._last, now, self._ranges):
            self.microjoules += after - before if after >= before else after - before + size
        self._last = now

    @property
    def kwh(self) -> float | None:
        """Since it was made; None where nothing counts."""
        return self.microjoules / 1e6 / _JOULES_A_KWH if self.zones else None


class GpuCounters:
    """NVML's counters of the first `count` GPUs that this process sees, if the package nvidia-ml-py is there."""

    def __init__(self, count: int):
        self.handles: list[Any] = []
        if not count:
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            uuids = [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]
            self.handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
            self._read, self._failure = pynvml.nvmlDeviceGetTotalEnergyConsumption, pynvml.NVMLError
            self._first = self._millijoules()
        except ImportError:
            pass
        except pynvml.NVMLError:  # cards older than Volta do not count
            self.handles = []

    def _millijoules(self) -> float:
        return float(sum(self._read(handle) for handle in self.handles))

    @property
    def kwh(self) -> float | None:
        """Since it was made; None where nothing counts."""
        try:
            return (self._millijoules() - self._first) / 1e3 / _JOULES_A_KWH if self.handles else None
        except self._failure:
            return None


class EnergyCallback(TrainerCallback):
    """Counts in the first process, for all processes of a machine. Runs on several machines are not counted."""

    def __init__(self) -> None:
        self._rapl: RaplCounters | None = None
        self._gpus: GpuCounters | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if not state.is_world_process_zero or processes != args.world_size:
            return
        self._rapl = RaplCounters()
        self._gpus = GpuCounters(processes if args.device.type == "cuda" else 0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._rapl is not None:
            self._rapl.update()

    def metrics(self) -> dict[str, float]:
        """`train_cpu_kwh`, `train_gpu_kwh`: since the training was last started; only what is counted."""
        if self._rapl is None or self._gpus is None:
            return {}
        self._rapl.update()
        counted = {"train_cpu_kwh": self._rapl.kwh, "train_gpu_kwh": self._gpus.kwh}
        return {name: kwh for name, kwh in counted.items() if kwh is not None}
