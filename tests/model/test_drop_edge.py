"""Drop edge: attention dropout in the decoder, in training only (paper, section 2.1)."""

import pytest
import torch
from torch.testing import assert_close
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit_mae import modeling_vit_mae as stock_code

from hf_mae_robust import ViTMAERobustForPreTraining
from hf_mae_robust.model import modeling_vit_mae_robust as our_code
from hf_mae_robust.model.attention_vit_mae_robust import attention_with_dropped_edges
from tests.model_helpers import build, images, tiny_config


@pytest.fixture
def attention_calls(monkeypatch):
    """Every call of an attention function as (module, dropout, attention weights)."""
    calls = []

    def spy(function):
        def wrapper(module, *args, dropout=0.0, **kwargs):
            output, weights = function(module, *args, dropout=dropout, **kwargs)
            calls.append((module, dropout, weights))
            return output, weights

        return wrapper

    for name in ("eager_attention_forward", "attention_with_dropped_edges"):
        monkeypatch.setattr(our_code, name, spy(getattr(our_code, name)))
    sdpa = spy(ALL_ATTENTION_FUNCTIONS["sdpa"])
    # flash_attention_2 need not be installed to see what its function would be given.
    for name in ("sdpa", "flash_attention_2"):
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, name, sdpa)
    return calls


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2"])
def test_decoder_blocks_alone_drop_edges_and_in_training_alone(attention_calls, implementation):
    model = build(decoder_attention_probs_dropout_prob=0.4)
    if implementation == "flash_attention_2":
        model.config._attn_implementation_internal = implementation
        model.decoder.config._attn_implementation_internal = implementation
    else:
        model.set_attn_implementation(implementation)
    for training in (True, False):
        attention_calls.clear()
        model.train(training)(images())
        encoder = [dropout for module, dropout, _ in attention_calls if module in set(model.vit.modules())]
        decoder = [dropout for module, dropout, _ in attention_calls if module in set(model.decoder.modules())]
        assert encoder == [0.0] * 3
        assert decoder == [0.4 if training else 0.0] * 2


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_decoder_is_random_in_training_alone(implementation):
    model = build()
    model.set_attn_implementation(implementation)
    pixel_values, noise = images(), torch.rand(2, 16)

    def twice(training):
        model.train(training)
        return [model(pixel_values, noise=noise, output_hidden_states=True) for _ in range(2)]

    first, second = twice(training=True)
    assert not torch.equal(first.logits, second.logits)
    assert torch.equal(first.hidden_states[-1], second.hidden_states[-1])
    first, second = twice(training=False)
    assert torch.equal(first.logits, second.logits)


def test_dropped_share_of_attention_edges(attention_calls):
    model = build(decoder_attention_probs_dropout_prob=0.3).train()
    model.set_attn_implementation("eager")
    model(images(batch=16))
    for module, _, weights in attention_calls:
        expected = 0.3 if module in set(model.decoder.modules()) else 0.0
        # 16 images x 4 heads x 17 x 17 edges: a standard deviation of 0.0034.
        assert abs((weights == 0).float().mean().item() - expected) < 0.015


@pytest.mark.parametrize("how", ["constructor", "from_pretrained", "set_attn_implementation"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementation_reaches_the_decoder(tmp_path, how, implementation):
    if how == "constructor":
        model = ViTMAERobustForPreTraining._from_config(tiny_config(), attn_implementation=implementation)
    elif how == "from_pretrained":
        build().save_pretrained(tmp_path)
        model = ViTMAERobustForPreTraining.from_pretrained(tmp_path, attn_implementation=implementation)
    else:
        model = build()
        model.set_attn_implementation(implementation)
    used = {
        module.config._attn_implementation
        for module in model.modules()
        if isinstance(module, stock_code.ViTMAEAttention)
    }
    assert used == {implementation}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_attention_with_dropped_edges_on_a_cpu(dtype):
    """Against the same done step by step, with the edges that were dropped read off the output for one-hot values."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 4, n, 8, dtype=dtype, requires_grad=True) for n in (11, 17, 17))

    def ours(value):
        torch.manual_seed(1)
        return attention_with_dropped_edges(None, query, key, value, None, dropout=0.3, scaling=0.5)[0].transpose(1, 2)

    kept = ours(torch.eye(17, dtype=dtype).expand(3, 4, 17, 17)) > 0
    assert kept.float().mean().item() == pytest.approx(0.7, abs=0.03)  # of 2,244 edges: 3 standard deviations
    probabilities = torch.softmax(query @ key.transpose(2, 3) * 0.5, dim=-1)
    expected = (probabilities * kept / 0.7) @ value
    output = ours(value)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert_close(output, expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn_like(output)
    inputs = (query, key, value)
    for got, wanted in zip(*(torch.autograd.grad((result * weights).sum(), inputs) for result in (output, expected))):
        assert_close(got, wanted, rtol=tolerance, atol=5 * tolerance)


def test_edges_are_dropped_independently_with_the_probability_asked_for():
    query = torch.zeros(64, 4, 50, 8)
    value = torch.eye(50).expand(64, 4, 50, 50)
    kept = attention_with_dropped_edges(None, query, query, value, None, dropout=0.05, scaling=1.0)[0] > 0
    # 640,000 edges: a standard deviation of 0.0003.
    assert kept.float().mean().item() == pytest.approx(0.95, abs=0.0012)
    neighbours = (~kept[..., 1:] & ~kept[..., :-1]).float().mean().item()
    assert neighbours == pytest.approx(0.05**2, abs=0.0005)
