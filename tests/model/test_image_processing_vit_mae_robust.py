"""The image processor of band models: what the package's evaluation computes, here and where the package is not
installed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor

import hf_mae_robust.model
from hf_mae_robust import ViTMAERobustForPreTraining, ViTMAERobustImageProcessor
from hf_mae_robust.data.preprocessing import EvaluationTransform, band_processor, evaluation_processor
from hf_mae_robust.model.bands_vit_mae_robust import BandError, BandForm, BandImage
from tests.fresh import run_without_the_package
from tests.model_helpers import tiny_config

FOLDER = Path(hf_mae_robust.model.__file__).parent
CODE_FILES = {file.name for file in FOLDER.glob("*.py") if file.name.startswith(("band", "resizing"))} | {
    "image_processing_vit_mae_robust.py"
}

FORM = BandForm(
    bands=(3, 0, 4),
    nodata=0,
    value_range=((100.0, 9000.0),) * 3,
    image_mean=(1200.0, 900.0, 3000.5),
    image_std=(300.0, 250.0, 1000.25),
)


def stored(height: int = 40, width: int = 52, seed: int = 0) -> np.ndarray:
    """`(C, H, W)` uint16 of five bands; a corner is missing (0)."""
    pixels = np.random.default_rng(seed).integers(1, 10_000, (5, height, width)).astype(np.uint16)
    pixels[:, : height // 3, : width // 3] = 0
    return pixels


def evaluated(form: BandForm, processor, pixels: np.ndarray) -> torch.Tensor:
    """As the package does: `BandForm.apply` where an image is decoded, then the transform of evaluation."""
    return EvaluationTransform(processor)(torch.from_numpy(form.apply(BandImage(pixels))))


@pytest.mark.parametrize("image_size", [32, [32, 48], 40])
@pytest.mark.parametrize("size", [(40, 52), (9, 9), (40, 40), (3, 200)])
def test_it_equals_the_evaluation_of_the_package(image_size, size):
    form = replace(FORM, channel_axis="first")  # of 3 x 200 pixels the shape would not tell
    processor = band_processor(form, image_size, 0.875 if size[0] != size[1] else 1.0)
    pixels = stored(*size)
    expected = evaluated(form, processor, pixels)
    assert expected.isnan().any() or size == (3, 200)
    kept = processor(pixels, fill_missing=False, return_tensors="pt").pixel_values
    assert kept.dtype == torch.float32 and kept.numpy()[0].tobytes() == expected.numpy().tobytes()
    filled = processor(pixels, return_tensors="np").pixel_values
    assert np.array_equal(filled[0], np.nan_to_num(expected.numpy()))


def test_the_geometry_is_that_of_stock_models_at_the_same_settings():
    form = BandForm(image_mean=(0.0,) * 5, image_std=(1.0,) * 5)
    pixels = stored().astype(np.float32)
    stock = evaluation_processor(32, 0.8, 5, [0.0] * 5, [1.0] * 5)
    expected = stock(
        torch.from_numpy(pixels), do_rescale=False, input_data_format="channels_first", return_tensors="pt"
    ).pixel_values
    torch.testing.assert_close(band_processor(form, 32, 0.8)(pixels, return_tensors="pt").pixel_values, expected)


def test_arrays_tensors_pictures_files_and_lists_of_them(tmp_path):
    form = replace(FORM, bands=None, channel_axis="first")
    processor, pixels = band_processor(form, 16), stored()[:3]
    expected = processor(pixels, return_tensors="pt").pixel_values
    np.save(tmp_path / "image.npy", pixels)
    last = band_processor(replace(form, channel_axis="last"), 16)
    for found in (
        processor(torch.from_numpy(pixels.astype(np.int32)), return_tensors="pt"),
        processor(str(tmp_path / "image.npy"), return_tensors="pt"),
        processor(tmp_path / "image.npy", return_tensors="pt"),
        processor((tmp_path / "image.npy").read_bytes(), return_tensors="pt"),
        processor(BandImage(pixels), return_tensors="pt"),
        last(pixels.transpose(1, 2, 0), return_tensors="pt"),
    ):
        torch.testing.assert_close(found.pixel_values, expected, rtol=1e-6, atol=1e-6)
    both = processor([pixels, tmp_path / "image.npy"], return_tensors="pt").pixel_values
    assert torch.equal(both, expected.expand(2, -1, -1, -1))
    assert torch.equal(processor(np.stack([pixels, pixels]), return_tensors="pt").pixel_values, both)

    gray = BandForm(image_mean=(30_000.0,), image_std=(1000.0,))
    deep = np.random.default_rng(0).integers(0, 65_536, (20, 20)).astype(np.uint16)
    found = [
        band_processor(gray, 16)(image, return_tensors="pt").pixel_values for image in (deep, Image.fromarray(deep))
    ]
    assert torch.equal(*found) and found[0].shape == (1, 1, 16, 16)
    colours = np.random.default_rng(0).integers(0, 256, (4, 30, 3)).astype(np.uint8)
    found = [band_processor(BandForm(), 16)(image)["pixel_values"][0] for image in (colours, Image.fromarray(colours))]
    assert torch.equal(*found)


def test_errors_say_which_image_cannot_be_used():
    processor = band_processor(FORM, 16)
    with pytest.raises(BandError, match="^--bands asks for band 4, and the image has 3"):
        processor(stored()[:3])
    with pytest.raises(BandError, match=r"^images\[1\]: --bands asks for band 4"):
        processor([stored(), stored()[:3]])


def test_pixel_values_are_only_resized_and_cropped():
    """What evaluation asks of every image processor."""
    values = torch.randn(2, 3, 20, 30)
    values[0, :, 4:9] = torch.nan
    processor = band_processor(FORM, 16)
    settings = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    found = processor(values, fill_missing=False, input_data_format="channels_first", **settings).pixel_values
    assert found.numpy().tobytes() == torch.stack([*map(EvaluationTransform(processor), values)]).numpy().tobytes()
    assert found.isnan().any() and not processor(values, **settings).pixel_values.isnan().any()


def test_settings_are_saved_and_read_back(tmp_path):
    form = replace(FORM, nodata=-9999.5, channel_axis="last", frame=2)
    processor = band_processor(form, [32, 48], 0.8, show_bands=[3, 0, 4])
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["bands"] == [3, 0, 4] and saved["image_mean"] == [1200.0, 900.0, 3000.5]
    assert saved["rescale_factor"] == 1.0 and saved["do_rescale"] is False and "fill_missing" in saved
    for read in (
        AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=False),
        AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True),
        ViTMAERobustImageProcessor.from_pretrained(tmp_path),
    ):
        assert type(read) is ViTMAERobustImageProcessor and read.band_form == form
        assert dict(read.size) == dict(processor.size) and dict(read.crop_size) == dict(processor.crop_size)
        assert read.show_bands == [3, 0, 4] and read.to_dict() == processor.to_dict()
    plain = band_processor(BandForm(), 32)
    plain.save_pretrained(tmp_path / "plain")
    assert AutoImageProcessor.from_pretrained(tmp_path / "plain").band_form == BandForm()


# Argument: the folder that holds model/, images.safetensors and a file.
FRESH_PROCESS = """
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel

folder = Path(sys.argv[1])
try:
    AutoImageProcessor.from_pretrained(folder / "model")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("the code ran unasked")
processor = AutoImageProcessor.from_pretrained(folder / "model", trust_remote_code=True)
model = AutoModel.from_pretrained(folder / "model", trust_remote_code=True)
images = list(load_file(folder / "images.safetensors")["images"].numpy())
inputs = processor(images, return_tensors="pt")
of_file = processor(folder / "image.npy", fill_missing=False, return_tensors="pt").pixel_values
features = model(**inputs).last_hidden_state.detach()
save_file({"pixel_values": inputs.pixel_values, "of_file": of_file, "features": features}, folder / "found.safetensors")
processor.save_pretrained(folder / "again")
assert not [name for name in sys.modules if name.startswith("hf_mae_robust")]
"""


def test_it_works_where_the_package_is_not_installed(tmp_path):
    model = ViTMAERobustForPreTraining(tiny_config()).eval()
    processor = band_processor(FORM, 32)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    images = np.stack([stored(seed=seed) for seed in range(2)])
    save_file({"images": torch.from_numpy(images.astype(np.int32))}, tmp_path / "images.safetensors")
    np.save(tmp_path / "image.npy", images[0])
    run_without_the_package(FRESH_PROCESS, tmp_path, str(tmp_path))

    found = load_file(tmp_path / "found.safetensors")
    expected = torch.stack([evaluated(FORM, processor, pixels) for pixels in images])
    torch.testing.assert_close(found["pixel_values"], expected.nan_to_num(0.0), rtol=1e-6, atol=1e-6)
    assert found["of_file"].numpy()[0].tobytes() == expected[0].numpy().tobytes()
    with torch.no_grad():
        features = model.vit(found["pixel_values"]).last_hidden_state
    torch.testing.assert_close(found["features"], features)
    # Also as saved by a process that knew only the copied files.
    for folder in ("model", "again"):
        assert CODE_FILES.issubset(file.name for file in (tmp_path / folder).glob("*.py"))
