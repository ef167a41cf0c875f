"""What is imported before it is needed. `benchmarks/startup.py` measures the seconds."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Each takes a good part of a second, and is needed by some commands only.
HEAVY = ("datasets", "faster_coco_eval", "gradio", "matplotlib", "onnx", "pandas", "sklearn", "timm")
# What trains: --help must not wait for it.
TRAINING = (
    "hf_mae_robust.training.trainer",
    "hf_mae_robust.data",
    "hf_mae_robust.conversion",
    "hf_mae_robust.analysis",
)

_CODE = f"""
import json, sys

def loaded():
    return [name for name in {(*HEAVY, *TRAINING)!r} if name in sys.modules]

import hf_mae_robust
found = {{"import": loaded()}}
from hf_mae_robust.pretrain import make_parser as pretraining
from hf_mae_robust.finetune import make_parser as finetuning
pretraining().format_help(), finetuning().format_help()
found["--help of the scripts"] = loaded()
from hf_mae_robust.__main__ import make_parser as commands
commands(["--help"]).format_help()
found["--help of the commands"] = loaded()
import hf_mae_robust.demo.command
found["demo, before it starts"] = [name for name in loaded() if name == "gradio"]
print(json.dumps(found))
"""


def test_nothing_heavy_is_imported_for_help():
    result = subprocess.run(
        [sys.executable, "-c", _CODE], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "import": [],
        "--help of the scripts": [],
        "--help of the commands": [],
        "demo, before it starts": [],
    }
