import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as rle
from torchvision.ops import masks_to_boxes

from hf_mae_robust.finetuning.detection.objects import Objects
from hf_mae_robust.finetuning.detection.transforms import (
    DetectionEvaluationTransform,
    LargeScaleJitter,
    cropped_masks,
    decode_columns,
)
from hf_mae_robust.model import ViTMAERobustDetectionImageProcessor

SIZE = (40, 60)
COLOURS = ((250, 10, 10), (10, 250, 10))


def scene(crowd=False):
    """Two rectangles, each of its own colour, on black; with `crowd` the second is a crowd region."""
    boxes = np.array([[4, 6, 24, 30], [30, 10, 54, 34]], dtype=float)
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    masks = []
    for (x0, y0, x1, y1), colour in zip(boxes.astype(int), COLOURS):
        image[:, y0:y1, x0:x1] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
        mask = np.zeros(SIZE, np.uint8, order="F")
        mask[y0:y1, x0:x1] = 1
        masks.append(rle.encode(mask))
    crowds = np.array([False, crowd])
    return image, Objects(SIZE, boxes, np.array([0, 1]), crowds, np.ones(2), tuple(masks))


def processor(side=48):
    return ViTMAERobustDetectionImageProcessor(
        size={"shortest_edge": side, "longest_edge": side}, pad_size={"height": side, "width": side}
    )


@pytest.mark.parametrize("scale", [(0.3, 0.3), (1.0, 1.0), (2.0, 2.0), (0.1, 2.0)])
@pytest.mark.parametrize("turns", [{}, {"vertical_flip": True, "rot90": True}], ids=["", "turned"])
def test_masks_and_boxes_stay_on_their_objects(scale, turns):
    transform = LargeScaleJitter(48, scale, **turns)
    seen = 0
    for seed in range(30):
        torch.manual_seed(seed)
        out = transform(*scene())
        pixels, labels = out["pixel_values"], out["labels"]
        assert pixels.shape == (3, 48, 48) and labels["masks"].shape[1:] == (48, 48)
        assert len(labels["boxes"]) == len(labels["class_labels"]) == len(labels["masks"])
        for box, label, mask in zip(labels["boxes"].int().tolist(), labels["class_labels"], labels["masks"]):
            rows, columns = np.nonzero(mask.numpy())
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            # Its own colour is where the mask is, up to a pixel at the edges.
            own = pixels[label].int() > 125
            wrong = (own != mask.bool()).sum()
            assert wrong <= 2 * (box[2] - box[0] + box[3] - box[1])
            seen += 1
        is_image = out["pixel_mask"].bool()
        assert not pixels[:, ~is_image].any() and not labels["masks"][:, ~is_image].any()
    assert seen > 15


def test_it_follows_from_torchs_random_numbers_and_flips_half():
    transform = LargeScaleJitter(48, (0.5, 1.5))

    def draw(seed):
        torch.manual_seed(seed)
        return transform(*scene())

    for seed in range(3):
        first, again = draw(seed), draw(seed)
        assert torch.equal(first["pixel_values"], again["pixel_values"])
        assert first["labels"]["seed"] == again["labels"]["seed"]
    assert draw(0)["labels"]["seed"] != draw(1)["labels"]["seed"]
    fixed = LargeScaleJitter(60, (1.0, 1.0))
    lefts = []
    for seed in range(40):
        torch.manual_seed(seed)
        lefts.append(int(fixed(*scene())["labels"]["boxes"][0, 0]))
    assert set(lefts) == {4, 60 - 24} and 8 <= lefts.count(4) <= 32
    unflipped = LargeScaleJitter(60, (1.0, 1.0), horizontal_flip=False)
    assert all(unflipped(*scene())["labels"]["boxes"][0, 0] == 4 for _ in range(10))


def test_crowd_regions_are_ignored_boxes_and_no_objects():
    labels = LargeScaleJitter(60, (1.0, 1.0), horizontal_flip=False)(*scene(crowd=True))["labels"]
    assert labels["class_labels"].tolist() == [0]
    assert labels["ignored_boxes"].tolist() == [[30, 10, 54, 34]]
    flipped = LargeScaleJitter(60, (1.0, 1.0))
    found = {tuple(flipped(*scene(crowd=True))["labels"]["ignored_boxes"][0].tolist()) for _ in range(30)}
    assert found == {(30, 10, 54, 34), (6, 10, 30, 34)}


def test_an_image_without_objects_gives_empty_ones():
    labels = LargeScaleJitter(48)(torch.zeros(3, *SIZE, dtype=torch.uint8), Objects.none(SIZE))["labels"]
    assert (
        labels["boxes"].shape == (0, 4)
        and labels["masks"].shape == (0, 48, 48)
        and labels["class_labels"].shape == (0,)
    )


def noise_masks(count=6):
    """Masks of speckles, one of them of nothing, and one of a single pixel."""
    rng = np.random.default_rng(0)
    masks = (rng.random((count, *SIZE)) < 0.02).astype(np.uint8)
    masks[1], masks[2] = 0, 0
    masks[2, 39, 59] = 1
    encoded = tuple(rle.encode(np.asfortranarray(mask)) for mask in masks)
    nothing = np.zeros(count)
    return masks, Objects(SIZE, np.zeros((count, 4)), nothing.astype(int), nothing.astype(bool), nothing, encoded)


def test_columns_are_decoded_as_the_library_does():
    masks, objects = noise_masks()
    for mask, encoded in zip(masks, objects.masks):
        for left, right in ((0, 60), (7, 8), (20, 60), (5, 5)):
            assert np.array_equal(decode_columns(encoded, left, right), mask[:, left:right])


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns"), [((0, 40, 1), (0, 60, 1)), ((10, 30, 0.5), (31, 60, 0.7)), ((0, 40, 7), (3, 9, 2))]
)
def test_masks_of_a_crop_are_whole_masks_looked_up(rows, columns, flips):
    rows, columns = (np.arange(*limits).astype(int) for limits in (rows, columns))
    masks, objects = noise_masks()
    whole = torch.from_numpy(masks[:, rows][:, :, columns])
    whole = whole.flip(-1) if flips else whole
    expected = whole[whole.flatten(1).any(dim=1).bool()]
    found, boxes, chosen = cropped_masks(objects, rows, columns, 100, flips)
    assert torch.equal(found[:, : len(rows), : len(columns)], expected) and found.sum() == expected.sum()
    assert torch.equal(boxes, masks_to_boxes(expected) + torch.tensor([0.0, 0, 1, 1]))
    assert chosen.tolist() == whole.flatten(1).any(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (48, 48), (7, 90)])
def test_evaluation_sees_what_the_image_processor_gives(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    ours = DetectionEvaluationTransform(processor())(image, Objects.none(size))
    theirs = processor()(images=[image.permute(1, 2, 0).numpy()], return_tensors="pt")
    assert torch.equal(ours["pixel_mask"], theirs.pixel_mask[0])
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (processor().image_mean, processor().image_std))
    normalised = (ours["pixel_values"] / 255 - mean) / std
    inside = ours["pixel_mask"].bool()
    assert (normalised - theirs.pixel_values[0])[:, inside].abs().max() < 0.5 / 255 / 0.2 + 1e-4
    assert inside.any(0).sum() == max(1, round(size[1] * 48 / max(size))) or max(size) == size[0]
    assert ours["labels"]["objects"].size == size


def test_ignored_boxes_turn_with_the_image():
    """A crowd region is a rectangle of its own colour: where the box is, the colour is."""
    transform, places = LargeScaleJitter(64, (1.0, 1.0), vertical_flip=True, rot90=True), set()
    for seed in range(60):
        torch.manual_seed(seed)
        out = transform(*scene(crowd=True))
        (x0, y0, x1, y1) = out["labels"]["ignored_boxes"][0].round().int().tolist()
        green = out["pixel_values"][1] > 125
        assert green[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].all()
        green[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
        assert not green.any()
        places.add((x0, y0, x1, y1))
    assert len(places) == 7  # of eight: it lies as far from its nearest side as from its nearest end


def test_normalised_bands_with_missing_pixels_are_scaled_and_padded():
    image, objects = torch.randn(7, *SIZE), scene()[1]
    image[:, :, :20] = torch.nan
    torch.manual_seed(1)
    out = LargeScaleJitter(48, (0.5, 0.5), horizontal_flip=False)(image, objects)
    values, inside = out["pixel_values"], out["pixel_mask"].bool()
    assert values.shape == (7, 48, 48) and values.dtype == torch.float32
    assert (values[:, ~inside] == 0).all() and torch.equal(values[0].isnan().any(0), torch.arange(48) < 8)
    for holed, share in ((image, 1 / 3), (image.nan_to_num(0.0), 0.0)):
        out = DetectionEvaluationTransform(processor())(holed, objects)
        values, inside = out["pixel_values"], out["pixel_mask"].bool()
        assert values.shape == (7, 48, 48) and values.dtype == torch.float32 and (values[:, ~inside] == 0).all()
        assert abs(float(values[:, inside].isnan().float().mean()) - share) < 0.02
