import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.training.optimization import decayed_parameter_names, scale_learning_rate, warmup_steps
from tests.helpers import TINY


def test_learning_rate_rule():
    assert scale_learning_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)


def test_what_is_decayed():
    """As RECIPES says of the official code: not biases and 1-D parameters; CLS and mask tokens are; positions are
    frozen."""
    model = ViTMAERobustForPreTraining(ViTMAERobustConfig(**TINY, mid_mask_ratio=0.25))
    decayed = set(decayed_parameter_names(model))
    assert {"vit.embeddings.cls_token", "decoder.mask_token", "vit.mid_mask_token"} <= decayed
    assert "vit.embeddings.patch_embeddings.projection.weight" in decayed
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") or "norm" in name or "position_embeddings" in name or "decoder_pos_embed" in name:
            assert name not in decayed
        else:
            assert name in decayed, name
            assert parameter.requires_grad


def test_warm_up_and_cosine_follow_the_official_schedule():
    """lr_sched.py of the official code, evaluated at every iteration: linear in fractional epochs, then half a cosine
    to 0."""
    epochs, warmup_epochs, iterations = 20, 4, 25
    total = epochs * iterations
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup_steps(warmup_epochs, epochs, total), total)
    for step in range(total):
        epoch = step / iterations
        if epoch < warmup_epochs:
            expected = epoch / warmup_epochs
        else:
            expected = 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / (epochs - warmup_epochs)))
        assert schedule.get_last_lr()[0] == pytest.approx(expected, abs=1e-9)
        optimizer.step()
        schedule.step()


def test_warm_up_is_no_longer_than_the_training():
    assert warmup_steps(40, 10, 100) == 100
