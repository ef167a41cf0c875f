"""--config_overrides: settings of the model as 'name=value,name=value'."""

import json
from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .recipe_yaml import load_yaml


def parse_config_overrides(text: str | None) -> dict[str, Any]:
    """`"image_size=32,patch_size=[8, 4]"` -> `{"image_size": 32, "patch_size": [8, 4]}`. Raises UserError."""
    if not text:
        return {}
    try:
        settings = load_yaml("{" + text.replace("=", ": ") + "}", "it")
    except UserError as error:
        raise UserError(f"--config_overrides {text!r}: write 'name=value,name=value' ({error}).") from error
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise UserError(f"--config_overrides {text!r}: write 'name=value,name=value'.")
    return settings


def write_config_overrides(settings: Mapping[str, Any]) -> str:
    """The text that `parse_config_overrides` reads."""
    return ",".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()
    )


def merge_config_overrides(recipe: str, given: str, recipe_name: str) -> tuple[str, str]:
    """The recipe's settings with those of the command line, which win, key by key; and a sentence that says so."""
    of_recipe, of_line = parse_config_overrides(recipe), parse_config_overrides(given)
    merged = {**of_recipe, **of_line}
    changed = [
        f"{name}={json.dumps(value)}" + (f" (there: {json.dumps(of_recipe[name])})" if name in of_recipe else "")
        for name, value in of_line.items()
        if name not in of_recipe or of_recipe[name] != value
    ]
    kept = [name for name in of_recipe if name not in of_line]
    note = ""
    if changed and kept:
        note = (
            f"--config_overrides: {', '.join(changed)}, beside those of {recipe_name}: "
            f"{write_config_overrides({name: of_recipe[name] for name in kept})}"
        )
    return write_config_overrides(merged), note
