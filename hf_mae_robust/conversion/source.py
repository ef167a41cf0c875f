"""Where a model comes from: its name, the access to it, and the settings that go with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError


@dataclass(frozen=True)
class Access:
    """What the Hub and a model repository ask for.

    Attributes:
        token: of the Hub; None: the one logged in with.
        trust_remote_code: run code that a model repository brings along.
    """

    token: str | None = None
    trust_remote_code: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """For `from_pretrained`."""
        return {"token": self.token, "trust_remote_code": self.trust_remote_code}


@dataclass(frozen=True)
class ModelSource:
    """A model to start from.

    Attributes:
        name: folder, Hub id or official file; None: no checkpoint, the overrides alone say what the model is.
        overrides: fields of [`ViTMAERobustConfig`] for a model from scratch; of an official file
            `num_attention_heads`, which its tensors do not tell.
        num_channels: of the images, where an encoder is read; None: as many as the checkpoint takes.
        inflate_channels: how the patch projection of a checkpoint for another number of channels is made to fit, one
            of INFLATIONS (inflation.py); None: it is refused.
        checkpoint_key: which model of an official file that holds several, see `read_original`.
        flag: by which the user named it, for errors.
        heads_flag: by which the user gives the number of heads of an official file, up to the number.
    """

    name: str | None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    access: Access = Access()
    num_channels: int | None = None
    inflate_channels: str | None = None
    checkpoint_key: str | None = None
    flag: str = "--model_name_or_path"
    heads_flag: str = "--config_overrides num_attention_heads="

    @property
    def checkpoint(self) -> str:
        """`name`, where there is one. Raises ValueError where there is none."""
        if self.name is None:
            raise UserError("No checkpoint is named: give a folder, a Hub id or an official file.")
        return self.name

    @classmethod
    def of(cls, arguments: Any, overrides: Mapping[str, Any]) -> "ModelSource":
        """By the `model_name_or_path`, `token` and `trust_remote_code` of a command's arguments, and its
        `inflate_channels`, `encoder_from` and `checkpoint_key`, where it has those."""
        access = Access(arguments.token, arguments.trust_remote_code)
        inflate_channels = getattr(arguments, "inflate_channels", None)
        flag = "--encoder_from" if getattr(arguments, "encoder_from", None) else cls.flag
        return cls(
            arguments.model_name_or_path,
            overrides,
            access,
            inflate_channels=inflate_channels,
            checkpoint_key=getattr(arguments, "checkpoint_key", None),
            flag=flag,
        )
