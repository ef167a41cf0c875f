"""The patch projection is called as a module in the masked pass: hooks, offloading, adapters and sharding see it."""

import inspect

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from hf_mae_robust import ViTMAERobustForInstanceSegmentation, ViTMAERobustForPreTraining, ViTMAERobustModel
from tests.model_helpers import ALL_ON, OFF, build, gradients, images


@pytest.fixture
def inputs():
    return {"pixel_values": images(), "noise": torch.rand(2, 16)}


def test_chosen_patches_are_those_of_the_convolution():
    model = build().double()
    embed, pixels = model.vit.embeddings.patch_embeddings, images().double()
    ids = torch.rand(2, 16).argsort(dim=1)[:, :5]
    expected = embed(pixels).gather(1, ids[..., None].expand(-1, -1, 64))
    assert_close(embed(pixels, ids), expected, rtol=1e-12, atol=1e-12)
    convolution = torch.nn.Conv2d(3, 64, 8, 8).double()
    convolution.load_state_dict(embed.projection.state_dict())
    assert_close(embed(pixels), convolution(pixels).flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["vit.embeddings.patch_embeddings", "vit.embeddings.patch_embeddings.projection"])
def test_hooks_fire(inputs, name):
    model, seen = build(**OFF), []
    expected = model(**inputs).loss
    module = model.get_submodule(name)
    module.register_forward_hook(lambda *arguments: seen.append(arguments))
    assert model(**inputs).loss == expected and len(seen) == 1
    module.register_forward_hook(lambda module, inputs, output: output * 2)
    assert model(**inputs).loss != expected


@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload", "device_map"])
def test_runs_with_its_weights_offloaded(inputs, how, tmp_path):
    model = build(**ALL_ON, **OFF)
    expected = model(**inputs).loss
    if how == "cpu_offload":
        cpu_offload(model, execution_device=torch.device("cpu"))
    elif how == "disk_offload":
        disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    else:
        model.save_pretrained(tmp_path)
        places = {"vit.embeddings": "disk", "vit.layers": "cpu", "vit.layernorm": "disk", "decoder": "cpu"}
        places |= {"target_normalizer": "cpu", "vit.mid_mask_token": "cpu"}
        model = type(model).from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offloaded")
    assert model.vit.embeddings.patch_embeddings.projection.weight.device.type == "meta"
    with torch.no_grad():
        assert_close(model(**inputs).loss, expected)


def test_lora_on_the_projection_learns(inputs):
    model = get_peft_model(build(**OFF), LoraConfig(target_modules=["projection"], init_lora_weights=False))
    model(**inputs).loss.backward()
    adapters = gradients(model)
    assert len(adapters) == 2 and all(gradient.abs().max() > 0 for gradient in adapters.values())


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_adapters_learn_under_gradient_checkpointing(inputs, use_reentrant):
    """Reentrant checkpoints give no gradients unless their inputs ask for some, and the embeddings are frozen here."""
    model = build(**OFF)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).train()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        adapted.zero_grad()
        adapted(**inputs).loss.backward()
        results.append({name: gradient.clone() for name, gradient in gradients(adapted).items()})
    assert len(results[0]) == 10  # two of each of the 5 blocks
    assert_close(*results, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("masked", [True, False])
def test_images_of_another_type_than_the_weights_are_cast(inputs, masked):
    """As DeepSpeed trains in bfloat16, without autocast."""
    model, pixels = build(**OFF).to(torch.bfloat16), inputs["pixel_values"]
    embed, ids = model.vit.embeddings.patch_embeddings, torch.arange(4).expand(2, -1) if masked else None
    tokens = embed(pixels, ids)
    assert tokens.dtype == torch.bfloat16
    assert torch.equal(tokens, embed(pixels.to(torch.bfloat16), ids))
    assert torch.isfinite(model(**inputs).loss)


def test_changing_the_number_of_channels_later_is_refused():
    model = build()
    model.config.num_channels = 1
    for channels in (1, 3):
        with pytest.raises(ValueError, match="num_channels=1 was changed after the model was built for 3 channels"):
            model(images(channels=channels))


@pytest.mark.parametrize(
    "cls",
    [ViTMAERobustModel, ViTMAERobustForPreTraining, ViTMAERobustForInstanceSegmentation],
    ids=lambda c: c.__name__,
)
def test_keyword_arguments_are_those_of_transformers(cls):
    """transformers' own tests of attention implementations ask for this annotation."""
    assert inspect.signature(cls.forward).parameters["kwargs"].annotation == Unpack[TransformersKwargs]


def test_an_image_may_have_no_visible_patch():
    embed = build().vit.embeddings.patch_embeddings
    assert embed(images(), torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0, 64)
