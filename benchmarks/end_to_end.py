"""How many images a second does run_pretrain train on, against the structure of transformers' run_mae.py?

    python benchmarks/end_to_end.py --dataset_name path/to/imagenet-sample

Both from the same Parquet files, with the same model, batch, crops (0.2 to 1.0 of the area), optimiser and number of
worker processes; each run is a process of its own, in turns. Seconds from the end of one step to the end of the next;
the median of a run without its first steps. All ingredients are off unless --dropout says otherwise (stock drops as
much then).

- ours: run_pretrain.py's trainer.
- run_mae.py's structure: `load_dataset`, torchvision's RandomResizedCrop, flip, ToTensor and Normalize in
  `set_transform`, stock ViTMAEForPreTraining, stock Trainer.

With --large_photos 40 the images are 40 of the data set's photos, enlarged to 12 megapixels as in large_photos.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import torch
from large_photos import enlarged
from paired import add_common_arguments, report
from torchvision import transforms
from tqdm.auto import tqdm
from trainer_overhead import StepTimes
from training_step import SIZES, set_decoder_dropout
from transformers import Trainer, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining, set_seed

from hf_mae_robust.data.preprocessing import evaluation_processor
from hf_mae_robust.pretrain import make_parser, prepare


def common_words(arguments: argparse.Namespace, folder: str) -> dict:
    return {
        "output_dir": folder,
        "max_steps": arguments.steps,
        "per_device_train_batch_size": arguments.batch_size,
        "dataloader_num_workers": arguments.num_workers,
        "learning_rate": 1e-4,
        "weight_decay": 0.05,
        "adam_beta2": 0.95,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "cosine",
        "logging_steps": 20,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": arguments.bf16,
        "torch_compile": arguments.compile,
    }


def sizes_of(arguments: argparse.Namespace) -> dict:
    return {**SIZES[arguments.model], "image_size": arguments.image_size, "patch_size": arguments.patch_size}


def ours(arguments: argparse.Namespace, folder: str) -> Trainer:
    settings = {**common_words(arguments, folder), "dataset_name": arguments.dataset_name, "eval_split_name": "none"}
    settings |= {
        "image_column_name": arguments.image_column_name,
        "warmup_epochs": 0,
        "train_split_name": arguments.split,
    }
    settings |= {"decoder_attention_probs_dropout_prob": arguments.dropout, "dataset_streaming": arguments.streaming}
    settings |= {"target_normalization": "global_rgb", "norm_pix_loss": True, "crop_scale": [0.2, 1.0]}
    settings["config_overrides"] = ",".join(f"{name}={value}" for name, value in sizes_of(arguments).items())
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
    return prepare(make_parser().parse(words))[0]


def stock(arguments: argparse.Namespace, folder: str) -> Trainer:
    processor = evaluation_processor(arguments.image_size)
    table = datasets.load_dataset(arguments.dataset_name, split=arguments.split)
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                arguments.image_size, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(processor.image_mean, processor.image_std),
        ]
    )
    column = arguments.image_column_name
    table.set_transform(lambda rows: {"pixel_values": [augment(image.convert("RGB")) for image in rows[column]]})
    set_seed(0)
    model = set_decoder_dropout(
        ViTMAEForPreTraining(ViTMAEConfig(**sizes_of(arguments), norm_pix_loss=True)), arguments.dropout
    )
    args = TrainingArguments(
        **common_words(arguments, folder),
        remove_unused_columns=False,
        dataloader_persistent_workers=arguments.num_workers > 0,
        use_cpu=not torch.accelerator.is_available(),
    )
    return Trainer(
        model=model,
        args=args,
        train_dataset=table,
        data_collator=lambda rows: {"pixel_values": torch.stack([row["pixel_values"] for row in rows])},
    )


WAYS = {"ours": ours, "run_mae.py's structure": stock}


def train_alone(arguments: argparse.Namespace) -> None:
    """In a process of its own: prints the seconds of a step."""
    torch.set_num_threads(arguments.threads)
    times = StepTimes()
    with tempfile.TemporaryDirectory() as folder:
        trainer = WAYS[arguments.child](arguments, folder)
        trainer.add_callback(times)
        trainer.train()
    print(json.dumps({"seconds": times.seconds()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, repeats=3)
    parser.add_argument("--dataset_name", required=True, help="Folder of Parquet files, or a Hub id.")
    parser.add_argument("--split", default="train", help="(%(default)s)")
    parser.add_argument("--image_column_name", default="image", help="(%(default)s)")
    parser.add_argument("--large_photos", type=int, metavar="N", help="Train on N photos, enlarged to 12 megapixels.")
    parser.add_argument("--streaming", action="store_true", help="Ours with --dataset_streaming.")
    parser.add_argument("--model", choices=SIZES, default="small", help="(%(default)s)")
    parser.add_argument("--image_size", type=int, default=224, help="(%(default)s)")
    parser.add_argument("--patch_size", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--num_workers", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="In each run, 4 of which do not count (%(default)s).")
    parser.add_argument("--dropout", type=float, default=0.0, help="Of the decoder's attention (%(default)s).")
    parser.add_argument("--bf16", action="store_true", help="Autocast.")
    parser.add_argument("--compile", action="store_true", help="torch.compile, both.")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        train_alone(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        words = sys.argv[1:]
        if arguments.large_photos:
            enlarge(arguments, Path(folder))
            words += ["--dataset_name", folder, "--split", "train", "--image_column_name", "image"]
        rates = measure_in_turns(arguments, words)
    photos = f", {arguments.large_photos} photos of 12 MP" if arguments.large_photos else ""
    report(f"ViT-{arguments.model}, end to end{photos}", rates, "run_mae.py's structure", path=arguments.json)


def enlarge(arguments: argparse.Namespace, folder: Path) -> None:
    """Write a Parquet file of large photos, in row groups of 10."""
    column = arguments.image_column_name
    table = datasets.load_dataset(arguments.dataset_name, split=arguments.split, streaming=True)
    rows = table.select_columns([column]).take(arguments.large_photos)
    images = [{"bytes": enlarged(row[column].convert("RGB")), "path": None} for row in rows]
    features = datasets.Features({"image": datasets.Image()})
    made = datasets.Dataset.from_dict({"image": images}, features=features)
    made.to_parquet(str(folder / "train-00000-of-00001.parquet"), batch_size=10)


def measure_in_turns(arguments: argparse.Namespace, words: list[str]) -> dict[str, list[float]]:
    """Name -> images a second, one figure a run."""
    rates = {name: [] for name in WAYS}
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    with tqdm(total=len(WAYS) * arguments.repeats, unit="run") as bar:
        for repeat in range(arguments.repeats):
            for name in WAYS if repeat % 2 else reversed(WAYS):
                command = [sys.executable, __file__, *words, "--child", name]
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{name} failed:\n{(done.stdout + done.stderr)[-3000:]}")
                seconds = json.loads(done.stdout.strip().splitlines()[-1])["seconds"]
                rates[name].append(arguments.batch_size / seconds)
                bar.update()
    return rates


if __name__ == "__main__":
    main()
