"""README, recipes and CI say what is so."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from hf_mae_robust import ViTMAERobustForPreTraining, __version__
from hf_mae_robust.__main__ import make_parser as make_command_parser
from hf_mae_robust.data.preprocessing import training_transform
from hf_mae_robust.errors import EXIT_STOPPED
from hf_mae_robust.finetune import make_parser as make_finetune_parser
from hf_mae_robust.finetuning.classification.augmentation import FinetuningTransform
from hf_mae_robust.pretrain import make_parser
from hf_mae_robust.pretraining.task import build_config
from hf_mae_robust.recipes import recipe_path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ALL_RECIPES = sorted((ROOT / "hf_mae_robust" / "recipes").glob("*.yaml"))
FINETUNE_RECIPES = [path for path in ALL_RECIPES if "\ntask: " in path.read_text()]
RECIPES = [path for path in ALL_RECIPES if path not in FINETUNE_RECIPES]


def commands(text):
    """Command lines of the fenced shell blocks, continued lines joined."""
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield shlex.split(line, comments=True)


def test_ci_runs_the_two_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install . && python run_pretrain.py\n" in README and 'pip install ".[test]" && pytest\n' in README
    for line in ("pip install --quiet .\n", "python run_pretrain.py ", 'pip install --quiet ".[test]"\n', "\npytest\n"):
        assert line in script


@pytest.mark.parametrize("words", [words for words in commands(README) if "run_pretrain.py" in words], ids=" ".join)
def test_pretraining_commands_parse(words, monkeypatch):
    arguments = [word for word in words[words.index("run_pretrain.py") + 1 :] if word not in ("&&", "...")]
    # A GPU is what bf16 and torch.compile are for; the names are what is checked here.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True, raising=False)
    make_parser().parse(arguments)


@pytest.mark.parametrize("words", [words for words in commands(README) if "run_finetune.py" in words], ids=" ".join)
def test_finetuning_commands_parse(words, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True, raising=False)
    make_finetune_parser().parse(words[words.index("run_finetune.py") + 1 :])


@pytest.mark.parametrize("words", [words for words in commands(README) if "hf_mae_robust" in words], ids=" ".join)
def test_other_commands_parse(words):
    make_command_parser().parse_args(words[words.index("hf_mae_robust") + 1 :])


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(block, scope)
    assert scope["filled_in"].shape == (4, 3, 64, 64) and scope["features"].shape == (4, 65, 192)
    assert torch.isfinite(scope["loss"])


def test_the_default_fine_tuning_starts_from_what_the_default_pretraining_writes():
    model, *_ = make_finetune_parser().parse([])
    *_, training = make_parser().parse([])
    assert model.model_name_or_path == training.output_dir == "outputs/digits"


def test_the_rooms_of_the_house_are_in_the_readme():
    tree = README.split("## Files")[1]
    package = ROOT / "hf_mae_robust"
    rooms = [f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"]
    doors = [path.name for path in package.glob("*.py") if path.name not in ("__init__.py", "version.py")]
    assert [name for name in (*rooms, *doors) if name not in tree] == []


def test_every_module_is_in_the_file_tree():
    tree, package = (ROOT / "CONTRIBUTING.md").read_text(), ROOT / "hf_mae_robust"
    listed = set()
    for room, lines in re.findall(r"^([\w/]+)/\n((?:  \w+\.py .*\n)+)", tree, flags=re.MULTILINE):
        listed |= {f"{room}/{name}" for name in re.findall(r"^  (\w+\.py)", lines, flags=re.MULTILINE)}
    there = {path.relative_to(package).as_posix() for path in package.glob("*/**/*.py") if path.name != "__init__.py"}
    assert listed == there


def test_nothing_is_left_to_fill_in():
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        assert not re.search(r"@[A-Z_]+@|TODO|TBD", (ROOT / name).read_text()), name


def test_changelog_has_this_version():
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_and_say_how_to_run_them(path):
    model, data, recipe, training = make_parser().parse(["--config", str(path)])
    config = build_config(model)
    training_transform(config.image_size, data.crop_scale)
    if config.target_normalization == "global_patch":
        assert model.target_statistics == "auto"
    comment = path.read_text().split("config_overrides:")[0]
    assert "run_pretrain.py" in comment and f"`{path.stem}`" in README
    assert recipe_path(path.stem) == path


@pytest.mark.parametrize("path", FINETUNE_RECIPES, ids=lambda path: path.stem)
def test_finetuning_recipes_are_valid_and_say_how_to_run_them(path):
    model, data, augmentation, *_, training = make_finetune_parser().parse(["--config", str(path)])
    auto_augment = None if augmentation.auto_augment == "none" else augmentation.auto_augment
    FinetuningTransform(32, crop_scale=data.crop_scale, auto_augment=auto_augment)
    comment = path.read_text().split("task:")[0]
    assert "run_finetune.py" in comment and f"`{path.stem}`" in README
    assert recipe_path(path.stem) == path and training.output_dir == f"outputs/{path.stem}"


@pytest.mark.parametrize(
    ("name", "epochs", "rate", "layer_decay", "drop_path"),
    [("base", 100, 5e-4, 0.65, 0.1), ("large", 50, 1e-3, 0.75, 0.2), ("huge", 50, 1e-3, 0.75, 0.3)],
)
def test_finetuning_of_imagenet_has_maes_settings(name, epochs, rate, layer_decay, drop_path):
    """He et al. 2022, FINETUNE.md."""
    parsed = make_finetune_parser().parse(["--config", f"finetune_vit_{name}"])
    model, data, augmentation, _, _, recipe, training = parsed
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 8 == 1024
    assert (training.num_train_epochs, recipe.base_learning_rate) == (epochs, rate)
    assert (recipe.layer_decay, model.drop_path_rate, model.pooling) == (layer_decay, drop_path, "mean")
    assert (recipe.warmup_epochs, recipe.min_learning_rate, training.weight_decay) == (5, 1e-6, 0.05)
    assert (training.adam_beta1, training.adam_beta2, training.max_grad_norm) == (0.9, 0.999, 0)
    assert (augmentation.mixup, augmentation.cutmix, augmentation.random_erasing) == (0.8, 1.0, 0.25)
    assert augmentation.auto_augment == "rand-m9-mstd0.5-inc1" and training.label_smoothing_factor == 0.1
    assert data.crop_scale == [0.08, 1.0] and data.crop_pct == 0.875
    assert training.lr_scheduler_type == "cosine_with_min_lr"


@pytest.mark.parametrize(("name", "epochs"), [("base", 90), ("large", 50)])
def test_linear_probes_have_maes_settings(name, epochs):
    """He et al. 2022, main_linprobe.py."""
    parsed = make_finetune_parser().parse(["--config", f"linear_probe_vit_{name}"])
    model, data, augmentation, _, _, recipe, training = parsed
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 8 == 16384
    assert (training.num_train_epochs, recipe.base_learning_rate, recipe.warmup_epochs) == (epochs, 0.1, 10)
    assert (training.weight_decay, recipe.min_learning_rate, training.label_smoothing_factor) == (0, 0, 0)
    assert model.linear_probe and model.pooling == "cls" and not augmentation.mixes
    assert (augmentation.auto_augment, augmentation.random_erasing) == ("none", 0)


def test_a_linear_probe_without_a_recipe_has_that_of_vit_b():
    named, alone = (
        make_finetune_parser().parse(["--linear_probe", "--dataset_name", "x", "--output_dir", "y", *more])
        for more in (["--config", "linear_probe_vit_base"], [])
    )
    assert [str(part) for part in alone[:-1]] == [str(part) for part in named[:-1]]


@pytest.mark.parametrize(("name", "rate", "channels"), [("base", 1e-4, 768), ("large", 1e-4, 1024)])
def test_segmentation_of_ade20k_has_mmsegmentations_settings(name, rate, channels):
    """mmsegmentation's configuration of MAE with UperNet."""
    model, _, augmentation, segmentation, _, recipe, training = make_finetune_parser().parse(
        ["--config", f"upernet_vit_{name}"]
    )
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * 8
    assert batch == 16 and recipe.base_learning_rate * batch / 256 == pytest.approx(rate)
    assert (model.image_size, training.max_steps, training.warmup_steps) == (512, 160_000, 1500)
    assert (segmentation.auxiliary_loss_weight, segmentation.segmentation_channels) == (0.4, channels)
    assert augmentation.scale_range == [0.5, 2.0] and training.weight_decay == 0.05
    assert training.lr_scheduler_type == "polynomial" and training.lr_scheduler_kwargs == {"power": 1.0, "lr_end": 0.0}


@pytest.mark.parametrize(("name", "rate"), [("base", 1.6e-4), ("large", 1.5e-4)])
def test_detection_on_coco_has_the_papers_settings(name, rate):
    """The paper's Table 3, after Li et al. 2021."""
    model, _, augmentation, _, detection, recipe, training = make_finetune_parser().parse(
        ["--config", f"mask_rcnn_vit_{name}"]
    )
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * 8
    assert batch == 64 and recipe.base_learning_rate * batch / 256 == pytest.approx(rate)
    assert (model.image_size, training.num_train_epochs, recipe.warmup_epochs) == (1024, 25, 0.25)
    assert (detection.window_size, detection.pyramid, augmentation.scale_range) == (16, "adaptor", [0.1, 2.0])
    assert (training.weight_decay, recipe.layer_decay, recipe.min_learning_rate) == (0.1, 1.0, 0.0)


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_task_without_a_recipe_has_that_of_vit_b(task):
    name = {"segmentation": "upernet_vit_base", "detection": "mask_rcnn_vit_base"}[task]
    named, alone = (
        make_finetune_parser().parse(["--task", task, "--dataset_name", "x", "--output_dir", "y", *more])
        for more in (["--config", name], [])
    )
    assert [str(part) for part in alone[:-1]] == [str(part) for part in named[:-1]]


def settings(name):
    model, data, recipe, training = make_parser().parse(["--config", name])
    return build_config(model), data, recipe, training


@pytest.mark.parametrize("name", [path.stem for path in RECIPES if path.stem.startswith("vit_")])
def test_paper_rows_have_maes_settings(name):
    """RECIPES of He et al. 2022, PRETRAIN.md."""
    config, data, recipe, training = settings(name)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 8 == 4096
    assert recipe.base_learning_rate == 1.5e-4 and recipe.warmup_epochs == 40
    assert (training.adam_beta1, training.adam_beta2, training.weight_decay) == (0.9, 0.95, 0.05)
    assert training.max_grad_norm == 0 and config.mask_ratio == 0.75 and config.norm_pix_loss
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers, config.decoder_num_attention_heads) == (
        512,
        8,
        16,
    )
    sizes = {"base": (768, 12, 12), "large": (1024, 24, 16)}["large" if "large" in name else "base"]
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == sizes


def test_paper_rows_differ_from_the_baseline_in_the_ingredients():
    base, data, *_ = settings("vit_base_800ep")
    assert base.decoder_attention_probs_dropout_prob == 0.3 and base.target_normalization == "global_patch"
    assert data.crop_scale == [0.5, 1.0]
    large, data, *_ = settings("vit_large_800ep")
    assert large.decoder_attention_probs_dropout_prob == 0.3 and data.crop_scale == [0.2, 1.0]
    baseline, data, _, training = settings("vit_base_mae_1600ep")
    assert baseline.decoder_attention_probs_dropout_prob == 0 and baseline.target_normalization == "global_rgb"
    assert baseline.mid_mask_ratio == 0 and data.crop_scale == [0.2, 1.0] and training.num_train_epochs == 1600
    mid, *_ = settings("vit_base_midlevel_800ep")
    assert (mid.mid_mask_ratio, mid.mid_mask_layer_idx) == (0.25, 8)


def test_recipes_are_packaged():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'hf_mae_robust = ["py.typed", "recipes/*.yaml", "launch_configs/*", "hub/*.md"]' in project
    assert all(isinstance(yaml.safe_load(path.read_text()), dict) for path in ALL_RECIPES)


LAUNCH_CONFIGS = ROOT / "hf_mae_robust" / "launch_configs"


@pytest.mark.parametrize("path", sorted(LAUNCH_CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_configurations_are_accepted_by_accelerate(path):
    """And their comments hold the command."""
    config = load_config_from_file(str(path))
    machines = 4 if "4x8" in path.stem else 1
    assert (config.num_machines, config.num_processes) == (machines, 8 * machines)
    assert str(config.distributed_type).rpartition(".")[2] == {
        "ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed": "DEEPSPEED"
    }[path.stem.split("_")[0]]  # fmt: skip
    wrapped = config.fsdp_config.get("fsdp_transformer_layer_cls_to_wrap")
    assert wrapped in (None, *ViTMAERobustForPreTraining._no_split_modules)
    assert f"--config_file hf_mae_robust/launch_configs/{path.name}" in path.read_text() or machines == 4
    assert f"`{path.stem}`" in (ROOT / "README.md").read_text()


def test_the_slurm_script_is_valid_and_its_flags_exist():
    script = LAUNCH_CONFIGS / "pretrain.sbatch"
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    words = script.read_text().split("run_pretrain.py ")[1].split("'")[0].replace("\\\n", " ").split()
    make_parser().parse(words)
    assert f"-eq {EXIT_STOPPED}" in script.read_text()
