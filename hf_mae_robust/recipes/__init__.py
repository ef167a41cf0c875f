"""Recipes, one a row of the paper's tables and a few for a laptop: YAML files of flags, with cost and result on top."""

from pathlib import Path

from ..errors import MissingFileError


def recipe_path(name: str) -> Path:
    """A file, or one of the recipes that the package brings along (`--config digits`). Raises FileNotFoundError."""
    shipped = Path(__file__).parent
    for candidate in (Path(name), shipped / name, shipped / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml")))
    raise MissingFileError(f"--config {name}: no such file, and no recipe of that name. Recipes: {names}.")
