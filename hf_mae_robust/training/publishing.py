"""What a training sends to the Hub: checkpoints while it runs, the finished model, and a card with both."""

from pathlib import Path
from typing import Any, cast

from torch import nn

from ..hub.model_card import save_card
from ..hub.uploads import Pushes, open_repository
from .checkpointing import Checkpointing
from .checkpoints import checkpoint_of_step
from .processes import first_process


class Publishing(Checkpointing):
    """The part of `ImageTrainer` that talks to the Hub, with --push_to_hub, and that writes model cards."""

    def __init__(self, **kwargs: Any):
        self.pushes: Pushes | None = None  # of the first process, with --push_to_hub
        super().__init__(**kwargs)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository, or see whether there is one to write to: before the training, not after it. Only the
        first process talks to the Hub; ValueError is raised in all of them."""
        args, token = self.args, token or self.args.hub_token
        private = args.hub_private_repo if private is None else private
        name = args.hub_model_id or Path(args.output_dir).absolute().name
        self.hub_model_id = first_process(lambda: open_repository(name, token, args.hub_revision, private))
        if self.is_world_process_zero():
            self.pushes = Pushes(self.hub_model_id, token, args.hub_revision)

    @property
    def may_show_images(self) -> bool:
        """Whether pictures of images may lie in the output folder. With --push_to_hub they are published, and only of
        the images that are evaluated on does the manual say so."""
        return self.eval_dataset is not None or not self.args.push_to_hub

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        super()._save_checkpoint(model, trial)
        if self.pushes is not None:
            args, step = self.args, self.state.global_step
            checkpoint = checkpoint_of_step(args.output_dir, step)
            self.pushes.push_checkpoint(checkpoint, step, args.hub_strategy, args.hub_always_push)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Not from the staging folder: `_save_checkpoint` does it when the checkpoint is complete."""

    def checkpoints_to_keep(self) -> tuple[str | Path | None, ...]:
        return (*super().checkpoints_to_keep(), self.pushes.busy_with if self.pushes is not None else None)

    # The address is what a run prints, and all that the other parameters could ask for is fixed.
    def push_to_hub(  # type: ignore[override]
        self, commit_message: str = "End of training", token: str | None = None, revision: str | None = None, **_: Any
    ) -> str | None:
        """Save the model to the output folder and upload what a run leaves there, in one commit. To be called by all
        processes; the first one gets the commit's address. Raises HubError where the upload fails."""
        if self.hub_model_id is None:
            self.init_hf_repo(token)
        self.save_model()
        if not self.is_world_process_zero():
            return None
        self.create_model_card()
        pushes = cast(Pushes, self.pushes)  # by `init_hf_repo`
        pushes.revision = revision or pushes.revision
        return pushes.push_output(Path(self.args.output_dir), commit_message)

    def describe(self, folder: Path, final: Path) -> None:
        super().describe(folder, final)
        if self.about:
            save_card(folder, self.hub_model_id, final)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The Trainer's own card knows neither the data nor how to use the model."""
        if self.is_world_process_zero() and self.about:
            save_card(self.args.output_dir, self.hub_model_id)
