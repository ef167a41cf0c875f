"""The command line: flags from dataclasses, `--config` files, `--config_overrides`."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NoReturn, TypeVar, cast, get_type_hints

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from ..errors import LostProcessError, UserError
from ..files import with_home
from ..recipes import recipe_path
from .overrides import merge_config_overrides, parse_config_overrides, write_config_overrides
from .ranges import NEGATIVE_NUMBER
from .recipe_yaml import read_flags
from .suggestions import SCRIPT_OF_KEY, suggest

# Flags that name a file or folder; `~` is the home folder in them.
PATHS = (
    "config",
    "model_name_or_path",
    "encoder_from",
    "dataset_name",
    "target_statistics",
    "id2label",
    "output_dir",
    "resume_from_checkpoint",
    "stream_cache",
    "accelerator_config",
    "fsdp_config",
    "deepspeed",
)

# A flag on the command line -> that of a recipe which would win over it.
RIVALS = {"num_train_epochs": "max_steps", "warmup_epochs": "warmup_steps", "base_learning_rate": "learning_rate"}
# An interval -> the flag without which it has no effect.
STRATEGIES = {"save_steps": "save_strategy", "eval_steps": "eval_strategy"}


def _as_words(action: argparse.Action, value: Any, written: Any) -> list[str]:
    """A value of a YAML file as words of the command line."""
    flag = f"--{action.dest}"
    if isinstance(value, bool) and action.nargs == "?" and action.const is True and action.type is not string_to_bool:
        return [flag] if value else []  # `fsdp: true`, which takes words as well
    if action.dest == "config_overrides" and isinstance(value, dict):
        return [f"{flag}={write_config_overrides(value)}"]
    if isinstance(value, dict):
        return [f"{flag}={json.dumps(value)}"]
    if action.dest == "config_overrides" and isinstance(value, list):
        parts = (write_config_overrides(item) if isinstance(item, dict) else str(item) for item in value)
        return [f"{flag}={','.join(parts)}"]
    if isinstance(value, list) and action.nargs is None and len(value) != 1:
        raise UserError(f"{flag} takes one value, not a list of {len(value)}: {value}.")
    if isinstance(value, list):
        texts = written if isinstance(written, list) else [None] * len(value)
        return [flag, *(_as_word(action, item, text) for item, text in zip(value, texts))]
    return [f"{flag}={_as_word(action, value, written)}"]


def _as_word(action: argparse.Action, value: Any, written: Any) -> str:
    is_switch = action.type is string_to_bool
    if isinstance(value, bool) and not is_switch:
        # `save_strategy: no`, and `false` where that is meant.
        choices = [str(choice) for choice in action.choices or ()]
        word = written if isinstance(written, str) else str(value).lower()
        nothing = next((choice for choice in ("no", "none") if choice in choices), None)
        return nothing if not value and word not in choices and nothing else word
    if isinstance(value, int | float):
        if action.type is int and isinstance(value, float) and value.is_integer():
            return str(int(value))  # 1e3
        if action.type in (int, float) or is_switch:
            return str(value).lower()
    return written if isinstance(written, str) else str(value)


def check_not_empty(flags: Mapping[str, Any]) -> None:
    """Raises UserError for a flag with an empty text, as an unset variable of the shell leaves it."""
    for name, value in flags.items():
        if name != "config_overrides" and (value == "" or (isinstance(value, list) and "" in value)):
            raise UserError(f"--{name} is empty. Is a variable of the shell not set? Leave it out for its default.")


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
    command line wins, also over those of the file that say the same in another unit (--num_train_epochs over
    `max_steps`), and a key that is not a flag is an error. An interval such as --save_steps brings its strategy,
    "steps", along."""

    def __init__(
        self,
        arguments_class: type[Arguments],
        default_recipe: Callable[[argparse.Namespace], str | None] | None = None,
        settings_of_model: Sequence[str] = (),
        **options: Any,
    ):
        """
        Args:
            arguments_class: a NamedTuple of dataclasses; each field is a group of flags.
            default_recipe: gives the recipe to use without --config, from the flags on the command line.
            settings_of_model: flags that are also names within --config_overrides, with the same meaning.
        """
        self.arguments_class = arguments_class
        super().__init__(
            [*get_type_hints(arguments_class).values()],
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
            usage="%(prog)s [--config FILE] [--FLAG VALUE ...]",  # the default lists some 150 flags, twice
            **options,
        )
        self._negative_number_matcher = NEGATIVE_NUMBER
        self.default_recipe, self.settings_of_model = default_recipe, tuple(settings_of_model)
        self.notes: list[str] = []
        self.flags_on_line: set[str] = set()
        self._source = ""  # of the words that are parsed, for errors
        for action in self._actions:
            if action.option_strings and action.option_strings[0].startswith("--no_"):
                # `HfArgumentParser` gives it the text of its twin.
                action.help = f"The opposite of --{action.dest}, which is on by default."

    def actions_by_name(self) -> dict[str, argparse.Action]:
        """Of a switch the one that takes a value, and not its `--no_` twin, which comes after it."""
        return {action.dest: action for action in reversed(self._actions)}

    def read_recipe(self, name: str) -> dict[str, list[str]]:
        """A YAML file as command-line words, by flag."""
        path = recipe_path(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--config {path} cannot be read: {error}.") from error
        flags = {name: action for name, action in self.actions_by_name().items() if name not in ("help", "config")}
        words = {}
        settings = read_flags(text, f"--config {path}")
        for key, (value, written) in settings.items():
            if key not in flags:
                if others := [name for name in SCRIPT_OF_KEY if name in settings and name not in flags]:
                    script = SCRIPT_OF_KEY[others[0]]
                    raise UserError(f"--config {path} is a recipe of {script}: its key '{key}' is unknown here.")
                raise UserError(f"--config {path}: unknown key '{key}'{suggest(key, list(flags))}.")
            if value is not None:
                words[key] = _as_words(flags[key], value, written)
        return words

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = super().parse_known_args(args, namespace)
        for name in PATHS:
            if isinstance(value := getattr(found, name, None), str):
                setattr(found, name, with_home(value))
        return found, rest

    def given_flags(self, words: list[str]) -> set[str]:
        """Flags that stand on the command line."""
        nothing = object()
        empty = argparse.Namespace(**{action.dest: nothing for action in self._actions})
        found, _ = self.parse_known_args(words, empty)
        return {name for name, value in vars(found).items() if value is not nothing}

    def parse(self, argv: list[str] | None = None) -> Arguments:
        """The groups of flags, by name. Ends the program with a message on bad input.

        `notes` then holds sentences about what the recipe and the command line have made of one another,
        `flags_on_line` the names of the flags that do not come from a recipe or a default.
        """
        argv, self.notes = list(sys.argv[1:] if argv is None else argv), []
        on_line = [word for word in argv if word not in ("-h", "--help")]
        given, _ = self.parse_known_args(on_line)
        recipe = given.config or (self.default_recipe(given) if self.default_recipe is not None else None)
        try:
            overrides = [word for word in on_line if word.partition("=")[0] == "--config_overrides"]
            if len(overrides) > 1:
                self.notes.append(f"--config_overrides is given {len(overrides)} times; only the last one counts.")
            configs = [word for word in on_line if word.partition("=")[0] == "--config"]
            if len(configs) > 1:
                self.notes.append(f"--config is given {len(configs)} times; only the last one, {given.config}, counts.")
            flags_on_line, settings = self.given_flags(on_line), parse_config_overrides(given.config_overrides)
            self.flags_on_line = set(flags_on_line)
            for flag in flags_on_line.intersection(settings, self.settings_of_model):
                if (said := settings.pop(flag)) != (value := getattr(given, flag)):
                    self.notes.append(f"--{flag} {value} wins over --config_overrides {flag}={said}.")
                given.config_overrides = write_config_overrides(settings)
            words = [*self.recipe_words(recipe, given, flags_on_line), *argv] if recipe else argv
            by_interval = [
                flag for name, flag in STRATEGIES.items() if name in flags_on_line and flag not in flags_on_line
            ]
            words = [*words, *(f"--{flag}=steps" for flag in by_interval)]
            words = [*words, *self.saving_at_evaluations(words, flags_on_line)]
            if given.config_overrides is not None:
                words = [*words, f"--config_overrides={given.config_overrides}"]
            flags, unknown = self.parse_known_args(words)
            if not unknown:
                check_not_empty(vars(flags))
            *parsed, unknown = self.parse_args_into_dataclasses(
                words, return_remaining_strings=True, look_for_args_file=False
            )
        except (UserError, LostProcessError) as error:
            self.fail(error, error.exit_code)
        if unknown:
            self.error(self.describe_unknown(unknown))
        return self.arguments_class(**dict(zip(get_type_hints(self.arguments_class), parsed)))

    def saving_at_evaluations(self, words: list[str], on_line: set[str]) -> list[str]:
        """Words that write a checkpoint at each evaluation, where the best one is to be loaded and the command line
        does not say when to save: the Trainer refuses other intervals, which the user has not chosen."""
        flags, _ = self.parse_known_args(words)
        if not flags.load_best_model_at_end or on_line & {"save_strategy", "save_steps"}:
            return []
        evaluation, saving = (getattr(value, "value", value) for value in (flags.eval_strategy, flags.save_strategy))
        if evaluation == "no" or saving == "best":
            return []
        steps = flags.eval_steps or flags.logging_steps
        if saving == evaluation and (saving != "steps" or flags.save_steps == steps):
            return []
        wanted = [f"--save_strategy={evaluation}"] + ([f"--save_steps={steps:g}"] if evaluation == "steps" else [])
        said = " ".join(wanted).replace("=", " ")
        self.notes.append(f"--load_best_model_at_end saves at each evaluation: {said}.")
        return wanted

    def recipe_words(self, name: str, given: argparse.Namespace, on_line: set[str]) -> list[str]:
        """The recipe's words. --config_overrides of the command line adds to the recipe's (`given.config_overrides`
        then holds both). Where a flag and --config_overrides say the same setting, the command line's wins."""
        recipe, flags = self.read_recipe(name), self.actions_by_name()
        for flag, rival in RIVALS.items():
            if flag in on_line and rival in recipe and rival not in on_line:
                said = " ".join(recipe.pop(rival)).replace("=", " ")
                self.notes.append(f"--{flag} {getattr(given, flag):g} wins over the recipe's {said}.")
        for interval, strategy in STRATEGIES.items():
            if interval in recipe and strategy not in recipe:
                recipe[strategy] = [f"--{strategy}=steps"]
        if "config_overrides" in recipe:
            settings = parse_config_overrides(recipe["config_overrides"][0].partition("=")[2])
            for flag in on_line.intersection(settings, self.settings_of_model):
                if settings.pop(flag) != getattr(given, flag):
                    self.notes.append(f"--{flag} {getattr(given, flag)} wins over the recipe's --config_overrides.")
            recipe["config_overrides"] = [f"--config_overrides={write_config_overrides(settings)}"]
        if given.config_overrides is not None:
            settings = parse_config_overrides(given.config_overrides)
            for flag in self.settings_of_model:
                if flag in settings and flag in recipe and flag not in on_line:
                    words = _as_words(flags[flag], settings[flag], None)
                    if words != recipe[flag]:
                        said = " ".join(recipe[flag]).replace("=", " ")
                        self.notes.append(f"--config_overrides {flag}={settings[flag]} wins over the recipe's {said}.")
                    recipe[flag] = words
            if "config_overrides" in recipe:
                of_recipe = recipe["config_overrides"][0].partition("=")[2]
                given.config_overrides, note = merge_config_overrides(of_recipe, given.config_overrides, name)
                self.notes += [note] if note else []
        words = [word for of_flag in recipe.values() for word in of_flag]
        self._source = f"--config {name}: "
        try:
            self.parse_known_args(words)  # ends the program where a value cannot be used
        finally:
            self._source = ""
        return ["--config", name, *words]

    def error(self, message: str) -> NoReturn:
        super().error(f"{self._source}{message}")

    def describe_unknown(self, words: list[str]) -> str:
        flags = [option for action in self._actions for option in action.option_strings]
        named = [word.partition("=")[0] for word in words if word.startswith("-")] or words
        return "unknown " + ", ".join(f"{word}{suggest(word, flags)}" for word in named)

    def fail(self, error: Exception | str, code: int = 2) -> NoReturn:
        self.exit(code, f"\n{self.prog}: error: {error}\n")  # below a progress bar that may stand there
