"""What a data set holds is noticed before anything is trained, and read as the model wants it."""

import io

import numpy as np
import pytest
from datasets import Array3D, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from hf_mae_robust.data.decoding import decode_image
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError, ImageDecodingError
from hf_mae_robust.model import band_tiff_vit_mae_robust
from hf_mae_robust.model.bands_vit_mae_robust import BandError, BandForm
from tests.helpers import LFS_POINTER, photos

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 5000, (16, 16)).astype(np.uint16)
BANDS = RNG.integers(0, 5000, (5, 16, 16)).astype(np.uint16)


def encoded(array, ending):
    file = io.BytesIO()
    np.save(file, array) if ending == "npy" else Image.fromarray(array).save(file, ending)
    return file.getvalue()


def opened(folder, **options):
    return open_splits(DataLocation(str(folder), **options), eval_split=None)[0]


def write(folder, values, feature):
    Dataset.from_dict({"image": values}, features=Features({"image": feature})).to_parquet(folder / "train.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("value", "feature", "expected"),
    [
        (BANDS, Array3D((5, 16, 16), "uint16"), (5, "uint16", False, False)),
        (encoded(BANDS, "npy"), Value("binary"), (5, "uint16", False, False)),
        (encoded(DEEP, "PNG"), ImageFeature(), (1, "uint16", False, True)),
        (encoded(photos(1)[0], "PNG"), ImageFeature(), (3, "uint8", True, True)),
        (encoded(photos(1)[0], "JPEG"), Value("binary"), (3, "uint8", True, True)),
        (photos(1)[0], Array3D((16, 16, 3), "uint8"), (3, "uint8", True, True)),
    ],
    ids=["arrays", "bytes of .npy", "16-bit PNG", "PNG", "bytes of JPEG", "arrays of 8 bits"],
)
def test_what_is_stored(tmp_path, capsys, value, feature, expected, streaming):
    value = {"bytes": value, "path": None} if isinstance(feature, ImageFeature) else value
    source = opened(write(tmp_path, [value] * 3, feature), dataset_streaming=streaming)
    stored = source.stored
    assert (stored.num_channels, stored.dtype, stored.is_8_bit, stored.has_picture) == expected
    assert source.needs_bands is not expected[2]
    said = f"holds {expected[0]} band{'s' * (expected[0] > 1)} of {expected[1]}"
    assert (said in capsys.readouterr().out) is source.needs_bands


def test_a_folder_of_arrays_and_one_of_images_with_arrays_beside(tmp_path):
    for name, ending in (("arrays", "npy"), ("photos", "png")):
        for label in ("a", "b"):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(3):
                np.save(tmp_path / name / label / f"{i}.npy", BANDS)
                if ending == "png":
                    Image.fromarray(photos(1)[0]).save(tmp_path / name / label / f"{i}.png")
    arrays, images = opened(tmp_path / "arrays", label_column_name="auto"), opened(tmp_path / "photos")
    assert len(arrays) == 6 and arrays.needs_bands and arrays.class_names == ("a", "b")
    assert len(images) == 6 and not images.needs_bands


def test_images_of_several_numbers_of_bands_need_a_choice(tmp_path):
    for i, count in enumerate((5, 7, 5)):
        np.save(tmp_path / f"{i}.npy", RNG.integers(0, 9, (count, 16, 16)).astype(np.uint16))
    with pytest.raises(DataError, match=r"5 or 7 bands. Choose those to train on with --bands .*--bands 0 1 2 3 4"):
        opened(tmp_path)
    assert opened(tmp_path, bands=[0, 3]).stored.num_channels == 5


def test_arrays_whose_shape_does_not_tell_the_axis_of_bands_need_it(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 8), np.uint16))
    with pytest.raises(DataError, match="--channel_axis first or --channel_axis last"):
        opened(tmp_path)
    assert opened(tmp_path, channel_axis="last").stored.num_channels == 8


def test_a_model_gets_what_it_takes_or_a_sentence(tmp_path):
    source = opened(write(tmp_path, [BANDS] * 3, Array3D((5, 16, 16), "uint16")))
    with pytest.raises(
        DataError, match=r"5 bands of uint16 .*takes 8-bit images of 3 channels.*--inflate_channels mean"
    ):
        source.read_as(None, 3)
    with pytest.raises(DataError, match=r"the model takes 4 bands. Choose them with --bands"):
        source.read_as(BandForm(image_mean=(0.0,) * 4, image_std=(1.0,) * 4), 4)
    with pytest.raises(DataError, match=r"--bands 0 9: .* the last band is 4"):
        source.read_as(BandForm(bands=(0, 9)), 2)
    assert source.read_as(BandForm(bands=(4, 1)), 2).band_form.bands == (4, 1)


def test_without_the_readers_a_16_bit_tiff_is_still_a_picture_for_models_of_8_bits(tmp_path, monkeypatch):
    def lacks(*_, **__):
        raise BandError("a TIFF file needs the package tifffile: pip install tifffile")

    monkeypatch.setattr(band_tiff_vit_mae_robust, "optional_package", lacks)
    Image.fromarray(DEEP).save(tmp_path / "a.tif")
    source = opened(tmp_path)
    assert source.needs_bands and source.read_as(None, 3).band_form is None
    with pytest.raises(DataError, match="needs the package tifffile: pip install tifffile"):
        source.read_as(BandForm(), 1)


def test_pictures_of_8_bits_among_deeper_ones_are_told(tmp_path, capsys):
    for i in range(4):
        Image.fromarray(DEEP if i % 2 else photos(1)[0][..., 0]).save(tmp_path / f"{i}.png")
    assert opened(tmp_path).stored.is_mixed
    assert "Warning: some of its images are 8-bit pictures" in capsys.readouterr().out


def test_of_a_deep_picture_among_others_its_file_and_its_own_bands_are_told(tmp_path, capsys):
    for i in range(5):
        Image.fromarray(photos(1)[0]).save(tmp_path / f"{i}.jpg")
    Image.fromarray(DEEP).save(tmp_path / "z.png")
    opened(tmp_path)
    wanted = "(train) holds 8-bit pictures, and 1 band of uint16 (PNG) in z.png (5 and 1 of the 6 images looked at)"
    assert wanted in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
def test_a_deep_picture_among_those_of_rgb_leaves_models_of_8_bits_as_they_were(tmp_path, streaming):
    for i in range(3):
        Image.fromarray(DEEP if i == 1 else photos(1)[0]).save(tmp_path / f"{i}.png")
    source = opened(tmp_path, dataset_streaming=streaming)
    assert source.needs_bands and source.read_as(None, 3).band_form is None
    with pytest.raises(DataError, match=r"1 or 3 bands\. .*--bands 0, or .*--image_statistics default"):
        source.read_as(BandForm(), 3)
    assert opened(tmp_path, bands=[0], dataset_streaming=streaming).read_as(
        BandForm(bands=(0,)), 1
    ).band_form.bands == (0,)


def test_images_that_are_pointers_of_git_lfs_are_named(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_text(LFS_POINTER)
    with pytest.raises(DataError, match="Git LFS pointer.*git lfs pull"):
        open_splits(DataLocation(str(tmp_path)))
    with pytest.raises(ImageDecodingError, match="0.jpg.*Git LFS pointer"):
        decode_image({"bytes": None, "path": str(tmp_path / "0.jpg")})
