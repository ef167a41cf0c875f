"""Pictures that come out nearly black, white or cut off are warned of, with the range of what is stored."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_mae_robust.conversion.pixels import Pixels
from hf_mae_robust.data.brightness import describe_brightness
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.model import ViTMAERobustConfig
from hf_mae_robust.training.image_form import as_wanted
from tests.helpers import photos

RNG = np.random.default_rng(0)
UNIT = RNG.random((16, 16))


def folder_of(tmp_path, arrays, ending="tiff"):
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i}.{ending}")
    return tmp_path


def said(path, **options):
    return describe_brightness(open_splits(DataLocation(str(path), **options), tells=False)[0])


@pytest.mark.parametrize(
    ("array", "words"),
    [
        pytest.param((UNIT * 4095).astype(np.uint16), ["nearly black", "16 bits are read as 0 to 65,535"], id="12 bit"),
        pytest.param((UNIT * 16383).astype(np.uint16), ["nearly black"], id="14 bit"),
        pytest.param((UNIT * 255).astype(np.float32), ["white", "fraction are read as 0 to 1"], id="floats to 255"),
        pytest.param((UNIT * 3000 - 1000).astype(np.float32), ["black and white", "-9"], id="Hounsfield, floats"),
        pytest.param((UNIT * 3000 - 1000).astype(np.int32), ["nearly black", "-9"], id="Hounsfield"),
        pytest.param((UNIT * 3).astype(np.uint8), ["nearly black", "from 0 to 2", "semantic maps"], id="maps"),
        pytest.param(np.full((16, 16, 3), 255, np.uint8), ["nearly white (from 255"], id="white"),
    ],
)
def test_what_comes_out_black_or_white_is_said_with_its_range(tmp_path, array, words):
    sentence = said(folder_of(tmp_path, [array] * 3))
    assert sentence.startswith("Warning: ") and "3 pictures looked at" in sentence
    assert all(word in sentence for word in words), sentence
    low, high = float(array.min()), float(array.max())
    assert f"numbers from {low:g} to {high:g}" in sentence


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(photos(1)[0], id="8 bit"),
        pytest.param((UNIT * 65535).astype(np.uint16), id="16 bit"),
        pytest.param(UNIT.astype(np.float32), id="floats to 1"),
        pytest.param((UNIT > 0.5).astype(np.uint8) * 255, id="black and white drawings"),
    ],
)
def test_pictures_that_come_out_well_are_not_spoken_of(tmp_path, array):
    assert said(folder_of(tmp_path, [array] * 3)) is None


def test_one_black_picture_among_others_is_no_reason(tmp_path):
    assert said(folder_of(tmp_path, [np.zeros((16, 16, 3), np.uint8), *photos(3)], "png")) is None


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_says_it_at_its_start(tmp_path, capsys, streaming):
    file = io.BytesIO()
    Image.fromarray((UNIT * 4095).astype(np.uint16)).save(file, "PNG")
    rows = {"image": [{"bytes": file.getvalue(), "path": None}] * 4}
    table = Dataset.from_dict(rows, features=Features({"image": ImageFeature()}))
    table.to_parquet(tmp_path / "train.parquet")
    source, _ = open_splits(DataLocation(str(tmp_path), dataset_streaming=streaming))
    assert "holds 1 band of uint16 (PNG)" in capsys.readouterr().out
    as_wanted(SimpleNamespace(config=ViTMAERobustConfig()), Pixels(), source)  # of a model of 8-bit images
    assert "4 pictures looked at come out nearly black (up to 15 of 255)" in capsys.readouterr().out
    assert not getattr(source.rows, "rows", None)  # no row group is kept for it


def test_a_task_of_8_bits_advises_to_convert_the_files(tmp_path):
    array = (UNIT * 4095).astype(np.uint16)
    source = open_splits(DataLocation(str(folder_of(tmp_path, [array] * 3))), tells=False)[0]
    assert "--image_statistics" in describe_brightness(source)
    sentence = describe_brightness(source, can_read_all=False)
    assert "convert the files to 8 bits" in sentence and "--image_statistics" not in sentence
