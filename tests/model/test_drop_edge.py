"""Drop edge: attention dropout in the decoder, in training only (paper, section 2.1)."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit_mae import modeling_vit_mae as stock_code

from hf_mae_robust import ViTMAERobustForPreTraining
from hf_mae_robust.model import modeling_vit_mae_robust as our_code
from hf_mae_robust.pretraining.cpu_attention import NAME
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

    monkeypatch.setattr(our_code, "eager_attention_forward", spy(our_code.eager_attention_forward))
    # flash_attention_2 need not be installed to see what its function would be given.
    functions = {"sdpa": "sdpa", "flash_attention_2": "sdpa", NAME: NAME}
    functions = {name: spy(ALL_ATTENTION_FUNCTIONS[other]) for name, other in functions.items()}
    for name, function in functions.items():
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, name, function)
    return calls


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2", NAME])
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


@pytest.mark.parametrize("implementation", ["eager", "sdpa", NAME])
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
@pytest.mark.parametrize("implementation", ["eager", "sdpa", NAME])
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
