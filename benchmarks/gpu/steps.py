"""How long does a training step of ViT-B/16 and ViT-L/16 take, against stock ViTMAEForPreTraining and the structure of
the official code (timm's blocks)?

Forward, backward and fused AdamW on random images that lie on the card, 224 pixels, bf16 autocast, no data loading and
no Trainer. The ways of a table take turns in one process; every other round runs them backwards. images/s: the median
of the rounds. The share of the peak is the operations that the result needs (hf_mae_robust.pretraining.cost) over the
datasheet's dense bf16 peak, or over what a large product reaches where the card is not listed. Peak memory is what a
way allocates by itself: weights, optimiser state and the largest step.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from part import TINY, Part
from peak import datasheet_peak, matrix_rate
from training_step import SIZES, OfficialStructure, set_decoder_dropout
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.utils import is_flash_attn_2_available

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.pretraining.cost import training_flops

ROUNDS = 5
# Of a way, in each round.
SECONDS = 0.35


@dataclass(frozen=True)
class Way:
    """whose: "ours", "stock" or "official". compile: None, or torch.compile's mode. dropout: of the decoder's
    attention. mid: ratio of mid-level tokens."""

    whose: str
    compile: str | None = None
    dropout: float = 0.0
    mid: float = 0.0
    checkpointing: bool = False
    attention: str = "sdpa"

    @property
    def name(self) -> str:
        more = {"default": ", compiled", None: ""}.get(self.compile, f", compiled ({self.compile})")
        more += f", drop edge {self.dropout:g}" if self.dropout else ""
        more += f", {self.mid:.0%} mid-level tokens" if self.mid else ""
        more += ", gradient checkpointing" if self.checkpointing else ""
        more += f", {self.attention}" if self.attention != "sdpa" else ""
        return {"official": "official structure"}.get(self.whose, self.whose) + more


@dataclass(frozen=True)
class Table:
    """base: what the ratios refer to. seconds: that it takes by experience; without these left it is not begun."""

    model: str
    batch_size: int
    ways: tuple[Way, ...]
    base: Way
    seconds: float
    about: str = ""

    @property
    def title(self) -> str:
        return f"Training step, ViT-{self.model}/16, batch {self.batch_size}{self.about}"


STOCK, OFFICIAL = Way("stock"), Way("official")
EAGER = (Way("ours"), Way("ours", dropout=0.3), STOCK, Way("stock", dropout=0.3), OFFICIAL)
STOCK_COMPILED = Way("stock", "default")
COMPILED = (STOCK, STOCK_COMPILED, Way("ours", "default"), Way("ours", "default", dropout=0.3))
MORE = (
    Way("ours"),
    *(Way("ours", mid=0.25), Way("ours", dropout=0.3, mid=0.25), Way("ours", checkpointing=True)),
    *(Way("ours", attention="eager"), Way("ours", attention="flash_attention_2")),
)
FEW_COMPILED = (Way("ours", "default", dropout=0.3), STOCK_COMPILED)
OFFICIAL_COMPILED = (Way("ours", "default"), Way("official", "default"))
TUNED = (Way("ours", "default"), Way("ours", "max-autotune"))
# What matters most comes first: the time may end anywhere.
TABLES = (
    Table("base", 256, EAGER, STOCK, 15),
    Table("base", 256, COMPILED, STOCK_COMPILED, 80, ", compiled"),
    Table("large", 128, EAGER, STOCK, 20),
    Table("base", 256, MORE, Way("ours"), 15, ", what costs what"),
    *(Table("base", size, EAGER, STOCK, 12) for size in (64, 128, 512)),
    Table("large", 128, FEW_COMPILED, STOCK_COMPILED, 70, ", compiled"),
    *(Table("large", size, (Way("ours"), STOCK), STOCK, 12) for size in (64, 256, 512)),
    *(Table("base", size, FEW_COMPILED, STOCK_COMPILED, 35, ", compiled") for size in (128, 64, 512)),
    Table("base", 256, OFFICIAL_COMPILED, Way("official", "default"), 50, ", compiled, official"),
    Table("base", 256, TUNED, Way("ours", "default"), 90, ", max-autotune"),
)


def sizes_of(part: Part, model: str) -> dict[str, Any]:
    return TINY if part.rehearse else SIZES[model]


def build(part: Part, way: Way, model: str) -> tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    """The model, and the function of its loss."""
    torch.manual_seed(0)
    sizes = sizes_of(part, model)
    config = ViTMAERobustConfig(**sizes, decoder_attention_probs_dropout_prob=way.dropout, mid_mask_ratio=way.mid)
    if way.whose == "official":
        return OfficialStructure(config, way.dropout), lambda m, images: m(images)
    if way.whose == "stock":
        settings = {name: value for name, value in sizes.items() if name != "mid_mask_layer_idx"}
        made = ViTMAEForPreTraining(ViTMAEConfig(**settings, norm_pix_loss=True))
        return set_decoder_dropout(made, way.dropout), lambda m, images: m(images).loss
    made = ViTMAERobustForPreTraining._from_config(config, attn_implementation=way.attention)
    if way.checkpointing:
        made.gradient_checkpointing_enable({"use_reentrant": False})
    return made, lambda m, images: m(images, return_logits=False).loss


class Contender:
    """A way, ready to take steps."""

    def __init__(self, part: Part, way: Way, table: Table, images: torch.Tensor):
        self.way, self.images, self.device = way, images, images.device
        before = self._allocated()
        model, self.loss_of = build(part, way, table.model)
        model.train().to(self.device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
        if way.compile is not None:
            # In a rehearsal everything but the generation of code, which takes minutes on two cores.
            how = {"backend": "aot_eager"} if part.rehearse else {"mode": way.compile}
            model = torch.compile(model, **how)
        self.model = model
        begun = time.perf_counter()
        for _ in range(3):
            self.step()
        self._synchronize()
        self.seconds_to_start = time.perf_counter() - begun
        self.own = self._allocated() - before
        self.steps, self.peak = 1, 0.0
        self.steps = max(1, min(50, round(SECONDS * self.rate() / len(images)))) if not part.rehearse else 1

    def _allocated(self) -> float:
        return torch.cuda.memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def step(self) -> None:
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.loss_of(self.model, self.images)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def rate(self) -> float:
        """Images a second over `steps` steps; takes note of the peak memory."""
        before = self._allocated()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._synchronize()
        begun = time.perf_counter()
        for _ in range(self.steps):
            self.step()
        self._synchronize()
        rate = self.steps * len(self.images) / (time.perf_counter() - begun)
        if self.device.type == "cuda":
            largest = torch.cuda.max_memory_allocated() / 2**30
            self.peak = max(self.peak, largest - before + self.own)
        return rate


def start(part: Part, table: Table, images: torch.Tensor) -> list[Contender]:
    """The ways that run here; what became of the others is recorded."""
    ready = []
    for way in table.ways:
        if way.attention == "flash_attention_2" and not is_flash_attn_2_available():
            part.record(table.title, way=way.name, note="flash-attn is not installed")
            continue
        if part.left() < table.seconds / len(table.ways) and not part.rehearse:
            part.record(table.title, way=way.name, note="no time left")
            continue
        try:
            ready.append(Contender(part, way, table, images))
        except torch.OutOfMemoryError:
            part.record(table.title, way=way.name, note="out of memory")
        except Exception as error:  # the other ways are worth their time all the same
            message = str(error).splitlines()[0][:150] if str(error) else ""
            part.record(table.title, way=way.name, note=f"{type(error).__name__}: {message}")
    return ready


def compare(part: Part, table: Table, device: torch.device, peak: float) -> None:
    batch_size = 2 if part.rehearse else table.batch_size
    size = sizes_of(part, table.model).get("image_size", 224)
    images = torch.randn(batch_size, 3, size, size, device=device)
    contenders = start(part, table, images)
    rates: dict[Way, list[float]] = {contender.way: [] for contender in contenders}
    for number in range(1 if part.rehearse else ROUNDS):
        for contender in contenders if number % 2 else contenders[::-1]:
            rates[contender.way].append(contender.rate())
    medians = {way: statistics.median(values) for way, values in rates.items()}
    for contender in contenders:
        way, median = contender.way, medians[contender.way]
        config = ViTMAERobustConfig(**sizes_of(part, table.model), mid_mask_ratio=way.mid)
        ratio = None
        if table.base in rates:  # round by round, so that both met the same clock
            ratio = statistics.median([a / b for a, b in zip(rates[way], rates[table.base])])
        part.record(
            table.title,
            way=way.name,
            images_per_second=median,
            ratio=round(ratio, 3) if ratio else None,
            milliseconds_a_step=1000 * batch_size / median,
            share_of_bf16_peak=f"{median * training_flops(config) / peak:.0%}",
            peak_memory_GiB=contender.peak or None,
            first_3_steps_s=contender.seconds_to_start,
            rounds=[round(value, 1) for value in rates[way]],
        )
    without, with_drop = (_find(medians, dropout) for dropout in (0.0, 0.3))
    if without and with_drop:
        part.record("Drop edge, cost", table=table.title, slower_by=f"{without / with_drop - 1:.1%}", goal="at most 3%")


def _find(medians: dict[Way, float], dropout: float) -> float | None:
    plain = [Way("ours", mode, dropout=dropout) for mode in ("default", None)]
    return next((medians[way] for way in plain if way in medians), None)


def main() -> None:
    part = Part(__doc__)
    device = part.device
    torch.set_float32_matmul_precision("highest")
    peak = datasheet_peak(device) or matrix_rate(device, 256 if part.rehearse else 8192)
    for table in TABLES[:4] + TABLES[-2:] if part.rehearse else TABLES:
        if part.left() < table.seconds and not part.rehearse:
            part.record("Training steps that were left out", table=table.title, why=f"{part.left():.0f} s left")
            continue
        compare(part, table, device, peak)
        torch._dynamo.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    part.end()


if __name__ == "__main__":
    main()
