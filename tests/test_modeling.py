"""The model: equal to the official code and to stock where it should be, different where the paper says so."""

import numpy as np
import pytest
import torch
from conftest import TINY, tiny_config
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForPreTraining, ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit_mae import modeling_vit_mae as stock_code

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining, ViTMAERobustModel

OFF = {"decoder_attention_probs_dropout_prob": 0.0}  # the other two ingredients are off by default
ALL_ON = {"target_normalization": "global_patch", "mid_mask_ratio": 0.25}
TARGETS = [(kind, norm_pix) for kind in ("none", "global_rgb", "global_patch") for norm_pix in (False, True)]


def images(batch=2, height=32, width=32, channels=3):
    return torch.randn(batch, channels, height, width)


def build(**overrides) -> ViTMAERobustForPreTraining:
    """Random weights, biases included, so that each of them matters; random target statistics where there are any."""
    model = ViTMAERobustForPreTraining(tiny_config(**overrides))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    if model.config.target_normalization == "global_patch":
        dim = model.config.patch_dim
        model.set_target_statistics(torch.rand(dim), 0.1 + torch.rand(dim))
    return model


def stock_of(model, **overrides) -> ViTMAEForPreTraining:
    config = ViTMAEConfig(
        **TINY, layer_norm_eps=1e-6, norm_pix_loss=model.config.norm_pix_loss, num_channels=3, **overrides
    )
    stock = ViTMAEForPreTraining(config)
    stock.load_state_dict(model.state_dict())
    for module in (stock.vit.embeddings.position_embeddings, stock.decoder.decoder_pos_embed):
        module.requires_grad_(False)
    return stock


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_equal_tensors(actual: dict, expected: dict):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


# ---------------------------------------------------------------- the official code

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


# ---------------------------------------------------------------- stock


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
        assert_close(actual[field], expected[field], rtol=1e-6, atol=1e-6, msg=field)
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


# ---------------------------------------------------------------- initialisation


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
            xavier, default_of_pytorch = (6 / (fan_in + module.weight.shape[0])) ** 0.5, fan_in**-0.5
            bound = default_of_pytorch if name.endswith("bias") else xavier  # the patch projection's bias
            assert 0.95 * bound < values.abs().max() <= bound, name
            assert abs(values.std() - bound / 3**0.5) < 4 * bound / len(values) ** 0.5, name
            assert abs(values.mean()) < 4 * bound / (3 * len(values)) ** 0.5, name
    assert checked == len(list(model.parameters())) - 2


# ---------------------------------------------------------------- position embeddings stay fixed


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


# ---------------------------------------------------------------- drop edge


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

    monkeypatch.setattr(stock_code, "eager_attention_forward", spy(stock_code.eager_attention_forward))
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


# ---------------------------------------------------------------- targets


def patches_of(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """`(B, C, H, W)` -> `(B, L, D)`, patch by patch."""
    rows, columns = pixels.shape[2] // height, pixels.shape[3] // width
    patches = [
        pixels[:, :, i * height : (i + 1) * height, j * width : (j + 1) * width]
        .transpose(0, 2, 3, 1)
        .reshape(len(pixels), -1)
        for i in range(rows)
        for j in range(columns)
    ]
    return np.stack(patches, axis=1)


def expected_target(model, pixel_values) -> np.ndarray:
    config = model.config
    pixels = pixel_values.double().numpy()
    if config.target_normalization != "global_rgb":
        shape = (-1, 1, 1)
        pixels = pixels * np.reshape(config.image_std, shape) + np.reshape(config.image_mean, shape)
    target = patches_of(pixels, 8, 8)
    if config.target_normalization == "global_patch":
        mean, std = model.target_normalizer.mean.double().numpy(), model.target_normalizer.std.double().numpy()
        target = (target - mean) / np.sqrt(std**2 + 1e-6)
    if config.norm_pix_loss:
        variance = target.var(axis=-1, keepdims=True, ddof=1 if config.norm_pix_unbiased else 0)
        target = (target - target.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-6)
    return target


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_target(kind, norm_pix, unbiased):
    model = build(target_normalization=kind, norm_pix_loss=norm_pix, norm_pix_unbiased=unbiased, **OFF)
    pixel_values = images()
    target = model.compute_target(pixel_values)
    expected = torch.tensor(expected_target(model, pixel_values))
    assert target.dtype == torch.float32
    assert_close(target.double(), expected, rtol=1e-5, atol=1e-5)
    outputs = model(pixel_values)
    masked = outputs.mask.bool()
    assert_close(
        outputs.loss.double(), ((outputs.logits.double() - expected) ** 2)[masked].mean(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_target_of_low_precision_images_is_computed_in_float32(kind, norm_pix):
    model = build(target_normalization=kind, norm_pix_loss=norm_pix)
    pixel_values = images().to(torch.bfloat16)
    target = model.compute_target(pixel_values)
    assert target.dtype == torch.float32
    assert torch.equal(target, model.compute_target(pixel_values.float()))


def test_target_uses_the_image_statistics_of_the_config():
    model = build(target_normalization="none", norm_pix_loss=False, image_mean=[0.1, 0.2, 0.3], image_std=[0.4] * 3)
    pixel_values = torch.zeros(1, 3, 32, 32)
    assert_close(model.compute_target(pixel_values)[0, 0, :3], torch.tensor([0.1, 0.2, 0.3]))


def test_global_patch_without_statistics_says_what_to_do():
    model = ViTMAERobustForPreTraining(tiny_config(target_normalization="global_patch"))
    with pytest.raises(ValueError) as error:
        model(images())
    for part in ("hf_mae_robust statistics", "--target_statistics", "set_target_statistics"):
        assert part in str(error.value)


def test_global_patch_on_top_of_a_checkpoint_without_statistics_is_refused_too(tmp_path):
    build().save_pretrained(tmp_path)
    model = ViTMAERobustForPreTraining.from_pretrained(tmp_path, target_normalization="global_patch")
    assert model.target_normalizer.mean.isnan().all()  # not whatever lay in the memory
    assert model.target_normalizer.std.isnan().all()
    with pytest.raises(ValueError, match="--target_statistics"):
        model(images())
    model.set_target_statistics(torch.zeros(192), torch.ones(192))
    assert torch.isfinite(model(images()).loss)


def test_wrong_statistics_are_refused():
    model = ViTMAERobustForPreTraining(tiny_config(target_normalization="global_patch"))
    good = torch.ones(192)
    for mean, std in [(torch.ones(3), good), (good, torch.ones(1)), (good[None], good)]:
        with pytest.raises(ValueError, match=r"\(192,\)"):
            model.set_target_statistics(mean, std)
    for mean, std in [(good * float("nan"), good), (good, good * float("inf")), (good, -good)]:
        with pytest.raises(ValueError, match="not finite or negative"):
            model.set_target_statistics(mean, std)
    with pytest.raises(ValueError, match="global_rgb"):
        build().set_target_statistics(good, good)


def test_statistics_are_saved_in_float32_and_come_back(tmp_path):
    model = build(target_normalization="global_patch")
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    for name in ("mean", "std"):
        buffer = getattr(model.target_normalizer, name)
        assert saved[f"target_normalizer.{name}"].dtype == torch.float32
        assert torch.equal(saved[f"target_normalizer.{name}"], buffer)

    pixel_values = images()
    expected = model.compute_target(pixel_values)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = ViTMAERobustForPreTraining.from_pretrained(tmp_path, dtype=dtype)
        assert loaded.decoder.decoder_pred.weight.dtype == dtype
        assert loaded.target_normalizer.mean.dtype == loaded.target_normalizer.std.dtype == torch.float32
        assert torch.equal(loaded.compute_target(pixel_values), expected)
        assert loaded(pixel_values.to(dtype)).loss.dtype == torch.float32


@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_constant_patches_give_a_finite_loss_and_gradient(kind, norm_pix):
    model = build(target_normalization=kind, norm_pix_loss=norm_pix).train()
    if kind == "global_patch":
        model.set_target_statistics(torch.zeros(192), torch.zeros(192))
    loss = model(torch.full((2, 3, 32, 32), -1.5)).loss
    loss.backward()
    assert torch.isfinite(loss)
    for name, gradient in gradients(model).items():
        assert torch.isfinite(gradient).all(), name


def test_casting_the_model_does_not_lower_the_statistics():
    """As Trainer does with --bf16_full_eval."""
    model = build(target_normalization="global_patch")
    mean, pixels = model.target_normalizer.mean.clone(), images()
    target = model.compute_target(pixels)
    model.to(torch.bfloat16)
    assert model.decoder.decoder_pred.weight.dtype == torch.bfloat16
    assert model.target_normalizer.mean.dtype == torch.float32 and torch.equal(model.target_normalizer.mean, mean)
    assert torch.equal(model.compute_target(pixels), target)


# ---------------------------------------------------------------- mid-level mask tokens


def test_mid_level_tokens():
    """A 14 x 14 grid as in the paper: 49 patches visible, 49 more tokens from block 1 on, 98 left to the decoder."""
    model = build(image_size=224, patch_size=16, mid_mask_ratio=0.25, **OFF)
    seen = {}

    def record(name, module):
        module.register_forward_pre_hook(lambda module, args: seen.__setitem__(name, args[0].detach()))

    for index, layer in enumerate(model.vit.layers):
        record(index, layer)
    record("decoder", model.decoder)
    record("decoder block", model.decoder.decoder_layers[0])
    pixel_values, noise = images(height=224, width=224), torch.rand(2, 196)
    outputs = model(pixel_values, noise=noise)

    assert [seen[index].shape[1] for index in range(3)] == [50, 99, 99]
    assert seen["decoder"].shape[1] == 99
    assert seen["decoder block"].shape[1] == 197

    # The smallest noise stays visible, the next gets mid-level tokens.
    order = torch.tensor(np.argsort(noise.numpy(), axis=1))
    visible, mid, rest = order[:, :49], order[:, 49:98], order[:, 98:]
    positions = model.vit.embeddings.position_embeddings[0, 1:]
    assert_close(seen[1][:, 50:], model.vit.mid_mask_token + positions[mid])
    expected_mask = torch.ones(2, 196).scatter(1, visible, 0.0)
    assert torch.equal(outputs.mask, expected_mask)

    # The decoder puts both kinds of encoder outputs back where they belong, and its mask token everywhere else.
    embedded = model.decoder.decoder_embed(seen["decoder"])
    placed = (seen["decoder block"] - model.decoder.decoder_pos_embed)[:, 1:]
    for image in range(2):
        assert_close(placed[image, visible[image]], embedded[image, 1:50], rtol=1e-5, atol=1e-5)
        assert_close(placed[image, mid[image]], embedded[image, 50:], rtol=1e-5, atol=1e-5)
        assert_close(placed[image, rest[image]], model.decoder.mask_token[0].expand(98, -1), rtol=1e-5, atol=1e-5)

    assert expected_mask.sum() == 2 * 147
    error = (outputs.logits - model.compute_target(pixel_values)) ** 2
    assert_close(outputs.loss, error[expected_mask.bool()].mean())
    outputs.loss.backward()
    assert model.vit.mid_mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("layer", [0, 2])
def test_mid_level_tokens_join_before_the_block_of_the_config(layer):
    model = build(mid_mask_ratio=0.5, mid_mask_layer_idx=layer)
    lengths = []
    for block in model.vit.layers:
        block.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    model(images())
    assert lengths == [5] * layer + [13] * (3 - layer)


def test_mid_level_tokens_at_every_masked_patch():
    model = build(mid_mask_ratio=0.75)
    assert model.vit(images(), mask_ratio=0.75).last_hidden_state.shape[1] == 17
    assert torch.isfinite(model(images()).loss)


def test_without_mid_level_tokens_there_is_no_such_parameter():
    assert not [name for name in build().state_dict() if "mid_mask" in name]
    assert "vit.mid_mask_token" in build(mid_mask_ratio=0.25).state_dict()


def test_mid_level_token_is_initialised_on_top_of_a_checkpoint_without_one(tmp_path):
    build().save_pretrained(tmp_path)
    model = ViTMAERobustForPreTraining.from_pretrained(tmp_path, mid_mask_ratio=0.25)
    assert 0.01 < model.vit.mid_mask_token.std() < 0.03


# ---------------------------------------------------------------- the encoder


def test_features_equal_those_of_stock_without_masking():
    model = build().eval()
    stock = ViTMAEModel(ViTMAEConfig(**TINY, layer_norm_eps=1e-6, mask_ratio=0.0)).eval()
    stock.load_state_dict(model.vit.state_dict())
    pixel_values = images()
    expected = stock(pixel_values, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
    outputs = model.vit(pixel_values)
    assert_close(outputs.last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(outputs.last_hidden_state, model.vit(pixel_values).last_hidden_state)
    assert not outputs.mask.any()
    assert torch.equal(outputs.ids_restore, torch.arange(16).expand(2, -1))


def test_features_take_no_mid_level_tokens():
    model = build(mid_mask_ratio=0.25).eval()
    plain = ViTMAERobustModel(tiny_config()).eval()
    plain.load_state_dict(model.vit.state_dict(), strict=False)
    pixel_values = images()
    assert_close(model.vit(pixel_values).last_hidden_state, plain(pixel_values).last_hidden_state)


def test_auto_model_gives_the_encoder(tmp_path):
    model = build(**ALL_ON).eval()
    model.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is ViTMAERobustModel
    pixel_values = images()
    assert_close(encoder(pixel_values).last_hidden_state, model.vit(pixel_values).last_hidden_state)
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is ViTMAERobustForPreTraining


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5, 0.75])
def test_mask_ratio_masks(mask_ratio):
    encoder, noise = build().vit, torch.rand(2, 16)
    outputs = encoder(images(), noise=noise, mask_ratio=mask_ratio)
    assert outputs.last_hidden_state.shape == (2, 1 + int(16 * (1 - mask_ratio)), 64)
    assert outputs.mask.sum(dim=1).tolist() == [16 * mask_ratio] * 2
    assert torch.equal(outputs.ids_restore, noise.argsort(dim=1).argsort(dim=1))


def test_masks_are_drawn_anew_without_noise():
    encoder = build().vit
    assert not torch.equal(encoder(images(), mask_ratio=0.75).mask, encoder(images(), mask_ratio=0.75).mask)


def test_wrong_inputs_are_refused():
    model = build()
    with pytest.raises(ValueError, match="mask_ratio=1.0"):
        model.vit(images(), mask_ratio=1.0)
    with pytest.raises(ValueError, match=r"noise has shape \(2, 15\).*\(2, 16\)"):
        model(images(), noise=torch.rand(2, 15))
    with pytest.raises(ValueError, match="channel"):
        model(images(channels=1))
    with pytest.raises(ValueError, match="40 x 32.*image_size=32.*interpolate_pos_encoding=True"):
        model(images(height=40))


# ---------------------------------------------------------------- patches, reconstruction


@pytest.mark.parametrize(
    ("image_size", "patch_size", "channels"),
    [(32, 8, 3), ((24, 40), 8, 3), ([32, 24], (8, 4), 1), ((16, 32), [4, 8], 5)],
)
def test_patchify_and_back(image_size, patch_size, channels):
    model = ViTMAERobustForPreTraining(tiny_config(image_size=image_size, patch_size=patch_size, num_channels=channels))
    (height, width), (p, q) = np.broadcast_to(image_size, 2), np.broadcast_to(patch_size, 2)
    pixel_values = images(height=height, width=width, channels=channels)
    patches = model.patchify(pixel_values)
    np.testing.assert_array_equal(patches.numpy(), patches_of(pixel_values.numpy(), p, q))
    assert torch.equal(model.unpatchify(patches), pixel_values)
    outputs = model(pixel_values)
    assert outputs.logits.shape == patches.shape
    assert torch.isfinite(outputs.loss)

    larger = images(height=2 * height, width=width + q, channels=channels)
    assert torch.equal(model.unpatchify(model.patchify(larger), larger.shape[-2:]), larger)


def test_patchify_equals_stock():
    model = build()
    stock, pixel_values = stock_of(model), images()
    patches = model.patchify(pixel_values)
    assert torch.equal(patches, stock.patchify(pixel_values))
    assert torch.equal(model.unpatchify(patches), stock.unpatchify(patches))


def test_patchify_refuses_what_does_not_fit():
    model = build()
    with pytest.raises(ValueError, match="1 channels.*num_channels=3"):
        model.patchify(images(channels=1))
    with pytest.raises(ValueError, match="32 x 36.*patch_size=8"):
        model.patchify(images(width=36))
    with pytest.raises(ValueError, match="16 patches.*32 x 40"):
        model.unpatchify(torch.zeros(1, 16, 192), (32, 40))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("image_size", [32, (24, 40)])
@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_a_perfect_prediction_reconstructs_the_image(monkeypatch, kind, norm_pix, image_size, unbiased):
    model = build(target_normalization=kind, norm_pix_loss=norm_pix, norm_pix_unbiased=unbiased, image_size=image_size)
    raw = torch.rand(2, 3, *np.broadcast_to(image_size, 2))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.config.image_mean, model.config.image_std))
    pixel_values = (raw - mean) / std
    target = model.compute_target(pixel_values)
    monkeypatch.setattr(model.decoder, "forward", lambda *args: stock_code.ViTMAEDecoderOutput(logits=target))
    assert_close(model.reconstruct(pixel_values), raw, rtol=0, atol=1e-5)
    assert_close(model.invert_target(target, pixel_values), raw, rtol=0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_reconstruct_keeps_visible_patches_and_the_mode(training):
    model = build(image_size=(24, 40)).train(training)
    pixel_values, noise = images(height=24, width=40), torch.rand(2, 15)
    picture = model.reconstruct(pixel_values, noise=noise)
    assert torch.equal(picture, model.reconstruct(pixel_values, noise=noise))  # no dropout
    assert all(module.training == training for module in model.modules())
    assert picture.dtype == torch.float32
    assert not picture.requires_grad

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.config.image_mean, model.config.image_std))
    same = (model.patchify(picture) == model.patchify(pixel_values * std + mean)).all(dim=-1)
    assert torch.equal(same, ~model.eval()(pixel_values, noise=noise).mask.bool())


def test_reconstruct_restores_the_mode_after_an_error():
    model = build().train()
    with pytest.raises(ValueError):
        model.reconstruct(images(height=40))
    assert model.training


# ---------------------------------------------------------------- other image sizes


def bicubic_1d(old: int, new: int) -> torch.Tensor:
    """The (new, old) matrix of 1-D bicubic interpolation."""
    return nn.functional.interpolate(torch.eye(old)[None, None], size=(new, old), mode="bicubic")[0, 0]


def positions_used(model, pixel_values):
    """What encoder and decoder add to their patch tokens, `(1, L, dim)` each."""
    seen = []
    with torch.no_grad():
        model.decoder.decoder_embed.weight.zero_()
        model.decoder.decoder_embed.bias.zero_()
        model.decoder.mask_token.zero_()
    hook = model.decoder.decoder_layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(pixel_values, interpolate_pos_encoding=True)
    hook.remove()
    return model.vit.embeddings(pixel_values, True)[2], seen[0][:1, 1:]


@pytest.mark.parametrize(("native", "new"), [((4, 4), (6, 6)), ((4, 4), (5, 8)), ((3, 5), (6, 4)), ((4, 4), (2, 8))])
def test_position_embeddings_are_interpolated_in_two_dimensions(native, new):
    model = build(image_size=[8 * size for size in native])
    tables = model.vit.embeddings.position_embeddings[:, 1:], model.decoder.decoder_pos_embed[:, 1:]
    used = positions_used(model, images(height=8 * new[0], width=8 * new[1]))
    vertical, horizontal = bicubic_1d(native[0], new[0]), bicubic_1d(native[1], new[1])
    for table, actual in zip(tables, used):
        expected = torch.einsum("ia,jb,abd->ijd", vertical, horizontal, table.reshape(*native, -1))
        assert_close(actual, expected.reshape(1, new[0] * new[1], -1), rtol=0, atol=1e-5)


def test_interpolation_changes_nothing_at_the_native_size():
    model = build().eval()
    pixel_values, noise = images(), torch.rand(2, 16)
    plain = model(pixel_values, noise=noise)
    interpolated = model(pixel_values, noise=noise, interpolate_pos_encoding=True)
    assert torch.equal(plain.logits, interpolated.logits)
    assert torch.equal(plain.loss, interpolated.loss)


def test_larger_image_that_is_not_square():
    model = build(**ALL_ON)
    pixel_values = images(height=40, width=64)
    outputs = model(pixel_values, interpolate_pos_encoding=True)
    assert outputs.logits.shape == (2, 40, 192)
    assert outputs.mask.sum(dim=1).tolist() == [30, 30]
    assert torch.isfinite(outputs.loss)
    assert model.reconstruct(pixel_values, interpolate_pos_encoding=True).shape == pixel_values.shape
    assert model.vit(pixel_values, interpolate_pos_encoding=True).last_hidden_state.shape == (2, 41, 64)


@pytest.mark.parametrize(("height", "width"), [(36, 32), (32, 4)])
def test_sizes_that_are_no_multiple_of_the_patch_are_refused(height, width):
    for model in (build(), build().vit):
        with pytest.raises(ValueError, match=f"{height} x {width} pixels are not a multiple of patch_size=8"):
            model(images(height=height, width=width), interpolate_pos_encoding=True)


# ---------------------------------------------------------------- training machinery


def test_gradient_checkpointing_changes_nothing():
    model = build(**ALL_ON, **OFF).train()
    pixel_values, noise = images(), torch.rand(2, 16)
    results = []
    for enable in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        enable()
        model.zero_grad()
        loss = model(pixel_values, noise=noise).loss
        loss.backward()
        results.append((loss, {name: gradient.clone() for name, gradient in gradients(model).items()}))
    assert all(layer.gradient_checkpointing for layer in [*model.vit.layers, *model.decoder.decoder_layers])
    assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("kind", "norm_pix"), TARGETS)
def test_bf16_autocast_leaves_target_and_loss_in_float32(kind, norm_pix):
    model = build(target_normalization=kind, norm_pix_loss=norm_pix, mid_mask_ratio=0.25).train()
    pixel_values = images()
    expected = model.compute_target(pixel_values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = model.compute_target(pixel_values)
        outputs = model(pixel_values)
    assert target.dtype == outputs.loss.dtype == torch.float32
    assert outputs.logits.dtype == torch.bfloat16
    assert torch.equal(target, expected)
    outputs.loss.backward()
    assert torch.isfinite(model.vit.mid_mask_token.grad).all()


def test_compiles_without_a_graph_break():
    model = build(**ALL_ON, **OFF).train()
    pixel_values, noise = images(), torch.rand(2, 16)

    def step(model):
        model.zero_grad()
        loss = model(pixel_values, noise=noise).loss
        loss.backward()
        return loss.detach(), {name: gradient.clone() for name, gradient in gradients(model).items()}

    expected = step(model)
    model.compile(fullgraph=True, backend="aot_eager")
    assert_close(step(model), expected, rtol=1e-5, atol=1e-6)


def test_compiles_with_dropped_edges_and_drawn_masks():
    model = build(**ALL_ON).train()
    model.compile(fullgraph=True, backend="aot_eager")
    pixel_values = images()
    first, second = model(pixel_values).loss, model(pixel_values).loss
    first.backward()
    assert torch.isfinite(first)
    assert first != second


def test_the_trainer_is_told_that_the_loss_is_a_mean():
    """Otherwise it would not divide it by the accumulation steps, since forward takes **kwargs."""
    assert ViTMAERobustForPreTraining.accepts_loss_kwargs is False


def test_config_of_another_family_keeps_the_ingredients_at_their_defaults(tmp_path):
    stock_of(build(**OFF)).save_pretrained(tmp_path)
    config = ViTMAERobustForPreTraining.from_pretrained(tmp_path).config
    assert type(config) is ViTMAERobustConfig
    assert config.decoder_attention_probs_dropout_prob == 0.3
