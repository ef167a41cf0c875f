"""Checkpoints that pre-training starts from: which are taken, and what of them starts from scratch."""

import pytest
import torch
from transformers import BertConfig, ViTMAEConfig, ViTMAEForPreTraining

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.conversion.pretraining_model import load_pretraining_model, read_pretraining_config
from hf_mae_robust.conversion.source import ModelSource
from tests.helpers import TINY
from tests.model_helpers import ALL_ON, build


def test_overrides_win_over_the_checkpoint_and_the_checkpoint_over_defaults(tmp_path):
    ViTMAEConfig(**TINY, mask_ratio=0.6, norm_pix_loss=False).save_pretrained(tmp_path)
    config = read_pretraining_config(ModelSource(str(tmp_path), {"mask_ratio": 0.5, "mid_mask_ratio": 0.25}))
    assert type(config) is ViTMAERobustConfig and config.hidden_size == TINY["hidden_size"]
    assert (config.mask_ratio, config.mid_mask_ratio, config.norm_pix_loss) == (0.5, 0.25, False)
    alone = read_pretraining_config(ModelSource(None, {"image_size": 64}))
    assert alone.to_dict() == ViTMAERobustConfig(image_size=64).to_dict()


def test_other_architectures_and_unknown_settings_are_refused(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'bert' model; pre-training goes on from 'vit_mae_robust' or stock"):
        read_pretraining_config(ModelSource(str(tmp_path)))
    with pytest.raises(ValueError, match="ViTMAERobustConfig has no setting depth, heads"):
        read_pretraining_config(ModelSource(None, {"heads": 3, "depth": 2}))


@pytest.mark.parametrize("kind", ["ours", "stock"])
def test_all_tensors_of_a_complete_checkpoint_are_taken(kind, tmp_path):
    model = build(**ALL_ON) if kind == "ours" else ViTMAEForPreTraining(ViTMAEConfig(**TINY))
    model.save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path), {} if kind == "ours" else {"mid_mask_ratio": 0.25})
    loaded, note = load_pretraining_model(source, read_pretraining_config(source), "eager")
    assert note is None and loaded.config._attn_implementation == "eager"
    found = loaded.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())
    assert found.keys() - model.state_dict().keys() == (set() if kind == "ours" else {"vit.mid_mask_token"})


def test_a_decoder_that_starts_from_scratch_is_named(tmp_path):
    encoder = build().vit
    encoder.save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path))
    model, note = load_pretraining_model(source, read_pretraining_config(source))
    missing = sorted(name for name in model.state_dict() if not name.startswith("vit."))
    expected = f"{tmp_path} lacks {len(missing)} tensors, which start from scratch: {', '.join(missing[:4])}, ..."
    assert note == f"Note: {expected}"
    found = model.vit.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in encoder.state_dict().items())
