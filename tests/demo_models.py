"""Tiny checkpoints for the tests of the demo, trained nowhere: 64 pixels, patches of 8."""

from pathlib import Path

import torch
from transformers import BeitForImageClassification

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining, ViTMAERobustModel
from hf_mae_robust.conversion.beit import mae_beit_config
from hf_mae_robust.data.preprocessing import evaluation_processor

SIZES = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}
NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


def save_model(folder: Path, kind: str = "decoder", **settings) -> Path:
    """kind: decoder, encoder or classifier. Weights far from zero, so that everything depends on the image."""
    torch.manual_seed(0)
    if kind == "classifier":
        labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
        model = BeitForImageClassification(mae_beit_config(**{**SIZES, "use_mean_pooling": True, **labels, **settings}))
    else:
        config = ViTMAERobustConfig(**{**SIZES, **DECODER, "mid_mask_layer_idx": 1, **settings})
        model = (ViTMAERobustForPreTraining if kind == "decoder" else ViTMAERobustModel)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position" not in name and "pos_embed" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    config = model.config
    statistics = {name: getattr(config, name) for name in ("image_mean", "image_std") if hasattr(config, name)}
    model.save_pretrained(folder)
    processor = evaluation_processor(config.image_size, crop_pct=0.8, num_channels=config.num_channels, **statistics)
    processor.save_pretrained(folder)
    return folder
