"""Sharded with FSDP2, as accelerate does it, in one process."""

import json

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.testing import assert_close

from hf_mae_robust import (
    ViTMAERobustForInstanceSegmentation,
    ViTMAERobustForPreTraining,
    ViTMAERobustInstanceSegmentationConfig,
)
from tests.model.test_hub_boundary import AUTO_MAP, CODE_FILES
from tests.model.test_instance_segmentation import TINY_DETECTOR
from tests.model_helpers import ALL_ON, OFF, build, gradients, images


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()


def shard(model, mesh):
    """accelerate's `fsdp2_prepare_model`: the modules that are not to be split, the input embeddings, the rest."""
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module, mesh=mesh)
    fully_shard(model.get_input_embeddings(), mesh=mesh)
    fully_shard(model, mesh=mesh)


def test_loss_and_gradients_stay(mesh):
    model, inputs = build(**ALL_ON, **OFF).train(), {"pixel_values": images(), "noise": torch.rand(2, 16)}
    results = []
    for is_sharded in (False, True):
        if is_sharded:
            shard(model, mesh)
            assert isinstance(model, FSDPModule)
        model.zero_grad()
        loss = model(**inputs, return_logits=False).loss
        loss.backward()
        full = {name: getattr(g, "full_tensor", g.clone)() for name, g in gradients(model).items()}
        results.append((loss.detach(), full))
    assert_close(*results, rtol=1e-5, atol=1e-7)


def test_blocks_alone_are_not_to_be_split():
    """accelerate fails where a part of such a module is sharded by itself, as the patch embedding is."""
    model = build()
    assert set(model._no_split_modules) == {"ViTMAERobustLayer"}
    indivisible = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    assert len(indivisible) == 5
    assert not any(part is model.get_input_embeddings() for module in indivisible for part in module.modules())


def test_it_is_saved_as_the_class_that_it_was(mesh, tmp_path):
    model = build(**ALL_ON)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    shard(model, mesh)
    model.save_pretrained(tmp_path, state_dict=expected)
    assert type(model).__name__ == "FSDPViTMAERobustForPreTraining"
    assert {path.name for path in tmp_path.glob("*.py")} == CODE_FILES
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["auto_map"], config["architectures"]) == (AUTO_MAP, ["ViTMAERobustForPreTraining"])
    loaded = ViTMAERobustForPreTraining.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_a_detector_is_too(tmp_path):
    model = ViTMAERobustForInstanceSegmentation(ViTMAERobustInstanceSegmentationConfig(**TINY_DETECTOR))
    model.save_pretrained(tmp_path / "before")
    # What `fully_shard` makes of it.
    model.__class__ = type("FSDPViTMAERobustForInstanceSegmentation", (FSDPModule, type(model)), {})
    model.save_pretrained(tmp_path / "sharded")
    before, sharded = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("before", "sharded")
    )
    assert sharded == before
