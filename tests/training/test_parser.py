import pytest
import torch

from hf_mae_robust.pretrain import make_parser
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
        ("base_learnin_rate: 1", "unknown key 'base_learnin_rate' (did you mean 'base_learning_rate'?)"),
        ("- a\n- b", "must hold 'flag: value' lines"),
        ("a: [1", "not valid YAML"),
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
        (["--config", "no_such_recipe"], "no recipe of that name. Recipes: digits"),
        (["--dataset_nam", "x"], "unknown --dataset_nam (did you mean '--dataset_name'?)"),
        (["--num_train_epochs", "many"], "invalid float value: 'many'"),
        (["--target_normalization", "patch"], "invalid choice"),
    ],
)
def test_bad_flags_end_in_one_sentence(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        parse(*words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


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


def test_shipped_recipes_are_found_by_name():
    assert recipe_path("digits").is_file() and recipe_path("digits.yaml").is_file()
