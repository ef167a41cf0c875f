"""Model cards say what was run, as the Hub reads them, and the code in them runs."""

import json
import re
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from PIL import Image
from torch.testing import assert_close
from transformers import (
    AutoImageProcessor,
    AutoModelForPreTraining,
    BeitConfig,
    BeitForImageClassification,
    SegformerImageProcessor,
)

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustDetectionImageProcessor, ViTMAERobustForPreTraining
from hf_mae_robust.__main__ import main
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.data.preprocessing import band_processor, evaluation_processor
from hf_mae_robust.finetune import main as finetune
from hf_mae_robust.finetuning.arguments import AugmentationArguments, DetectionArguments, SegmentationArguments
from hf_mae_robust.finetuning.classification.models import classifier_from_checkpoint
from hf_mae_robust.finetuning.detection.models import DetectorSettings, detector_from_scratch
from hf_mae_robust.finetuning.segmentation.models import SegmenterSettings, segmenter_from_scratch
from hf_mae_robust.hub.model_card import METRICS, PIPELINES, card_of_recipe, card_of_run, save_card
from hf_mae_robust.model.bands_vit_mae_robust import BandForm
from hf_mae_robust.paper import PAPER_RESULTS
from hf_mae_robust.pretrain import main as pretrain
from hf_mae_robust.recipes import recipe_path
from hf_mae_robust.training.arguments import RecipeArguments
from tests.fresh import code_of_card, run_without_the_package
from tests.helpers import TINY, TINY_OVERRIDES, as_flags, finetuning_settings, photos

ROOT = Path(__file__).parents[2]
CARDS = {
    path.parent.name if path.name == "README.md" else path.stem: path
    for path in sorted((ROOT / "model_cards").rglob("*.md"))
}


@pytest.fixture(scope="module")
def pretrained(photos_dir, tmp_path_factory):
    """A run of 2 epochs of 5 steps."""
    folder = tmp_path_factory.mktemp("card") / "masked-waves"
    settings = {
        "dataset_name": photos_dir,
        "config_overrides": TINY_OVERRIDES,
        "target_normalization": "global_patch",
        "target_statistics": "auto",
        "mid_mask_ratio": 0.25,
        "decoder_keep_ratio": 0.5,
        "output_dir": folder,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "dataloader_num_workers": 0,
        "logging_steps": 2,
        "report_to": "tensorboard",
        "save_strategy": "epoch",
        "eval_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
        "model_license": "cc-by-4.0",
    }
    pretrain(as_flags(settings))
    return folder


def test_no_file_of_a_finished_folder_names_a_folder_of_this_machine(pretrained, photos_dir):
    """All that is pushed, and the checkpoints."""
    ours = {str(pretrained), str(pretrained.parent), str(photos_dir), str(Path.home()), str(ROOT)}
    files = [path for path in pretrained.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"run.json", "trainer_state.json", "training_args.json", "target_statistics.safetensors"} <= names
    assert any("tfevents" in name for name in names) and any("checkpoint-" in str(path) for path in files)
    found = [(path, name) for path in files for name in ours if name.encode() in path.read_bytes()]
    assert not found
    state = json.loads((pretrained / "trainer_state.json").read_text())
    assert (pretrained / state["best_model_checkpoint"]).is_dir()


def test_no_file_of_a_finished_folder_names_the_folders_of_a_relative_path(
    photos_dir, encoder_dir, tmp_path, monkeypatch
):
    (tmp_path / "clinic-x").mkdir()
    (tmp_path / "here").mkdir()
    (tmp_path / "clinic-x" / "scans").symlink_to(photos_dir)
    shutil.copytree(encoder_dir, tmp_path / "clinic-x" / "encoder")
    monkeypatch.chdir(tmp_path / "here")
    settings = finetuning_settings("../clinic-x/scans", "../clinic-x/encoder", "../clinic-x/out")
    finetune(as_flags(settings | {"max_steps": 1, "report_to": "tensorboard", "save_strategy": "epoch"}))
    files = [path for path in (tmp_path / "clinic-x" / "out").rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files) and any("checkpoint-1" in str(path) for path in files)
    assert not [path for path in files if b"clinic-x" in path.read_bytes()]
    run = json.loads((tmp_path / "clinic-x" / "out" / "run.json").read_text())
    assert (run["dataset_name"], run["about"]["dataset"], run["about"]["start"]) == ("scans", "scans", "encoder")
    finetune(as_flags(settings | {"max_steps": 1, "report_to": "none"}))  # it resumes


def test_the_card_of_a_pretraining_says_what_was_run(pretrained, photos_dir):
    card = ModelCard.load(pretrained / "README.md")
    results = json.loads((pretrained / "all_results.json").read_text())
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert card.data.license == "cc-by-4.0"
    (evaluated,) = card.data.eval_results
    assert evaluated.metric_value == pytest.approx(results["eval_loss"]) and evaluated.dataset_split == "validation"
    history = json.loads((pretrained / "trainer_state.json").read_text())["log_history"]
    logged = [entry["loss"] for entry in history if "loss" in entry]
    for text in (
        "on 40 images of set",
        "75% of the patches masked",
        "decoder attention dropout 0.3",
        "`global_patch` and per patch",
        "25% mid-level mask tokens from block 1",
        "a random 50% of the masked patches reconstructed in each training step",
        f"| Reconstruction loss | {results['eval_loss']:.4f} |",
        f"| The same for predicting the mean | {results['eval_loss_of_mean']:.4f} |",
        "| effective batch | 8 |",
        "| num_train_epochs | 2.0 |",
        f"went from {logged[0]:.4f} to {logged[-1]:.4f}",
        "population statistics of 40 images",
        "transformers 5.",
    ):
        assert text in card.text, text
    assert str(photos_dir.parent) not in str(card)  # a path of this machine


def test_the_card_of_a_run_that_evaluated_nothing_has_no_results(pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "waves")
    run = json.loads((folder / "run.json").read_text())
    run["about"] |= {"evaluated_on": None, "split": None, "num_evaluated": None}
    (folder / "run.json").write_text(json.dumps(run))
    card = ModelCard(card_of_run(folder))
    assert card.data.eval_results is None and "Reconstruction loss" not in card.text


def test_a_licence_that_nobody_gave_is_not_in_the_card(pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "waves")
    run = json.loads((folder / "run.json").read_text())
    run["about"]["license"] = RecipeArguments().model_license
    (folder / "run.json").write_text(json.dumps(run))
    card = ModelCard(card_of_run(folder))
    assert card.data.license is None and "license" not in card.data.to_dict()
    assert "names no licence" in card.text and "--model_license" in card.text and "The weights:" not in card.text


def test_every_picture_in_the_card_is_there(pretrained):
    card = ModelCard.load(pretrained / "README.md")
    shown = re.findall(r"!\[.*?\]\((.*?)\)", card.text)
    assert shown == ["reconstructions.png", "loss.png"]
    for name in [*shown, *(example["src"] for example in card.data.widget)]:
        Image.open(pretrained / name).verify()
    assert len(card.data.widget) == 2


def test_a_card_elsewhere_has_its_pictures_and_examples(pretrained, tmp_path, capsys):
    main(["card", str(pretrained), "--output", str(tmp_path / "elsewhere")])
    card = ModelCard.load(tmp_path / "elsewhere" / "README.md")
    shown = re.findall(r"!\[.*?\]\((.*?)\)", card.text) + [example["src"] for example in card.data.widget]
    assert len(shown) == 4 and {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"README.md", *shown}


@pytest.mark.parametrize(
    "number, words", [(1_220_000, "1.22 M"), (999_600_000, "1,000 M"), (1_234_567_890, "1,235 M"), (86_000_000, "86 M")]
)
def test_the_number_of_parameters_reads_as_one(number, words, pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "model")
    run = json.loads((folder / "run.json").read_text())
    run["about"]["num_parameters"] = number
    (folder / "run.json").write_text(json.dumps(run))
    assert f"; {words} parameters in all)" in card_of_run(folder)


def test_a_picture_that_is_gone_is_left_out_when_the_card_is_written_again(pretrained, tmp_path, capsys):
    folder = shutil.copytree(pretrained, tmp_path / "copy")
    (folder / "loss.png").unlink()
    (folder / "example_1.png").unlink()
    main(["card", str(folder), "--model_id", "somebody/waves"])
    card = ModelCard.load(folder / "README.md")
    assert "loss.png" not in card.text and "reconstructions.png" in card.text
    assert [example["src"] for example in card.data.widget] == ["example_2.png"]
    assert 'from_pretrained("somebody/waves"' in card.text
    assert 'hf_hub_download("somebody/waves", "example_2.png")' in card.text
    assert not list(folder.glob("*.part"))


def test_a_record_of_before_it_named_the_split_gives_the_same_card(pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "masked-waves")
    run = json.loads((folder / "run.json").read_text())
    assert run["about"].pop("split") == "validation"
    (folder / "run.json").write_text(json.dumps(run))
    assert card_of_run(folder) == card_of_run(pretrained)


def test_a_checkpoint_has_a_card_too(pretrained):
    card = ModelCard.load(pretrained / "checkpoint-10" / "README.md")
    assert "10 steps" in card.text and "checkpoint-10" in card.text and "_staging" not in card.text
    assert "reconstructions.png" not in card.text


def test_a_run_goes_on_whatever_its_card_says(pretrained, photos_dir, tmp_path, capsys):
    """The licence or the machine is no reason to refuse a checkpoint."""
    folder = shutil.copytree(pretrained, tmp_path / "copy")
    settings = json.loads((folder / "run.json").read_text())
    assert settings["about"]["license"] == "cc-by-4.0"
    words = as_flags({"dataset_name": photos_dir, "config_overrides": TINY_OVERRIDES}, "--output_dir", folder)
    words += ["--target_normalization", "global_patch", "--target_statistics", "auto", "--mid_mask_ratio", "0.25"]
    words += ["--decoder_keep_ratio", "0.5"]
    words += ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--num_train_epochs", "2"]
    pretrain([*words, "--dataloader_num_workers", "0", "--report_to", "none", "--model_license", "mit"])
    assert "Resuming from" in capsys.readouterr().out
    assert ModelCard.load(folder / "README.md").data.license == "mit"


def test_the_code_in_the_card_runs_where_only_transformers_is(pretrained):
    code = (
        code_of_card(pretrained / "README.md") + "print(tuple(features.shape), sorted(features.flatten().tolist())[0])"
    )
    first, again = (run_without_the_package(code, pretrained.parent) for _ in range(2))
    assert first.startswith("(1, 17, 32) ") and first == again


def test_the_pipeline_of_the_card_gives_the_features_of_the_whole_image(pretrained):
    """Unmasked and the same every time, by what the Trainer has saved."""
    code = """
from transformers import pipeline

run = pipeline("image-feature-extraction", "masked-waves", trust_remote_code=True)
for name in ("example_1.png", "example_1.png", "example_2.png"):
    print([[round(value, 4) for value in token] for token in run("masked-waves/" + name)[0]])
"""
    first, again, other = map(json.loads, run_without_the_package(code, pretrained.parent).splitlines())
    assert first == again != other
    model, processor = (auto.from_pretrained(pretrained) for auto in (AutoModelForPreTraining, AutoImageProcessor))
    assert type(model) is ViTMAERobustForPreTraining
    with torch.no_grad():
        inputs = processor(Image.open(pretrained / "example_1.png"), return_tensors="pt")
        assert_close(torch.tensor(first), model.vit(**inputs).last_hidden_state[0], rtol=0, atol=1e-3)


# What has no effect in runs of the other tasks, which record it all the same.
ONLY_OF = {
    "classification": {"crop_scale", "auto_augment", "random_erasing", "mixup", "cutmix", "mixup_prob"}
    | {"mixup_switch_prob", "label_smoothing_factor"},
    "segmentation": {"photometric_distortion", *(each.name for each in fields(SegmentationArguments))},
    "detection": {each.name for each in fields(DetectionArguments)},
}
OF_FINETUNING = {"augmentation", "horizontal_flip", "layer_decay", "min_learning_rate"}
# They are off, or their own default stands for them.
UNSET = {"do_reduce_labels", "stride", "relative_position_bias", "scale_range"}


def settings_in_card(pretrained, folder, task, **more) -> set[str]:
    """Of a fine-tuning with every flag at its default but `more`: what its card lists of them."""
    folder = shutil.copytree(pretrained, folder)
    run = json.loads((folder / "run.json").read_text())
    run["about"]["task"] = run["task"] = task
    run |= {"label_smoothing_factor": 0.1, "layer_decay": 0.65, "min_learning_rate": 1e-6, "crop_scale": [0.08, 1]}
    run |= {"horizontal_flip": True, "lr_scheduler_type": "cosine_with_min_lr"}
    run["lr_scheduler_kwargs"] = {"min_lr": 1e-6}  # what `finish_schedule` makes of --min_learning_rate
    for group in (AugmentationArguments, SegmentationArguments, DetectionArguments):
        run |= asdict(group())
    (folder / "run.json").write_text(json.dumps(run | more))
    rows = set(re.findall(r"(?m)^\| (\w+) \| ", card_of_run(folder)))
    return rows & {*OF_FINETUNING, *UNSET, *set().union(*ONLY_OF.values())}


@pytest.mark.parametrize("task", ONLY_OF)
def test_the_settings_in_a_card_are_those_of_its_task(task, pretrained, tmp_path):
    assert settings_in_card(pretrained, tmp_path / "model", task) == (ONLY_OF[task] | OF_FINETUNING) - UNSET
    scaled = settings_in_card(pretrained, tmp_path / "scaled", task, scale_range=[0.5, 2.0])
    assert ("scale_range" in scaled) is (task != "classification")


def test_settings_without_effect_are_not_in_a_card(pretrained, tmp_path):
    plain = settings_in_card(pretrained, tmp_path / "plain", "classification", augmentation=False)
    assert plain == {"label_smoothing_factor", "layer_decay", "min_learning_rate"}
    frozen = settings_in_card(pretrained, tmp_path / "frozen", "segmentation", freeze_encoder=True)
    assert not frozen & {"layer_decay", "auxiliary_loss_weight", "segmentation_channels"} and "ignore_index" in frozen
    for name, probe in (("linear", {"linear_probe": True}), ("attentive", {"probe": "attentive"})):
        assert "layer_decay" not in settings_in_card(pretrained, tmp_path / name, "classification", **probe)
    cosine = settings_in_card(pretrained, tmp_path / "cosine", "detection", lr_scheduler_type="cosine")
    assert "min_learning_rate" not in cosine


@pytest.mark.parametrize("channels", [3, 1])
def test_the_card_of_a_classifier(channels, tmp_path, photos_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ViTMAERobustConfig(**{**TINY, "num_channels": channels})
    if channels == 1:
        config.image_mean, config.image_std = [0.5], [0.5]
    ViTMAERobustForPreTraining(config).save_pretrained("encoder")
    settings = {
        "dataset_name": photos_dir,
        "model_name_or_path": "encoder",
        "output_dir": "outputs/waves",
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "save_strategy": "no",
    }
    finetune(as_flags(settings))
    folder = Path("outputs/waves")
    card = ModelCard.load(folder / "README.md")
    results = json.loads((folder / "all_results.json").read_text())
    # Of two classes, one of the first five is always right.
    assert results["eval_top5_accuracy"] == 1 and "Top-5" not in card.text
    assert [result.metric_value for result in card.data.eval_results] == [results["eval_accuracy"]]
    assert card.data.eval_results[0].task_type == "image-classification"
    # Pipelines make three channels of every image.
    assert card.data.pipeline_tag == ("image-classification" if channels == 3 else None)
    assert ("cannot run it" in card.text) is (channels == 1) and "fine-tuned from encoder" in card.text
    assert "confusion_matrix.png" in card.text and (card.data.get("widget") is None) is (channels == 1)
    printed = run_without_the_package(code_of_card(folder / "README.md"), tmp_path)
    assert "'label': 'a'" in printed if channels == 3 else printed.strip() in ("a", "b")


@pytest.mark.parametrize("classes", [5, 6])
@pytest.mark.parametrize("architecture", ["BeitForImageClassification", "TimmWrapperForImageClassification"])
def test_a_card_says_what_loading_needs_and_top_5_of_more_than_five_classes(
    architecture, classes, pretrained, tmp_path
):
    folder = shutil.copytree(pretrained, tmp_path / "model")
    run, config = (json.loads((folder / name).read_text()) for name in ("run.json", "config.json"))
    run["about"]["task"] = "classification"
    (folder / "run.json").write_text(json.dumps(run))
    names = {str(number): f"class {number}" for number in range(classes)}
    is_timm = architecture.startswith("Timm")
    labels = {"label_names": list(names.values())} if is_timm else {"id2label": names}
    (folder / "config.json").write_text(json.dumps(config | labels | {"architectures": [architecture]}))
    (folder / "all_results.json").write_text(json.dumps({"eval_accuracy": 0.5, "eval_top5_accuracy": 1.0}))
    card = ModelCard(card_of_run(folder))
    assert [result.metric_name for result in card.data.eval_results] == ["Top-1", "Top-5"][: classes - 4]
    needed = "only transformers and timm are needed" if is_timm else "only transformers is needed"
    assert f"A stock model: {needed}." in card.text
    band_processor(BandForm(image_mean=(1.0,) * 5, image_std=(2.0,) * 5), 16, 1.0).save_pretrained(folder)
    needed = "Only transformers, timm and torchvision" if is_timm else "Only transformers and torchvision"
    assert f"{needed} are needed" in card_of_run(folder)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
@pytest.mark.parametrize("task", ["pre-training", "classification", "detection"])
def test_the_code_in_the_card_gives_a_model_the_channels_that_it_takes(task, mode, pretrained, tmp_path):
    channels = len(mode)
    folder = shutil.copytree(pretrained, tmp_path / "model")
    run = json.loads((folder / "run.json").read_text())
    run["about"]["task"] = task
    (folder / "run.json").write_text(json.dumps(run))
    normalisation = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    settings = {**TINY, **normalisation, "num_channels": channels}
    model = ViTMAERobustForPreTraining(ViTMAERobustConfig(**settings))
    processor = evaluation_processor(16, 1.0, channels, **normalisation)
    if task == "classification":
        model.save_pretrained(tmp_path / "encoder")
        model, _ = classifier_from_checkpoint(ModelSource(str(tmp_path / "encoder")), ["a", "b"])
    if task == "detection":
        settings |= {"num_hidden_layers": 4, "fpn_channels": 16, "box_fc_dim": 32, "box_num_convs": 1}
        small = DetectorSettings(16, fields={"window_size": 2})
        model, _ = detector_from_scratch(ModelSource(None, settings | {"mask_num_convs": 1}), ["a", "b"], small)
        square = {"height": 16, "width": 16}
        processor = ViTMAERobustDetectionImageProcessor(size=square, pad_size=square, **normalisation)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    Image.fromarray(photos(1)[0]).convert(mode).save(folder / "example_1.png")
    save_card(folder, path=folder.name)
    assert ModelCard.load(folder / "README.md").data.get("widget") is None
    code = f"{code_of_card(folder / 'README.md')}\nprint(tuple(inputs['pixel_values'].shape))"
    assert run_without_the_package(code, tmp_path).endswith(f"(1, {channels}, 16, 16)\n")


def bands_of(folder: Path, model, form: BandForm) -> Path:
    """A finished run's folder, with a model of bands and its image processor in the place of its own."""
    for name in ("example_1.png", "example_2.png"):
        (folder / name).unlink(missing_ok=True)
    model.save_pretrained(folder)
    band_processor(form, 16, 1.0).save_pretrained(folder)
    save_card(folder, path=folder.name)
    np.save(folder.parent / "image.npy", np.random.default_rng(0).integers(0, 9000, (5, 20, 30)).astype(np.uint16))
    return folder


def test_the_card_of_a_band_model_reads_files_by_its_own_image_processor(pretrained, tmp_path):
    form = BandForm(image_mean=(4500.0,) * 5, image_std=(2500.0,) * 5)
    settings = {**TINY, "num_channels": 5, "rescale_factor": 1.0}
    config = ViTMAERobustConfig(**settings, image_mean=list(form.image_mean), image_std=list(form.image_std))
    model = ViTMAERobustForPreTraining(config)
    folder = bands_of(shutil.copytree(pretrained, tmp_path / "bands"), model, form)
    card = ModelCard.load(folder / "README.md")
    assert card.data.get("widget") is None and "Pipelines and the widgets of the Hub cannot run it" in card.text
    assert card.data.pipeline_tag is None
    assert "takes 5 bands and normalises them: means 4500, standard deviations 2500" in card.text
    code = code_of_card(folder / "README.md")
    assert "image.tif" in code and "pipeline(" not in code
    code = code.replace("image.tif", "image.npy") + "\nprint(tuple(features.shape))"
    assert run_without_the_package(code, tmp_path).strip() == "(1, 17, 32)"


@pytest.mark.parametrize(
    ("form", "texts"),
    [
        (
            BandForm((3, 0), -9999.0, ((0, 5000), (10, 6000)), (1500.5, 20.0), (250.0, 3.25)),
            [
                "takes 2 bands of those in a file, clips them and normalises them: means 20 to 1500, standard "
                "deviations 3.25 to 250, in the units of the files",
                "and the number -9999) get the mean",
                "| channel | band of the file, from 0 | mean | standard deviation | clipped to |\n",
                "\n| 0 | 3 | 1500.5 | 250 | 0 to 5000 |\n| 1 | 0 | 20 | 3.25 | 10 to 6000 |\n\n",
            ],
        ),
        (
            BandForm(image_mean=(471.5,), image_std=(878.25,)),
            [
                "takes 1 band and normalises it: mean 471.5, standard deviation 878.2,",
                "\n| 0 | 0 | 471.5 | 878.25 |\n\n",
            ],
        ),
        (
            BandForm(image_mean=(1.0,) * 200, image_std=(2.0,) * 200),
            ["200 bands", "has the numbers of each band"],
        ),
    ],
    ids=["chosen", "one", "200"],
)
def test_the_card_says_what_images_of_bands_must_hold(form, texts, pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "bands")
    band_processor(form, 16, 1.0).save_pretrained(folder)
    card = card_of_run(folder)
    for text in texts:
        assert text in card, card
    assert card.index("## How to use") < card.index("## Images") < card.index("## Pictures")
    assert "## Images" not in card_of_run(pretrained)


def test_the_card_of_a_classifier_of_bands(pretrained, tmp_path):
    config = BeitConfig(
        num_channels=5, image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, id2label={0: "a", 1: "b"},
    )  # fmt: skip
    form = BandForm(image_mean=(4500.0,) * 5, image_std=(2500.0,) * 5)
    folder = shutil.copytree(pretrained, tmp_path / "classifier")
    run = json.loads((folder / "run.json").read_text())
    run["about"]["task"] = "classification"
    (folder / "run.json").write_text(json.dumps(run))
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    code = code_of_card(bands_of(folder, BeitForImageClassification(config), form) / "README.md")
    assert run_without_the_package(code.replace("image.tif", "image.npy"), tmp_path).strip() in ("a", "b")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("run.json", None, "holds no run.json"),
        ("run.json", "{", "does not say what was run"),
        ("run.json", "[]", "does not say what was run"),
        ("run.json", "{}", "does not say what was run"),
    ],
)
def test_a_folder_that_does_not_say_what_was_run_keeps_its_card(name, content, message, pretrained, tmp_path, capsys):
    folder = shutil.copytree(pretrained, tmp_path / "copy")
    (folder / "README.md").write_text("mine")
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(SystemExit) as ended:
        main(["card", str(folder)])
    assert ended.value.code == 2 and message in capsys.readouterr().err
    assert (folder / "README.md").read_text() == "mine"


def test_every_task_has_a_pipeline_and_metrics():
    assert PIPELINES.keys() == METRICS.keys() == {"pre-training", "classification", "segmentation", "detection"}


# ---- model_cards/ ----


def test_there_is_a_card_for_every_row_of_the_paper_that_has_a_recipe():
    assert CARDS.keys() >= PAPER_RESULTS.keys()
    for name in PAPER_RESULTS:
        assert recipe_path(name).exists()


@pytest.mark.parametrize("name", sorted(PAPER_RESULTS))
def test_cards_of_recipes_are_up_to_date_and_claim_nothing(name):
    """`python -m hf_mae_robust card NAME --output model_cards/NAME.md` writes them."""
    text = CARDS[name].read_text()
    assert text == card_of_recipe(name)
    card = ModelCard(text)
    assert card.data.eval_results is None and "no weights were trained with it here" in text
    assert "the paper's" in text and all(f"| {value} |" in text for _, value in PAPER_RESULTS[name].figures)
    assert ("from its own runs" in text) is ("He et al. 2022" not in text)


def test_a_recipe_that_is_no_row_of_the_paper_has_no_card(capsys):
    with pytest.raises(SystemExit):
        main(["card", "digits"])
    assert "digits is neither the folder of a run nor a recipe of the paper's tables" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(CARDS.keys() - PAPER_RESULTS.keys()))
def test_cards_of_small_models_say_what_was_measured(name):
    card = ModelCard.load(CARDS[name])
    assert card.data.eval_results and "| seed |" in card.text and "images/s (median)" in card.text
    for result in card.data.eval_results:
        assert f"| {result.metric_name} | {result.metric_value:.4f} |" in card.text
    assert recipe_path(name).exists() and f"`--config {name}`" in card.text


@pytest.mark.parametrize("name", sorted(CARDS))
def test_pictures_in_model_cards_are_there(name):
    assert metadata_load(CARDS[name])["library_name"] == "transformers"
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", CARDS[name].read_text()):
        Image.open(CARDS[name].parent / picture).verify()


@pytest.fixture(scope="module")
def stand_ins(encoder_dir, tmp_path_factory):
    """For each pipeline a folder `outputs/small` with a tiny model of random weights, and an image."""
    folders, heads = {}, {"fpn_channels": 16, "box_fc_dim": 32, "box_num_convs": 1, "mask_num_convs": 1}
    deep = {**TINY, "num_hidden_layers": 4}
    pretrained = ViTMAERobustForPreTraining(ViTMAERobustConfig(**TINY))
    classifier, _ = classifier_from_checkpoint(ModelSource(str(encoder_dir)), ["a", "b"])
    segmenter, _ = segmenter_from_scratch(ModelSource(None, deep), ["a", "b"], SegmenterSettings(16, channels=8))
    small = DetectorSettings(16, fields={"window_size": 2})
    detector, _ = detector_from_scratch(ModelSource(None, deep | heads), ["a", "b"], small)
    square = {"height": 16, "width": 16}
    for tag, model, processor in (
        ("image-feature-extraction", pretrained, evaluation_processor(16, 1.0)),
        ("image-classification", classifier, evaluation_processor(16, 1.0)),
        ("image-segmentation", segmenter, SegformerImageProcessor(size=square)),
        ("object-detection", detector, ViTMAERobustDetectionImageProcessor(size=square, pad_size=square)),
    ):
        folders[tag] = tmp_path_factory.mktemp("stand-in")
        model.save_pretrained(folders[tag] / "outputs" / "small")
        processor.save_pretrained(folders[tag] / "outputs" / "small")
        (folders[tag] / "small").symlink_to("outputs/small")
        for image in ("image.jpg", "outputs/small/example_1.png"):
            Image.fromarray(photos(1)[0]).save(folders[tag] / image)
    return folders


@pytest.mark.parametrize("tag", sorted(PIPELINES.values()))
def test_the_code_in_model_cards_runs(tag, stand_ins):
    """On small stand-ins for the weights; cards that differ in the name only are one."""
    codes = {
        code_of_card(path).replace(name, "small")
        for name, path in CARDS.items()
        if metadata_load(path).get("pipeline_tag") == tag and '.convert("L")' not in path.read_text()
    }
    assert 1 <= len(codes) <= 2
    printed = [run_without_the_package(code + "\nprint('done')", stand_ins[tag]) for code in codes]
    assert all(output.endswith("done\n") for output in printed)
