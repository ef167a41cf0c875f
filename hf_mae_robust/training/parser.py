"""The command line: flags from dataclasses, `--config` files, `--config_overrides`."""

import argparse
import difflib
import json
import sys
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar, cast, get_type_hints

import yaml
from transformers import HfArgumentParser

from ..recipes import recipe_path


def _similar(word: str, words: list[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the description as it was written, one spelling of each flag, and no default where there is none."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=42)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        kind = getattr(action.type, "__name__", "").upper()
        metavar = action.metavar or (kind if kind in ("INT", "FLOAT") else "VALUE")
        return f"{action.option_strings[0]} {self._format_args(action, cast(str, metavar))}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


Arguments = TypeVar("Arguments", bound=tuple[Any, ...])


class RecipeParser(HfArgumentParser, Generic[Arguments]):
    """`HfArgumentParser` that reads `--config file.yaml` first: its keys are the names of the flags, a flag on the
    command line wins, and a key that is not a flag is an error."""

    def __init__(
        self,
        arguments_class: type[Arguments],
        default_recipe: Callable[[argparse.Namespace], str | None] | None = None,
        **options: Any,
    ):
        """
        Args:
            arguments_class: a NamedTuple of dataclasses; each field is a group of flags.
            default_recipe: gives the recipe to use without --config, from the flags on the command line.
        """
        self.arguments_class = arguments_class
        super().__init__(
            [*get_type_hints(arguments_class).values()],
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
            usage="%(prog)s [--config FILE] [--FLAG VALUE ...]",  # the default lists some 150 flags, twice
            **options,
        )
        self.default_recipe = default_recipe

    def read_recipe(self, name: str) -> list[str]:
        """A YAML file as command-line words."""
        path = recipe_path(name)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"--config {path} is not valid YAML: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"--config {path} must hold 'flag: value' lines, not a {type(content).__name__}.")
        flags = [action.dest for action in self._actions if action.dest not in ("help", "config")]
        words = []
        for key, value in content.items():
            if key not in flags:
                raise ValueError(f"--config {path}: unknown key '{key}'{_similar(str(key), flags)}.")
            if value is None:
                continue
            if key == "config_overrides" and isinstance(value, dict):
                value = ",".join(f"{name}={setting}" for name, setting in value.items())
            elif isinstance(value, dict):
                value = json.dumps(value)
            values = value if isinstance(value, list) else [value]
            words += [f"--{key}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
        return words

    def parse(self, argv: list[str] | None = None) -> Arguments:
        """The groups of flags, by name. Ends the program with a message on bad input."""
        argv = list(sys.argv[1:] if argv is None else argv)
        given, _ = self.parse_known_args([word for word in argv if word not in ("-h", "--help")] if argv else [])
        recipe = given.config or (self.default_recipe(given) if self.default_recipe is not None else None)
        try:
            words = (["--config", recipe, *self.read_recipe(recipe)] if recipe else []) + argv
            *parsed, unknown = self.parse_args_into_dataclasses(
                words, return_remaining_strings=True, look_for_args_file=False
            )
        except (OSError, ValueError) as error:
            self.fail(error)
        if unknown:
            flags = [option for action in self._actions for option in action.option_strings]
            self.error("unknown " + ", ".join(f"{word}{_similar(word, flags)}" for word in unknown))
        return self.arguments_class(**dict(zip(get_type_hints(self.arguments_class), parsed)))

    def fail(self, error: Exception, code: int = 2) -> NoReturn:
        self.exit(code, f"\n{self.prog}: error: {error}\n")  # below a progress bar that may stand there


def parse_config_overrides(text: str | None) -> dict[str, Any]:
    """`"image_size=32,patch_size=[8, 4]"` -> `{"image_size": 32, "patch_size": [8, 4]}`. Raises ValueError."""
    if not text:
        return {}
    try:
        settings = yaml.safe_load("{" + text.replace("=", ": ") + "}")
    except yaml.YAMLError as error:
        raise ValueError(f"--config_overrides {text!r}: write 'name=value,name=value' ({error}).") from error
    # YAML 1.1 takes 1e-6 for text.
    return {name: _number(value) for name, value in settings.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
