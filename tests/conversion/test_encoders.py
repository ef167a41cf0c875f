"""Encoders from scratch, and from checkpoints of other kinds than the ViT family.

tests/finetuning/classification/test_models.py has what the encoders of all kinds compute.
"""

import pytest
import torch
from transformers import BeitModel, Dinov2Config, Dinov2Model

from hf_mae_robust.conversion.beit import mae_beit_config
from hf_mae_robust.conversion.encoders import VIT_ENCODERS, encoder_from_scratch, read_encoder
from hf_mae_robust.conversion.frozen import load_encoder
from hf_mae_robust.conversion.pixels import Pixels
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.errors import UserError
from tests.model_helpers import OFF, build

SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48}


def test_sizes_from_scratch_are_the_overrides_then_the_image_size_then_the_checkpoints(tmp_path):
    BeitModel(mae_beit_config(**SIZES)).save_pretrained(tmp_path)
    for overrides, image_size, expected in [({}, None, 32), ({}, 48, 48), ({"image_size": 64}, 48, 64)]:
        encoder, pixels = encoder_from_scratch(ModelSource(str(tmp_path), overrides), image_size)
        assert encoder.config.image_size == expected
        assert (encoder.config.hidden_size, encoder.config.intermediate_size) == (32, 48)
        assert pixels == Pixels()


def test_an_encoder_of_another_kind_is_read_where_it_may_be_one(tmp_path):
    model = Dinov2Model(Dinov2Config(**{**SIZES, "mlp_ratio": 2})).eval()
    model.save_pretrained(tmp_path)
    encoder, _ = read_encoder(ModelSource(str(tmp_path)))
    tensors = encoder.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="is a 'dinov2' model; needed here: vit_mae_robust, vit_mae"):
        read_encoder(ModelSource(str(tmp_path)), tuple(VIT_ENCODERS))


def test_the_decoder_is_left_behind(tmp_path):
    model = build(image_mean=[0.1, 0.2, 0.3])
    model.save_pretrained(tmp_path)
    encoder, pixels = read_encoder(ModelSource(str(tmp_path)), tuple(VIT_ENCODERS))
    assert encoder.state_dict().keys() == model.vit.state_dict().keys()
    assert pixels.image_mean == (0.1, 0.2, 0.3) and not encoder.training


def test_files_that_are_no_official_checkpoint(tmp_path):
    """Nobody is asked for the number of heads of such a file."""
    torch.save({"conv1.weight": torch.ones(2, 3, 7, 7)}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="resnet.pth is not an official checkpoint: .* its tensors are conv1.weight"):
        load_encoder(str(tmp_path / "resnet.pth"))
    (tmp_path / "empty.pth").touch()
    with pytest.raises(UserError, match="empty.pth"):
        load_encoder(str(tmp_path / "empty.pth"))
    build(**OFF).save_pretrained(tmp_path / "mae")
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(UserError, match=rf"{name} is a file of a model's folder. Give the folder, .*mae\."):
            load_encoder(str(tmp_path / "mae" / name))


def test_heads_of_an_official_file_are_asked_for_by_the_flag_of_the_command(tmp_path):
    torch.save(
        {"cls_token": torch.ones(1, 1, 8), "patch_embed.proj.weight": torch.ones(8, 3, 4, 4)}, tmp_path / "a.pth"
    )
    with pytest.raises(UserError, match="a.pth is an official checkpoint.* give --num_attention_heads 12 "):
        load_encoder(str(tmp_path / "a.pth"))
    with pytest.raises(UserError, match="give --config_overrides num_attention_heads=12 "):
        read_encoder(ModelSource(str(tmp_path / "a.pth")))
