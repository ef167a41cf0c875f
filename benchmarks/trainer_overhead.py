"""How much longer is a step of the Trainer than the same step in a bare loop?

    python benchmarks/trainer_overhead.py

The same model (as many blocks as ViT-B, narrow), the same batch in memory, the same fused AdamW with MAE's two groups,
so that what differs is what the Trainer does around them: callbacks, logging, schedule, guard, norm of the gradients,
signals.

- bare loop: normalise the uint8 batch, forward, backward, optimiser, schedule, zero_grad.
- ours: MAETrainer as run_pretrain.py builds it. stock Trainer: transformers', with the same model and optimiser.

Seconds from the end of one step to the end of the next; the median of a round, without its first steps.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import transformers
from paired import add_common_arguments, current_device, report, spread, synchronize
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, get_cosine_schedule_with_warmup
from transformers.trainer_callback import PrinterCallback

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.data.preprocessing import Normalization, evaluation_processor
from hf_mae_robust.data.source import ImageSource
from hf_mae_robust.pretraining.arguments import MAETrainingArguments
from hf_mae_robust.pretraining.cpu_attention import default_attention
from hf_mae_robust.pretraining.trainer import MAETrainer
from hf_mae_robust.training.optimization import decayed_parameter_names

# Steps at the beginning of each round that do not count.
WARM_UP = 3


class StepTimes(TrainerCallback):
    """Seconds between the ends of steps."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, *args, **kwargs):
        synchronize()
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        steps = [end - begin for begin, end in zip(self.ends, self.ends[1:])]
        return statistics.median(steps[WARM_UP:])


class FixedBatchTrainer(MAETrainer):
    batches = None

    def get_train_dataloader(self):
        return self.batches


def ways(arguments: argparse.Namespace, folder: str) -> dict[str, Callable[[], float]]:
    """Name -> a function that trains for a round and returns the median seconds of a step."""
    config = ViTMAERobustConfig(
        image_size=arguments.image_size,
        patch_size=arguments.image_size // 14,
        hidden_size=arguments.width,
        num_attention_heads=arguments.width // 32,
        intermediate_size=4 * arguments.width,
        decoder_hidden_size=arguments.width,
        decoder_num_attention_heads=arguments.width // 32,
        decoder_intermediate_size=4 * arguments.width,
        decoder_attention_probs_dropout_prob=0.0,
    )
    size, batch_size = arguments.image_size, arguments.batch_size
    pixels = torch.randint(256, (batch_size, 3, size, size), dtype=torch.uint8)
    batch = {"pixel_values": pixels, "noise": torch.rand(batch_size, config.num_patches)}
    processor, num_steps = evaluation_processor(size), WARM_UP + 1 + arguments.steps
    common = {
        "output_dir": folder,
        "max_steps": num_steps,
        "per_device_train_batch_size": batch_size,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.accelerator.is_available(),
        "learning_rate": 1e-4,
        "lr_scheduler_type": "cosine",
        "logging_steps": 20,
    }

    def new_model() -> ViTMAERobustForPreTraining:
        torch.manual_seed(0)
        attention = default_attention(current_device(), torch_compile=False)
        return ViTMAERobustForPreTraining._from_config(config, attn_implementation=attention).to(current_device())

    def loader(batch: dict) -> DataLoader:
        # A new dict each time: the Trainer takes keys out of it.
        return DataLoader([batch] * num_steps, batch_size=None, collate_fn=dict)

    def of_trainer(trainer: Trainer) -> float:
        times = StepTimes()
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(times)
        trainer.train()
        return times.seconds()

    def ours() -> float:
        source = ImageSource(pixels, (batch_size * num_steps,), True, "one batch", "")
        args = MAETrainingArguments(**common)
        trainer = FixedBatchTrainer(model=new_model(), args=args, train_source=source, processing_class=processor)
        trainer.batches = loader({**batch, "row": torch.arange(batch_size)})
        return of_trainer(trainer)

    def stock() -> float:
        normalized = Normalization(processor, torch.device("cpu"))(pixels)

        class Stock(Trainer):
            def get_train_dataloader(self):
                return loader({"pixel_values": normalized, "noise": batch["noise"]})

        settings = {**common, "adam_beta2": 0.95, "weight_decay": 0.05, "max_grad_norm": 0.0}
        args = TrainingArguments(**settings, remove_unused_columns=False, optim="adamw_torch_fused")
        return of_trainer(Stock(model=new_model(), args=args, train_dataset=[0] * (batch_size * num_steps)))

    def bare() -> float:
        model, device = new_model().train(), current_device()
        decayed = set(decayed_parameter_names(model))
        trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        groups = [
            {"params": [value for name, value in trained if name in decayed], "weight_decay": 0.05},
            {"params": [value for name, value in trained if name not in decayed], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
        schedule = get_cosine_schedule_with_warmup(optimizer, 0, num_steps)
        normalize, times = Normalization(processor, device), StepTimes()
        for step in loader(batch):
            images = normalize(step["pixel_values"].to(device))
            model(images, noise=step["noise"].to(device), return_logits=False).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            times.on_step_end()
        return times.seconds()

    return {"bare loop": bare, "ours": ours, "stock Trainer": stock}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, repeats=5)
    parser.add_argument("--width", type=int, default=96, help="Of encoder and decoder (%(default)s).")
    parser.add_argument("--image_size", type=int, default=112, help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="In each round (%(default)s).")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        made = ways(arguments, folder)
        seconds = {name: [] for name in made}
        for repeat in range(-1, arguments.repeats):
            order = list(made.items())
            for name, work in order if repeat % 2 else reversed(order):
                taken = work()
                if repeat >= 0:
                    seconds[name].append(taken)
    rates = {name: [1 / taken for taken in values] for name, values in seconds.items()}
    over = {
        name: spread([(taken - bare) * 1000 for taken, bare in zip(values, seconds["bare loop"])])
        for name, values in seconds.items()
        if name != "bare loop"
    }
    report("step", rates, "bare loop", unit="steps/s", path=arguments.json, milliseconds_over_bare_loop=over)
    for name, value in over.items():
        print(
            f"{name}: {value['median']:+.2f} ms a step over the bare loop ({value['smallest']:+.2f} to "
            f"{value['largest']:+.2f}), {value['median'] / 300:.1%} of a step of 0.3 s"
        )


if __name__ == "__main__":
    main()
