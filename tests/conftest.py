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

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from tests.helpers import TINY, write_parquet_set


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture
def golden_dir() -> Path:
    """Outputs and gradients of the official code; they lie beside the checkout, not in it."""
    path = Path(__file__).parents[2] / "shared" / "golden"
    if not path.is_dir():
        pytest.skip("golden values of the official code are not here")
    return path


@pytest.fixture(scope="session")
def photos_dir(tmp_path_factory) -> Path:
    """Parquet of 40 labelled pictures to train on and 11 to evaluate, which two processes cannot share evenly."""
    return write_parquet_set(tmp_path_factory.mktemp("data") / "set", {"train": 40, "validation": 11}, row_group=7)


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory) -> Path:
    """A tiny pre-training model, with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    ViTMAERobustForPreTraining(ViTMAERobustConfig(**TINY)).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
