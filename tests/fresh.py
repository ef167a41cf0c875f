"""Python where this package is not installed, as on the machine of somebody who only has transformers."""

import os
import subprocess
import sys
from pathlib import Path

# The import hook stands for such a machine, even where the package is installed.
_ABSENT = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_mae_robust":
            raise ModuleNotFoundError(f"{name} is not installed here")


sys.meta_path.insert(0, Absent())
"""


def run_without_the_package(code: str, folder: Path, *words: str, **settings: str) -> str:
    """What `code`, started in `folder` with the arguments `words`, prints. AssertionError with its messages where it
    fails. settings: environment variables; it is offline without any."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(folder / "hf_home"), "OMP_NUM_THREADS": "1"} | (settings or {"HF_HUB_OFFLINE": "1"})
    result = subprocess.run(
        [sys.executable, "-I", "-c", _ABSENT + code, *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def code_of_card(path: Path) -> str:
    """The only Python block in a model card."""
    parts = path.read_text().split("```python\n")
    assert len(parts) == 2, f"{path}: {len(parts) - 1} blocks of Python"
    return parts[1].split("```")[0]
