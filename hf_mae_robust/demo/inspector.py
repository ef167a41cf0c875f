"""One image through a checkpoint of any kind: reconstruction, attention, features, classes."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..conversion.encoders import has_head, read_config, read_encoder
from ..conversion.loading import load_strictly
from ..conversion.original import from_original, read_original
from ..conversion.pixels import read_processor
from ..conversion.source import Access, ModelSource
from ..conversion.stock import STOCK_KINDS, read_stock
from ..data.band_decoding import decode_band_regions
from ..data.decoding import PIL_MODES, decode_image
from ..data.preprocessing import EvaluationTransform, default_processor
from ..data.shown import to_shown
from ..errors import UserError
from ..hub.models import local_model
from ..model import ViTMAERobustForPreTraining, ViTMAERobustImageProcessor
from ..model.configuration_vit_mae_robust import to_pair
from ..model.modeling_vit_mae_robust import random_masking
from ..model.resizing_vit_mae_robust import fill_missing_pixels
from .pictures import as_rgb


@dataclass(frozen=True)
class Observation:
    """What an encoder makes of one image of rows x columns patches, none of them masked; on the CPU.

    Attributes:
        attention (`(rows, columns)`): in the last block, mean over the heads: of the CLS token to each patch; of a
            classifier that pools the mean of the patches, the mean over these.
        features (`(rows * columns, d)`): of the patches, in raster order.
        probabilities (`(classes,)`): of a classifier; else None.
    """

    attention: torch.Tensor
    features: torch.Tensor
    probabilities: torch.Tensor | None


class Inspector:
    """A model with its image processor. Threads may share it.

    Args:
        model: pre-training model of this package, encoder or classifier with patches.
        processor: prepares its images.

    Raises ValueError where the two do not fit together, or the model cannot be shown as a picture: channels other than
    those of image files, no weights of attention, patch statistics that are missing.
    """

    def __init__(self, model: PreTrainedModel, processor: BaseImageProcessor, device: torch.device | str = "cpu"):
        self.model, self.processor, self.device = model.eval().requires_grad_(False).to(device), processor, device
        # Fused attention never has the weights.
        self.model.set_attn_implementation("eager")
        self.has_decoder = isinstance(model, ViTMAERobustForPreTraining)
        self.is_classifier = type(model).__name__.endswith("ForImageClassification")
        self.num_channels, self.patch_size = model.config.num_channels, to_pair(model.config.patch_size)
        self.is_of_bands = isinstance(processor, ViTMAERobustImageProcessor)
        self._transform, self._lock = EvaluationTransform(processor), threading.Lock()
        self._check()

    def _check(self) -> None:
        if self.num_channels not in PIL_MODES and not self.is_of_bands:
            raise UserError(
                f"This model takes images of {self.num_channels} channels; image files have {sorted(PIL_MODES)}."
            )
        if hasattr(self.model, "target_normalizer") and not self.model.target_normalizer.check():
            raise UserError(
                'This checkpoint has target_normalization="global_patch" and no patch statistics, so its predictions '
                "cannot be turned into pixels. Give it some with model.set_target_statistics(mean, std)."
            )
        try:
            dtype = torch.float32 if self.is_of_bands else torch.uint8
            self.observe(self.prepare(torch.zeros(self.num_channels, 64, 64, dtype=dtype)))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{type(self.model).__name__} does not take what its image processor ({self._transform}) gives: {error}"
            ) from error

    @property
    def class_names(self) -> list[str]:
        """By number."""
        return [self.model.config.id2label[i] for i in sorted(self.model.config.id2label)]

    def decode(self, path: Path) -> torch.Tensor:
        """The image of a file, `(C, h, w)`: uint8, or of a band model normalised float32, NaN where a pixel is missing.
        Raises ImageDecodingError."""
        content = path.read_bytes()
        if not self.is_of_bands:
            return decode_image(content, self.num_channels)
        form = cast(ViTMAERobustImageProcessor, self.processor).band_form
        named = {"bytes": content, "path": path.name}
        return decode_band_regions(named, form, lambda height, width: [(0, 0, height, width)])[0]

    def prepare(self, image: torch.Tensor) -> torch.Tensor:
        """`(C, h, w)`, as `decode` gives -> `(C, H, W)` of the same type: resized and cropped for the model."""
        return self._transform(image)

    def picture(self, pixels: torch.Tensor) -> torch.Tensor:
        """A prepared image -> `(3, H, W)` in [0, 1]."""
        if not self.is_of_bands:
            return as_rgb(pixels) / 255
        return to_shown(pixels, cast(ViTMAERobustImageProcessor, self.processor).shown_channels)

    def picture_of(self, rebuilt: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """What `reconstruct` makes of a prepared image -> `(3, H, W)` in [0, 1], with the contrast of the image."""
        if not self.is_of_bands:
            return as_rgb(rebuilt)
        config, processor = self.model.config, cast(ViTMAERobustImageProcessor, self.processor)
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (config.image_mean, config.image_std))
        return to_shown((rebuilt - mean) / std, processor.shown_channels, like=pixels)

    def grid_of(self, pixels: torch.Tensor) -> tuple[int, int]:
        """Patches (vertically, horizontally) of a prepared image."""
        return pixels.shape[-2] // self.patch_size[0], pixels.shape[-1] // self.patch_size[1]

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """A prepared image -> `(1, C, H, W)`, the `pixel_values` of the model."""
        if self.is_of_bands:
            # Pre-training models fill missing pixels themselves.
            values = pixels if self.has_decoder else fill_missing_pixels(pixels)
            return values[None].to(self.device)
        settings: dict[str, Any] = {"do_resize": False, "return_tensors": "pt", "input_data_format": "channels_first"}
        if hasattr(self.processor, "do_center_crop"):
            settings["do_center_crop"] = False
        return self.processor(images=pixels, **settings).pixel_values.to(self.device)

    @torch.no_grad()
    def observe(self, pixels: torch.Tensor) -> Observation:
        """`pixels`: a prepared image."""
        values, (rows, columns) = self.normalize(pixels), self.grid_of(pixels)
        outputs = self.model.base_model(values, output_attentions=True)
        if not outputs.attentions:
            raise UserError("its attention has no weights that could be shown")
        # CLS, and in some models a token of distillation or registers, stand before the patches.
        first = outputs.last_hidden_state.shape[1] - rows * columns
        weights = outputs.attentions[-1][0].float().mean(dim=0)[:, first:]
        uses_mean = self.is_classifier and getattr(self.model.config, "use_mean_pooling", False)
        attention = weights[first:].mean(dim=0) if uses_mean else weights[0]
        probabilities = None
        if self.is_classifier:
            probabilities = self.model(values).logits[0].float().softmax(dim=0).cpu()
        return Observation(
            attention.reshape(rows, columns).cpu(), outputs.last_hidden_state[0, first:].float().cpu(), probabilities
        )

    def noise(self, num_patches: int, seed: int) -> torch.Tensor:
        """`(1, L)` in [0, 1), the same for the same seed."""
        return torch.rand(1, num_patches, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def random_mask(self, grid: tuple[int, int], mask_ratio: float, seed: int) -> torch.Tensor:
        """`(rows, columns)`, bool, 1 = masked: as the model masks by this seed's noise. mask_ratio: in [0, 1]."""
        num_patches = grid[0] * grid[1]
        mask = random_masking(self.noise(num_patches, seed), int(num_patches * (1 - mask_ratio)))[2]
        return mask.reshape(grid).bool()

    def reconstruct(self, pixels: torch.Tensor, mask: torch.Tensor, seed: int) -> torch.Tensor:
        """A prepared image with the patches of a mask `(rows, columns)` (1 = masked) filled in: `(C, H, W)`, nominally
        in [0, 1], of a band model in the units of the files, on the CPU. seed: decides, with `mid_mask_ratio`, which
        masked patches get mid-level tokens."""
        # The model masks the patches with the most noise, as many as the ratio says: those of the mask. Half a patch
        # less than there are, because the model rounds the number of visible ones down.
        count, num_patches = int(mask.sum()), mask.numel()
        noise = (self.noise(num_patches, seed) + mask.reshape(1, -1)).to(self.device)
        with self._lock:
            before, self.model.config.mask_ratio = self.model.config.mask_ratio, max(0.0, (count - 0.5) / num_patches)
            try:
                return self.model.reconstruct(self.normalize(pixels), noise=noise)[0].cpu()
            finally:
                self.model.config.mask_ratio = before


def load_inspector(
    name: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    device: torch.device | str = "cpu",
    num_attention_heads: int | None = None,
    decoder_num_attention_heads: int | None = None,
) -> Inspector:
    """The model of a folder, a Hub id or an official file, with the image processor that it brings (else that of MAE's
    evaluation).

    Args:
        name: pre-training model (ours or stock ViT-MAE), encoder or classifier of the ViT family, see `read_config`.
        num_attention_heads, decoder_num_attention_heads: of an official file, see `from_original`.

    Raises ValueError or FileNotFoundError: no such model, another architecture, missing tensors, or see [`Inspector`].
    """
    model: PreTrainedModel
    source, _ = local_model(name, revision, token)
    if Path(source).is_file():
        model = from_original(read_original(source), num_attention_heads, decoder_num_attention_heads).float()
        return Inspector(model, default_processor(model.config), device)
    checkpoint = ModelSource(source, access=Access(token))
    config = cast(PreTrainedConfig, read_config(checkpoint))  # a file was opened above
    if has_head(config):
        model = load_strictly(cast(type[PreTrainedModel], AutoModelForImageClassification), source, token=token)
    elif config.model_type in STOCK_KINDS:
        model, _ = read_stock(checkpoint, config)
    else:
        model, _ = read_encoder(checkpoint)
    processor = read_processor(source, token)
    return Inspector(model, default_processor(model.config) if processor is None else processor, device)
