"""Models from the Hub, at one commit."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from .network import retrying
from .refusals import MODEL, refusal

# All that loading a model reads; repositories often hold the weights in other forms too.
_CONFIGURATION = ["*.json", "*.py"]
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
_OLD_WEIGHTS = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def _is_hub_id(name: str) -> bool:
    return not Path(name).exists() and not name.startswith((".", "/", "~")) and name.count("/") <= 1


def local_model(name: str, revision: str | None, token: str | None) -> tuple[str, str | None]:
    """A model of the Hub -> the folder it was downloaded to, whole, and its commit. All of it is of this commit, also
    when the branch moves meanwhile. Anything else, and whatever offline mode does not find in the cache, is returned as
    it is, with None.

    Args:
        name: folder, file, or Hub id. revision: branch, tag or commit; None: main. token: None: the one logged in with.

    Raises ValueError where the Hub has no such model or revision, refuses it, or cannot be reached.
    """
    if not _is_hub_id(name):
        if revision is not None:
            raise ValueError(f"--model_revision {revision}: {name} is no model on the Hub.")
        return name, None
    try:
        folder = _download(name, revision, token, [*_CONFIGURATION, *_WEIGHTS])
        if not any(Path(folder).glob("*.safetensors")):
            folder = _download(name, revision, token, [*_CONFIGURATION, *_OLD_WEIGHTS])
    except HFValidationError:
        return name, None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise ValueError(f"{name} cannot be loaded: {refusal(error.__cause__, name, MODEL)}.") from error
        return name, None
    except (HTTPError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        raise ValueError(f"{name}{at} cannot be loaded: {refusal(error, name, MODEL)}.") from error
    return folder, Path(folder).name


# What is complete already is not downloaded again, and the rest goes on where it was.
@retrying(attempts=6, expects_json=True).wraps
def _download(name: str, revision: str | None, token: str | None, patterns: Sequence[str]) -> str:
    return snapshot_download(name, revision=revision, token=token, allow_patterns=list(patterns))
