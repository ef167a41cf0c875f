"""Against PyTorch's own counter of operations, and against what autograd keeps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.cost import blocks, forward_flops, training_flops

SETTINGS = [
    {},
    {"mid_mask_ratio": 0.25},
    {"mask_ratio": 0.6, "decoder_num_hidden_layers": 1, "image_size": 192},
    {"mid_mask_ratio": 0.75, "mid_mask_layer_idx": 0, "hidden_size": 384, "num_attention_heads": 6},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_operations_are_those_that_torch_counts(settings):
    config = ViTMAERobustConfig(decoder_attention_probs_dropout_prob=0.0, **settings)
    with torch.device("meta"):
        # The counter does not know every fused kernel; eager attention consists of products.
        model = ViTMAERobustForPreTraining._from_config(config, attn_implementation="eager")
        images = torch.zeros(512, 3, config.image_size, config.image_size)
        with FlopCounterMode(display=False) as forward:
            loss = model(images, return_logits=False).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    # What is done once for a batch is not counted: a five-hundredth of some layers.
    assert forward.get_total_flops() / 512 == pytest.approx(sum(forward_flops(config).values()), rel=1e-3)
    total = forward.get_total_flops() + backward.get_total_flops()
    assert total / 512 == pytest.approx(training_flops(config), rel=1e-3)


def test_tokens_of_each_block():
    config = ViTMAERobustConfig(mid_mask_ratio=0.25)
    assert [block.outputs for block in blocks(config)] == [50] * 8 + [99] * 4 + [197] * 7 + [147]
