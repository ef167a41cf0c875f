"""What all downstream tasks share as tasks of training/run.py."""

from abc import abstractmethod
from dataclasses import asdict, fields
from typing import Any, TypeVar, cast

from transformers import EarlyStoppingCallback, PreTrainedModel

from ..conversion.pixels import Pixels
from ..data.source import ImageSource
from ..errors import UserError
from ..hub.run_record import in_millions
from ..hub.unused_settings import OF_UPERNET
from ..model.configuration_vit_mae_robust import to_pair
from ..training.arguments import ImageTrainingArguments
from ..training.setup import describe_length
from ..training.task import Task
from .arguments import FinetuneArguments, FinetuneModelArguments, FinetuneRecipeArguments, SegmentationArguments
from .image_settings import settings_of_images
from .trainer import FinetuningTrainer

MIN_LR_SCHEDULE = "cosine_with_min_lr"
# Ends of the names of recipes for GPUs.
LARGE_RECIPES = ("_vit_base", "_vit_large")
FEW_IMAGES = 1000


AnyTrainer = TypeVar("AnyTrainer", bound=FinetuningTrainer)

# Values with which settings of layers change nothing.
NEUTRAL = {"layer_decay": 1.0, "drop_path_rate": 0.0}


def _refuse(refused: dict[str, Any], why: str) -> None:
    """Raises UserError for the first flag of these that was given."""
    if flag := next((flag for flag, is_given in refused.items() if is_given), None):
        raise UserError(f"{flag} is not for {why}")


def _layer_settings(settings: dict[str, float]) -> dict[str, bool]:
    """The flags of layers, which a probe does not train; at their defaults, and where they change nothing, they are
    taken for not given."""
    groups = (FinetuneModelArguments, FinetuneRecipeArguments)
    defaults = {each.name: each.default for group in groups for each in fields(group)}
    return {f"--{name} {value:g}": value not in (defaults[name], NEUTRAL[name]) for name, value in settings.items()}


def check_flags_of_probe(training: ImageTrainingArguments, **settings: float) -> None:
    """Raises UserError for flags that a linear probe would ignore, or that fail in it. settings: of layers."""
    optim = str(getattr(training.optim, "value", training.optim))
    refused = {
        "--activation_checkpointing": training.activation_checkpointing,
        f"--optim {optim}": not optim.startswith("adamw_torch"),  # the default
        f"--optim_args {training.optim_args}": training.optim_args,
        **_layer_settings(settings),
    }
    _refuse(refused, "--linear_probe, which trains one layer on frozen features, with LARS.")


def check_flags_of_attentive_probe(
    training: ImageTrainingArguments, model: FinetuneModelArguments, **settings: float
) -> None:
    """Raises UserError for flags that an attentive probe would ignore. settings: of layers."""
    refused = {
        "--activation_checkpointing": training.activation_checkpointing,
        f"--pooling {model.pooling}": model.pooling is not None,
        f"--attn_implementation {model.attn_implementation}": model.attn_implementation != "sdpa",
        **_layer_settings(settings),
    }
    _refuse(refused, "--probe attentive, which trains timm's attention pooling on a frozen encoder.")


def check_flags_of_frozen_segmenter(arguments: FinetuneArguments) -> None:
    """Raises UserError for flags that --freeze_encoder would ignore: of layers, which do not train, and of UperNet."""
    given, model, recipe = arguments.segmentation, arguments.model, arguments.recipe
    of_layers = {"layer_decay": recipe.layer_decay, "drop_path_rate": model.drop_path_rate}
    refused = {
        "--activation_checkpointing": arguments.training.activation_checkpointing,
        **_layer_settings(of_layers),
        **{
            f"--{each.name} {getattr(given, each.name)}": getattr(given, each.name) != each.default
            for each in fields(SegmentationArguments)
            if each.name in OF_UPERNET
        },
    }
    _refuse(refused, "--freeze_encoder, which trains a linear layer on the patch tokens.")


class FinetuningTask(Task[FinetuneArguments, PreTrainedModel, AnyTrainer]):
    """A subclass says what is put on the encoder, how it is trained, and what its results look like.

    Attributes:
        small_recipe: the recipe for a laptop, where --task alone takes one for GPUs.
    """

    small_recipe: str | None = None

    def __init__(self) -> None:
        self.settings_of_images: dict[str, Any] = {}

    def look_at_images(self, arguments: FinetuneArguments, source: ImageSource, checkpoint: str | None) -> None:
        if not arguments.recipe.eval_only:
            self.settings_of_images = settings_of_images(arguments, source, checkpoint)

    def check_settings(self, arguments: FinetuneArguments) -> None:
        model, recipe = arguments.model, arguments.recipe
        if self.name != "classification" and (model.linear_probe or recipe.model_ema_decay is not None):
            raise UserError("--linear_probe and --model_ema_decay are for --task classification.")
        if self.name != "classification" and model.probe is not None:
            raise UserError("--probe is for --task classification.")
        of_layers = {"layer_decay": recipe.layer_decay, "drop_path_rate": model.drop_path_rate}
        if model.linear_probe:
            check_flags_of_probe(arguments.training, **of_layers)
        if model.probe == "attentive":
            check_flags_of_attentive_probe(arguments.training, model, **of_layers)
            if recipe.model_ema_decay is not None:
                raise UserError("--model_ema_decay is not for --probe attentive.")
        if model.freeze_encoder:
            if self.name != "segmentation":
                raise UserError("--freeze_encoder is for --task segmentation; for classification there is --probe.")
            check_flags_of_frozen_segmenter(arguments)
        if model.inflate_channels is not None and (model.from_scratch or recipe.eval_only):
            flag = "--from_scratch" if model.from_scratch else "--eval_only"
            raise UserError(f"--inflate_channels is for a checkpoint to train from, not for {flag}.")
        if recipe.eval_only and arguments.training.push_to_hub:
            raise UserError(
                "--eval_only writes no model, so there is nothing for --push_to_hub. Leave one of them out."
            )

    def as_trained(
        self, arguments: FinetuneArguments, finetuned: tuple[PreTrainedModel, Pixels]
    ) -> tuple[PreTrainedModel, Pixels]:
        """`finetuned`, a model to evaluate and how it wants its images. Raises UserError for an --image_size that is
        not its own."""
        size, config = arguments.model.image_size, finetuned[0].config
        if size is None:
            return finetuned
        own = to_pair(getattr(getattr(config, "backbone_config", None) or config, "image_size", size))
        if own != (size, size):
            raise UserError(
                f"--eval_only evaluates a model at the size at which it was trained, {own[0]} x {own[1]} pixels, and "
                f"--image_size is {size}. Leave it out, or fine-tune at that size."
            )
        return finetuned

    def evaluates_only(self, arguments: FinetuneArguments) -> bool:
        return arguments.recipe.eval_only

    def finish_schedule(self, arguments: FinetuneArguments) -> None:
        """Hand --min_learning_rate to the schedule, which scales it in each layer as it does the peak."""
        recipe, training = arguments.recipe, arguments.training
        if str(training.lr_scheduler_type).rpartition(".")[2].lower() != MIN_LR_SCHEDULE:
            return
        if training.lr_scheduler_kwargs:
            return
        if not 0 <= recipe.min_learning_rate <= cast(float, training.learning_rate):
            raise UserError(
                f"--min_learning_rate {recipe.min_learning_rate:g}: must lie between 0 and the peak, which is "
                f"{training.learning_rate:g} (--base_learning_rate x effective batch / 256)."
            )
        training.lr_scheduler_kwargs = {"min_lr": recipe.min_learning_rate}
        if training.uses_deepspeed and training.learning_rate:  # whose optimizer does not tell the peak
            training.lr_scheduler_kwargs = {"min_lr_rate": recipe.min_learning_rate / training.learning_rate}

    def record(self, arguments: FinetuneArguments, model: PreTrainedModel) -> dict[str, Any]:
        recipe = arguments.recipe
        return {
            "task": self.name,
            "linear_probe": arguments.model.linear_probe,
            "lora": None,
            "label_smoothing_factor": arguments.training.label_smoothing_factor,
            "layer_decay": recipe.layer_decay,
            "min_learning_rate": recipe.min_learning_rate,
            "model_ema_decay": recipe.model_ema_decay,
            **asdict(arguments.augmentation),
            **asdict(arguments.segmentation),
            **asdict(arguments.detection),
        }

    def add_callbacks(self, trainer: AnyTrainer, arguments: FinetuneArguments) -> None:
        if arguments.recipe.early_stopping_patience is not None:
            trainer.add_callback(EarlyStoppingCallback(arguments.recipe.early_stopping_patience))

    def describe(self, trainer: AnyTrainer, arguments: FinetuneArguments) -> str:
        config = trainer.model.config
        start = "from scratch" if arguments.model.from_scratch else arguments.model.model_name_or_path
        if self.settings_of_images and arguments.model.inflate_channels is not None:
            start = f"{start} (patch projection for {self.settings_of_images['num_channels']} channels: "
            start += f"{arguments.model.inflate_channels})"
        details = self.describe_details(trainer, arguments)
        if arguments.recipe.eval_only:
            return f"Evaluating {start} on {trainer.eval_source.description} ({details})"
        encoder = getattr(config, "backbone_config", config)
        size = in_millions(sum(parameter.numel() for parameter in trainer.model.parameters()))
        sizes = f"{encoder.model_type} {encoder.hidden_size}x{encoder.num_hidden_layers}, {size} parameters"
        return self.hint_at_small_recipe(trainer, arguments) + (
            f"Fine-tuning {start} ({sizes}; {details}) for {self.name} of "
            f"{len(trainer.class_names)} classes on {describe_length(trainer)}"
        )

    def hint_at_small_recipe(self, trainer: AnyTrainer, arguments: FinetuneArguments) -> str:
        """A line about the recipe for a laptop, where the run has a large one and no GPU, or few images."""
        small, num_images = self.small_recipe, trainer.train_source.num_rows
        if small is None or not str(arguments.recipe.config).endswith(LARGE_RECIPES):
            return ""
        if trainer.args.device.type == "cpu":
            why = "a CPU takes days for them"
        elif num_images is not None and num_images < FEW_IMAGES:
            why = f"{num_images:,} images are few for them"
        else:
            return ""
        return (
            f"Note: the recipe {arguments.recipe.config} has the sizes and the length for ViT-B or ViT-L on several "
            f"GPUs and {FEW_IMAGES:,} images or more; {why}. For a laptop there is --config {small}.\n"
        )

    @abstractmethod
    def describe_details(self, trainer: AnyTrainer, arguments: FinetuneArguments) -> str:
        """Sizes, augmentation and settings of the task."""
