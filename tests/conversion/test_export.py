"""Exported models compute what the original does, in classes that know nothing of this package."""

import json

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    TimmWrapperModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEModel,
    ViTModel,
)

from hf_mae_robust import ViTMAERobustForPreTraining, ViTMAERobustModel
from hf_mae_robust.__main__ import main
from hf_mae_robust.conversion.beit import mae_beit_config
from hf_mae_robust.conversion.export import export
from hf_mae_robust.conversion.original import from_original, read_original, to_original
from hf_mae_robust.conversion.stock import to_stock
from hf_mae_robust.data.preprocessing import evaluation_processor
from tests.band_data import MEAN, band_config, rows_of_bands, write_band_encoder
from tests.fresh import run_without_the_package
from tests.helpers import photos
from tests.model_helpers import ALL_ON, build, images, stock_of

EXACT = {"rtol": 0, "atol": 1e-5}
SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 72, "num_labels": 5, "id2label": dict(enumerate(["ant", "bee", "cat", "dog", "eel"]))}


def perturb(model, scale=0.2):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def classifier(pooling="mean", **settings):
    config = mae_beit_config(**{**SIZES, "use_mean_pooling": pooling == "mean", **settings})
    return perturb(BeitForImageClassification(config))


def features(model, pixel_values):
    """Of the whole, unmasked image."""
    with torch.no_grad():
        return getattr(model, "vit", model).eval()(pixel_values).last_hidden_state


def logits(model, pixel_values):
    with torch.no_grad():
        return model.eval()(pixel_values).logits


def loaded(model_class, folder, **options):
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pre-training checkpoint with all three ingredients, and its folder."""
    torch.manual_seed(0)
    model = build(**ALL_ON)
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    model.save_pretrained(folder)
    return model.eval(), folder


@pytest.fixture(scope="module", params=["mean", "cls"])
def finetuned(request, tmp_path_factory):
    """A classifier with an image processor of its own, and its folder."""
    torch.manual_seed(1)
    model = classifier(request.param)
    folder = tmp_path_factory.mktemp("finetuned") / "model"
    model.save_pretrained(folder)
    evaluation_processor(32, 0.8, 3, [0.4, 0.5, 0.6], [0.3, 0.2, 0.1]).save_pretrained(folder)
    return model, folder


def test_encoder_in_every_class(pretrained, tmp_path):
    model, folder = pretrained
    pixel_values = images(3)
    expected = features(model, pixel_values)
    left_out = ["the decoder", "the patch statistics of the target", "the mid-level mask token"]
    for target in ("beit", "vit", "timm"):
        assert export(folder, tmp_path / target, target) == left_out
        assert (
            not list((tmp_path / target).glob("*.py"))
            and "auto_map" not in (tmp_path / target / "config.json").read_text()
        )
    for exported in (
        loaded(BeitModel, tmp_path / "beit"),
        loaded(ViTModel, tmp_path / "vit", add_pooling_layer=False),
        loaded(TimmWrapperModel, tmp_path / "timm"),
    ):
        torch.testing.assert_close(features(exported, pixel_values), expected, **EXACT)
    reference = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(reference.forward_features(pixel_values), expected, **EXACT)
        torch.testing.assert_close(reference(pixel_values), expected[:, 0], **EXACT)
    for name in ("beit", "vit"):
        processor = AutoImageProcessor.from_pretrained(tmp_path / name)
        assert (processor.size["shortest_edge"], processor.crop_size["width"]) == (36, 32)


@pytest.mark.parametrize("form", ["encoder of ours", "stock", "stock encoder", "beit"])
def test_other_encoders(form, tmp_path):
    model = build()
    expected = features(model, images := torch.randn(2, 3, 32, 32))
    if form == "encoder of ours":
        model = model.vit
    elif form == "beit":
        model = to_stock(model, "beit")
    elif form == "stock":
        model = stock_of(model)
    else:
        stock, state_dict = ViTMAEModel(stock_of(model).config), model.vit.state_dict()
        stock.load_state_dict(state_dict)
        model = stock
    model.save_pretrained(tmp_path / "model")
    left_out = ["the decoder"] if form == "stock" else []
    assert export(tmp_path / "model", tmp_path / "beit", "beit") == left_out
    torch.testing.assert_close(features(loaded(BeitModel, tmp_path / "beit"), images), expected, **EXACT)
    assert export(tmp_path / "model", tmp_path / "vit", "vit") == left_out
    vit = loaded(ViTModel, tmp_path / "vit", add_pooling_layer=False)
    torch.testing.assert_close(features(vit, images), expected, **EXACT)
    export(tmp_path / "model", tmp_path / "model.pth", "original")
    decoder = {"decoder_num_attention_heads": 4} if form == "stock" else {}
    back = from_original(read_original(tmp_path / "model.pth"), 4, **decoder)
    assert type(back) is (ViTMAERobustForPreTraining if form == "stock" else ViTMAERobustModel)
    torch.testing.assert_close(features(back, images), expected, **EXACT)


def test_classifier_in_every_class(finetuned, tmp_path):
    model, folder = finetuned
    pixel_values = images(3)
    expected = logits(model, pixel_values)
    is_mean = model.config.use_mean_pooling
    assert export(folder, tmp_path / "beit", "beit") == []
    exported = loaded(AutoModelForImageClassification, tmp_path / "beit")
    assert type(exported) is BeitForImageClassification and exported.config.id2label == model.config.id2label
    torch.testing.assert_close(logits(exported, pixel_values), expected, **EXACT)

    assert export(folder, tmp_path / "timm", "timm") == []
    exported = loaded(AutoModelForImageClassification, tmp_path / "timm")
    assert exported.config.id2label == model.config.id2label
    torch.testing.assert_close(logits(exported, pixel_values), expected, **EXACT)
    reference = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(reference(pixel_values), expected, **EXACT)
    assert isinstance(reference.fc_norm, torch.nn.LayerNorm) is is_mean
    assert reference.pretrained_cfg["num_classes"] == 5 and reference.pretrained_cfg["label_names"][1] == "bee"

    assert "the names of the classes" in export(folder, tmp_path / "model.pth", "original")
    original = torch.load(tmp_path / "model.pth", weights_only=True)["model"]
    reference.load_state_dict(original)  # strict
    torch.testing.assert_close(logits(from_original(original, 4), pixel_values), expected, **EXACT)
    assert not original["blocks.2.attn.qkv.bias"][32:64].any() and original["blocks.2.attn.qkv.bias"][:32].all()

    if is_mean:
        with pytest.raises(
            ValueError, match="mean of the patch tokens, and the stock ViT classifies from the CLS token"
        ):
            export(folder, tmp_path / "vit", "vit")
    else:
        assert export(folder, tmp_path / "vit", "vit") == []
        exported = loaded(AutoModelForImageClassification, tmp_path / "vit")
        assert type(exported) is ViTForImageClassification and exported.config.id2label == model.config.id2label
        torch.testing.assert_close(logits(exported, pixel_values), expected, **EXACT)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_golden_classifier(golden_dir, tmp_path):
    golden = load_file(golden_dir / "official_cls_globalpool_tiny.safetensors")
    from_original(read_original(golden_dir / "official_cls_globalpool_tiny.pth"), 3).save_pretrained(tmp_path / "model")
    for target in ("beit", "timm"):
        export(tmp_path / "model", tmp_path / target, target)
        exported = loaded(AutoModelForImageClassification, tmp_path / target)
        torch.testing.assert_close(logits(exported, golden["pixel_values"]), golden["logits"], **EXACT)


WITHOUT_THE_PACKAGE = """
import json, sys, torch
from PIL import Image
from transformers import pipeline

image, answers = Image.open(sys.argv[1]), {}
for folder in sys.argv[2:]:
    torch.manual_seed(0)
    is_encoder = "encoder" in folder
    pipe = pipeline("image-feature-extraction" if is_encoder else "image-classification", folder, device="cpu")
    answers[folder] = pipe(image) if is_encoder else pipe(image, top_k=5, function_to_apply="none")
print(json.dumps(answers))
"""


def test_pipelines_where_the_package_is_not_importable(pretrained, tmp_path):
    """All in one process. The image is not square and has to be resized."""
    model, folder = pretrained
    image = Image.fromarray(photos(1, size=200)[0][:120])
    image.save(tmp_path / "image.png")
    heads = {pooling: classifier(pooling) for pooling in ("mean", "cls")}
    expected = {}

    def add(source, target, value):
        name = str(tmp_path / f"{source.name}-{target}")
        export(source, name, target)
        processor = (
            AutoImageProcessor.from_pretrained(source) if (source / "preprocessor_config.json").exists() else None
        )
        processor = processor or evaluation_processor(32)
        pixel_values = processor(image, return_tensors="pt").pixel_values
        if target == "timm":  # resizes by PIL, as the official evaluation does
            transform = create_transform(**resolve_model_data_config(timm.create_model(f"local-dir:{name}")))
            assert (transform(image) - pixel_values[0]).abs().max() < 3 / 255 / 0.1
            pixel_values = transform(image)[None]
        expected[name] = value(pixel_values)

    (tmp_path / "encoder").symlink_to(folder)
    for target in ("beit", "vit", "timm"):
        add(tmp_path / "encoder", target, lambda pixels: features(model, pixels)[0])
    for pooling, head in heads.items():
        head.save_pretrained(tmp_path / pooling)
        evaluation_processor(32, 0.8, 3, [0.4, 0.5, 0.6], [0.3, 0.2, 0.1]).save_pretrained(tmp_path / pooling)
        for target in ("beit", "timm") if pooling == "mean" else ("beit", "vit", "timm"):
            add(tmp_path / pooling, target, lambda pixels, head=head: logits(head, pixels)[0])

    printed = run_without_the_package(WITHOUT_THE_PACKAGE, tmp_path, tmp_path / "image.png", *expected)
    answers = json.loads(printed.splitlines()[-1])
    assert len(answers) == 8
    for name, value in expected.items():
        answer = answers[name]
        if "encoder" not in name:
            scores = {entry["label"]: entry["score"] for entry in answer}
            answer = [[scores[label] for label in SIZES["id2label"].values()]]
        torch.testing.assert_close(torch.tensor(answer)[0], value, **EXACT)


@pytest.mark.parametrize(
    ("image_size", "crop_pct", "resized"),
    [(32, 0.875, 36), (96, 0.7, 137), (48, 1.0, 48), (40, 0.75, 53), ((32, 64), 0.8, (40, 80))],
)
def test_sizes_in_the_terms_of_timm(tmp_path, image_size, crop_pct, resized):
    """Where its formula, floor(side / crop_pct), would round to a pixel less, too."""
    model = build(image_size=image_size).vit
    model.save_pretrained(tmp_path / "model")
    evaluation_processor(image_size, crop_pct).save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "timm", "timm")
    config = resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}/timm"))
    resize, crop, *_ = create_transform(**config).transforms
    assert resize.size == resized and resize.interpolation.value == "bicubic"
    assert tuple(crop.size) == (image_size if isinstance(image_size, tuple) else (image_size, image_size))


def test_a_squashing_processor_goes_along(tmp_path):
    model = classifier("cls")
    model.save_pretrained(tmp_path / "model")
    processor = ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.3] * 3, resample=3
    )
    processor.save_pretrained(tmp_path / "model")
    picture = Image.fromarray(photos(1, size=60)[0][:40])
    expected = processor(picture, return_tensors="pt").pixel_values
    export(tmp_path / "model", tmp_path / "vit", "vit")
    copied = AutoImageProcessor.from_pretrained(tmp_path / "vit")
    assert torch.equal(copied(picture, return_tensors="pt").pixel_values, expected)
    export(tmp_path / "model", tmp_path / "timm", "timm")
    transform = create_transform(**resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}/timm")))
    assert (transform(picture) - expected[0]).abs().max() < 3 / 255 / 0.3

    processor.do_normalize = False
    processor.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "unnormalised", "timm")
    transform = create_transform(**resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}/unnormalised")))
    expected = processor(picture, return_tensors="pt").pixel_values
    assert (transform(picture) - expected[0]).abs().max() < 3 / 255
    processor.do_resize = False
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="timm cannot do what this image processor does .do_resize=False"):
        export(tmp_path / "model", tmp_path / "timm2", "timm")
    evaluation_processor(24).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"where the model takes \(32, 32\)"):
        export(tmp_path / "model", tmp_path / "timm2", "timm")


def test_images_and_patches_that_are_not_square(tmp_path):
    model = build(image_size=(32, 48), patch_size=(8, 16), num_channels=1)
    model.save_pretrained(tmp_path / "model")
    pixel_values = images(2, 32, 48, channels=1)
    expected = features(model, pixel_values)
    torch.testing.assert_close(features(to_stock(model, "vit"), pixel_values), expected, **EXACT)
    with pytest.raises(ValueError, match=r"image_size=\(32, 48\).* square grid"):
        to_stock(model, "beit")
    export(tmp_path / "model", tmp_path / "timm", "timm")
    reference = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(reference.forward_features(pixel_values), expected, **EXACT)
    assert reference.pretrained_cfg["mean"] == [0.5] and reference.pretrained_cfg["input_size"] == (1, 32, 48)
    square = build(patch_size=(8, 16))
    pixel_values = images(2)
    torch.testing.assert_close(
        features(to_stock(square, "beit"), pixel_values), features(square, pixel_values), **EXACT
    )


def test_to_stock_copies_and_keeps_the_type():
    model = build().bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stock = to_stock(model, "vit")
    assert stock.dtype == torch.bfloat16 and not stock.training
    assert torch.equal(stock.layers[1].attention.k_proj.bias, model.vit.layers[1].attention.k_proj.bias)
    perturb(stock)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_training_settings_are_named_and_the_epsilon_goes_along(tmp_path):
    model = classifier("cls", drop_path_rate=0.1, hidden_dropout_prob=0.2, layer_norm_eps=1e-12)
    model.save_pretrained(tmp_path / "model")
    rates = "hidden_dropout_prob=0.2, drop_path_rate=0.1 (training only)"
    assert export(tmp_path / "model", tmp_path / "vit", "vit") == [rates]
    vit = loaded(ViTForImageClassification, tmp_path / "vit")
    assert vit.config.layer_norm_eps == 1e-12 and vit.config.hidden_dropout_prob == 0
    timm_left_out = export(tmp_path / "model", tmp_path / "timm", "timm")
    assert timm_left_out == [rates, "layer_norm_eps=1e-12 (1e-06 there; a difference of rounding)"]
    classifier("cls", layer_norm_eps=1e-5).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="layer_norm_eps=1e-05: timm's ViT and the official code have 1e-06"):
        export(tmp_path / "other", tmp_path / "timm2", "timm")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_scale_init_value": 0.1}, r"not a plain ViT as MAE's is \(layer_scale_init_value=0.1\)"),
        ({"use_relative_position_bias": True}, "use_relative_position_bias=True"),
        ({"use_shared_relative_position_bias": True}, "use_shared_relative_position_bias=True"),
        ({"use_absolute_position_embeddings": False}, "use_absolute_position_embeddings=False"),
        ({"use_mask_token": True}, "use_mask_token=True"),
    ],
)
@pytest.mark.parametrize("target", ["beit", "vit"])
def test_other_beits_are_refused(settings, message, target):
    with pytest.raises(ValueError, match=message):
        to_stock(classifier(**settings), target)


def test_other_models_are_refused(tmp_path):
    beit = mae_beit_config(**SIZES)
    with pytest.raises(ValueError, match="BeitModel with use_mean_pooling=True"):
        to_stock(BeitModel(beit), "vit")
    with pytest.raises(ValueError, match="ViTModel cannot be exported"):
        to_stock(ViTModel(ViTConfig(**SIZES)), "beit")
    with pytest.raises(ValueError, match="to_stock knows 'beit' and 'vit'"):
        to_stock(BeitModel(beit), "timm")
    BeitForMaskedImageModeling(BeitConfig(**SIZES, vocab_size=7)).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="its config.json names BeitForMaskedImageModeling; one of ViTMAERobust"):
        export(tmp_path / "model", tmp_path / "out", "beit")
    with pytest.raises(ValueError, match="must be one of beit, vit, timm, original"):
        export(tmp_path / "model", tmp_path / "out", "deit")
    with pytest.raises(FileNotFoundError, match="nowhere: no folder with a config.json"):
        export(tmp_path / "nowhere", tmp_path / "out", "beit")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_pretraining_parts_have_no_place_in_the_official_layout(pretrained, tmp_path):
    with pytest.raises(ValueError, match=r"no place for target_normalizer\.mean"):
        export(pretrained[1], tmp_path / "model.pth", "original")
    assert not list(tmp_path.iterdir())
    plain = build()
    plain.save_pretrained(tmp_path / "plain")
    assert export(tmp_path / "plain", tmp_path / "deep" / "model.pth", "original") == [
        "the image processor",
        "the number of heads (4)",
    ]
    written = read_original(tmp_path / "deep" / "model.pth")
    assert all(torch.equal(tensor, written[key]) for key, tensor in to_original(plain).items())


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_incomplete_checkpoints_are_refused(finetuned, tmp_path, change):
    model, folder = finetuned
    model.save_pretrained(tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    name = next(name for name in tensors if ".1." in name and "output.dense.bias" in name)
    if change == "unknown":
        tensors["beit.extra.weight"] = torch.ones(3)
    else:
        tensor = tensors.pop(name)
        if change == "shape":
            tensors[name] = tensor[:-1].clone()
    save_file(tensors, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    message = {"missing": r"missing keys: .*layers\.1\..*bias", "unknown": "unexpected keys: beit.extra.weight"}
    with pytest.raises(ValueError, match=message.get(change, "do not fit its config.json")):
        export(tmp_path / "model", tmp_path / "out", "beit")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        (0.5, ValueError, "its weights are truncated or damaged"),
        (None, FileNotFoundError, "its weights cannot be read"),
    ],
)
def test_damaged_weights_are_refused(tmp_path, keep, error, message):
    classifier().save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink() if keep is None else weights.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(error, match=message):
        export(tmp_path / "model", tmp_path / "out", "timm")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(pretrained, tmp_path, monkeypatch):
    folder = pretrained[1]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file.pth").write_text("mine")
    for out, to in (("full", "beit"), ("full", "timm"), ("file.pth", "original"), ("file.pth", "vit")):
        with pytest.raises(FileExistsError, match=f"{out} exists and is not an empty folder"):
            export(folder, tmp_path / out, to)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError, match="the official form is one file"):
        export(folder, tmp_path / "empty", "original")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("hf_mae_robust.conversion.export.save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            export(folder, tmp_path / "empty", "timm")
    assert not list((tmp_path / "empty").iterdir())
    export(folder, tmp_path / "empty", "timm")
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file.pth", "empty"}
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"config.json", "model.safetensors"}


def test_command(finetuned, tmp_path, capsys):
    model, folder = finetuned
    main(["export", str(folder), str(tmp_path / "model.pth"), "--to", "original"])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith(
        "original; left out: the image processor, the number of heads (4), the names of the classes"
    )
    with pytest.raises(SystemExit) as stop:
        main(["export", str(folder), str(tmp_path / "model.pth"), "--to", "original"])
    assert stop.value.code == 2 and "exists and is not an empty folder" in capsys.readouterr().err


# ---- images of bands ----


def band_classifier(folder):
    """With the image processor of a band model beside it, as run_finetune.py leaves it."""
    write_band_encoder(folder)
    config = band_config()
    settings = {"num_channels": 5, "image_size": config.image_size, "patch_size": config.patch_size}
    classifier(**settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("to", ["beit", "vit", "timm", "original"])
def test_encoders_of_bands(to, tmp_path, band_encoder_dir):
    model = ViTMAERobustForPreTraining.from_pretrained(band_encoder_dir)
    left_out = export(band_encoder_dir, tmp_path / "out", to)
    rows = rows_of_bands(2)["image"]
    own = AutoImageProcessor.from_pretrained(band_encoder_dir, trust_remote_code=True)
    pixel_values = own(rows, return_tensors="pt").pixel_values
    expected = features(model, pixel_values)
    says = [words for words in left_out if "AutoImageProcessor with trust_remote_code" in words]
    assert bool(says) is (to in ("timm", "original"))
    if to == "original":
        exported = from_original(read_original(tmp_path / "out"), 2, 2)
        torch.testing.assert_close(features(exported, pixel_values), expected, **EXACT)
        return
    folder = tmp_path / "out" / ("image_processor" if to == "timm" else "")
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor).__name__ == "ViTMAERobustImageProcessor"
    assert torch.equal(processor(rows, return_tensors="pt").pixel_values, pixel_values)
    if to == "timm":
        exported = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(exported.forward_features(pixel_values), expected, **EXACT)
        # Means in other units would be taken for those of values in [0, 1].
        form = resolve_model_data_config(exported)
        assert list(form["mean"]) == [0.0] * 5 and list(form["std"]) == [1.0] * 5
    else:
        model_class = {"beit": BeitModel, "vit": ViTModel}[to]
        exported = model_class.from_pretrained(tmp_path / "out", add_pooling_layer=False)
        torch.testing.assert_close(features(exported, pixel_values), expected, **EXACT)


def test_classifiers_of_bands_go_to_timm_and_back(tmp_path):
    folder = band_classifier(tmp_path / "model")
    export(folder, tmp_path / "timm", "timm")
    model = BeitForImageClassification.from_pretrained(folder).eval()
    exported = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    pixel_values = torch.randn(2, 5, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(exported(pixel_values), model(pixel_values).logits, **EXACT)
    main(["convert", str(tmp_path / "timm"), str(tmp_path / "back")])
    back = AutoModelForImageClassification.from_pretrained(tmp_path / "back").eval()
    torch.testing.assert_close(back(pixel_values).logits, model(pixel_values).logits, **EXACT)
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "back", trust_remote_code=True).image_mean) == MEAN


@pytest.mark.parametrize("through", [None, "vit"])
def test_band_models_that_are_converted_keep_their_units(through, tmp_path, band_encoder_dir):
    if through is not None:
        export(band_encoder_dir, tmp_path / through, through)
    main(["convert", str(tmp_path / through if through else band_encoder_dir), str(tmp_path / "out")])
    model_class = ViTMAERobustModel if through else ViTMAERobustForPreTraining
    model, own = (model_class.from_pretrained(place) for place in (tmp_path / "out", band_encoder_dir))
    assert model.config.band_settings() == own.config.band_settings() and model.config.is_band_model
    pixel_values = torch.randn(2, 5, 16, 16)
    torch.testing.assert_close(features(model, pixel_values), features(own, pixel_values), **EXACT)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert processor.band_form == AutoImageProcessor.from_pretrained(band_encoder_dir, trust_remote_code=True).band_form


def test_what_an_official_file_does_not_say_of_the_target_is_named(tmp_path, capsys):
    build(norm_pix_loss=False, target_normalization="none", image_size=(16, 32)).save_pretrained(tmp_path / "model")
    main(["export", str(tmp_path / "model"), str(tmp_path / "mae.pth"), "--to", "original"])
    printed = capsys.readouterr().out
    assert "norm_pix_loss=False, target_normalization=none, the image size (16 x 32)" in printed


def test_the_encoder_of_a_model_of_all_ingredients_goes_to_the_official_code(tmp_path, capsys):
    model = build(**ALL_ON)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "model"), str(tmp_path / "mae.pth"), "--to", "original"])
    assert "export its encoder alone" in capsys.readouterr().err
    ViTMAERobustModel.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "encoder")
    main(["export", str(tmp_path / "encoder"), str(tmp_path / "mae.pth"), "--to", "original"])
    assert "the mid-level mask token" in capsys.readouterr().out
    found = from_original(read_original(tmp_path / "mae.pth"), model.config.num_attention_heads).eval()
    pixels = images()
    torch.testing.assert_close(features(found, pixels), features(model, pixels), **EXACT)
