"""A field of a dataclass of arguments."""

from dataclasses import field
from typing import Any


def option(default: Any, help: str, **metadata: Any) -> Any:
    """With its default, and what --help says of it."""
    return field(default=default, metadata={"help": help, **metadata})
