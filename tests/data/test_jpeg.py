"""A crop of a JPEG, of which only the rows that are needed are decoded, against Pillow's whole image."""

import io
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from hf_mae_robust.data import jpeg
from hf_mae_robust.data.decoding import decode_image, decode_regions
from hf_mae_robust.data.preprocessing import training_transform
from hf_mae_robust.errors import ImageDecodingError

PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]  # 640 x 427, colour
SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "imagenet-sample"


def encode(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def with_segment(content, marker, data):
    """Instead of the JFIF segment at the start."""
    rest = content[4 + int.from_bytes(content[4:6], "big") :]
    return jpeg.START + bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2, "big") + data + rest


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
VARIANTS = {
    "plain": encode(PHOTOS[0]),
    "4:4:4": encode(PHOTOS[1], subsampling=0),
    "4:2:2": encode(PHOTOS[0], subsampling=1),
    "restart markers": encode(PHOTOS[0], restart_marker_rows=2),
    "odd size": encode(PHOTOS[1].crop((3, 5, 300, 214))),
    "gray": encode(PHOTOS[0].convert("L")),
    "progressive": encode(PHOTOS[0], progressive=True),
    **{f"EXIF orientation {i}": encode(PHOTOS[1].crop((3, 5, 300, 214)), exif=oriented(i)) for i in range(2, 10)},
    "EXIF, unsaid": encode(PHOTOS[0], exif=Image.Exif().tobytes()),
    "EXIF orientation over XMP's": encode(PHOTOS[0], exif=oriented(3), xmp=XMP),
    "XMP orientation": encode(PHOTOS[0], xmp=XMP),
    "EXIF, unsaid, XMP orientation": encode(PHOTOS[0], exif=Image.Exif().tobytes(), xmp=XMP),
    "XMP": encode(PHOTOS[0], xmp=XMP.replace(b"Orientation", b"Other")),
    "EXIF, upright": encode(PHOTOS[0], exif=oriented(1)),
    "broken EXIF": encode(PHOTOS[0], exif=b"Exif\0\0MM no EXIF"),
    "Adobe's YCbCr": with_segment(encode(PHOTOS[0]), 0xEE, b"Adobe\0\x64\0\0\0\0\1"),
    "Adobe's RGB": with_segment(encode(PHOTOS[0]), 0xEE, b"Adobe\0\x64\0\0\0\0\0"),
    "CMYK": encode(PHOTOS[0].convert("CMYK")),
    "RGB": encode(PHOTOS[0], keep_rgb=True),
    "comment": encode(PHOTOS[0], comment=b"\xff\xc0 no frame"),
}
TAKEN = {"EXIF, upright", "Adobe's YCbCr", "plain", "4:4:4", "4:2:2", "restart markers", "odd size", "gray", "comment"}
TAKEN |= {f"EXIF orientation {i}" for i in range(2, 9)} | {"EXIF, unsaid", "EXIF orientation over XMP's", "XMP"}


def decode_part(value, num_channels, choose, row=None):
    (part,) = decode_regions(value, num_channels, lambda height, width: [choose(height, width)], row)
    return part


@pytest.mark.parametrize("num_channels", [1, 3, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_part_has_the_pixels_of_the_whole(name, num_channels):
    content = VARIANTS[name]
    assert (jpeg.read_header(content) is not None) == (name in TAKEN)
    image = decode_image(content, num_channels)
    _, height, width = image.shape
    parts = [(0, 0, height, width), (0, 0, 1, 1), (height - 1, width - 1, 1, 1), (5, 7, 16, 30)]
    parts += [(end - 9, 11, 9, 50) for end in range(40, 75)]  # at every place within a block of rows
    for top, left, rows, columns in parts:
        choose = Mock(return_value=(top, left, rows, columns))
        part = decode_part(content, num_channels, choose)
        choose.assert_called_once_with(height, width)
        assert torch.equal(part, image[:, top : top + rows, left : left + columns]), (top, left)


@pytest.mark.parametrize("name", ["plain", "progressive"])
def test_several_parts_have_the_pixels_of_the_whole(name):
    image = decode_image(VARIANTS[name])
    places = [(5, 7, 16, 30), (100, 200, 50, 60), (0, 0, 3, 640)]
    parts = decode_regions(VARIANTS[name], 3, lambda *size: places)
    assert len(parts) == 3
    for part, (top, left, rows, columns) in zip(parts, places):
        assert torch.equal(part, image[:, top : top + rows, left : left + columns])


def test_rows_below_the_part_are_not_decoded():
    content = VARIANTS["plain"]
    header = jpeg.read_header(content)
    assert (header.height, header.width, header.components) == (427, 640, 3)
    assert jpeg.decode_rows(content, header, 100, 3).shape == (112, 640, 3)
    assert jpeg.decode_rows(content, header, 427, 3).shape == (427, 640, 3)


def whole(height, width):
    return 0, 0, height, width


def outcome(decode, *args, **options):
    try:
        return decode(*args, **options)
    except ImageDecodingError as error:
        return error.kind, error.detail, str(error)


def test_broken_files_are_reported_as_before():
    """Cut off anywhere, or with bytes changed: the same error as of the whole image, or the same pixels."""
    content, generator = VARIANTS["plain"], np.random.default_rng(0)
    broken = [content[:length] for length in [2, 20, 160, 400, 630, len(content) // 2, len(content) - 2]]
    for end in [1500, len(content)] * 40:
        changed = bytearray(content)
        for place in generator.integers(2, end, 3):
            changed[place] = generator.integers(256)
        broken.append(bytes(changed))
    # Markers that stop the decoder amid the pixels.
    broken += [content[:30_000] + b"\xff" + bytes([marker]) + content[30_002:] for marker in (0x90, 0xC0, 0xD9, 0xDA)]
    kinds = set()
    for data in broken:
        value = {"bytes": data, "path": "photo.jpg"}
        expected = outcome(decode_image, value, 3, row=7)
        got = outcome(decode_part, value, 3, whole, row=7)
        if isinstance(expected, tuple):
            kinds.add(expected[0])
            assert got == expected
        else:
            assert torch.equal(got, expected)
    assert {"truncated", "not_an_image"} <= kinds


def test_a_missing_file_and_one_that_is_there(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(VARIANTS["plain"])
    part = decode_part({"bytes": None, "path": str(tmp_path / "photo.jpg")}, 3, lambda *size: (1, 2, 3, 4))
    assert torch.equal(part, decode_image(VARIANTS["plain"])[:, 1:4, 2:6])
    with pytest.raises(ImageDecodingError, match="missing_file"):
        decode_part({"bytes": None, "path": str(tmp_path / "none.jpg")}, 3, lambda *size: (0, 0, 1, 1))


def test_without_simplejpeg_pillow_does_it(monkeypatch):
    expected = decode_part(VARIANTS["plain"], 3, lambda *size: (9, 8, 70, 60))
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert torch.equal(decode_part(VARIANTS["plain"], 3, lambda *size: (9, 8, 70, 60)), expected)


def test_the_augmentation_in_two_steps_is_the_one_in_one():
    ours, image = training_transform(64), decode_image(VARIANTS["plain"])
    for seed in range(10):
        torch.manual_seed(seed)
        expected = ours(image)
        torch.manual_seed(seed)
        assert torch.equal(ours.finish(decode_part(VARIANTS["plain"], 3, ours.region)), expected)


def psnr(a, b):
    return 10 * np.log10(255**2 / max(((a.astype(float) - b) ** 2).mean(), 1e-9))


def check_against_pillow(contents, size):
    transform = training_transform(size, horizontal_flip=False)
    for seed, content in enumerate(contents):
        torch.manual_seed(seed)
        top, left, height, width = transform.region(*decode_image(content).shape[-2:])
        torch.manual_seed(seed)
        part = decode_part(content, 3, transform.region)
        crop = Image.open(io.BytesIO(content)).convert("RGB").crop((left, top, left + width, top + height))
        expected = np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))
        assert psnr(transform.finish(part).permute(1, 2, 0).numpy(), expected) > 40


@pytest.mark.parametrize("size", [32, 224])
def test_crops_look_as_pillow_would_make_them(size):
    check_against_pillow([VARIANTS[name] for name in ("plain", "4:2:2", "gray", "progressive")] * 5, size)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs the sample of ImageNet photos beside the project")
def test_crops_of_real_photos_look_as_pillow_would_make_them():
    import pyarrow.dataset

    table = pyarrow.dataset.dataset(SAMPLE, format="parquet", exclude_invalid_files=True).head(60, columns=["image"])
    contents = [image["bytes"] for image in table.column("image").to_pylist()]
    check_against_pillow([content for content in contents if content[:2] == jpeg.START], 224)
