"""No file that a run or a command leaves behind names a folder of the machine that wrote it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hf_mae_robust import finetune, pretrain
from hf_mae_robust.__main__ import main
from tests.helpers import as_flags, finetuning_settings, photos
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


@pytest.mark.parametrize("kind", ["map-style", "streamed", "list"])
def test_the_list_of_images_that_cannot_be_decoded(kind, tmp_path, capsys):
    """And a list of before, which had absolute paths, is taken up all the same."""
    data = tmp_path / "my photos of the whole year and of the one before it, in a folder whose name is long" / "photos"
    for i, picture in enumerate(photos(24)):
        path = data / "train" / f"{'some' * 10} {i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    spoilt = sorted((data / "train").iterdir())[3]
    spoilt.write_bytes(b"<html>")
    name = data
    if kind == "list":
        name = data / "list.txt"
        name.write_text("".join(f"{path}\n" for path in sorted((data / "train").iterdir())))
    words = tiny_run(name, "--output_dir", str(tmp_path / "out"), "--max_bad_images", "0.5", "--max_steps", "3")
    words += ["--dataset_streaming"] if kind == "streamed" else []
    words += ["--allow_unused_files", "true", "--save_strategy", "steps", "--save_steps", "3"]
    pretrain.main(words)
    listed = tmp_path / "out" / "skipped_images.jsonl"
    content = listed.read_text()
    (record,) = map(json.loads, content.splitlines())
    assert record["split"] == f"{name.name} (train)"
    assert record["detail"] == f"train/{spoilt.name}: no image format recognised"
    assert folders_named_in(tmp_path / "out", tmp_path, data, name) == []
    if kind == "map-style":
        old = {**record, "split": f"{name} (train)", "detail": f"{spoilt}: why"}
        listed.write_text(json.dumps(old) + "\n")
        pretrain.main([*words, "--max_steps", "6", "--allow_elastic_resume"])
        assert listed.read_text() == json.dumps(old) + "\n"


@pytest.mark.parametrize("kind", [[], ["--linear_probe", "true"], ["--lora_r", "2"]])
def test_classification(kind, photos_dir, pretrained, tmp_path, capsys):
    settings = finetuning_settings(photos_dir, pretrained, tmp_path / "out")
    finetune.main(as_flags(settings, *ENDS, *kind))
    assert folders_named_in(tmp_path / "out", tmp_path, photos_dir, pretrained.parent) == []
    main(["card", str(tmp_path / "out")])
    assert folders_named_in(tmp_path / "out", tmp_path, photos_dir, pretrained.parent) == []


@pytest.mark.parametrize("to", ["beit", "vit", "timm", "original", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exported(to, pretrained, encoder_dir, tmp_path):
    """ONNX files of torch hold the lines of the code that made each node, unless they are taken out."""
    if to == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    model = encoder_dir if to == "original" else pretrained  # there is no place for statistics in it
    main(["export", str(model), str(tmp_path / "out" / "it"), "--to", to])
    assert folders_named_in(tmp_path / "out", tmp_path, pretrained.parent, encoder_dir) == []


def test_converted_and_measured(pretrained, photos_dir, tmp_path, capsys):
    main(["convert", str(pretrained), str(tmp_path / "out" / "it")])
    statistics = ["--image_size", "16", "--patch_size", "4", "--num_workers", "0"]
    statistics += ["--output", str(tmp_path / "out" / "s.safetensors")]
    main(["statistics", "--dataset_name", str(photos_dir), *statistics])
    assert folders_named_in(tmp_path / "out", tmp_path, photos_dir, pretrained.parent) == []
