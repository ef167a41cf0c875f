"""Files that are found by their endings: those that imagecodecs reads are images in folders, lists and tar files."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from hf_mae_robust.data import formats
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from hf_mae_robust.model.bands_vit_mae_robust import BandForm
from tests.data.test_band_decoding import decode
from tests.helpers import photos

codecs = pytest.importorskip("imagecodecs")
ENCODERS = {".jxl": lambda array: codecs.jpegxl_encode(array, lossless=True), ".jls": codecs.jpegls_encode}
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("place", ["folder", "list", "tar"])
@pytest.mark.parametrize("ending", ENCODERS)
def test_what_imagecodecs_reads_is_an_image_wherever_it_lies(tmp_path, ending, place):
    arrays = [RNG.integers(0, 60_000, (8, 6)).astype(np.uint16) for _ in range(3)]
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{number}{ending}" for number in range(len(arrays))]
    for name, array in zip(names, arrays):
        (folder / name).write_bytes(ENCODERS[ending](array))
    (tmp_path / "list.csv").write_text("".join(f"{line}\n" for line in ["path", *(f"images/{name}" for name in names)]))
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name in names:
            tar.add(folder / name, name)
    where = {"folder": folder, "list": tmp_path / "list.csv", "tar": tmp_path / "train.tar"}[place]
    source, _ = open_splits(DataLocation(str(where)), eval_split=None)
    assert len(source) == len(arrays)
    for row, array in zip(range(len(source)), arrays):
        assert np.array_equal(decode(source.rows[row], BandForm())[0], array)


def test_without_imagecodecs_the_package_is_named(tmp_path, monkeypatch):
    for name in ("0.jls", "1.jls"):
        (tmp_path / name).write_bytes(codecs.jpegls_encode(np.zeros((8, 6), np.uint8)))
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install imagecodecs"):
        open_splits(DataLocation(str(tmp_path)), eval_split=None)


def test_beside_pictures_they_are_left_out_and_named(tmp_path, capsys):
    """They would make a data set of bands of all, which models of 8-bit images do not take."""
    for number, picture in enumerate(photos(199)):
        Image.fromarray(picture).save(tmp_path / f"{number}.jpg")
    (tmp_path / "0.jxl").write_bytes(ENCODERS[".jxl"](photos(1)[0]))
    source, _ = open_splits(DataLocation(str(tmp_path)), eval_split=None)
    assert len(source) == 199 and not source.needs_bands
    assert (
        "left out: 1 (0.jxl): .jxl files cannot be read here: pip install pillow-jxl-plugin" in capsys.readouterr().out
    )
