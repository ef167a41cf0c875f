"""Fixtures of all tests. The suite neither reads nor writes the user's caches, and asks nothing of the network."""

import os
import shutil
import tempfile
from pathlib import Path

# Before anything reads them.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_mae_robust-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("HF_DATASETS_CACHE", None)

import pytest
import torch


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture
def golden_dir() -> Path:
    """Outputs and gradients of the official code; they lie beside the checkout, not in it."""
    path = Path(__file__).parents[2] / "shared" / "golden"
    if not path.is_dir():
        pytest.skip("golden values of the official code are not here")
    return path


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
