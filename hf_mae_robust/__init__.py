"""Robustly and effectively optimized pre-training of masked autoencoders, the Hugging Face way.

Importing the package makes `AutoConfig`, `AutoModel`, `AutoModelForPreTraining`, `AutoBackbone` and
`AutoImageProcessor` know `vit_mae_robust`, and `AutoConfig`, `AutoModelForObjectDetection`,
`AutoModelForInstanceSegmentation` and `AutoImageProcessor` the detector, `vit_mae_robust_detection`.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
)

from .model import (
    ViTMAERobustBackbone,
    ViTMAERobustConfig,
    ViTMAERobustDetectionImageProcessor,
    ViTMAERobustForInstanceSegmentation,
    ViTMAERobustForPreTraining,
    ViTMAERobustImageProcessor,
    ViTMAERobustInstanceSegmentationConfig,
    ViTMAERobustModel,
)
from .version import __version__

AutoConfig.register(ViTMAERobustConfig.model_type, ViTMAERobustConfig, exist_ok=True)
AutoModel.register(ViTMAERobustConfig, ViTMAERobustModel, exist_ok=True)
AutoModelForPreTraining.register(ViTMAERobustConfig, ViTMAERobustForPreTraining, exist_ok=True)
AutoBackbone.register(ViTMAERobustConfig, ViTMAERobustBackbone, exist_ok=True)
# Also makes its name known, so that it is found beside models of other classes.
AutoImageProcessor.register(
    ViTMAERobustConfig, image_processor_classes={"torchvision": ViTMAERobustImageProcessor}, exist_ok=True
)

_detector = (ViTMAERobustInstanceSegmentationConfig, ViTMAERobustForInstanceSegmentation)
AutoConfig.register(ViTMAERobustInstanceSegmentationConfig.model_type, _detector[0], exist_ok=True)
AutoModelForObjectDetection.register(*_detector, exist_ok=True)
AutoModelForInstanceSegmentation.register(*_detector, exist_ok=True)
AutoImageProcessor.register(
    ViTMAERobustInstanceSegmentationConfig,
    image_processor_classes={"torchvision": ViTMAERobustDetectionImageProcessor},
    exist_ok=True,
)

__all__ = [
    "ViTMAERobustBackbone",
    "ViTMAERobustConfig",
    "ViTMAERobustDetectionImageProcessor",
    "ViTMAERobustForInstanceSegmentation",
    "ViTMAERobustForPreTraining",
    "ViTMAERobustImageProcessor",
    "ViTMAERobustInstanceSegmentationConfig",
    "ViTMAERobustModel",
    "__version__",
]
