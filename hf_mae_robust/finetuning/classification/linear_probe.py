"""Linear probes of frozen features (official code: main_linprobe.py)."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ...data.features import features_by_row
from ...data.loaders import EpochDataLoader
from ...data.order import EpochBatchSampler
from ...data.preprocessing import EvaluationTransform
from ...errors import CheckpointError
from ...training.checkpoints import is_checkpoint
from ...training.optimization import Lars, lars_groups
from .trainer import ClassificationTrainer

PROBE_FILE = "linear_probe.safetensors"


class LinearProbe(nn.Module):
    """A stock classifier whose encoder is frozen, with BatchNorm without affine parameters before the linear layer
    (official code: main_linprobe.py; eps 1e-6).

    `forward` takes images `(B, C, H, W)` or their `features` `(B, d)` and gives logits.
    """

    def __init__(self, classifier: PreTrainedModel):
        super().__init__()
        linear = cast(nn.Linear, classifier.classifier)
        classifier.classifier = nn.Identity()
        self.encoder = classifier.requires_grad_(False)
        self.head = nn.Sequential(nn.BatchNorm1d(linear.in_features, affine=False, eps=1e-6), linear)
        self.train()

    @property
    def config(self) -> PreTrainedConfig:
        return self.encoder.config

    def train(self, mode: bool = True) -> "LinearProbe":
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.encoder(pixel_values).logits

    def forward(
        self, pixel_values: torch.Tensor | None = None, features: torch.Tensor | None = None
    ) -> ImageClassifierOutput:
        features = self.encode(cast(torch.Tensor, pixel_values)) if features is None else features
        return ImageClassifierOutput(logits=self.head(features))

    @torch.no_grad()
    def folded(self) -> PreTrainedModel:
        """The stock classifier that computes what this does in evaluation mode: BatchNorm is a linear map then."""
        norm: Any
        linear: Any
        norm, linear = self.head
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        weight = linear.weight.double() * scale
        folded = nn.Linear(linear.in_features, linear.out_features)
        folded.weight.copy_(weight)
        folded.bias.copy_(linear.bias.double() - weight @ norm.running_mean.double())
        model = copy.deepcopy(self.encoder).cpu()
        model.classifier = folded
        return model.eval()


class _Features(torch.utils.data.Dataset[Any]):
    """Keys `(epoch, place)` -> a batch at once. rows: of the images, some of which could not be decoded."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor):
        self.features, self.labels, self.rows = features, labels, rows

    def __getitems__(self, keys: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        places = torch.tensor([place for _, place in keys])
        return {"features": self.features[places], "labels": self.labels[places], "row": self.rows[places]}


def _as_it_is(batch: Any) -> Any:
    return batch


class ProbeTrainer(ClassificationTrainer):
    """Trains a `LinearProbe` with LARS. Every folder it writes holds the stock classifier with the BatchNorm folded in;
    checkpoints also hold the head by itself, to resume from.

    `cache_features` makes it train on features that are computed once, which is exact where images are not augmented.
    """

    def __init__(self, *, model: LinearProbe, **kwargs: Any):
        super().__init__(model=model, **kwargs)
        # Features, classes and rows of each split.
        self.cached: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def cache_features(self) -> None:
        probe: LinearProbe = self.accelerator.unwrap_model(self.model)
        for split, source in (("train", self.train_dataset), ("eval", self.eval_dataset)):
            if source is not None:
                self.cached[split] = features_by_row(
                    probe.encode,
                    source,
                    cast(EvaluationTransform, self.eval_transform),
                    self.num_channels,
                    batch_size=self.args.eval_batch_size,
                    num_workers=self.args.dataloader_num_workers,
                    max_bad_images=self.skipped_images.max_fraction,
                    device=self.args.device,
                )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            head = self.accelerator.unwrap_model(self.model).head
            self.optimizer = Lars(
                lars_groups(head), lr=self.args.learning_rate, momentum=0.9, weight_decay=self.args.weight_decay
            )
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        if "train" not in self.cached:
            return super().get_train_dataloader()
        cached = self.cached["train"]
        sampler = EpochBatchSampler(
            (len(cached[0]),),
            rank=self.args.process_index,
            world_size=self.args.world_size,
            batch_size=self._train_batch_size,
            seed=self.shuffle_seed,
        )
        generator = torch.Generator()  # as in DataFeeding.loader_options
        return EpochDataLoader(_Features(*cached), batch_sampler=sampler, collate_fn=_as_it_is, generator=generator)

    def evaluation_batches(self, dataloader: DataLoader[Any]) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        if self.args.world_size > 1:  # each process has statistics of its own batches
            for buffer in self.accelerator.unwrap_model(self.model).head.buffers():
                buffer.copy_(broadcast(buffer))
        if "eval" not in self.cached:
            yield from super().evaluation_batches(dataloader)
            return
        mine = (part[self.args.process_index :: self.args.world_size].split(4096) for part in self.cached["eval"])
        for batch in zip(*mine):
            inputs = self._prepare_inputs(dict(zip(("features", "labels", "row"), batch)))
            yield inputs, inputs.pop("row")

    def save_weights(self, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
        probe, trained = self.accelerator.unwrap_model(self.model), self.model
        try:
            self.model = probe.folded()
            super().save_weights(folder)
        finally:
            self.model = trained
        if is_checkpoint(folder) and self.args.should_save:
            save_file(probe.head.state_dict(), folder / PROBE_FILE)

    def load_weights(self, checkpoint: str) -> None:
        path = Path(checkpoint) / PROBE_FILE
        try:
            self.accelerator.unwrap_model(self.model).head.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{path} does not hold this probe's head ({error}). Nothing was resumed.") from error
