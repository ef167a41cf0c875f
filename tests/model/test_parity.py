"""Equal to the official code and to stock with the ingredients off."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from hf_mae_robust import ViTMAERobustBackbone, ViTMAERobustForPreTraining, ViTMAERobustModel
from tests.model_helpers import ALL_ON, OFF, TINY, assert_equal_tensors, build, gradients, images, stock_of, tiny_config

OFFICIAL_TOP = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "mask_token": "decoder.mask_token",
    "decoder_embed": "decoder.decoder_embed",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
OFFICIAL_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def from_official(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ours = {}
    for key, tensor in tensors.items():
        if "blocks." not in key:
            module, dot, kind = key.rpartition(".") if key.endswith((".weight", ".bias")) else (key, "", "")
            ours[OFFICIAL_TOP[module] + dot + kind] = tensor
            continue
        stack, index, rest = key.split(".", 2)
        layer = {"blocks": "vit.layers", "decoder_blocks": "decoder.decoder_layers"}[stack] + f".{index}"
        module, kind = rest.rsplit(".", 1)
        if module == "attn.qkv":
            for part, values in zip("qkv", tensor.chunk(3)):
                ours[f"{layer}.attention.{part}_proj.{kind}"] = values
        else:
            ours[f"{layer}.{OFFICIAL_BLOCK[module]}.{kind}"] = tensor
    return ours


@pytest.mark.parametrize("kind", ["normpix", "rawpix"])
def test_equals_the_official_code(golden_dir, kind):
    golden = load_file(golden_dir / f"official_mae_tiny_{kind}.safetensors")
    weights = torch.load(golden_dir / f"official_mae_tiny_{kind}.pth", weights_only=True)["model"]
    model = ViTMAERobustForPreTraining(tiny_config(**OFF, norm_pix_loss=kind == "normpix"))
    assert model.config.layer_norm_eps == 1e-6
    model.load_state_dict(from_official(weights))
    model.train()
    outputs = model(golden["pixel_values"], noise=golden["noise"])
    outputs.loss.backward()

    assert_close(outputs.loss, golden["loss"][0], rtol=0, atol=1e-5)
    assert_close(outputs.logits, golden["pred"], rtol=0, atol=1e-5)
    assert torch.equal(outputs.mask, golden["mask"])
    prefix = "grad."
    expected = from_official({key[len(prefix) :]: value for key, value in golden.items() if key.startswith(prefix)})
    actual = gradients(model)
    assert actual.keys() == expected.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_equals_stock_with_the_ingredients_off(norm_pix_loss):
    ours = build(**OFF, norm_pix_loss=norm_pix_loss).train()
    stock = stock_of(ours).train()
    assert list(ours.state_dict()) == list(stock.state_dict())
    pixel_values, noise = images(), torch.rand(2, 16)
    actual, expected = ours(pixel_values, noise=noise), stock(pixel_values, noise=noise)
    actual.loss.backward()
    expected.loss.backward()

    for field in ("loss", "logits", "mask", "ids_restore"):
        assert_close(actual[field], expected[field], rtol=1e-5, atol=3e-6, msg=field)
    stock_gradients = gradients(stock)
    assert gradients(ours).keys() == stock_gradients.keys()
    for name, gradient in gradients(ours).items():
        assert_close(gradient, stock_gradients[name], rtol=1e-5, atol=1e-6, msg=name)


def test_outputs_hidden_states_attentions_and_tuples_as_stock():
    ours = build(**OFF).eval()
    stock = stock_of(ours).eval()
    for model in (ours, stock):
        model.set_attn_implementation("eager")
    inputs = {"pixel_values": images(), "noise": torch.rand(2, 16)}
    actual, expected = (model(**inputs, output_hidden_states=True, output_attentions=True) for model in (ours, stock))
    for field in ("hidden_states", "attentions"):
        assert len(actual[field]) == len(expected[field])
        for one, other in zip(actual[field], expected[field]):
            assert_close(one, other)
    as_tuple = ours(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert_close(as_tuple[0], actual.loss)


def test_tuples_by_the_configuration():
    """Stock's own pre-training model fails there, as its encoder gives it a tuple."""
    model, inputs = build().eval(), {"pixel_values": images(), "noise": torch.rand(2, 16)}
    expected, picture = model(**inputs), model.reconstruct(**inputs)
    model.config.return_dict = False
    as_tuple = model(**inputs)
    assert isinstance(as_tuple, tuple) and isinstance(model.vit(images()), tuple)
    for found in (as_tuple, model(**inputs, return_dict=True).to_tuple()):
        assert len(found) == 4 and all(map(torch.equal, found, expected.to_tuple()))
    assert torch.equal(model.reconstruct(**inputs), picture)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["encoder", "pre-training model", "backbone"])
def test_an_attention_mask_of_none_is_taken_as_by_stock(kind):
    model, pixel_values, noise = build().eval(), images(), {"noise": torch.rand(2, 16)}
    if kind == "encoder":
        model, noise = model.vit, {}
    elif kind == "backbone":
        model, noise = ViTMAERobustBackbone(tiny_config()).eval(), {}
    expected, found = model(pixel_values, **noise), model(pixel_values, **noise, attention_mask=None)
    if kind == "backbone":
        expected, found = expected.feature_maps, found.feature_maps
    assert torch.equal(found[0], expected[0])
    with pytest.raises(ValueError, match="^attention_mask: .* takes None only"):
        model(pixel_values, **noise, attention_mask=torch.ones(2, 17))


def names_of_4x(key: str) -> str:
    """As in the files that transformers 4.x wrote, facebook/vit-mae-base for one."""
    renamed = key.replace("vit.layers.", "vit.encoder.layer.")
    for new, old in {
        ".attention.q_proj.": ".attention.attention.query.",
        ".attention.k_proj.": ".attention.attention.key.",
        ".attention.v_proj.": ".attention.attention.value.",
        ".attention.o_proj.": ".attention.output.dense.",
        ".mlp.fc1.": ".intermediate.dense.",
        ".mlp.fc2.": ".output.dense.",
    }.items():
        renamed = renamed.replace(new, old)
    return renamed


def write_stock(stock, folder, layout):
    if layout == "hand-written 4.x":
        stock.config.save_pretrained(folder)
        save_file(
            {names_of_4x(key): tensor.contiguous() for key, tensor in stock.state_dict().items()},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
    else:
        stock.save_pretrained(folder, save_original_format=layout == "original")


def load_completely(cls, folder, **kwargs):
    model, info = cls.from_pretrained(folder, output_loading_info=True, **kwargs)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], problem
    return model


@pytest.mark.parametrize("layout", ["original", "new", "hand-written 4.x"])
def test_stock_checkpoint_loads_completely(tmp_path, layout):
    stock = stock_of(build(**OFF))
    write_stock(stock, tmp_path, layout)
    ours = load_completely(ViTMAERobustForPreTraining, tmp_path, **OFF)
    assert_equal_tensors(ours.state_dict(), stock.state_dict())
    encoder = load_completely(ViTMAERobustModel, tmp_path)
    assert_equal_tensors(encoder.state_dict(), stock.vit.state_dict())
    frozen = {name for name, parameter in ours.named_parameters() if not parameter.requires_grad}
    assert frozen == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}


@pytest.mark.parametrize("save_original_format", [True, False])
def test_stock_loads_our_checkpoint(tmp_path, save_original_format):
    ours = build(**OFF)
    ours.save_pretrained(tmp_path, save_original_format=save_original_format)
    config = ViTMAEConfig(**TINY)
    assert_equal_tensors(load_completely(ViTMAEForPreTraining, tmp_path, config=config).state_dict(), ours.state_dict())


def test_our_checkpoint_has_the_names_of_4x(tmp_path):
    ours = build(**OFF)
    ours.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {names_of_4x(key) for key in ours.state_dict()}


@pytest.mark.parametrize("save_original_format", [True, False])
@pytest.mark.parametrize("part", ["whole", "encoder"])
def test_our_checkpoint_comes_back(tmp_path, part, save_original_format):
    saved = build(**ALL_ON)
    saved = saved if part == "whole" else saved.vit
    saved.save_pretrained(tmp_path, save_original_format=save_original_format)
    loaded = load_completely(type(saved), tmp_path)
    assert_equal_tensors(loaded.state_dict(), saved.state_dict())
    if part == "whole":
        encoder = load_completely(ViTMAERobustModel, tmp_path)
        assert_equal_tensors(encoder.state_dict(), saved.vit.state_dict())


@pytest.mark.parametrize("part", ["whole", "encoder"])
@pytest.mark.parametrize("save_original_format", [True, False])
def test_load_state_dict_takes_what_save_pretrained_wrote(tmp_path, save_original_format, part):
    """The Trainer resumes in this way, non-strict: whatever does not fit would be dropped."""
    saved, fresh = build(**ALL_ON), build(**ALL_ON)
    if part == "encoder":
        saved, fresh = saved.vit, fresh.vit
    saved.save_pretrained(tmp_path, save_original_format=save_original_format)
    result = fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert_equal_tensors(fresh.state_dict(), saved.state_dict())
