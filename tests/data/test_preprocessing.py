import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torch.nn.functional import interpolate
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2.functional import resized_crop
from transformers import AutoImageProcessor

from hf_mae_robust import ViTMAERobustConfig
from hf_mae_robust.data.preprocessing import (
    EvaluationTransform,
    Normalization,
    RandomCrop,
    Transform,
    band_processor,
    evaluation_processor,
    in_two_steps,
    training_transform,
)
from hf_mae_robust.model.bands_vit_mae_robust import BandForm


def picture(height=300, width=400):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([y % 256, x % 256, (x + y) // 3 % 256], axis=-1).astype(np.uint8))


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_processor_does_the_official_evaluation():
    """Resize the short side to 256 bicubic, centre crop 224, ImageNet statistics: as torchvision does on PIL images."""
    image = picture()
    official = v1.Compose(
        [
            v1.Resize(256, interpolation=v1.InterpolationMode.BICUBIC),
            v1.CenterCrop(224),
            v1.ToTensor(),
            v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )(image)
    ours = evaluation_processor(224)(image, return_tensors="pt").pixel_values[0]
    # Within 3 of 255 grey levels: torchvision's tensor and PIL resizing round differently.
    assert (ours - official).abs().max() < 3 / 255 / 0.224


def test_processor_is_found_by_auto_class(tmp_path):
    evaluation_processor(32, crop_pct=1.0).save_pretrained(tmp_path)
    values = AutoImageProcessor.from_pretrained(tmp_path)(picture(50, 40), return_tensors="pt").pixel_values
    assert values.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(("image_size", "channels"), [(32, 3), ([32, 64], 3), (32, 1)])
def test_evaluation_transform_is_the_processor_without_normalisation(image_size, channels):
    config = ViTMAERobustConfig(image_size=image_size, patch_size=16, num_channels=channels)
    form = channels, config.image_mean, config.image_std
    processor = evaluation_processor(image_size, 0.8, *form)
    image = to_tensor(picture())[:channels]
    transformed = EvaluationTransform(processor)(image)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    assert transformed.shape == (channels, height, width) and transformed.dtype == torch.uint8
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (config.image_mean, config.image_std))
    expected = processor(images=image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close((transformed / 255 - mean) / std, expected, atol=1e-5, rtol=1e-5)


def test_images_smaller_than_a_patch_are_enlarged():
    tiny = to_tensor(picture(1, 3))
    assert EvaluationTransform(evaluation_processor(32))(tiny).shape == (3, 32, 32)
    assert training_transform(32)(tiny).shape == (3, 32, 32)


def test_training_crops_cover_the_areas_asked_for():
    """The crop of a linear ramp tells its width: its values span that share of the ramp."""
    ramp = torch.arange(256, dtype=torch.uint8).expand(3, 256, 256).contiguous()
    torch.manual_seed(0)
    transform = training_transform(64, crop_scale=(0.5, 1.0), horizontal_flip=True)
    crops = [transform(ramp)[0, 0].float() for _ in range(300)]
    widths = torch.tensor([(crop.max() - crop.min()).item() / 255 for crop in crops])
    # Between sqrt(0.5 * 3/4) and 1, up to resampling at the ends.
    assert widths.min() > 0.58 and widths.max() <= 1.0
    flipped = sum((crop[-1] < crop[0]).item() for crop in crops)
    assert 110 < flipped < 190
    never = training_transform(64, horizontal_flip=False)
    assert all(never(ramp)[0, 0, 0] < never(ramp)[0, 0, -1] for _ in range(30))


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.6, 0.5), (0.5, 1.2)])
def test_wrong_crop_scale_is_refused(scale):
    with pytest.raises(ValueError, match="crop_scale"):
        training_transform(32, scale)


@pytest.mark.parametrize("crop_pct", [0, 1.5, -1])
def test_wrong_crop_pct_is_refused(crop_pct):
    with pytest.raises(ValueError, match="crop_pct"):
        evaluation_processor(224, crop_pct)


@pytest.mark.parametrize("shape", [(3, 3, 4000), (3, 4000, 3), (3, 1, 300)])
def test_narrow_images_are_evaluated_without_enlarging_all_of_them(shape):
    """4000 x 3 pixels would become 341,333 x 256; what the centre crop keeps is the same to rounding."""
    processor = evaluation_processor(224, 0.875)
    image = torch.randint(0, 256, shape, dtype=torch.uint8)
    sizes = []

    def resize(image, *args, **kwargs):
        sizes.append(max(image.shape[-2:]))
        return original(image, *args, **kwargs)

    original, processor.resize = processor.resize, resize
    assert EvaluationTransform(processor)(image).shape == (3, 224, 224)
    assert max(sizes) <= 8 * min(shape[1:])


@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.5, 1.0), (0.9, 1.0)])
@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (30, 400), (400, 30), (32, 32), (1, 1), (1, 9)])
def test_crops_are_distributed_as_those_of_torchvision(height, width, scale):
    """Areas, aspect ratios and places of 4,000 crops, by the two-sample test of Kolmogorov and Smirnov."""
    torch.manual_seed(0)
    transform, image = training_transform(32, scale), torch.empty(1, height, width)
    ours = np.array([transform.region(height, width) for _ in range(4000)])
    peer = np.array([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(4000)])
    for crops in (ours, peer):
        assert (crops[:, 2:] >= 1).all() and (crops[:, :2] >= 0).all()
        assert (crops[:, 0] + crops[:, 2] <= height).all() and (crops[:, 1] + crops[:, 3] <= width).all()
    features = [
        {"area": c[:, 2] * c[:, 3], "ratio": c[:, 3] / c[:, 2], "top": c[:, 0], "left": c[:, 1]} for c in (ours, peer)
    ]
    for name in features[0]:
        assert ks_2samp(features[0][name], features[1][name]).pvalue > 1e-4, name


def test_the_pixels_of_a_crop_are_those_of_torchvision():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 75, 100), dtype=torch.uint8)
    transform = training_transform((32, 48))
    flipped = 0
    for seed in range(20):
        torch.manual_seed(seed)
        box = transform.region(75, 100)
        expected = resized_crop(image, *box, [32, 48], interpolation=InterpolationMode.BICUBIC, antialias=True)
        torch.manual_seed(seed)
        got = transform(image)
        flipped += not torch.equal(got, expected)
        assert torch.equal(got, expected) or torch.equal(got, expected.flip(-1))
    assert 4 <= flipped <= 16


def test_any_function_is_a_transform_of_the_whole_image_and_one_in_two_steps_stays_itself():
    crop = training_transform(16)
    assert in_two_steps(crop) is crop
    whole = in_two_steps(lambda image, *label: (image + 1, *label))
    assert isinstance(whole, Transform) and whole.region(30, 20) == (0, 0, 30, 20)
    pixels = torch.arange(12).view(1, 3, 4)
    changed, label = whole.finish(pixels, "a map")
    assert torch.equal(changed, pixels + 1) and label == "a map"


@pytest.mark.parametrize("size", [(9, 9), (32, 32), (31, 64)])
def test_interpolation_to_the_size_that_an_image_has_changes_nothing(size):
    """What `finish` leaves out."""
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    for same in (image, image.float() * 1.1 - 3):
        assert torch.equal(interpolate(same[None], size, mode="bicubic", antialias=True)[0], same)
        torch.manual_seed(0)
        assert torch.equal(RandomCrop(size, (1.0, 1.0), False).finish(same), same)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13, 200])
@pytest.mark.parametrize("size", [(9, 9), (1, 1), (40, 33), (5, 60)])
def test_normalised_floats_of_any_number_of_bands_are_resized_band_by_band(channels, size):
    image = torch.randn(channels, *size)
    processor = evaluation_processor(16, 0.875, channels, [0.5] * channels, [0.5] * channels)
    found = EvaluationTransform(processor)(image)
    assert found.shape == (channels, 16, 16) and found.dtype == torch.float32
    gray = EvaluationTransform(evaluation_processor(16, 0.875, 1, [0.5], [0.5]))
    expected = torch.cat([gray(band[None]) for band in image])
    torch.testing.assert_close(found, expected)
    crop = training_transform(16)(image)
    assert crop.shape == (channels, 16, 16) and crop.isfinite().all()


def test_missing_pixels_of_floats_stay_missing_and_leave_the_others_alone():
    """A third of the columns is missing. Far from it the pixels are those of the image without a hole; next to it the
    hole counts as 0, and it keeps its place."""
    image = torch.randn(5, 48, 48).repeat_interleave(2, -1)
    holed = image.clone()
    holed[..., :32] = torch.nan
    transforms = [EvaluationTransform(evaluation_processor(24, 1.0, 5, [0.5] * 5, [0.5] * 5))]
    transforms += [RandomCrop((24, 24), (1.0, 1.0), False).finish]
    for transform, missing in zip(transforms, (4, 8)):
        whole, found, empty = transform(image), transform(holed), transform(holed.nan_to_num(0.0))
        # The centre crop of 96 x 48 keeps columns 24 to 72, of which 8 of 48 are missing.
        assert torch.equal(found.isnan(), (torch.arange(24) < missing).expand(5, 24, 24))
        assert torch.equal(found[..., missing:], empty[..., missing:])
        torch.testing.assert_close(found[..., missing + 3 :], whole[..., missing + 3 :])


def test_missing_pixels_may_differ_from_band_to_band_and_unresized_numbers_are_exact():
    image = torch.randn(3, 24, 24)
    image[1, 3:9, 5] = torch.nan
    for transform in (
        EvaluationTransform(evaluation_processor(24, 1.0, 3)),
        RandomCrop((24, 24), (1.0, 1.0), False).finish,
    ):
        assert transform(image).numpy().tobytes() == image.numpy().tobytes()
    smaller = RandomCrop((12, 12), (1.0, 1.0), False).finish(image.masked_fill(torch.arange(24) < 4, torch.nan))
    assert smaller[0].isnan().sum() == 2 * 12 and smaller[1].isnan().sum() > 2 * 12
    assert EvaluationTransform(evaluation_processor(12))(torch.full((3, 9, 9), torch.nan)).isnan().all()


def test_images_from_above_are_flipped_and_turned_into_all_eight_positions():
    image = torch.arange(16.0).view(1, 4, 4)
    positions = {
        turn.numpy().tobytes() for flip in (image, image.flip(-1)) for turn in map(flip.rot90, range(4), [(1, 2)] * 4)
    }
    torch.manual_seed(0)
    for settings, number in (
        ({"rot90": True, "vertical_flip": True}, 8),
        ({"vertical_flip": True}, 2),
        ({"rot90": True}, 4),
    ):
        transform = RandomCrop((4, 4), (1.0, 1.0), False, **settings)
        found = [transform.finish(image).numpy().tobytes() for _ in range(400)]
        assert set(found) <= positions and len(set(found)) == number
        assert min(found.count(position) for position in set(found)) > 400 / number / 2
    with pytest.raises(ValueError, match="--rot90 is for square images, not for 32 x 64"):
        training_transform((32, 64), rot90=True)
    assert repr(training_transform(8, vertical_flip=True, rot90=True)).endswith(
        "horizontal flip, vertical flip, quarter turns"
    )


def test_flips_and_turns_that_are_off_draw_nothing():
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    torch.manual_seed(0)
    plain = training_transform(24)
    first = plain(image), torch.rand(())
    torch.manual_seed(0)
    box = plain.region(40, 40)
    flips = torch.rand(()) < 0.5
    expected = resized_crop(image, *box, [24, 24], interpolation=InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(first[0], expected.flip(-1) if flips else expected) and torch.equal(first[1], torch.rand(()))


@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_images_of_the_right_size_are_what_the_processor_would_give(size):
    """Without the 0.3 ms that it takes to find out."""
    transform = EvaluationTransform(evaluation_processor(size, 1.0))
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    assert transform(image) is image and torch.equal(transform._resize_and_crop(image), image)
    for other in ((40, 32), (32, 47)):
        image = torch.randint(0, 256, (3, *other), dtype=torch.uint8)
        assert torch.equal(transform(image), transform._resize_and_crop(image))
    transform.processor.do_center_crop = False
    assert transform(image[:, :32, :32]).shape[-2:] == size


def test_band_processors_belong_to_band_models_and_normalise_nothing_on_the_device():
    form = BandForm(image_mean=(100.0,) * 5, image_std=(50.0,) * 5)
    processor = band_processor(form, 16, 0.8, show_bands=[2, 1, 0])
    assert processor.band_form == form and processor.show_bands == [2, 1, 0]
    batch = torch.randn(2, 5, 16, 16)
    batch[0, :, 3] = torch.nan
    filled = Normalization(processor, torch.device("cpu"))(batch)
    assert torch.equal(filled, batch.nan_to_num(0.0)) and (filled[0, :, 3] == 0).all()
    assert Normalization(processor, torch.device("cpu"), keeps_missing=True)(batch) is batch
    stock = Normalization(evaluation_processor(16), torch.device("cpu"))
    assert stock(batch) is batch  # of 8-bit models nothing is missing
    with pytest.raises(ValueError, match="crop_pct"):
        band_processor(form, 16, 0)
