"""Fine-tuning for semantic segmentation: what is computed, that it resumes exactly, what it leaves behind, what it
refuses."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from torch import nn
from transformers import UperNetForSemanticSegmentation, pipeline

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.errors import UserError
from hf_mae_robust.finetune import finetune, main, make_parser, prepare
from hf_mae_robust.finetuning.segmentation.maps import IGNORED
from hf_mae_robust.finetuning.segmentation.trainer import (
    SegmentationTrainer,
    resized_classes,
    sum_over_pixels,
)
from tests.helpers import TINY, as_flags, losses, photos
from tests.launch_files import environment_of
from tests.portable import folders_named_in
from tests.runs import run

NAMES = {"0": "ground", "1": "red", "2": "void", "3": "blue"}
COLOURS = np.array([[60, 60, 60], [220, 40, 40], [240, 240, 240], [40, 40, 220]])
PLAIN = ["--augmentation", "false", "--drop_path_rate", "0"]
CROP = 32


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of coloured boxes `(h, w, 3)` and the map of its values `(h, w)`."""
    values = np.zeros((height, width), np.uint8)
    for value in (1, 3, 2, 3, 1):
        (top, high), (left, wide) = ((rng.integers(0, n // 2), rng.integers(n // 4, n // 2)) for n in (height, width))
        values[top : top + high, left : left + wide] = value
    noise = rng.integers(-20, 20, (height, width, 3))
    return (COLOURS[values] + noise).clip(0, 255).astype(np.uint8), values


def write_set(folder, splits: dict[str, list[tuple[np.ndarray, np.ndarray]]]):
    (folder / "data").mkdir(parents=True)
    features = Features({"image": Image(), "annotation": Image()})
    for split, pairs in splits.items():
        columns = {"image": [image for image, _ in pairs], "annotation": [values for _, values in pairs]}
        table = Dataset.from_dict(columns, features=features)
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", batch_size=5)
    (folder / "id2label.json").write_text(json.dumps(NAMES))
    return folder


@pytest.fixture(scope="module")
def scenes_dir(tmp_path_factory):
    """24 scenes to train on and 7 of different sizes to evaluate, which two processes cannot share evenly."""
    rng = np.random.default_rng(0)
    sizes = [(30, 44), (40, 40), (64, 30), (30, 44), (33, 200), (90, 120), (20, 20)]
    splits = {"train": [scene(rng, 36, 48) for _ in range(24)], "validation": [scene(rng, *size) for size in sizes]}
    return write_set(tmp_path_factory.mktemp("data") / "scenes", splits)


@pytest.fixture(scope="module")
def deep_encoder_dir(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    ViTMAERobustForPreTraining(ViTMAERobustConfig(**{**TINY, "num_hidden_layers": 6})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def flags(scenes_dir, deep_encoder_dir):
    """Flags of a run of 2 epochs of 3 steps; later ones win."""

    def build(*more):
        settings = {
            "task": "segmentation",
            "dataset_name": scenes_dir,
            "model_name_or_path": deep_encoder_dir,
            "image_size": CROP,
            "do_reduce_labels": "false",
            "ignore_index": 2,
            "segmentation_channels": 16,
            "layer_decay": 0.75,
            "per_device_train_batch_size": 8,
            "max_steps": -1,
            "num_train_epochs": 2,
            "base_learning_rate": 0.05,
            "warmup_steps": 1,
            "dataloader_num_workers": 0,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "eval_strategy": "no",
        }
        return as_flags(settings, *more)

    return build


@pytest.fixture
def words(flags, tmp_path):
    return lambda *more: flags("--output_dir", tmp_path / "out", *more)


@pytest.fixture
def arguments(words):
    return lambda *more: make_parser().parse(words(*more))


@pytest.fixture(scope="module")
def finished(flags, tmp_path_factory):
    """A run of 36 steps that was trained and evaluated: its folder, its results and its confusion matrix."""
    folder = tmp_path_factory.mktemp("finished")
    longer = ["--num_train_epochs", 12, "--base_learning_rate", 0.15, "--scale_range", 0.8, 1.25]
    trainer = finetune(*make_parser().parse(flags("--output_dir", folder, *longer)))
    results = json.loads((folder / "all_results.json").read_text())
    return SimpleNamespace(folder=folder, confusion=trainer.confusion, results=results)


def test_what_is_left_behind_names_no_folder_of_this_machine(finished):
    assert folders_named_in(finished.folder, finished.folder.parent) == []


def test_a_run_that_has_stopped_early_does_not_train_on(arguments):
    """Its evaluations have no loss."""
    words = [
        "--early_stopping_patience", 2, "--base_learning_rate", 1e-30, "--num_train_epochs", 40,
        "--save_strategy", "epoch", "--eval_strategy", "epoch", "--metric_for_best_model", "mean_iou",
    ]  # fmt: skip
    stopped = finetune(*arguments(*words)).state.global_step
    assert stopped < 120, "only the statistics of BatchNorm change, and they settle"
    assert finetune(*arguments(*words)).state.global_step == stopped


# ---- loss ----


def test_without_ignored_pixels_the_loss_is_the_stock_one(arguments):
    trainer, _ = prepare(arguments(*PLAIN))
    model = trainer.model.eval()
    images, classes = torch.randn(2, 3, CROP, CROP), torch.randint(0, 3, (2, CROP, CROP))
    inputs = {"pixel_values": images, "labels": classes, "row": torch.arange(2)}
    with torch.no_grad():
        expected = model(pixel_values=images, labels=classes).loss
        assert trainer.compute_loss(model, inputs) == pytest.approx(float(expected), rel=1e-6)


def test_ignored_pixels_count_as_zero_and_never_give_nan(arguments):
    """avg_non_ignore=False of mmsegmentation: the sum is divided by all pixels."""
    logits, classes = torch.randn(2, 3, 8, 8), torch.randint(-1, 3, (2, 8, 8))
    each = nn.functional.cross_entropy(logits, classes.clamp(min=0), reduction="none")
    assert sum_over_pixels(logits, classes).item() == pytest.approx(float(each[classes != IGNORED].sum()), rel=1e-6)
    trainer, _ = prepare(arguments(*PLAIN))
    nothing = torch.full((2, CROP, CROP), IGNORED)
    inputs = {"pixel_values": torch.randn(2, 3, CROP, CROP), "labels": nothing, "row": torch.arange(2)}
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in trainer.model.parameters())


def freeze_statistics(model: nn.Module) -> None:
    """Of BatchNorm, which differ between one batch of 8 and four of 2."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module


@pytest.mark.slow  # as in detection
def test_accumulated_steps_equal_one_large_batch(arguments, tmp_path):
    small = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4, "--output_dir", tmp_path / "other"]
    trainers = []
    for more in ([], small):
        trainer, _ = prepare(arguments("--drop_path_rate", 0, *more))
        freeze_statistics(trainer.model)
        trainer.train()
        trainers.append(trainer)
    large, accumulated = trainers
    assert losses(accumulated) == pytest.approx(losses(large), rel=2e-4)
    expected = dict(large.model.named_parameters())
    for name, parameter in accumulated.model.named_parameters():
        # Where a gradient is nearly 0, AdamW makes a step of its rounding: at most a third of one, of six.
        torch.testing.assert_close(parameter, expected[name], rtol=1e-3, atol=5e-4)


# ---- runs ----


def test_every_parameter_trains(arguments):
    trainer, _ = prepare(arguments())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    unchanged = [name for name, value in trainer.model.state_dict().items() if torch.equal(value, before[name])]
    assert unchanged == [] and trainer.state.global_step == 6
    rates = {group["initial_lr"] for group in trainer.optimizer.param_groups}
    assert sorted(rates) == pytest.approx([0.05 * 8 / 256 * 0.75**i for i in range(7, -1, -1)])


def test_it_learns(finished):
    """The commonest class everywhere would be a mean IoU of a quarter."""
    commonest = finished.confusion.sum(axis=1).max() / finished.confusion.sum()
    assert commonest / 3 < 0.25 and finished.results["eval_mean_iou"] > 0.6
    assert finished.results["eval_pixel_accuracy"] > commonest + 0.1


@pytest.mark.slow  # as in detection and classification
def test_a_resumed_run_equals_the_uninterrupted_one(arguments, tmp_path):
    """All augmentation, drop path and the running statistics of BatchNorm: bit by bit."""
    common = ["--save_strategy", "steps", "--save_steps", 2]
    whole = finetune(*arguments(*common, "--output_dir", tmp_path / "whole"))
    trainer, _ = prepare(arguments(*common))
    log = trainer.log

    def stop(*args, **kwargs):
        log(*args, **kwargs)
        trainer.control.should_training_stop = trainer.state.global_step == 5

    trainer.log = stop
    trainer.train()
    assert trainer.state.global_step == 5
    resumed = finetune(*arguments(*common))
    assert losses(resumed) == losses(whole)
    assert np.array_equal(resumed.confusion, whole.confusion)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_what_a_run_leaves_behind(finished, scenes_dir):
    folder, results = finished.folder, finished.results
    for name in ("loss.png", "classes.png", "predictions.png"):
        assert PILImage.open(folder / name).size[0] > 300
    content = json.loads((folder / "classes.json").read_text())
    assert [row["class"] for row in content["classes"]] == ["ground", "red", "blue"]
    validation = Dataset.from_parquet(str(scenes_dir / "data" / "validation-*.parquet"))
    values = np.concatenate([np.asarray(row["annotation"]).ravel() for row in validation])
    assert [row["pixels"] for row in content["classes"]] == [(values == value).sum() for value in (0, 1, 3)]
    assert results["eval_mean_iou"] == pytest.approx(np.mean([row["iou"] for row in content["classes"]]))
    assert {"eval_mean_accuracy", "eval_pixel_accuracy", "train_loss"} <= results.keys()


def test_the_result_is_a_stock_model_that_pipelines_run(finished, scenes_dir):
    folder = str(finished.folder)
    model, info = UperNetForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()) and model.config.id2label == {0: "ground", 1: "red", 2: "blue"}
    assert not list(finished.folder.glob("*.py")) and "auto_map" not in (finished.folder / "config.json").read_text()
    segment = pipeline("image-segmentation", folder)
    picture = Dataset.from_parquet(str(scenes_dir / "data" / "validation-*.parquet"))[0]["image"]
    found = np.full(picture.size[::-1], -1)
    for part in segment(picture):
        found[np.asarray(part["mask"]) > 0] = model.config.label2id[part["label"]]
    with torch.no_grad():
        logits = model.eval()(**segment.image_processor(picture, return_tensors="pt")).logits[0]
    assert np.array_equal(found, resized_classes(logits, picture.size[::-1]))


def test_evaluating_again_gives_the_same(finished, arguments, tmp_path):
    again = ["--eval_only", "--model_name_or_path", finished.folder, "--output_dir", tmp_path / "again"]
    evaluated = finetune(*arguments(*again))
    assert np.array_equal(evaluated.confusion, finished.confusion) and evaluated.state.global_step == 0
    assert (tmp_path / "again" / "classes.json").exists() and not (tmp_path / "again" / "model.safetensors").exists()
    with pytest.raises(UserError, match="--image_size is 128. Leave it out"):
        finetune(*arguments(*again, "--image_size", 128))


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(finished, words, tmp_path):
    again = words("--eval_only", "--model_name_or_path", finished.folder, "--per_device_eval_batch_size", 2)
    outcome = run(again, tmp_path / "both", processes=2, script="finetune")
    assert outcome.codes == [0, 0], outcome.output
    content = json.loads((tmp_path / "both" / "classes.json").read_text())
    assert content["confusion_matrix"] == finished.confusion.tolist()


@pytest.mark.slow  # that of pre-training is quick
def test_the_best_checkpoint_is_loaded_whole(arguments):
    common = ["--eval_strategy", "epoch", "--save_strategy", "epoch", "--load_best_model_at_end", "true"]
    trainer = finetune(*arguments(*common, "--metric_for_best_model", "mean_iou", "--num_train_epochs", 3))
    best = UperNetForSemanticSegmentation.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(value, best[name]) for name, value in trainer.model.state_dict().items())
    ious = [entry["eval_mean_iou"] for entry in trainer.state.log_history if "eval_mean_iou" in entry]
    assert trainer.state.best_metric == max(ious) == ious[-1]


def test_statistics_are_shared_where_several_gpus_train(arguments, monkeypatch):
    """The rest of the constructor needs those GPUs."""
    trainer, _ = prepare(arguments())
    given = []
    monkeypatch.setattr(
        "hf_mae_robust.finetuning.trainer.FinetuningTrainer.__init__", lambda self, **kwargs: given.append(kwargs)
    )
    args = SimpleNamespace(world_size=2, device=torch.device("cuda"), train_batch_size=1)
    options = {"crop_size": CROP, "stride": 20, "train_source": trainer.train_dataset}
    with pytest.raises(AttributeError):
        SegmentationTrainer(model=trainer.model, args=args, **options)
    kinds = {type(module) for module in given[0]["model"].modules() if "BatchNorm" in type(module).__name__}
    assert kinds == {nn.SyncBatchNorm}


# ---- what is refused, or passed over ----


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--per_device_train_batch_size", 1], "--per_device_train_batch_size 1: UperNet's BatchNorm"),
        (["--stride", 33], "--stride 33: windows of 32 pixels would leave gaps"),
        (["--stride", 0], "--stride 0"),
        (["--model_ema_decay", 0.9], "for --task classification"),
        (["--linear_probe", "true"], "for --task classification"),
        (["--label_column_name", "image_id"], "no column 'image_id'"),
        (["--id2label", "nowhere.json"], "nowhere.json"),
        (["--image_size", 30], "--image_size 30 is not a multiple of the patch size 4"),
        (["--eval_only", "true"], "; needed here: upernet"),
    ],
)
def test_bad_arguments_end_in_a_sentence(words, more, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words(*more))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error.replace("\n", " ") and "Traceback" not in error


def test_a_value_that_is_no_class_ends_the_run(words, tmp_path, capsys):
    rng = np.random.default_rng(0)
    pairs = [scene(rng, 36, 48) for _ in range(8)]
    pairs[5][1][3, 4] = 77
    folder = write_set(tmp_path / "set", {"train": pairs})
    with pytest.raises(SystemExit) as stop:
        main(words("--dataset_name", folder))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "the map of row 5 has the value 77" in error and "--ignore_index 77" in error


def test_maps_that_do_not_fit_are_passed_over_and_listed(arguments, tmp_path):
    rng = np.random.default_rng(0)
    pairs = [scene(rng, 36, 48) for _ in range(16)]
    pairs[5] = (pairs[5][0], pairs[5][1][:30])
    pairs[9] = (pairs[9][0], photos(1, 36)[0])
    folder = write_set(tmp_path / "set", {"train": pairs, "validation": pairs})
    trainer = finetune(*arguments("--dataset_name", folder, "--max_bad_images", 0.2, "--num_train_epochs", 1))
    assert np.isfinite(losses(trainer)).all()
    listed = (tmp_path / "out" / "skipped_images.jsonl").read_text()
    assert "the map has 48 x 30 pixels, the image 48 x 36" in listed and "colours, not numbers of classes" in listed
    counted = sum((values != 2).sum() for i, (_, values) in enumerate(pairs) if i not in (5, 9))
    assert trainer.confusion.sum() == counted


def test_crops_without_a_class_do_no_harm(arguments, tmp_path):
    """Some images are void altogether."""
    rng = np.random.default_rng(0)
    pairs = [scene(rng, 36, 48) for _ in range(16)]
    for _, values in pairs[:12]:
        values[:] = 2
    folder = write_set(tmp_path / "set", {"train": pairs, "validation": pairs})
    trainer = finetune(*arguments("--dataset_name", folder))
    assert np.isfinite(losses(trainer)).all()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


@pytest.mark.parametrize("streaming", [pytest.param(False, marks=pytest.mark.slow), True])
def test_maps_of_0_and_255_with_a_number_of_classes(words, tmp_path, streaming):
    """`--id2label 2`: the foreground, 255, is class 1 in training and evaluation."""
    rng = np.random.default_rng(0)
    pairs = [scene(rng, 36, 48) for _ in range(8)]
    pairs = [(image, ((values == 1) * 255).astype(np.uint8)) for image, values in pairs]
    folder = write_set(tmp_path / "set", {"train": pairs, "validation": pairs})
    more = ["--dataset_name", folder, "--id2label", 2, "--max_steps", 2, "--dataset_streaming", streaming]
    trainer = finetune(*make_parser().parse(words(*more)))
    assert trainer.class_names == ("class_0", "class_1")
    foreground = sum((values == 255).sum() for _, values in pairs)
    assert trainer.confusion.sum(axis=1).tolist() == [8 * 36 * 48 - foreground, foreground]


def test_a_sharded_model_is_refused(flags, tmp_path):
    """The processes would wait for one another for ever: the images have different numbers of windows."""
    environment = environment_of("fsdp2_8gpu.yaml", "--mixed_precision", "no")
    refused = run(flags("--per_device_train_batch_size", "4"), tmp_path / "out", 2, script="finetune", **environment)
    assert refused.codes == [2, 2] and "Use DDP, or DeepSpeed's ZeRO-2" in refused.stderr, refused.output
