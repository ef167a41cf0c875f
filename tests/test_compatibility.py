"""Folders that version 0.1.0 wrote still load, resume and fine-tune.

`fixtures/v0_1_0/checkpoint-3` is a checkpoint of a model of 2,276 parameters, after 3 of 6 steps, with all three
ingredients. Version 0.1.0 wrote it, and logged the losses below in the steps that followed.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from hf_mae_robust import ViTMAERobustForPreTraining
from hf_mae_robust.finetune import make_parser as make_finetune_parser
from hf_mae_robust.finetune import prepare as prepare_finetuning
from hf_mae_robust.pretrain import main
from tests.helpers import as_flags

CHECKPOINT = Path(__file__).parent / "fixtures" / "v0_1_0" / "checkpoint-3"
SIZES = {
    "image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 16, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16, "image_mean": [0.5], "image_std": [0.5],
}  # fmt: skip
FLAGS = {
    "config_overrides": ",".join(f"{name}={value}" for name, value in SIZES.items()),
    "mid_mask_ratio": 0.25,
    "mid_mask_layer_idx": 1,
    "target_normalization": "global_patch",
    "target_statistics": "auto",
    "crop_pct": 1.0,
    "per_device_train_batch_size": 64,
    "max_steps": 6,
    "warmup_steps": 2,
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_split_name": "none",
    "logging_steps": 1,
    "dataloader_num_workers": 0,
    "report_to": "none",
    "seed": 1,
}
LOSSES = {1: 1.5469682, 2: 1.4659210, 3: 1.2881753, 4: 1.2616007, 5: 1.1874059, 6: 1.1847446}


def test_a_checkpoint_resumes_with_the_same_losses(tmp_path, capsys):
    shutil.copytree(CHECKPOINT, tmp_path / CHECKPOINT.name)
    main(as_flags({**FLAGS, "output_dir": tmp_path}))
    assert f"Resuming from {tmp_path / CHECKPOINT.name}" in capsys.readouterr().out
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    losses = {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
    assert losses == pytest.approx(LOSSES, rel=1e-4)  # another version of torch may round otherwise


def test_a_model_computes_the_same_loss():
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.rand(4, 1, 8, 8, generator=generator), torch.rand(4, 16, generator=generator)
    model = ViTMAERobustForPreTraining.from_pretrained(CHECKPOINT).eval()
    assert model(images, noise=noise).loss.item() == pytest.approx(2.7387946, rel=1e-5)


def test_a_model_can_be_fine_tuned(tmp_path):
    settings = {"model_name_or_path": CHECKPOINT, "output_dir": tmp_path, "report_to": "none", "max_steps": 1}
    trainer, checkpoint = prepare_finetuning(make_finetune_parser().parse(as_flags(settings)))
    assert checkpoint is None and trainer.model.config.num_labels == 10
