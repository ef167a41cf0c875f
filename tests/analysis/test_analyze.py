"""Diagnostics of models: blocks are seen as they work, a collapsed model is told apart, and the command's results."""

import json
import math

import pytest
import torch

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.__main__ import main
from hf_mae_robust.analysis.block_views import decoder_views, encoder_views
from hf_mae_robust.analysis.evaluators import Attention, BlockTokens, ImageFeatures, LossMap, Similarity
from tests.helpers import TINY


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 16, 16, generator=generator)
    second = images + 0.01 * torch.randn(images.shape, generator=generator)
    return {"pixel_values": images, "noise": torch.rand(16, 16, generator=generator), "second_view": second}


def new_model(**settings):
    torch.manual_seed(0)
    return ViTMAERobustForPreTraining(ViTMAERobustConfig(**{**TINY, **settings}))


def test_blocks_are_seen_as_they_work_and_the_model_stays_as_it_was(batch):
    model = new_model(mid_mask_ratio=0.25, decoder_num_hidden_layers=2).train()
    implementation, state = model.config._attn_implementation, torch.get_rng_state()
    encoder = encoder_views(model, batch["pixel_values"], attention=True)
    decoder = decoder_views(model, batch["pixel_values"], batch["noise"], attention=True)
    assert model.training and model.config._attn_implementation == implementation
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.vit.layers)
    model.eval()
    with torch.no_grad():
        expected = model.vit(batch["pixel_values"]).last_hidden_state
        torch.testing.assert_close(model.vit.layernorm(encoder[-1].tokens), expected)
        outputs = model(batch["pixel_values"], noise=batch["noise"])
        logits = model.decoder.decoder_pred(model.decoder.decoder_norm(decoder[-1].tokens))
    # In shuffled order, without CLS: `ids` say which patch a token is.
    rows = torch.arange(16)[:, None]
    torch.testing.assert_close(logits, outputs.logits[rows, decoder[-1].ids])
    assert [view.tokens.shape[1] for view in (*encoder, *decoder)] == [17, 17, 17, 16]
    assert [view.patch_tokens.shape[1] for view in (*encoder, *decoder)] == [16] * 4
    for view in (*encoder, *decoder):
        torch.testing.assert_close(view.attention.sum(-1), torch.ones(view.attention.shape[:-1]))
        assert view.attention.shape[-1] == view.key_ids.shape[1] == 17


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


def test_the_command_writes_numbers_and_pictures(photos_dir, encoder_dir, tmp_path, capsys):
    words = [str(encoder_dir), "--dataset_name", str(photos_dir), "--max_samples", "20", "--batch_size", "8"]
    main(["analyze", "all", *words, "--crop_pct", "1.0", "--output_dir", str(tmp_path / "out")])
    content = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert content["images"] == 20 and len(content["values"]["loss_map"]) == 4
    printed = capsys.readouterr().out
    assert "| encoder 1 |" in printed and f"loss: {content['values']['loss']:.4f}" in printed
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"blocks.png", "loss_map.png", "cka.png"}
    main(["analyze", "cka", *words, "--other", str(encoder_dir), "--output_dir", str(tmp_path / "cka")])
    values = json.loads((tmp_path / "cka" / "analysis.json").read_text())["values"]
    assert values.keys() == {"cka"} and values["cka"][1][1] == pytest.approx(1)


def test_models_without_a_decoder_are_refused(photos_dir, tmp_path, capsys):
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path / "vit")
    with pytest.raises(SystemExit):
        main(["analyze", "features", str(tmp_path / "vit"), "--dataset_name", str(photos_dir)])
    assert "is a 'vit' model" in capsys.readouterr().err
