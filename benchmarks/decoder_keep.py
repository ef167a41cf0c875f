"""How many more images a second does training make where the decoder keeps a part of the masked patches?

    python benchmarks/decoder_keep.py
    python benchmarks/decoder_keep.py --study --batch_size 64 --dropout 0      # the small model of `reproduce`
    python benchmarks/decoder_keep.py --batch_size 128 --bf16 --compile      # on a GPU

Forward, backward and optimiser on random images, with `decoder_keep_ratio` 1.0 and others in turns, otherwise the
same. Beside the clock, on a CPU: seconds of the process's CPU, which depend less on what else the machine does. The
operations are those of hf_mae_robust/pretraining/cost.py: the ratio that they alone would give.
"""

import argparse
import time
from collections.abc import Callable

import torch
from paired import add_common_arguments, current_device, measure, ratios, report, spread
from scaling import step_of
from training_step import SIZES

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.pretraining.cost import training_flops
from hf_mae_robust.studies.definitions import SMALL_32
from hf_mae_robust.training.overrides import parse_config_overrides


def counted(work: Callable[[], int], seconds: list[float]) -> Callable[[], int]:
    def run() -> int:
        begun = time.process_time()
        units = work()
        seconds.append(time.process_time() - begun)
        return units

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, repeats=3)
    parser.add_argument("--model", choices=SIZES, default="base", help="(%(default)s)")
    parser.add_argument("--study", action="store_true", help="The small model of the study, at 32 pixels.")
    parser.add_argument("--batch_size", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 0.25], help="(0.5 0.25)")
    parser.add_argument("--dropout", type=float, default=0.3, help="Of the decoder's attention (%(default)s).")
    parser.add_argument("--mid_mask_ratio", type=float, default=0.0, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=1, help="In each round (%(default)s).")
    parser.add_argument("--bf16", action="store_true", help="Autocast.")
    parser.add_argument("--compile", action="store_true", help="torch.compile.")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sizes = parse_config_overrides(SMALL_32) if arguments.study else SIZES[arguments.model]
    sizes |= {"decoder_attention_probs_dropout_prob": arguments.dropout}
    if arguments.mid_mask_ratio:
        blocks = ViTMAERobustConfig(**sizes).num_hidden_layers
        sizes |= {"mid_mask_ratio": arguments.mid_mask_ratio, "mid_mask_layer_idx": round(blocks * 2 / 3)}
    configs = {f"{ratio:g}": ViTMAERobustConfig(**sizes, decoder_keep_ratio=ratio) for ratio in (1, *arguments.ratios)}
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    steps = {
        name: counted(step_of(config, arguments.batch_size, arguments), seconds[name])
        for name, config in configs.items()
    }
    rates = measure(steps, arguments.repeats)
    operations = {name: training_flops(configs["1"]) / training_flops(config) for name, config in configs.items()}
    inverse = {name: [1 / value for value in values[1:]] for name, values in seconds.items()}
    by_cpu = {name: spread(values) for name, values in ratios(inverse, "1").items()}
    model = "the study's model" if arguments.study else f"ViT-{arguments.model}"
    report(
        f"decoder_keep_ratio, {model}, batch {arguments.batch_size}, dropout {arguments.dropout:g}",
        rates,
        "1",
        path=arguments.json,
        by_cpu=by_cpu,
        operations=operations,
    )
    print("\n| | by the clock | by CPU seconds | by operations |\n|---|---|---|---|")
    for name, values in ratios(rates, "1").items():
        cpu = by_cpu[name]
        text = f"{cpu['median']:.2f} ({cpu['smallest']:.2f} to {cpu['largest']:.2f})"
        text = text if current_device().type == "cpu" else ""
        print(f"| {name} | {spread(values)['median']:.2f} | {text} | {operations[name]:.2f} |")


if __name__ == "__main__":
    main()
