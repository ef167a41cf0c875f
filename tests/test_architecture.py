"""Which package may import from which, and that no two modules import one another."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_mae_robust"

# Modules without a package, and the Hub boundary: everybody may import them, and they import none of the others.
FOUNDATIONS = {"errors", "files", "model", "paper", "recipes", "version"}
# A package -> the packages that it may import from. What is missing here goes the wrong way.
MAY_IMPORT = {
    "hub": set(),
    "data": {"hub"},
    "conversion": {"data", "hub"},
    "training": {"conversion", "data", "hub"},
    "statistics": {"training", "conversion", "data", "hub"},
    "pretraining": {"statistics", "training", "conversion", "data", "hub"},
    "finetuning": {"statistics", "training", "conversion", "data", "hub"},
    "analysis": {"training", "conversion", "data", "hub"},
    "embedding": {"training", "conversion", "data", "hub"},
    "preparation": {"finetuning", "statistics", "training", "conversion", "data", "hub"},
    "demo": {"analysis", "training", "conversion", "data", "hub"},
    "studies": {"analysis", "training", "conversion", "data", "hub"},
}
# The doors, which bring the packages together.
DOORS = {"__init__", "__main__", "pretrain", "finetune"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """`hf_mae_robust/data/source.py` -> `data.source`; of a package, the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


NAMES = {module_name(path) for path in MODULES}


def imports_of(path: Path) -> set[str]:
    """Our own modules that a file imports, wherever in the file."""
    package = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            name = node.module or ""
            if node.level:
                name = ".".join([*package[: len(package) - node.level + 1], *([name] if name else [])]) or "__init__"
            elif name.split(".")[0] == "hf_mae_robust":
                name = name.partition(".")[2] or "__init__"
            else:
                continue
            # `from .package import module` imports a module.
            found |= {f"{name}.{alias.name}" if f"{name}.{alias.name}" in NAMES else name for alias in node.names}
        elif isinstance(node, ast.Import):
            ours = [alias.name.partition(".") for alias in node.names if alias.name.split(".")[0] == "hf_mae_robust"]
            found |= {rest or "__init__" for _, _, rest in ours}
    return found


def room(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_one_way(path):
    here = room(module_name(path))
    if here in DOORS:
        return
    assert here in MAY_IMPORT or here in FOUNDATIONS, f"{path.name} has no place in the house"
    allowed = {here} | (set() if here == "model" else FOUNDATIONS) | MAY_IMPORT.get(here, set())
    assert {name for name in imports_of(path) if room(name) not in allowed} == set()


def test_no_module_imports_itself_in_a_circle():
    graph = {module_name(path): imports_of(path) - {module_name(path)} for path in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import one another: {' -> '.join(error.args[1])}")


def test_every_package_named_here_exists():
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert set(MAY_IMPORT) == packages - FOUNDATIONS


@pytest.mark.parametrize("name", ["run_pretrain.py", "run_finetune.py"])
def test_scripts_are_thin(name):
    script = ROOT / name
    statements = [node for node in ast.parse(script.read_text()).body if not isinstance(node, ast.Expr)]
    assert len(statements) <= 2
