"""Python where this package is not installed, as on the machine of somebody who only has transformers."""

import os
import tempfile
from functools import cache
from pathlib import Path

from tests.processes import Parent

MODULES = (
    "numpy", "PIL.Image", "safetensors.torch", "torch", "torchvision.ops",
    "transformers:AutoModelForPreTraining", "transformers:AutoImageProcessor", "transformers:pipeline",
    "transformers.models.beit.modeling_beit", "transformers.models.vit_mae.modeling_vit_mae",
)  # fmt: skip


@cache
def _parent() -> Parent:
    """An isolated interpreter, without a network; its forks share the cache of the code of checkpoints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": tempfile.mkdtemp(dir=os.environ["HF_HOME"]), "HF_HUB_OFFLINE": "1"}
    return Parent(environment, MODULES, python=["-I"], options=["--without-the-package"])


def run_without_the_package(code: str, folder: Path, *words: str) -> str:
    """What `code`, started in `folder` with the arguments `words`, prints. AssertionError with its messages where it
    fails."""
    return run_in(_parent(), code, folder, *words)


def run_without_the_package_online(code: str, folder: Path, **settings: str) -> str:
    """The same in an interpreter of its own, with the address of a Hub among its environment variables, `settings`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(folder / "hf_home"), **settings}
    with Parent(environment, ["transformers"], python=["-I"], options=["--without-the-package"]) as parent:
        return run_in(parent, code, folder)


def run_in(parent: Parent, code: str, folder: Path, *words: str) -> str:
    with tempfile.TemporaryDirectory() as logs:
        script = Path(logs) / "code.py"
        script.write_text(code, encoding="utf-8")
        ended = parent.run([script, *words], Path(logs), folder=folder)
    assert ended.codes == [0], ended.stderr
    return ended.stdout


def code_of_card(path: Path) -> str:
    """The only Python block in a model card."""
    parts = path.read_text().split("```python\n")
    assert len(parts) == 2, f"{path}: {len(parts) - 1} blocks of Python"
    return parts[1].split("```")[0]
