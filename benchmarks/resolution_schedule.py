"""How many more images a second does a run with --resolution_schedule train on than one without?

    python benchmarks/resolution_schedule.py --resolution_schedule 16:0.5,24:0.8,32:1.0 -- \\
        --config small_32px --dataset_name path/to/cifar10 --max_steps 60
    python benchmarks/resolution_schedule.py --resolution_schedule 128:0.5,192:0.8,224:1.0 -- \\
        --dataset_name path/to/imagenet-sample --config_overrides image_size=224 \\
        --max_steps 10 --per_device_train_batch_size 8

The same run of `run_pretrain.py` twice in one process, in turns: with the schedule and with images of the model's size
in all steps; reading, decoding, training and logging included, preparation and checkpoints not. What the operations
alone would give (that of --dry_run) stands beside it. Behind `--` are flags of run_pretrain.py; give --max_steps.
"""

import argparse
import tempfile
from collections.abc import Callable

import torch
from paired import add_common_arguments, measure, report, spread

from hf_mae_robust.pretrain import make_parser, prepare
from hf_mae_robust.pretraining.cost import training_flops
from hf_mae_robust.pretraining.resolution import ResolutionSchedule
from hf_mae_robust.pretraining.trainer import MAETrainer


def trainer_of(words: list[str], folder: str) -> MAETrainer:
    settings = ["--report_to", "none", "--save_strategy", "no", "--eval_strategy", "no", "--disable_tqdm", "true"]
    return prepare(make_parser().parse([*words, *settings, "--output_dir", folder]))[0]


def work(trainer: MAETrainer) -> Callable[[], int]:
    def train() -> int:
        trainer.train()
        return trainer.state.global_step * trainer.get_total_train_batch_size(trainer.args)

    return train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, repeats=5)
    parser.add_argument("--resolution_schedule", required=True, metavar="SIZE:SHARE,...")
    parser.add_argument("flags", nargs="*", help="Of run_pretrain.py.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    schedule = ResolutionSchedule.parse(args.resolution_schedule)
    with tempfile.TemporaryDirectory() as folder:
        plain = trainer_of(args.flags, f"{folder}/plain")
        staged = trainer_of([*args.flags, "--resolution_schedule", args.resolution_schedule], f"{folder}/staged")
        name = f"{schedule.sizes[-1]} px throughout"
        rates = measure({name: work(plain), str(schedule): work(staged)}, args.repeats)
        config = plain.model.config
        operations = [training_flops(of_stage) / training_flops(config) for of_stage in schedule.configs(config)]
        share = schedule.share_of(operations)
        report("training", rates, name, path=args.json, operations=share)
        ratio = spread([a / b for a, b in zip(rates[str(schedule)], rates[name], strict=True)])["median"]
        print(f"{ratio:.2f} times as fast; by the operations ({share:.0%}) it would be {1 / share:.2f} times")


if __name__ == "__main__":
    main()
