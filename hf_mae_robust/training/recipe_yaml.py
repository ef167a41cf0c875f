"""YAML as users write it: 1e-6 is a number at any depth, a key comes once, and words stay words for flags of words."""

import re
from typing import Any

import yaml

from ..errors import UserError


class RecipeLoader(yaml.SafeLoader):
    """`SafeLoader` that takes 1e-6 for a number (YAML 1.1 wants 1.0e-6), dates for text, and a key twice for an error.

    `yaml.load(text, RecipeLoader)` raises yaml.YAMLError.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"the key '{twice}' comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(text: str, what: str) -> Any:
    """The content. Raises UserError, beginning with `what`, for text that is not YAML."""
    try:
        return yaml.load(text, RecipeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{what} is not valid YAML: {error}") from error


def read_flags(text: str, what: str) -> dict[str, tuple[Any, Any]]:
    """A YAML mapping -> key -> (value, the same as it was written, where it is a word or number; of a list, a list).

    The second is for flags that take words: `save_strategy: no` is False to YAML. Raises UserError.
    """
    content = load_yaml(text, what)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{what} must hold 'flag: value' lines, not a {type(content).__name__}.")
    root = yaml.compose(text, RecipeLoader)
    assert root is not None  # there is content
    try:
        written = {key.value: _as_written(node) for key, node in root.value if isinstance(key, yaml.ScalarNode)}
    except RecursionError as error:
        raise UserError(f"{what}: a list holds itself.") from error
    # A key such as `no` is False to YAML. Keys merged in by `<<` were not written here.
    keys = {RecipeLoader("").construct_object(key): key.value for key, _ in root.value if key.value != "<<"}
    return {
        keys.get(key, str(key)): (value, written.get(keys.get(key, str(key)), value)) for key, value in content.items()
    }


def _as_written(node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_as_written(item) for item in node.value]
    return node.value if isinstance(node, yaml.ScalarNode) else None
