"""Numbers of the evaluators against what is known of a model; a collapsed model is told apart."""

import math

import pytest
import torch

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.analysis.evaluators import Attention, BlockTokens, ImageFeatures, LossMap, Similarity, _spread
from hf_mae_robust.analysis.measures import linear_cka
from tests.helpers import TINY


def new_model(**settings):
    torch.manual_seed(0)
    return ViTMAERobustForPreTraining(ViTMAERobustConfig(**{**TINY, **settings}))


def test_attention_that_looks_everywhere_alike(batch):
    model = new_model()
    for layer in (*model.vit.layers, *model.decoder.decoder_layers):
        torch.nn.init.zeros_(layer.attention.q_proj.weight)
    found = dict(Attention()(model, [batch]))
    assert found["encoder 0/entropy"] == pytest.approx(math.log(17))
    assert found["decoder 0/head 1/entropy"] == pytest.approx(math.log(17))
    places = [(i // 4, i % 4) for i in range(16)]
    mean = sum(math.dist(a, b) for a in places for b in places) / 256
    assert found["encoder 1/distance"] == pytest.approx(mean) == found["decoder 0/distance"]


def test_the_loss_map_is_the_loss(batch):
    model = new_model(mask_ratio=0.5)
    halves = [{key: value[part] for key, value in batch.items()} for part in (slice(0, 10), slice(10, 16))]
    found = dict(LossMap()(model, halves))
    with torch.no_grad():
        outputs = model.eval()(batch["pixel_values"], noise=batch["noise"])
    assert found["loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    counts = outputs.mask.sum(dim=0).view(4, 4)
    assert ((found["loss_map"] * counts).sum() / counts.sum()).item() == pytest.approx(found["loss"], rel=1e-5)


def test_the_loss_map_of_a_band_model_is_of_what_is_not_missing(batch):
    statistics = {"image_mean": [5.0] * 3, "image_std": [2.0] * 3}
    model = new_model(mask_ratio=0.5, rescale_factor=1.0, **statistics)
    values, noise = batch["pixel_values"].clone(), batch["noise"]
    values[torch.rand(values.shape) < 0.3] = float("nan")
    values[:, :, : values.shape[2] // 4] = float("nan")  # the upper row of patches
    halves = [{"pixel_values": values[part], "noise": noise[part]} for part in (slice(0, 10), slice(10, 16))]
    found = dict(LossMap()(model, halves))["loss_map"]
    assert found[0].isnan().all() and found[1:].isfinite().all()
    with torch.no_grad():
        outputs = model.eval()(values, noise=noise)
        errors = (outputs.logits - model.compute_target(values)).square()[:, 5][outputs.mask[:, 5].bool()]
    assert found[1, 1].item() == pytest.approx(errors.nanmean().item(), rel=1e-5)


@torch.no_grad()
def test_cka_shows_each_model_its_own_pixels(batch):
    mine, others = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.1]}, {"image_mean": [0.1, 0.2, 0.3]}
    model, other = new_model(**mine), new_model(**others, image_std=[0.5, 0.6, 0.7])
    mean, std, mean_of_other, std_of_other = (
        torch.tensor(values).view(3, 1, 1)
        for values in (*mine.values(), other.config.image_mean, other.config.image_std)
    )
    pixels = batch["pixel_values"]
    seen = (pixels * std + mean - mean_of_other) / std_of_other
    one, two = (
        each.vit(images, output_hidden_states=True).hidden_states[-1][:, 1:].mean(dim=1)
        for each, images in ((model, pixels), (other, seen))
    )
    found = dict(Similarity(other)(model, [batch]))["cka"][-1, -1].item()
    assert found == pytest.approx(linear_cka(one, two), abs=1e-5) and found != pytest.approx(1, abs=1e-3)


def test_tokens_are_drawn_from_all_places():
    """Every 21st row is of the same columns in grids of 8 x 8."""
    places = torch.arange(64).repeat(341).unsqueeze(1)
    found = _spread([places], 1024)
    assert len(found) == 1024 and len(found.unique()) == 64
    assert torch.equal(found, _spread([places], 1024)) and torch.equal(_spread([places[:9]], 9), places[:9])


def test_a_collapsed_model_is_told_apart(batch):
    """Trained to give the same token everywhere, which a loss can reward."""
    healthy, collapsed = new_model(), new_model()
    optimizer = torch.optim.Adam(collapsed.vit.parameters(), lr=3e-3)
    for _ in range(150):
        tokens = collapsed.vit(batch["pixel_values"]).last_hidden_state
        (tokens - tokens.mean(dim=(0, 1)).detach()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    found = [
        dict(BlockTokens()(model, [batch])) | dict(ImageFeatures()(model, [batch])) for model in (healthy, collapsed)
    ]
    assert found[1]["encoder 1/similarity"] > 0.95 > 0.7 > found[0]["encoder 1/similarity"]
    assert found[1]["encoder 1/rank"] < 0.5 * found[0]["encoder 1/rank"]
    assert found[1]["encoder 1/uniformity"] > -0.2 > found[0]["encoder 1/uniformity"]
    assert found[1]["mean/uniformity"] > found[0]["mean/uniformity"]
    assert found[0]["mean/alignment"] < 0.1
    cka = dict(Similarity(collapsed)(healthy, [batch]))["cka"]
    own = dict(Similarity()(healthy, [batch]))["cka"]
    assert own.diagonal().tolist() == pytest.approx([1, 1]) and cka[1, 1] < own[1, 1]
