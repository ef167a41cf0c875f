"""--encoder_from: an encoder of any kind as the start of a pre-training, and a sentence about what was taken."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UserError
from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining, ViTMAERobustModel
from .beit import with_key_biases
from .checkpoint_file import read_original
from .encoders import has_head, open_config, read_config, read_encoder
from .loading import without_report
from .original import from_original
from .pixels import Pixels
from .positions import is_sincos
from .pretraining_model import check_heads_of_file, load_pretraining_model, size_of_other_grids
from .settings import SHARED_SETTINGS, settings_of
from .source import Access, ModelSource
from .stock import STOCK_KINDS, parts_foreign_to_mae, read_stock
from .timm_format import is_of_timm, read_timm

BEIT_KINDS = ("beit", "data2vec-vision")
# Kinds that others read, and what of them MAE's ViT has no place for.
FOREIGN_PARTS = {
    "deit": "a distillation token",
    "dinov2": "layer scale",
    "dinov2_with_registers": "layer scale and register tokens",
    "dinov3_vit": "layer scale, register tokens and rotary positions",
}
NAMES = {
    "vit_mae_robust": "this package's format",
    "vit_mae": "stock ViT-MAE",
    "vit": "stock ViT",
    "vit_msn": "stock MSN",
    "beit": "BEiT's layout",
    "data2vec-vision": "data2vec's layout",
}


@dataclass(frozen=True)
class Start:
    """What a pre-training starts from.

    Attributes:
        config: of the model, as far as the source knows it.
        tensors: in float32, by the names of `ViTMAERobustForPreTraining`; without a decoder where the source has none.
        kind: what the source is. norm: what is said of its last norm; empty where it stays what it was.
        learns_positions: the positions are not MAE's sine-cosine table, so they train.
    """

    config: ViTMAERobustConfig
    tensors: Mapping[str, Tensor]
    kind: str
    norm: str
    learns_positions: bool

    @property
    def has_decoder(self) -> bool:
        return any(name.startswith("decoder.") for name in self.tensors)


def read_start(source: ModelSource) -> Start:
    """The encoder of a checkpoint of this package, of stock ViT-MAE, ViT (so DINO, MoCo v3 and iBOT), MSN, a plain ViT
    of timm, a file in the official layout, or a BEiT that is one; with the decoder of a pre-training checkpoint. Of a
    classifier the head is left behind. The source's overrides tell the heads of an official file.

    Raises UserError for what cannot be taken exactly, by the name of the part, and for a damaged checkpoint.
    """
    heads = source.overrides.get("num_attention_heads"), source.overrides.get("decoder_num_attention_heads")
    size = source.overrides.get("image_size")
    size = tuple(size) if isinstance(size, list) else size  # for the cache
    with torch.random.fork_rng(devices=[]):  # new weights must not depend on how often this is read
        return _read_start(source.checkpoint, source.flag, source.access, source.checkpoint_key, heads, size)


# Configuration and weights are asked for one after the other.
@lru_cache(maxsize=1)
def _read_start(
    name: str,
    flag: str,
    access: Access,
    checkpoint_key: str | None,
    heads: tuple[int | None, int | None],
    image_size: int | tuple[int, ...] | None,
) -> Start:
    source = ModelSource(name, access=access, flag=flag)
    model: PreTrainedModel
    if checkpoint_key is not None and not Path(name).is_file():
        raise UserError(f"--checkpoint_key {checkpoint_key} is for official files, and {name} is not one.")
    if is_of_timm(name):
        model, pixels, _ = read_timm(name)
        return _start_of(source, model, pixels, "a plain ViT of timm")
    if Path(name).is_file():
        tensors = read_original(name, checkpoint_key)
        check_heads_of_file(source, tensors, *heads)
        size = size_of_other_grids(tensors, {"image_size": image_size})
        return _start_of(source, from_original(tensors, *heads, **size), None, "a file in the official layout")
    config = open_config(source)
    kind = "" if config is None else config.model_type
    if kind in FOREIGN_PARTS:
        raise UserError(f"{flag} {name} is a '{kind}' model, which has {FOREIGN_PARTS[kind]}: MAE's ViT does not.")
    config = cast(PreTrainedConfig, read_config(source, (*STOCK_KINDS, *BEIT_KINDS)))
    what = f"{NAMES[kind]}{', a classifier without its head' if has_head(config) else ''}"
    if kind in STOCK_KINDS:
        return _start_of(source, *read_stock(source, config), what)
    if foreign := parts_foreign_to_mae(config):
        raise UserError(f"{flag} {name} is not a plain ViT as MAE's is: it has {', '.join(foreign)}.")
    if config.use_mean_pooling and not has_head(config):
        raise UserError(
            f"{flag} {name} has use_mean_pooling=True and no head: its norm stands after the pooling, and may never "
            "have been trained. Give the classifier it was taken from."
        )
    return _start_of(source, *read_encoder(source, BEIT_KINDS), what)


def _start_of(source: ModelSource, model: PreTrainedModel, pixels: Pixels | None, kind: str) -> Start:
    norm = ""
    if not isinstance(model, ViTMAERobustForPreTraining | ViTMAERobustModel):
        if model is not model.base_model:
            kind = kind if "classifier" in kind else f"{kind}, a classifier without its head"
        model, norm = _vit_of_beit(source, cast(PreTrainedModel, model.base_model), pixels)
    prefix = "vit." if isinstance(model, ViTMAERobustModel) else ""
    tensors = {prefix + name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    config = model.config
    positions = tensors["vit.embeddings.position_embeddings"]
    return Start(config, tensors, kind, norm, not is_sincos(positions, config.grid_size))


def _vit_of_beit(source: ModelSource, beit: PreTrainedModel, pixels: Pixels | None) -> tuple[ViTMAERobustModel, str]:
    """A BEiT that is a plain ViT, with zeros for the biases of the keys, which softmax cannot feel. Where the norm
    stands after the mean, it is put before it: the blocks compute what they did, and the normalised tokens are new."""
    tensors, norm = with_key_biases(beit.state_dict()), ""
    if beit.config.use_mean_pooling:
        tensors = {name.replace("pooler.layernorm.", "layernorm."): tensor for name, tensor in tensors.items()}
        norm = "; last norm: the one after the pooling, now before it"
    form: dict[str, Any] = {} if pixels is None else pixels.config_settings()
    settings = settings_of(beit.config, (*SHARED_SETTINGS, "image_size"))
    model = ViTMAERobustModel(ViTMAERobustConfig(**{**settings, **form}))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{source.flag} {source.name} is not a plain ViT as MAE's is. {error}") from error
    return model.eval(), norm


def load_start(
    source: ModelSource, config: ViTMAERobustConfig, attn_implementation: str | None = "sdpa"
) -> tuple[ViTMAERobustForPreTraining, str]:
    """As `load_pretraining_model`, from what `read_start` reads; and the sentences about what was taken."""
    start = read_start(source)
    _read_start.cache_clear()  # a second copy of the weights
    with without_report():
        model, note = load_pretraining_model(source, config, attn_implementation, (start.config, start.tensors))
    return model, "\n".join([_describe(source, start, config), *([note] if note else [])])


def _describe(source: ModelSource, start: Start, config: ViTMAERobustConfig) -> str:
    decoder = f"{config.decoder_hidden_size}x{config.decoder_num_hidden_layers}"
    positions = "learned, and they train" if start.learns_positions else "fixed (sine-cosine)"
    own = start.config.num_channels
    channels = f"{own} channels, as it is"
    if own != config.num_channels:
        channels = f"inflated from {own} to {config.num_channels} channels ({source.inflate_channels})"
    mean, std = _shown(config.image_mean), _shown(config.image_std)
    origin = "the source's" if mean == _shown(start.config.image_mean) else "not the source's"
    return (
        f"Encoder from {source.name} ({start.kind}): {config.hidden_size}x{config.num_hidden_layers}; decoder {decoder}"
        f" {'kept' if start.has_decoder else 'new'}; positions {positions}; input mean {mean} and deviation {std}"
        f" ({origin}); patch projection: {channels}{start.norm}"
    )


def _shown(values: Any) -> str:
    if values is None:
        return "none"
    shown = [f"{value:.3g}" for value in torch.as_tensor(values).flatten().tolist()]
    return " ".join(shown[:4]) + (f" ... ({len(shown)})" if len(shown) > 4 else "")
