"""--diagnostics_steps: what happens between the tokens, while a model trains."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..conversion.pixels import pixels_of
from ..data.features import extract_features
from ..data.opening import open_splits
from ..data.preprocessing import EvaluationTransform
from ..data.source import DataLocation, ImageSource, load_head_of_stream
from ..errors import DataError, UserError
from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining
from ..training.arguments import DataArguments
from ..training.pictures import save_reconstructions
from ..training.processes import first_process
from ..training.trainer import ImageTrainer
from .evaluators import EVALUATORS
from .knn import knn_accuracy
from .plots import save_pictures
from .samples import Samples

NUM_PICTURES = 8
PREFIX = "diagnostics/"


class OnlineDiagnostics(TrainerCallback):
    """Before the first step, every N steps and after the last: the evaluators' numbers into the log as
    `diagnostics/...`, and pictures into `diagnostics/step-N/` of the output folder. Random numbers and the model stay
    as they were, so that training is the same bit by bit.

    Args:
        kinds: names of EVALUATORS. samples: what these look at. labelled: images for nearest neighbours and a linear
            probe, those that are known and those that are classified; None: neither.
    """

    def __init__(
        self,
        trainer: ImageTrainer,
        kinds: Sequence[str],
        samples: Samples,
        labelled: tuple[ImageSource, ImageSource] | None = None,
    ):
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UserError("--diagnostics_steps needs the complete model in each process: not with FSDP or DeepSpeed.")
        self.trainer, self.kinds, self.samples, self.labelled = trainer, kinds, samples, labelled

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == 0:  # what the start is worth
            self._look(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        every: float = cast(Any, args).diagnostics_steps  # of pre-training
        every = math.ceil(every * state.max_steps) if every < 1 else int(every)
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            self._look(args, state, control)

    def _look(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        trainer, devices = self.trainer, [args.device] if args.device.type == "cuda" else []
        model = trainer.accelerator.unwrap_model(trainer.model)
        found: dict[str, Any] = {}
        with torch.random.fork_rng(devices), trainer.compute_loss_context_manager():
            if self.labelled is not None:  # by all processes together
                found |= self._accuracies(model)
            if trainer.is_world_process_zero():
                for make in (make for kind in self.kinds for make in EVALUATORS[kind]):
                    found |= dict(make()(model, self.samples))
                self._save(model, found, Path(str(args.output_dir)) / "diagnostics" / f"step-{state.global_step}")
        if trainer.is_world_process_zero():
            # Heads by themselves would be hundreds of curves; `analyze attention` has them.
            numbers = {
                PREFIX + name: value
                for name, value in found.items()
                if isinstance(value, float) and "/head " not in name
            }
            should_log = control.should_log
            trainer.log(numbers)
            control.should_log = should_log  # logging takes it back, and the loss of this step is still to come

    def _save(self, model: ViTMAERobustForPreTraining, found: dict[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_pictures(found, folder, "")
        batch = next(iter(self.samples))
        images, noise = batch["pixel_values"][:NUM_PICTURES], batch["noise"][:NUM_PICTURES]
        channels = self.trainer.normalization.shown_channels
        save_reconstructions(model, images, noise, folder / "reconstructions.png", channels)

    def _accuracies(self, model: ViTMAERobustForPreTraining) -> dict[str, float]:
        was_training, config = model.training, model.config
        transform, device = EvaluationTransform(self.samples.processor), self.trainer.args.device

        def encode(images: torch.Tensor) -> torch.Tensor:
            return model.vit(images).last_hidden_state[:, 1:].mean(dim=1)

        model.eval()
        try:
            options: dict[str, Any] = {
                "batch_size": self.samples.batch_size,
                "num_workers": 0,
                "device": device,
            }
            known, classified = (
                extract_features(encode, source, transform, config.num_channels, shows_progress=False, **options)
                for source in self.labelled or ()
            )
        finally:
            model.train(was_training)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
        probe.fit(*(part.numpy() for part in known))
        return {
            "knn_accuracy": knn_accuracy(*known, *classified)["accuracy"],
            "linear_probe_accuracy": float(probe.score(*(part.numpy() for part in classified))),
        }


def check_probe(source: ImageSource) -> None:
    """Raises DataError where a probe would learn from one class."""
    found = {int(source.rows.label(row)) for row in range(len(source))}
    if len(found) < 2:
        name = source.class_names[found.pop()] if found and source.class_names else "none"
        raise DataError(
            f"{source.description}: all {source.num_rows:,} images to probe with are of the class '{name}'; a probe "
            "needs two. Raise --probe_samples, or shuffle the data."
        )


def add_online_diagnostics(
    trainer: ImageTrainer,
    data: DataArguments,
    *,
    kinds: Sequence[str],
    num_samples: int,
    label_column_name: str | None,
    probe_samples: int,
    token: str | None,
) -> None:
    """Look at `num_samples` images with the evaluators `kinds`. label_column_name: also nearest neighbours and a linear
    probe, with `probe_samples` images to learn from and as many to classify.

    Raises ValueError (DataError) where labels are asked for and there are none, or nothing to classify.
    """
    source, training = trainer.eval_dataset or trainer.train_source, trainer.args
    if source.row_groups is None:
        source = load_head_of_stream(source, num_samples)
    batch_size = training.per_device_eval_batch_size
    config = cast(ViTMAERobustConfig, trainer.model.config)
    processor = pixels_of(config).processor(config.image_size, data.crop_pct)
    samples = Samples(source.head(num_samples), config, processor, batch_size, training.device)
    labelled = None
    if label_column_name is not None:
        parts = open_labelled_splits(data, label_column_name, training.seed, token)
        drawn = (part.sample(probe_samples, training.seed, data.shuffle_buffer_size) for part in parts)
        known, classified = (
            (load_head_of_stream(part, probe_samples) if part.row_groups is None else part).read_as(
                source.band_form, config.num_channels
            )
            for part in drawn
        )
        check_probe(known)
        labelled = (known, classified)
    trainer.add_callback(OnlineDiagnostics(trainer, kinds, samples, labelled))


def open_labelled_splits(
    data: DataArguments, label_column_name: str, seed: int, token: str | None
) -> tuple[ImageSource, ImageSource]:
    """The images to learn from and those to classify, with labels. Raises ValueError (DataError) as
    `add_online_diagnostics`."""
    location = replace(DataLocation.of(data, token), label_column_name=label_column_name)
    eval_split = None if data.eval_split_name == "none" else data.eval_split_name
    splits = (data.train_split_name, eval_split, data.train_val_split, seed)
    learned, classified = open_splits(location, *splits, tells=False, share=first_process)
    if classified is None:
        raise UserError(
            f"--label_column_name {label_column_name}: {data.dataset_name} has no split to classify; name "
            "one with --eval_split_name or hold images out with --train_val_split 0.05."
        )
    return cast(tuple[ImageSource, ImageSource], (learned, classified))
