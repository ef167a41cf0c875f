"""What a run is for: the steps in which tasks differ, called by run.py in the order in which they stand here."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from transformers import PreTrainedModel

from ..conversion.pixels import Pixels
from ..data.source import ImageSource
from .arguments import DataArguments, ImageTrainingArguments, RecipeArguments
from .trainer import ImageTrainer


class StartArguments(Protocol):
    """Flags of every task's model group."""

    model_name_or_path: str | None
    model_revision: str | None
    token: str | None


class RunArguments(Protocol):
    """All flags of a script: a NamedTuple of argument groups. A task may have more groups than these."""

    @property
    def model(self) -> Any: ...  # StartArguments; the groups of the tasks have further flags

    @property
    def data(self) -> DataArguments: ...

    @property
    def recipe(self) -> RecipeArguments: ...

    @property
    def training(self) -> ImageTrainingArguments: ...

    @property
    def _replace(self) -> Callable[..., Any]: ...


Arguments = TypeVar("Arguments", bound=RunArguments)
Model = TypeVar("Model", bound=PreTrainedModel)
AnyTrainer = TypeVar("AnyTrainer", bound=ImageTrainer)


class Task(ABC, Generic[Arguments, Model, AnyTrainer]):
    """A task: pre-training, classification, segmentation or detection. Its parameters are the groups of flags, the
    class of the model and that of the Trainer.

    All methods but `report` raise ValueError for what is wrong with arguments, model or data.

    Attributes:
        name: as a model card names the task.
        loss: what the loss is, for the axis of loss.png.
        metrics: names of the results that --metric_for_best_model can look at.
        takes_bands: whether its models may be of images that hold more than 8-bit pictures.
    """

    name: str
    loss: str
    metrics: tuple[str, ...] = ("loss",)
    takes_bands: bool = True

    def check_settings(self, arguments: Arguments) -> None:
        """Refuse settings that contradict one another, before anything is read."""

    def evaluates_only(self, arguments: Arguments) -> bool:
        """Whether the run evaluates a model as it is, and trains none."""
        return False

    def check_model(self, arguments: Arguments) -> None:
        """Refuse a model before the data are opened. `arguments.model.model_name_or_path` is local."""

    def source_options(self, arguments: Arguments) -> dict[str, Any]:
        """For `open_splits`: which labels to read, and how."""
        return {}

    def num_views(self, arguments: Arguments) -> int:
        """Augmented views of each image in a batch."""
        return 1

    def finish_schedule(self, arguments: Arguments) -> None:
        """Fill in what depends on the learning rate, which `arguments.training` has by now."""

    def look_at_images(self, arguments: Arguments, source: ImageSource, checkpoint: str | None) -> None:
        """Before the model is built: find out what it must know of the images. source: the training images, or those to
        evaluate on. checkpoint: to resume from."""

    @abstractmethod
    def build_model(self, arguments: Arguments, class_names: Sequence[str]) -> tuple[Model, Pixels]:
        """The model to train, or to evaluate as it is, and how it wants its images. class_names: none of data without
        labels."""

    @abstractmethod
    def record(self, arguments: Arguments, model: Model) -> dict[str, Any]:
        """What a resumed run must have in common with this one, beside the settings that every task has."""

    @abstractmethod
    def make_trainer(
        self,
        arguments: Arguments,
        model: Model,
        pixels: Pixels,
        class_names: Sequence[str],
        **common: Any,
    ) -> AnyTrainer:
        """The Trainer, with the task's processor, transforms and loss. Without common["train_source"] it only
        evaluates."""

    def add_callbacks(self, trainer: AnyTrainer, arguments: Arguments) -> None:
        """Add what acts between the steps."""

    @abstractmethod
    def describe(self, trainer: AnyTrainer, arguments: Arguments) -> str:
        """What is trained on what: the first line of the run."""

    def start(self, trainer: AnyTrainer, arguments: Arguments) -> None:
        """Give the model what the training images alone can tell. Not called for a run that resumes."""

    def draw(self, trainer: AnyTrainer) -> None:
        """After training and evaluation, in every process: pictures for which the model has to run. Where it is sharded
        (`trainer.is_sharded`), it runs in all processes or in none; the first one writes."""

    @abstractmethod
    def report(self, trainer: AnyTrainer) -> tuple[str, list[str]]:
        """After training and evaluation, on the first process: write what belongs to the task into the output folder.
        Returns the main result as a sentence, and the names of the files."""
