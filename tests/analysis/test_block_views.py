"""Blocks are seen as they work, and the model stays as it was."""

import torch

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.analysis.block_views import decoder_views, encoder_views
from tests.helpers import TINY


def test_blocks_are_seen_as_they_work_and_the_model_stays_as_it_was(batch):
    settings = {**TINY, "mid_mask_ratio": 0.25, "decoder_num_hidden_layers": 2}
    model = ViTMAERobustForPreTraining(ViTMAERobustConfig(**settings)).train()
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
