"""Uploading what a run writes: checkpoints while it trains, in the background, and the finished folder."""

import logging
from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from transformers.trainer_utils import HubStrategy

from .hub import HubError, reason_of
from .model_card import EXAMPLES, PICTURES
from .resume import RECORD
from .saving import MANIFEST

logger = logging.getLogger(__name__)

UPLOAD_ERRORS = (HTTPError, OSError, ValueError, RuntimeError)
# Of a checkpoint, what only a run that goes on needs.
_STATE = ["optimizer*", "scheduler*", "scaler*", "rng_state*", MANIFEST, "*/*"]
# Of an output folder, what the README says a run leaves behind; other files that lie there are nobody's business.
_OUTPUT = [
    "README.md",
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "target_statistics.safetensors",
    "configuration_vit_mae_robust*.py",
    "modeling_vit_mae_robust*.py",
    "image_processing_vit_mae_robust*.py",
    RECORD,
    "training_args.json",
    "trainer_state.json",
    "*_results.json",
    "classes.json",
    "confusion_matrix.json",
    *PICTURES,
    *EXAMPLES,
    "runs/*",
    "adapter/*",
    "base/*",
]


class Pushes:
    """Uploads to one repository. A failed one in the background is a warning, and the training goes on.

    Attributes:
        busy_with: the checkpoint that is being uploaded, which must not be deleted; None: none.
    """

    def __init__(self, repo_id: str, token: str | None, revision: str | None):
        self.api, self.repo_id, self.revision = HfApi(token=token), repo_id, revision
        self.busy_with: Path | None = None
        self._running: list[Future] = []

    def _report(self) -> None:
        for future in self._running:
            if error := future.exception():
                logger.warning(
                    "%s was not pushed: %s. The training goes on, and pushes again with the next checkpoint.",
                    self.busy_with,
                    reason_of(error, self.repo_id),
                )
        self._running, self.busy_with = [], None

    def push_checkpoint(self, checkpoint: Path, step: int, strategy: str, always: bool) -> None:
        """Begin to upload a complete checkpoint folder, as --hub_strategy says: "every_save": as the model;
        "checkpoint": also whole, as last-checkpoint/; "all_checkpoints": under its own name; "end": not at all.
        While one is still being uploaded the next ones are passed over, unless `always`, which waits."""
        strategy = HubStrategy(strategy)
        if strategy is HubStrategy.END:
            return
        if any(not future.done() for future in self._running) and not always:
            return
        self.wait()
        common = {"repo_id": self.repo_id, "folder_path": checkpoint, "revision": self.revision, "run_as_future": True}
        message = f"Training in progress, step {step:,}"
        self.busy_with = checkpoint
        self._running.append(self.api.upload_folder(**common, commit_message=message, ignore_patterns=_STATE))
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            name = "last-checkpoint" if strategy is HubStrategy.CHECKPOINT else checkpoint.name
            self._running.append(
                self.api.upload_folder(**common, commit_message=f"{message}, to go on from", path_in_repo=name)
            )

    def wait(self) -> None:
        for future in self._running:
            future.exception()
        self._report()

    def push_output(self, folder: Path, message: str) -> str:
        """Upload a finished folder, in one commit. Returns its address. Raises HubError; the folder is as it was."""
        self.wait()
        try:
            done = self.api.upload_folder(
                repo_id=self.repo_id,
                folder_path=folder,
                revision=self.revision,
                commit_message=message,
                allow_patterns=_OUTPUT,
            )
        except UPLOAD_ERRORS as error:
            raise HubError(
                f"The model is complete in {folder}, but was not pushed: {reason_of(error, self.repo_id)}. "
                f"`hf upload {self.repo_id} {folder} --exclude 'checkpoint-*/*'` pushes it later."
            ) from error
        return done.commit_url
