"""Arrays, .npy and .npz as images of bands."""

import io

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from hf_mae_robust.model import band_arrays_vit_mae_robust
from hf_mae_robust.model.band_arrays_vit_mae_robust import bands_first
from hf_mae_robust.model.band_files_vit_mae_robust import read_band_image
from hf_mae_robust.model.bands_vit_mae_robust import BandError


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npz(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def numbers(*shape, dtype=np.uint16):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize(
    "shape, first",
    [
        ((13, 32, 32), True),
        ((32, 32, 13), False),
        ((9, 9, 200), False),  # two equal sides beside another are the picture's
        ((10, 32, 32), True),
        ((200, 12, 12), True),
        ((3, 48, 64), True),
        ((48, 64, 3), False),
        ((1, 5, 7), True),
        ((5, 7, 1), False),
    ],
)
def test_the_axis_of_the_bands_is_told_by_the_shape(shape, first):
    array = numbers(*shape)
    expected = array if first else np.stack([array[:, :, band] for band in range(shape[2])])
    assert_array_equal(bands_first(array), expected)


@pytest.mark.parametrize("shape", [(3, 64, 3), (13, 13, 13), (48, 3, 64), (5, 5, 5)])
def test_a_shape_that_does_not_tell_needs_the_flag(shape):
    array = numbers(*shape)
    with pytest.raises(BandError, match="--channel_axis first or --channel_axis last"):
        bands_first(array)
    assert_array_equal(bands_first(array, "first"), array)
    assert_array_equal(bands_first(array, "last"), array.transpose(2, 0, 1))


def test_two_axes_are_one_band_and_four_are_frames():
    assert_array_equal(bands_first(numbers(6, 8)), numbers(6, 8)[None])
    frames = numbers(4, 3, 6, 8)
    with pytest.raises(BandError, match=r"4 frames of 3 x 6 x 8: say --frame N"):
        bands_first(frames)
    assert_array_equal(bands_first(frames, frame=2), frames[2])
    with pytest.raises(BandError, match="--frame 4 of a file that has 4"):
        bands_first(frames, frame=4)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i2", ">i4", "<i8", "<f2", ">f4", "<f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files_are_read_as_numpy_reads_them(dtype, order):
    array = np.asarray(numbers(3, 5, 7) % 200, dtype=dtype, order=order)
    pixels = read_band_image(npy(array)).pixels
    assert_array_equal(pixels, np.load(io.BytesIO(npy(array))))
    assert pixels.dtype == array.dtype.newbyteorder("=") and pixels.dtype.isnative


def test_lists_arrays_and_paths(tmp_path):
    array = numbers(3, 5, 7)
    path = tmp_path / "image.npy"
    path.write_bytes(npy(array) + b"what lies behind the array is left alone")
    for source in (array, array.tolist(), path, str(path), {"bytes": None, "path": str(path)}):
        assert_array_equal(read_band_image(source).pixels, array)
    with pytest.raises(BandError, match="different lengths"):
        read_band_image([[1, 2], [3]])
    with pytest.raises(BandError) as error:
        read_band_image(tmp_path / "other.npy")
    assert error.value.kind == "missing_file"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_files(save):
    array = numbers(3, 5, 7)
    assert_array_equal(read_band_image(npz(save, anything=array)).pixels, array)
    assert_array_equal(read_band_image(npz(save, mask=array[0], image=array)).pixels, array)
    with pytest.raises(BandError, match=r"several arrays \(left, right\).*call the image image"):
        read_band_image(npz(save, left=array, right=array))


def test_no_pickle_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    objects = np.array([Bomb(), Bomb()], dtype=object)
    for data in (npy(objects), npz(image=objects)):
        with pytest.raises(BandError, match="a pickle, which is never run"):
            read_band_image(data)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "array, kind",
    [
        (numbers(3, 0, 7), "empty"),
        (numbers(7), "unsupported"),
        (numbers(1, 1, 1, 3, 5), "unsupported"),
        (np.zeros((3, 5, 7), np.complex64), "unsupported"),
        (np.full((3, 5), "text"), "unsupported"),
        (np.zeros((3, 5), [("red", "u1"), ("green", "u1")]), "unsupported"),
        (np.zeros((3, 5), "M8[D]"), "unsupported"),
    ],
)
def test_what_is_no_image_is_refused(array, kind):
    for source in (array, npy(array)):
        with pytest.raises(BandError) as error:
            read_band_image(source)
        assert error.value.kind == kind


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "data, kind",
    [
        (header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (31623, 31623)}\n"), "bomb"),
        (header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (5000, 4, 4)}\n") + bytes(640_000), "bomb"),
        (header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 32)}\n"), "corrupt"),
        (header(b"__import__('os').system('true')\n"), "corrupt"),
        (header(b"{'descr': '<f8'}\n"), "corrupt"),
        (header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (5, 4)}\n") + bytes(159), "truncated"),
        (header(b"{'descr': '<f8', 'fort")[:20], "truncated"),
        (npz(image=numbers(3, 5))[:-30], "truncated"),
        (b"PK\x05\x06" + bytes(18), "empty"),
        (b"\x80\x04K\x01.", "not_an_image"),
    ],
)
def test_broken_files_of_numpy_are_refused(data, kind):
    with pytest.raises(BandError) as error:
        read_band_image(data)
    assert error.value.kind == kind


def test_a_zip_that_unpacks_to_more_than_the_limit_is_refused_before_it_does(monkeypatch):
    monkeypatch.setattr(band_arrays_vit_mae_robust, "MAX_BYTES", 2**20)
    data = npz(np.savez_compressed, image=np.zeros(2**21, np.uint8))
    # What the directory says of the size is not believed.
    for size in (2**21 + 128, 1000):
        with pytest.raises(BandError) as error:
            read_band_image(data.replace((2**21 + 128).to_bytes(4, "little"), size.to_bytes(4, "little")))
        assert error.value.kind in ("bomb", "truncated")
