"""transformers' own tests of models, backbones and configurations, on our classes with the ingredients off and on.

They are in its source distribution only, whose folder `tests` the environment variable TRANSFORMERS_TESTS names:

    pip download --no-binary :all: --no-deps transformers==VERSION && tar -xzf transformers-VERSION.tar.gz
"""

import importlib
import importlib.util
import os
import re
import sys
import unittest
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hf_mae_robust import ViTMAERobustBackbone, ViTMAERobustConfig, ViTMAERobustForPreTraining, ViTMAERobustModel

pytestmark = pytest.mark.slow

SIZES = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
OFF = {"decoder_attention_probs_dropout_prob": 0.0, "target_normalization": "none"}
ON = {
    "decoder_attention_probs_dropout_prob": 0.3,
    "target_normalization": "global_rgb",
    "mid_mask_ratio": 0.25,
    "mid_mask_layer_idx": 1,
}
# A test -> why it cannot apply.
_ONE_LENGTH = "it expects one number of tokens: the encoder alone sees all patches, in pre-training a quarter of them"
NOT_APPLICABLE = {
    "test_attention_outputs": _ONE_LENGTH,
    "test_hidden_states_output": _ONE_LENGTH,
    "test_can_load_ignoring_mismatched_shapes": "it sets all names in _std to a number; image_std is a list",
    "test_model_get_set_embeddings": "it expects nn.Embedding; images have a convolution, in the stock classes too",
}
# Each runs with and without padding; the names say "no_attn_mask" of those without.
PADDED = re.compile(r"test_eager_matches_sdpa_inference_\d+_(?!.*no_attn_mask)")

# The archive has the files of `tests` itself and none of its folders. These hold tests of generating text and of
# exports by other tools, and arguments that every configuration takes.
NOT_IN_THE_ARCHIVE = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {"id2label": {0: "a", 1: "b"}, "return_dict": False}},
}


def mixins():
    """transformers' `tests` as a package of another name, because ours has that one already."""
    folder = os.environ.get("TRANSFORMERS_TESTS")
    if not folder or not Path(folder, "test_modeling_common.py").is_file():
        pytest.skip(f"TRANSFORMERS_TESTS ({folder}) is not the folder of transformers' tests", allow_module_level=True)
    if importlib.util.find_spec("parameterized") is None:
        pytest.skip("transformers' tests need the package parameterized", allow_module_level=True)
    name = "transformers_tests"
    package = sys.modules[name] = ModuleType(name)
    package.__path__ = [folder]
    for module, contents in NOT_IN_THE_ARCHIVE.items():
        parent, _, _ = module.partition(".")
        if Path(folder, parent).is_dir():
            continue
        for full in (f"{name}.{parent}", f"{name}.{module}"):
            sys.modules.setdefault(full, ModuleType(full)).__path__ = []
        vars(sys.modules[f"{name}.{module}"]).update(contents)
    common, backbone, configuration = (
        importlib.import_module(f"{name}.test_{each}_common") for each in ("modeling", "backbone", "configuration")
    )
    return common, backbone, configuration.ConfigTester


common, backbone, ConfigTester = mixins()


class TinyModels:
    """What the mixins ask for a tiny model and its inputs."""

    is_training = True
    batch_size, num_channels, image_size = 3, 3, 16
    patch_size, mask_ratio = 4, 0.75
    seq_length = 1 + 16  # CLS and all patches
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 32

    def __init__(self, ingredients):
        self.ingredients = ingredients

    def get_config(self):
        return ViTMAERobustConfig(**SIZES, **self.ingredients)

    def prepare_config_and_inputs_for_common(self):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(self.batch_size, self.num_channels, self.image_size, self.image_size, generator=generator)
        noise = torch.rand(self.batch_size, 16, generator=generator)  # without it two passes mask other patches
        return self.get_config(), {"pixel_values": pixels, "noise": noise}


class _Models(common.ModelTesterMixin):
    all_model_classes = (ViTMAERobustModel, ViTMAERobustForPreTraining)
    pipeline_model_mapping = {}
    test_resize_embeddings = False
    test_torch_exportable = False
    ingredients = OFF
    tiny_models = TinyModels
    not_applicable = NOT_APPLICABLE

    def setUp(self):
        if reason := self.not_applicable.get(self._testMethodName):
            self.skipTest(reason)
        if PADDED.match(self._testMethodName):
            self.skipTest("an image is not padded with tokens; the models refuse an attention_mask")
        self.model_tester = self.tiny_models(self.ingredients)
        if self._testMethodName.startswith("test_training"):  # the encoder alone has no loss
            self.all_model_classes = (ViTMAERobustForPreTraining,)
        self.config_tester = ConfigTester(self, ViTMAERobustConfig, has_text_modality=False, hidden_size=36)

    def test_config(self):
        self.config_tester.run_common_tests()


class IngredientsOffTest(_Models, unittest.TestCase):
    ingredients = OFF


class IngredientsOnTest(_Models, unittest.TestCase):
    ingredients = ON


class OfABackbone(TinyModels):
    def prepare_config_and_inputs_for_common(self):
        config, inputs = super().prepare_config_and_inputs_for_common()
        return config, {"pixel_values": inputs["pixel_values"]}  # nothing is masked


class BackboneAsAModelTest(_Models, unittest.TestCase):
    all_model_classes = (ViTMAERobustBackbone,)
    tiny_models = OfABackbone
    # It sees all patches always.
    not_applicable = {test: reason for test, reason in NOT_APPLICABLE.items() if reason != _ONE_LENGTH} | {
        "test_retain_grad_hidden_states_attentions": "it expects a tensor first, not feature maps; stock tests it on "
        "the model without a head"
    }

    def setUp(self):
        super().setUp()
        if self._testMethodName.startswith("test_training"):
            self.skipTest("a backbone has no loss")


class BackboneTest(backbone.BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (ViTMAERobustBackbone,)
    config_class = ViTMAERobustConfig
    has_attentions = ViTMAERobustBackbone.has_attentions

    def setUp(self):
        self.model_tester = OfABackbone(ON)
