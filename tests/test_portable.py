"""No file that a run or a command leaves behind names a folder of the machine that wrote it."""

from pathlib import Path

import pytest

from hf_mae_robust import finetune, pretrain
from hf_mae_robust.__main__ import main
from tests.helpers import as_flags, finetuning_settings
from tests.portable import folders_named_in
from tests.runs import tiny_run

ENDS = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "epoch"]


@pytest.fixture(scope="module")
def pretrained(photos_dir, tmp_path_factory) -> Path:
    """A finished pre-training, with checkpoints, TensorBoard's file and the statistics of a population."""
    folder = tmp_path_factory.mktemp("my-machine") / "out"
    statistics = ["--target_normalization", "global_patch", "--target_statistics", "auto"]
    pretrain.main(tiny_run(photos_dir, "--output_dir", str(folder), *ENDS, *statistics, "--report_to", "tensorboard"))
    return folder


def test_the_search_finds_what_it_looks_for(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\x00" + str(tmp_path / "set").encode() + b"\x00")
    (tmp_path / "b.json").write_text(f'{{"base": "{str(tmp_path)}"}}')
    (tmp_path / "c.json").write_text('{"base": "set/of/mine"}')
    found = folders_named_in(tmp_path, tmp_path)
    assert [line.split()[0] for line in found if line.endswith(str(tmp_path))] == ["a.bin", "b.json"]


def test_pretraining(pretrained, photos_dir):
    assert len(list(pretrained.glob("checkpoint-*"))) == 2 and (pretrained / "target_statistics.safetensors").exists()
    assert folders_named_in(pretrained, pretrained.parent, photos_dir) == []


@pytest.mark.parametrize("kind", [[], ["--linear_probe", "true"], ["--lora_r", "2"]])
def test_classification(kind, photos_dir, pretrained, tmp_path, capsys):
    settings = finetuning_settings(photos_dir, pretrained, tmp_path / "out")
    finetune.main(as_flags(settings, *ENDS, *kind))
    assert folders_named_in(tmp_path / "out", tmp_path, photos_dir, pretrained.parent) == []
    main(["card", str(tmp_path / "out")])
    assert folders_named_in(tmp_path / "out", tmp_path, photos_dir, pretrained.parent) == []


@pytest.mark.parametrize("to", ["beit", "vit", "timm", "original"])
def test_exported(to, pretrained, encoder_dir, tmp_path):
    model = encoder_dir if to == "original" else pretrained  # there is no place for statistics in it
    main(["export", str(model), str(tmp_path / "out" / "it"), "--to", to])
    assert folders_named_in(tmp_path / "out", tmp_path, pretrained.parent, encoder_dir) == []


def test_converted_and_measured(pretrained, photos_dir, tmp_path, capsys):
    main(["convert", str(pretrained), str(tmp_path / "out" / "it")])
    statistics = ["--image_size", "16", "--patch_size", "4", "--num_workers", "0"]
    statistics += ["--output", str(tmp_path / "out" / "s.safetensors")]
    main(["statistics", "--dataset_name", str(photos_dir), *statistics])
    assert folders_named_in(tmp_path / "out", tmp_path, photos_dir, pretrained.parent) == []
