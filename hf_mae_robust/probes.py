"""What frozen features are worth: linear probes and nearest neighbours."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.optim import Lars
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .bad_images import SkippedImages
from .classification_trainer import ClassificationTrainer
from .data import EpochDataLoader, sequential_loader
from .layer_decay import lars_groups
from .plan import EpochBatchSampler
from .resume import CheckpointError
from .sources import ImageSource
from .transforms import EvaluationTransform, Normalization

PROBE_FILE = "linear_probe.safetensors"


def extract_features(
    encode: Callable[[torch.Tensor], torch.Tensor],
    source: ImageSource,
    transform: EvaluationTransform,
    num_channels: int,
    *,
    batch_size: int = 64,
    num_workers: int = 4,
    max_bad_images: float = 0.01,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and classes of all images of a source, in order, in every process, with the evaluation's preprocessing.

    Args:
        encode: `(B, C, H, W)`, normalised, on `device` -> `(B, d)`.

    Returns:
        `(N, d)` float32 and `(N,)` int64, on the CPU. Images that cannot be decoded are left out; more of them than a
        share of `max_bad_images` raise DataError.
    """
    state, normalization = PartialState(), Normalization(transform.processor, torch.device(device))
    loader = sequential_loader(
        source,
        transform,
        num_channels,
        batch_size=batch_size,
        rank=state.process_index,
        world_size=state.num_processes,
        num_workers=num_workers,
    )
    rows, features, labels, found = [], [], [], []
    bar = tqdm(loader, desc=f"Features of {source.description}", unit="batch", disable=not state.is_main_process)
    with torch.no_grad():
        for batch in bar:
            found += batch.get("skipped", ())
            valid = batch["row"] >= 0
            features.append(encode(normalization(batch["pixel_values"].to(device))).float().cpu()[valid])
            rows.append(batch["row"][valid])
            labels.append(batch["labels"][valid])
    mine = [(torch.cat(rows), torch.cat(features), torch.cat(labels), found)]
    parts = gather_object(mine) if state.num_processes > 1 else mine
    skipped = SkippedImages(None, max_bad_images)
    skipped.add(record for part in parts for record in part[3])
    skipped.check(source.description, source.num_rows, sum(len(part[0]) for part in parts) + len(skipped))
    rows, features, labels = (torch.cat([part[i] for part in parts]) for i in range(3))
    order = rows.argsort()
    return features[order], labels[order]


class LinearProbe(nn.Module):
    """A stock classifier whose encoder is frozen, with BatchNorm without affine parameters before the linear layer
    (official code: main_linprobe.py; eps 1e-6).

    `forward` takes images `(B, C, H, W)` or their `features` `(B, d)` and gives logits.
    """

    def __init__(self, classifier: PreTrainedModel):
        super().__init__()
        linear, classifier.classifier = classifier.classifier, nn.Identity()
        self.encoder = classifier.requires_grad_(False)
        self.head = nn.Sequential(nn.BatchNorm1d(linear.in_features, affine=False, eps=1e-6), linear)
        self.train()

    @property
    def config(self):
        return self.encoder.config

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.encoder(pixel_values).logits

    def forward(self, pixel_values: torch.Tensor | None = None, features: torch.Tensor | None = None):
        features = self.encode(pixel_values) if features is None else features
        return ImageClassifierOutput(logits=self.head(features))

    @torch.no_grad()
    def folded(self) -> PreTrainedModel:
        """The stock classifier that computes what this does in evaluation mode: BatchNorm is a linear map then."""
        norm, linear = self.head
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        weight = linear.weight.double() * scale
        folded = nn.Linear(linear.in_features, linear.out_features)
        folded.weight.copy_(weight)
        folded.bias.copy_(linear.bias.double() - weight @ norm.running_mean.double())
        model = copy.deepcopy(self.encoder).cpu()
        model.classifier = folded
        return model.eval()


class _Features(torch.utils.data.Dataset):
    """Keys `(epoch, row)` -> a whole batch at once."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor):
        self.features, self.labels = features, labels

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        rows = torch.tensor([row for _, row in keys])
        return {"features": self.features[rows], "labels": self.labels[rows], "row": rows}


def _as_it_is(batch):
    return batch


class ProbeTrainer(ClassificationTrainer):
    """Trains a `LinearProbe` with LARS. Every folder it writes holds the stock classifier with the BatchNorm folded in;
    checkpoints also hold the head by itself, to go on from.

    `cache_features` makes it train on features that are computed once, which is exact where images are not augmented.
    """

    def __init__(self, *, model: LinearProbe, **kwargs):
        super().__init__(model=model, **kwargs)
        self.cached: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def cache_features(self) -> None:
        probe: LinearProbe = self.accelerator.unwrap_model(self.model)
        for split, source in (("train", self.train_dataset), ("eval", self.eval_dataset)):
            if source is not None:
                self.cached[split] = extract_features(
                    probe.encode,
                    source,
                    self.eval_transform,
                    self.num_channels,
                    batch_size=self.args.eval_batch_size,
                    num_workers=self.args.dataloader_num_workers,
                    max_bad_images=self.skipped_images.max_fraction,
                    device=self.args.device,
                )

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            head = self.accelerator.unwrap_model(self.model).head
            self.optimizer = Lars(
                lars_groups(head), lr=self.args.learning_rate, momentum=0.9, weight_decay=self.args.weight_decay
            )
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        if "train" not in self.cached:
            return super().get_train_dataloader()
        features, labels = self.cached["train"]
        sampler = EpochBatchSampler(
            (len(features),),
            rank=self.args.process_index,
            world_size=self.args.world_size,
            batch_size=self._train_batch_size,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
        )
        generator = torch.Generator()  # as in ImageTrainer._loader_options
        return EpochDataLoader(
            _Features(features, labels), batch_sampler=sampler, collate_fn=_as_it_is, generator=generator
        )

    def evaluation_batches(self, dataloader: DataLoader) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        if self.args.world_size > 1:  # each process has statistics of its own batches
            for buffer in self.accelerator.unwrap_model(self.model).head.buffers():
                buffer.copy_(broadcast(buffer))
        if "eval" not in self.cached:
            yield from super().evaluation_batches(dataloader)
            return
        features, labels = (part[self.args.process_index :: self.args.world_size] for part in self.cached["eval"])
        for batch in zip(features.split(4096), labels.split(4096)):
            inputs = self._prepare_inputs(dict(zip(("features", "labels"), batch)))
            yield inputs, torch.ones_like(inputs["labels"], dtype=torch.bool)

    def _save(self, output_dir: str | None = None, state_dict=None) -> None:
        probe, trained = self.accelerator.unwrap_model(self.model), self.model
        try:
            self.model = probe.folded()
            super()._save(output_dir)
        finally:
            self.model = trained
        folder = Path(output_dir or self.args.output_dir)
        if folder.name.startswith(PREFIX_CHECKPOINT_DIR) and self.args.should_save:
            save_file(probe.head.state_dict(), folder / PROBE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        path = Path(resume_from_checkpoint) / PROBE_FILE
        try:
            self.accelerator.unwrap_model(self.model).head.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{path} does not hold this probe's head ({error}). Nothing was resumed.") from error


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
    exp(s / temperature).

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
        votes.scatter_add_(1, train_labels[index], (similarity / temperature).exp())
        ranked = votes.topk(min(5, num_classes)).indices == truth[:, None]
        hits += torch.stack([ranked[:, 0].sum(), ranked.any(dim=1).sum()])
    accuracy, top5 = (hits / len(labels)).tolist()
    return {"accuracy": accuracy, "top5_accuracy": top5}
