"""How long does a training step take, against stock ViTMAEForPreTraining and the structure of the official code?

    python benchmarks/training_step.py
    python benchmarks/training_step.py --dropout 0.3
    python benchmarks/training_step.py --batch_sizes 128 --bf16 --compile      # on a GPU

Forward, backward and optimiser on random images, no data loading and no Trainer, the same sizes and settings.

- ours: `return_logits=False`, as MAETrainer calls it; fused AdamW.
- stock: transformers' ViTMAEForPreTraining with fused AdamW (what the Trainer of run_mae.py takes by default).
- stock, plain AdamW: the same with `torch.optim.AdamW(parameters)`.
- official structure: timm's patch embedding and blocks (query, key and value in one product) put together as
  facebookresearch/mae describes: all patches are projected, the decoder predicts all of them, the loss is masked at the
  end; `torch.optim.AdamW(parameters)`.

With --dropout all four drop as many edges in the decoder. The share of the matrix rate is the operations that the step
needs (those of ours, hf_mae_robust/cost.py) over what a product of two 2048 x 2048 matrices reaches in the same
process; it is comparable across the rows because it is the same result that each of them gets.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from paired import add_common_arguments, current_device, measure, report, synchronize
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.pretraining.cost import training_flops
from hf_mae_robust.pretraining.cpu_attention import default_attention

SIZES = {
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
}


class OfficialStructure(nn.Module):
    """He et al. 2022's autoencoder with timm's blocks."""

    def __init__(self, config: ViTMAERobustConfig, dropout: float):
        super().__init__()
        dim, decoder_dim, norm = config.hidden_size, config.decoder_hidden_size, partial(nn.LayerNorm, eps=1e-6)
        self.config, patches = config, config.num_patches
        self.patch_embed = PatchEmbed(config.image_size, config.patch_size, 3, dim)
        self.cls_token, self.mask_token = (
            nn.Parameter(torch.zeros(1, 1, dim)),
            nn.Parameter(torch.zeros(1, 1, decoder_dim)),
        )
        self.pos_embed = nn.Parameter(torch.randn(1, patches + 1, dim) * 0.02, requires_grad=False)
        self.decoder_pos_embed = nn.Parameter(torch.randn(1, patches + 1, decoder_dim) * 0.02, requires_grad=False)
        heads, decoder_heads = config.num_attention_heads, config.decoder_num_attention_heads
        self.blocks = nn.ModuleList(
            Block(dim, heads, qkv_bias=True, norm_layer=norm) for _ in range(config.num_hidden_layers)
        )
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_dim, decoder_heads, qkv_bias=True, norm_layer=norm, attn_drop=dropout)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.norm, self.decoder_norm = norm(dim), norm(decoder_dim)
        self.decoder_embed, self.decoder_pred = nn.Linear(dim, decoder_dim), nn.Linear(decoder_dim, config.patch_dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        order = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)
        restore, visible = order.argsort(dim=1), int(x.shape[1] * (1 - self.config.mask_ratio))
        mask = (restore >= visible).float()
        x = x.gather(1, order[:, :visible, None].expand(-1, -1, x.shape[2]))
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        tokens = torch.cat([x[:, 1:], self.mask_token.expand(len(x), restore.shape[1] - visible, -1)], dim=1)
        tokens = tokens.gather(1, restore[..., None].expand(-1, -1, x.shape[2]))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        predicted = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        p, side = self.config.patch_size, self.config.image_size // self.config.patch_size
        target = images.reshape(len(images), 3, side, p, side, p).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return (((predicted - target) ** 2).mean(-1) * mask).sum() / mask.sum()


def set_decoder_dropout(model: ViTMAEForPreTraining, dropout: float) -> ViTMAEForPreTraining:
    """Stock has one setting for encoder and decoder."""
    for layer in model.decoder.decoder_layers:
        layer.attention.attention_dropout = dropout
    return model


def models(arguments: argparse.Namespace) -> dict[str, Callable]:
    """Name -> a function that gives the model, the function of its loss, and the optimiser."""
    sizes = {**SIZES[arguments.model], "image_size": arguments.image_size, "mask_ratio": arguments.mask_ratio}
    robust = ViTMAERobustConfig(**sizes, decoder_attention_probs_dropout_prob=arguments.dropout)
    if arguments.ingredients:
        robust = ViTMAERobustConfig(**sizes, target_normalization="global_patch")
    stock = ViTMAEConfig(**sizes, norm_pix_loss=True)

    def ours():
        attention = default_attention(current_device(), arguments.compile)
        model = ViTMAERobustForPreTraining._from_config(robust, attn_implementation=attention)
        if arguments.ingredients:
            model.set_target_statistics(torch.full((768,), 0.45), torch.full((768,), 0.25))
        return model, lambda m, images: m(images, return_logits=False).loss, True

    def with_stock(fused):
        model = set_decoder_dropout(ViTMAEForPreTraining(stock), robust.decoder_attention_probs_dropout_prob)
        return model, lambda m, images: m(images).loss, fused

    def official():
        model = OfficialStructure(robust, robust.decoder_attention_probs_dropout_prob)
        return model, lambda m, images: m(images), False

    return {
        "ours": ours,
        "stock": partial(with_stock, True),
        "stock, plain AdamW": partial(with_stock, False),
        "official structure": official,
    }


def step_of(make: Callable, batch_size: int, arguments: argparse.Namespace) -> Callable[[], int]:
    device = current_device()
    model, loss_of, fused = make()
    model.train().to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=fused or None)
    images = torch.randn(batch_size, 3, arguments.image_size, arguments.image_size, device=device)
    called = torch.compile(model) if arguments.compile else model

    def step() -> int:
        for _ in range(arguments.steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
                loss = loss_of(called, images)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return arguments.steps * batch_size

    return step


def matrix_rate(bf16: bool, size: int = 2048, repeats: int = 7) -> float:
    """Operations a second of a square matrix product: the median."""
    device = current_device()
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else None) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):
        synchronize()
        begun = time.perf_counter()
        a @ b
        synchronize()
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(seconds[1:])


def peak_memory(name: str, batch_size: int, arguments: argparse.Namespace) -> float:
    """GiB that a process of its own needs for three steps; of GPU memory where there is one."""
    child = [
        sys.executable,
        __file__,
        *sys.argv[1:],
        "--memory_of",
        name,
        "--batch_sizes",
        str(batch_size),
        "--steps",
        "3",
    ]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def resident_peak() -> float:
    """GiB; not `getrusage`, whose peak is inherited from the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def print_memory(arguments: argparse.Namespace) -> None:
    before = resident_peak()
    step_of(models(arguments)[arguments.memory_of], arguments.batch_sizes[0], arguments)()
    on_gpu = torch.cuda.is_available()
    print(torch.cuda.max_memory_allocated() / 2**30 if on_gpu else resident_peak() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser)
    parser.add_argument("--model", choices=SIZES, default="base", help="(%(default)s)")
    parser.add_argument("--image_size", type=int, default=224, help="(%(default)s)")
    parser.add_argument("--mask_ratio", type=float, default=0.75, help="(%(default)s)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8], help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="In each round (%(default)s).")
    parser.add_argument("--dropout", type=float, default=0.0, help="Of the decoder's attention (%(default)s).")
    parser.add_argument(
        "--ingredients", action="store_true", help="Ours with patch statistics, and all with decoder dropout 0.3."
    )
    parser.add_argument("--bf16", action="store_true", help="Autocast.")
    parser.add_argument("--compile", action="store_true", help="torch.compile, all of them.")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.memory_of:
        print_memory(arguments)
        return
    config = ViTMAERobustConfig(
        **SIZES[arguments.model], image_size=arguments.image_size, mask_ratio=arguments.mask_ratio
    )
    for batch_size in arguments.batch_sizes:
        made = models(arguments)
        rates = measure({name: step_of(make, batch_size, arguments) for name, make in made.items()}, arguments.repeats)
        peak = matrix_rate(arguments.bf16)
        share = {name: statistics.median(values) * training_flops(config) / peak for name, values in rates.items()}
        memory = {name: peak_memory(name, batch_size, arguments) for name in made}
        path = arguments.json and arguments.json.with_stem(f"{arguments.json.stem}-{batch_size}")
        report(
            f"training step, ViT-{arguments.model}, batch {batch_size}",
            rates,
            "stock",
            path=path,
            share_of_matrix_rate=share,
            matrix_rate_gflops=peak / 1e9,
            peak_memory_gib=memory,
        )
        for name in made:
            print(f"{name}: {share[name]:.0%} of {peak / 1e9:.0f} GFLOP/s, {memory[name]:.2f} GiB")


if __name__ == "__main__":
    main()
