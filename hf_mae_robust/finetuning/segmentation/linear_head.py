"""Segmentation by frozen features: a linear layer on the patch tokens, upsampled to pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BeitModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from ...conversion.beit import fill_beit, mae_beit_config
from ...conversion.encoders import VIT_ENCODERS, encoder_from_scratch, open_config, read_config, read_encoder
from ...conversion.finetuned import LINEAR_HEAD, check_classes, label_settings, nothing_to_evaluate
from ...conversion.loading import load_strictly
from ...conversion.pixels import Pixels, read_pixels
from ...conversion.positions import square_patch
from ...conversion.settings import settings_of
from ...conversion.source import ModelSource
from ...errors import CheckpointError, UserError
from .trainer import SegmentationTrainer

HEAD_STD = 0.01


class LinearSegmenter(nn.Module):
    """A frozen stock `BeitModel` with the final norm, and a linear layer on each of its patch tokens (a convolution of
    1 x 1 on the map of tokens), whose logits are upsampled (bilinear) to the pixels.

    `forward` takes square images `(B, C, H, W)` and gives logits `(B, K, H, W)`.
    """

    def __init__(self, encoder: BeitModel, num_classes: int):
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.head = nn.Linear(encoder.config.hidden_size, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)
        self.train()

    @property
    def config(self) -> PreTrainedConfig:
        return self.encoder.config

    def train(self, mode: bool = True) -> "LinearSegmenter":
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> SemanticSegmenterOutput:
        with torch.no_grad():
            tokens = self.encoder(pixel_values).last_hidden_state[:, 1:]
        rows = pixel_values.shape[-2] // cast(int, self.config.patch_size)
        logits = self.head(tokens).transpose(1, 2).unflatten(2, (rows, -1))
        size = pixel_values.shape[-2:]
        upsampled = nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return SemanticSegmenterOutput(logits=cast(torch.FloatTensor, upsampled))

    def load_head(self, folder: str | Path) -> None:
        """Raises CheckpointError."""
        path = Path(folder) / LINEAR_HEAD
        try:
            self.head.load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{path} does not hold the linear head of these classes ({error}).") from error


def linear_segmenter(
    source: ModelSource, class_names: Sequence[str], image_size: int, attn_implementation: str, from_scratch: bool
) -> tuple[LinearSegmenter, Pixels]:
    """A new linear head on a frozen encoder, and how that wants its images.

    Args:
        image_size: of the square crops; the positions are interpolated (bicubic, 2-D).
        from_scratch: the encoder is as before pre-training: what random features are worth.

    Raises ValueError: another architecture, a missing tensor, sizes that do not fit.
    """
    if from_scratch:
        encoder, pixels = cast(tuple[PreTrainedModel, Pixels], encoder_from_scratch(source, image_size))
        image_size = encoder.config.image_size
    else:
        encoder, pixels = read_encoder(source, tuple(VIT_ENCODERS))
    square_patch(encoder.config.patch_size, "Segmentation")
    fields = {**label_settings(class_names), "use_mean_pooling": False}  # so the final norm is that of the encoder
    config = mae_beit_config(**settings_of(encoder.config), image_size=image_size, **fields)
    beit = cast(BeitModel, BeitModel._from_config(config, attn_implementation=attn_implementation))
    fill_beit(beit, encoder)
    return LinearSegmenter(beit, len(class_names)), pixels


def has_linear_head(source: ModelSource) -> bool:
    """Whether this is a folder that --freeze_encoder has written. Another run may have written a segmenter there since.
    Raises ValueError where the folder holds no model."""
    if source.name is None or not (Path(source.name) / LINEAR_HEAD).exists():
        return False
    config = open_config(source)
    return config is not None and config.model_type == "beit"


def linear_segmenter_for_evaluation(source: ModelSource, class_names: Sequence[str]) -> tuple[LinearSegmenter, Pixels]:
    """What `FrozenSegmentationTrainer` has saved, and how it wants its images. Raises ValueError: another architecture,
    other classes than the data's, a missing tensor."""
    config = read_config(source, ("beit",))
    if config is None:
        raise nothing_to_evaluate("segmenter")
    check_classes(source.checkpoint, config, class_names, "segmenter")
    encoder = load_strictly(BeitModel, source.checkpoint, token=source.access.token)
    model = LinearSegmenter(encoder, len(class_names))
    model.load_head(source.checkpoint)
    return model, read_pixels(source, config)


class FrozenSegmentationTrainer(SegmentationTrainer):
    """Trains the linear head of a `LinearSegmenter` with AdamW. Every folder it writes holds the stock `BeitModel`, and
    the head beside it: `linear_head.safetensors` with `weight` `(K, d)` and `bias` `(K,)`."""

    def __init__(self, *, model: Any, **kwargs: Any):
        super().__init__(model=model, **kwargs)
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise UserError("--freeze_encoder does not work with FSDP and DeepSpeed, which split the weights.")

    @property
    def segmenter(self) -> LinearSegmenter:
        return cast(LinearSegmenter, self.accelerator.unwrap_model(self.model, keep_torch_compile=False))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            head, options = self.segmenter.head, self.get_optimizer_cls_and_kwargs(self.args)
            groups = [
                {"params": [head.weight], "weight_decay": self.args.weight_decay},
                {"params": [head.bias], "weight_decay": 0.0},
            ]
            self.optimizer = options[0](groups, **options[1])
        return self.optimizer

    def save_weights(self, folder: Path, state_dict: dict[str, Any] | None = None) -> None:
        segmenter, trained = self.segmenter, self.model
        try:
            self.model = segmenter.encoder
            super().save_weights(folder)
        finally:
            self.model = trained
        if self.args.should_save:
            head = {name: tensor.detach().cpu().contiguous() for name, tensor in segmenter.head.state_dict().items()}
            save_file(head, folder / LINEAR_HEAD)

    def load_weights(self, checkpoint: str) -> None:
        segmenter = self.segmenter
        try:
            encoder = load_strictly(BeitModel, checkpoint, config=segmenter.config)
        except ValueError as error:
            raise CheckpointError(f"{error} Nothing was resumed.") from error
        segmenter.encoder.load_state_dict(encoder.state_dict())
        segmenter.load_head(checkpoint)
