"""How images reach the model: the loaders of both splits, and what happens to a batch on the device."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..data.bad_images import SkippedImages
from ..data.loaders import sequential_loader, training_loader
from ..data.order import EpochBatchSampler
from ..data.preprocessing import EvaluationTransform, Normalization
from ..data.source import ImageSource
from ..data.stages import Stage, StagePlan
from .bad_images import BadImages
from .typed_trainer import TypedTrainer


class DataFeeding(TypedTrainer):
    """The part of `ImageTrainer` that feeds `ImageSource`s.

    Args (beside the Trainer's):
        train_source, eval_source: the images. `processing_class`: the image processor of evaluation, which also says
            how uint8 batches are normalised on the device.
        train_transform: `(C, h, w)` uint8 -> `(C, H, W)`, uint8 or, normalised already, float; see also `ImageDataset`.
            Images of band models are normalised floats before it, too.
        eval_transform: the same for evaluation; None: the geometric part of the image processor.
        num_channels: of the images. noise_length: see `ImageDataset`. shuffle_buffer_size: see `epoch_batches`.
        repeated_augmentation: views of each image in a batch, see `training_loader`; what is called images elsewhere
            (per second, an epoch's number of samples) are views then.
        stages: of a training whose images come out differently as it goes on; for sources that can seek.
        max_bad_images: share of the images that may be undecodable, see data/bad_images.py.
    """

    # Whether the model takes missing pixels (NaN) of band images; otherwise it gets 0, the mean of the band, for them.
    KEEPS_MISSING = False

    def __init__(
        self,
        *,
        train_source: ImageSource | None = None,
        eval_source: ImageSource | None = None,
        train_transform: Callable[..., Any] | None = None,
        eval_transform: Callable[..., Any] | None = None,
        num_channels: int = 3,
        noise_length: int | None = None,
        shuffle_buffer_size: int = 8192,
        repeated_augmentation: int = 1,
        stages: Sequence[Stage] = (),
        max_bad_images: float = 0.01,
        **kwargs: Any,
    ):
        super().__init__(train_dataset=train_source, eval_dataset=eval_source, **kwargs)
        self.train_transform: Any = train_transform  # a task describes the settings of its own
        self.eval_transform = eval_transform or EvaluationTransform(self.processing_class)
        self.num_channels, self.noise_length = num_channels, noise_length
        self.shuffle_buffer_size, self.repeated_augmentation = shuffle_buffer_size, repeated_augmentation
        self.stages = tuple(stages)
        self.normalization = Normalization(self.processing_class, self.args.device, self.KEEPS_MISSING)
        self.bad_images = BadImages(self, max_bad_images)
        # Of the checkpoint that the training resumes from; the loader is made before the Trainer knows it.
        self.resumed_step = 0
        self.train_sampler: EpochBatchSampler | None = None  # of the newest loader, where the source can seek
        if train_source is not None and train_source.row_groups is None:
            # Otherwise a resume would read and decode everything up to its place, in an order that is not exact anyway.
            self.args.ignore_data_skip = True

    @property
    def skipped_images(self) -> SkippedImages:
        return self.bad_images.skipped

    @property
    def shuffle_seed(self) -> int:
        """Decides the order of the images."""
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def loader_options(self) -> dict[str, Any]:
        """What all loaders have in common, for `DataLoader`."""
        return {
            "num_workers": self.args.dataloader_num_workers,
            "persistent_workers": self.args.dataloader_num_workers > 0,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context,
            "pin_memory": self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            # Otherwise each epoch draws a number from the generator that dropout uses, or not: that depends on whether
            # there are worker processes.
            "generator": torch.Generator(),
        }

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Not prepared by accelerate: the plan has already given each rank its own batches."""
        seed = self.shuffle_seed
        if self.train_source.row_groups is None:
            # A stream starts over after a resume; at least not with the same images.
            seed += self.resumed_step
        loader = training_loader(
            self.train_source,
            self.train_transform,
            self.num_channels,
            noise_length=self.noise_length,
            batch_size=self._train_batch_size,
            seed=seed,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            buffer_size=self.shuffle_buffer_size,
            num_views=self.repeated_augmentation,
            stages=self.stages,
            **self.loader_options(),
        )
        self.train_sampler = loader.batch_sampler if isinstance(loader.batch_sampler, EpochBatchSampler) else None
        if self.stages and self.train_sampler is not None:
            *_, num_steps = self.set_initial_training_values(self.args, loader)
            shares, accumulation = [stage.until for stage in self.stages], self.args.gradient_accumulation_steps
            self.train_sampler.stages = StagePlan.of(shares, num_steps, len(loader), accumulation)
        return loader

    # Data sets are `ImageSource`s here.
    def get_eval_dataloader(  # type: ignore[override]
        self, eval_dataset: ImageSource | None = None
    ) -> DataLoader[Any]:
        return sequential_loader(
            eval_dataset or self.eval_source,
            self.eval_transform,
            self.num_channels,
            noise_length=self.noise_length,
            batch_size=self.args.eval_batch_size,
            rank=self.args.process_index,
            world_size=self.args.world_size,
            **self.loader_options(),
        )

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Images (with repeated augmentation: views) of an epoch over all ranks; without the remainder that fills no
        batch."""
        return len(dataloader) * self._train_batch_size * self.args.world_size

    def _prepare_input(self, data: Any) -> Any:
        """On the device, in the type that it has. With DeepSpeed the Trainer casts floats to that of the weights: masks
        would come from rounded noise."""
        return data.to(self.args.device) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """uint8 images -> normalised float ones, on the device: a quarter of the bytes to hand over and copy. Row
        numbers stay on the CPU."""
        rows = inputs.pop("row", None)
        self.bad_images.add(inputs.pop("skipped", ()))
        inputs = super()._prepare_inputs(inputs)
        if rows is not None:
            inputs["row"] = rows
        images = inputs.get("pixel_values")
        if images is not None:
            # Images of different sizes are a list.
            is_batch = isinstance(images, torch.Tensor)
            inputs["pixel_values"] = self.normalization(images) if is_batch else list(map(self.normalization, images))
        return inputs
