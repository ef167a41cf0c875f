"""Which flags of a fine-tuning have no effect, and what is said of them."""

from dataclasses import fields
from typing import get_type_hints

import pytest

from hf_mae_robust.finetune import make_parser
from hf_mae_robust.finetuning.arguments import FinetuneArguments
from hf_mae_robust.hub.unused_settings import without_effect

START = ("--model_name_or_path", "model", "--dataset_name", "photos")


def notes_on(*words: str) -> list[str]:
    parser = make_parser()
    parser.parse([*START, *words])
    return parser.notes


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["--task", "detection", "--mixup", "0.2"], "--mixup has no effect with --task detection."),
        (["--task", "detection", "--attn_implementation", "eager"], "--attn_implementation has no effect with --task"),
        (
            ["--task", "segmentation", "--pooling", "cls", "--label_smoothing_factor", "0.2"],
            "--label_smoothing_factor, --pooling have no effect with --task segmentation.",
        ),
        (["--num_pictures", "3"], "--num_pictures has no effect with --task classification."),
        (["--no_augmentation", "--mixup", "0.5"], "--mixup has no effect with --no_augmentation."),
        (
            ["--lr_scheduler_type", "linear", "--min_learning_rate", "1e-5"],
            "--min_learning_rate has no effect with --lr_scheduler_type linear.",
        ),
        (
            ["--lr_scheduler_kwargs", '{"min_lr": 0.1}', "--min_learning_rate", "1e-5"],
            "--min_learning_rate has no effect beside --lr_scheduler_kwargs.",
        ),
        (["--lora_alpha", "8"], "--lora_alpha has no effect without --lora_r."),
        (["--probe", "attentive", "--drop_path_rate", "0"], "--drop_path_rate has no effect with --probe attentive."),
        (
            ["--eval_only", "--layer_decay", "0.5", "--mixup", "0.1"],
            "--layer_decay, --mixup have no effect with --eval_",
        ),
        (
            ["--task", "detection", "--eval_only", "--detections_per_image", "300"],
            "--detections_per_image has no effect with --eval_only, which takes the model as it was trained.",
        ),
    ],
)
def test_a_flag_given_in_vain_is_named(words, note):
    (said,) = notes_on(*words)
    assert said.startswith(note)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--task", "segmentation"],  # whose default recipe sets --label_smoothing_factor
        ["--task", "detection"],
        ["--probe", "linear"],
        ["--task", "detection", "--eval_only"],
        ["--eval_only", "--crop_pct", "1"],  # for models without an image processor
        ["--mixup", "0.2", "--min_learning_rate", "1e-5", "--pooling", "cls", "--crop_pct", "1"],
        ["--task", "segmentation", "--scale_range", "1", "2", "--stride", "8", "--attn_implementation", "eager"],
        ["--task", "detection", "--detections_per_image", "300", "--num_pictures", "2", "--drop_path_rate", "0.2"],
    ],
)
def test_a_flag_that_has_an_effect_is_not(words):
    assert notes_on(*words) == []


def test_only_flags_are_named():
    flags = {each.name for group in get_type_hints(FinetuneArguments).values() for each in fields(group)}
    everything = {"augmentation": False, "linear_probe": True, "freeze_encoder": True, "lora_r": None}
    everything |= {"eval_only": True, "lr_scheduler_type": "linear"}
    for task in ("classification", "segmentation", "detection"):
        assert without_effect({"task": task, **everything}).keys() <= flags


def test_the_size_of_a_recipe_is_not_for_evaluation():
    parse = make_parser().parse
    assert parse([*START, "--task", "detection"]).model.image_size == 1024
    assert parse([*START, "--task", "detection", "--eval_only"]).model.image_size is None
    recipe = ("--config", "mask_rcnn_small", "--eval_only")
    assert notes_on(*recipe) == ["--eval_only takes the model's own image size, not the recipe's --image_size 192."]
    assert parse([*START, "--task", "detection", "--eval_only", "--image_size", "64"]).model.image_size == 64
