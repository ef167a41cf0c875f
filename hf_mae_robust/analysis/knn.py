"""Nearest-neighbour classification on frozen features: what they are worth without training anything."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import PartialState
from torch import nn

from ..conversion.frozen import FrozenEncoder, load_encoder
from ..conversion.pixels import Pixels, processor_of
from ..data.features import features_by_row
from ..data.opening import open_splits
from ..data.preprocessing import EvaluationTransform
from ..data.source import SEED, DataLocation, ImageSource
from ..errors import UserError
from ..files import check_ending
from ..hub.models import local_model
from ..training.arguments import add_bands_argument, add_data_arguments, add_worker_argument
from ..training.image_form import as_model_wants
from ..training.intervals import accuracy_interval, compare_paired, interval_fields
from ..training.predictions import PREDICTIONS, Predictions


def knn_votes(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    features: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    batch_size: int = 256,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted k-nearest-neighbour voting on frozen features (Wu et al. 2018, section 3.4; the settings of DINO's
    evaluation): each of the k training images of the highest cosine similarity s votes for its class with
    exp(s / temperature).

    Args:
        train_features `(N, d)`, train_labels `(N,)`, features `(M, d)`: on one device. At most N neighbours vote.

    Returns:
        `(M, 5)` int64: the classes with the most votes, the first one first; `(M, 5)` float32: their shares of all
        votes. Of fewer than 5 classes: all. Classes without a vote, whose share is 0, are not predicted.
    """
    train = nn.functional.normalize(train_features.float())
    num_classes = int(train_labels.max()) + 1
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for part in features.float().split(batch_size):
        similarity, index = (nn.functional.normalize(part) @ train.T).topk(min(k, len(train)))
        votes = torch.zeros(len(part), num_classes, device=part.device)
        # Relative to the nearest one's: exp(1 / 0.01) is more than a float32 can hold.
        votes.scatter_add_(1, train_labels[index], ((similarity - similarity[:, :1]) / temperature).exp())
        most, classes = votes.topk(min(5, num_classes))
        found.append((classes, most / votes.sum(dim=1, keepdim=True)))
    classes, shares = (torch.cat(parts) for parts in zip(*found))
    return classes, shares


def hits_of_votes(classes: torch.Tensor, shares: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`(M, 2)` bool: whether the class of `labels` `(M,)` is the one with the most of `knn_votes`, and among the five
    with the most."""
    ranked = (classes == labels[:, None]) & (shares > 0)
    return torch.stack([ranked[:, 0], ranked.any(dim=1)], dim=1)


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
    """Accuracy of `knn_votes`, which says what is what; labels `(M,)`: the classes of `features`. Returns `accuracy`
    and, over the five classes with the most votes, `top5_accuracy`: fractions."""
    options: dict[str, Any] = {"k": k, "temperature": temperature, "batch_size": batch_size}
    hits = hits_of_votes(*knn_votes(train_features, train_labels, features, **options), labels)
    accuracy, top5 = (hits.sum(dim=0).double() / len(labels)).tolist()
    return {"accuracy": accuracy, "top5_accuracy": top5}


def add_knn_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m hf_mae_robust analyze knn`."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="Encoder or classifier, as --model_name_or_path of run_finetune.py."
    )
    parser.add_argument(
        "--other",
        metavar="CHECKPOINT",
        help="Compare with this one on the same images: interval of the difference, and McNemar's exact test.",
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
    running.add_argument(
        "--predictions",
        type=Path,
        help="CSV file to write row, class, predicted class and its share of the votes of each image to.",
    )


class _Vote(NamedTuple):
    """What came of a checkpoint. Attributes: hits `(M, 2)` as `hits_of_votes`; predictions of the M images."""

    checkpoint: str
    pooling: str
    neighbours: int
    hits: np.ndarray
    predictions: Predictions

    @property
    def labels(self) -> np.ndarray:
        return self.predictions.labels

    def fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"pooling": self.pooling, "neighbours": self.neighbours, "images": len(self.labels)}
        for name, hits in zip(("accuracy", "top5_accuracy"), self.hits.T):
            fields |= {name: float(hits.mean()), **interval_fields(name, hits)}
        return fields

    def sentence(self, args: argparse.Namespace) -> str:
        top1, top5 = self.hits.mean(axis=0)
        low, high = accuracy_interval(self.hits[:, 0])
        most_frequent = np.bincount(self.labels).max() / len(self.labels)  # what guessing would give
        return (
            f"{self.checkpoint}: kNN accuracy {top1:.4f}, top-5 {top5:.4f} on {len(self.labels):,} images of "
            f"{args.dataset_name} (k {args.k} of {self.neighbours:,}, temperature {args.temperature:g}, {self.pooling} "
            f"features); 95% interval of the accuracy: {low:.4f} to {high:.4f}; the most frequent class alone: "
            f"{most_frequent:.4f}"
        )


def _load(name: str, args: argparse.Namespace) -> tuple[str, FrozenEncoder, Pixels]:
    """The folder of a checkpoint, its encoder, and how it wants its images. --model_revision is of the first one."""
    revision = args.model_revision if name == args.checkpoint else None
    checkpoint, _ = local_model(name, revision, args.token)
    return (checkpoint, *load_encoder(checkpoint, args.pooling, args.num_attention_heads, args.token))


def _vote(
    name: str,
    loaded: tuple[str, FrozenEncoder, Pixels],
    sources: tuple[ImageSource, ImageSource],
    args: argparse.Namespace,
    state: PartialState,
) -> _Vote:
    """Classify the images by one checkpoint, by all processes."""
    checkpoint, encoder, pixels = loaded
    encoder.to(state.device)
    transform = EvaluationTransform(processor_of(checkpoint, pixels, encoder.image_size, args.crop_pct, args.token))
    parts: list[torch.Tensor] = []
    args_of_this = argparse.Namespace(**{**vars(args), "checkpoint": name})  # for what it says
    for source, limit in zip(sources, (args.max_train_samples, args.max_eval_samples)):
        images = as_model_wants(source.sample(limit, args.seed), pixels, args_of_this)
        options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "device": state.device}
        parts += features_by_row(encoder, images, transform, pixels.num_channels, **options)
    encoder.cpu()
    known, known_labels, _, classified, labels, rows = (part.to(state.device) for part in parts)
    classes, shares = knn_votes(known, known_labels, classified, k=args.k, temperature=args.temperature)
    hits = hits_of_votes(classes, shares, labels).cpu().numpy()
    found = (part.cpu().numpy() for part in (rows, labels, classes[:, 0], shares[:, 0]))
    return _Vote(name, encoder.pooling, len(known), hits, Predictions.sorted_by_row(*found))


def _report(votes: list[_Vote], class_names: Sequence[str], args: argparse.Namespace) -> None:
    """Print the results, and write them to --output and --predictions."""
    result = {"checkpoint": args.checkpoint, "dataset": args.dataset_name, "k": args.k}
    result |= {"temperature": args.temperature, **votes[0].fields()}
    lines = [vote.sentence(args) for vote in votes]
    if len(votes) > 1:
        comparison = compare_paired(*(vote.hits[:, 0] for vote in votes), seed=args.seed)
        result |= {"other": {"checkpoint": args.other, **votes[1].fields()}, "comparison": comparison._asdict()}
        lines.append(
            f"{args.checkpoint} minus {args.other}: {comparison.difference:+.4f}, 95% interval {comparison.low:+.4f} "
            f"to {comparison.high:+.4f} (paired); right alone: {comparison.only_first:,} and "
            f"{comparison.only_second:,} images, exact McNemar test p = {comparison.p_value:.3g}"
        )
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result) + "\n")
    if args.predictions is not None:
        args.predictions.parent.mkdir(parents=True, exist_ok=True)
        votes[0].predictions.write(args.predictions, class_names)
    print("\n".join(lines))


def run_knn(args: argparse.Namespace) -> None:
    """Classify images by the nearest neighbours of their features, and print the accuracy."""
    if args.output is not None and args.output.is_dir():
        raise UserError(f"--output {args.output} is a folder; name a file, such as {args.output / 'knn.json'}.")
    if args.predictions is not None and args.predictions.is_dir():
        raise UserError(
            f"--predictions {args.predictions} is a folder; name a file, such as {args.predictions / PREDICTIONS}."
        )
    for name, ending in (("output", ".json"), ("predictions", ".csv")):
        if (path := getattr(args, name)) is not None:
            check_ending(path, f"--{name}", ending)
    if args.output is not None and args.output == args.predictions:
        raise UserError(f"--output and --predictions both name {args.output}. Give two files.")
    if args.k < 1 or args.temperature <= 0:
        raise UserError(f"--k {args.k} --temperature {args.temperature}: must be positive.")
    state = PartialState(cpu=not torch.accelerator.is_available())
    names = [args.checkpoint] if args.other is None else [args.checkpoint, args.other]
    encoders = [_load(name, args) for name in names]
    eval_split = None if args.eval_split_name == "none" else args.eval_split_name
    location = DataLocation.of(args, args.token)
    sources = open_splits(location, args.train_split_name, eval_split, args.train_val_split, args.seed)
    if sources[1] is None:
        raise UserError(
            f"{args.dataset_name} has no split to classify beside '{args.train_split_name}'; hold images out with "
            "--train_val_split 0.1, or name a split with --eval_split_name."
        )
    found = [_vote(*each, cast(tuple[ImageSource, ImageSource], sources), args, state) for each in zip(names, encoders)]
    if len(found) > 1 and not np.array_equal(found[0].labels, found[1].labels):
        raise UserError(
            f"--other {args.other}: not the same images can be decoded as for {args.checkpoint}, which reads them "
            "differently, so the two cannot be compared image by image."
        )
    if state.is_main_process:
        _report(found, sources[1].class_names or (), args)
    state.wait_for_everyone()
    state.destroy_process_group()
