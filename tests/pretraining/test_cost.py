"""Against PyTorch's own counter of operations, and against what autograd keeps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.pretraining.cost import blocks, forward_flops, memory, training_flops
from tests.helpers import TINY

SETTINGS = [
    {},
    {"mid_mask_ratio": 0.25},
    {"decoder_keep_ratio": 0.5},
    {"mid_mask_ratio": 0.25, "decoder_keep_ratio": 0.25},
    {"mask_ratio": 0.6, "decoder_num_hidden_layers": 1, "image_size": 192},
    {"mid_mask_ratio": 0.75, "mid_mask_layer_idx": 0, "hidden_size": 384, "num_attention_heads": 6},
    {"num_channels": 13, "rescale_factor": 1.0, "image_mean": [0.1] * 13, "image_std": [0.2] * 13, "patch_size": 32},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_operations_are_those_that_torch_counts(settings):
    config = ViTMAERobustConfig(decoder_attention_probs_dropout_prob=0.0, **settings)
    with torch.device("meta"):
        # The counter does not know every fused kernel; eager attention consists of products.
        model = ViTMAERobustForPreTraining._from_config(config, attn_implementation="eager")
        images = torch.zeros(512, config.num_channels, config.image_size, config.image_size)
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


def test_fewer_tokens_and_operations_where_the_decoder_keeps_a_part():
    config = ViTMAERobustConfig(mid_mask_ratio=0.25, decoder_keep_ratio=0.5)
    # CLS, 49 visible patches, 25 of 49 with mid-level tokens, 49 of 98 others.
    assert [block.outputs for block in blocks(config)] == [50] * 8 + [99] * 4 + [124] * 7 + [74]
    everything = ViTMAERobustConfig(mid_mask_ratio=0.25)
    assert forward_flops(config)["encoder"] == forward_flops(everything)["encoder"]
    assert training_flops(config) < 0.85 * training_flops(everything)
    assert memory(config, 8).activations < memory(everything, 8).activations


@pytest.mark.parametrize(
    "settings", [{}, {"mid_mask_ratio": 0.25}, {"mid_mask_ratio": 0.25, "decoder_keep_ratio": 0.5}]
)
def test_activations_are_what_autograd_keeps(settings):
    config = ViTMAERobustConfig(
        decoder_attention_probs_dropout_prob=0.0, hidden_size=192, num_attention_heads=3, intermediate_size=768,
        decoder_hidden_size=128, decoder_num_attention_heads=4, decoder_intermediate_size=512, **settings,
    )  # fmt: skip
    model = ViTMAERobustForPreTraining(config).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor, storage.nbytes()  # the tensor: so that its memory is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(torch.randn(4, 3, 224, 224), return_logits=False).loss
    assert loss.requires_grad
    measured = sum(size for _, size in kept.values())
    assert memory(config, 4).activations == pytest.approx(measured, rel=0.15)


def test_memory_of_weights_gradients_and_optimizer():
    config = ViTMAERobustConfig(**TINY)
    model = ViTMAERobustForPreTraining(config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    model(torch.randn(2, 3, 16, 16)).loss.backward()
    optimizer.step()
    need = memory(config, 2)
    assert need.weights == sum(4 * parameter.numel() for parameter in model.parameters())
    assert need.gradients == sum(4 * parameter.grad.numel() for parameter in trained)
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert need.optimizer == sum(4 * moment.numel() for moment in moments)
    assert memory(config, 2, gradient_checkpointing=True).activations < need.activations
