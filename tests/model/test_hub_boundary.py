"""A checkpoint folder is enough: it loads with `trust_remote_code=True` where this package is not installed."""

import ast
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import hf_mae_robust.model
from hf_mae_robust import ViTMAERobustBackbone, ViTMAERobustForPreTraining, ViTMAERobustModel
from tests.fresh import run_without_the_package
from tests.model_helpers import tiny_config

FOLDER = Path(hf_mae_robust.model.__file__).parent
CODE_FILES = {"configuration_vit_mae_robust.py", "modeling_vit_mae_robust.py"}
AUTO_MAP = {
    "AutoBackbone": "modeling_vit_mae_robust.ViTMAERobustBackbone",
    "AutoConfig": "configuration_vit_mae_robust.ViTMAERobustConfig",
    "AutoModel": "modeling_vit_mae_robust.ViTMAERobustModel",
    "AutoModelForPreTraining": "modeling_vit_mae_robust.ViTMAERobustForPreTraining",
}

# Argument: the folder that holds whole/, encoder/ and inputs.safetensors.
FRESH_PROCESS = """
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

folder = Path(sys.argv[1])
inputs = load_file(folder / "inputs.safetensors")
outputs = {}
for part in ("whole", "encoder"):
    for auto in (AutoConfig, AutoModel):
        try:
            auto.from_pretrained(folder / part)
        except ValueError as error:
            assert "trust_remote_code" in str(error), error
        else:
            raise AssertionError(f"{auto.__name__} ran the code of {part} unasked")
    config = AutoConfig.from_pretrained(folder / part, trust_remote_code=True)
    assert type(config).__name__ == "ViTMAERobustConfig", config
    assert config.mid_mask_ratio == 0.25
    encoder, info = AutoModel.from_pretrained(folder / part, trust_remote_code=True, output_loading_info=True)
    assert type(encoder).__name__ == "ViTMAERobustModel", encoder
    assert not any(info.values()), info
    assert not encoder.embeddings.position_embeddings.requires_grad
    outputs[f"{part}.features"] = encoder(inputs["pixel_values"]).last_hidden_state.detach()

model, info = AutoModelForPreTraining.from_pretrained(
    folder / "whole", trust_remote_code=True, output_loading_info=True
)
assert not any(info.values()), info
outputs["loss"] = model(**inputs).loss.detach()
model.save_pretrained(folder / "saved again")
save_file(outputs, folder / "outputs.safetensors")
assert not [name for name in sys.modules if name.startswith("hf_mae_robust")]
"""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_model_files_import_nothing_that_a_checkpoint_lacks(path):
    siblings = {file.stem for file in FOLDER.glob("*.py")} - {"__init__"}
    allowed = {"torch", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    if path.stem.endswith("_detection") or path.stem.startswith(("image_processing", "resizing")):
        allowed |= {"torchvision"}
    if path.stem.startswith(("band", "image_processing")):
        allowed |= {"numpy", "PIL"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, ast.unparse(node)
            assert node.module in siblings, ast.unparse(node)
            continue
        else:
            continue
        for module in modules:
            assert module.partition(".")[0] in allowed, ast.unparse(node)


@pytest.fixture
def checkpoints(tmp_path):
    """`whole` and `encoder`, saved from the same model."""
    model = ViTMAERobustForPreTraining(tiny_config(target_normalization="global_patch", mid_mask_ratio=0.25)).eval()
    model.set_target_statistics(torch.rand(192), 0.1 + torch.rand(192))
    model.save_pretrained(tmp_path / "whole")
    model.vit.save_pretrained(tmp_path / "encoder")
    return model, tmp_path


@pytest.mark.parametrize("part", ["whole", "encoder"])
def test_checkpoint_holds_its_code_and_names_every_auto_class(checkpoints, part):
    folder = checkpoints[1] / part
    for name in CODE_FILES:
        assert (folder / name).read_bytes() == (FOLDER / name).read_bytes()
    assert {file.name for file in folder.glob("*.py")} == CODE_FILES
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == AUTO_MAP
    assert config["model_type"] == "vit_mae_robust"
    assert config["architectures"] == ["ViTMAERobustForPreTraining" if part == "whole" else "ViTMAERobustModel"]


def test_checkpoint_loads_in_a_process_without_the_package(checkpoints):
    model, folder = checkpoints
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32), "noise": torch.rand(2, 16)}
    save_file(inputs, folder / "inputs.safetensors")
    run_without_the_package(FRESH_PROCESS, folder, str(folder))

    outputs = load_file(folder / "outputs.safetensors")
    with torch.no_grad():
        features = model.vit(inputs["pixel_values"]).last_hidden_state
        loss = model(**inputs).loss
    assert_close(outputs["whole.features"], features)
    assert_close(outputs["encoder.features"], features)
    assert_close(outputs["loss"], loss)

    # Saved by a process that knew only the copied files, the folder is as complete as before.
    again = folder / "saved again"
    assert {file.name for file in again.glob("*.py")} == CODE_FILES
    assert json.loads((again / "config.json").read_text(encoding="utf-8"))["auto_map"] == AUTO_MAP
    for cls in (ViTMAERobustForPreTraining, ViTMAERobustModel):
        _, info = cls.from_pretrained(again, output_loading_info=True)
        assert not any(info.values()), info


# `AutoBackbone.from_pretrained` of transformers asks the Hub for a repository of that name before it opens a folder, so
# that it loads no folder; here the Hub says yes. The other way is docs/backbone.md's. Argument: the folder that holds
# whole/ and inputs.safetensors.
BACKBONE_IN_A_FRESH_PROCESS = """
import sys
from pathlib import Path

from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoConfig, UperNetConfig, UperNetForSemanticSegmentation

folder = Path(sys.argv[1])
whole = str(folder / "whole")
indices, remote = {"out_indices": [1, 3]}, {"trust_remote_code": True}
config = AutoConfig.from_pretrained(whole, **indices, **remote)
found = type(AutoBackbone.from_config(config, **remote))
HfApi.repo_exists = lambda self, repo_id, **options: True
outputs = {}
for backbone, info in (
    found.from_pretrained(whole, config=config, output_loading_info=True),
    AutoBackbone.from_pretrained(whole, **indices, **remote, output_loading_info=True),
):
    assert type(backbone).__name__ == "ViTMAERobustBackbone" and not any(info.values()), info
    assert backbone.out_features == ["stage1", "stage3"]
    maps = backbone.eval()(load_file(folder / "inputs.safetensors")["pixel_values"]).feature_maps
    for each in maps:
        outputs[str(len(outputs))] = each.detach()
    head = UperNetConfig(backbone_config=backbone.config, hidden_size=8, use_auxiliary_head=False)
    assert type(UperNetForSemanticSegmentation(head).backbone) is type(backbone)
save_file(outputs, folder / "outputs.safetensors")
backbone.save_pretrained(folder / "saved again")
assert not [name for name in sys.modules if name.startswith("hf_mae_robust")]
"""


def test_checkpoint_is_a_backbone_in_a_process_without_the_package(checkpoints):
    model, folder = checkpoints
    pixels = torch.randn(2, 3, 40, 32)
    save_file({"pixel_values": pixels}, folder / "inputs.safetensors")
    run_without_the_package(BACKBONE_IN_A_FRESH_PROCESS, folder, str(folder))

    with torch.no_grad():
        states = model.vit(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
        maps = [model.vit.layernorm(states[i])[:, 1:].transpose(1, 2).reshape(2, 64, 5, 4) for i in (1, 3)]
    outputs = load_file(folder / "outputs.safetensors")
    for name, expected in zip("0123", (*maps, *maps)):
        assert_close(outputs[name], expected)

    again = folder / "saved again"
    assert {file.name for file in again.glob("*.py")} == CODE_FILES
    config = json.loads((again / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == AUTO_MAP
    assert config["architectures"] == ["ViTMAERobustBackbone"] and config["out_indices"] == [1, 3]
    _, info = ViTMAERobustBackbone.from_pretrained(again, output_loading_info=True)
    assert not any(info.values()), info
