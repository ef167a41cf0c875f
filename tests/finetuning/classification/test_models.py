"""Classifiers and frozen encoders compute what their source does, with its weights; what does not fit is refused."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    BertConfig,
    BertModel,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
    Data2VecVisionModel,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
    ViTMSNConfig,
    ViTMSNForImageClassification,
    ViTMSNModel,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from hf_mae_robust import ViTMAERobustForPreTraining
from hf_mae_robust.conversion.beit import mae_beit_config
from hf_mae_robust.conversion.frozen import load_encoder
from hf_mae_robust.conversion.original import from_original, read_original
from hf_mae_robust.conversion.source import ModelSource
from hf_mae_robust.finetune import make_parser
from hf_mae_robust.finetuning.classification.models import (
    HEAD_STD,
    PROBE_HEAD_STD,
    ClassifierSettings,
    classifier_for_evaluation,
    classifier_from_checkpoint,
    classifier_from_scratch,
    init_head,
)
from hf_mae_robust.finetuning.classification.task import ClassificationTask
from tests.model_helpers import ALL_ON, build, images, tiny_config

EXACT = {"rtol": 1e-5, "atol": 3e-5}
CLASSES = ["ant", "bee", "cat"]
SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "layer_norm_eps": 1e-5}
LABELS = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
PLAIN_BEIT = {**SIZES, "use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0, **LABELS}
BEIT = {**SIZES, "use_relative_position_bias": True, "layer_scale_init_value": 0.1, **LABELS}
DINO = {name: value for name, value in {**SIZES, **LABELS}.items() if name != "intermediate_size"}
NO_KEYS = {"qkv_bias": False}


def perturb(model):
    """So that no norm, bias, token or position could be left at its initial value unnoticed."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def stock_mae(**settings):
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    return ViTMAEForPreTraining(ViTMAEConfig(**SIZES, **decoder, **settings))


# Sources that become a BEiT. Those with a classifier have its classes.
VITS = {
    "ours": lambda: build(),
    "ours, all three ingredients": lambda: build(**ALL_ON),
    "our encoder": lambda: build().vit,
    "our encoder, mid-level tokens": lambda: build(**ALL_ON).vit,
    "stock MAE": stock_mae,
    "ViT with pooler": lambda: ViTModel(ViTConfig(**SIZES)),
    "ViT without biases": lambda: ViTModel(ViTConfig(**SIZES, **NO_KEYS), add_pooling_layer=False),
    "ViT for masked images": lambda: ViTForMaskedImageModeling(ViTConfig(**SIZES, encoder_stride=8)),
    "MSN": lambda: ViTMSNModel(ViTMSNConfig(**SIZES)),
    "ViT of one channel": lambda: ViTModel(ViTConfig(**SIZES, num_channels=1)),
}
VIT_CLASSIFIERS = {
    "ViT": lambda: ViTForImageClassification(ViTConfig(**SIZES, **LABELS)),
    "ViT without biases": lambda: ViTForImageClassification(ViTConfig(**SIZES, **LABELS, **NO_KEYS)),
    "MSN": lambda: ViTMSNForImageClassification(ViTMSNConfig(**SIZES, **LABELS)),
}
# Sources that train as their own kind, with the class that they become.
OWN = {
    "BEiT": (lambda: BeitModel(BeitConfig(**BEIT)), BeitForImageClassification),
    "BEiT, CLS": (lambda: BeitModel(BeitConfig(**BEIT, use_mean_pooling=False)), BeitForImageClassification),
    "BEiT, pre-trained": (
        lambda: BeitForMaskedImageModeling(
            BeitConfig(**SIZES, use_mask_token=True, use_shared_relative_position_bias=True, layer_scale_init_value=0.1)
        ),
        BeitForImageClassification,
    ),
    "data2vec": (
        lambda: Data2VecVisionModel(
            Data2VecVisionConfig(**SIZES, use_relative_position_bias=True), add_pooling_layer=True
        ),
        Data2VecVisionForImageClassification,
    ),
    "DeiT": (lambda: DeiTModel(DeiTConfig(**SIZES)), DeiTForImageClassification),
    "DeiT, two heads": (
        lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(**SIZES, num_labels=7)),
        DeiTForImageClassification,
    ),
    "DINOv2": (lambda: Dinov2Model(Dinov2Config(**DINO)), Dinov2ForImageClassification),
    "DINOv2, SwiGLU": (lambda: Dinov2Model(Dinov2Config(**DINO, use_swiglu_ffn=True)), Dinov2ForImageClassification),
    "DINOv2, registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, num_register_tokens=3)),
        Dinov2WithRegistersForImageClassification,
    ),
}
OWN_CLASSIFIERS = {
    "BEiT": lambda: BeitForImageClassification(BeitConfig(**BEIT)),
    "BEiT of MAE, mean": lambda: BeitForImageClassification(mae_beit_config(**PLAIN_BEIT, use_mean_pooling=True)),
    "BEiT of MAE, CLS": lambda: BeitForImageClassification(mae_beit_config(**PLAIN_BEIT, use_mean_pooling=False)),
    "data2vec": lambda: Data2VecVisionForImageClassification(
        Data2VecVisionConfig(**SIZES, **LABELS, use_relative_position_bias=True)
    ),
    "DeiT": lambda: DeiTForImageClassification(DeiTConfig(**SIZES, **LABELS)),
    "DINOv2": lambda: Dinov2ForImageClassification(Dinov2Config(**DINO)),
    "DINOv2, registers": lambda: Dinov2WithRegistersForImageClassification(Dinov2WithRegistersConfig(**DINO)),
}


def save(model, folder):
    model.save_pretrained(folder)
    return str(folder)


def encoder_of(model):
    """As an encoder that masks nothing."""
    if isinstance(model, ViTMAEForPreTraining) and not isinstance(model, ViTMAERobustForPreTraining):
        config = ViTConfig(**SIZES)  # stock MAE would mask: the same tensors as a stock ViT's
        vit = ViTModel(config, add_pooling_layer=False)
        vit.load_state_dict(model.vit.state_dict())
        return vit.eval()
    return model.base_model.eval()


@torch.no_grad()
def before_and_after_norm(encoder, pixel_values):
    """Tokens of the last block, and after the final norm."""
    seen = []
    hook = encoder.layernorm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    after = encoder(pixel_values).last_hidden_state
    hook.remove()
    return seen[0], after


@torch.no_grad()
def logits_of(model, pixel_values):
    return model.eval()(pixel_values).logits


def set_head(model):
    """Weights of a size that shows in the logits."""
    init_head(model, 1.0)
    nn.init.normal_(model.classifier.bias)
    return model.classifier


def edit(folder, change, copy_to):
    """A copy of a folder whose tensors `change` has edited."""
    shutil.copytree(folder, copy_to)
    tensors = load_file(copy_to / "model.safetensors")
    change(tensors)
    save_file(tensors, copy_to / "model.safetensors", metadata={"format": "pt"})
    return str(copy_to)


def write_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_rates(model):
    blocks = [module for module in model.modules() if hasattr(module, "drop_path")]
    return [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]


def assert_all_train(model):
    """All but the token of masked patches, which no classifier uses."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.endswith(".mask_token")}


def assert_ready_to_train(model, rate, head_std=HEAD_STD):
    assert model.training and model.dtype == torch.float32
    assert_all_train(model)
    assert model.config.id2label == LABELS["id2label"] and model.config.label2id == LABELS["label2id"]
    assert model.config.problem_type == "single_label_classification"
    if rate is not None:
        assert drop_rates(model) == pytest.approx([0, rate / 2, rate])
    weight = model.classifier.weight
    assert 0.5 * head_std < weight.std() < 1.5 * head_std and not model.classifier.bias.any()


@pytest.mark.parametrize(
    ("kind", "pooling"), [("ours", None), *((kind, pooling) for kind in VITS for pooling in ("cls", "mean"))]
)
def test_vits_become_a_beit_that_computes_the_same(kind, pooling, tmp_path):
    source = perturb(VITS[kind]())
    name = save(source, tmp_path / "source")
    model, pixels = classifier_from_checkpoint(
        ModelSource(name), CLASSES, ClassifierSettings(pooling=pooling, drop_path_rate=0.2)
    )
    assert type(model) is BeitForImageClassification
    assert_ready_to_train(model, 0.2)
    assert model.config.use_mean_pooling is (pooling != "cls")
    assert pixels.num_channels == (1 if "one channel" in kind else 3)
    pixel_values, head = images(3, channels=pixels.num_channels), set_head(model)
    before, after = before_and_after_norm(encoder_of(source), pixel_values)
    features = after[:, 0]
    if pooling != "cls":
        features = before[:, 1:].mean(dim=1)
        features = nn.functional.layer_norm(features, features.shape[-1:], eps=source.config.layer_norm_eps)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model, pixel_values), head(features), **EXACT)
    model.save_pretrained(tmp_path / "out")
    again, info = BeitForImageClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(logits_of(again, pixel_values), logits_of(model, pixel_values))

    for own in (pooling,) if pooling else ():
        encoder, _ = load_encoder(name, own)
        expected = after[:, 0] if own == "cls" else after[:, 1:].mean(dim=1)
        with torch.no_grad():
            torch.testing.assert_close(encoder(pixel_values), expected, **EXACT)
            assert torch.equal(encoder(pixel_values), encoder(pixel_values))
        assert not encoder.model.training and not any(p.requires_grad for p in encoder.parameters())


@torch.no_grad()
def own_features(source, pixel_values):
    """What the head of the source's own class gets: by the definitions of the papers, from the source."""
    encoder = source.base_model.eval()
    outputs = encoder(pixel_values)
    tokens, config = outputs.last_hidden_state, source.config
    if config.model_type.startswith("dinov2"):
        first = 1 + getattr(config, "num_register_tokens", 0)
        return torch.cat([tokens[:, 0], tokens[:, first:].mean(dim=1)], dim=1)
    if not getattr(config, "use_mean_pooling", False):
        return tokens[:, 0]
    if encoder.pooler is not None:
        return outputs.pooler_output
    features = tokens[:, 1:].mean(dim=1)
    return nn.functional.layer_norm(features, features.shape[-1:], eps=config.layer_norm_eps)


@pytest.mark.parametrize("kind", OWN)
def test_other_kinds_train_as_their_own_class_on_the_features_of_the_source(kind, tmp_path):
    make, model_class = OWN[kind]
    source = perturb(make())
    name = save(source, tmp_path / "source")
    is_deit = kind.startswith("DeiT")
    model, _ = classifier_from_checkpoint(
        ModelSource(name), CLASSES, ClassifierSettings(drop_path_rate=0.0 if is_deit else 0.2, head_std=PROBE_HEAD_STD)
    )
    assert type(model) is model_class
    assert_ready_to_train(model, None if is_deit else 0.2, PROBE_HEAD_STD)
    pixel_values, head = images(3), set_head(model)
    with torch.no_grad():
        expected = head(own_features(source, pixel_values))
        torch.testing.assert_close(logits_of(model, pixel_values), expected, **EXACT)

        tokens = source.base_model(pixel_values).last_hidden_state
        prefix = {"DeiT": 2, "DeiT, two heads": 2, "DINOv2, registers": 4}.get(kind, 1)
        expected = {"cls": tokens[:, 0], "mean": tokens[:, prefix:].mean(dim=1)}
        if getattr(source.config, "use_mean_pooling", False):
            expected["mean"] = own_features(source, pixel_values)
        for pooling, features in expected.items():
            encoder, _ = load_encoder(name, pooling)
            torch.testing.assert_close(encoder(pixel_values), features, **EXACT)
            assert encoder.image_size == 32


@pytest.mark.parametrize("kind", [*VITS, *OWN, *(f"own {kind}" for kind in OWN_CLASSIFIERS)])
def test_every_parameter_that_trains_gets_a_gradient(kind, tmp_path):
    """DistributedDataParallel waits for the gradients of all of them."""
    makes = VITS | {name: make for name, (make, _) in OWN.items()}
    makes |= {f"own {name}": make for name, make in OWN_CLASSIFIERS.items()}
    name, poolings = save(perturb(makes[kind]()), tmp_path / "source"), [None]
    if kind in VITS or kind in ("BEiT, CLS", "BEiT, pre-trained"):
        poolings += ["mean", "cls"]
    for pooling in poolings:
        model, pixels = classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(pooling=pooling))
        model(images(3, channels=pixels.num_channels)).logits.square().sum().backward()
        unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert unused == [], pooling


def test_pooling_of_a_beit_encoder_is_chosen(tmp_path):
    source = perturb(BeitModel(BeitConfig(**BEIT, use_mean_pooling=False)))
    name, pixel_values = save(source, tmp_path / "source"), images(3)
    before, after = before_and_after_norm(source, pixel_values)
    mean = nn.functional.layer_norm(before[:, 1:].mean(dim=1), (32,), eps=1e-5)
    for pooling, features in (("cls", after[:, 0]), ("mean", mean)):
        model, _ = classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(pooling=pooling))
        assert model.config.use_mean_pooling is (pooling == "mean")
        head = set_head(model)
        with torch.no_grad():
            torch.testing.assert_close(logits_of(model, pixel_values), head(features), **EXACT)


@pytest.mark.parametrize("kind", [*VIT_CLASSIFIERS, *(f"own {kind}" for kind in OWN_CLASSIFIERS)])
def test_a_classifier_goes_on_with_its_head_or_gets_a_new_one(kind, tmp_path):
    source = perturb((VIT_CLASSIFIERS | {f"own {k}": make for k, make in OWN_CLASSIFIERS.items()})[kind]())
    name, pixel_values = save(source, tmp_path / "source"), images(3)
    expected = logits_of(source, pixel_values)
    model, _ = classifier_from_checkpoint(ModelSource(name), CLASSES)
    assert model.training
    assert_all_train(model)
    torch.testing.assert_close(logits_of(model, pixel_values), expected, **EXACT)

    evaluated, _ = classifier_for_evaluation(ModelSource(name), CLASSES)
    assert type(evaluated) is type(source)
    torch.testing.assert_close(logits_of(evaluated, pixel_values), expected, rtol=0, atol=0)

    with pytest.raises(ValueError, match="is a classifier of other classes than the data: class 1 is 'bee' .* 'wasp'"):
        classifier_from_checkpoint(ModelSource(name), ["ant", "wasp", "cat"])
    with pytest.raises(ValueError, match="3 classes, and the data have 2. --ignore_mismatched_sizes"):
        classifier_from_checkpoint(ModelSource(name), CLASSES[:2])
    with pytest.raises(ValueError, match="3 classes, and the data have 2"):
        classifier_for_evaluation(ModelSource(name), CLASSES[:2])
    for names in (CLASSES, ["x", "y", "z", "v"]):
        model, _ = classifier_from_checkpoint(ModelSource(name), names, ClassifierSettings(new_head=True))
        assert model.classifier.weight.shape[0] == model.config.num_labels == len(names)
        assert model.classifier.weight.abs().max() < 5 * HEAD_STD and model.config.id2label == dict(enumerate(names))

    encoder, _ = load_encoder(name, "mean" if getattr(source.config, "use_mean_pooling", False) else "cls")
    features = own_features(source, pixel_values)[:, : source.config.hidden_size]  # DINOv2: CLS comes first
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixel_values), features, **EXACT)


def test_a_kept_head_keeps_its_pooling(tmp_path):
    vit = save(VIT_CLASSIFIERS["ViT"](), tmp_path / "vit")
    mean = save(OWN_CLASSIFIERS["BEiT of MAE, mean"](), tmp_path / "mean")
    cls = save(OWN_CLASSIFIERS["BEiT of MAE, CLS"](), tmp_path / "cls")
    for name, pooling in ((vit, "mean"), (cls, "mean")):
        with pytest.raises(ValueError, match=f"--pooling {pooling}: .* is a classifier with --pooling cls"):
            classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(pooling=pooling))
        model, _ = classifier_from_checkpoint(
            ModelSource(name), CLASSES, ClassifierSettings(pooling=pooling, new_head=True)
        )
        assert model.config.use_mean_pooling
    for new_head in (False, True):
        with pytest.raises(ValueError, match="--pooling cls: this 'beit' pools the mean"):
            classifier_from_checkpoint(ModelSource(mean), CLASSES, ClassifierSettings(pooling="cls", new_head=new_head))


def test_a_multi_label_checkpoint_is_trained_on_one_label(tmp_path):
    source = OWN_CLASSIFIERS["BEiT"]()
    source.config.problem_type = "multi_label_classification"
    model, _ = classifier_from_checkpoint(ModelSource(save(source, tmp_path / "source")), CLASSES)
    assert model.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("kind", ["our encoder", "BEiT", "BEiT head", "ViT head", "DINOv2"])
def test_weights_of_half_precision_train_in_float32(kind, tmp_path):
    makers = {"our encoder": VITS["our encoder"], "BEiT": OWN["BEiT"][0], "DINOv2": OWN["DINOv2"][0]}
    makers |= {"BEiT head": OWN_CLASSIFIERS["BEiT"], "ViT head": VIT_CLASSIFIERS["ViT"]}
    name = save(makers[kind]().bfloat16(), tmp_path / "source")
    model, _ = classifier_from_checkpoint(ModelSource(name), CLASSES)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    encoder, _ = load_encoder(name)
    assert encoder(images(1)).dtype == torch.float32


def test_the_final_norm_of_a_pretrained_beit_is_found(tmp_path):
    source = perturb(OWN["BEiT, pre-trained"][0]())
    model, _ = classifier_from_checkpoint(
        ModelSource(save(source, tmp_path / "source")), CLASSES, ClassifierSettings(pooling="cls")
    )
    pixel_values, head = images(3), set_head(model)
    with torch.no_grad():
        features = source.layernorm(source.base_model(pixel_values).last_hidden_state)[:, 0]
        torch.testing.assert_close(logits_of(model, pixel_values), head(features), **EXACT)


# --- official files


def timm_vit(**settings):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2}
    return perturb(timm.create_model("vit_base_patch16_224", **sizes, **settings))


HEADS = {"num_attention_heads": 4}


@pytest.mark.parametrize("target", ["normpix", "rawpix"])
def test_official_pretraining_files(golden_dir, tmp_path, target):
    path = golden_dir / f"official_mae_tiny_{target}.pth"
    tensors = read_original(path)
    encoder_keys = {key for key in tensors if not key.startswith(("decoder_", "mask_token"))}
    torch.save({"model": {key: tensors[key] for key in encoder_keys}}, tmp_path / "encoder.pth")
    source = from_original(tensors, 4, 4).vit.eval()
    pixel_values = images(2)
    before, after = before_and_after_norm(source, pixel_values)
    for name in (str(path), str(tmp_path / "encoder.pth")):
        model, pixels = classifier_from_checkpoint(
            ModelSource(name, HEADS), CLASSES, ClassifierSettings(pooling="cls", drop_path_rate=0.1)
        )
        assert_ready_to_train(model, 0.1)
        head = set_head(model)
        with torch.no_grad():
            torch.testing.assert_close(logits_of(model, pixel_values), head(after[:, 0]), **EXACT)
            features = load_encoder(name, "mean", 4)[0](pixel_values)
        torch.testing.assert_close(features, after[:, 1:].mean(dim=1), **EXACT)
        assert pixels.image_mean == tuple(IMAGENET_DEFAULT_MEAN)
        with pytest.raises(ValueError, match="number of heads: give --config_overrides num_attention_heads=12"):
            classifier_from_checkpoint(ModelSource(name), CLASSES)
        with pytest.raises(ValueError, match="is not a classifier"):
            classifier_for_evaluation(ModelSource(name, HEADS), CLASSES)
        with pytest.raises(ValueError, match="--from_scratch takes no sizes from a file"):
            classifier_from_scratch(ModelSource(name), CLASSES)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_official_classifiers_keep_their_head_where_the_classes_fit(pooling, tmp_path):
    reference = timm_vit(num_classes=3, global_pool="avg" if pooling == "mean" else "token")
    path, pixel_values = str(tmp_path / "finetuned.pth"), images(3)
    torch.save({"model": reference.state_dict()}, path)
    with torch.no_grad():
        expected = reference(pixel_values)
        features = reference.forward_head(reference.forward_features(pixel_values), pre_logits=True)
    source = ModelSource(path, HEADS)
    trained = [
        lambda names, asked=asked: classifier_from_checkpoint(source, names, ClassifierSettings(pooling=asked))
        for asked in (None, pooling)
    ]
    for make in (*trained, lambda names: classifier_for_evaluation(source, names)):
        model, _ = make(CLASSES)
        torch.testing.assert_close(logits_of(model, pixel_values), expected, **EXACT)
        assert model.config.id2label == LABELS["id2label"] and model.config.label2id == LABELS["label2id"]
        with pytest.raises(ValueError, match="3 classes, and the data have 2"):
            make(CLASSES[:2])
    other = "cls" if pooling == "mean" else "mean"
    with pytest.raises(ValueError, match=f"--pooling {other}: .* is a classifier with --pooling {pooling}"):
        classifier_from_checkpoint(ModelSource(path, HEADS), CLASSES, ClassifierSettings(pooling=other))
    model, _ = classifier_from_checkpoint(
        ModelSource(path, HEADS), CLASSES[:2], ClassifierSettings(pooling=pooling, new_head=True)
    )
    head = set_head(model)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model, pixel_values), head(features), **EXACT)
        torch.testing.assert_close(load_encoder(path, None, 4)[0](pixel_values), features, **EXACT)
    if pooling == "mean":
        with pytest.raises(ValueError, match="--pooling cls: this classifier pools the mean"):
            classifier_from_checkpoint(
                ModelSource(path, HEADS), CLASSES, ClassifierSettings(pooling="cls", new_head=True)
            )
    else:
        model, _ = classifier_from_checkpoint(ModelSource(path, HEADS), CLASSES, ClassifierSettings(new_head=True))
        assert model.config.use_mean_pooling


def test_golden_official_classifier(golden_dir):
    golden = load_file(golden_dir / "official_cls_globalpool_tiny.safetensors")
    path, names = str(golden_dir / "official_cls_globalpool_tiny.pth"), list(map(str, range(golden["logits"].shape[1])))
    model, _ = classifier_from_checkpoint(ModelSource(path, {"num_attention_heads": 3}), names)
    torch.testing.assert_close(logits_of(model, golden["pixel_values"]), golden["logits"], **EXACT)


# --- from scratch


def test_from_scratch_starts_as_mae_does_and_takes_sizes_only(tmp_path):
    name = save(perturb(build(image_mean=[0.1, 0.2, 0.3])), tmp_path / "source")
    model, pixels = classifier_from_scratch(
        ModelSource(name), CLASSES, ClassifierSettings(image_size=64, drop_path_rate=0.2)
    )
    assert_ready_to_train(model, 0.2)
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.image_size) == (64, 3, 64)
    assert pixels.image_mean == (0.1, 0.2, 0.3)
    encoder = ViTMAERobustForPreTraining(tiny_config(image_size=64)).vit
    assert torch.equal(model.beit.embeddings.position_embeddings, encoder.embeddings.position_embeddings)
    weight = model.beit.layers[0].mlp.fc1.weight
    assert weight.abs().max() <= (6 / sum(weight.shape)) ** 0.5 < 1.05 * weight.abs().max()

    small = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model, pixels = classifier_from_scratch(ModelSource(None, {**small, "num_channels": 1}), CLASSES)
    assert logits_of(model, images(2, 16, 16, channels=1)).shape == (2, 3) and pixels.image_mean == (0.5,)


# --- checkpoints that lack something


BLOCK, POSITIONS, CLS = ".0.", "position_embeddings", "cls_token"
PROJECTION = "patch_embeddings.projection.weight"
DAMAGED = {
    "ours": (VITS["ours"], [BLOCK, POSITIONS, CLS, PROJECTION, "vit.layernorm.weight"]),
    "stock MAE": (stock_mae, [BLOCK, POSITIONS]),
    "ViT": (VIT_CLASSIFIERS["ViT"], [BLOCK, POSITIONS, CLS, PROJECTION, "vit.layernorm.weight", "classifier.bias"]),
    "MSN": (VITS["MSN"], [BLOCK, "layernorm.weight"]),
    "BEiT": (
        OWN_CLASSIFIERS["BEiT"],
        [
            BLOCK,
            "relative_position_bias_table",
            "lambda_1",
            CLS,
            PROJECTION,
            "pooler.layernorm.bias",
            "classifier.bias",
        ],
    ),
    "BEiT, CLS": (OWN["BEiT, CLS"][0], ["layernorm.weight"]),
    "data2vec": (OWN["data2vec"][0], ["relative_position_bias_table"]),
    "DeiT": (OWN["DeiT"][0], ["distillation_token", "layernorm.weight"]),
    "DINOv2, registers": (
        OWN["DINOv2, registers"][0],
        ["layer_scale1", "register_tokens"],
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_missing_a_renamed_and_a_misshapen_tensor_are_named(kind, tmp_path):
    make, parts = DAMAGED[kind]
    folder = tmp_path / "source"
    save(make(), folder)
    pooling = {} if kind in ("BEiT", "data2vec", "DeiT", "DINOv2, registers") else {"pooling": "cls"}
    for number, part in enumerate(parts):
        key = max(key for key in load_file(folder / "model.safetensors") if part in key and "decoder" not in key)
        last = key.rpartition(".")[0].rpartition(".")[2] if key.endswith(("weight", "bias")) else key.rpartition(".")[2]
        changes = {
            "deleted": lambda tensors, key=key: tensors.pop(key),
            "renamed": lambda tensors, key=key: tensors.update({f"{key}_old": tensors.pop(key)}),
            "misshapen": lambda tensors, key=key: tensors.update({key: torch.ones(5, *tensors[key].shape)}),
        }
        for change in changes if number == 0 else ["deleted"]:
            name = edit(folder, changes[change], tmp_path / f"{number}-{change}")
            # The newer names of some parts differ from those in the file.
            with pytest.raises(ValueError, match=rf"is incomplete, or .* tensors: .*({last}|_proj|fc[12]|\.0\.)"):
                classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(**pooling))
            if number == 0:
                with pytest.raises(ValueError, match="is incomplete"):
                    load_encoder(name)


def test_a_missing_norm_is_named_with_a_new_head_too(tmp_path):
    save(OWN_CLASSIFIERS["BEiT"](), tmp_path / "source")
    name = edit(tmp_path / "source", lambda tensors: tensors.pop("beit.pooler.layernorm.weight"), tmp_path / "edited")
    with pytest.raises(ValueError, match="lacks 1 tensors: beit.pooler.layernorm.weight"):
        classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(new_head=True))


def test_a_checkpoint_of_another_architecture_than_its_config_says(tmp_path):
    cases = {  # class of the weights -> changes of config.json
        "fewer blocks": (VITS["ViT with pooler"], {"num_hidden_layers": 2}),
        "more blocks": (VITS["ViT with pooler"], {"num_hidden_layers": 4}),
        "narrower": (VITS["MSN"], {"hidden_size": 16}),
        "our fewer blocks": (VITS["ours"], {"num_hidden_layers": 2}),
        "ViT as BEiT": (VITS["ViT with pooler"], {"model_type": "beit"}),
        "MAE as DeiT": (stock_mae, {"model_type": "deit"}),
        "BEiT as ViT": (OWN_CLASSIFIERS["BEiT"], {"model_type": "vit", "architectures": ["ViTModel"]}),
        "DeiT as ViT": (OWN["DeiT"][0], {"model_type": "vit"}),
        "no layer scale": (OWN["BEiT"][0], {"layer_scale_init_value": 0.0}),
        "no relative positions": (OWN["BEiT"][0], {"use_relative_position_bias": False}),
        "no biases": (VITS["ViT with pooler"], {"qkv_bias": False}),
        "no registers": (OWN["DINOv2, registers"][0], {"model_type": "dinov2"}),
        "other image size": (OWN["DINOv2"][0], {"image_size": 64}),
        "other patch size": (VITS["ours"], {"patch_size": 4}),
    }
    for number, (case, (make, changes)) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        save(make(), folder)
        write_config(folder, **changes)
        with pytest.raises(ValueError, match="another architecture than its config.json says"):
            classifier_from_checkpoint(ModelSource(str(folder)), CLASSES)
            pytest.fail(case)
        with pytest.raises(ValueError, match="another architecture than its config.json says"):
            load_encoder(str(folder))


def test_weights_that_are_not_there_or_damaged(tmp_path):
    folder = tmp_path / "source"
    save(VITS["ours"](), folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="source: its weights are missing or damaged"):
        classifier_from_checkpoint(ModelSource(str(folder)), CLASSES)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="source: its weights are missing or damaged"):
        classifier_from_checkpoint(ModelSource(str(folder)), CLASSES)


# --- other sizes of images


def bicubic(table, grid, new_grid, prefix=1):
    """Independent of the package: each direction and channel by a stock interpolation of an image."""
    rows = table[0, prefix:].T.reshape(1, -1, *grid)
    resized = nn.functional.interpolate(rows, size=new_grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :prefix], resized.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize("kind", ["our encoder", "ViT", "BEiT", "BEiT head", "DINOv2", "DINOv2, registers"])
def test_positions_are_interpolated_and_train(kind, tmp_path):
    plain = {**PLAIN_BEIT, "use_mean_pooling": False}
    makers = {
        "our encoder": VITS["our encoder"],
        "ViT": VITS["ViT with pooler"],
        "BEiT": lambda: BeitModel(mae_beit_config(**plain)),
        "BEiT head": OWN_CLASSIFIERS["BEiT of MAE, mean"],
        **{kind: OWN[kind][0] for kind in ("DINOv2", "DINOv2, registers")},
    }
    source = perturb(makers[kind]())
    name, pixel_values = save(source, tmp_path / "source"), images(2, 48, 48)
    model, _ = classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(image_size=48))
    assert model.config.image_size == 48
    positions = model.base_model.embeddings.position_embeddings
    assert isinstance(positions, nn.Parameter) and positions.requires_grad and positions.shape[1] == 37
    if kind != "DINOv2, registers":
        torch.testing.assert_close(positions, bicubic(source.base_model.embeddings.position_embeddings, (4, 4), (6, 6)))
    if kind.startswith("DINOv2"):  # the stock model interpolates by itself
        head = set_head(model)
        with torch.no_grad():
            expected = head(own_features(source, pixel_values))
        torch.testing.assert_close(logits_of(model, pixel_values), expected, **EXACT)
    model(pixel_values).logits.pow(2).sum().backward()
    assert positions.grad is not None
    model.save_pretrained(tmp_path / "out")
    again, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(logits_of(again, pixel_values), logits_of(model, pixel_values))

    with pytest.raises(ValueError, match="--image_size 44 is not a multiple of the patch size 8"):
        classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(image_size=44))


def test_patches_and_images_that_are_not_square(tmp_path):
    source = perturb(build(image_size=(16, 64), patch_size=(8, 16)).vit)
    name = save(source, tmp_path / "source")
    with pytest.raises(
        ValueError, match="image_size 16 x 64: the classifier is a stock BEiT, which takes square images"
    ):
        classifier_from_checkpoint(ModelSource(name), CLASSES)
    model, _ = classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(image_size=32))
    expected = bicubic(source.embeddings.position_embeddings, (2, 4), (4, 2))
    torch.testing.assert_close(model.beit.embeddings.position_embeddings, expected)
    with pytest.raises(ValueError, match="--image_size 24 is not a multiple"):
        classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(image_size=24))


@pytest.mark.parametrize("kind", ["BEiT", "BEiT, pre-trained", "data2vec", "DeiT"])
def test_kinds_without_interpolation_keep_their_size(kind, tmp_path):
    name = save(OWN[kind][0](), tmp_path / "source")
    with pytest.raises(ValueError, match="--image_size 64: '.*' is fine-tuned at its own size, 32"):
        classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(image_size=64))
    classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(image_size=32))


# --- what is refused


def test_models_that_are_no_vit_and_names_that_do_not_exist(tmp_path):
    resnet = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])
    bert = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=16)
    for model, kind in ((ResNetForImageClassification(resnet), "resnet"), (BertModel(bert), "bert")):
        name = save(model, tmp_path / kind)
        for call in (lambda name: classifier_from_checkpoint(ModelSource(name), CLASSES), load_encoder):
            with pytest.raises(ValueError, match=f"'{kind}' model; needed here: vit_mae_robust, .*deit"):
                call(name)
        with pytest.raises(ValueError, match="model; needed here: vit_mae_robust"):
            classifier_for_evaluation(ModelSource(name), CLASSES)
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "empty", tmp_path / "no" / "such" / "folder", "nobody/nothing", "file.pth", "a b/c"):
        with pytest.raises(ValueError, match="no file, no folder with a config.json, and not found on the Hub"):
            classifier_from_checkpoint(ModelSource(str(name)), CLASSES)


def test_settings_that_do_not_fit(tmp_path):
    ours, deit = save(VITS["ours"](), tmp_path / "ours"), save(OWN["DeiT"][0](), tmp_path / "deit")
    dino = save(OWN["DINOv2"][0](), tmp_path / "dino")
    beit = save(OWN["BEiT"][0](), tmp_path / "beit")
    for name, settings, message in [
        (deit, {"pooling": "mean"}, "--pooling mean: 'deit' has no such setting"),
        (dino, {"pooling": "cls"}, "--pooling cls: 'dinov2' has no such setting"),
        (beit, {"pooling": "cls"}, "--pooling cls: this 'beit' pools the mean"),
        (deit, {"drop_path_rate": 0.1}, "'deit' has no drop path: give --drop_path_rate 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            classifier_from_checkpoint(ModelSource(name), CLASSES, ClassifierSettings(**settings))
    checkpoint, scratch, evaluation = classifier_from_checkpoint, classifier_from_scratch, classifier_for_evaluation
    for make, name, overrides, message in [
        (checkpoint, ours, {"hidden_size": 8}, "--config_overrides hidden_size: these are for --from_scratch"),
        (checkpoint, ours, {"num_attention_heads": 4}, "num_attention_heads: these are for --from_scratch"),
        (checkpoint, None, {}, "--model_name_or_path is needed, or --from_scratch"),
        (scratch, None, {"size": 8}, "ViTMAERobustConfig has no setting size"),
        (scratch, deit, {}, "--from_scratch takes sizes of a ViT or MAE checkpoint, not of 'deit'"),
        (evaluation, ours, {}, "is not a classifier"),
        (evaluation, dino, {}, "is not a classifier"),
        (evaluation, ours, {"num_attention_heads": 4}, "num_attention_heads: these are for --from_scratch"),
        (evaluation, None, {}, "--model_name_or_path is needed"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(ModelSource(name, overrides), CLASSES)
    words = ["--model_name_or_path", ours, "--eval_only", "--from_scratch"]
    with pytest.raises(ValueError, match="needs a trained classifier; leave out --from_scratch"):
        ClassificationTask().build_model(make_parser().parse(words), CLASSES)
    with pytest.raises(ValueError, match="Two classes of the data have the same name"):
        classifier_from_checkpoint(ModelSource(ours), ["a", "a"])


def test_a_classifier_without_names_goes_by_the_number_of_classes(tmp_path):
    source = perturb(ViTForImageClassification(ViTConfig(**SIZES, num_labels=3)))
    name = save(source, tmp_path / "source")
    model, _ = classifier_from_checkpoint(ModelSource(name), CLASSES)
    assert torch.equal(model.classifier.weight, source.classifier.weight)
    assert model.config.id2label == LABELS["id2label"]


# --- how the images are prepared


def test_mean_and_deviation_of_the_images(tmp_path):
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    expected = tuple(map(tuple, statistics.values()))
    imagenet = (tuple(IMAGENET_DEFAULT_MEAN), tuple(IMAGENET_DEFAULT_STD))

    def found(name):
        both = [classifier_from_checkpoint(ModelSource(name), CLASSES)[1], load_encoder(name)[1]]
        assert both[0] == both[1]
        return tuple(both[0].image_mean), tuple(both[0].image_std)

    assert found(save(build(**statistics), tmp_path / "ours")) == expected
    for kind, make in {"vit": VITS["ViT with pooler"], "mae": stock_mae, "beit": OWN["BEiT"][0]}.items():
        name = save(make(), tmp_path / kind)
        assert found(name) == imagenet
        ViTImageProcessor(**statistics).save_pretrained(name)
        assert found(name) == expected
    name = save(VITS["ViT of one channel"](), tmp_path / "grey")
    assert found(name) == ((0.5,), (0.5,))
    ViTImageProcessor(**statistics).save_pretrained(name)  # of three channels: not for these images
    assert found(name) == ((0.5,), (0.5,))
    ViTImageProcessor(image_mean=[0.3], image_std=[0.2]).save_pretrained(name)
    assert found(name) == ((0.3,), (0.2,))
