"""Diagnostics of a pre-training model. Each evaluator is called with a model and batches and yields (name, value): a
float, or a tensor where there is one value a patch or a pair of blocks.

A batch is `{"pixel_values": (B, C, H, W) normalised, "noise": (B, L)}` on the model's device, and for `ImageFeatures`
also `"second_view"`: the same images, augmented in another way.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..model import ViTMAERobustForPreTraining
from ..model.configuration_vit_mae_robust import to_pair
from .block_views import at_rest, decoder_views, encoder_views
from .measures import (
    alignment,
    attention_distance,
    attention_entropy,
    effective_rank,
    linear_cka,
    token_similarity,
    uniformity,
)
from .targets import renormalized

Batches = Iterable[dict[str, torch.Tensor]]
Findings = Iterator[tuple[str, Any]]
# Tokens that uniformity and rank of a block are taken of: pairs of them are compared.
MAX_TOKENS = 4096


def _all_views(model: ViTMAERobustForPreTraining, batch: dict[str, torch.Tensor], attention: bool = False) -> list[Any]:
    views = encoder_views(model, batch["pixel_values"], attention)
    return views + decoder_views(model, batch["pixel_values"], batch["noise"], attention)


def _spread(parts: list[torch.Tensor], limit: int) -> torch.Tensor:
    """At most `limit` rows, drawn at random, always the same ones: rows at even distances would be of a few columns of
    the patches only."""
    rows = torch.cat(parts)
    if len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:limit]]


class BlockTokens:
    """By block, of the tokens of patches: `similarity` (`token_similarity`, mean over images), `rank`
    (`effective_rank`) and `uniformity`, the last two of up to MAX_TOKENS tokens of all images."""

    def __call__(self, model: ViTMAERobustForPreTraining, batches: Batches) -> Findings:
        similarities, tokens = defaultdict(list), defaultdict(list)
        for batch in batches:
            for view in _all_views(model, batch):
                similarities[view.name].append(token_similarity(view.patch_tokens).cpu())
                flat = view.patch_tokens.flatten(0, 1)
                tokens[view.name].append(_spread([flat.cpu()], MAX_TOKENS // 4))
        for name, values in similarities.items():
            some = _spread(tokens[name], MAX_TOKENS)
            yield f"{name}/similarity", torch.cat(values).mean().item()
            yield f"{name}/rank", effective_rank(some)
            yield f"{name}/uniformity", uniformity(some)


class ImageFeatures:
    """Of the encoder's features of full images, `cls` (the CLS token) and `mean` (of the patches' tokens), after the
    final norm: `uniformity`, `rank`, and, between two augmented views of each image, `alignment`."""

    def __call__(self, model: ViTMAERobustForPreTraining, batches: Batches) -> Findings:
        found = defaultdict(list)
        for batch in batches:
            with at_rest(model):
                for key in {"pixel_values", "second_view"} & batch.keys():
                    tokens = model.vit(batch[key]).last_hidden_state.float().cpu()
                    found["cls", key].append(tokens[:, 0])
                    found["mean", key].append(tokens[:, 1:].mean(dim=1))
        for pooling in ("cls", "mean"):
            features = torch.cat(found[pooling, "pixel_values"])
            yield f"{pooling}/uniformity", uniformity(features)
            yield f"{pooling}/rank", effective_rank(features)
            if found[pooling, "second_view"]:
                yield f"{pooling}/alignment", alignment(features, torch.cat(found[pooling, "second_view"]))


class Attention:
    """By block: `entropy` and `distance` (measures.py), means over heads, and of each head as
    `.../head 3/entropy`."""

    def __call__(self, model: ViTMAERobustForPreTraining, batches: Batches) -> Findings:
        sums: defaultdict[tuple[str, str], Any] = defaultdict(float)
        count = 0
        for batch in batches:
            size = len(batch["pixel_values"])
            columns = batch["pixel_values"].shape[-1] // to_pair(model.config.patch_size)[1]
            for view in _all_views(model, batch, attention=True):
                sums[view.name, "entropy"] += size * attention_entropy(view.attention).cpu()
                distance = attention_distance(view.attention, view.ids, view.key_ids, columns)
                sums[view.name, "distance"] += size * distance.cpu()
            count += size
        for (name, measure), total in sums.items():
            by_head = total / count
            yield f"{name}/{measure}", by_head.mean().item()
            for head, value in enumerate(by_head.tolist()):
                yield f"{name}/head {head}/{measure}", value


class LossMap:
    """`loss`: of the reconstruction; `loss_map` `(rows, columns)`: mean loss of the patch at each place, over the
    images where it was masked (NaN where it never was, or where all that was masked is missing)."""

    def __call__(self, model: ViTMAERobustForPreTraining, batches: Batches) -> Findings:
        errors: Any = 0.0  # tensors from the first batch on
        counts: Any = 0.0
        loss, images, columns = 0.0, 0, 1
        for batch in batches:
            with at_rest(model):
                outputs = model(batch["pixel_values"], noise=batch["noise"])
                target = model.compute_target(batch["pixel_values"])
                if model.config.is_band_model:  # numbers that are not missing
                    error, count = model.reconstruction_error(outputs.logits, target)
                    count = count * outputs.mask
                else:
                    error, count = (outputs.logits.float() - target).square().mean(dim=-1), outputs.mask
            errors = errors + (error * outputs.mask).sum(dim=0).cpu().double()
            counts = counts + count.sum(dim=0).cpu().double()
            loss, images = loss + outputs.loss.item() * len(error), images + len(error)
            columns = batch["pixel_values"].shape[-1] // to_pair(model.config.patch_size)[1]
        yield "loss", loss / images
        yield "loss_map", (errors / counts).unflatten(0, (-1, columns))


class Similarity:
    """`cka`: `linear_cka` between the encoder's blocks, of one model or of two (`other`: rows are the model's blocks,
    columns the other's, which gets the images normalised with its own mean and deviation), of the mean tokens of each
    image."""

    def __init__(self, other: ViTMAERobustForPreTraining | None = None):
        self.other = other

    def __call__(self, model: ViTMAERobustForPreTraining, batches: Batches) -> Findings:
        features: list[defaultdict[str, list[torch.Tensor]]] = [defaultdict(list), defaultdict(list)]
        for batch in batches:
            for kept, observed in zip(features, (model, self.other or model)):
                pixels = batch["pixel_values"]
                if observed is not model:
                    (pixels,) = renormalized([pixels.cpu()], model.config, observed.config)
                    pixels = pixels.to(observed.device)
                for view in encoder_views(observed, pixels):
                    kept[view.name].append(view.patch_tokens.mean(dim=1).cpu())
        rows, columns = ([torch.cat(parts) for parts in kept.values()] for kept in features)
        yield "cka", torch.tensor([[linear_cka(a, b) for b in columns] for a in rows])


# What `--diagnostics` and `analyze` call by these names.
EVALUATORS = {
    "features": (BlockTokens, ImageFeatures),
    "attention": (Attention,),
    "loss_map": (LossMap,),
    "cka": (Similarity,),
}
