"""Files of statistics (.safetensors): written completely or not at all, and a sentence for what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import UserError
from ..files import write_completely
from ..hub.faults import describe
from ..hub.run_record import portable


def write_statistics(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and metadata (strings as they are, all else as JSON); folders that are missing are made. The same
    content makes the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not `save_file`, whose files only their owner can read.
    content = save(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        metadata={
            key: value if isinstance(value, str) else json.dumps(value) for key, value in portable(metadata).items()
        },
    )
    write_completely(path, lambda unfinished: unfinished.write_bytes(_sorted(content)))


def _sorted(content: bytes) -> bytes:
    """A .safetensors file whose metadata stand in order: safetensors writes them in another one each time."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    return len(text).to_bytes(8, "little") + text + content[start:]


def read_statistics(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that `write_statistics` wrote. Raises UserError where it is something else, cut
    off, or cannot be read."""
    try:
        with path.open("rb"):  # safetensors says of a file that may not be read that there is none
            pass
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({describe(error)}).") from error
    except SafetensorError as error:
        raise UserError(f"{path} is not a .safetensors file, or not a complete one: {error}") from error
    return tensors, {key: _parse(value) for key, value in metadata.items()}


def _parse(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
