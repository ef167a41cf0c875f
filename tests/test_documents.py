"""README, manual, recipes and CI say what is so."""

import importlib
import inspect
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from PIL import Image as PILImage
from safetensors.torch import save_file

import hf_mae_robust
from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining, __version__, errors
from hf_mae_robust.__main__ import make_parser as make_command_parser
from hf_mae_robust.conversion.finetuned import LINEAR_HEAD
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.data.preprocessing import band_processor, training_transform
from hf_mae_robust.errors import EXIT_BUG, EXIT_CODES, EXIT_STOPPED
from hf_mae_robust.finetune import make_parser as make_finetune_parser
from hf_mae_robust.finetuning.classification.augmentation import FinetuningTransform
from hf_mae_robust.finetuning.segmentation.linear_head import linear_segmenter
from hf_mae_robust.model.bands_vit_mae_robust import BandForm
from hf_mae_robust.pretrain import make_parser
from hf_mae_robust.pretraining.model_config import config_of
from hf_mae_robust.recipes import recipe_path
from tests.helpers import TINY

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
MANUAL = {"README.md": README, **PAGES}
ALL_RECIPES = sorted((ROOT / "hf_mae_robust" / "recipes").glob("*.yaml"))
FINETUNE_RECIPES = [path for path in ALL_RECIPES if "\ntask: " in path.read_text()]
RECIPES = [path for path in ALL_RECIPES if path not in FINETUNE_RECIPES]


def commands(text):
    """Command lines of the fenced shell blocks, continued lines joined, and those in the cells of tables."""
    for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield shlex.split(line, comments=True)
    for line in re.findall(r"`((?:python|accelerate launch|torchrun) [^`]*)`", text):
        yield shlex.split(line)


def commands_with(word):
    """(page, words) of all commands of the manual with that word, as parameters."""
    found = [
        (page, words)
        for page, text in MANUAL.items()
        for words in commands(text)
        if word in words and "--help" not in words
    ]
    return [
        pytest.param(words, id=f"{page}: {' '.join(words)}")
        for page, words in dict.fromkeys((p, tuple(w)) for p, w in found)
    ]


def after(words, name):
    return [word for word in words[words.index(name) + 1 :] if word not in ("&&", "...")]


def test_ci_runs_the_two_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install . && python run_pretrain.py\n" in README and 'pip install ".[test]" && pytest\n' in README
    for line in ("pip install --quiet .\n", "python run_pretrain.py ", 'pip install --quiet ".[test]"\n', "\npytest\n"):
        assert line in script


def test_the_readme_takes_two_minutes():
    assert len(README.splitlines()) <= 180


@pytest.mark.parametrize("words", commands_with("run_pretrain.py"))
def test_pretraining_commands_parse(words, monkeypatch):
    # A GPU is what bf16 and torch.compile are for; the names are what is checked here.
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True, raising=False)
    make_parser().parse(after(words, "run_pretrain.py"))


@pytest.mark.parametrize("words", commands_with("run_finetune.py"))
def test_finetuning_commands_parse(words, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True, raising=False)
    make_finetune_parser().parse(after(words, "run_finetune.py"))


def tasks_of_the_readme():
    """The commands of its table that train on a folder of the user's images."""
    table = README.split("## What do you want to do?")[1].split("##")[0]
    return [words for words in commands(table) if {"run_pretrain.py", "run_finetune.py"} & set(words)]


@pytest.mark.parametrize("words", tasks_of_the_readme(), ids=" ".join)
def test_commands_of_the_readme_start_on_a_plain_folder(words):
    """They name images, a model to fine-tune, and hold images out where the recipe evaluates on some: otherwise the run
    is refused, or trains on scikit-learn's digits."""
    script = "run_pretrain.py" if "run_pretrain.py" in words else "run_finetune.py"
    arguments = (make_parser() if script == "run_pretrain.py" else make_finetune_parser()).parse(after(words, script))
    assert arguments.data.dataset_name is not None
    assert script == "run_pretrain.py" or arguments.model.model_name_or_path is not None
    is_plain = set(words) & {f"path/to/{name}" for name in ("images", "geotiffs", "labelled-images", "images-and-maps")}
    if is_plain and arguments.training.eval_strategy != "no":
        assert arguments.data.train_val_split


@pytest.mark.parametrize(
    "words", [each for each in commands_with("hf_mae_robust") if after(each.values[0], "hf_mae_robust")]
)
def test_other_commands_parse(words):
    make_command_parser().parse_args(after(words, "hf_mae_robust"))


def test_scripts_that_the_manual_names_are_there():
    named = {word for text in MANUAL.values() for word in re.findall(r"\bbenchmarks/\w+\.(?:py|sh)", text)}
    assert named and [name for name in named if not (ROOT / name).is_file()] == []


def test_flags_that_the_manual_names_exist():
    """In sentences too, not only in commands."""
    flags = {word for text in MANUAL.values() for word in re.findall(r"(?<![\w-])--[a-z][\w-]+", text)}
    options = {flag for parser in (make_parser(), make_finetune_parser()) for flag in option_strings(parser)}
    options |= set(option_strings(make_command_parser()))
    # Of accelerate, torchrun, hf, pip, scancel and the scripts in benchmarks/.
    options |= {
        "--multi_gpu",
        "--num_processes",
        "--config_file",
        "--nproc_per_node",
        "--cpu",
        "--repo-type",
        "--exclude",
        "--mixed_precision",
    }
    options |= {"--max-restarts", "--nnodes", "--node_rank", "--master_addr", "--master_port", "--signal"}
    options |= {"--machine_rank", "--main_process_ip", "--main_process_port"}
    options |= {
        "--strict",
        "--kills",
        "--photos",
        "--cifar10",
        "--copies",
        "--only",
        "--parts",
        "--sets",
        "--steps",
        "--help",
    }
    assert sorted(flags - options) == []


def option_strings(parser):
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action.choices, dict):
            for subparser in action.choices.values():
                yield from option_strings(subparser)


def run_python_of(page):
    """The variables that the blocks of a page leave, one block after another."""
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", MANUAL[page], flags=re.DOTALL):
        exec(block, scope)
    return scope


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text])
def test_every_page_with_python_is_run(page):
    assert page in ("quickstart.md", "backbone.md", "bands.md", "segmentation.md")


@pytest.mark.parametrize("page", ["README.md", "quickstart.md"])
def test_python_of_the_manual_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = run_python_of(page)
    assert scope["filled_in"].shape == (4, 3, 64, 64) and scope["features"].shape == (4, 65, 192)
    assert torch.isfinite(scope["loss"])


def test_python_of_the_page_of_bands_runs(tmp_path, monkeypatch):
    """With what a pre-training on files of five bands, of which it takes four, has left behind."""
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.chdir(tmp_path)
    statistics = {"image_mean": [1000.0] * 4, "image_std": [500.0] * 4}
    config = ViTMAERobustConfig(**TINY | {"num_channels": 4}, rescale_factor=1.0, bands=[4, 0, 1, 2], **statistics)
    ViTMAERobustForPreTraining(config).save_pretrained("outputs/my-encoder")
    band_processor(BandForm(**config.band_settings()), config.image_size, 1.0).save_pretrained("outputs/my-encoder")
    field = np.random.default_rng(0).integers(0, 3000, (5, 20, 30)).astype(np.uint16)
    np.save("field.npy", np.moveaxis(field, 0, -1))
    tifffile.imwrite("scene.tif", field, photometric="minisblack", planarconfig="separate")
    scope = run_python_of("bands.md")
    assert torch.equal(scope["inputs"].pixel_values[0], scope["inputs"].pixel_values[1])
    assert scope["features"].shape == (2, 1 + config.num_patches, config.hidden_size)
    assert scope["per_image"].shape == (2, config.hidden_size) and torch.isfinite(scope["features"]).all()
    assert torch.isfinite(scope["loss"]) and scope["filled_in"].shape == (2, 4, 32, 32)
    assert 500 < scope["filled_in"].nanmean() < 2500, "in the units of the files"


def test_python_of_the_page_of_segmentation_runs(tmp_path, monkeypatch):
    """On a folder as --freeze_encoder writes it."""
    monkeypatch.chdir(tmp_path)
    ViTMAERobustForPreTraining(ViTMAERobustConfig(**TINY)).save_pretrained("encoder")
    segmenter, pixels = linear_segmenter(ModelSource("encoder"), ["a", "b", "c"], 16, "sdpa", from_scratch=False)
    segmenter.encoder.save_pretrained("outputs/my-frozen")
    save_file(segmenter.head.state_dict(), Path("outputs/my-frozen") / LINEAR_HEAD)
    pixels.processor(16, 1.0).save_pretrained("outputs/my-frozen")
    PILImage.effect_noise((40, 30), 90).convert("RGB").save("image.jpg")
    scope = run_python_of("segmentation.md")
    with torch.no_grad():
        logits = segmenter.eval()(scope["inputs"]["pixel_values"]).logits
    assert torch.equal(scope["classes"], logits.argmax(1)) and scope["classes"].shape == (1, 16, 16)


def test_python_of_the_page_of_the_backbone_runs(tmp_path, monkeypatch):
    """On an encoder of the form of `small_64px`."""
    monkeypatch.chdir(tmp_path)
    model, *_ = make_parser().parse(["--config", "small_64px"])
    ViTMAERobustForPreTraining(config_of(model)).save_pretrained("outputs/my-encoder")
    torch.manual_seed(0)
    scope = run_python_of("backbone.md")
    assert [tuple(each.shape) for each in scope["maps"]] == [(4, 128, 12, 8)] * 4
    assert scope["losses"][-1] < 0.9 * scope["losses"][0] and Path("outputs/my-upernet/config.json").is_file()
    assert scope["predicted"].shape == (4, 192, 128)
    assert all(each.grad is not None for each in scope["depth_model"].backbone.layers.parameters())
    with torch.no_grad():
        assert torch.allclose(scope["same"](scope["images"]).feature_maps[0], scope["maps"][0], atol=1e-5)


@pytest.mark.parametrize("page", [*MANUAL, "CONTRIBUTING.md"])
def test_links_lead_to_files_and_headings(page):
    """Also those of the README, which the strict build of the site does not see, and pictures, which it does not
    look for."""
    path = ROOT / page if (ROOT / page).is_file() else ROOT / "docs" / page
    for target, heading in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", path.read_text()):
        if target.startswith("http"):
            continue
        file = path.parent / target if target else path
        assert file.exists(), f"{page}: {target}"
        if heading:
            assert heading in anchors(file.read_text()), f"{page}: {target}#{heading}"


def anchors(text):
    """Of the headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for title in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_every_page_is_in_the_navigation_and_on_the_first_page():
    navigation = (ROOT / "zensical.toml").read_text()
    assert [page for page in PAGES if f'"{page}"' not in navigation] == []
    assert [page for page in PAGES if page != "index.md" and f"({page})" not in PAGES["index.md"]] == []
    assert [page for page in PAGES if page != "index.md" and f"(docs/{page}" not in README] == []


def test_every_exit_code_and_error_is_explained():
    text = PAGES["troubleshooting.md"]
    for code in {0, EXIT_BUG, EXIT_STOPPED, *EXIT_CODES.values()}:
        assert re.search(rf"^\| {code} \|", text, flags=re.MULTILINE), code
    for name, error in vars(errors).items():
        if inspect.isclass(error) and issubclass(error, Exception) and error.__module__ == errors.__name__:
            assert re.search(rf"^\| `{name}`", text, flags=re.MULTILINE), name


def test_at_least_twenty_questions_are_answered():
    assert PAGES["troubleshooting.md"].split("## Questions")[1].count("\n### ") >= 20


def referred_to():
    return re.findall(r"^::: ([\w.]+)$", PAGES["reference.md"], flags=re.MULTILINE)


def test_every_public_name_is_in_the_reference():
    public = {f"hf_mae_robust.{name}" for name in hf_mae_robust.__all__ if name != "__version__"}
    assert public <= set(referred_to())


@pytest.mark.parametrize("name", referred_to())
def test_what_the_reference_shows_is_documented(name):
    """Everything public in a module, and every public method that a class defines itself."""
    module, _, attribute = name.rpartition(".")
    try:
        shown = {name: getattr(importlib.import_module(module), attribute)}
    except AttributeError:
        shown = {name: importlib.import_module(name)}
    if inspect.ismodule(shown[name]):
        shown |= {
            f"{name}.{key}": value
            for key, value in vars(shown[name]).items()
            if not key.startswith("_") and callable(value) and value.__module__ == name
        }
    for key, value in list(shown.items()):
        if inspect.isclass(value):
            shown |= {
                f"{key}.{n}": f for n, f in vars(value).items() if not n.startswith("_") and inspect.isfunction(f)
            }
    # inspect.getdoc would take a base class's.
    assert [key for key, value in shown.items() if not (value.__doc__ or "").strip()] == []


def test_the_default_fine_tuning_starts_from_what_the_default_pretraining_writes():
    model, *_ = make_finetune_parser().parse([])
    *_, training = make_parser().parse([])
    assert model.model_name_or_path == training.output_dir == "outputs/digits"


def test_the_packages_are_on_the_page_of_the_architecture():
    tree = PAGES["architecture.md"]
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
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", *(f"docs/{page}" for page in PAGES)):
        assert not re.search(r"@[A-Z_]+@|TODO|TBD", (ROOT / name).read_text()), name


def test_changelog_has_this_version():
    """In the form of keepachangelog.com: a date, or "Unreleased"; the usual kinds of changes."""
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{__version__}] - " in text or "## [Unreleased]" in text
    kinds = set(re.findall(r"^### (.*)$", text, flags=re.MULTILINE))
    assert kinds and kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_and_say_how_to_run_them(path):
    model, data, recipe, training = make_parser().parse(["--config", str(path)])
    config = config_of(model)
    training_transform(config.image_size, data.crop_scale)
    if config.target_normalization == "global_patch":
        assert model.target_statistics == "auto"
    comment = path.read_text().split("config_overrides:")[0]
    assert "run_pretrain.py" in comment and f"`{path.stem}`" in PAGES["pretraining.md"]
    assert recipe_path(path.stem) == path


@pytest.mark.parametrize("path", FINETUNE_RECIPES, ids=lambda path: path.stem)
def test_finetuning_recipes_are_valid_and_say_how_to_run_them(path):
    model, data, augmentation, *_, training = make_finetune_parser().parse(["--config", str(path)])
    auto_augment = None if augmentation.auto_augment == "none" else augmentation.auto_augment
    FinetuningTransform(32, crop_scale=data.crop_scale, auto_augment=auto_augment)
    comment = path.read_text().split("task:")[0]
    assert "run_finetune.py" in comment and f"`{path.stem}`" in "".join(PAGES.values())
    assert recipe_path(path.stem) == path and training.output_dir == f"outputs/{path.stem}"


@pytest.mark.parametrize(
    ("name", "epochs", "rate", "layer_decay", "drop_path"),
    [("base", 100, 5e-4, 0.65, 0.1), ("large", 50, 1e-3, 0.75, 0.2), ("huge", 50, 1e-3, 0.75, 0.3)],
)
def test_finetuning_of_imagenet_has_maes_settings(name, epochs, rate, layer_decay, drop_path):
    """He et al. 2022, FINETUNE.md. Without `pooling` the mean is classified, or what DINOv2 and DeiT do."""
    parsed = make_finetune_parser().parse(["--config", f"finetune_vit_{name}"])
    model, data, augmentation, _, _, recipe, training = parsed
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * 8 == 1024
    assert (training.num_train_epochs, recipe.base_learning_rate) == (epochs, rate)
    assert (recipe.layer_decay, model.drop_path_rate, model.pooling) == (layer_decay, drop_path, None)
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
    """mmsegmentation's configuration of MAE with UperNet, whose backbone (mmseg/models/backbones/mae.py) has BEiT's
    relative positions in each block, from zero. It has none for ViT-L."""
    model, _, augmentation, segmentation, _, recipe, training = make_finetune_parser().parse(
        ["--config", f"upernet_vit_{name}"]
    )
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * 8
    assert batch == 16 and recipe.base_learning_rate * batch / 256 == pytest.approx(rate)
    assert (model.image_size, training.max_steps, training.warmup_steps) == (512, 160_000, 1500)
    assert (segmentation.auxiliary_loss_weight, segmentation.segmentation_channels) == (0.4, channels)
    assert segmentation.relative_position_bias and augmentation.photometric_distortion
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
    return config_of(model), data, recipe, training


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
    assert f"`{path.stem}`" in PAGES["distributed.md"]


def test_the_slurm_script_is_valid_and_its_flags_exist():
    script = LAUNCH_CONFIGS / "pretrain.sbatch"
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
    words = script.read_text().split("run_pretrain.py ")[1].split("'")[0].replace("\\\n", " ").split()
    make_parser().parse(words)
    assert f"-eq {EXIT_STOPPED}" in script.read_text()
