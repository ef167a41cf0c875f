"""Runs over data with bad images in it."""

import json
from importlib.util import find_spec

import pytest
import torch
from datasets import Dataset, Features, Image, Value

from hf_mae_robust.pretrain import main, make_parser, pretrain
from tests.helpers import TINY, write_parquet_set
from tests.model_helpers import build
from tests.runs import run, tiny_run


@pytest.fixture
def spoilt_set(tmp_path):
    """64 images to train on, 3 of them bad, 16 to evaluate on, 2 of them bad."""
    folder = write_parquet_set(tmp_path / "set", {"train": 64, "validation": 16}, files=1, row_group=10)
    for split, bad in (("train", {5: b"", 6: b"<html>", 40: None}), ("validation", {0: b"text", 9: None})):
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        table = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")).cast_column(
            "image", Image(decode=False)
        )
        images = [{"bytes": bad[i], "path": None} if i in bad else image for i, image in enumerate(table["image"])]
        images = [None if i in bad and bad[i] is None else image for i, image in enumerate(images)]
        features = Features({"image": Image(), "label": Value("int64")})
        spoilt = Dataset.from_dict({"image": images, "label": [0] * len(images)}, features=features)
        spoilt.to_parquet(path, batch_size=10)
    return folder


ON = ["--target_normalization", "global_patch", "--target_statistics", "auto", "--max_bad_images", "0.2"]


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_a_run_goes_on_and_lists_them(spoilt_set, tmp_path, capsys, streaming):
    words = tiny_run(spoilt_set, *ON, "--output_dir", str(tmp_path / "out"), "--dataset_streaming", streaming)
    trainer = pretrain(*make_parser().parse(words))
    records = [json.loads(line) for line in (tmp_path / "out" / "skipped_images.jsonl").read_text().splitlines()]
    found = {(record["split"].rsplit(" ")[-1], record["row"], record["kind"]) for record in records}
    assert len(records) == len(found) == 5
    assert found == {
        ("(train)", 5, "empty"), ("(train)", 6, "not_an_image"), ("(train)", 40, "empty"),
        ("(validation)", 0, "not_an_image"), ("(validation)", 9, "empty"),
    }  # fmt: skip
    assert trainer.state.global_step == 24
    assert "Not decodable: 3 empty, 2 not_an_image" in capsys.readouterr().out
    # The evaluation leaves them out.
    batches = [batch for batch in trainer.get_eval_dataloader() if (batch["row"] >= 0).any()]
    assert sum(int((batch["row"] >= 0).sum()) for batch in batches) == 14
    assert torch.tensor(trainer.evaluate()["eval_loss"]).isfinite()


def test_too_many_end_the_run_with_a_sentence(spoilt_set, tmp_path, capsys):
    words = tiny_run(spoilt_set, "--output_dir", str(tmp_path / "out"))
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "of 64 images" in error and "--max_bad_images 0.01" in error and "Traceback" not in error
    assert (tmp_path / "out" / "skipped_images.jsonl").read_text()


def test_a_run_that_logs_and_saves_nothing_looks_at_its_end(spoilt_set, tmp_path, capsys):
    """8 steps, of which the Trainer would log the 500th."""
    words = tiny_run(spoilt_set, "--num_train_epochs", "1", "--eval_strategy", "no", "--logging_steps", "500")
    with pytest.raises(SystemExit) as end:
        main([*words, "--output_dir", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "3 of 64 images" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_two_processes_agree_on_what_is_bad(spoilt_set, tmp_path):
    words = tiny_run(spoilt_set, "--per_device_train_batch_size", "4", "--dataloader_num_workers", "2")
    ended = run(words, tmp_path / "strict", processes=2)
    assert ended.codes == [2, 2] and "Traceback" not in ended.output, ended.output
    done = run([*words, "--max_bad_images", "0.2"], tmp_path / "out", processes=2)
    assert done.codes == [0, 0], done.output
    rows = [json.loads(line)["row"] for line in (tmp_path / "out" / "skipped_images.jsonl").read_text().splitlines()]
    assert sorted(rows) == [0, 5, 6, 9, 40]


def test_a_resumed_run_goes_on_with_the_list(spoilt_set, tmp_path):
    words = tiny_run(spoilt_set, *ON, "--output_dir", str(tmp_path / "out"), "--save_strategy", "epoch")
    main(words)
    listed = tmp_path / "out" / "skipped_images.jsonl"
    first = listed.read_text()
    main(words)
    assert listed.read_text() == first
    main([*words, "--overwrite_output_dir", "--max_steps", "1", "--eval_split_name", "none"])
    assert not listed.exists() or len(listed.read_text()) < len(first)


def test_a_fault_of_ours_says_so_and_what_to_report(photos_dir, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise ValueError("three is not four")

    monkeypatch.setattr("hf_mae_robust.training.run.save_loss_plot", fail)
    with pytest.raises(SystemExit) as end:
        main(tiny_run(photos_dir, "--max_steps", "1", "--output_dir", str(tmp_path)))
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and "three is not four" in error
    sentence = error.strip().splitlines()[-1]
    for part in ("this is a bug of hf_mae_robust (ValueError)", "report", "run.json", "transformers", "torch"):
        assert part in sentence


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim", "adamw_bnb_8bit"], "--optim adamw_bnb_8bit: "),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "--lr_scheduler_type cosine_with_min_lr: "),
        (["--lr_scheduler_type", "linear", "--lr_scheduler_kwargs", '{"a": 1}'], "--lr_scheduler_kwargs {'a': 1}"),
        (["--fsdp", "full_shard"], "fsdp only works in distributed training"),
        (["--torch_compile_backend", "fast"], "--torch_compile_backend fast: one of "),
        (["--load_best_model_at_end"], "--load_best_model_at_end needs evaluations"),
        (
            ["--save_strategy", "best", "--eval_strategy", "epoch", "--metric_for_best_model", "accuracy"],
            "--metric_for_best_model accuracy, which --save_strategy best looks at: an evaluation gives loss",
        ),
        (["--output_dir", "/dev/null/out"], "--output_dir /dev/null/out: /dev/null is not a folder"),
    ],
)
def test_what_would_fail_in_the_training_is_said_before(photos_dir, tmp_path, capsys, words, message):
    if "adamw_bnb_8bit" in words and find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(SystemExit) as end:
        main(tiny_run(photos_dir, "--output_dir", str(tmp_path / "out"), *words))
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and "Traceback" not in error


def test_the_folder_of_the_data_is_no_output_folder(photos_dir, tmp_path, capsys):
    """A second run would find its own pictures among the images."""
    with pytest.raises(SystemExit) as end:
        main(tiny_run(photos_dir, "--max_steps", "1", "--output_dir", str(photos_dir / ".." / photos_dir.name)))
    assert end.value.code == 2 and "is the folder of the data. Give another one" in capsys.readouterr().err
    assert not (photos_dir / "model.safetensors").exists()


@pytest.mark.parametrize("flag", ["model_name_or_path", "encoder_from"])
def test_a_run_does_not_overwrite_the_model_that_it_starts_from(photos_dir, tmp_path, capsys, flag):
    build(**TINY).save_pretrained(tmp_path / "mae")
    before = (tmp_path / "mae/model.safetensors").read_bytes()
    words = ["--max_steps", "1", "--output_dir", str(tmp_path / "mae"), f"--{flag}", str(tmp_path / "other/../mae")]
    (tmp_path / "other").mkdir()
    with pytest.raises(SystemExit) as end:
        main(tiny_run(photos_dir, *words))
    assert end.value.code == 2 and f"is the folder of --{flag}, whose model" in capsys.readouterr().err
    assert (tmp_path / "mae/model.safetensors").read_bytes() == before
