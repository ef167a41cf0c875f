"""Who may import whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hf_mae_robust"

# A module may import from modules that stand in an earlier line, and from none of its own line.
LAYERS = [
    {
        "attention_maps",
        "class_names",
        "jpeg",
        "model",
        "paper",
        "profiling",
        "representation",
        "studies",
        "study_runner",
        "version",
    },
    {"study_report"},
    {"arguments", "augmentation", "cost", "decoding", "layer_decay", "metrics", "observing", "optimization", "plan"},
    {"evaluators", "remote"},
    {"coco", "finetune_arguments", "labels", "model_card", "objects", "semantic_maps", "statistics", "transforms"},
    {"detection_metrics", "detection_transforms", "segmentation_metrics", "segmentation_transforms"},
    {"sources"},
    {"about", "bad_images"},
    {"data"},
    {"guards", "hub", "launch", "planner", "saving", "stopping"},
    {"checkpoints", "diagnostics", "onnx_export", "resume", "target_statistics"},
    {"pushing"},
    {"classifiers", "diagnostic_pictures", "export", "features", "image_trainer", "pictures", "samples"},
    {"convert", "detectors", "finetuning_trainer", "running", "segmenters", "trainer"},
    {"classification_trainer", "detection_trainer", "segmentation_trainer"},
    {"inspection", "knn", "lora", "probes"},
    {"online_diagnostics"},
    {"demo_app", "pretrain", "tasks"},
    {"analyze", "demo", "finetune"},
    {"reproduce"},
    {"__main__", "__init__"},
]


def imports_of(path: Path) -> set[str]:
    """Names of our own modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == len(path.relative_to(PACKAGE).parts):
            found.add(node.module.split(".")[0] if node.module else "__init__")
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {
            name.split(".")[1] if "." in name else "__init__" for name in names if name.split(".")[0] == "hf_mae_robust"
        }
    return found


@pytest.mark.parametrize(
    "path", [*sorted(PACKAGE.glob("*.py")), *sorted(PACKAGE.glob("tasks/*.py"))], ids=lambda path: path.stem
)
def test_modules_import_only_from_lower_layers(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    layer = next((i for i, names in enumerate(LAYERS) if module in names), None)
    assert layer is not None, f"{path.name} has no place in LAYERS"
    allowed = set().union(*LAYERS[:layer])
    assert imports_of(path) <= allowed


def test_every_module_named_here_exists():
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {"model", "tasks"}
    assert set().union(*LAYERS) == modules


@pytest.mark.parametrize("name", ["run_pretrain.py", "run_finetune.py"])
def test_scripts_are_thin(name):
    script = PACKAGE.parent / name
    statements = [node for node in ast.parse(script.read_text()).body if not isinstance(node, ast.Expr)]
    assert len(statements) <= 2
