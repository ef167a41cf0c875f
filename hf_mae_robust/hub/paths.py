"""Names of models and data sets that are meant as paths: a misspelt folder is not asked for on the Hub."""

from difflib import get_close_matches
from pathlib import Path

from ..errors import MissingFileError

# Of weights, tables, lists and archives that people name where a model or a data set is wanted.
_ENDINGS = frozenset(
    (".bin", ".ckpt", ".pt", ".pth", ".safetensors", ".arrow", ".csv", ".json", ".jsonl", ".lst", ".parquet", ".tsv")
    + (".txt", ".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst", ".jpg", ".jpeg", ".png", ".tiff")
)


def is_path(name: str) -> bool:
    """Whether a name is not an id of the Hub, which is NAME or OWNER/NAME: also where it ends as files do."""
    if "://" in name:
        return False
    ends_as_files_do = Path(name).suffix.lower() in _ENDINGS
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or ends_as_files_do


def has_braces(name: str) -> bool:
    """Whether a name stands for several local files: train-{000..010}.tar."""
    return "{" in name and "://" not in name and not Path(name).exists()


def is_there(name: str) -> bool:
    """Whether it names something on this disk."""
    return Path(name).exists() or has_braces(name)


def may_be_path(name: str) -> bool:
    """Whether a name could be an id of the Hub, but its first part is a folder here: outputs/degits."""
    return not is_path(name) and "/" in name and Path(name).parent.is_dir() and not Path(name).exists()


def missing(name: str) -> str:
    """The sentence about a path that is not there, with how far it is there."""
    parents = list(Path(name).parents)
    nearest = next((path for path in parents if path.is_dir()), None)
    here = "" if nearest in (None, Path(), Path("/")) or nearest == Path(name).parent else f" ({nearest} exists)"
    names = sorted(path.name for path in Path(name).parent.iterdir()) if Path(name).parent.is_dir() else []
    close = get_close_matches(Path(name).name, names, n=1)
    hint = f" Did you mean {Path(name).parent / close[0]}?" if close else ""
    return f"{name}: no such file or folder{here}.{hint}"


def check_path(name: str, flag: str = "") -> None:
    """Raises MissingFileError for a path that is not there. Ids of the Hub are left alone."""
    if is_path(name) and not Path(name).exists():
        raise MissingFileError(f"{flag} {missing(name)}".strip())
