"""Runs on images of bands after the pre-training: which numbers of the files reach the model, and what is saved."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForSemanticSegmentation

from hf_mae_robust.conversion.pixels import Pixels
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError, UserError
from hf_mae_robust.finetune import finetune, make_parser, prepare
from hf_mae_robust.model.bands_vit_mae_robust import BandForm
from hf_mae_robust.training.arguments import DataArguments
from hf_mae_robust.training.image_form import with_flags
from tests.band_data import BANDS, MEAN, NODATA, SIZE, STD, rows_of_bands, write_band_encoder, write_bands
from tests.helpers import as_flags, finetuning_settings

CLASSES = ["--auto_augment", "none"]
MAPS = ["--task", "segmentation", "--label_column_name", "mask", "--id2label", "2", "--image_size", SIZE]
MAPS += ["--segmentation_channels", 16, "--no_photometric_distortion"]
FORM = BandForm(image_mean=(1.0,) * 3, image_std=(2.0,) * 3, channel_axis="last")


@pytest.fixture
def arguments(bands_dir, band_encoder_dir, tmp_path):
    def build(*more):
        settings = finetuning_settings(bands_dir, band_encoder_dir, tmp_path / "out")
        return make_parser().parse(as_flags(settings, *more))

    return build


def normalised(image: np.ndarray) -> np.ndarray:
    """By hand: what a model gets of an image of its size."""
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (MEAN, STD))
    return np.where(image == NODATA, 0.0, (image - mean) / std)


def test_a_classifier_of_bands_trains_and_is_evaluated_as_its_image_processor_prepares_them(arguments, tmp_path):
    trainer = finetune(*arguments(*CLASSES, "--num_train_epochs", 3))
    folder = tmp_path / "out"
    results = json.loads((folder / "all_results.json").read_text())
    assert (folder / "confusion_matrix.png").is_file() and (folder / "bands_vit_mae_robust.py").is_file()
    assert not list(folder.glob("example*"))  # which widgets could not show
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    rows = rows_of_bands(6, seed=1)
    pixel_values = processor(rows["image"], return_tensors="pt").pixel_values
    np.testing.assert_allclose(pixel_values, np.stack([normalised(image) for image in rows["image"]]), atol=1e-5)
    with torch.no_grad():
        found = model(pixel_values).logits.argmax(dim=-1)
    assert results["eval_accuracy"] == pytest.approx(float((found == torch.tensor(rows["label"])).float().mean()))
    again = ["--eval_only", "--model_name_or_path", folder, "--output_dir", tmp_path / "again"]
    evaluated = finetune(*arguments(*again))
    assert evaluated.eval_source.band_form == trainer.eval_source.band_form
    assert json.loads((tmp_path / "again" / "all_results.json").read_text())["eval_loss"] == results["eval_loss"]


@pytest.mark.slow  # the same way with other heads
@pytest.mark.parametrize(
    "flags",
    [["--from_scratch"], ["--linear_probe", "--no_augmentation"], ["--linear_probe"], ["--lora_r", 2]],
    ids=lambda flags: " ".join(map(str, flags)),
)
def test_other_classifiers_of_bands(arguments, tmp_path, flags):
    pytest.importorskip("peft") if "--lora_r" in flags else None
    finetune(*arguments(*CLASSES, "--max_steps", 2, "--gradient_accumulation_steps", 1, *flags))
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_accuracy"] >= 0
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True).image_std) == STD


@pytest.mark.parametrize("start", ["--inflate_channels", "--from_scratch"])
def test_without_a_band_model_the_statistics_are_those_of_the_training_images(
    arguments, bands_dir, encoder_dir, tmp_path, start, capsys
):
    flags = [start, "mean"] if start == "--inflate_channels" else [start]
    flags += ["--model_name_or_path", encoder_dir, "--nodata", NODATA, *CLASSES]
    trainer, _ = prepare(arguments(*flags))
    images = np.stack(rows_of_bands(16)["image"]).astype(np.float64)
    images[images == NODATA] = np.nan
    form = trainer.train_source.band_form
    np.testing.assert_allclose(form.image_mean, np.nanmean(images, axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(form.image_std, np.nanstd(images, axis=(0, 2, 3)), rtol=1e-6)
    assert list(trainer.processing_class.image_mean) == list(form.image_mean) and form.nodata == NODATA
    projection = trainer.model.beit.embeddings.patch_embeddings.projection.weight
    assert projection.shape[1] == BANDS
    said = "patch projection for 5 channels: mean" in capsys.readouterr().out
    assert said is (start == "--inflate_channels")
    if said:
        before = load_file(encoder_dir / "model.safetensors")["vit.embeddings.patch_embeddings.projection.weight"]
        torch.testing.assert_close(projection[:, 3], before.mean(dim=1) * 3 / BANDS)


@pytest.mark.slow  # as above, with a checkpoint
def test_a_run_that_inflated_resumes_with_the_statistics_that_it_began_with(
    arguments, encoder_dir, tmp_path, monkeypatch
):
    flags = ["--inflate_channels", "repeat", "--model_name_or_path", encoder_dir, *CLASSES]
    flags += ["--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2]
    complete = finetune(*arguments(*flags, "--output_dir", tmp_path / "complete"))
    finetune(*arguments(*flags))
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    monkeypatch.setattr("hf_mae_robust.finetuning.image_settings.settings_of_statistics", None)
    resumed = finetune(*arguments(*flags))
    for name, value in complete.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_channels_are_not_inflated_where_that_is_not_needed(arguments, photos_dir, encoder_dir):
    flags = ["--inflate_channels", "mean", "--model_name_or_path", encoder_dir]
    with pytest.raises(UserError, match="holds 8-bit pictures, which .* takes as they are. Leave it out"):
        prepare(arguments(*flags, "--dataset_name", photos_dir))
    with pytest.raises(UserError, match="--inflate_channels is for a checkpoint to train from, not for --from_scratch"):
        prepare(arguments(*flags, "--from_scratch"))


@pytest.mark.slow  # as for 8-bit images
def test_a_resumed_run_equals_the_uninterrupted_one(arguments, tmp_path):
    common = [*CLASSES, "--max_steps", 4, "--random_erasing", 0.5, "--vertical_flip", "--rot90"]
    complete = finetune(*arguments(*common, "--output_dir", tmp_path / "complete"))
    finetune(*arguments(*common, "--save_strategy", "steps", "--save_steps", 2))
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    resumed = finetune(*arguments(*common, "--save_strategy", "steps", "--save_steps", 2))
    for name, value in complete.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.fixture(scope="module")
def deep_encoder_dir(tmp_path_factory):
    return write_band_encoder(tmp_path_factory.mktemp("deep"), num_hidden_layers=6)


def test_maps_of_bands_train_and_are_drawn(arguments, tmp_path, deep_encoder_dir):
    with pytest.raises(UserError, match="--photometric_distortion .* units: give --no_photometric_distortion"):
        prepare(arguments(*MAPS[:-1], "--model_name_or_path", deep_encoder_dir))
    finetune(*arguments(*MAPS, "--model_name_or_path", deep_encoder_dir, "--max_steps", 2))
    folder = tmp_path / "out"
    assert (folder / "predictions.png").is_file() and (folder / "classes.png").is_file()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    outputs = AutoModelForSemanticSegmentation.from_pretrained(folder)(
        **processor(rows_of_bands(1)["image"], return_tensors="pt")
    )
    (classes,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[(SIZE, SIZE)])
    assert classes.shape == (SIZE, SIZE)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--auto_augment .* other units: give --auto_augment none"),
        ([*CLASSES, "--bands", 3, 2, 1], "--bands 3 2 1: .* takes 5 bands, not 3"),
        ([*CLASSES, "--clip_percentiles", 1, 99], "--clip_percentiles: fine-tuning takes the statistics of"),
        (["--task", "detection", "--label_column_name", "label"], "--task detection is for 8-bit images"),
    ],
    ids=["colours", "number of bands", "percentiles", "detection"],
)
def test_what_does_not_fit_is_refused_with_what_to_give(arguments, flags, message):
    with pytest.raises(UserError, match=message):
        prepare(arguments(*flags))


def test_flags_say_where_the_bands_of_a_model_are_in_other_files(arguments, tmp_path):
    other = write_bands(tmp_path / "other", num_bands=BANDS + 2)
    with pytest.raises(DataError, match="holds 7 bands .* and the model takes 5 bands. Choose them with --bands"):
        prepare(arguments(*CLASSES, "--dataset_name", other))
    chosen = ["--bands", 6, 0, 1, 2, 3, "--nodata", 7]
    trainer, _ = prepare(arguments(*CLASSES, "--dataset_name", other, *chosen))
    form = trainer.train_source.band_form
    assert form.bands == (6, 0, 1, 2, 3) and form.nodata == 7 and list(form.image_mean) == MEAN
    assert trainer.processing_class.bands == [6, 0, 1, 2, 3] and trainer.processing_class.nodata == 7


def test_flags_of_bands_are_not_for_models_of_8_bit_images():
    pixels = Pixels(3, FORM.image_mean, FORM.image_std, FORM)
    assert with_flags(pixels, DataArguments(), "m") == pixels
    assert with_flags(pixels, DataArguments(channel_axis="first", frame=2), "m").band_form.frame == 2
    ranged = with_flags(pixels, DataArguments(value_range=[0, 9]), "m").band_form
    assert ranged.value_range == ((0, 9),) * 3 and ranged.channel_axis == "last"
    assert with_flags(Pixels(), DataArguments(channel_axis="first"), "m") == Pixels()
    with pytest.raises(UserError, match="--nodata is for images of bands, and m is a model of 8-bit images"):
        with_flags(Pixels(), DataArguments(nodata=0.0), "m")


def test_a_model_of_8_bit_images_does_not_take_some_of_many_bands(bands_dir):
    source, _ = open_splits(DataLocation(str(bands_dir)))
    with pytest.raises(DataError, match="holds 5 bands of uint16 .* and the model takes 8-bit images of 3 channels"):
        source.read_as(None, 3)
    form = BandForm(image_mean=(0.0,) * 6, image_std=(1.0,) * 6)
    with pytest.raises(DataError, match="and the model takes 6 bands. Give it files that hold all"):
        source.read_as(form, 6)
