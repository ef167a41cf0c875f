"""Learning rates layer by layer, as the official code sets them."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    get_scheduler,
)

from hf_mae_robust.conversion.beit import mae_beit_config
from hf_mae_robust.training.optimization import Lars, lars_groups, param_groups_layer_decay

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
TOKENS = ("cls_token", "position_embeddings", "mask_token", "distillation_token", "register_tokens")


def vit_base(use_mean_pooling: bool = True) -> BeitForImageClassification:
    with torch.device("meta"):
        return BeitForImageClassification(mae_beit_config(num_labels=1000, use_mean_pooling=use_mean_pooling))


def by_name(model: nn.Module, groups: list[dict]) -> dict[str, dict]:
    """Name -> its group; every trainable parameter is in exactly one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(parameter)], group) for group in groups for parameter in group["params"]]
    assert sorted(name for name, _ in found) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    return dict(found)


def check_published_rule(model: nn.Module, depth: int, block: str, layer_decay: float, weight_decay: float) -> dict:
    """get_layer_id_for_vit and param_groups_lrd of the official util/lr_decay.py."""
    groups = by_name(model, param_groups_layer_decay(model, 0.01, layer_decay, weight_decay))
    for name, parameter in model.named_parameters():
        match = re.match(rf"\w+\.{block}\.(\d+)\.", name)
        if ".embeddings." in name:
            layer = 0
        elif match:
            layer = int(match[1]) + 1
        else:
            layer = depth + 1
        is_undecayed = parameter.ndim == 1 or name.rpartition(".")[2] in TOKENS
        assert groups[name]["lr"] == pytest.approx(0.01 * layer_decay ** (depth + 1 - layer), rel=1e-12), name
        assert groups[name]["weight_decay"] == (0 if is_undecayed else weight_decay), name
    return groups


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_every_parameter_of_vit_base_gets_the_published_rate_and_decay(use_mean_pooling):
    model = vit_base(use_mean_pooling)
    groups = check_published_rule(model, 12, "layers", 0.65, 0.05)
    assert len(groups) == 4 + 12 * 15 + 4
    # A few by hand: 0.65 ** 13, 0.65 ** 12, 0.65 ** 7, 0.65 and 1.
    norm = "beit.pooler.layernorm" if use_mean_pooling else "beit.layernorm"
    expected = {
        "beit.embeddings.cls_token": (0.0036972, 0),
        "beit.embeddings.position_embeddings": (0.0036972, 0),
        "beit.embeddings.patch_embeddings.projection.weight": (0.0036972, 0.05),
        "beit.embeddings.patch_embeddings.projection.bias": (0.0036972, 0),
        "beit.layers.0.attention.q_proj.weight": (0.0056880, 0.05),
        "beit.layers.5.mlp.fc1.weight": (0.0490223, 0.05),
        "beit.layers.5.mlp.fc1.bias": (0.0490223, 0),
        "beit.layers.11.layernorm_after.weight": (0.65, 0),
        f"{norm}.weight": (1, 0),
        "classifier.weight": (1, 0.05),
        "classifier.bias": (1, 0),
    }
    for name, (scale, weight_decay) in expected.items():
        assert groups[name]["lr"] / 0.01 == pytest.approx(scale, rel=1e-4), name
        assert groups[name]["weight_decay"] == weight_decay, name


@pytest.mark.parametrize(
    ("config", "model_class", "block"),
    [
        (Dinov2Config(**SMALL), Dinov2ForImageClassification, "encoder.layer"),
        (Dinov2WithRegistersConfig(**SMALL), Dinov2WithRegistersForImageClassification, "encoder.layer"),
        (DeiTConfig(**SMALL), DeiTForImageClassification, "layers"),
        (ViTConfig(**SMALL), ViTForImageClassification, "layers"),
        (BeitConfig(**SMALL, use_relative_position_bias=True), BeitForImageClassification, "layers"),
        (Data2VecVisionConfig(**SMALL), Data2VecVisionForImageClassification, "encoder.layer"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_other_stock_classes_follow_the_same_rule(config, model_class, block):
    with torch.device("meta"):
        model = model_class(config)
    groups = check_published_rule(model, 3, block, 0.75, 0.1)
    scales = {round(group["lr"] / 0.01, 9) for group in groups.values()}
    assert scales == {round(0.75**i, 9) for i in range(5)}


def test_a_layer_decay_of_1_scales_nothing():
    groups = param_groups_layer_decay(vit_base(), 3e-4, 1, 0.05)
    assert {group["lr"] for group in groups} == {3e-4}
    assert {group["weight_decay"] for group in groups} == {0, 0.05}


def test_frozen_parameters_are_left_out_and_the_others_keep_their_rates():
    model = vit_base()
    model.beit.embeddings.requires_grad_(False)
    model.beit.layers[:10].requires_grad_(False)
    groups = by_name(model, param_groups_layer_decay(model, 1.0, 0.65))
    assert {name.split(".")[2] for name in groups if ".layers." in name} == {"10", "11"}
    assert groups["beit.layers.10.mlp.fc1.weight"]["lr"] == pytest.approx(0.65**2)
    assert groups["beit.layers.11.mlp.fc1.weight"]["lr"] == pytest.approx(0.65)
    assert groups["classifier.weight"]["lr"] == 1


def test_a_model_of_unknown_layers_is_an_error_unless_nothing_is_scaled():
    with torch.device("meta"):
        model = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]))
    with pytest.raises(ValueError, match=r"--layer_decay 0.65: the layers of ResNetForImageClassification .* give 1"):
        param_groups_layer_decay(model, 0.01, 0.65)
    assert {group["lr"] for group in param_groups_layer_decay(model, 0.01, 1)} == {0.01}


@pytest.mark.parametrize("layer_decay", [0, -0.5, 1.01])
def test_a_layer_decay_that_is_no_share_is_an_error(layer_decay):
    with pytest.raises(ValueError, match=r"--layer_decay .*: must lie in \(0, 1\]"):
        param_groups_layer_decay(vit_base(), 0.01, layer_decay)


def test_every_layer_follows_the_official_schedule():
    """adjust_learning_rate of the official util/lr_sched.py, per iteration, times the scale of the layer."""
    peak, lowest, warmup, total = 2e-3, 1e-6, 7, 50
    groups = param_groups_layer_decay(vit_base(), peak, 0.65, 0.05)
    scales = [group["lr"] / peak for group in groups]
    assert min(scales) < 0.004 and max(scales) == 1
    optimizer = torch.optim.AdamW(groups, lr=peak)
    options = {"num_warmup_steps": warmup, "num_training_steps": total}
    scheduler = get_scheduler("cosine_with_min_lr", optimizer, scheduler_specific_kwargs={"min_lr": lowest}, **options)
    for step in range(total + 1):
        if step < warmup:
            rate = peak * step / warmup
        else:
            progress = (step - warmup) / (total - warmup)
            rate = lowest + (peak - lowest) * 0.5 * (1 + math.cos(math.pi * progress))
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            assert group["lr"] == pytest.approx(rate * scale, rel=1e-9, abs=1e-18), step
        optimizer.step()
        scheduler.step()


def test_lars_adapts_weights_and_leaves_biases_to_plain_momentum():
    """Two steps by hand: momentum 0.9, learning rate 0.1, trust ratio 0.001 * |w| / |g| for the weight alone."""
    head = nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))  # norm 5
        head.bias.copy_(torch.tensor([1.0, 2.0]))
    optimizer = Lars(lars_groups(head), lr=0.1, momentum=0.9, weight_decay=0.0)

    def step(weight_gradient, bias_gradient):
        head.weight.grad, head.bias.grad = torch.tensor(weight_gradient), torch.tensor(bias_gradient)
        optimizer.step()

    step([[0.0, 6.0], [8.0, 0.0]], [1.0, -2.0])  # norm 10, ratio 0.0005
    torch.testing.assert_close(head.weight.detach(), torch.tensor([[3.0, -0.0003], [-0.0004, 4.0]]))
    torch.testing.assert_close(head.bias.detach(), torch.tensor([0.9, 2.2]))

    norm = math.sqrt(3**2 + 4**2 + 0.0003**2 + 0.0004**2)
    step([[1.0, 0.0], [0.0, 0.0]], [2.0, 0.0])  # ratio 0.001 * norm
    momentum = [[0.001 * norm, 0.9 * 0.003], [0.9 * 0.004, 0.0]]
    expected = torch.tensor([[3.0, -0.0003], [-0.0004, 4.0]]) - 0.1 * torch.tensor(momentum)
    torch.testing.assert_close(head.weight.detach(), expected)
    torch.testing.assert_close(head.bias.detach(), torch.tensor([0.9 - 0.1 * (0.9 + 2), 2.2 + 0.1 * 1.8]))


def official_lars(value, gradients, learning_rate, weight_decay, momentum=0.9, trust=0.001):
    """util/lars.py of the official code in NumPy: `value` after one step for each of `gradients`."""
    memory = np.zeros_like(value)
    for update in gradients:
        if value.ndim > 1:
            update = update + weight_decay * value
            size, change = np.linalg.norm(value), np.linalg.norm(update)
            update = update * (trust * size / change if size > 0 and change > 0 else 1.0)
        memory = momentum * memory + update
        value = value - learning_rate * memory
    return value


@pytest.mark.parametrize("weight_decay", [0.0, 0.1, 5.0])
def test_lars_is_the_official_one_with_and_without_decay(weight_decay):
    """40 steps; at a decay of 5, timm's own ratio leads to weights that differ by up to 0.015."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    head = nn.Linear(3, 2).double()
    optimizer = Lars(lars_groups(head), lr=0.5, momentum=0.9, weight_decay=weight_decay)
    parameters = list(head.parameters())
    starts = [parameter.detach().numpy().copy() for parameter in parameters]
    gradients = [[draw.normal(size=start.shape) for start in starts] for _ in range(40)]
    for step in gradients:
        for parameter, gradient in zip(parameters, step):
            parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
        assert all(np.array_equal(parameter.grad, gradient) for parameter, gradient in zip(parameters, step))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [weight_decay, 0.0]
    for parameter, start, mine in zip(parameters, starts, zip(*gradients)):
        expected = official_lars(start, mine, 0.5, weight_decay)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-7)


def test_lars_groups_hold_all_that_trains_once():
    head = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3))
    weights, biases = lars_groups(head)
    assert [tuple(p.shape) for p in weights["params"]] == [(3, 4)] and weights["always_adapt"]
    assert [tuple(p.shape) for p in biases["params"]] == [(3,)] and not biases["always_adapt"]
