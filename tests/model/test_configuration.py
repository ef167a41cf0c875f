import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.model.bands_vit_mae_robust import BandForm, BandImage
from tests.model_helpers import TINY, tiny_config

CHECKPOINT = Path(__file__).parents[1] / "fixtures" / "v0_1_0" / "checkpoint-3"

DEFAULTS = {
    "decoder_attention_probs_dropout_prob": 0.3,
    "target_normalization": "global_rgb",
    "norm_pix_loss": True,
    "norm_pix_unbiased": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "mid_mask_ratio": 0.0,
    "mid_mask_layer_idx": 8,
    "norm_pix_axis": "patch",
    "decoder_keep_ratio": 1.0,
    "rescale_factor": 1 / 255,
    "bands": None,
    "nodata": None,
    "value_range": None,
    "layer_norm_eps": 1e-6,
    # The official ViT-B/16.
    "image_size": 224,
    "patch_size": 16,
    "mask_ratio": 0.75,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "decoder_hidden_size": 512,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}

POSITIVE = (
    "num_channels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)
DROPOUTS = ("attention_probs_dropout_prob", "decoder_attention_probs_dropout_prob", "hidden_dropout_prob")

BANDS = {"num_channels": 2, "rescale_factor": 1.0, "image_mean": [33144, 0.01], "image_std": [254.0, 1e-4]}

# Settings, then what the message has to say: the field, the value, what is allowed.
WRONG = [
    *[({field: value}, [f"{field}={value}", "[0, 1)"]) for field in DROPOUTS for value in (-0.1, 1.0, float("nan"))],
    *[({field: 0}, [f"{field}=0", "at least 1"]) for field in POSITIVE],
    ({"image_size": [32]}, ["image_size=[32]", "pair (height, width)"]),
    ({"patch_size": [8, 8, 8]}, ["patch_size=[8, 8, 8]", "pair (height, width)"]),
    ({"image_size": 0}, ["image_size=0", "at least 1"]),
    ({"patch_size": [8, -8]}, ["patch_size=[8, -8]", "at least 1"]),
    ({"image_size": 30}, ["image_size=30", "patch_size=8", "height 30", "remainder 6", "24 and 32"]),
    ({"image_size": (32, 36)}, ["image_size=(32, 36)", "patch_size=8", "width 36", "remainder 4", "32 and 40"]),
    ({"hidden_size": 62}, ["hidden_size=62", "num_attention_heads=4"]),
    ({"decoder_hidden_size": 30}, ["decoder_hidden_size=30", "decoder_num_attention_heads=4"]),
    ({"hidden_size": 66, "num_attention_heads": 3}, ["hidden_size=66", "multiple of 4"]),
    (
        {"decoder_hidden_size": 30, "decoder_num_attention_heads": 3},
        ["decoder_hidden_size=30", "multiple of 4"],
    ),
    *[
        ({"mask_ratio": value}, [f"mask_ratio={value}", "strictly between 0 and 1"])
        for value in (0.0, 1.0, -0.5, float("nan"))
    ],
    ({"mask_ratio": 0.99}, ["mask_ratio=0.99", "0 of 16", "at least one patch must be visible"]),
    ({"mask_ratio": 1e-17}, ["mask_ratio=1e-17", "16 of 16", "one masked"]),
    ({"mid_mask_ratio": 0.8}, ["mid_mask_ratio=0.8", "[0, mask_ratio=0.75]"]),
    ({"mid_mask_ratio": -0.1}, ["mid_mask_ratio=-0.1", "[0, mask_ratio=0.75]"]),
    ({"mid_mask_ratio": 0.25, "mid_mask_layer_idx": 3}, ["mid_mask_layer_idx=3", "[0, 2]"]),
    ({"mid_mask_ratio": 0.25, "mid_mask_layer_idx": -1}, ["mid_mask_layer_idx=-1", "[0, 2]"]),
    ({"mid_mask_ratio": 0.05}, ["mid_mask_ratio=0.05", "0 or at least 0.0625"]),
    ({"image_mean": [0.5, float("nan"), 0.5]}, ["image_mean=[0.5, nan, 0.5]", "finite"]),
    ({"image_std": [0.5, float("inf"), 0.5]}, ["image_std=[0.5, inf, 0.5]", "finite"]),
    ({"image_size": 4}, ["image_size=4", "Nearest that fit: 8."]),
    ({"target_normalization": "rgb"}, ["target_normalization='rgb'", "none", "global_rgb", "global_patch"]),
    ({"image_mean": [0.5]}, ["image_mean=[0.5]", "num_channels=3"]),
    ({"image_std": [0.5] * 4}, ["image_std=[0.5, 0.5, 0.5, 0.5]", "num_channels=3"]),
    ({"image_std": [0.5, 0.0, 0.5]}, ["image_std=[0.5, 0.0, 0.5]", "greater than 0"]),
    (
        {"patch_size": 1, "num_channels": 1},
        ["norm_pix_loss=True", "patch_size=1", "num_channels=1", "norm_pix_loss=False"],
    ),
    *[
        ({"decoder_keep_ratio": value}, [f"decoder_keep_ratio={value}", "(0, 1]"])
        for value in (0.0, -0.5, 1.5, float("nan"))
    ],
    ({"decoder_keep_ratio": 0.04}, ["decoder_keep_ratio=0.04", "none of 12", "at least 0.0417"]),
    ({"norm_pix_axis": "band"}, ["norm_pix_axis='band'", "patch", "channel"]),
    ({"norm_pix_axis": "channel", "patch_size": 1}, ["norm_pix_axis='channel'", "patch_size=1", "one pixel"]),
    *[({"rescale_factor": value}, [f"rescale_factor={value}", "1/255", "1.0"]) for value in (0.5, float("nan"))],
    *[
        ({field: value}, [f"{field}={value}", "band models only", "rescale_factor=1.0"])
        for field, value in {"bands": [2, 1, 0], "nodata": 0, "value_range": [[0, 255]] * 3}.items()
    ],
    *[
        ({**BANDS, field: None}, [f"{field}=None", "in the units of the files", "--image_statistics auto"])
        for field in ("image_mean", "image_std")
    ],
    ({**BANDS, "image_mean": [1.0]}, ["image_mean=[1.0]", "num_channels=2"]),
    ({**BANDS, "bands": [0]}, ["bands=[0]", "num_channels=2"]),
    ({**BANDS, "bands": [0, -1]}, ["bands=[0, -1]", "at least 0"]),
    ({**BANDS, "nodata": float("inf")}, ["nodata=inf", "finite", "NaN is always"]),
    ({**BANDS, "value_range": [[0, 1]]}, ["value_range=[[0, 1]]", "num_channels=2"]),
    *[
        ({**BANDS, "value_range": [[0, 1], pair]}, ["value_range=[[0, 1], ", str(pair), "lowest < highest"])
        for pair in ([1, 1], [2, 1], [0, float("inf")], [float("nan"), 1], [0, 1, 2])
    ],
]


@pytest.mark.parametrize(("field", "value"), DEFAULTS.items(), ids=str)
def test_default(field, value):
    assert getattr(ViTMAERobustConfig(), field) == value


def test_docstring_names_every_field_of_ours_with_its_default():
    docstring = inspect.getdoc(ViTMAERobustConfig).replace("`", "")
    for field in vars(ViTMAERobustConfig)["__annotations__"]:
        assert field in docstring
    fields = ("decoder_attention_probs_dropout_prob", "norm_pix_loss", "mid_mask_ratio", "mid_mask_layer_idx")
    for field in (*fields, "decoder_keep_ratio"):
        line = next(line for line in docstring.splitlines() if line.strip().startswith(f"{field} ("))
        assert f"defaults to {DEFAULTS[field]}" in line


@pytest.mark.parametrize(
    ("settings", "parts"), WRONG, ids=lambda value: None if isinstance(value, list) else str(value)
)
def test_wrong_setting_is_refused_and_the_message_helps(settings, parts):
    with pytest.raises(ValueError) as error:
        tiny_config(**settings)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("decoder_attention_probs_dropout_prob", "0.3"),
        ("target_normalization", 1),
        ("norm_pix_loss", "yes"),
        ("norm_pix_unbiased", 0.5),
        ("image_mean", "imagenet"),
        ("image_std", 0.5),
        ("mid_mask_ratio", None),
        ("mid_mask_layer_idx", 1.5),
        ("layer_norm_eps", "1e-6"),
        ("mask_ratio", "0.75"),
        ("image_size", "224"),
        ("hidden_size", 64.0),
        ("rescale_factor", None),
        ("bands", [0.0, 1.0, 2.0]),
        ("nodata", "0"),
        ("value_range", [0, 255]),
        ("norm_pix_axis", 1),
        ("decoder_keep_ratio", "0.5"),
    ],
)
def test_wrong_type_is_refused(field, value):
    with pytest.raises(StrictDataclassError, match=field):
        tiny_config(**{field: value})


@pytest.mark.parametrize(
    "settings",
    [
        {"mid_mask_layer_idx": 99},  # looked at only where mid-level tokens are on
        {"mid_mask_ratio": 0.75, "mid_mask_layer_idx": 2},
        {"mid_mask_ratio": 0.25, "mid_mask_layer_idx": 0},
        {"decoder_attention_probs_dropout_prob": 0},
        {"decoder_keep_ratio": 1},
        {"decoder_keep_ratio": 0.05},
        {"patch_size": 1, "num_channels": 1, "norm_pix_loss": False},
        {"patch_size": 1, "norm_pix_axis": "channel", "norm_pix_loss": False},
        {**BANDS, "bands": [5, 5], "nodata": -9999.0, "value_range": [[-1, 0.5], [0, 1]]},
    ],
    ids=str,
)
def test_limits_are_allowed(settings):
    config = tiny_config(**settings)
    for field, value in settings.items():
        assert getattr(config, field) == value


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {
            "decoder_attention_probs_dropout_prob": 0.1,
            "target_normalization": "global_patch",
            "norm_pix_loss": False,
            "norm_pix_unbiased": False,
            "image_mean": [0.1, 0.2],
            "image_std": [0.3, 0.4],
            "num_channels": 2,
            "mid_mask_ratio": 0.25,
            "decoder_keep_ratio": 0.5,
            "image_size": [32, 48],
            "patch_size": [8, 4],
        },
        {**BANDS, "bands": [3, 1], "nodata": 0, "value_range": [[0.0, 4e4], [0.0, 1.0]], "norm_pix_axis": "channel"},
    ],
    ids=["defaults", "everything changed", "bands"],
)
def test_saved_and_loaded(tmp_path, settings):
    config = tiny_config(**settings)
    config.save_pretrained(tmp_path)
    loaded = ViTMAERobustConfig.from_pretrained(tmp_path)
    assert type(loaded) is ViTMAERobustConfig
    for field in {**DEFAULTS, **TINY, **settings}:
        assert getattr(loaded, field) == getattr(config, field), field
    assert loaded.to_dict().keys() == config.to_dict().keys()


@pytest.mark.parametrize(
    ("image_size", "patch_size", "channels", "grid_size", "patch_dim"),
    [
        (32, 8, 3, (4, 4), 192),
        ([32, 48], 8, 3, (4, 6), 192),
        ((48, 32), (8, 4), 1, (6, 8), 32),
        (32, [4, 8], 5, (8, 4), 160),
    ],
)
def test_grid(image_size, patch_size, channels, grid_size, patch_dim):
    config = tiny_config(image_size=image_size, patch_size=patch_size, num_channels=channels)
    assert config.grid_size == grid_size
    assert config.num_patches == grid_size[0] * grid_size[1]
    assert config.patch_dim == patch_dim


@pytest.mark.parametrize("channels", [1, 4])
def test_image_statistics_default_to_one_half_where_there_are_not_three_channels(channels):
    config = tiny_config(num_channels=channels)
    assert list(config.image_mean) == list(config.image_std) == [0.5] * channels


def test_config_of_an_8_bit_model_names_no_field_of_band_models_and_no_ratio_of_1(tmp_path):
    """As before there were any, byte for byte."""
    config = ViTMAERobustConfig.from_pretrained(CHECKPOINT)
    later = {"rescale_factor", "bands", "nodata", "value_range", "norm_pix_axis", "decoder_keep_ratio"}
    assert config.to_dict().keys().isdisjoint(later)
    config.save_pretrained(tmp_path)
    before = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    del before["use_cache"]  # the Trainer's
    before["transformers_version"] = transformers.__version__
    expected = json.dumps(before, indent=2, sort_keys=True) + "\n"
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == expected


def test_band_settings_are_those_of_a_form():
    settings = {**BANDS, "bands": [3, 1], "nodata": -1.0, "value_range": [[32000.0, 40000.0], [0.0, 1.0]]}
    form = BandForm(**tiny_config(**settings).band_settings())
    pixels = np.array([9, 0.02, 9, 33398.0]).reshape(4, 1, 1).repeat(3, axis=-1)
    pixels[3, 0, 1], pixels[1, 0, 2] = 1e9, -1.0
    expected = [[[1.0, (40000 - 33144) / 254, 1.0]], [[100.0, 100.0, np.nan]]]
    np.testing.assert_allclose(form.apply(BandImage(pixels)), expected, rtol=1e-6)


def test_pooled_statistics():
    """Of the numbers of all channels taken together, against a large sample of them."""
    config = tiny_config(**{**BANDS, "image_mean": [3.0, -2.0], "image_std": [0.5, 4.0]})
    sample = np.random.default_rng(0).standard_normal((2, 1_000_000)) * [[0.5], [4.0]] + [[3.0], [-2.0]]
    np.testing.assert_allclose(config.pooled_statistics, (sample.mean(), sample.std()), rtol=5e-3, atol=5e-3)
