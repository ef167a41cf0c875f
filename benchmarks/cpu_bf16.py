"""Is pre-training on a CPU faster with --bf16, and what does our attention do for it?

    python benchmarks/cpu_bf16.py                        # the small model of `reproduce --scale medium`
    python benchmarks/cpu_bf16.py --model base --batch_size 4 --steps 1

Forward, backward and optimiser on random images: float32 and bfloat16 with the attention that run_pretrain.py takes on
a CPU (`drop_edge_cpu`), and both with PyTorch's (`--attn_implementation sdpa`), in turns. It pays where the processor
multiplies bfloat16 matrices (AVX512_BF16, AMX).
"""

import argparse

import torch
from paired import add_common_arguments, measure, report
from scaling import step_of
from training_step import SIZES

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.pretraining.cpu_attention import NAME
from hf_mae_robust.studies.definitions import SMALL_32
from hf_mae_robust.training.overrides import parse_config_overrides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, repeats=7)
    parser.add_argument("--model", choices=["study", *SIZES], default="study", help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--dropout", type=float, default=0.0, help="Of the decoder's attention (%(default)s).")
    parser.add_argument("--steps", type=int, default=3, help="In each round (%(default)s).")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    sizes = parse_config_overrides(SMALL_32) if arguments.model == "study" else SIZES[arguments.model]
    config = ViTMAERobustConfig(**sizes, decoder_attention_probs_dropout_prob=arguments.dropout)

    def steps(bf16: bool, attention: str):
        numbers = argparse.Namespace(bf16=bf16, compile=False, steps=arguments.steps)
        return step_of(config, arguments.batch_size, numbers, attention)

    ways = {
        f"{'bfloat16' if bf16 else 'float32'}, {attention}": steps(bf16, attention)
        for attention in (NAME, "sdpa")
        for bf16 in (False, True)
    }
    question = f"pre-training on a CPU, {arguments.model}, batch {arguments.batch_size}, dropout {arguments.dropout:g}"
    report(question, measure(ways, arguments.repeats), f"float32, {NAME}", path=arguments.json)


if __name__ == "__main__":
    main()
