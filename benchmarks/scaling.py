"""How does the time of a step grow with image size, batch, mask ratio and mid-level tokens, against the operations?

    python benchmarks/scaling.py
    python benchmarks/scaling.py --model base --bf16 --compile      # on a GPU

One setting at a time is changed; images/s and operations an image (hf_mae_robust/cost.py) are each compared with those
of the unchanged setting, in the same round. An efficiency of 1: the time grows as the operations do; above 1: by less.
"""

import argparse
import copy
import statistics
from collections.abc import Callable

import torch
from paired import add_common_arguments, current_device, measure, ratios, report
from training_step import SIZES

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.pretraining.cost import training_flops
from hf_mae_robust.pretraining.cpu_attention import default_attention

BASE = "unchanged"


def settings(arguments: argparse.Namespace) -> dict[str, tuple[dict, int]]:
    """Name -> (settings of the configuration, batch)."""
    batch = arguments.batch_size
    changes = {BASE: ({}, batch)}
    changes |= {f"{size} px": ({"image_size": size}, batch) for size in arguments.image_sizes}
    changes |= {f"batch {size}": ({}, size) for size in arguments.batch_sizes}
    changes |= {f"{ratio:.0%} masked": ({"mask_ratio": ratio}, batch) for ratio in arguments.mask_ratios}
    for ratio in arguments.mid_mask_ratios:
        changes[f"{ratio:.0%} mid-level tokens"] = ({"mid_mask_ratio": ratio, "mid_mask_layer_idx": 8}, batch)
    changes["decoder dropout 0.3"] = ({"decoder_attention_probs_dropout_prob": 0.3}, batch)
    return changes


def config_of(change: dict, arguments: argparse.Namespace) -> ViTMAERobustConfig:
    off = {"decoder_attention_probs_dropout_prob": 0.0}
    return ViTMAERobustConfig(**{**SIZES[arguments.model], **off, **change})


def step_of(
    config: ViTMAERobustConfig, batch_size: int, arguments: argparse.Namespace, attention: str | None = None
) -> Callable[[], int]:
    """attention: default: that of run_pretrain.py."""
    device = current_device()
    attention = attention or default_attention(device, arguments.compile)
    config = copy.deepcopy(config)  # it carries the attention
    model = ViTMAERobustForPreTraining._from_config(config, attn_implementation=attention).train().to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    images = torch.randn(batch_size, 3, config.image_size, config.image_size, device=device)
    called = torch.compile(model) if arguments.compile else model

    def step() -> int:
        for _ in range(arguments.steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
                loss = called(images, return_logits=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return arguments.steps * batch_size

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, repeats=3)
    parser.add_argument("--model", choices=SIZES, default="small", help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--image_sizes", type=int, nargs="*", default=[112, 320], help="Pixels (112 320).")
    parser.add_argument("--batch_sizes", type=int, nargs="*", default=[2, 4, 16], help="(2 4 16)")
    parser.add_argument("--mask_ratios", type=float, nargs="*", default=[0.5, 0.9], help="(0.5 0.9)")
    parser.add_argument("--mid_mask_ratios", type=float, nargs="*", default=[0.25, 0.5], help="(0.25 0.5)")
    parser.add_argument("--steps", type=int, default=1, help="In each round (%(default)s).")
    parser.add_argument("--bf16", action="store_true", help="Autocast.")
    parser.add_argument("--compile", action="store_true", help="torch.compile.")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    changes = settings(arguments)
    configs = {name: config_of(change, arguments) for name, (change, _) in changes.items()}
    steps = {name: step_of(configs[name], batch, arguments) for name, (_, batch) in changes.items()}
    rates = measure(steps, arguments.repeats)
    flops = {name: training_flops(config) / training_flops(configs[BASE]) for name, config in configs.items()}
    times = {name: [1 / ratio for ratio in values] for name, values in ratios(rates, BASE).items()}
    efficiency = {name: statistics.median(flops[name] / value for value in times[name]) for name in times}
    report(
        f"ViT-{arguments.model}, batch {arguments.batch_size}",
        rates,
        BASE,
        path=arguments.json,
        operations=flops,
        efficiency=efficiency,
    )
    print("\n| | operations an image | time an image | efficiency |\n|---|---|---|---|")
    for name in times:
        print(f"| {name} | {flops[name]:.2f} | {statistics.median(times[name]):.2f} | {efficiency[name]:.2f} |")


if __name__ == "__main__":
    main()
