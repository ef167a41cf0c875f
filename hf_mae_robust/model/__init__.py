"""The Hub boundary: flat, self-contained files that are copied next to every checkpoint.

Nothing here may import the rest of the package: in a process that loads a checkpoint with
`trust_remote_code=True` only these files exist.
"""

from .configuration_vit_mae_robust import ViTMAERobustConfig
from .modeling_vit_mae_robust import ViTMAERobustForPreTraining, ViTMAERobustModel

__all__ = ["ViTMAERobustConfig", "ViTMAERobustForPreTraining", "ViTMAERobustModel"]
