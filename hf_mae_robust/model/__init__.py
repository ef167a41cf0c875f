"""The Hub boundary: flat, self-contained files that are copied next to every checkpoint.

Nothing here may import the rest of the package: in a process that loads a checkpoint with
`trust_remote_code=True` only these files exist.
"""

from .configuration_vit_mae_robust import ViTMAERobustConfig
from .configuration_vit_mae_robust_detection import ViTMAERobustInstanceSegmentationConfig
from .image_processing_vit_mae_robust import ViTMAERobustImageProcessor
from .image_processing_vit_mae_robust_detection import ViTMAERobustDetectionImageProcessor
from .modeling_vit_mae_robust import ViTMAERobustBackbone, ViTMAERobustForPreTraining, ViTMAERobustModel
from .modeling_vit_mae_robust_detection import ViTMAERobustForInstanceSegmentation

__all__ = [
    "ViTMAERobustBackbone",
    "ViTMAERobustConfig",
    "ViTMAERobustDetectionImageProcessor",
    "ViTMAERobustForInstanceSegmentation",
    "ViTMAERobustForPreTraining",
    "ViTMAERobustImageProcessor",
    "ViTMAERobustInstanceSegmentationConfig",
    "ViTMAERobustModel",
]
