"""Initialised as the official MAE; position embeddings stay fixed."""

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForPreTraining, ViTMAEConfig, ViTMAEForPreTraining

from hf_mae_robust import ViTMAERobustForPreTraining, ViTMAERobustModel
from tests.model_helpers import (
    ALL_ON,
    OFF,
    TINY,
    build,
    images,
    stock_of,
    tiny_config,
)


def official_sincos(dim, grid_height, grid_width):
    """In numpy, after pos_embed.py of the official code: the first half of the row encodes the column."""

    def encode(positions):
        angles = np.outer(positions, 10000.0 ** (-np.arange(dim // 4) / (dim / 4)))
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    rows, columns = np.divmod(np.arange(grid_height * grid_width), grid_width)
    table = np.concatenate([encode(columns), encode(rows)], axis=1)
    return torch.tensor(np.concatenate([np.zeros((1, dim)), table])[None], dtype=torch.float32)


@pytest.mark.parametrize("image_size", [32, [24, 40]])
def test_position_embeddings_are_the_official_tables(image_size):
    config = tiny_config(image_size=image_size)
    model = ViTMAERobustForPreTraining(config)
    encoder, decoder = model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed
    assert_close(encoder.data, official_sincos(64, *config.grid_size), rtol=0, atol=1e-6)
    assert_close(decoder.data, official_sincos(32, *config.grid_size), rtol=0, atol=1e-6)
    assert not encoder[:, 0].any()
    assert not decoder[:, 0].any()


def test_stock_leaves_the_position_embeddings_at_zero():
    """Why there is an initialisation of ours. Should a later transformers fail here, it has mended this."""
    stock = ViTMAEForPreTraining(ViTMAEConfig(**TINY))
    assert not stock.vit.embeddings.position_embeddings.any()
    assert not stock.decoder.decoder_pos_embed.any()


@pytest.mark.parametrize("way", ["constructor", "from_config"])
def test_every_tensor_is_initialised_as_in_the_official_code(way):
    config = tiny_config(mid_mask_ratio=0.25, hidden_size=256, decoder_hidden_size=256)
    model = (ViTMAERobustForPreTraining if way == "constructor" else AutoModelForPreTraining.from_config)(config)
    checked = 0
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        module = model.get_submodule(name.rpartition(".")[0])
        if name.endswith(("position_embeddings", "decoder_pos_embed")):
            continue
        checked += 1
        if name.endswith("_token"):
            assert abs(values.std() - 0.02) < 0.02 * 4 / (2 * len(values)) ** 0.5, name
            assert abs(values.mean()) < 0.02 * 4 / len(values) ** 0.5, name
        elif isinstance(module, nn.LayerNorm):
            assert (values == (1 if name.endswith("weight") else 0)).all(), name
        elif isinstance(module, nn.Linear) and name.endswith("bias"):
            assert not values.any(), name
        else:  # uniform
            fan_in = module.weight[0].numel()
            # The official blocks are timm's, with one layer for queries, keys and values.
            fused = (
                timm.layers.Attention(fan_in).qkv if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj") else module
            )
            xavier, default_of_pytorch = (6 / (fan_in + fused.weight.shape[0])) ** 0.5, fan_in**-0.5
            bound = default_of_pytorch if name.endswith("bias") else xavier  # the patch projection's bias
            assert 0.95 * bound < values.abs().max() <= bound, name
            assert abs(values.std() - bound / 3**0.5) < 4 * bound / len(values) ** 0.5, name
            assert abs(values.mean()) < 4 * bound / (3 * len(values)) ** 0.5, name
    assert checked == len(list(model.parameters())) - 2


def test_position_embeddings_are_frozen_however_the_model_comes_to_be(tmp_path):
    model = build(**ALL_ON)
    model.save_pretrained(tmp_path / "ours")
    stock_of(build(**OFF)).save_pretrained(tmp_path / "stock")
    models = [
        model,
        ViTMAERobustForPreTraining.from_pretrained(tmp_path / "ours"),
        ViTMAERobustForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)[0],
        ViTMAERobustForPreTraining.from_pretrained(tmp_path / "stock"),
        ViTMAERobustForPreTraining._from_config(model.config),
        AutoModelForPreTraining.from_config(model.config),
        AutoModelForPreTraining.from_pretrained(tmp_path / "ours"),
        ViTMAERobustModel.from_pretrained(tmp_path / "ours"),
        ViTMAERobustModel.from_pretrained(tmp_path / "stock"),
        AutoModel.from_config(model.config),
        AutoModel.from_pretrained(tmp_path / "ours"),
    ]
    for index, model in enumerate(models):
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        tables = {name for name, _ in model.named_parameters() if name.endswith(("position_embeddings", "pos_embed"))}
        assert len(tables) == (2 if isinstance(model, ViTMAERobustForPreTraining) else 1), index
        assert trainable == {name for name, _ in model.named_parameters()} - tables, index


@pytest.mark.parametrize("loaded", [False, True])
def test_a_step_changes_everything_but_the_position_embeddings(tmp_path, loaded):
    model = build(**ALL_ON)
    if loaded:
        model.save_pretrained(tmp_path)
        model = ViTMAERobustForPreTraining.from_pretrained(tmp_path)
    model.train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(images()).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        is_table = name.endswith(("position_embeddings", "decoder_pos_embed"))
        assert torch.equal(parameter, before[name]) == is_table, name
        assert (parameter.grad is None) == is_table, name
