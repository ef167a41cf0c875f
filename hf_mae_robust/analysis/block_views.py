"""Inside a model: tokens and attention of every block, without changing the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..model import ViTMAERobustForPreTraining


@dataclass
class BlockView:
    """One block at work.

    Attributes:
        name: "encoder 0", ..., "decoder 0", ....
        tokens `(B, n, d)`: what it gives. ids `(B, n)`: their patches, -1 for CLS.
        attention `(B, heads, n, keys)` and key_ids `(B, keys)`: None where attention was not asked for.
    """

    name: str
    tokens: torch.Tensor
    ids: torch.Tensor
    attention: torch.Tensor | None = None
    key_ids: torch.Tensor | None = None

    @property
    def patch_tokens(self) -> torch.Tensor:
        """`(B, n', d)`: without CLS, which is the first token where it is there."""
        return self.tokens[:, int((self.ids[0, 0] < 0).item()) :]


@contextmanager
def at_rest(model: ViTMAERobustForPreTraining, attention: bool = False) -> Iterator[None]:
    """While entered: evaluation mode, and, for attention, the implementation that hands probabilities out."""
    was_training, implementation = model.training, model.config._attn_implementation
    model.eval()
    if attention:
        model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        if attention:
            model.set_attn_implementation(implementation)


@contextmanager
def _recording(layers: torch.nn.ModuleList) -> Iterator[list[list[Any]]]:
    """`[[tokens, attention], ...]` of the blocks, filled while they work."""
    records, handles = [[None, None] for _ in layers], []
    layer: Any
    for layer, record in zip(layers, records):
        handles += [
            layer.register_forward_hook(lambda _, __, output, record=record: record.__setitem__(0, output)),
            layer.attention.register_forward_hook(
                lambda _, __, output, record=record: record.__setitem__(1, output[1])
            ),
        ]
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


def _with_cls(ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full_like(ids[:, :1], -1), ids], dim=1)


def _views(part: str, records: list[list[Any]], ids: torch.Tensor, attention: bool) -> list[BlockView]:
    views = []
    for index, (tokens, weights) in enumerate(records):
        own = ids[:, -tokens.shape[1] :]  # the decoder's last block does not give CLS
        keys = (weights, ids) if attention else (None, None)
        views.append(BlockView(f"{part} {index}", tokens.float(), own, *keys))
    return views


def encoder_views(
    model: ViTMAERobustForPreTraining, pixel_values: torch.Tensor, attention: bool = False
) -> list[BlockView]:
    """The encoder's blocks on unmasked images `(B, C, H, W)`, normalised: nothing is masked, as downstream."""
    with at_rest(model, attention), _recording(model.vit.layers) as records:
        ids = model.vit(pixel_values).ids_shuffle
    return _views("encoder", records, _with_cls(ids), attention)


def decoder_views(
    model: ViTMAERobustForPreTraining, pixel_values: torch.Tensor, noise: torch.Tensor, attention: bool = False
) -> list[BlockView]:
    """The decoder's blocks at reconstruction, with masks that follow from the noise `(B, L)`."""
    with at_rest(model, attention), _recording(model.decoder.decoder_layers) as records:
        model(pixel_values, noise=noise)
    # As ViTMAERobustModel orders its tokens.
    return _views("decoder", records, _with_cls(noise.argsort(dim=1)), attention)
