"""Uploading what a run writes: checkpoints while it trains, in the background, and the finished folder."""

import glob
import logging
import re
import shlex
from concurrent.futures import Future
from json import JSONDecodeError
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HTTPError, RevisionNotFoundError
from transformers.trainer_utils import HubStrategy

from ..errors import HubError, UserError
from ..files import MANIFEST
from .model_card import EXAMPLES, PICTURES
from .network import retrying
from .refusals import MODEL, refusal
from .run_record import RECORD

logger = logging.getLogger(__name__)

UPLOAD_ERRORS = (HTTPError, OSError, ValueError, RuntimeError)
# Of a checkpoint, what only a resumed run needs.
_STATE = ["optimizer*", "scheduler*", "scaler*", "rng_state*", "ema.safetensors", "linear_probe.safetensors"]
_STATE += [MANIFEST, "*/*"]
# A checkpoint of LoRA. transformers and peft take a model with these beside it for an adapter.
_ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]
# TensorBoard's, in an output folder.
LOGS = "runs/*/*tfevents*"
# Of an output folder, what the README says a run leaves behind; other files that lie there are nobody's business.
_OUTPUT = [
    "README.md",
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "target_statistics.safetensors",
    "linear_head.safetensors",
    "*_vit_mae_robust*.py",
    RECORD,
    "training_args.json",
    "trainer_state.json",
    "*_results.json",
    "classes.json",
    "confusion_matrix.json",
    *PICTURES,
    *EXAMPLES,
    LOGS,
    "adapter/*",
    "base/*",
]
# TensorBoard writes the name of the host into the names of its files, and transformers into that of their folder.
_HOSTS = [
    (re.compile(r"(?<=^runs/)([^/_]+_\d\d-\d\d-\d\d)_[^/]*"), r"\1"),
    (re.compile(r"(?<=/events\.out\.tfevents\.)(\d+)\..*\.(\d+\.\d+)$"), r"\1.\2"),
]


def files_left_behind(folder: Path) -> list[str]:
    """Paths in a finished output folder that go to the Hub. Patterns given to huggingface_hub would find files of the
    same names in sub-folders too, where other runs may lie."""
    found = {path for pattern in _OUTPUT for path in folder.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _name_on_hub(path: str) -> str:
    """Of a file that a run leaves behind: its path, without the name of the host."""
    for pattern, kept in _HOSTS:
        path = pattern.sub(kept, path)
    return path


def _is_output(path: str) -> bool:
    """Whether a path in a repository is one of those that runs leave behind. A pattern stands for one folder: `match`
    alone would find files of the same names in sub-folders."""
    there = PurePosixPath(path)
    return any(path.count("/") == pattern.count("/") and there.match(pattern) for pattern in _OUTPUT)


def _command(repo_id: str, folder: Path, revision: str | None) -> str:
    """What pushes a finished folder by hand: all but TensorBoard's logs, which it cannot give other names. It deletes
    what a former model has left in the repository, as far as its patterns find no files of others."""
    names = [name for name in files_left_behind(folder) if not PurePosixPath(name).match(LOGS)]
    folders = {name.rpartition("/")[0] for name in names}
    deleted = [*_ADAPTER, *(name for name in _OUTPUT if "*" not in name and name not in names)]
    deleted += [f"{parts}/*" for parts in ("adapter", "base") if parts not in folders]
    branch = f" --revision {revision}" if revision else ""
    included = "".join(f" --include {shlex.quote(glob.escape(name))}" for name in names)
    return f"hf upload {repo_id} {shlex.quote(str(folder))}{branch}{included}" + "".join(
        f" --delete {shlex.quote(name)}" for name in deleted
    )


def check_license(name: str) -> None:
    """Whether the Hub knows a licence: it would refuse the card, and with it the model, at the end of the training.
    huggingface_hub has no list of them. Raises UserError."""
    card = ModelCard(f"---\n{ModelCardData(license=name).to_yaml()}\n---\n")
    try:
        retrying(attempts=4).wraps(card.validate)()
    except (HTTPError, OSError) as error:
        raise UserError(f"--model_license {name}: {refusal(error, 'the check of licences', MODEL)}.") from error
    except ValueError as error:
        raise UserError(
            f"--model_license {name}: the Hub knows no such licence. Give one of its identifiers, such as apache-2.0, "
            "mit, cc-by-4.0 or other (https://huggingface.co/docs/hub/repositories-licenses), or leave the flag out."
        ) from error


def open_repository(name: str, token: str | None, revision: str | None, private: bool | None) -> str:
    """Create a repository and its branch, or see that they are there and may be written to. Returns its full id.

    Args:
        name: "user/model", or without the user: of the token's. revision: branch; None: main. private: of a new
            repository; None: as its owner has set it.

    Raises ValueError where that cannot be, or would show to everybody what is meant to be private.
    """
    try:
        return _open_repository(name, token, revision, private)
    except (HTTPError, OSError, JSONDecodeError) as error:
        raise UserError(f"--push_to_hub: {refusal(error, name, MODEL)}.") from error


@retrying(attempts=4, expects_json=True).wraps
def _open_repository(name: str, token: str | None, revision: str | None, private: bool | None) -> str:
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        raise UserError(f"--hub_revision {revision} is a commit; nothing can be pushed to one. Give a branch.")
    api = HfApi(token=token)
    repo_id = api.create_repo(name, private=private, exist_ok=True).repo_id
    api.auth_check(repo_id, write=True)
    # `private` changes nothing about an existing repository.
    if private and not api.model_info(repo_id).private:
        raise UserError(
            f"--hub_private_repo: {repo_id} is on the Hub already, and public. Make it private in its settings, or "
            "give another --hub_model_id."
        )
    if revision is not None:
        try:
            api.model_info(repo_id, revision=revision)
        except RevisionNotFoundError:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


class Pushes:
    """Uploads to one repository. A failed one in the background is a warning, and the training continues."""

    def __init__(self, repo_id: str, token: str | None, revision: str | None):
        self.api, self.repo_id, self.revision = HfApi(token=token), repo_id, revision
        self._checkpoint: Path | None = None
        self._running: list[Future[Any]] = []

    @property
    def busy_with(self) -> Path | None:
        """The checkpoint that is being uploaded, which must not be deleted."""
        return self._checkpoint if any(not future.done() for future in self._running) else None

    def push_checkpoint(self, checkpoint: Path, step: int, strategy: str, always: bool) -> None:
        """Begin to upload a complete checkpoint folder, as --hub_strategy says: "every_save": as the model, unless it
        holds an adapter alone; "checkpoint": also complete, as last-checkpoint/; "all_checkpoints": under its own name;
        "end": not at all. While one is still being uploaded the next ones are skipped, unless `always`, which waits."""
        strategy = HubStrategy(strategy)
        if strategy is HubStrategy.END:
            return
        if self.busy_with is not None and not always:
            return
        self.wait()
        common: dict[str, Any] = {
            "repo_id": self.repo_id,
            "folder_path": checkpoint,
            "revision": self.revision,
            "run_as_future": True,
        }
        message = f"Training in progress, step {step:,}"
        self._checkpoint = checkpoint
        if not (checkpoint / _ADAPTER[0]).exists():
            self._running.append(self.api.upload_folder(**common, commit_message=message, ignore_patterns=[*_STATE]))
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy is HubStrategy.CHECKPOINT else checkpoint.name
            self._running.append(
                self.api.upload_folder(**common, commit_message=f"{message}, to resume from", path_in_repo=name)
            )

    def wait(self) -> None:
        """Until nothing is being uploaded; says what failed."""
        for future in self._running:
            if error := future.exception():
                logger.warning(
                    "%s was not pushed: %s. Later checkpoints, and the finished model, are pushed all the same.",
                    self._checkpoint,
                    refusal(error, self.repo_id, MODEL),
                )
        self._running = []

    def push_output(self, folder: Path, message: str) -> str:
        """Upload what a run leaves behind in a finished folder, in one commit, which deletes what another run has left
        there; files that no run writes stay. Returns the commit's address. Raises HubError; the folder is as it was."""
        self.wait()
        try:
            return self._upload(folder, message)
        except UPLOAD_ERRORS as error:
            reason = refusal(error, self.repo_id, MODEL)
            has_logs = any(PurePosixPath(name).match(LOGS) for name in files_left_behind(folder))
            later = "This pushes it later" + ", without TensorBoard's logs" * has_logs
            raise HubError(
                f"The model is complete in {folder}, but was not pushed: {reason}. {later}:\n"
                f"`{_command(self.repo_id, folder, self.revision)}`"
            ) from error

    # Files that have arrived are not sent again, and a commit whose answer was lost is not made twice.
    @retrying(attempts=4, expects_json=True).wraps
    def _upload(self, folder: Path, message: str) -> str:
        names = {_name_on_hub(name): name for name in files_left_behind(folder)}
        there = self.api.list_repo_files(self.repo_id, revision=self.revision)
        former = [name for name in there if (name in _ADAPTER or _is_output(name)) and name not in names]
        done = self.api.create_commit(
            self.repo_id,
            [
                *(CommitOperationDelete(name, is_folder=False) for name in former),
                *(CommitOperationAdd(name, folder / path) for name, path in names.items()),
            ],
            commit_message=message,
            revision=self.revision,
        )
        return done.commit_url
