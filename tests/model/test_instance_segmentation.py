import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign
from transformers import AutoImageProcessor, AutoModelForInstanceSegmentation, AutoModelForObjectDetection

from hf_mae_robust.model import (
    ViTMAERobustDetectionImageProcessor,
    ViTMAERobustForInstanceSegmentation,
    ViTMAERobustInstanceSegmentationConfig,
)
from hf_mae_robust.model.modeling_vit_mae_robust_detection import RoIPooling, SeededSampler, in_crowd
from tests.fresh import run_without_the_package

TINY_DETECTOR = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "window_size": 4,
    "fpn_channels": 16,
    "box_fc_dim": 32,
    "box_num_convs": 1,
    "mask_num_convs": 1,
    "num_labels": 3,
}


def build(**changes):
    torch.manual_seed(0)
    return ViTMAERobustForInstanceSegmentation(ViTMAERobustInstanceSegmentationConfig(**{**TINY_DETECTOR, **changes}))


def target(*boxes, seed=None, **more):
    masks = torch.zeros(len(boxes), 64, 64, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = 1
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "class_labels": torch.arange(len(boxes)) % 3,
        "masks": masks,
        **more,
    }
    return found if seed is None else {**found, "seed": torch.tensor(seed)}


LABELS = [target((5, 5, 20, 20), (30, 30, 50, 60), seed=3), target(seed=4), target((0, 0, 64, 64), seed=5)]


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "changes", [{}, {"pyramid": "simple"}, {"head_norm": "batch"}, {"window_size": 0}, {"head_norm": "none"}]
)
def test_it_trains_every_parameter_and_detects(images, changes):
    model = build(**changes).train()
    outputs = model(images, labels=LABELS)
    parts = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
    assert outputs.loss.isfinite() and torch.isclose(outputs.loss, sum(outputs[part] for part in parts))
    assert torch.isclose(outputs.loss_objectness, torch.tensor(2.0).log(), atol=0.1)
    outputs.loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    found = model.eval()(images)
    assert found.scores.shape == found.labels.shape == (3, 100) and found.pred_masks.shape == (3, 100, 28, 28)
    assert (found.scores.diff(dim=1) <= 0).all() and found.labels.max() <= 2
    assert (found.pred_boxes >= 0).all() and (found.pred_boxes <= 64).all()


def test_accumulated_batches_equal_a_large_one(images):
    model = build().train()
    whole = model(images, labels=LABELS)
    parts = [model(images[i : i + 1], labels=LABELS[i : i + 1]) for i in range(3)]
    for name in ("loss", "loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"):
        assert torch.isclose(whole[name], torch.stack([part[name] for part in parts]).mean(), atol=1e-4), name


def test_of_one_image_the_losses_are_torchvisions(images):
    """Everything of one image is sampled here, so that there is no chance in it."""
    everything = {"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 10**6}
    everything |= {"rpn_positive_fraction": 1.0, "box_positive_fraction": 1.0}
    model = build(**everything).train()
    ours = model(images[:1], labels=LABELS[:1])
    captured = {}
    own = model.rpn.forward

    def keep(*arguments):
        captured["rpn"] = arguments
        captured["proposals"], losses = own(*arguments)
        return captured["proposals"], losses

    model.rpn.forward = keep
    model(images[:1], labels=LABELS[:1])
    features, targets = captured["rpn"][1], captured["rpn"][2]
    for part, kind in ((model.rpn, RegionProposalNetwork), (model.roi_heads, RoIHeads)):
        part.__dict__.pop("forward", None)
        for method in ("compute_loss", "assign_targets_to_anchors", "assign_targets_to_proposals"):
            if hasattr(kind, method):
                setattr(part, method, getattr(kind, method).__get__(part))
    sampler = model.rpn.fg_bg_sampler
    model.rpn.fg_bg_sampler = lambda labels: [[m.byte() for m in masks] for masks in sampler(labels)]
    _, theirs = model.rpn(*captured["rpn"])
    _, of_heads = model.roi_heads(features, captured["proposals"], [(64, 64)], targets)
    for name, value in {**theirs, **of_heads}.items():
        assert torch.isclose(ours[name], value, atol=1e-5), name


def test_what_is_sampled_follows_from_the_seed_of_each_image():
    sampler = SeededSampler(8, 0.5)
    labels = [torch.tensor([1.0] * 10 + [0.0] * 50 + [-1.0] * 9), torch.zeros(40)]
    sampler.seeds = [11, 12]
    positive, negative = sampler(labels)
    assert [int(mask.sum()) for mask in positive] == [4, 0] and [int(mask.sum()) for mask in negative] == [4, 8]
    assert not (positive[0] & (labels[0] != 1)).any() and not (negative[0] & (labels[0] != 0)).any()
    torch.manual_seed(5)
    sampler.seeds = [12]
    assert torch.equal(sampler(labels[1:])[1][0], negative[1])
    sampler.seeds = [13]
    assert not torch.equal(sampler(labels[1:])[1][0], negative[1])


def test_a_batch_without_any_object_trains(images):
    for norm in ("batch", "layer"):
        model = build(head_norm=norm).train()
        outputs = model(images[:2], labels=[target(), target()])
        outputs.loss.backward()
        assert outputs.loss.isfinite() and outputs.loss_mask == 0 and outputs.loss_box_reg == 0
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_tiny_objects_give_no_nan(images):
    assert build().train()(images[:1], labels=[target((5, 5, 6, 6), (63, 63, 64, 64))]).loss.isfinite()


def test_crowd_regions_make_no_negatives(images):
    boxes = torch.tensor([[0.0, 0, 10, 10], [8, 8, 18, 18], [40, 40, 50, 50]])
    assert in_crowd(boxes, torch.tensor([[0.0, 0, 12, 20]])).tolist() == [True, False, False]
    assert in_crowd(boxes, torch.tensor([[0.0, 0, 15, 20], [39, 39, 60, 60]])).tolist() == [True, True, True]
    assert in_crowd(boxes, torch.zeros(0, 4)).tolist() == [False] * 3
    model = build().train()
    everywhere = target(seed=1, ignored_boxes=torch.tensor([[-999.0, -999, 999, 999]]))
    outputs = model(images[:1], labels=[everywhere])
    assert outputs.loss.item() == 0.0
    outputs.loss.backward()


def test_padding_changes_nothing(images):
    model, mask = build().eval(), torch.ones(1, 64, 64)
    mask[:, 40:] = 0
    first, second = images[:1].clone(), images[:1].clone()
    second[:, :, 40:] = 7
    found, again = model(first, pixel_mask=mask), model(second, pixel_mask=mask)
    assert torch.equal(found.scores, again.scores) and found.image_sizes.tolist() == [[40, 64]]
    assert found.pred_boxes[..., 3].max() <= 40


def test_pooling_is_torchvisions_for_images_that_fill_their_input():
    """Where its guess of the steps is right; boxes of all levels."""
    features = {str(level): torch.randn(1, 2, 256 // 2**level, 256 // 2**level) for level in range(4)}
    sides = torch.tensor([3.0, 20, 50, 90, 130, 240, 300, 480, 700, 1000])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides * 0.9], dim=1)
    theirs = MultiScaleRoIAlign(list(features), 7, sampling_ratio=2)(features, [boxes], [(1024, 1024)])
    assert torch.equal(RoIPooling(7, patch_size=16)(features, [boxes], [(1024, 1024)]), theirs)


@pytest.mark.parametrize("patch_size", [4, 8, 10, 14, 16])
def test_pooling_finds_the_place_of_a_box_whatever_the_images_fill(patch_size):
    """On features that hold their own place in pixels, the mean over a box is its centre."""
    features = {}
    for level in range(4):
        step = patch_size / 4 * 2**level
        centres = (torch.arange(256 // 2**level) + 0.5) * step
        features[str(level)] = torch.stack(torch.meshgrid(centres, centres, indexing="ij"))[None]
    boxes = torch.tensor([[6.0, 8, 10, 14], [8, 12, 20, 30], [40, 44, 160, 130], [30, 40, 60, 50]]) * patch_size / 4
    pooled = RoIPooling(7, patch_size)(features, [boxes], [(3, 5)]).mean(dim=(2, 3))
    centres = (boxes[:, :2] + boxes[:, 2:]).flip(1) / 2
    # torchvision's Mask R-CNN aligns without the half cell: one level's at the most, the same for every box of it.
    levels = RoIPooling(7, patch_size).map_levels([boxes])
    assert torch.allclose(pooled, centres + (patch_size / 4 * 2.0**levels / 2)[:, None], rtol=1e-4)


def test_what_is_found_depends_on_no_other_image(images):
    """The first batch a model sees is of one image that fills little of its input, or stands beside one that fills
    it."""
    mask = torch.zeros(2, 64, 64)
    mask[0, :24], mask[1] = 1, 1
    labels = [target((5, 5, 20, 20), (30, 10, 50, 24), seed=3), target((5, 5, 20, 20), (30, 30, 50, 60), seed=4)]
    alone, beside = build(), build()
    with torch.no_grad():
        parts = [alone(images[i : i + 1], mask[i : i + 1], labels[i : i + 1]).loss for i in range(2)]
        assert torch.isclose(beside(images[:2], mask, labels).loss, torch.stack(parts).mean(), atol=1e-4)
        scores = alone.eval()(images[:1], mask[:1]).scores[0], beside.eval()(images[:2], mask).scores[0]
    assert torch.allclose(*scores, atol=1e-5)


def test_heads_compute_in_float32_under_autocast(images):
    model, seen = build().eval(), []
    model.rpn.anchor_generator.register_forward_hook(lambda module, inputs, anchors: seen.append(anchors))
    model.roi_heads.box_head.register_forward_hook(lambda module, inputs, output: seen.append([output]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(images)
    assert all(tensor.dtype == torch.float32 for tensors in seen for tensor in tensors)
    anchors, _ = seen
    model(images)
    assert all(torch.equal(a, b) for a, b in zip(anchors, seen[2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 60}, "image_size=60 is not a multiple of patch_size=8"),
        ({"num_hidden_layers": 3}, "four blocks at least"),
        ({"hidden_size": 33}, "not a multiple of num_attention_heads"),
        ({"image_mean": [0.5]}, "image_mean has 1 numbers for num_channels=3"),
        ({"fpn_channels": 0}, "fpn_channels=0: at least 1"),
        ({"rpn_num_convs": 0}, "rpn_num_convs=0: at least 1"),
        ({"anchor_scale": 0}, "anchor_scale=0: must be positive"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps=-1.0: must be positive"),
        ({"rpn_pre_nms_top_n": [10]}, r"rpn_pre_nms_top_n=\[10\]: two numbers"),
        ({"rpn_post_nms_top_n": [0, 0]}, r"rpn_post_nms_top_n=\[0, 0\]: two numbers"),
        ({"box_nms_thresh": 2.0}, "box_nms_thresh=2.0: between 0 and 1"),
        ({"box_fg_iou_thresh": 0.3}, "box_bg_iou_thresh=0.5 is above box_fg_iou_thresh=0.3"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0: at least 0, and below 1"),
        ({"image_std": [0.0, 1.0, 1.0]}, "image_std=.* must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_images_that_do_not_fit_are_refused(images):
    with pytest.raises(ValueError, match="60 x 64 pixels: not a multiple"):
        build()(images[:, :, :60])
    with pytest.raises(ValueError, match="1 labels for 3 images"):
        build()(images, labels=LABELS[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.tensor([[5.0, 5, 5, 20]])}, "a box without area"),
        ({"boxes": torch.tensor([[20.0, 20, 5, 5]])}, "a box without area"),
        ({"boxes": torch.tensor([[float("nan"), 5, 9, 20]])}, "a box without area"),
        ({"class_labels": torch.tensor([3])}, r"classes \[3\], and there are 3"),
        ({"class_labels": torch.tensor([-1])}, r"classes \[-1\], and there are 3"),
        ({"class_labels": torch.tensor([0, 1])}, "1 boxes, 2 classes"),
        ({"masks": torch.ones(1, 32, 64)}, r"masks of shape \(1, 32, 64\) for an image of 64 x 64"),
    ],
)
def test_labels_that_would_give_nan_or_be_misread_are_refused(images, changes, message):
    with pytest.raises(ValueError, match=rf"labels\[0\]: .*{message}"):
        build()(images[:1], labels=[target((5, 5, 20, 20), **changes)])


def test_outputs_come_as_a_tuple_on_request(images):
    model = build().eval()
    scores, *_, sizes = model(images[:1], return_dict=False)
    assert torch.equal(scores, model(images[:1]).scores) and sizes.tolist() == [[64, 64]]


def test_blocks_at_the_ends_of_quarters_attend_to_all():
    config = ViTMAERobustInstanceSegmentationConfig()
    assert config.ends_of_quarters == [3, 6, 9, 12]
    assert config.backbone().window_block_indices == [0, 1, 3, 4, 6, 7, 9, 10]
    large = ViTMAERobustInstanceSegmentationConfig(num_hidden_layers=24, hidden_size=1024, num_attention_heads=16)
    assert large.backbone().out_indices == [6, 12, 18, 24]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    model = build(id2label={0: "x", 1: "y", 2: "z"}, box_score_thresh=0.01).eval()
    model.save_pretrained(folder)
    ViTMAERobustDetectionImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 64}, pad_size={"height": 64, "width": 64}
    ).save_pretrained(folder)
    return model, folder


def test_it_comes_back_bit_by_bit(saved):
    model, folder = saved
    for loaded in (ViTMAERobustForInstanceSegmentation, AutoModelForObjectDetection):
        state = loaded.from_pretrained(folder).state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_heads_stay_in_float32_in_a_model_loaded_in_half_precision(saved, images):
    model = ViTMAERobustForInstanceSegmentation.from_pretrained(saved[1], dtype=torch.bfloat16).eval()
    assert model.backbone.embeddings.projection.weight.dtype == torch.bfloat16
    found, exact = model(images.bfloat16()), saved[0](images)
    assert found.pred_boxes.dtype == torch.float32 and torch.allclose(found.scores[:, 0], exact.scores[:, 0], atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["built", "cast"])
def test_heads_of_a_model_in_half_precision_are_in_float32(images, how, dtype):
    exact = build()
    if how == "built":
        torch.manual_seed(0)
        config = ViTMAERobustInstanceSegmentationConfig(**TINY_DETECTOR)
        model = ViTMAERobustForInstanceSegmentation._from_config(config, dtype=dtype)
    else:
        model = build().to(dtype)
        assert all(torch.equal(*weights) for weights in zip(model.roi_heads.parameters(), exact.roi_heads.parameters()))
    heads = [model.rescaling, model.pyramid, model.rpn, model.roi_heads]
    assert {parameter.dtype for parameter in model.backbone.parameters()} == {dtype}
    assert {parameter.dtype for head in heads for parameter in head.parameters()} == {torch.float32}
    losses = model.train()(images.to(dtype), labels=LABELS)
    losses.loss.backward()
    found = model.eval()(images.to(dtype))
    assert losses.loss.isfinite() and losses.loss.dtype == found.pred_boxes.dtype == torch.float32
    if how == "cast":
        assert torch.isclose(losses.loss, exact.train()(images, labels=LABELS).loss, rtol=0.05)


@pytest.mark.parametrize("size", [(1, 700), (700, 1), (2, 700), (1, 1), (3, 1), (48, 64), (64, 45), (87, 68), (65, 33)])
def test_images_of_any_shape_fit_the_square(size):
    """As large as in training (`fit_size`): the long side is that of the square, the other keeps the aspect ratio."""
    processor = ViTMAERobustDetectionImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 64}, pad_size={"height": 64, "width": 64}
    )
    image = np.full((3, *size), 200, np.uint8)
    inputs = processor(image, input_data_format="channels_first", return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 64, 64)
    mask = inputs.pixel_mask[0].bool()
    assert (mask.any(dim=1).sum(), mask.any(dim=0).sum()) == tuple(max(1, round(64 * s / max(size))) for s in size)


def test_results_are_in_pixels_of_the_original(saved, images):
    model, _ = saved
    processor = ViTMAERobustDetectionImageProcessor()
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    outputs = model(images[:1], pixel_mask=mask)
    (plain,) = processor.post_process_object_detection(outputs, threshold=0.0)
    (scaled,) = processor.post_process_instance_segmentation(outputs, threshold=0.0, target_sizes=[(64, 192)])
    factors = torch.tensor([3.0, 2, 3, 2])
    assert torch.allclose(plain["boxes"] * factors, scaled["boxes"], atol=1e-3)
    assert scaled["masks"].shape[1:] == (64, 192) and scaled["masks"].dtype == torch.bool
    for box, found in zip(scaled["boxes"], scaled["masks"]):
        rows, columns = np.nonzero(found.numpy())
        if len(rows):  # a mask lies within its box, up to the pixel that is drawn around it
            assert columns.min() >= box[0] - 8 and rows.max() <= box[3] + 8
    (sure,) = processor.post_process_object_detection(outputs, threshold=0.99)
    assert len(sure["scores"]) == 0


def test_the_pipeline_runs_it_where_the_package_is_not_installed(saved, tmp_path):
    code = (
        "import numpy as np, PIL.Image\n"
        "from transformers import pipeline\n"
        f"found = pipeline('object-detection', {str(saved[1])!r}, trust_remote_code=True)\n"
        "image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 90, 3), np.uint8))\n"
        "result = found(image, threshold=0.0)\n"
        "assert result and set(result[0]) == {'score', 'label', 'box'} and result[0]['label'] in 'xyz'\n"
        "assert max(r['box']['xmax'] for r in result) <= 90 and max(r['box']['ymax'] for r in result) <= 30\n"
        "print('FOUND', len(result))\n"
    )
    assert "FOUND" in run_without_the_package(code, tmp_path)


def test_auto_classes_need_no_trust_where_the_package_is_imported(saved):
    assert type(AutoImageProcessor.from_pretrained(saved[1])) is ViTMAERobustDetectionImageProcessor
    for auto in (AutoModelForObjectDetection, AutoModelForInstanceSegmentation):
        assert type(auto.from_pretrained(saved[1])) is ViTMAERobustForInstanceSegmentation
