"""Every module has the test file of its name, or a reason why it has none."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_mae_robust"

# A module -> the tests that cover it under another name, or why it needs none.
ELSEWHERE = {
    "analysis/plots.py": "analysis/test_analyze.py, for the table and the pictures of the command",
    "analysis/samples.py": "analysis/test_online.py and test_analyze.py, for the images that are looked at",
    "analysis/targets_command.py": "analysis/test_targets.py, which runs the command",
    "conversion/beit.py": "conversion/test_encoders.py and finetuning/classification/test_models.py",
    "conversion/finetuned.py": "finetuning/*/test_models.py, which read fine-tuned models",
    "conversion/frozen.py": "analysis/test_knn.py and finetuning/classification/test_linear_probe.py",
    "conversion/loading.py": "finetuning/*/test_models.py, with tensors that are missing, renamed and misshapen",
    "conversion/positions.py": "conversion/test_encoders.py, for images of another size",
    "conversion/settings.py": "finetuning/*/test_models.py, for configs and overrides",
    "conversion/source.py": "finetuning/*/test_models.py and hub/test_models.py",
    "conversion/stock.py": "conversion/test_export.py, against the stock classes",
    "conversion/timm_format.py": "conversion/test_export.py, against timm",
    "data/kept.py": "data/test_footer_cache.py and data/test_tar_index.py, for what is kept, broken and of other files",
    "data/layouts.py": "data/test_folders.py, a test a layout",
    "data/notes.py": "data/test_folders.py, for what is said of a folder",
    "data/tar_columns.py": "data/test_tars.py, for columns of images, maps, texts and JSON",
    "data/tar_table.py": "data/test_tars.py, for samples of several tars, and for processes that see others",
    "data/tree.py": "data/test_folders.py, for links, loops and folders that may not be read",
    "embedding/batches.py": "embedding/test_command.py, for names, streams and bad images; data/test_plan.py",
    "embedding/encoding.py": "embedding/test_command.py, for vectors, labels, bad images and parts",
    "embedding/job.py": "embedding/test_command.py, which runs the command",
    "errors.py": "the tests of the modules that raise them; test_documents.py, for the exit codes",
    "finetuning/arguments.py": "test_finetune.py, for refused settings; training/test_parser.py",
    "finetuning/classification/task.py": "test_finetune.py, which trains with it",
    "finetuning/classification/trainer.py": "test_finetune.py, which trains with it",
    "finetuning/detection/trainer.py": "finetuning/detection/test_task.py, which trains with it",
    "finetuning/image_settings.py": "training/test_image_form.py, for models from scratch and inflated ones",
    "finetuning/task.py": "test_finetune.py and finetuning/*/test_task.py, whose tasks derive from it",
    "finetuning/trainer.py": "test_finetune.py and finetuning/*/test_task.py, whose trainers derive from it",
    "hub/paths.py": "hub/test_models.py, for misspelt folders; training/test_parser.py, for paths of the home folder",
    "model/band_arrays_vit_mae_robust.py": "model/test_band_arrays.py",
    "model/band_dicom_vit_mae_robust.py": "model/test_band_files.py",
    "model/band_files_vit_mae_robust.py": "model/test_band_files.py",
    "model/band_headers_vit_mae_robust.py": "model/test_band_headers.py",
    "model/band_limits_vit_mae_robust.py": "model/test_band_faults.py, for bombs",
    "model/band_packages_vit_mae_robust.py": "model/test_band_faults.py, for missing packages",
    "model/band_picture_headers_vit_mae_robust.py": "model/test_band_headers.py",
    "model/band_science_vit_mae_robust.py": "model/test_band_files.py",
    "model/band_tiff_tags_vit_mae_robust.py": "model/test_band_headers.py and test_band_faults.py",
    "model/band_tiff_vit_mae_robust.py": "model/test_band_files.py",
    "model/bands_vit_mae_robust.py": "data/test_band_decoding.py, for forms and missing pixels",
    "model/configuration_vit_mae_robust.py": "model/test_configuration.py",
    "model/configuration_vit_mae_robust_detection.py": "model/test_instance_segmentation.py",
    "model/image_processing_vit_mae_robust_detection.py": "model/test_instance_segmentation.py",
    "model/resizing_vit_mae_robust.py": "data/test_preprocessing.py, for missing pixels and narrow images",
    "model/modeling_vit_mae_robust.py": "the other files of tests/model, one for each of its concepts",
    "model/modeling_vit_mae_robust_detection.py": "model/test_instance_segmentation.py",
    "preparation/card.py": "preparation/test_command.py, for what the card says",
    "preparation/job.py": "preparation/test_command.py, with kills, other settings and two processes",
    "preparation/shards.py": "preparation/test_command.py, with kills between and within shards",
    "preparation/writing.py": "preparation/test_command.py, for bad images, streams, labels, maps and objects",
    "pretraining/arguments.py": "test_pretrain.py, for refused settings; training/test_parser.py",
    "statistics/band_settings.py": "pretraining/test_model_config.py and training/test_image_form.py, against numpy",
    "statistics/image_pass.py": "statistics/test_statistics_pass.py and test_band_pass.py; data/test_bad_images.py",
    "statistics/moments.py": "statistics/test_patch_statistics.py and test_band_statistics.py, against numpy",
    "pretraining/pictures.py": "pretraining/test_trainer.py, for what a run leaves; training/test_pictures.py",
    "statistics/statistics_file.py": "statistics/test_patch_statistics.py and test_band_statistics.py, for files",
    "pretraining/task.py": "test_pretrain.py, which trains with it",
    "studies/definitions.py": "studies/test_reproduce.py and test_paper.py, for every study",
    "training/arguments.py": "training/test_parser.py",
    "training/band_arguments.py": "pretraining/test_model_config.py, for flags about bands",
    "training/checkpointing.py": "training/test_interruptions.py, with full disks, kills and the best checkpoint",
    "training/data_feeding.py": "pretraining/test_trainer.py, for batches, their order and their normalisation",
    "training/option.py": "training/test_parser.py, for every flag",
    "training/optional.py": "training/test_parser.py, for packages that are missing",
    "training/overrides.py": "training/test_parser.py, for --config_overrides beside a recipe",
    "training/parts.py": "embedding/test_command.py and preparation/test_command.py, with kills and torn parts",
    "training/publishing.py": "hub/test_uploads.py, which pushes what it trains",
    "training/ranges.py": "training/test_parser.py and test_odd_flags.py, for flags out of range",
    "training/recipe_yaml.py": "training/test_parser.py, for what YAML makes of a recipe",
    "training/run.py": "test_pretrain.py and test_finetune.py, whose runs all go through it",
    "training/suggestions.py": "training/test_parser.py, for unknown flags",
    "training/task.py": "an interface without code of its own",
    "training/typed_trainer.py": "declarations for the type checker only",
    "version.py": "a number",
}

MODULES = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def mirror_of(module: Path) -> Path:
    return ROOT / "tests" / module.parent / f"test_{module.stem.strip('_')}.py"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_its_tests(module):
    assert mirror_of(module).is_file() is not (module.as_posix() in ELSEWHERE), f"expected: {mirror_of(module)}"


def test_reasons_are_those_of_modules_that_exist():
    assert ELSEWHERE.keys() <= {module.as_posix() for module in MODULES}


@pytest.mark.parametrize("module", ELSEWHERE)
def test_tests_that_are_named_exist(module):
    words = [word.strip(",;") for word in ELSEWHERE[module].split()]
    named = [word for word in words if word.endswith(".py")]
    folders = (ROOT / "tests", ROOT / "tests" / Path(module).parent)
    assert all(any(list(folder.glob(name)) for folder in folders) for name in named), named
