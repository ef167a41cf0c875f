"""Fixtures of all tests. The suite neither reads nor writes the user's caches, and asks nothing of the network."""

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Before anything reads them.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_mae_robust-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # two workers on two cores; and sums are the same on every machine
os.environ.pop("HF_DATASETS_CACHE", None)

import psutil
import pytest
import torch

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from tests.band_data import write_band_encoder, write_bands
from tests.helpers import TINY, write_parquet_set

torch.set_num_threads(1)


# By CPU seconds, which `--cpu-times` measures.
LONGEST = (
    "hub/test_uploads.py",
    "finetuning/detection/test_task.py",
    "training/test_exact_resume.py",
    "training/test_interruptions.py",
    "studies/test_runner.py",
    "training/test_launch.py",
    "hub/test_streaming.py",
    "hub/test_model_card.py",
    "finetuning/segmentation/test_task.py",
    "test_finetune.py",
    "test_pretrain.py",
)


def pytest_addoption(parser):
    parser.addoption("--cpu-times", metavar="FILE", help="append the CPU seconds of each test, its processes included")


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that no worker waits for another at the end."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.relative_to(Path(__file__).parent).as_posix(), len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Seconds of CPU say what a test costs, however busy the machine is."""
    file = item.config.getoption("--cpu-times")
    if file is None:
        return (yield)
    before = _cpu_seconds()
    result = yield
    with Path(file).open("a") as lines:
        lines.write(f"{_cpu_seconds() - before:.2f} {item.nodeid}\n")
    return result


def _cpu_seconds() -> float:
    """Of this process, those it started and those that have ended."""
    this, seconds = psutil.Process(), 0.0
    for process in [this, *this.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it has ended since
            seconds += sum(process.cpu_times()[:4])
    return seconds


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


@pytest.fixture(scope="session")
def bands_dir(tmp_path_factory) -> Path:
    """16 labelled images of five bands to train on and 6 to evaluate, with maps."""
    return write_bands(tmp_path_factory.mktemp("data") / "bands")


@pytest.fixture(scope="session")
def band_encoder_dir(tmp_path_factory) -> Path:
    """A tiny pre-training model for them, with random weights."""
    return write_band_encoder(tmp_path_factory.mktemp("band-encoder"))


@pytest.fixture
def hold_open(monkeypatch) -> Callable[[str], None]:
    """Files of a name are open in another program, as on NFS: to delete one gives it another name, and that one cannot
    be deleted. Deleting the folder fails, too."""

    def hold(held: str) -> None:
        unlink, numbers = os.unlink, itertools.count()

        def unlink_on_nfs(path, *, dir_fd=None):
            name = Path(path).name
            if name.startswith(".nfs"):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
            if name != held:
                return unlink(path, dir_fd=dir_fd)
            hidden = Path(path).with_name(f".nfs{next(numbers)}")
            os.rename(path, hidden, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

        monkeypatch.setattr(os, "unlink", unlink_on_nfs)

    return hold


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
