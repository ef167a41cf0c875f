"""Robustly and effectively optimized pre-training of masked autoencoders, the Hugging Face way.

Importing the package makes `AutoConfig`, `AutoModel` and `AutoModelForPreTraining` know `vit_mae_robust`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from .model import ViTMAERobustConfig, ViTMAERobustForPreTraining, ViTMAERobustModel
from .version import __version__

AutoConfig.register(ViTMAERobustConfig.model_type, ViTMAERobustConfig, exist_ok=True)
AutoModel.register(ViTMAERobustConfig, ViTMAERobustModel, exist_ok=True)
AutoModelForPreTraining.register(ViTMAERobustConfig, ViTMAERobustForPreTraining, exist_ok=True)

__all__ = ["ViTMAERobustConfig", "ViTMAERobustForPreTraining", "ViTMAERobustModel", "__version__"]
