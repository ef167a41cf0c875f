import re

import pytest
import torch

from hf_mae_robust import finetune
from hf_mae_robust.__main__ import make_parser as make_command_parser
from hf_mae_robust.errors import UserError
from hf_mae_robust.pretrain import make_parser
from hf_mae_robust.pretraining.arguments import PretrainArguments
from hf_mae_robust.recipes import recipe_path
from hf_mae_robust.training.parser import parse_config_overrides


def parse(*words):
    return make_parser(prog="run_pretrain.py").parse(list(words))


def test_without_arguments_the_digits_recipe_is_used():
    model, data, _, training = parse()
    assert data.dataset_name is None and training.output_dir == "outputs/digits"
    assert "image_size=24" in model.config_overrides and model.target_statistics == "auto"


def test_a_flag_wins_over_the_recipe():
    model, data, recipe, training = parse(
        "--num_train_epochs", "3", "--crop_scale", "0.3", "0.9", "--no_horizontal_flip"
    )
    assert training.num_train_epochs == 3 and data.crop_scale == [0.3, 0.9]
    assert training.per_device_train_batch_size == 50  # still the recipe's


def test_own_data_without_recipe_gets_maes_settings():
    _, data, recipe, training = parse("--dataset_name", "photos")
    assert recipe.base_learning_rate == 1.5e-4 and training.learning_rate is None
    assert (training.adam_beta1, training.adam_beta2, training.weight_decay) == (0.9, 0.95, 0.05)
    assert training.max_grad_norm == 0 and training.num_train_epochs == 800 and data.crop_scale == [0.2, 1.0]
    assert training.lr_scheduler_type == "cosine" and training.logging_nan_inf_filter is False


def test_switches_work_with_and_without_a_value(tmp_path):
    assert parse("--norm_pix_loss")[0].norm_pix_loss is True
    assert parse("--norm_pix_loss", "false")[0].norm_pix_loss is False
    assert parse("--dataset_name", "x")[0].norm_pix_loss is None
    assert parse("--dataset_streaming")[1].dataset_streaming is True


def test_recipe_file_of_the_user(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "dataset_name: photos\nbase_learning_rate: 1e-3\ncrop_scale: [0.4, 0.8]\nhorizontal_flip: false\n"
        "config_overrides: {image_size: [32, 64], patch_size: 8}\nmax_train_samples: null\n"
    )
    model, data, recipe, _ = parse("--config", str(path))
    assert data.dataset_name == "photos" and recipe.base_learning_rate == 1e-3
    assert data.crop_scale == [0.4, 0.8] and data.horizontal_flip is False and data.max_train_samples is None
    assert parse_config_overrides(model.config_overrides) == {"image_size": [32, 64], "patch_size": 8}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: [1, 2]", "--seed takes one value, not a list of 2: [1, 2]"),
        ("task: classification\nseed: 1", "is a recipe of run_finetune.py: its key 'task' is unknown here"),
        ("base_learnin_rate: 1", "unknown key 'base_learnin_rate' (did you mean 'base_learning_rate'?)"),
        ("- a\n- b", "must hold 'flag: value' lines"),
        ("a: [1", "not valid YAML"),
        ("diagnostics: &a [*a]", "a list holds itself"),
    ],
)
def test_bad_recipes_end_in_one_sentence(tmp_path, capsys, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        parse("--config", str(path))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "no_such_recipe"], "no recipe of that name. Recipes: adapt_small_64px, adapt_vit_base, "),
        (["--dataset_nam", "x"], "unknown --dataset_nam (did you mean '--dataset_name'?)"),
        (["--num_train_epochs", "many"], "invalid float value: 'many'"),
        (["--target_normalization", "patch"], "invalid choice"),
        (["--clip_percentiles", "2"], "--clip_percentiles takes two numbers, LO and HI, not 2."),
        (["--clip_percentiles", "1", "2", "3"], "--clip_percentiles takes two numbers, LO and HI, not 1 2 3."),
        (["--seed", "4294967296"], "--seed 4294967296: must be at least 0 and at most 4294967295"),
        (["--auto_find_batch_size"], "Halve --per_device_train_batch_size and double --gradient_accumulation_steps"),
        (["--train_sampling_strategy", "sequential"], "images are always drawn at random"),
        (["--accelerator_config", '{"split_batches": true}'], "'split_batches' has no effect"),
        (
            ["--accelerator_config", '{"gradient_accumulation_kwargs": {"num_steps": 4}}'],
            "for 'num_steps' there is --gradient_accumulation_steps",
        ),
        (["--label_smoothing_factor", "0.3"], "--label_smoothing_factor 0.3: pre-training has no labels"),
        (
            ["--config_overrides", "image_size=64,", "patch_size=8"],
            "unknown patch_size=8 (a part of --config_overrides?",
        ),
    ],
)
def test_bad_flags_end_in_one_sentence(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        parse(*words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_of_a_bad_value_in_a_recipe_the_file_is_named(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("max_steps: 1.5\n")
    with pytest.raises(SystemExit) as stop:
        parse("--config", str(tmp_path / "mine.yaml"))
    assert stop.value.code == 2
    assert f"error: --config {tmp_path / 'mine.yaml'}: argument --max_steps" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse("--config", "digits", "--max_steps", "1.5")
    assert "error: argument --max_steps" in capsys.readouterr().err


def test_a_flag_wins_over_what_a_recipe_says_in_another_unit():
    parser = finetune.make_parser()
    words = ["--task", "segmentation", "--config", "upernet_vit_base", "--dataset_name", "x"]
    *_, training = of_recipe = parser.parse(words)
    assert (training.max_steps, training.warmup_steps) == (160_000, 1500) and parser.notes == []
    changed = parser.parse([*words, "--num_train_epochs", "5", "--warmup_epochs", "1"])
    assert (changed.training.max_steps, changed.training.num_train_epochs) == (-1, 5)
    assert (changed.training.warmup_steps, changed.recipe.warmup_epochs) == (None, 1)
    assert parser.notes == [
        "--num_train_epochs 5 wins over the recipe's --max_steps 160000.",
        "--warmup_epochs 1 wins over the recipe's --warmup_steps 1500.",
    ]
    assert changed.recipe.base_learning_rate == of_recipe.recipe.base_learning_rate


def test_a_base_rate_wins_over_the_rate_of_a_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("learning_rate: 1e-3\nmax_steps: 100\n")
    words = ["--config", str(tmp_path / "mine.yaml"), "--dataset_name", "x"]
    assert parse(*words)[3].learning_rate == 1e-3
    _, _, recipe, training = parse(*words, "--base_learning_rate", "1e-2")
    assert (recipe.base_learning_rate, training.learning_rate, training.max_steps) == (1e-2, None, 100)
    _, _, _, training = parse(*words, "--base_learning_rate", "1e-2", "--learning_rate", "2")
    assert training.learning_rate == 2


@pytest.mark.parametrize(
    ("recipe", "words", "expected"),
    [
        ("", [], ("epoch", "no")),
        ("", ["--save_steps", "2", "--eval_steps", "3"], ("steps", "steps")),
        ("save_steps: 2", [], ("steps", "no")),
        ("{save_strategy: epoch, eval_strategy: epoch}", ["--save_steps", "0.1"], ("steps", "epoch")),
        ("{save_strategy: steps, save_steps: 2}", ["--save_strategy", "epoch"], ("epoch", "no")),
        ("{eval_strategy: steps, eval_steps: 2}", ["--eval_strategy", "no"], ("epoch", "no")),
    ],
)
def test_an_interval_brings_its_strategy_along(tmp_path, recipe, words, expected):
    (tmp_path / "mine.yaml").write_text(recipe)
    training = parse("--config", str(tmp_path / "mine.yaml"), "--dataset_name", "x", *words)[3]
    assert (training.save_strategy, training.eval_strategy) == expected


@pytest.mark.parametrize(
    ("recipe", "words", "expected"),
    [
        ("upernet_small", [], ("steps", 0.5)),
        ("upernet_vit_base", [], ("steps", 16000)),
        ("upernet_small", ["--eval_steps", "10"], ("steps", 10)),
        ("finetune_small_64px", [], ("epoch", None)),
        ("finetune_small_64px", ["--eval_steps", "10"], ("steps", 10)),
        ("upernet_small", ["--save_steps", "1.0", "--eval_steps", "0.5"], ("steps", 1.0)),
    ],
)
def test_the_best_model_is_saved_where_it_is_evaluated(recipe, words, expected):
    parser = finetune.make_parser()
    *_, training = parser.parse(["--config", recipe, "--dataset_name", "x", "--load_best_model_at_end", *words])
    strategy, steps = expected
    assert training.load_best_model_at_end and training.save_strategy == strategy
    assert steps is None or training.save_steps == steps
    asked = "--save_steps" in words
    assert parser.notes == [] if asked else f"at each evaluation: --save_strategy {strategy}" in parser.notes[-1]


@pytest.mark.parametrize("is_on", [True, False])
def test_fsdp_in_a_recipe(tmp_path, is_on):
    """A flag with or without a value; YAML can only say that it is on."""
    (tmp_path / "mine.yaml").write_text(f"fsdp: {str(is_on).lower()}\n")
    assert bool(parse("--config", str(tmp_path / "mine.yaml"))[3].fsdp) is is_on
    assert bool(parse("--dataset_name", "x", "--fsdp", str(is_on))[3].fsdp) is is_on


@pytest.mark.parametrize("number", ["-3.4e38", "-3.4028235E+38", "-9999", "-.5", "-1e-3"])
def test_negative_numbers_are_no_flags(number):
    """argparse takes those with an exponent for flags."""
    _, data, *_ = parse("--nodata", number, "--value_range", number, "1")
    assert (data.nodata, data.value_range) == (float(number), [float(number), 1.0])
    words = ["statistics", "--dataset_name", "x", "--output", "y", "--nodata", number, "--value_range", number, "1"]
    args = make_command_parser().parse_args(words)
    assert (args.nodata, args.value_range) == (float(number), [float(number), 1.0])


def test_help_is_grouped(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for heading in ("model:", "data:", "recipe:", "training (transformers.TrainingArguments):"):
        assert heading in text
    assert text.index("model:") < text.index("--mask_ratio") < text.index("data:") < text.index("--dataset_name")


def test_on_a_machine_without_accelerator_the_cpu_is_chosen():
    """Otherwise two processes under torchrun train side by side without knowing of each other."""
    if torch.accelerator.is_available():
        pytest.skip("needs a machine without an accelerator")
    assert parse()[3].use_cpu is True


def test_the_last_of_several_overrides_counts_and_is_said():
    parser = make_parser()
    words = ["--dataset_name", "x", "--config_overrides", "image_size=64", "--config_overrides=patch_size=8"]
    assert parse_config_overrides(parser.parse(words).model.config_overrides) == {"patch_size": 8}
    assert parser.notes == ["--config_overrides is given 2 times; only the last one counts."]


def test_the_last_of_several_recipes_counts_and_is_said():
    parser = make_parser()
    assert parser.parse(["--config", "small_64px", "--config=small_32px"]).training.output_dir == "outputs/small_32px"
    assert "--config is given 2 times; only the last one, small_32px, counts." in parser.notes


def test_config_overrides():
    assert parse_config_overrides("image_size=32,patch_size=[8, 4],layer_norm_eps=1e-6,hidden_act=gelu") == {
        "image_size": 32,
        "patch_size": [8, 4],
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
    }
    assert parse_config_overrides(None) == {}
    with pytest.raises(ValueError, match="--config_overrides"):
        parse_config_overrides("a=[1")


def refused(capsys, *words, parser=None) -> str:
    with pytest.raises(SystemExit) as stop:
        (parser or make_parser(prog="run_pretrain.py")).parse([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--stream_cache", "kept"], "--stream_cache keeps what is streamed: give --dataset_streaming"),
        (
            ["--stream_cache_size", "1GB", "--dataset_streaming"],
            "--stream_cache_size needs a folder: give --stream_cache",
        ),
    ],
)
def test_a_stream_cache_without_its_settings_is_refused(capsys, words, reason):
    assert reason in refused(capsys, *words)


@pytest.mark.parametrize(
    ("words", "range_"),
    [
        (["--learning_rate", "-1"], "--learning_rate -1: must be above 0"),
        (["--learning_rate", "0"], "--learning_rate 0: must be above 0"),
        (["--learning_rate", "nan"], "--learning_rate nan: must be above 0"),
        (["--learning_rate", "inf"], "--learning_rate inf: must be above 0 and finite"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size 0: must be at least 1"),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size 0: must be at least 1"),
        (["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps 0: must be at least 1"),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers -1: must be at least 0"),
        (["--adam_beta2", "1"], "--adam_beta2 1: must be at least 0 and below 1"),
        (["--weight_decay", "-1"], "--weight_decay -1: must be at least 0"),
        (["--weight_decay", "inf"], "--weight_decay inf: must be at least 0"),
        (["--warmup_epochs", "-1"], "--warmup_epochs -1: must be at least 0"),
        (["--num_train_epochs", "0"], "--num_train_epochs 0: must be above 0"),
        (["--max_steps", "0"], "--max_steps 0: must be at least 1, or -1 for --num_train_epochs"),
        (["--save_total_limit", "-1"], "--save_total_limit -1: must be at least 0"),
        (["--crop_scale", "0.5", "1.5"], "--crop_scale 1.5: must be above 0 and at most 1"),
        (
            ["--dataset_streaming", "--stream_cache", "kept", "--stream_cache_size", "200"],
            "--stream_cache_size: '200' is not a size: write a number above 0 and a unit, such as 200GB",
        ),
        (["--seed", "-1"], "--seed -1: must be at least 0 and at most 4294967295"),
        (["--report_to", "wand"], "--report_to wand: one of none, all, "),
        (["--log_level", "loud"], "invalid choice: 'loud'"),
        (["--lr_scheduler_kwargs", "min_lr=1"], "write it as JSON"),
        (["--dataset_name", ""], "--dataset_name is empty"),
    ],
)
def test_flags_out_of_range(capsys, words, range_):
    assert range_ in refused(capsys, *words)


def test_packages_that_a_flag_needs(capsys, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    assert "--report_to wandb needs the package wandb: pip install wandb" in refused(capsys, "--report_to", "wandb")
    monkeypatch.setattr("hf_mae_robust.training.optional.find_spec", lambda name: None)
    assert "--deepspeed needs the package deepspeed" in refused(capsys, "--deepspeed", "ds.json")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("save_strategy: no", ("training", "save_strategy", "no")),
        ("save_strategy: false", ("training", "save_strategy", "no")),
        ("target_normalization: no", ("model", "target_normalization", "none")),
        ("run_name: yes", ("training", "run_name", "yes")),
        ("dataset_revision: 0123", ("data", "dataset_revision", "0123")),
        ("run_name: 2024-01-31", ("training", "run_name", "2024-01-31")),
        ("max_steps: 1e3", ("training", "max_steps", 1000)),
        ("weight_decay: 1e-6", ("training", "weight_decay", 1e-6)),
        ("lr_scheduler_kwargs: {min_lr: 1e-6}", ("training", "lr_scheduler_kwargs", {"min_lr": 1e-6})),
        (
            "lr_scheduler_kwargs: {a: {b: [-2E+3, .5e1]}}",
            ("training", "lr_scheduler_kwargs", {"a": {"b": [-2e3, 5.0]}}),
        ),
        ("horizontal_flip: no", ("data", "horizontal_flip", False)),
        ("norm_pix_loss: off", ("model", "norm_pix_loss", False)),
        ("dataset_name: null", ("data", "dataset_name", None)),
        ("crop_scale: [5e-1, 1]", ("data", "crop_scale", [0.5, 1.0])),
    ],
)
def test_yaml_as_people_write_it(tmp_path, content, expected):
    (tmp_path / "mine.yaml").write_text(content)
    group, flag, value = expected
    arguments = make_parser().parse(["--config", str(tmp_path / "mine.yaml")])
    assert isinstance(arguments, PretrainArguments)
    assert getattr(getattr(arguments, group), flag) == value


def test_a_key_that_comes_twice(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("seed: 1\nmax_steps: 3\nseed: 2\n")
    assert "the key 'seed' comes twice" in refused(capsys, "--config", tmp_path / "mine.yaml")


def test_overrides_of_the_command_line_add_to_those_of_the_recipe():
    parser = make_parser()
    model = parser.parse(["--config", "digits", "--config_overrides", "hidden_size=48,num_attention_heads=2"]).model
    of_recipe = parse_config_overrides(make_parser().parse(["--config", "digits"]).model.config_overrides)
    expected = {**of_recipe, "hidden_size": 48, "num_attention_heads": 2}
    assert parse_config_overrides(model.config_overrides) == expected and len(expected) > 5
    (note,) = parser.notes
    assert "hidden_size=48 (there: 96)" in note and "beside those of digits: image_size=24" in note
    parser.parse(["--config", "digits"])
    assert parser.notes == []


def test_the_command_line_wins_in_whichever_way_it_says_a_setting(tmp_path):
    (tmp_path / "mine.yaml").write_text("mask_ratio: 0.75\nconfig_overrides: {mid_mask_ratio: 0.25}\n")
    parser = make_parser()
    words = ["--config", str(tmp_path / "mine.yaml"), "--config_overrides", "mask_ratio=0.5", "--mid_mask_ratio", "0.1"]
    model = parser.parse(words).model
    assert model.mask_ratio == 0.5 and model.mid_mask_ratio == 0.1
    assert "mid_mask_ratio" not in parse_config_overrides(model.config_overrides)
    assert "--config_overrides mask_ratio=0.5 wins over the recipe's --mask_ratio 0.75." in parser.notes
    assert "--mid_mask_ratio 0.1 wins over the recipe's --config_overrides." in parser.notes


def test_a_flag_that_says_all_that_the_overrides_say_leaves_the_recipe_its_own():
    parser = make_parser()
    of_recipe = parse_config_overrides(parser.parse(["--config", "digits"]).model.config_overrides)
    model = parser.parse(["--config", "digits", "--config_overrides", "mask_ratio=0.5", "--mask_ratio", "0.6"]).model
    assert parse_config_overrides(model.config_overrides) == of_recipe and model.mask_ratio == 0.6
    assert parser.notes == ["--mask_ratio 0.6 wins over --config_overrides mask_ratio=0.5."]


@pytest.mark.parametrize("text", ["[hidden_size=48, 'patch_size=[8, 4]']", "[{hidden_size: 48}, {patch_size: [8, 4]}]"])
def test_overrides_as_a_list(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(f"config_overrides: {text}\n")
    model = make_parser().parse(["--config", str(tmp_path / "mine.yaml"), "--config_overrides", "image_size=32"]).model
    expected = {"hidden_size": 48, "patch_size": [8, 4], "image_size": 32}
    assert parse_config_overrides(model.config_overrides) == expected


@pytest.mark.parametrize("word", ["no", "off", "false", "n"])
def test_a_switch_with_a_twin_is_off_in_all_words_of_yaml(tmp_path, word):
    (tmp_path / "mine.yaml").write_text(f"horizontal_flip: {word}\nnorm_pix_loss: {word}\n")
    model, data, *_ = parse("--config", str(tmp_path / "mine.yaml"))
    assert data.horizontal_flip is False and model.norm_pix_loss is False


def test_two_image_sizes(capsys):
    parser = finetune.make_parser(prog="run_finetune.py")
    words = ["--task", "segmentation", "--from_scratch", "--config_overrides", "image_size=224"]
    assert parser.parse(words).model.image_size == 224
    assert "--config_overrides image_size=224 wins over the recipe's --image_size 512." in parser.notes
    for more in ([], ["--config", "upernet_small"]):  # the recipe of --task, and one that is named
        model = parser.parse([*words, "--image_size", "512", *more]).model
        assert model.image_size == 512 and "image_size" not in parse_config_overrides(model.config_overrides)
        assert "--image_size 512 wins over --config_overrides image_size=224." in parser.notes
    with pytest.raises(UserError, match="image_size=224 contradicts --image_size 512"):  # in Python, where nobody notes
        finetune.FinetuneModelArguments(config_overrides="image_size=224", image_size=512)


@pytest.mark.parametrize(
    ("flag", "ours"),
    [
        ("--epochs", "--num_train_epochs"),
        ("--blr", "--base_learning_rate"),
        ("--lr", "--learning_rate"),
        ("--data_path", "--dataset_name"),
        ("--batch_size", "--per_device_train_batch_size"),
        ("--accum_iter", "--gradient_accumulation_steps"),
        ("--resume", "--resume_from_checkpoint"),
        ("--num_workers", "--dataloader_num_workers"),
        ("--input_size", "--config_overrides image_size="),
        ("--img_size", "--config_overrides image_size="),
        ("--image_size", "--config_overrides image_size="),
        ("--patch_size", "--config_overrides patch_size="),
        ("--dataset", "--dataset_name"),
        ("--data", "--dataset_name"),
        ("--model", "--config vit_base_mae_800ep"),
        ("--world_size", "torchrun --nproc_per_node"),
        ("--finetune", "--model_name_or_path"),
        ("--drop_path", "run_finetune.py has --drop_path_rate"),
        ("--output-dirr", "--output_dir"),
        ("--warmup_ratio", "--warmup_steps"),
        ("--no_cuda", "--use_cpu"),
        ("--no_norm_pix_loss", "--norm_pix_loss false"),
    ],
)
def test_flags_of_the_official_code_are_known(capsys, flag, ours):
    error = refused(capsys, flag, "7")
    assert f"unknown {flag} (" in error and ours in error and ", 7" not in error


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("dataset_name: ~/photos\n")
    model, data, _, training = parse(
        "--config", "~/mine.yaml", "--model_name_or_path", "~/model", "--target_statistics", "~/s", "--output_dir",
        "~/out", "--resume_from_checkpoint", "~/out/checkpoint-1",
    )  # fmt: skip
    found = (data.dataset_name, model.model_name_or_path, model.target_statistics, training.output_dir)
    assert found == tuple(str(tmp_path / name) for name in ("photos", "model", "s", "out"))
    assert training.resume_from_checkpoint == str(tmp_path / "out" / "checkpoint-1")


def test_help_of_each_twin_says_the_opposite():
    for parser in (make_parser(), finetune.make_parser()):
        text = " ".join(parser.format_help().split())
        twins = re.findall(r"--no_(\w+), --no-[\w-]+ The opposite of --(\w+), which is on by default\.", text)
        assert len(twins) >= 7 and all(name == opposite for name, opposite in twins)
        assert len(twins) == text.count("--no_")


def test_shipped_recipes_are_found_by_name():
    assert recipe_path("digits").is_file() and recipe_path("digits.yaml").is_file()
