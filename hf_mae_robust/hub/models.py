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

from ..errors import MissingFileError, UserError
from .network import NO_ADDRESS, hub_has_no_address, retrying
from .paths import check_path, is_path, may_be_path, missing
from .refusals import MODEL, refusal

# All that loading a model reads; repositories often hold the weights in other forms too.
_CONFIGURATION = ["*.json", "*.py"]
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
# Models are read from the top folder. Below it lie the weights of other precisions, and what runs leave behind:
# checkpoints, and the parts of LoRA. Small files stay, such as those of an image processor in a folder of its own.
_UNREAD = ["*/*.safetensors", "*/*.bin", "checkpoint-*/*", "last-checkpoint/*", "adapter/*", "base/*"]
_OLD_WEIGHTS = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def _is_hub_id(name: str) -> bool:
    return not Path(name).exists() and not is_path(name)


def local_model(name: str, revision: str | None, token: str | None) -> tuple[str, str | None]:
    """A model of the Hub -> the folder that what loading reads was downloaded to, and its commit. All of it is of this
    commit, also when the branch moves meanwhile. Anything else, and what offline mode does not find in the cache, is
    returned as it is, with None.

    Args:
        name: folder, file, or Hub id. revision: branch, tag or commit; None: main. token: None: the one logged in with.

    Raises UserError where there is no such file or folder, where the Hub has no such model or revision, refuses it, or
    cannot be reached.
    """
    check_path(name)
    if not _is_hub_id(name):
        if revision is not None:
            raise UserError(f"{name} is not a model on the Hub, so it has no revision {revision}.")
        return name, None
    if hub_has_no_address():
        return _from_cache(name, revision)
    try:
        # Where the Hub cannot be reached, a misspelt folder must not take minutes.
        download = _download_once if may_be_path(name) else _download
        folder = download(name, revision, token, [*_CONFIGURATION, *_WEIGHTS])
        if not any(Path(folder).glob("*.safetensors")):
            folder = download(name, revision, token, [*_CONFIGURATION, *_OLD_WEIGHTS])
    except HFValidationError:
        return name, None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if isinstance(error.__cause__, HfHubHTTPError):
            raise UserError(f"{name} cannot be loaded: {refusal(error.__cause__, name, MODEL)}.") from error
        if may_be_path(name):
            raise MissingFileError(
                f"{missing(name)} The Hub cannot be asked, and its cache has no such model."
            ) from error
        return name, None
    except (HTTPError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        absent = f"{missing(name)} On the Hub: " if may_be_path(name) else ""
        raise UserError(f"{absent}{name}{at} cannot be loaded: {refusal(error, name, MODEL)}.") from error
    return folder, Path(folder).name


def _from_cache(name: str, revision: str | None) -> tuple[str, str | None]:
    """As `local_model`, of what was downloaded before. Raises MissingFileError, at once, where there is none."""
    try:
        folder = snapshot_download(name, revision=revision, local_files_only=True)
        return folder, Path(folder).name
    except HFValidationError:
        return name, None
    except LocalEntryNotFoundError as error:
        raise MissingFileError(
            f"{missing(name)} The Hub cannot be asked for a model of this name: {NO_ADDRESS}, and its cache has none."
        ) from error


def _download_once(name: str, revision: str | None, token: str | None, patterns: Sequence[str]) -> str:
    return snapshot_download(
        name, revision=revision, token=token, allow_patterns=list(patterns), ignore_patterns=_UNREAD
    )


# What is complete already is not downloaded again, and the rest continues where it was.
_download = retrying(attempts=6, expects_json=True).wraps(_download_once)
