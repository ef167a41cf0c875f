"""Official MAE checkpoints in and out: nothing lost, nothing changed, nothing executed."""

import argparse
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, BeitForImageClassification

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining, ViTMAERobustModel
from hf_mae_robust.conversion.convert import add_convert_arguments, convert, run_convert
from hf_mae_robust.conversion.original import from_original, read_original, to_original

HEADS = {"num_attention_heads": 2, "decoder_num_attention_heads": 4}


def official_state_dict(patch=(4, 4), num_patches=16, channels=3, depth=2, decoder_depth=1, head=None):
    """A tiny random model, written down here by the official names and shapes. head: mean, cls or probe."""
    generator = torch.Generator().manual_seed(0)
    state_dict = {}

    def tensor(key, *shape):
        state_dict[key] = torch.randn(shape, generator=generator)

    def linear(key, outputs, *inputs):
        tensor(f"{key}.weight", outputs, *inputs)
        tensor(f"{key}.bias", outputs)

    def blocks(prefix, depth, dim):
        for number in range(depth):
            linear(f"{prefix}.{number}.norm1", dim)
            linear(f"{prefix}.{number}.attn.qkv", 3 * dim, dim)
            linear(f"{prefix}.{number}.attn.proj", dim, dim)
            linear(f"{prefix}.{number}.norm2", dim)
            linear(f"{prefix}.{number}.mlp.fc1", 2 * dim, dim)
            linear(f"{prefix}.{number}.mlp.fc2", dim, 2 * dim)

    tensor("cls_token", 1, 1, 8)
    tensor("pos_embed", 1, 1 + num_patches, 8)
    linear("patch_embed.proj", 8, channels, *patch)
    blocks("blocks", depth, 8)
    linear("fc_norm" if head == "mean" else "norm", 8)
    if head == "probe":
        state_dict["head.0.running_mean"] = torch.randn(8, generator=generator)
        state_dict["head.0.running_var"] = torch.rand(8, generator=generator)
        state_dict["head.0.num_batches_tracked"] = torch.tensor(90)
        linear("head.1", 5, 8)
    elif head:
        linear("head", 5, 8)
    elif decoder_depth:
        linear("decoder_embed", 12, 8)
        tensor("mask_token", 1, 1, 12)
        tensor("decoder_pos_embed", 1, 1 + num_patches, 12)
        blocks("decoder_blocks", decoder_depth, 12)
        linear("decoder_norm", 12)
        linear("decoder_pred", patch[0] * patch[1] * channels, 12)
    return state_dict


def assert_identical(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype, key
        assert torch.equal(left[key], right[key]), key


def run_cli(*arguments):
    parser = argparse.ArgumentParser()
    add_convert_arguments(parser)
    run_convert(parser.parse_args([str(argument) for argument in arguments]))


@pytest.mark.parametrize("target", ["normpix", "rawpix"])
def test_golden_in_and_out(golden_dir, tmp_path, capsys, target):
    path = golden_dir / f"official_mae_tiny_{target}.pth"
    flags = ["--num_attention_heads", 4, "--decoder_num_attention_heads", 4]
    run_cli(path, tmp_path / "model", *flags, *(["--no-norm_pix_loss"] if target == "rawpix" else []))
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 1
    for part in (
        "ViTMAERobustForPreTraining",
        "image 32, patch 8",
        "encoder 64 x 3 blocks x 4 heads",
        "decoder 32 x 2",
    ):
        assert part in printed

    model, info = ViTMAERobustForPreTraining.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    assert model.config.norm_pix_loss is (target == "normpix")
    golden = load_file(path.with_suffix(".safetensors"))
    with torch.no_grad():
        outputs = model.eval()(golden["pixel_values"], noise=golden["noise"])
    torch.testing.assert_close(outputs.loss, golden["loss"][0], rtol=0, atol=1e-5)
    torch.testing.assert_close(outputs.logits, golden["pred"], rtol=0, atol=1e-5)
    assert torch.equal(outputs.mask, golden["mask"])
    assert_identical(to_original(model), read_original(path))


def logits_of(model, pixel_values):
    with torch.no_grad():
        return model.eval()(pixel_values).logits


def test_finetuned_golden_in_and_out(golden_dir, tmp_path, capsys):
    path = golden_dir / "official_cls_globalpool_tiny.pth"
    run_cli(path, tmp_path / "model", "--num_attention_heads", 3)
    printed = capsys.readouterr().out
    for part in ("BeitForImageClassification", "image 48, patch 8", "96 x 4 blocks x 3", "7 classes from the mean of"):
        assert part in printed

    model, info = AutoModelForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert type(model) is BeitForImageClassification and not any(info.values()), info
    golden = load_file(path.with_suffix(".safetensors"))
    logits = logits_of(model, golden["pixel_values"])
    torch.testing.assert_close(logits, golden["logits"], rtol=0, atol=1e-5)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    assert processor.size["shortest_edge"] == 54 and processor.crop_size["height"] == 48

    exported, original = to_original(model), read_original(path)
    for number in range(4):  # all that BEiT has no place for
        key = f"blocks.{number}.attn.qkv.bias"
        assert original[key][96:192].any() and not exported[key][96:192].any()
        original[key][96:192] = 0
    assert_identical(exported, original)
    assert torch.equal(logits_of(from_original(exported, 3), golden["pixel_values"]), logits)


@pytest.mark.parametrize("global_pool", ["avg", "token"])
def test_classifiers_compute_what_timm_does(global_pool):
    """timm's VisionTransformer has the names of the official code, which is built on it."""
    sizes = {"img_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2}
    reference = timm.create_model("vit_base_patch16_224", global_pool=global_pool, num_classes=5, **sizes).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    original = reference.state_dict()
    assert ("fc_norm.weight" in original) == (global_pool == "avg")
    model = from_original(original, 4)
    assert model.config.use_mean_pooling is (global_pool == "avg") and model.config.num_labels == 5
    assert not model.training and model.config.drop_path_rate == 0
    pixel_values = torch.randn(3, 3, 24, 24)
    expected = reference(pixel_values)
    torch.testing.assert_close(logits_of(model, pixel_values), expected, rtol=0, atol=1e-5)
    reference.load_state_dict(to_original(model))  # strict
    torch.testing.assert_close(reference(pixel_values), expected, rtol=0, atol=1e-5)


def test_a_linear_probe_is_folded():
    original = official_state_dict(head="probe")
    probe = torch.nn.Sequential(torch.nn.BatchNorm1d(8, affine=False, eps=1e-6), torch.nn.Linear(8, 5)).eval()
    probe.load_state_dict({k.removeprefix("head."): v for k, v in original.items() if k.startswith("head.")})
    encoder = from_original({k: v for k, v in original.items() if not k.startswith("head.")}, 2)
    pixel_values = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = probe(encoder(pixel_values).last_hidden_state[:, 0])
    model = from_original(original, 2)
    assert model.config.use_mean_pooling is False
    torch.testing.assert_close(logits_of(model, pixel_values), expected, rtol=1e-4, atol=1e-5)
    assert {key for key in to_original(model) if key.startswith("head")} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    "head, change, message",
    [
        ("mean", lambda d: d.update({"norm.weight": torch.ones(8)}), r"unknown keys: norm\.weight\. .*fc_norm"),
        ("mean", lambda d: d.pop("fc_norm.bias"), r"missing keys: fc_norm\.bias\."),
        ("mean", lambda d: [d.pop("head.weight"), d.pop("head.bias")], r"missing keys: head\.bias, head\.weight\."),
        ("cls", lambda d: d.update({"mask_token": torch.ones(1, 1, 8)}), r"unknown keys: mask_token\."),
        ("cls", lambda d: d.update({"head_dist.weight": torch.ones(5, 8)}), r"unknown keys: head_dist\.weight\."),
        ("cls", lambda d: d.pop("head.bias"), r"missing keys: head\.bias\."),
        ("cls", lambda d: d.pop("norm.bias"), r"missing keys: norm\.bias\."),
        ("cls", lambda d: d.update({"head.bias": torch.ones(6)}), r"do not fit the sizes[\s\S]*classifier\.bias"),
        ("probe", lambda d: d.pop("head.0.running_var"), r"probe is incomplete: missing keys: head\.0\.running_var"),
        ("probe", lambda d: d.update({"head.0.weight": torch.ones(8)}), r"unknown keys: head\.0\.weight\."),
        ("probe", lambda d: d.update({"head.0.running_var": torch.ones(7)}), r"running_var \(7,\)"),
    ],
)
def test_keys_and_shapes_of_classifiers_that_do_not_fit(head, change, message):
    state_dict = official_state_dict(head=head)
    change(state_dict)
    with pytest.raises(ValueError, match=message):
        from_original(state_dict, 2)


def test_overrides_of_classifiers():
    original = official_state_dict(head="cls")
    names = dict(enumerate("abcde"))
    assert from_original(original, 2, id2label=names).config.id2label == names
    with pytest.raises(ValueError, match="norm_pix_loss: no field of BeitConfig"):
        from_original(original, 2, norm_pix_loss=False)
    with pytest.raises(ValueError, match=r"image_size=\(8, 32\): the BEiT"):
        from_original(original, 2, image_size=(8, 32))
    with pytest.raises(ValueError, match="--num_attention_heads 3: does not divide"):
        from_original(original, 3)


@pytest.mark.parametrize(
    "layout, sizes",
    [
        ({}, {"image_size": 16, "patch_size": 4}),
        ({"patch": (4, 2), "channels": 1}, {"image_size": (16, 8), "patch_size": (4, 2), "num_channels": 1}),
        ({"depth": 11, "decoder_depth": 3}, {"num_hidden_layers": 11, "decoder_num_hidden_layers": 3}),
    ],
    ids=["square", "patch not square", "deep"],
)
def test_sizes_are_inferred_and_the_round_trip_is_identical(layout, sizes):
    original = official_state_dict(**layout)
    model = from_original(original, **HEADS)
    assert type(model) is ViTMAERobustForPreTraining
    assert not model.training
    assert {field: getattr(model.config, field) for field in sizes} == sizes
    assert (model.config.hidden_size, model.config.intermediate_size, model.config.decoder_hidden_size) == (8, 16, 12)
    assert (model.config.norm_pix_loss, model.config.layer_norm_eps) == (True, 1e-6)
    assert_identical(to_original(model), original)


def test_query_key_value_are_split_in_this_order():
    original = official_state_dict()
    attention = from_original(original, **HEADS).vit.layers[1].attention
    parts = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert torch.equal(torch.cat(parts), original["blocks.1.attn.qkv.weight"])


def test_our_model_survives_the_way_out_and_back():
    config = ViTMAERobustConfig(
        image_size=(16, 24),
        patch_size=8,
        hidden_size=8,
        num_hidden_layers=2,
        intermediate_size=16,
        decoder_hidden_size=12,
        decoder_num_hidden_layers=1,
        decoder_intermediate_size=24,
        **HEADS,
    )
    model = ViTMAERobustForPreTraining(config)
    with pytest.raises(ValueError, match=r"6 patches, which is not a square grid: pass image_size"):
        from_original(to_original(model), **HEADS)
    back = from_original(to_original(model), **HEADS, image_size=(16, 24))
    assert_identical(back.state_dict(), model.state_dict())
    assert back.config.to_diff_dict() == model.config.to_diff_dict()


def test_the_model_shares_no_memory_and_keeps_its_position_tables_frozen():
    original = official_state_dict()
    before = {key: tensor.clone() for key, tensor in original.items()}
    model = from_original(original, **HEADS)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    exported = to_original(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_identical(original, before)
    assert_identical(exported, before)


@pytest.mark.parametrize("wrapped", [True, False], ids=["pth", "safetensors"])
def test_encoder_only(tmp_path, wrapped, capsys):
    original = official_state_dict(decoder_depth=0)
    path = tmp_path / ("file.pth" if wrapped else "file.safetensors")
    # As real files are: more than the model in it, an argparse.Namespace among that.
    content = {"model": original, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, path) if wrapped else save_file(original, path)
    run_cli(path, tmp_path / "deep" / "model", "--num_attention_heads", 2)
    assert "decoder" not in capsys.readouterr().out
    model, info = ViTMAERobustModel.from_pretrained(tmp_path / "deep" / "model", output_loading_info=True)
    assert not any(info.values()), info
    assert_identical(to_original(model), original)
    assert isinstance(from_original(original, **HEADS), ViTMAERobustModel)  # heads of a decoder that is not there


def test_bfloat16_stays_bfloat16():
    original = {key: tensor.bfloat16() for key, tensor in official_state_dict().items()}
    assert_identical(to_original(from_original(original, **HEADS)), original)


def test_a_bare_state_dict_is_read(tmp_path):
    original = official_state_dict()
    torch.save(original, tmp_path / "bare.pth")
    assert_identical(read_original(tmp_path / "bare.pth"), original)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda d: d.update({"blocks.0.ls1.gamma": torch.ones(8)}),
            r"unknown keys: blocks\.0\.ls1\.gamma\. Expected.*N",
        ),
        (lambda d: d.pop("blocks.1.attn.qkv.bias"), r"missing keys: blocks\.1\.attn\.qkv\.bias\."),
        (lambda d: d.pop("decoder_norm.weight"), r"missing keys: decoder_norm\.weight\."),
        (lambda d: d.pop("mask_token"), r"missing keys: mask_token\."),
        (lambda d: [d.pop(k) for k in list(d) if k.startswith("blocks.0.")], r"missing.*blocks\.0\.attn\.proj\.bias"),
        (lambda d: [d.pop(k) for k in list(d) if k.startswith("decoder_blocks.")], r"missing.*decoder_blocks\.0\."),
        (lambda d: d.clear(), r"missing keys: blocks\.0\."),
        (
            lambda d: d.update({"blocks.0.attn.qkv.bias": torch.ones(25)}),
            r"qkv\.bias has shape \(25,\): cannot be split",
        ),
        (lambda d: d.update({"norm.bias": torch.ones(9)}), r"do not fit the sizes[\s\S]*vit\.layernorm\.bias"),
        (lambda d: d.update({"patch_embed.proj.weight": torch.ones(8, 48)}), r"proj\.weight has shape \(8, 48\)"),
        (lambda d: d.update({"pos_embed": torch.ones(1, 16, 8)}), "15 patches, which is not a square grid"),
    ],
)
def test_keys_and_shapes_that_do_not_fit(change, message):
    state_dict = official_state_dict()
    change(state_dict)
    with pytest.raises(ValueError, match=message):
        from_original(state_dict, **HEADS)


@pytest.mark.parametrize(
    "heads, message",
    [
        ((None, 4), "--num_attention_heads is needed"),
        ((2, None), "--decoder_num_attention_heads is needed"),
        ((3, 4), "--num_attention_heads 3: does not divide the width 8"),
        ((2, 5), "--decoder_num_attention_heads 5: does not divide the width 12"),
        ((0, 4), "--num_attention_heads 0"),
    ],
)
def test_heads(heads, message):
    with pytest.raises(ValueError, match=message):
        from_original(official_state_dict(), *heads)


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"mid_mask_ratio": 0.25, "mid_mask_layer_idx": 1}, r"vit\.mid_mask_token"),
        ({"target_normalization": "global_patch"}, r"target_normalizer\.mean, target_normalizer\.std"),
    ],
)
def test_to_original_refuses_what_the_layout_cannot_hold(settings, name):
    config = from_original(official_state_dict(), **HEADS).config
    model = ViTMAERobustForPreTraining(ViTMAERobustConfig(**{**config.to_dict(), **settings}))
    with pytest.raises(ValueError, match=f"no place for {name}"):
        to_original(model)


class WritesAFile:
    """A pickle that runs code when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.write_text, (Path(self.path), "executed")


class RunsACommand(WritesAFile):
    def __reduce__(self):
        return os.system, (f"echo executed > {self.path}",)


@pytest.mark.parametrize("kind", [WritesAFile, RunsACommand])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, kind, form):
    path, victim = tmp_path / "evil.pth", tmp_path / "victim"
    content = {"model": official_state_dict(), "args": kind(victim)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content["args"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"evil\.pth was refused, and none of its code was run: .* call \S+") as caught:
        convert(path, tmp_path / "model", **HEADS)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [path]
    torch.load(path, weights_only=False) if form == "zip" else pickle.loads(pickle.dumps(kind(victim)))
    assert victim.read_text().strip() == "executed"  # it would have


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_truncated_files(tmp_path, form, keep):
    path = tmp_path / ("cut.safetensors" if form == "safetensors" else "cut.pth")
    if form == "safetensors":
        save_file(official_state_dict(), path)
    else:
        torch.save({"model": official_state_dict()}, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"cut\.(pth|safetensors) is truncated, damaged or no"):
        read_original(path)


@pytest.mark.parametrize("content", [{}, [], {"epoch": 3}, {"model": {}}, 5, {"model": {"epoch": 3}}])
def test_files_without_tensors(tmp_path, content):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"file\.pth holds no tensors"):
        read_original(tmp_path / "file.pth")


def test_other_things_that_are_no_checkpoint(tmp_path):
    torch.save({"norm.weight": torch.ones(2), "epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"not named tensors: epoch"):
        read_original(tmp_path / "file.pth")
    (tmp_path / "text.pth").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"text\.pth is truncated, damaged or not a PyTorch file"):
        read_original(tmp_path / "text.pth")
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_original(path)


def test_convert_leaves_no_half_written_folder(tmp_path, monkeypatch):
    torch.save({"model": official_state_dict()}, tmp_path / "file.pth")
    output_dir = tmp_path / "model"

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        # When the weights are written already.
        patch.setattr("transformers.CLIPImageProcessor.save_pretrained", fail)
        with pytest.raises(OSError, match="disk full"):
            convert(tmp_path / "file.pth", output_dir, **HEADS)
    assert [path.name for path in tmp_path.iterdir()] == ["file.pth"]

    output_dir.mkdir()
    convert(tmp_path / "file.pth", output_dir, **HEADS)  # an empty folder is fine
    written = {path.name for path in output_dir.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_vit_mae_robust.py"} <= written
    with pytest.raises(FileExistsError, match="model exists and is not an empty folder"):
        convert(tmp_path / "file.pth", output_dir, **HEADS)
    assert {path.name for path in output_dir.iterdir()} == written
