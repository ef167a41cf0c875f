"""The robustly and effectively optimized masked autoencoder: stock ViT-MAE plus three ingredients.

1. "Drop edge": dropout of the attention probabilities in every decoder block (paper, section 2.1).
2. A target that is normalised with population statistics first, per patch second (section 2.2).
3. Mid-level mask tokens that join inside the encoder (sections 2.3 and 3.4).

Masks are 1 where a patch is masked. B images, L patches an image, D numbers a patch, C channels, H x W pixels.

In the `pixel_values` of a band model (`config.is_band_model`) NaN is a missing pixel: 0, the band's mean, for the
encoder; out of the target's statistics and out of the loss.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import ViTMAEForPreTraining, ViTMAEModel, ViTMAEPreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEAttention,
    ViTMAEDecoderOutput,
    ViTMAEEmbeddings,
    ViTMAEForPreTrainingOutput,
    ViTMAELayer,
    ViTMAEModelOutput,
    ViTMAEPatchEmbeddings,
    build_2d_sinusoidal_position_embedding,
    eager_attention_forward,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_vit_mae_robust import ViTMAERobustConfig, kept_patches, to_pair

# Of the variance under the square root, in the per-patch and in the population step (official code).
TARGET_EPS = 1e-6

# Names of transformers 4.x (as in facebook/vit-mae-base) -> names of 5.x. transformers looks such tables up by the
# name of the class and skips classes it does not know, which would silently leave every block untrained.
_LAYER_RENAMINGS = {
    "attention.query": "q_proj",
    "attention.key": "k_proj",
    "attention.value": "v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
# The look-behind acts on the way back, in saving: without it "decoder_layers." becomes "decoder_encoder.layer.", as in
# files that stock 5.x writes.
_CONVERSIONS: list[Any] = [
    WeightRenaming(r"encoder\.layer\.", r"(?<!decoder_)layers."),
    *[WeightRenaming(source, target) for source, target in _LAYER_RENAMINGS.items()],
]
for _name in ("ViTMAERobustModel", "ViTMAERobustForPreTraining", "ViTMAERobustBackbone"):
    register_checkpoint_conversion_mapping(_name, _CONVERSIONS, overwrite=True)


def _rename_keys_of_4x(module: nn.Module, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Load hook: `load_state_dict` takes 4.x names too. `save_pretrained` writes those, and the Trainer resumes with
    a plain, non-strict `load_state_dict`, which would drop every block with no more than a warning."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key[len(prefix) :].replace("encoder.layer.", "layers.")
        for source, target in _LAYER_RENAMINGS.items():
            if f".{source}." in name:
                name = name.replace(f".{source}.", f".{target}.")
                break
        if prefix + name != key:
            state_dict[prefix + name] = state_dict.pop(key)


def sincos_position_embedding(grid_size: tuple[int, int], dim: int) -> torch.Tensor:
    """Fixed 2-D sine-cosine table of the official MAE code, `(1, 1 + L, dim)`: zeros for CLS, then one row a patch in
    raster order, the first half of it encoding the column (width), the second the row (height)."""
    table = build_2d_sinusoidal_position_embedding(*grid_size, embed_dim=dim, cls_token=True)
    rows, columns = table.chunk(2, dim=-1)
    return torch.cat([columns, rows], dim=-1).unsqueeze(0)


def interpolate_position_embedding(
    position_embedding: torch.Tensor, grid_size: tuple[int, int], new_grid_size: tuple[int, int]
) -> torch.Tensor:
    """Bicubic, in both directions: `(1, 1 + h * w, dim)` for a grid of h x w -> the same for another grid."""
    if grid_size == new_grid_size:
        return position_embedding
    cls_row, patch_rows = position_embedding[:, :1], position_embedding[:, 1:]
    patch_rows = patch_rows.reshape(1, *grid_size, -1).permute(0, 3, 1, 2)
    patch_rows = nn.functional.interpolate(patch_rows, size=new_grid_size, mode="bicubic", align_corners=False)
    return torch.cat([cls_row, patch_rows.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def random_masking(noise: torch.Tensor, num_visible: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort the patches of each image by noise; the first `num_visible` stay visible.

    Args:
        noise (`(B, L)`): one number a patch.
        num_visible: patches that stay.

    Returns:
        `ids_shuffle` `(B, L)`: patch indices, visible ones first; `ids_restore` `(B, L)`: its inverse permutation;
        `mask` `(B, L)`, float: 0 visible, 1 masked.
    """
    ids_shuffle = noise.argsort(dim=1)
    places = torch.arange(noise.shape[1], device=noise.device).expand_as(ids_shuffle)
    ids_restore = torch.empty_like(ids_shuffle).scatter_(1, ids_shuffle, places)
    return ids_shuffle, ids_restore, (ids_restore >= num_visible).to(torch.float32)


def keep_for_decoder(
    encoded: torch.Tensor, ids_shuffle: torch.Tensor, num_masked: int, keep_ratio: float
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Leave masked patches out of what the decoder gets (`decoder_keep_ratio`).

    Of those with mid-level tokens and of the others, the first ones stay (`kept_patches`). They are in the order of
    their noise, so these are a random part of each, for which nothing more has to be drawn.

    Args:
        encoded (`(B, 1 + n, d)`): CLS, the visible patches and the mid-level tokens.
        ids_shuffle (`(B, L)`): patch indices: visible, with mid-level tokens, others.
        num_masked: the last ones of them.

    Returns:
        `encoded` `(B, 1 + n', d)` and `ids_shuffle` `(B, L')` without what is left out; how many masked patches stay,
        the last ones.
    """
    num_patches, num_encoded = ids_shuffle.shape[1], encoded.shape[1] - 1
    num_missing = num_patches - num_encoded
    num_mid, num_missing = kept_patches(num_masked - num_missing, num_missing, keep_ratio)
    num_kept_encoded = num_patches - num_masked + num_mid
    ids_missing = ids_shuffle[:, num_encoded : num_encoded + num_missing]
    ids_kept = torch.cat([ids_shuffle[:, :num_kept_encoded], ids_missing], dim=1)
    return encoded[:, : 1 + num_kept_encoded], ids_kept, num_mid + num_missing


class TargetNormalizer(nn.Module):
    """Mean and standard deviation of each of the D numbers of a patch over the data set (paper, eq. 3). Buffers `mean`
    and `std`, float32, `(D,)`; NaN until `set_statistics` or a checkpoint fills them.

    They are those of raw pixels in [0, 1]; in a band model those of normalised pixel values, in which float32 has the
    same resolution whatever the units of the files, and in which the epsilon is relative to the band's deviation."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, dim: int):
        super().__init__()
        # Not of the default type, which is that of the model while transformers builds it.
        self.register_buffer("mean", torch.full((dim,), float("nan"), dtype=torch.float32))
        self.register_buffer("std", torch.full((dim,), float("nan"), dtype=torch.float32))
        # A Python flag, because looking at the buffers in every step would make the GPU wait and break compilation.
        self.ready = False
        self.register_load_state_dict_post_hook(TargetNormalizer._check_after_load)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "TargetNormalizer":
        """`.to()`, `.half()` and their kin may move the statistics, but not lower their type."""
        kept = {"mean": self.mean, "std": self.std}
        super()._apply(fn, recurse)
        for name, values in kept.items():
            if getattr(self, name).dtype != values.dtype:
                setattr(self, name, values.to(getattr(self, name).device))
        return self

    def _check_after_load(self, incompatible_keys: Any) -> None:
        self.check()

    def check(self) -> bool:
        self.ready = self.mean.device.type != "meta" and bool(torch.isfinite(self.mean).all() & (self.std >= 0).all())
        return self.ready

    def set_statistics(self, mean: Any, std: Any) -> None:
        for name, values in (("mean", mean), ("std", std)):
            values = torch.as_tensor(values)
            if values.shape != self.mean.shape:
                raise ValueError(
                    f"Target statistics: {name} has shape {tuple(values.shape)}, but the model needs "
                    f"{tuple(self.mean.shape)} (patch height * patch width * channels). They were computed for "
                    "another patch size or number of channels; compute them again with "
                    "`python -m hf_mae_robust statistics`."
                )
            if not torch.isfinite(values).all() or (name == "std" and (values < 0).any()):
                raise ValueError(f"Target statistics: {name} holds values that are not finite or negative.")
            getattr(self, name).copy_(values)
        self.ready = True

    def _scale(self) -> torch.Tensor:
        if not self.ready and not self.check():
            raise ValueError(
                'target_normalization="global_patch" needs the mean and standard deviation of the patches of your data '
                "set, and this model has none yet. With run_pretrain.py: --target_statistics auto. From Python: "
                "compute them with `python -m hf_mae_robust statistics --dataset_name ... --output stats.safetensors` "
                "and pass them to model.set_target_statistics(mean, std)."
            )
        return torch.sqrt(self.std.float() ** 2 + TARGET_EPS)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """`(B, L, D)` raw patches -> normalised ones."""
        return (patches - self.mean.float()) / self._scale()

    def undo(self, patches: torch.Tensor) -> torch.Tensor:
        """`(B, L, D)` normalised patches -> raw ones."""
        return patches * self._scale() + self.mean.float()


def select_patches(pixel_values: torch.Tensor, patch_size: tuple[int, int], ids: torch.Tensor) -> torch.Tensor:
    """Cut out some patches of each image, `ids` `(B, n)`: `(B, C, H, W)` -> `(B, n, patch height, patch width, C)`."""
    batch_size, channels, height, width = pixel_values.shape
    p, q = patch_size
    patches = pixel_values.reshape(batch_size, channels, height // p, p, width // q, q).permute(0, 2, 4, 3, 5, 1)
    rows = torch.arange(batch_size, device=ids.device).unsqueeze(1)
    return patches[rows, ids // (width // q), ids % (width // q)]


def fill_missing(values: torch.Tensor) -> torch.Tensor:
    """0, the band's mean, instead of NaN."""
    return values.masked_fill(values.isnan(), 0.0)


def mean_and_variance(values: torch.Tensor, dim: int, unbiased: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Over one dimension, which is kept, of the numbers that are not NaN. Without any the mean is 0; with too few for a
    variance, that is 0."""
    count = values.isnan().logical_not().sum(dim=dim, keepdim=True)
    mean = values.nansum(dim=dim, keepdim=True) / count.clamp(min=1)
    squares = (values - mean).square().nansum(dim=dim, keepdim=True)
    return mean, squares / (count - int(unbiased)).clamp(min=1)


class PatchProjection(nn.Conv2d):
    """A convolution whose stride is its kernel's size, so that it is a linear layer on each patch."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(N, C, H, W)` -> `(N, d, rows, columns)`."""
        if tuple(pixel_values.shape[-2:]) != self.kernel_size:
            return super().forward(pixel_values)
        # Inputs of one patch each: PyTorch's convolution takes 7 times as long for them on a CPU (ViT-B, 8 x 49
        # patches, forward and backward), and 1.4 times as long if the patches lie side by side in one image.
        tokens = nn.functional.linear(pixel_values.flatten(1), self.weight.flatten(1), self.bias)
        return tokens[:, :, None, None]


class ViTMAERobustPatchEmbeddings(ViTMAEPatchEmbeddings):
    """As stock's, for all patches or some of them.

    It and its projection are always called as modules: FSDP2 gathers their weights, accelerate brings them to the
    device, LoRA adds to their output and hooks run only then.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]

    def __init__(self, config: ViTMAERobustConfig):
        nn.Module.__init__(self)  # stock's would draw the weights of a projection that is replaced at once
        self.image_size, self.patch_size = to_pair(config.image_size), to_pair(config.patch_size)
        self.num_patches, self.num_channels = config.num_patches, config.num_channels
        self.projection = PatchProjection(config.num_channels, config.hidden_size, self.patch_size, self.patch_size)

    def forward(self, pixel_values: torch.Tensor, ids_visible: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, C, H, W)` -> patch tokens `(B, L, d)`; with `ids_visible` `(B, n)` those of these patches only, in that
        order, `(B, n, d)`. Images of another type than the weights are cast: uint8 images become float32 ones after
        DeepSpeed has cast all inputs."""
        dtype = self.projection.weight.dtype
        if ids_visible is None:
            return super().forward(pixel_values.to(dtype))
        patches = select_patches(pixel_values, self.patch_size, ids_visible).to(dtype)
        tokens = self.projection(patches.permute(0, 1, 4, 2, 3).flatten(0, 1))
        # Not -1: there may be no visible patch, and so no element to count.
        return tokens.view(*ids_visible.shape, tokens.shape[1])


class ViTMAERobustEmbeddings(ViTMAEEmbeddings):
    """Patch, position and CLS embeddings; the model decides which patches are masked."""

    patch_embeddings: ViTMAERobustPatchEmbeddings

    def __init__(self, config: ViTMAERobustConfig):
        nn.Module.__init__(self)  # see ViTMAERobustPatchEmbeddings
        dim = config.hidden_size
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embeddings = ViTMAERobustPatchEmbeddings(config)
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.num_patches + 1, dim), requires_grad=False)
        self.patch_size, self.image_size = config.patch_size, self.patch_embeddings.image_size
        self.grid_size = config.grid_size

    def check(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool) -> tuple[int, int]:
        """Number of patches (vertically, horizontally) of images that fit; ValueError of others."""
        channels, height, width = pixel_values.shape[-3:]
        patch_height, patch_width = to_pair(self.patch_size)
        num_channels = self.patch_embeddings.num_channels
        if num_channels != self.config.num_channels:
            raise ValueError(
                f"config.num_channels={self.config.num_channels} was changed after the model was built for "
                f"{num_channels} channels. Build another model from the changed configuration."
            )
        if channels != num_channels:
            raise ValueError(f"Images of {channels} channels, but the model has num_channels={num_channels}.")
        if interpolate_pos_encoding:
            if height % patch_height or width % patch_width or not height or not width:
                raise ValueError(
                    f"Images of {height} x {width} pixels are not a multiple of patch_size={self.patch_size}."
                )
        elif (height, width) != to_pair(self.config.image_size):
            raise ValueError(
                f"Images of {height} x {width} pixels, but the model was built for image_size="
                f"{self.config.image_size}. Resize them, or pass interpolate_pos_encoding=True."
            )
        return height // patch_height, width // patch_width

    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        ids_visible: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`(B, C, H, W)` -> CLS token `(1, 1, d)`, patch tokens `(B, L, d)` and the positions of all patches `(L, d)`.
        With `ids_visible` `(B, n)` only these patches are projected: tokens `(B, n, d)`, in that order."""
        grid_size = self.check(pixel_values, interpolate_pos_encoding)
        position_embeddings = interpolate_position_embedding(self.position_embeddings, self.grid_size, grid_size)
        cls_token, positions = self.cls_token + position_embeddings[:, :1], position_embeddings[0, 1:]
        tokens = self.patch_embeddings(pixel_values, ids_visible)
        own_positions = positions if ids_visible is None else positions[ids_visible]
        return cls_token, tokens + own_positions, positions


class SharedTokens(NamedTuple):
    """Tokens of masked patches: the rows `ids` `(B, m)` of `table` `(L, d)`.

    Such a token is an embedding and a position, the same for all images, so in the first block that sees them their
    norm, query, key and value are computed once for all images of the batch, on the table.
    """

    table: torch.Tensor
    ids: torch.Tensor

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "SharedTokens":
        """`function` of the tokens, for a function that treats each token by itself."""
        return SharedTokens(function(self.table), self.ids)

    def tokens(self) -> torch.Tensor:
        """`(B, m, d)`."""
        return nn.functional.embedding(self.ids, self.table)


def last_tokens(tokens: torch.Tensor, count: int | None) -> torch.Tensor:
    """The last `count` of `(B, n, d)`; None: all."""
    return tokens if count is None else tokens[:, -count:]


def refuse_attention_mask(attention_mask: torch.Tensor | None) -> None:
    """Stock's classes have the argument, so callers pass it; it has no use among the patches of an image."""
    if attention_mask is not None:
        raise ValueError("attention_mask: this model attends to all patches that it is given, and takes None only.")


class ViTMAERobustAttention(ViTMAEAttention):
    """`dropout(softmax(Q K^T / sqrt(d_k))) V` in several heads (paper, section 2.1), for the work that is needed: see
    `ViTMAERobustLayer`. Only the decoder's configuration has a dropout above 0, and only training applies it."""

    def __init__(self, config: ViTMAERobustConfig):
        super().__init__(config)
        # The official code has one layer for all three, of which Xavier's bound counts all outputs: sqrt(6 / 4d) for
        # each in the place of sqrt(6 / 2d).
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            fan_in, fan_out = projection.in_features, projection.out_features
            projection.init_gain = ((fan_in + fan_out) / (fan_in + 3 * fan_out)) ** 0.5

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        shared: SharedTokens | None = None,
        num_outputs: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(B, n, d)` and m shared tokens -> `(B, n + m or num_outputs, d)`, and the probabilities from "eager"."""
        query = self._split_heads(self._queries(hidden_states, shared, num_outputs))
        key = self._split_heads(self._project(self.k_proj, hidden_states, shared))
        value = self._split_heads(self._project(self.v_proj, hidden_states, shared))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, probabilities = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.flatten(2)), probabilities

    def _queries(
        self, hidden_states: torch.Tensor, shared: SharedTokens | None, num_outputs: int | None
    ) -> torch.Tensor:
        if shared is None:
            return self.q_proj(last_tokens(hidden_states, num_outputs))
        return last_tokens(self._project(self.q_proj, hidden_states, shared), num_outputs)

    @staticmethod
    def _project(projection: nn.Module, hidden_states: torch.Tensor, shared: SharedTokens | None) -> torch.Tensor:
        projected = projection(hidden_states)
        return projected if shared is None else torch.cat([projected, shared.map(projection).tokens()], dim=1)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """`(B, n, d)` -> `(B, heads, n, d / heads)`."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class ViTMAERobustLayer(ViTMAELayer):
    """As stock's block, for the work that is needed.

    shared: tokens that join the others in this block, behind them.
    num_outputs: give only the last N tokens; the others are keys and values for them. Default: all.
    """

    def __init__(self, config: ViTMAERobustConfig):
        super().__init__(config)
        self.attention = ViTMAERobustAttention(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        shared: SharedTokens | None = None,
        num_outputs: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """`(B, n, d)` and m shared tokens -> `(B, n + m or num_outputs, d)`."""
        normalized, normalized_shared = self.layernorm_before(hidden_states), None
        if shared is not None:
            normalized_shared = shared.map(self.layernorm_before)
            hidden_states = torch.cat([hidden_states, shared.tokens().to(hidden_states.dtype)], dim=1)
        attended, _ = self.attention(
            normalized, attention_mask, shared=normalized_shared, num_outputs=num_outputs, **kwargs
        )
        hidden_states = last_tokens(hidden_states, num_outputs) + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.layernorm_after(hidden_states)))


class ViTMAERobustDecoder(nn.Module):
    """As stock's decoder, with its own attention dropout, 2-D interpolation and grids that need not be square."""

    def __init__(self, config: ViTMAERobustConfig):
        super().__init__()
        # Read by the attention modules: the decoder's sizes, and the drop edge of section 2.1, which is the decoder's
        # alone.
        self.config = deepcopy(config)
        self.config.hidden_size = config.decoder_hidden_size
        self.config.num_hidden_layers = config.decoder_num_hidden_layers
        self.config.num_attention_heads = config.decoder_num_attention_heads
        self.config.intermediate_size = config.decoder_intermediate_size
        self.config.attention_probs_dropout_prob = config.decoder_attention_probs_dropout_prob

        dim = config.decoder_hidden_size
        self.grid_size = config.grid_size
        self.decoder_embed = nn.Linear(config.hidden_size, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, config.num_patches + 1, dim), requires_grad=False)
        self.decoder_layers = nn.ModuleList(
            [ViTMAERobustLayer(self.config) for _ in range(config.decoder_num_hidden_layers)]
        )
        self.decoder_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.decoder_pred = nn.Linear(dim, config.patch_dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        ids_shuffle: torch.Tensor,
        grid_size: tuple[int, int] | None = None,
        num_outputs: int | None = None,
    ) -> ViTMAEDecoderOutput:
        """
        Args:
            hidden_states (`(B, 1 + n, d)`): the encoder's output: CLS, then the first n patches in shuffled order.
            ids_shuffle (`(B, L)`): patch indices, those of `hidden_states` first. Patches that are not among them are
                left out.
            grid_size: patches (vertically, horizontally), where it is not that of `config.image_size`.
            num_outputs: predict only the last N patches in shuffled order. Default: all.

        Returns:
            `logits` `(B, num_outputs or L, D)`, in shuffled order.
        """
        positions = interpolate_position_embedding(self.decoder_pos_embed, self.grid_size, grid_size or self.grid_size)
        num_encoded, num_patches = hidden_states.shape[1] - 1, ids_shuffle.shape[1]
        ids_encoded, ids_missing = ids_shuffle[:, :num_encoded], ids_shuffle[:, num_encoded:]
        # Self-attention does not care about the order of tokens, so they stay in shuffled order: CLS, the encoded
        # patches, and the mask token at the places of the others, which joins them in the first block.
        hidden_states = self.decoder_embed(hidden_states) + self._positions_of_encoded(positions, ids_encoded)
        mask_tokens = SharedTokens(self.mask_token[0] + positions[0, 1:], ids_missing)
        last = len(self.decoder_layers) - 1
        for index, layer in enumerate(self.decoder_layers):
            hidden_states = layer(
                hidden_states,
                shared=mask_tokens if index == 0 else None,
                # Of the last block, nothing but the prediction's tokens is needed.
                num_outputs=(num_outputs or num_patches) if index == last else None,
            )
        return ViTMAEDecoderOutput(logits=self.decoder_pred(self.decoder_norm(hidden_states)))

    @staticmethod
    def _positions_of_encoded(positions: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """`(1, 1 + L, d)` -> those of CLS and of the patches `ids` `(B, n)`: `(B, 1 + n, d)`."""
        return torch.cat([positions[:, :1].expand(len(ids), -1, -1), positions[0, 1:][ids]], dim=1)


@dataclass
class ViTMAERobustModelOutput(ViTMAEModelOutput):
    """Stock's output, and `ids_shuffle` `(B, L)`: patch indices, visible ones first."""

    ids_shuffle: torch.LongTensor | None = None


@contextmanager
def class_before_sharding(model: nn.Module) -> Iterator[None]:
    """While entered, the model is of its own class again. FSDP2 makes it one of a class FSDP<Name>, which PyTorch
    defines: transformers would copy PyTorch's file next to the weights, and name that class in config.json."""
    sharded = type(model)
    name = sharded.__name__.removeprefix("FSDP")
    model.__class__ = next((cls for cls in sharded.__mro__ if cls.__name__ == name), sharded)
    try:
        yield
    finally:
        model.__class__ = sharded


class ViTMAERobustPreTrainedModel(ViTMAEPreTrainedModel):
    """Initialisation, loading and saving that all models share."""

    config: ViTMAERobustConfig
    _has_fixed_positions = True
    # Not the embeddings or the decoder, which hold modules that accelerate's FSDP2 shards by themselves.
    _no_split_modules = ["ViTMAERobustLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As the official MAE does (RECIPES of He et al. 2022, models_mae.py). Stock leaves the position embeddings of
        encoder and decoder at zero and draws linear weights from normal(0.02)."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight, gain=getattr(module, "init_gain", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            # As the linear layer that it is, on the flattened kernel; the bias keeps PyTorch's own default.
            bound = (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5
            init.uniform_(module.weight, -bound, bound)
            bound = module.weight[0].numel() ** -0.5
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ViTMAERobustEmbeddings):
            init.normal_(module.cls_token, std=std)
            init.copy_(module.position_embeddings, sincos_position_embedding(module.grid_size, self.config.hidden_size))
        elif isinstance(module, ViTMAERobustDecoder):
            init.normal_(module.mask_token, std=std)
            init.copy_(
                module.decoder_pos_embed, sincos_position_embedding(module.grid_size, self.config.decoder_hidden_size)
            )
        elif isinstance(module, TargetNormalizer):
            init.constant_(module.mean, float("nan"))
            init.constant_(module.std, float("nan"))
        elif isinstance(module, ViTMAERobustModel) and module.config.mid_mask_ratio > 0:
            init.normal_(module.mid_mask_token, std=std)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. The position embeddings come back frozen: loading makes every parameter trainable, and
        continued pre-training would move the fixed tables. So do positions that an encoder of another kind has learned:
        `requires_grad_(True)` on `embeddings.position_embeddings` trains them on, as `run_pretrain.py` does."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # output_loading_info=True
        if model._has_fixed_positions:
            model.freeze_position_embeddings()
        for module in model.modules():
            if isinstance(module, TargetNormalizer):
                module.check()
        return loaded

    def freeze_position_embeddings(self) -> None:
        """Training leaves the position embeddings as they are."""
        for name, parameter in self.named_parameters():
            if name.endswith(("embeddings.position_embeddings", "decoder.decoder_pos_embed")):
                parameter.requires_grad_(False)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. config.json names every Auto class of this family, whichever of them is saved, so that
        `AutoModel` and pipelines find the encoder in a pre-training checkpoint with `trust_remote_code=True`."""
        module = __name__.split(".")[-1]
        self.config.auto_map = {
            "AutoConfig": "configuration_vit_mae_robust.ViTMAERobustConfig",
            "AutoBackbone": f"{module}.ViTMAERobustBackbone",
            "AutoModel": f"{module}.ViTMAERobustModel",
            "AutoModelForPreTraining": f"{module}.ViTMAERobustForPreTraining",
        }
        with class_before_sharding(self):
            return super().save_pretrained(save_directory, *args, **kwargs)


class ViTMAERobustModel(ViTMAERobustPreTrainedModel, ViTMAEModel):
    """The encoder. Without `mask_ratio` it masks nothing: features are complete, in raster order and deterministic."""

    embeddings: ViTMAERobustEmbeddings
    # The decoder and the target statistics of a pre-training checkpoint are left behind on purpose.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^target_normalizer\."]

    def __init__(self, config: ViTMAERobustConfig):
        # Not ViTMAEModel's: it would build and initialise embeddings that are replaced at once.
        ViTMAEPreTrainedModel.__init__(self, config)
        self.embeddings = ViTMAERobustEmbeddings(config)
        self.layers = nn.ModuleList([ViTMAERobustLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.mid_mask_ratio > 0:
            self.mid_mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.register_load_state_dict_pre_hook(_rename_keys_of_4x)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        mask_ratio: float | None = None,
        interpolate_pos_encoding: bool = False,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ViTMAERobustModelOutput:
        """
        Args:
            pixel_values (`(B, C, H, W)`): images normalised with `config.image_mean` and `config.image_std`; of a
                band model NaN where a pixel is missing.
            noise (`(B, L)`, *optional*): decides both draws of the masking; default: uniform random numbers. The
                patches with the smallest values stay visible; the next ones get mid-level tokens. Not used when
                nothing is masked.
            mask_ratio (in [0, 1), *optional*): share of the patches to mask, `L - int(L * (1 - mask_ratio))` of
                them. Default: none.
            interpolate_pos_encoding: take images of another size than `config.image_size`.
            attention_mask: None, for stock's signature.

        Returns:
            `last_hidden_state` `(B, 1 + n, d)`: CLS, then the n patches that were encoded: all L in raster order
            without `mask_ratio`; with it the visible ones in the order of their noise, followed by the mid-level
            tokens, if any. `mask` `(B, L)`: 1 = masked. `ids_shuffle`, `ids_restore` `(B, L)`:
            see `random_masking`.

        Raises:
            ValueError: the size or the channels of the images, or the shape of the noise, do not fit; an
                `attention_mask`.
        """
        refuse_attention_mask(attention_mask)
        batch_size, (rows, columns) = len(pixel_values), self.embeddings.check(pixel_values, interpolate_pos_encoding)
        if self.config.is_band_model:
            pixel_values = fill_missing(pixel_values)
        num_patches = rows * columns
        ids_visible = mid_tokens = None
        if mask_ratio is None:
            ids_shuffle = torch.arange(num_patches, device=pixel_values.device).expand(batch_size, -1)
            ids_restore = ids_shuffle
            mask = torch.zeros(batch_size, num_patches, device=pixel_values.device)
        else:
            if not 0.0 <= mask_ratio < 1.0:
                raise ValueError(f"mask_ratio={mask_ratio!r}: must lie in [0, 1).")
            if noise is None:
                noise = torch.rand(batch_size, num_patches, device=pixel_values.device)
            elif noise.shape != (batch_size, num_patches):
                raise ValueError(
                    f"noise has shape {tuple(noise.shape)}, needs (batch size, patches) = {(batch_size, num_patches)}."
                )
            num_visible = int(num_patches * (1 - mask_ratio))
            ids_shuffle, ids_restore, mask = random_masking(noise, num_visible)
            ids_visible = ids_shuffle[:, :num_visible]

        cls_token, tokens, positions = self.embeddings(pixel_values, interpolate_pos_encoding, ids_visible)
        if mask_ratio is not None and self.config.mid_mask_ratio > 0:
            num_mid = int(num_patches * self.config.mid_mask_ratio)
            ids_mid = ids_shuffle[:, num_visible : num_visible + num_mid]
            mid_tokens = SharedTokens(self.mid_mask_token[0] + positions, ids_mid)
        hidden_states = torch.cat([cls_token.expand(batch_size, -1, -1).to(tokens.dtype), tokens], dim=1)
        for index, layer in enumerate(self.layers):
            joining = mid_tokens if index == self.config.mid_mask_layer_idx else None
            hidden_states = layer(hidden_states, None, shared=joining, **kwargs)
        return ViTMAERobustModelOutput(
            last_hidden_state=self.layernorm(hidden_states),
            # transformers declares all three as LongTensor, the float mask too.
            mask=mask,  # type: ignore[arg-type]
            ids_restore=ids_restore,  # type: ignore[arg-type]
            ids_shuffle=ids_shuffle,  # type: ignore[arg-type]
        )


class ViTMAERobustBackbone(BackboneMixin, ViTMAERobustPreTrainedModel):
    """The encoder as a backbone of transformers' kind: feature maps of the hidden states that `config.out_indices`
    names, of unmasked images of any size, for heads such as `UperNetForSemanticSegmentation`.

    It loads from pre-training checkpoints and encoders, and leaves behind what only masking needs. Its position
    embeddings train, as in MAE's fine-tuning; `freeze_position_embeddings` stops that."""

    # The decoder, the target statistics and the mid-level mask token are left behind on purpose.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^target_normalizer\.", r"(^|\.)mid_mask_token$"]
    # A head that contains the backbone loads all parameters trainable, so they are that from the start.
    _has_fixed_positions = False

    def __init__(self, config: ViTMAERobustConfig):
        # Once more: the number of blocks may have been changed since, and the backbone looks at nothing else.
        config.set_output_features_output_indices(config._out_features, config._out_indices)
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(self.stage_names)
        self.embeddings = ViTMAERobustEmbeddings(config)
        self.embeddings.position_embeddings.requires_grad_(True)
        self.layers = nn.ModuleList([ViTMAERobustLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.register_load_state_dict_pre_hook(_rename_keys_of_4x)
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = True,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        """
        Args:
            pixel_values (`(B, C, H, W)`): images normalised with `config.image_mean` and `config.image_std`, whose
                sizes are multiples of the patch size; of a band model NaN where a pixel is missing.
            interpolate_pos_encoding: False refuses images of another size than `config.image_size`. Callers of
                backbones do not pass it, so that here, other than in the encoder, it is on.
            attention_mask: None, as in the encoder.

        Returns:
            `feature_maps`: one for each of `out_features`, `(B, d, H / patch height, W / patch width)`, or
            `(B, 1 + L, d)` with `config.reshape_hidden_states=False`; after the final norm with
            `config.apply_layernorm`. `hidden_states` `(B, 1 + L, d)`, before that norm, and `attentions` on request.

        Raises:
            ValueError: the size or the channels of the images do not fit; an `attention_mask`.
        """
        refuse_attention_mask(attention_mask)
        grid_size = self.embeddings.check(pixel_values, interpolate_pos_encoding)
        if self.config.is_band_model:
            pixel_values = fill_missing(pixel_values)
        cls_token, tokens, _ = self.embeddings(pixel_values, interpolate_pos_encoding)
        hidden_states = torch.cat([cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        wanted = set(self.out_features)
        feature_maps = []
        for index, stage in enumerate(self.stage_names):
            if index > 0:
                hidden_states = self.layers[index - 1](hidden_states, None, **kwargs)
            if stage in wanted:
                feature_maps.append(self._feature_map(hidden_states, grid_size))
        # transformers declares a tuple of one.
        return BackboneOutput(feature_maps=tuple(feature_maps))  # type: ignore[arg-type]

    def _feature_map(self, hidden_states: torch.Tensor, grid_size: tuple[int, int]) -> torch.Tensor:
        """`(B, 1 + L, d)` -> `(B, d, h, w)`, or the tokens."""
        if self.config.apply_layernorm:
            hidden_states = self.layernorm(hidden_states)
        if not self.config.reshape_hidden_states:
            return hidden_states
        return hidden_states[:, 1:].transpose(1, 2).unflatten(-1, grid_size).contiguous()


class ViTMAERobustForPreTraining(ViTMAERobustPreTrainedModel, ViTMAEForPreTraining):
    """Encoder, decoder and the reconstruction loss."""

    vit: ViTMAERobustModel
    decoder: ViTMAERobustDecoder  # type: ignore[assignment]  # is not a subclass of stock's
    target_normalizer: TargetNormalizer

    # The loss is a mean over the batch: the Trainer has to divide it by the accumulation steps. It concludes the
    # opposite from the **kwargs of `forward`.
    accepts_loss_kwargs = False

    def __init__(self, config: ViTMAERobustConfig):
        ViTMAEPreTrainedModel.__init__(self, config)  # see ViTMAERobustModel
        self.vit = ViTMAERobustModel(config)
        self.decoder = ViTMAERobustDecoder(config)
        if config.target_normalization == "global_patch":
            self.target_normalizer = TargetNormalizer(config.patch_dim)
            self._keep_in_fp32_modules_strict = ["target_normalizer"]
        self.register_load_state_dict_pre_hook(_rename_keys_of_4x)
        self.post_init()

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers, for the decoder too."""
        super().set_attn_implementation(attn_implementation, *args, **kwargs)
        self.decoder.config._attn_implementation_internal = self.config._attn_implementation

    def set_target_statistics(self, mean: Any, std: Any) -> None:
        """Fill the statistics of `target_normalization="global_patch"`: `mean`, `std` of shape `(D,)`, of raw pixels
        in [0, 1]; of a band model in the units of the files. They are saved with the weights. Raises ValueError where
        the shape or the setting does not fit."""
        if self.config.target_normalization != "global_patch":
            raise ValueError(
                f'target_normalization="{self.config.target_normalization}" uses no patch statistics; build the model '
                'with target_normalization="global_patch".'
            )
        if self.config.is_band_model:
            mean, std = (torch.as_tensor(values).double() for values in (mean, std))
            if mean.shape == std.shape == (self.config.patch_dim,):  # others are refused below
                device = mean.device
                shift = torch.tensor(self.config.image_mean, dtype=torch.float64, device=device)
                scale = torch.tensor(self.config.image_std, dtype=torch.float64, device=device)
                by_channel = (-1, self.config.num_channels)
                mean = ((mean.unflatten(0, by_channel) - shift) / scale).flatten()
                std = (std.to(device).unflatten(0, by_channel) / scale).flatten()
        self.target_normalizer.set_statistics(mean, std)

    def patchify(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """`(B, C, H, W)` -> `(B, L, D)`; the numbers of a patch run over its rows, columns, then channels. Takes any
        size that is a multiple of the patch size; `interpolate_pos_encoding` is there for stock's signature only."""
        batch_size, channels, height, width = pixel_values.shape
        (p, q), config = to_pair(self.config.patch_size), self.config
        if channels != config.num_channels:
            raise ValueError(f"Images of {channels} channels, but the model has num_channels={config.num_channels}.")
        if height % p or width % q:
            raise ValueError(
                f"Images of {height} x {width} pixels are not a multiple of patch_size={config.patch_size}."
            )
        patches = pixel_values.reshape(batch_size, channels, height // p, p, width // q, q)
        return patches.permute(0, 2, 4, 3, 5, 1).reshape(batch_size, (height // p) * (width // q), p * q * channels)

    def unpatchify(
        self, patchified_pixel_values: torch.Tensor, original_image_size: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Inverse of `patchify`: `(B, L, D)` -> `(B, C, H, W)`, for images of `original_image_size` (height, width),
        default `config.image_size`."""
        batch_size, num_patches, _ = patchified_pixel_values.shape
        p, q = to_pair(self.config.patch_size)
        height, width = to_pair(original_image_size if original_image_size is not None else self.config.image_size)
        if (height // p) * (width // q) != num_patches:
            raise ValueError(f"{num_patches} patches do not make up an image of {height} x {width} pixels.")
        images = patchified_pixel_values.reshape(batch_size, height // p, width // q, p, q, self.config.num_channels)
        return images.permute(0, 5, 1, 3, 2, 4).reshape(batch_size, -1, height // p * p, width // q * q)

    def _image_statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        mean = torch.tensor(self.config.image_mean, device=device).view(-1, 1, 1)
        return mean, torch.tensor(self.config.image_std, device=device).view(-1, 1, 1)

    def _raw_units(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Offset and scale `(C,)` that turn normalised pixels into those before the population step. None: the step
        works on normalised ones.

        They are pixels in [0, 1], or of a band model the units of the files in the affine map of "none". That map and
        "global_rgb" are affine in each channel, so per-channel statistics of a patch cancel them: they are not made at
        all, since in a nearly flat patch of a channel with a large offset float32 would round the structure away."""
        config = self.config
        if config.target_normalization == "global_rgb":
            return None
        if config.target_normalization == "none" and config.norm_pix_loss and config.norm_pix_axis == "channel":
            return None
        if not config.is_band_model:
            mean, std = self._image_statistics(device)
            return mean.flatten(), std.flatten()
        if config.target_normalization == "global_patch":
            return None
        # In float64, and only then rounded: offsets may be thousands of deviations.
        center, scale = config.pooled_statistics
        offsets = [(mean - center) / scale for mean in config.image_mean]
        scales = [std / scale for std in config.image_std]
        return torch.tensor(offsets, device=device), torch.tensor(scales, device=device)

    def _population_target(self, pixel_values: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """The target before the per-patch step, `(B, L or n, D)`, float32; see `compute_target`."""
        if ids is None:
            target = self.patchify(pixel_values).float()
        else:
            target = select_patches(pixel_values, to_pair(self.config.patch_size), ids).float().flatten(2)
        if (units := self._raw_units(target.device)) is not None:
            offset, scale = units
            target = (target.unflatten(-1, (-1, self.config.num_channels)) * scale + offset).flatten(2)
        return self.target_normalizer(target) if self.config.target_normalization == "global_patch" else target

    def _patch_statistics(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of each patch, or of each of its channels: `(B, L or n, 1 or D)`."""
        values, dim = target, -1
        if by_channel := self.config.norm_pix_axis == "channel":
            values, dim = target.unflatten(-1, (-1, self.config.num_channels)), -2
        if self.config.is_band_model:
            mean, variance = mean_and_variance(values, dim, self.config.norm_pix_unbiased)
        else:
            variance = values.var(dim=dim, keepdim=True, unbiased=self.config.norm_pix_unbiased)
            mean = values.mean(dim=dim, keepdim=True)
        std = torch.sqrt(variance + TARGET_EPS)
        if by_channel:
            mean, std = (value.expand_as(values).flatten(2) for value in (mean, std))
        return mean, std

    @torch.no_grad()
    def compute_target(self, pixel_values: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """What the decoder has to predict, `(B, L, D)` in float32, for `(B, C, H, W)` normalised images (paper,
        section 2.2: population statistics first, per-patch normalisation second); with `ids` `(B, n)` for these
        patches only, `(B, n, D)`.

        NaN where a pixel of a band model is missing: such numbers are in no patch's mean and variance. A patch of one
        number has variance 0. See `reconstruction_error` for a loss of such targets."""
        target = self._population_target(pixel_values, ids)
        if self.config.norm_pix_loss:
            mean, std = self._patch_statistics(target)
            target = (target - mean) / std
        return target

    def target_of_mean(self) -> torch.Tensor:
        """The target `(D,)` of an image that is the population's mean everywhere: 0 where it is normalised, the mean
        of each channel in raw pixels. Its loss is the one to beat."""
        config, units = self.config, self._raw_units(self.device)
        if config.norm_pix_loss or config.target_normalization == "global_patch" or units is None:
            return torch.zeros(config.patch_dim, device=self.device)
        return units[0].repeat(config.patch_dim // config.num_channels)

    @torch.no_grad()
    def invert_target(self, patches: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Predictions `(B, L, D)` back to raw pixels `(B, C, H, W)`: nominally in [0, 1], of a band model in the units
        of the files. Undoing the per-patch step takes each patch's mean and variance from the true image
        `pixel_values`: the model does not predict them. Where all of a true patch is missing, the result is flat."""
        patches = patches.float()
        if self.config.norm_pix_loss:
            mean, std = self._patch_statistics(self._population_target(pixel_values))
            patches = patches * std + mean
        if self.config.target_normalization == "global_patch":
            patches = self.target_normalizer.undo(patches)
        units = self._raw_units(patches.device)
        if units is not None and self.config.is_band_model:
            offset, scale = units
            patches = ((patches.unflatten(-1, (-1, self.config.num_channels)) - offset) / scale).flatten(2)
        images = self.unpatchify(patches, pixel_values.shape[-2:])
        if units is None or self.config.is_band_model:
            mean, std = self._image_statistics(images.device)
            images = images * std + mean
        return images

    def reconstruction_error(self, predicted: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared errors of predictions `(B, n, D)`, for a loss that leaves out what is missing.

        Returns:
            Per patch, `(B, n)` each: the sum of the squared errors over the numbers of the target that are not NaN, in
            float32, and how many these are.
        """
        valid = target.isnan().logical_not()
        error = (predicted.float() - fill_missing(target)).masked_fill(~valid, 0.0)
        return error.square().sum(dim=-1), valid.sum(dim=-1)

    def _loss(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        # In float32 whatever the model's type: the differences are squared, and targets may have tiny variances.
        if not self.config.is_band_model:
            # The mean over all masked patches, of which every image has as many.
            return nn.functional.mse_loss(predicted.float(), target)
        errors, counts = self.reconstruction_error(predicted, target)
        return errors.sum() / counts.sum().clamp(min=1)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        attention_mask: torch.Tensor | None = None,
        return_logits: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ViTMAEForPreTrainingOutput:
        """
        Args:
            pixel_values (`(B, C, H, W)`): images normalised with `config.image_mean` and `config.image_std`; of a
                band model NaN where a pixel is missing.
            noise (`(B, L)`, *optional*): decides which patches are masked, which of these get mid-level tokens (see
                [`ViTMAERobustModel.forward`]), and which `config.decoder_keep_ratio` keeps: of the masked patches with
                mid-level tokens, and of the others, those with the smallest values.
            interpolate_pos_encoding: take images of another size than `config.image_size`.
            attention_mask: None, for stock's signature.
            return_logits: False leaves `logits` None and saves what is not needed for the loss: the visible patches in
                the last decoder block and in the prediction.

        Returns:
            `loss`: squared error, mean over the D numbers of a patch, then over the masked patches (those with
            mid-level tokens included), float32; of a band model the mean over all numbers of these patches that are
            not missing, 0 where there are none. Several processes, or accumulated batches, give the mean of their
            means, so a number weighs a little more where more of the others are missing. `logits` `(B, L, D)`; `mask`
            `(B, L)`, 1 = masked; `ids_restore`; `hidden_states` and `attentions` of the encoder on request.

            In training mode with `config.decoder_keep_ratio` below 1, `loss` is the mean over the kept masked patches,
            and `logits` are NaN at the others, for which nothing is predicted; `mask` is 1 at both. Evaluation mode
            predicts all, whatever the ratio.

        Raises:
            ValueError: sizes or channels do not fit, `target_normalization="global_patch"` has no statistics, or an
                `attention_mask`.
        """
        outputs = self.vit(
            pixel_values,
            noise=noise,
            mask_ratio=self.config.mask_ratio,
            interpolate_pos_encoding=interpolate_pos_encoding,
            attention_mask=attention_mask,
            return_dict=True,  # whatever the configuration says of what the caller gets
            **kwargs,
        )
        p, q = to_pair(self.config.patch_size)
        grid_size = (pixel_values.shape[-2] // p, pixel_values.shape[-1] // q)
        num_patches = outputs.ids_shuffle.shape[1]
        num_masked = num_patches - int(num_patches * (1 - self.config.mask_ratio))
        encoded, ids, num_predicted = outputs.last_hidden_state, outputs.ids_shuffle, num_masked
        leaves_out = self.training and self.config.decoder_keep_ratio < 1
        if leaves_out:
            encoded, ids, num_predicted = keep_for_decoder(encoded, ids, num_masked, self.config.decoder_keep_ratio)
        predicted = self.decoder(encoded, ids, grid_size, None if return_logits else num_predicted).logits
        target = self.compute_target(pixel_values, ids[:, -num_predicted:])
        loss = self._loss(predicted[:, -num_predicted:], target)
        logits = None
        if return_logits and leaves_out:
            # NaN: whoever takes them for predictions notices.
            nothing = predicted.new_full((len(predicted), num_patches, predicted.shape[-1]), float("nan"))
            logits = nothing.scatter(1, ids.unsqueeze(-1).expand_as(predicted), predicted)
        elif return_logits:
            rows = torch.arange(len(predicted), device=predicted.device).unsqueeze(1)
            logits = predicted[rows, outputs.ids_restore]
        return ViTMAEForPreTrainingOutput(
            loss=loss,
            logits=logits,
            mask=outputs.mask,
            ids_restore=outputs.ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @torch.no_grad()
    def reconstruct(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        """The images with their masked patches filled in, as raw pixels.

        Every normalisation of the target is undone. **The mean and the variance of each patch (`norm_pix_loss`) are
        taken from the true patch**, so a picture shows what the model knows about structure, not about brightness
        and contrast. Dropout is off while it runs.

        Args:
            pixel_values (`(B, C, H, W)`): as in `forward`.
            noise, interpolate_pos_encoding: as in `forward`.

        Returns:
            `(B, C, H, W)`, float32, nominally in [0, 1], of a band model in the units of the files (predictions are not
            clipped). A missing pixel of a visible patch stays NaN; masked patches are predictions everywhere.
        """
        was_training = self.training
        self.eval()
        try:
            outputs = self(
                pixel_values, noise=noise, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True
            )
        finally:
            self.train(was_training)
        mean, std = self._image_statistics(pixel_values.device)
        original = pixel_values.float() * std + mean
        mask = outputs.mask.unsqueeze(-1).expand(-1, -1, self.config.patch_dim)
        mask = self.unpatchify(mask, pixel_values.shape[-2:])
        return torch.where(mask.bool(), self.invert_target(outputs.logits, pixel_values), original)


# Copies the files of this folder next to every checkpoint, for `trust_remote_code=True`.
ViTMAERobustModel.register_for_auto_class("AutoModel")
ViTMAERobustForPreTraining.register_for_auto_class("AutoModelForPreTraining")
ViTMAERobustBackbone.register_for_auto_class("AutoBackbone")

__all__ = ["ViTMAERobustBackbone", "ViTMAERobustForPreTraining", "ViTMAERobustModel", "ViTMAERobustPreTrainedModel"]
