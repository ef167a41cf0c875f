"""Fine-tuning a classifier: what it computes, that it resumes exactly, what it leaves behind, what it refuses."""

import json
import shutil
import signal

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from huggingface_hub import ModelCard
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file
from scipy.stats import binom
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification, pipeline

from hf_mae_robust.errors import EXIT_STOPPED, CheckpointError, UserError
from hf_mae_robust.files import seal
from hf_mae_robust.finetune import finetune, main, make_parser, prepare
from hf_mae_robust.finetuning.classification.augmentation import seeded
from hf_mae_robust.hub.uploads import files_left_behind
from hf_mae_robust.training.predictions import Predictions
from tests.faults import send
from tests.helpers import as_flags, finetuning_settings, losses, photos
from tests.runs import run

PLAIN = ["--mixup", "0", "--cutmix", "0", "--drop_path_rate", "0"]
FEATURES = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})


@pytest.fixture
def words(photos_dir, encoder_dir, tmp_path):
    """Flags of a run of 2 epochs of 5 steps; later ones win."""

    def build(*more):
        settings = finetuning_settings(photos_dir, encoder_dir, tmp_path / "out")
        return as_flags(settings, *more)

    return build


@pytest.fixture
def arguments(words):
    return lambda *more: make_parser().parse(words(*more))


def assert_same_model(left, right):
    for name, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[name]), name


def test_every_parameter_trains_and_the_result_is_a_stock_model(arguments, tmp_path):
    trainer, checkpoint = prepare(arguments())
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train(resume_from_checkpoint=checkpoint)
    unchanged = [name for name, value in trainer.model.state_dict().items() if torch.equal(value, before[name])]
    assert unchanged == [] and trainer.state.global_step == 10
    trainer.save_model()
    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model).__name__ == "BeitForImageClassification" and not any(info.values())
    assert model.config.id2label == {0: "a", 1: "b"} and model.config.problem_type in (
        None,
        "single_label_classification",
    )
    assert_same_model(model, trainer.model)


def test_a_finished_run_is_evaluated_as_a_pipeline_would(arguments, photos_dir, tmp_path):
    finetune(*arguments(*PLAIN))
    folder = tmp_path / "out"
    results = json.loads((folder / "all_results.json").read_text())
    for name in ("loss.png", "confusion_matrix.png"):
        assert PILImage.open(folder / name).size[0] > 300
    validation = Dataset.from_parquet(str(photos_dir / "data" / "validation-*.parquet"))
    classify = pipeline("image-classification", str(folder))
    found = [classify(row["image"])[0]["label"] for row in validation]
    truth = ["ab"[label] for label in validation["label"]]
    assert results["eval_accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(found, truth)]), abs=1e-9)
    assert results["eval_top5_accuracy"] == 1 and results["eval_samples_per_second"] > 0
    confusion = json.loads((folder / "confusion_matrix.json").read_text())
    assert sum(map(sum, confusion["confusion_matrix"])) == 11 and confusion["images"] == [6, 5]
    predictions = Predictions.read(folder / "predictions.csv")
    assert predictions.rows.tolist() == list(range(11)) and predictions.labels.tolist() == validation["label"]
    assert ["ab"[predicted] for predicted in predictions.predicted] == found
    scores = [classify(row["image"])[0]["score"] for row in validation]
    assert predictions.probabilities == pytest.approx(scores, abs=1e-4)

    # With the image processor of the checkpoint, whatever the flag says.
    once_more = ["--eval_only", "--model_name_or_path", folder, "--output_dir", tmp_path / "again", "--crop_pct", 0.5]
    evaluated = finetune(*arguments(*once_more))
    again = json.loads((tmp_path / "again" / "all_results.json").read_text())
    assert again["eval_accuracy"] == results["eval_accuracy"] and again["eval_loss"] == results["eval_loss"]
    ends = [results[f"eval_accuracy_ci95_{end}"] for end in ("low", "high")]
    assert ends == pytest.approx(binom.ppf([0.025, 0.975], 11, results["eval_accuracy"]) / 11)
    assert [again[f"eval_accuracy_ci95_{end}"] for end in ("low", "high")] == ends
    assert evaluated.state.global_step == 0
    with pytest.raises(UserError, match="at which it was trained, 16 x 16 pixels, and --image_size is 64"):
        finetune(*arguments(*once_more, "--image_size", 64))


def test_a_finished_run_that_is_started_again_keeps_its_results(arguments, tmp_path, capsys):
    words = ("--max_steps", 2, "--save_strategy", "steps", "--save_steps", 2)
    finetune(*arguments(*words))
    files = [tmp_path / "out" / name for name in ("all_results.json", "train_results.json")]
    before = [json.loads(file.read_text()) for file in files]
    finetune(*arguments(*words))
    assert "Nothing is left to train" in capsys.readouterr().out
    for former, file in zip(before, files):
        now = json.loads(file.read_text())
        trained = {name for name in former if name.startswith("train_")}
        assert former["train_loss"] > 0 and {name: now[name] for name in trained} == {n: former[n] for n in trained}
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert not [entry for entry in history if entry.get("train_loss") == 0]
    for file in files:  # stopped after the last checkpoint, before it wrote them
        file.unlink()
    finetune(*arguments(*words))
    assert json.loads(files[1].read_text()).keys() == {"epoch"} and "eval_accuracy" in json.loads(files[0].read_text())


def test_flags_without_effect_do_not_stop_a_resume(arguments, tmp_path, capsys):
    words = ("--save_strategy", "steps", "--save_steps", 2)
    finetune(*arguments(*words, "--max_steps", 2, "--ignore_index", 3, "--pyramid", "simple"))
    assert prepare(arguments(*words, "--max_steps", 2))[1] is not None
    with pytest.raises(CheckpointError, match="mixup"):
        prepare(arguments(*words, "--max_steps", 2, "--mixup", 0.7))


@pytest.mark.parametrize("metric", ["mean_iou", "eval_box_ap"])
def test_a_metric_of_another_task_ends_no_run(metric, arguments, tmp_path):
    """As a recipe of another task has it."""
    words = ("--metric_for_best_model", metric, "--max_steps", 2, "--eval_strategy", "steps", "--eval_steps", 1)
    assert finetune(*arguments(*words)).state.global_step == 2
    for more in (["--load_best_model_at_end"], ["--lr_scheduler_type", "reduce_lr_on_plateau"]):
        with pytest.raises(UserError, match=f"{metric}, which {more[0]} looks at: an evaluation gives accuracy"):
            prepare(arguments(*words, *more, "--save_strategy", "steps", "--save_steps", 1))


def test_what_a_training_held_out_is_evaluated_again_with_the_same_flags(arguments, tmp_path):
    parts = ["--eval_split_name", "none", "--train_val_split", 0.25]
    trained = finetune(*arguments(*parts, "--max_steps", 1))
    alone = (*parts, "--eval_only", "--model_name_or_path", tmp_path / "out")
    results = (tmp_path / "out" / "all_results.json").read_bytes()
    with pytest.raises(UserError, match="the folder of a training run, whose results --eval_only would overwrite"):
        finetune(*arguments(*alone))
    assert (tmp_path / "out" / "all_results.json").read_bytes() == results
    again = finetune(*arguments(*alone, "--output_dir", tmp_path / "out" / "evaluation"))
    parser = make_parser()
    (tmp_path / "mine.yaml").write_text(f"output_dir: {tmp_path / 'out'}\n")
    words = ["--config", tmp_path / "mine.yaml", "--eval_only", "--model_name_or_path", tmp_path / "out"]
    assert parser.parse(list(map(str, words))).training.output_dir == str(tmp_path / "out" / "evaluation")
    assert "the results of --eval_only go to" in parser.notes[-1]
    assert again.eval_source.fingerprint == trained.eval_source.fingerprint
    assert again.state.global_step == 0 and again.eval_source.num_rows == 10


def test_nothing_of_an_earlier_run_in_the_folder_is_taken_for_the_new_ones(arguments, tmp_path, capsys):
    pytest.importorskip("peft")
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    finetune(*arguments("--lora_r", 2, "--save_strategy", "epoch"))
    # As a run with --freeze_encoder, a pre-training and the user left it.
    strangers = ("linear_head.safetensors", "target_statistics.safetensors", "notes.txt", "adapter/mine.txt")
    (out / "runs" / "Oct01_00-00-00_host").mkdir(parents=True)
    strangers += ("runs/Oct01_00-00-00_host/events.out.tfevents.1.host.2.0", "runs/notes.txt")
    for name in strangers:
        (out / name).write_text("former")
    before = {path for path in out.rglob("*") if path.is_file()}
    assert {out / name for name in ("predictions.csv", "confusion_matrix.png", "base/model.safetensors")} <= before
    second = ["--overwrite_output_dir", "--eval_split_name", "none", "--max_steps", 2]
    with pytest.raises(UserError):
        finetune(*arguments(*second, "--image_column_name", "photo"))
    assert {path for path in out.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    finetune(*arguments(*second))
    assert "results of an earlier run" in capsys.readouterr().out
    finetune(*arguments(*second, "--output_dir", fresh))
    assert set(files_left_behind(out)) == {"adapter/mine.txt", *files_left_behind(fresh)}
    assert not (out / "predictions.csv").exists() and (out / "notes.txt").exists()
    assert [path.name for path in (out / "runs").iterdir()] == ["notes.txt"]
    assert not [key for key in json.loads((out / "all_results.json").read_text()) if key.startswith("eval_")]
    assert ModelCard.load(out / "README.md").data.eval_results is None


def test_what_a_run_starts_from_stays_though_it_lies_in_the_output_folder(arguments, tmp_path):
    pytest.importorskip("peft")
    out = tmp_path / "out"
    finetune(*arguments("--lora_r", 2))
    with pytest.raises(UserError, match="is the folder of --model_name_or_path, whose model the run would overwrite"):
        prepare(arguments("--model_name_or_path", out))
    assert (out / "all_results.json").exists() and (out / "adapter").exists()
    prepare(arguments("--model_name_or_path", out / "base"))
    assert (out / "base" / "model.safetensors").exists() and not (out / "adapter").exists()


def test_accumulated_steps_equal_one_large_batch(arguments, tmp_path):
    large = finetune(*arguments(*PLAIN))
    small = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4, "--output_dir", tmp_path / "other"]
    accumulated = finetune(*arguments(*PLAIN, *small))
    assert losses(accumulated) == pytest.approx(losses(large), rel=2e-4)
    expected = dict(large.model.named_parameters())
    for name, parameter in accumulated.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("streaming", [pytest.param("false", marks=pytest.mark.slow), "true"])
def test_a_resumed_run_equals_the_uninterrupted_one(arguments, tmp_path, streaming):
    """Mixup, RandAugment, random erasing, drop path and averaged weights on: bit by bit."""
    common = ["--dataset_streaming", streaming, "--save_strategy", "steps", "--save_steps", 3, "--model_ema_decay", 0.9]
    whole = finetune(*arguments(*common, "--output_dir", tmp_path / "whole"))
    trainer, _ = prepare(arguments(*common))
    log = trainer.log

    def stop(*args, **kwargs):
        log(*args, **kwargs)
        trainer.control.should_training_stop = trainer.state.global_step == 7

    trainer.log = stop
    trainer.train()
    assert trainer.state.global_step == 7
    resumed = finetune(*arguments(*common))
    assert losses(resumed) == losses(whole)
    assert_same_model(resumed.model, whole.model)
    assert_same_model(resumed.ema.module, whole.ema.module)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


def test_averaged_weights_are_what_is_evaluated_and_saved(arguments, tmp_path):
    trainer, _ = prepare(arguments("--model_ema_decay", 0.7))
    name, history = "classifier.weight", []
    step = trainer.training_step
    trainer.training_step = lambda *args, **kwargs: (
        history.append(trainer.model.state_dict()[name].clone()),
        step(*args, **kwargs),
    )[1]
    trainer.train()
    history.append(trainer.model.state_dict()[name].clone())
    average = history[0]
    for number, weights in enumerate(history[1:], start=1):
        decay = 0.0 if number == 1 else min(0.7, 1 - number ** (-2 / 3))  # timm: a warm-up of the decay
        average = decay * average + (1 - decay) * weights
    trainer.save_model()
    torch.testing.assert_close(load_file(tmp_path / "out" / "model.safetensors")[name], average)
    assert not torch.equal(average, trainer.model.state_dict()[name])
    averaged = trainer.evaluate()["eval_loss"]
    trainer.ema = None
    assert trainer.evaluate()["eval_loss"] != averaged


def test_the_loss_is_timms_soft_target_cross_entropy_of_mixed_images(arguments):
    trainer, _ = prepare(arguments("--drop_path_rate", 0))
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = trainer._prepare_inputs(batch)
    loss = trainer.compute_loss(trainer.model.train(), inputs)
    mixup = Mixup(0.8, 1.0, prob=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=2)
    key = int(np.random.SeedSequence([42, 0, 0, 0]).generate_state(1, np.uint32)[0])
    with seeded(key):
        images, target = mixup(inputs["pixel_values"].clone(), inputs["labels"])
    # The images were mixed in place: what is left is the mixed batch.
    expected = SoftTargetCrossEntropy()(trainer.model(inputs["pixel_values"]).logits, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert target.shape == (8, 2) and images.shape == (8, 3, 16, 16)


def test_without_mixup_the_labels_are_smoothed(arguments):
    trainer, _ = prepare(arguments(*PLAIN, "--label_smoothing_factor", 0.2))
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer.compute_loss(trainer.model, inputs)
    logits = trainer.model(inputs["pixel_values"]).logits
    expected = nn.functional.cross_entropy(logits, inputs["labels"], label_smoothing=0.2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_best_model_is_kept_and_training_stops_when_it_gets_no_better(arguments, tmp_path):
    words = [
        *PLAIN, "--load_best_model_at_end", "--save_strategy", "epoch", "--eval_strategy", "epoch",
        "--early_stopping_patience", 2, "--num_train_epochs", 12, "--metric_for_best_model", "loss",
        "--greater_is_better", "false", "--base_learning_rate", 3, "--min_learning_rate", 0, "--save_total_limit", 9,
    ]  # fmt: skip
    trainer = finetune(*arguments(*words))
    evaluated = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert trainer.state.global_step < 60, "so high a learning rate does not get better for 12 epochs"
    best = min(evaluated, key=evaluated.get)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "out" / f"checkpoint-{best}")
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(evaluated[best], rel=1e-6)

    # Resumed before its last epoch, it stops where it did; and a run that has stopped does not train on.
    stopped = trainer.state.global_step
    shutil.rmtree(tmp_path / "out" / f"checkpoint-{stopped}")
    for _ in range(2):
        assert finetune(*arguments(*words)).state.global_step == stopped


def test_a_checkpoint_with_a_missing_tensor_is_refused_by_name(arguments, tmp_path):
    saving = ["--save_strategy", "steps", "--save_steps", 5]
    finetune(*arguments(*saving))
    path = tmp_path / "out" / "checkpoint-10" / "model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "layer.1.output.dense.weight" in name)]
    save_file(tensors, path, metadata={"format": "pt"})
    seal(path.parent)
    with pytest.raises(CheckpointError, match=r"beit\.layers\.1\.mlp\.fc2\.weight"):
        finetune(*arguments(*saving))


def test_other_settings_than_the_checkpoints_are_refused(arguments):
    finetune(*arguments("--save_strategy", "steps", "--save_steps", 5))
    for change, message in (
        (["--layer_decay", 0.9], "layer_decay: 0.65 there, 0.9 here"),
        (["--mixup", 0.5], "mixup: 0.8 there, 0.5 here"),
        (["--drop_path_rate", 0.3], "drop_path_rate"),
    ):
        with pytest.raises(CheckpointError, match=message):
            finetune(*arguments("--save_strategy", "steps", "--save_steps", 5, *change))


def test_an_elastic_resume_keeps_the_scales_of_the_layers(arguments):
    saving = ["--save_strategy", "steps", "--save_steps", 5, *PLAIN]
    trainer, _ = prepare(arguments(*saving))
    trainer.args.max_steps = 5
    trainer.train()
    halved = ["--per_device_train_batch_size", 4, "--allow_elastic_resume"]
    resumed = finetune(*arguments(*saving, *halved))
    scales = [group["initial_lr"] / resumed.args.learning_rate for group in resumed.optimizer.param_groups]
    assert min(scales) == pytest.approx(0.65**3) and max(scales) == pytest.approx(1)


def run_cli(capsys, words):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return stopped.value.code, capsys.readouterr().err


def test_an_image_that_cannot_be_decoded_is_replaced_with_its_label(words, tmp_path):
    rows = {"image": [{"bytes": None, "path": None}] * 20, "label": [0, 1] * 10}
    good = Dataset.from_dict({"image": photos(20), "label": rows["label"]}, features=FEATURES)
    encoded = good.cast_column("image", Image(decode=False))["image"][:]
    encoded[3] = {"bytes": b"no image", "path": None}
    bad = Dataset.from_dict({"image": encoded, "label": rows["label"]}, features=FEATURES)
    DatasetDict(train=bad, validation=bad).save_to_disk(tmp_path / "set")
    trainer = finetune(
        *make_parser().parse(
            words("--dataset_name", tmp_path / "set", "--max_bad_images", 0.2, "--per_device_train_batch_size", 4)
        )
    )
    listed = [json.loads(line) for line in (tmp_path / "out" / "skipped_images.jsonl").read_text().splitlines()]
    assert {record["row"] for record in listed} == {3} and len(trainer.labels) == 19


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0, 1, None] * 5, ClassLabel(names=["a", "b"]), "row 2 has no label"),
        ([0, 1, -1] * 5, ClassLabel(names=["a", "b"]), "row 2 has no label"),
        ([0.5, 1.0, 2.0] * 5, Value("float32"), "float32, which are not class labels"),
    ],
    ids=["none", "withheld", "floats"],
)
def test_labels_that_are_none_end_in_one_sentence(words, capsys, tmp_path, labels, feature, message):
    features = Features({"image": Image(), "label": feature})
    data = Dataset.from_dict({"image": photos(15), "label": labels}, features=features)
    DatasetDict(train=data).save_to_disk(tmp_path / "set")
    code, error = run_cli(capsys, words("--dataset_name", tmp_path / "set"))
    assert code == 2 and message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_classes_that_are_not_those_of_the_checkpoint_are_refused(words, capsys, arguments, tmp_path):
    finetune(*arguments(*PLAIN, "--max_steps", 1))
    data = Dataset.from_dict({"image": photos(15), "label": ["x", "y", "z"] * 5})
    data = data.cast_column("image", Image())
    DatasetDict(train=data).save_to_disk(tmp_path / "set")
    start = ["--dataset_name", tmp_path / "set", "--model_name_or_path", tmp_path / "out"]
    start += ["--output_dir", tmp_path / "other", "--max_steps", 1]
    code, error = run_cli(capsys, words(*start))
    assert code == 2 and "2 classes" in error and "3" in error and "--ignore_mismatched_sizes" in error
    trainer = finetune(*arguments(*start, "--ignore_mismatched_sizes"))
    assert trainer.model.config.id2label == {0: "x", 1: "y", 2: "z"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--per_device_train_batch_size", 7], "mixup and CutMix need an even number"),
        (["--min_learning_rate", 5], "--min_learning_rate 5"),
        (["--layer_decay", 0], "--layer_decay 0"),
        (["--auto_augment", "nonsense"], "--auto_augment nonsense"),
        (["--image_size", 18], "--image_size 18"),
        (["--eval_only"], "is not a classifier"),
        (["--label_column_name", "name"], "no column 'name'"),
        (["--model_name_or_path", "outputs/nowhere"], "outputs/nowhere"),
        (["--linear_probe", "--model_ema_decay", 0.9], "--model_ema_decay is not for --linear_probe"),
        (["--eval_strategy", "epoch", "--eval_split_name", "none"], "no split to evaluate on"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_settings_that_cannot_be_are_refused(words, capsys, tmp_path, change, message):
    code, error = run_cli(capsys, words(*change))
    assert code == 2 and message in error and "Traceback" not in error
    assert not list(tmp_path.glob("out/*"))


def test_another_architecture_is_refused(words, capsys, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    code, error = run_cli(capsys, words("--model_name_or_path", tmp_path / "resnet"))
    assert code == 2 and "'resnet' model; needed here: " in error


@pytest.mark.parametrize("probe", ["false", pytest.param("true", marks=pytest.mark.slow)], ids=["all", "probe"])
def test_one_process_with_the_double_batch_equals_two(words, tmp_path, probe):
    """Losses of all steps, and metrics over 11 images, which two processes cannot share evenly."""
    common = words(
        *PLAIN, "--per_device_eval_batch_size", 2, "--linear_probe", probe, "--augmentation", str(probe == "false")
    )
    one = run(common, tmp_path / "one", script="finetune")
    two = run([*common, "--per_device_train_batch_size", "4"], tmp_path / "two", 2, script="finetune")
    assert (one.codes, two.codes) == ([0], [0, 0]), one.output + two.output
    results = [json.loads((folder / "all_results.json").read_text()) for folder in (one.folder, two.folder)]
    if probe == "false":  # BatchNorm's statistics are those of each process
        assert [step for step, _ in two.losses()] == [step for step, _ in one.losses()]
        assert [loss for _, loss in two.losses()] == pytest.approx([loss for _, loss in one.losses()], rel=1e-4)
        assert results[1]["eval_loss"] == pytest.approx(results[0]["eval_loss"], rel=1e-4)
        assert results[1]["eval_accuracy"] == results[0]["eval_accuracy"]
    confusion = json.loads((two.folder / "confusion_matrix.json").read_text())
    assert sum(map(sum, confusion["confusion_matrix"])) == 11
    predictions = Predictions.read(two.folder / "predictions.csv")
    assert predictions.rows.tolist() == list(range(11)) and predictions.labels.tolist() == [i % 2 for i in range(11)]
    assert predictions.hits.mean() == pytest.approx(results[1]["eval_accuracy"])
    # One process on the saved model finds what two have found.
    again = words("--eval_only", "--model_name_or_path", two.folder, "--output_dir", tmp_path / "again")
    finetune(*make_parser().parse(again))
    expected = json.loads((tmp_path / "again" / "all_results.json").read_text())
    assert results[1]["eval_accuracy"] == expected["eval_accuracy"]
    assert results[1]["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)


def test_a_stopped_run_goes_on_and_equals_the_uninterrupted_one(words, tmp_path):
    """SIGTERM to one of two processes, in processes of their own."""
    common = words("--model_ema_decay", 0.9, "--per_device_train_batch_size", 4)
    whole = run(common, tmp_path / "whole", 2, script="finetune")
    stopped = run(common, tmp_path / "cut", 2, send(signal.SIGTERM, 6, rank=1), script="finetune")
    assert stopped.codes == [EXIT_STOPPED] * 2, stopped.output
    resumed = run(common, tmp_path / "cut", 2, script="finetune")
    assert resumed.codes == [0, 0], resumed.output
    assert resumed.losses() == whole.losses() and resumed.weights() == whole.weights()
