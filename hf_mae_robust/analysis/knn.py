"""Nearest-neighbour classification on frozen features: what they are worth without training anything."""

import argparse
import json
from pathlib import Path
from typing import cast

import torch
from accelerate import PartialState
from torch import nn

from ..conversion.frozen import load_encoder
from ..conversion.pixels import read_processor
from ..data.features import extract_features
from ..data.opening import open_splits
from ..data.preprocessing import EvaluationTransform
from ..data.source import SEED, DataLocation, ImageSource
from ..errors import UserError
from ..hub.models import local_model
from ..training.arguments import add_data_arguments, add_worker_argument
from .samples import add_bands_argument, as_model_wants


def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    batch_size: int = 256,
) -> dict[str, float]:
    """Accuracy of weighted k-nearest-neighbour voting on frozen features (Wu et al. 2018, section 3.4; the settings of
    DINO's evaluation): each of the k training images of the highest cosine similarity s votes for its class with
    exp(s / temperature). Classes without a vote are not predicted.

    Args:
        train_features `(N, d)`, train_labels `(N,)`, features `(M, d)`, labels `(M,)`: on one device. At most N
            neighbours vote.

    Returns:
        `accuracy` and, over the five classes with the most votes, `top5_accuracy`: fractions.
    """
    train = nn.functional.normalize(train_features.float())
    num_classes = int(torch.maximum(train_labels.max(), labels.max())) + 1
    hits = torch.zeros(2, dtype=torch.float64, device=labels.device)
    for part, truth in zip(features.float().split(batch_size), labels.split(batch_size)):
        similarity, index = (nn.functional.normalize(part) @ train.T).topk(min(k, len(train)))
        votes = torch.zeros(len(part), num_classes, device=part.device)
        # Relative to the nearest one's: exp(1 / 0.01) is more than a float32 can hold.
        votes.scatter_add_(1, train_labels[index], ((similarity - similarity[:, :1]) / temperature).exp())
        most, classes = votes.topk(min(5, num_classes))
        ranked = (classes == truth[:, None]) & (most > 0)
        hits += torch.stack([ranked[:, 0].sum(), ranked.any(dim=1).sum()])
    accuracy, top5 = (hits / len(labels)).tolist()
    return {"accuracy": accuracy, "top5_accuracy": top5}


def add_knn_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m hf_mae_robust analyze knn`."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="Encoder or classifier, as --model_name_or_path of run_finetune.py."
    )
    data = add_data_arguments(parser)
    data.add_argument("--train_split_name", default="train", help="Split of the neighbours (%(default)s).")
    data.add_argument("--eval_split_name", default="auto", help="Split that is classified (%(default)s).")
    data.add_argument(
        "--train_val_split",
        type=float,
        help="Share of the training images to hold out and classify where the data set has no split for it: the images "
        "that run_finetune.py holds out with the same share and --seed.",
    )
    data.add_argument(
        "--seed", type=int, default=SEED, help="Seed of the images held out and of random samples (%(default)s)."
    )
    data.add_argument("--label_column_name", default="auto", help="Column with the labels (%(default)s).")
    data.add_argument("--max_train_samples", type=int, help="At most N images, drawn at random.")
    data.add_argument("--max_eval_samples", type=int, help="At most N images, drawn at random.")
    data.add_argument(
        "--crop_pct",
        type=float,
        help="See run_finetune.py; default: as the checkpoint's image processor has it.",
    )
    add_bands_argument(data)
    vote = parser.add_argument_group("vote")
    vote.add_argument("--k", type=int, default=20, help="Number of neighbours that vote (%(default)s).")
    vote.add_argument(
        "--temperature", type=float, default=0.07, help="Votes weigh exp(similarity / temperature) (%(default)s)."
    )
    vote.add_argument(
        "--pooling",
        choices=["cls", "mean"],
        help="Feature: CLS token, or mean of the patches'; default: the classifier's, or cls.",
    )
    vote.add_argument("--num_attention_heads", type=int, help="For a file in the official layout.")
    vote.add_argument("--model_revision", help="Branch, tag or commit of a model on the Hub.")
    running = parser.add_argument_group("running")
    running.add_argument("--batch_size", type=int, default=64, help="Images at a time (%(default)s).")
    add_worker_argument(running)
    running.add_argument("--output", type=Path, help="JSON file to write the result to.")


def run_knn(args: argparse.Namespace) -> None:
    """Classify images by the nearest neighbours of their features, and print the accuracy."""
    if args.output is not None and args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; name a file, such as {args.output / 'knn.json'}.")
    if args.k < 1 or args.temperature <= 0:
        raise UserError(f"--k {args.k} --temperature {args.temperature}: must be positive.")
    state = PartialState(cpu=not torch.accelerator.is_available())
    checkpoint, _ = local_model(args.checkpoint, args.model_revision, args.token)
    encoder, pixels = load_encoder(checkpoint, args.pooling, args.num_attention_heads, args.token)
    encoder.to(state.device)
    eval_split = None if args.eval_split_name == "none" else args.eval_split_name
    location = DataLocation.of(args, args.token)
    sources = open_splits(location, args.train_split_name, eval_split, args.train_val_split, args.seed)
    if sources[1] is None:
        raise UserError(
            f"{args.dataset_name} has no split to classify beside '{args.train_split_name}'; hold images out with "
            "--train_val_split 0.1, or name a split with --eval_split_name."
        )
    processor = read_processor(checkpoint, args.token) if args.crop_pct is None else None
    if processor is None:
        processor = pixels.processor(encoder.image_size, args.crop_pct or 0.875)
    transform = EvaluationTransform(processor)
    parts: list[torch.Tensor] = []
    limits = (args.max_train_samples, args.max_eval_samples)
    for source, limit in zip(cast(tuple[ImageSource, ImageSource], sources), limits):
        images = as_model_wants(source.sample(limit, args.seed), pixels, args)
        options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "device": state.device}
        parts += extract_features(encoder, images, transform, pixels.num_channels, **options)
    accuracies = knn_accuracy(*(part.to(state.device) for part in parts), k=args.k, temperature=args.temperature)
    if state.is_main_process:
        result = {"checkpoint": args.checkpoint, "dataset": args.dataset_name, "k": args.k}
        result |= {"temperature": args.temperature, "pooling": encoder.pooling, "neighbours": len(parts[0])}
        result |= {"images": len(parts[2]), **accuracies}
        most_frequent = float(parts[3].bincount().max()) / len(parts[3])  # what guessing would give
        if args.output is not None:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(result) + "\n")
        print(
            f"{args.checkpoint}: kNN accuracy {accuracies['accuracy']:.4f}, top-5 {accuracies['top5_accuracy']:.4f} on "
            f"{len(parts[2]):,} images of {args.dataset_name} (k {args.k} of {len(parts[0]):,}, temperature "
            f"{args.temperature:g}, {encoder.pooling} features); the most frequent class alone: {most_frequent:.4f}"
        )
    state.wait_for_everyone()
    state.destroy_process_group()
