"""`Trainer` with the types that its attributes have in this package."""

from typing import Any

from transformers import PreTrainedModel, Trainer
from transformers.image_processing_utils import BaseImageProcessor

from ..data.order import EpochBatchSampler
from ..data.source import ImageSource
from .arguments import ImageTrainingArguments


class TypedTrainer(Trainer):
    """Declares what all our Trainers are made with, where transformers allows more. It declares only, and does nothing
    when a program runs."""

    args: ImageTrainingArguments
    model: PreTrainedModel
    train_dataset: ImageSource | None
    eval_dataset: ImageSource | None
    processing_class: BaseImageProcessor
    hub_model_id: str | None  # type: ignore[assignment]  # transformers declares None alone
    repeated_augmentation: int  # of `DataFeeding`
    train_sampler: EpochBatchSampler | None  # of `DataFeeding`
    record: dict[str, Any]  # of `Checkpointing`

    @property
    def train_source(self) -> ImageSource:
        """`train_dataset`, where the run trains."""
        if self.train_dataset is None:
            raise ValueError("This Trainer was made without images to train on.")
        return self.train_dataset

    @property
    def eval_source(self) -> ImageSource:
        """`eval_dataset`, where the run evaluates."""
        if self.eval_dataset is None:
            raise ValueError("This Trainer was made without images to evaluate on.")
        return self.eval_dataset
