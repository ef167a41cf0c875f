"""The command line as users run it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from hf_mae_robust.pretrain import main
from hf_mae_robust.statistics.patch_statistics import PatchStatistics
from hf_mae_robust.training.checkpoints import newest_checkpoint
from tests.helpers import TINY, TINY_OVERRIDES, image_table, photos, write_parquet_set
from tests.runs import run


def flags(folder, output_dir, *words):
    return [
        "--dataset_name", str(folder), "--config_overrides", TINY_OVERRIDES, "--output_dir", str(output_dir),
        "--per_device_train_batch_size", "8", "--num_train_epochs", "1", "--dataloader_num_workers", "0",
        "--logging_steps", "1", "--report_to", "none", "--crop_pct", "1.0", *words,
    ]  # fmt: skip


def logged(output_dir):
    history = json.loads((Path(output_dir) / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def photos_dir(tmp_path_factory):
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 48, "validation": 11})


@pytest.mark.slow  # .ci/run has it too
def test_no_argument_but_a_shorter_run(tmp_path):
    result = run(["--max_steps", "4", "--logging_steps", "1", "--report_to", "none"], tmp_path)
    assert result.codes == [0], result.stderr
    # Where DeepSpeed is installed, it says at its import that there is no GPU.
    first_line = next(line for line in result.stdout.splitlines() if "real_accelerator.py" not in line)
    assert first_line.startswith("Pre-training") and "effective batch 50" in first_line and "digits" in first_line
    assert "learning rate" in first_line and "4 steps" in first_line
    assert "loss=" in result.stderr and "images/s=" not in result.stderr.split("loss=")[0]
    for name in ("reconstructions.png", "loss.png"):
        assert np.asarray(Image.open(tmp_path / name).convert("L")).std() > 5
    assert json.loads((tmp_path / "all_results.json").read_text())["eval_loss"] > 0


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_two_processes_train_together(photos_dir, tmp_path, streaming):
    """Same losses as one process with the double batch where the order allows it; statistics of everything, masks,
    evaluation over every image once."""
    common = [
        "--target_normalization", "global_patch", "--target_statistics", "auto", "--mid_mask_ratio", "0.25",
        "--decoder_attention_probs_dropout_prob", "0", "--dataset_streaming", streaming,
    ]  # fmt: skip
    folder = shutil.copytree(photos_dir, tmp_path / "set")  # nothing of it is cached
    words = flags(folder, tmp_path / "two", *common, "--per_device_train_batch_size", "4")
    result = run(words, tmp_path / "two", processes=2)
    assert result.codes == [0, 0], result.stderr
    assert "effective batch 8 (4 x 2 processes" in result.stdout
    assert result.stdout.count("Pre-training") == 1
    main(flags(photos_dir, tmp_path / "one", *common))
    ours, alone = (PatchStatistics.load(tmp_path / name / "target_statistics.safetensors") for name in ("two", "one"))
    assert ours.metadata["num_images"] == 48
    torch.testing.assert_close(ours.mean, alone.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.std, alone.std, rtol=1e-9, atol=0)
    if streaming == "false":
        assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), rel=1e-4)
        results = [json.loads((tmp_path / name / "all_results.json").read_text()) for name in ("two", "one")]
        assert results[0]["eval_loss"] == pytest.approx(results[1]["eval_loss"], rel=1e-3)


def test_goes_on_by_itself_from_the_newest_checkpoint_unless_told_otherwise(photos_dir, tmp_path, capsys):
    words = flags(photos_dir, tmp_path, "--save_strategy", "epoch")
    main(words)
    longer = [*words, "--num_train_epochs", "2", "--allow_elastic_resume"]
    main(longer)
    assert f"Resuming from {tmp_path / 'checkpoint-6'}" in capsys.readouterr().out
    assert len(logged(tmp_path)) == 12
    main([*longer, "--resume_from_checkpoint", str(tmp_path / "checkpoint-6")])
    assert len(logged(tmp_path)) == 12
    capsys.readouterr()
    main([*words, "--overwrite_output_dir"])
    output = capsys.readouterr().out
    assert "Training starts from the beginning: removed" in output and "Resuming" not in output
    assert len(logged(tmp_path)) == 6


def test_starting_over_with_bad_input_removes_nothing(photos_dir, tmp_path, capsys):
    words = flags(photos_dir, tmp_path, "--save_strategy", "epoch")
    main(words)
    for bad in (["--image_column_name", "photo"], ["--repeated_augmentation", "3"], ["--crop_scale", "1", "0"]):
        with pytest.raises(SystemExit):
            main([*words, "--overwrite_output_dir", *bad])
    assert newest_checkpoint(tmp_path).name == "checkpoint-6"


def test_statistics_of_an_earlier_run_in_the_folder_do_not_stay(photos_dir, tmp_path):
    first, again, path = tmp_path / "first", tmp_path / "again", tmp_path / "again" / "target_statistics.safetensors"
    words = flags(
        photos_dir, first, "--target_normalization", "global_patch", "--max_steps", "1", "--save_strategy", "no"
    )
    main([*words, "--target_statistics", "auto"])
    shutil.copytree(first, again)
    words += ["--output_dir", str(again)]
    main([*words, "--target_statistics", "auto"])
    main([*words, "--target_statistics", str(path)])
    assert path.read_bytes() == (first / path.name).read_bytes()
    main([*words, "--target_normalization", "global_rgb"])
    assert not path.exists()


def test_a_stock_checkpoint_is_trained_on(photos_dir, tmp_path, capsys):
    names = set(ViTMAEConfig().to_dict())
    stock = ViTMAEForPreTraining(ViTMAEConfig(**{key: value for key, value in TINY.items() if key in names}))
    stock.save_pretrained(tmp_path / "stock")
    words = flags(
        photos_dir, tmp_path / "out", "--model_name_or_path", str(tmp_path / "stock"), "--learning_rate", "1e-30"
    )
    words.remove("--config_overrides"), words.remove(TINY_OVERRIDES)
    with pytest.raises(SystemExit):
        main([*words, "--target_normalization", "global_patch"])
    assert "holds no patch statistics; give --target_statistics auto" in capsys.readouterr().err
    main([*words, "--save_strategy", "steps", "--save_steps", "1"])
    assert "lacks" not in capsys.readouterr().out
    main([*words, "--save_strategy", "steps", "--save_steps", "1"])  # the same command resumes
    assert "Resuming from" in capsys.readouterr().out
    trained = load_file(tmp_path / "out" / "model.safetensors")
    expected = stock.state_dict()
    key = "vit.encoder.layer.1.output.dense.weight"
    assert torch.equal(trained[key], expected["vit.layers.1.mlp.fc2.weight"])


def test_an_unseekable_stream_needs_and_takes_steps(tmp_path, capsys):
    (tmp_path / "images" / "train").mkdir(parents=True)
    for i, pixels in enumerate(photos(10)):
        Image.fromarray(pixels).save(tmp_path / "images" / "train" / f"{i}.png")
    words = flags(tmp_path / "images", tmp_path / "out", "--dataset_streaming", "--per_device_train_batch_size", "4")
    with pytest.raises(SystemExit):
        main(words)
    assert "give --max_steps" in capsys.readouterr().err
    main([*words, "--max_steps", "5", "--warmup_steps", "1"])
    assert len(logged(tmp_path / "out")) == 5 and (tmp_path / "out" / "reconstructions.png").is_file()


def statistics_of_patch_2(tmp_path):
    path = tmp_path / "stats.safetensors"
    save_file(
        {"mean": torch.zeros(12), "std": torch.ones(12)}, path, metadata={"format": "hf_mae_robust.patch_statistics"}
    )
    return str(path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image_column_name", "photo"], "no column 'photo'"),
        (["--train_split_name", "training"], "no split 'training'"),
        (["--dataset_name", "no/such/folder"], "--dataset_name no/such/folder"),
        (["--mask_ratio", "1.5"], "--mask_ratio 1.5: must be above 0 and below 1"),
        (["--config_overrides", "patch_sise=4"], "no setting patch_sise"),
        (["--config_overrides", "image_size=30,patch_size=4"], "not a multiple of patch_size=4"),
        (["--mid_mask_ratio", "0.25", "--mid_mask_layer_idx", "7"], "mid_mask_layer_idx=7"),
        (["--target_normalization", "global_patch"], "needs --target_statistics"),
        (["--target_statistics", "auto"], "for --target_normalization global_patch"),
        (
            ["--target_normalization", "global_patch", "--target_statistics", "none.safetensors"],
            "No patch statistics at",
        ),
        (["--statistics_samples", "5"], "--statistics_samples 5: this run computes no statistics"),
        (["--resume_from_checkpoint", "nowhere"], "no such folder"),
        (["--eval_split_name", "none", "--eval_strategy", "epoch"], "no split to evaluate on"),
        (["--crop_scale", "0.9", "0.5"], "crop_scale"),
        (["--crop_scale", "0.9"], "--crop_scale takes two numbers"),
        (["--crop_pct", "2"], "--crop_pct 2: must be at least 0.1 and at most 1"),
        (["--attn_implementation", "flash_attention_2"], "flash-attn"),
        (["--max_train_samples", "0"], "--max_train_samples 0: must be at least 1"),
    ],
)
def test_bad_input_ends_in_one_sentence(photos_dir, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(flags(photos_dir, tmp_path / "out", *words))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_statistics_of_another_shape_and_unknown_yaml_key(photos_dir, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(
            flags(
                photos_dir, tmp_path / "out", "--target_normalization", "global_patch",
                "--target_statistics", statistics_of_patch_2(tmp_path),
            )
        )  # fmt: skip
    assert "patches of 12 numbers" in capsys.readouterr().err
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"epochs": 3}))
    with pytest.raises(SystemExit):
        main(["--config", str(tmp_path / "recipe.yaml"), *flags(photos_dir, tmp_path / "out")])
    assert "unknown key 'epochs'" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_broken_image_beyond_the_limit_is_named_and_checkpoints_stay(tmp_path, capsys, workers):
    table = image_table(24)
    table = table.cast_column("image", table.features["image"].__class__(decode=False))
    rows = [row["image"] for row in table]
    rows[17] = {"bytes": b"<html>404</html>", "path": "lost.jpg"}
    features = image_table(2).features
    (tmp_path / "set").mkdir()
    Dataset.from_dict({"image": rows, "label": [0] * 24}, features=features).to_parquet(tmp_path / "set/train.parquet")
    with pytest.raises(SystemExit) as stop:
        main(
            flags(
                tmp_path / "set", tmp_path / "out", "--save_strategy", "steps", "--save_steps", "1",
                "--per_device_train_batch_size", "2", "--dataloader_num_workers", workers, "--seed", "3",
            )
        )  # fmt: skip
    assert stop.value.code == 2
    assert "1 of 24 images" in capsys.readouterr().err
    assert '"row": 17' in (tmp_path / "out" / "skipped_images.jsonl").read_text()
    assert newest_checkpoint(tmp_path / "out") is not None


def test_gray_cmyk_and_tiny_images_are_trained_on(tmp_path):
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    pictures = [Image.fromarray(pixels) for pixels in photos(8)]
    pictures[0].convert("L").save(folder / "gray.jpg")
    pictures[1].convert("CMYK").save(folder / "cmyk.jpg")
    pictures[2].resize((2, 1)).save(folder / "tiny.png")
    for i, picture in enumerate(pictures[3:]):
        picture.save(folder / f"{i}.png")
    main(
        flags(tmp_path / "images", tmp_path / "out", "--train_val_split", "0.25", "--per_device_train_batch_size", "3")
    )
    assert np.isfinite(logged(tmp_path / "out")).all()


def test_a_probe_of_one_class_ends_in_a_sentence(tmp_path, capsys):
    for i, pixels in enumerate(photos(8)):
        (tmp_path / "one/cat").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"one/cat/{i}.png")
    probe = ["--diagnostics_steps", "1", "--label_column_name", "label", "--probe_samples", "4"]
    with pytest.raises(SystemExit) as stop:
        main(flags(tmp_path / "one", tmp_path / "out", *probe))
    assert stop.value.code == 2 and "column 'label' has one class, 'cat'" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.safetensors"))
