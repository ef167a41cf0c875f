"""Files of other training codes: the weights are found, and nothing else of the file matters or runs."""

import argparse
import collections
import datetime
import logging
import os
import types
import uuid
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch

from hf_mae_robust.conversion.checkpoint_file import read_original
from hf_mae_robust.conversion.convert import add_convert_arguments, run_convert
from hf_mae_robust.conversion.original import from_original
from tests.helpers import LFS_POINTER

# By the names of the official code; what the numbers are does not matter here.
SHAPES = {
    "cls_token": (1, 1, 8),
    "pos_embed": (1, 17, 8),
    "patch_embed.proj.weight": (8, 3, 4, 4),
    "patch_embed.proj.bias": (8,),
    "blocks.0.norm1.weight": (8,),
    "blocks.0.norm1.bias": (8,),
    "blocks.0.attn.qkv.weight": (24, 8),
    "blocks.0.attn.qkv.bias": (24,),
    "blocks.0.attn.proj.weight": (8, 8),
    "blocks.0.attn.proj.bias": (8,),
    "blocks.0.norm2.weight": (8,),
    "blocks.0.norm2.bias": (8,),
    "blocks.0.mlp.fc1.weight": (16, 8),
    "blocks.0.mlp.fc1.bias": (16,),
    "blocks.0.mlp.fc2.weight": (8, 16),
    "blocks.0.mlp.fc2.bias": (8,),
    "norm.weight": (8,),
    "norm.bias": (8,),
}


def encoder(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def under(prefix, seed=0):
    return {prefix + name: value for name, value in encoder(seed).items()}


def read(tmp_path, content, **options):
    torch.save(content, tmp_path / "file.pth")
    return read_original(tmp_path / "file.pth", **options)


def assert_is_encoder(tensors, seed=0):
    expected = encoder(seed)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    from_original(tensors, num_attention_heads=2)


PROJECTOR = {"0.weight": torch.ones(4, 8), "1.running_mean": torch.ones(4), "3.weight": torch.ones(4, 4)}
MOCO = under("module.base_encoder.") | {f"module.base_encoder.head.{key}": value for key, value in PROJECTOR.items()}


@pytest.mark.parametrize(
    "content, name",
    [
        ({"state_dict": encoder(), "epoch": 3}, "state_dict"),
        ({"teacher": encoder()}, "teacher"),
        ({"student": encoder(), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "student"),
        ({"model_ema": encoder()}, "model_ema"),
        ({"model": under("module.")}, "model.module"),
        (under("_orig_mod."), "_orig_mod"),
        (under("module._orig_mod."), "module._orig_mod"),
        ({"teacher": under("backbone.") | {"head.mlp.0.weight": torch.ones(4, 8)}}, "teacher.backbone"),
        ({"state_dict": MOCO, "arch": "vit_base"}, "state_dict.module.base_encoder"),
        # DINO's losses hold tensors, too.
        ({"student": under("module.backbone."), "dino_loss": {"center": torch.ones(1, 4)}}, "student.module.backbone"),
        ({"model": {"net": encoder()}}, "model.net"),
    ],
)
def test_what_is_unambiguous_is_unwrapped_and_said(tmp_path, caplog, content, name):
    with caplog.at_level(logging.WARNING):
        assert_is_encoder(read(tmp_path, content))
    (record,) = caplog.records
    assert f"the tensors are taken from '{name}'" in record.getMessage()
    has_more = any("head." in key for key in content.get("teacher", content.get("state_dict", {})))
    assert ("left out: " in record.getMessage()) == has_more


def test_the_official_form_needs_no_words(tmp_path, caplog):
    for content in (encoder(), {"model": encoder(), "epoch": 3, "args": argparse.Namespace(lr=0.1)}):
        assert_is_encoder(read(tmp_path, content))
    assert not caplog.records


@pytest.mark.parametrize(
    "content, names",
    [
        ({"student": under("backbone."), "teacher": under("backbone.", 1)}, ["student.backbone", "teacher.backbone"]),
        ({"model": encoder(), "model_ema": encoder(1)}, ["model", "model_ema"]),
        (MOCO | under("module.momentum_encoder.", 1), ["module.base_encoder", "module.momentum_encoder"]),
    ],
)
def test_of_several_models_the_user_chooses(tmp_path, content, names):
    with pytest.raises(ValueError, match=r"holds 2 models: .*--checkpoint_key") as caught:
        read(tmp_path, content)
    assert all(f"'{name}'" in str(caught.value) for name in names)
    for seed, name in enumerate(names):
        assert_is_encoder(read(tmp_path, content, checkpoint_key=name), seed)
        last_or_first = name.split(".")[-1] if "module" in name else name.split(".")[0]
        assert_is_encoder(read(tmp_path, content, checkpoint_key=last_or_first), seed)
    with pytest.raises(ValueError, match=f"--checkpoint_key ema: names 0 models of .*'{names[0]}', '{names[1]}'"):
        read(tmp_path, content, checkpoint_key="ema")


def test_tensors_beside_the_model_are_not_dropped_unasked(tmp_path):
    content = under("encoder.") | {"decoder.0.weight": torch.ones(3)}
    with pytest.raises(ValueError, match=r"has decoder\.0\.weight beside .*--checkpoint_key encoder"):
        read(tmp_path, content)
    assert_is_encoder(read(tmp_path, content, checkpoint_key="encoder"))


def test_a_file_of_another_model_names_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match=r"no tensors that are known.*its own are net, optimizer\.state"):
        read(tmp_path, {"net": {"conv1.weight": torch.ones(1)}, "optimizer": {"state": {"m": torch.ones(1)}}})


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize(
    "beside",
    [
        np.float64(0.5),
        np.float32(0.5),
        np.int64(3),
        np.bool_(True),
        np.arange(3),
        np.array(["a", None], dtype=object),
        Path("outputs/model"),
        PurePosixPath("/data"),
        argparse.Namespace(output_dir=Path("out"), best=np.float64(0.5)),
        [datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), datetime.date(2024, 1, 2), datetime.timedelta(1)],
        [collections.deque([1, 2]), frozenset([1]), uuid.UUID(int=1), types.SimpleNamespace(a=1), range(3)],
    ],
    ids=repr,
)
def test_numbers_and_paths_beside_the_weights_do_not_shut_them_out(tmp_path, beside, form):
    path = tmp_path / "file.pth"
    torch.save({"model": encoder(), "beside": beside}, path, _use_new_zipfile_serialization=form == "zip")
    assert_is_encoder(read_original(path))


class ForgedNumber:
    """A number of numpy whose type says that its eight bytes are the address of an object."""

    def __reduce__(self):
        scalar, _ = np.float64(1).__reduce__()
        return scalar, (np.dtype("O"), b"AAAAAAAA")


def test_no_code_of_numpy_runs_on_what_a_file_says(tmp_path):
    torch.save({"model": encoder(), "beside": ForgedNumber()}, tmp_path / "file.pth")
    assert_is_encoder(read_original(tmp_path / "file.pth"))


def test_weights_of_numpy_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"not named tensors: norm\.bias"):
        read(tmp_path, {"model": encoder() | {"norm.bias": np.ones(8)}})


def test_the_command_takes_the_key(tmp_path, capsys):
    torch.save({"student": encoder(), "teacher": encoder(1)}, tmp_path / "file.pth")
    parser = argparse.ArgumentParser()
    add_convert_arguments(parser)
    flags = ["--num_attention_heads", "2", "--checkpoint_key", "teacher"]
    run_convert(parser.parse_args([str(tmp_path / "file.pth"), str(tmp_path / "model"), *flags]))
    assert "ViTMAERobustModel" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("default", [list, dict, float, None])
def test_containers_of_collections_hold_the_weights(tmp_path, form, default):
    path = tmp_path / "file.pth"
    content = collections.defaultdict(default, {"model": collections.defaultdict(default, encoder())})
    for wrapped in (content, collections.OrderedDict(model=collections.OrderedDict(encoder()))):
        torch.save(wrapped, path, _use_new_zipfile_serialization=form == "zip")
        assert_is_encoder(read_original(path))


def test_a_default_that_is_code_is_refused(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"model": encoder(), "log": collections.defaultdict(os.getcwd)}, path)
    with pytest.raises(ValueError, match="was refused, and none of its code was run: loading it would call .*getcwd"):
        read_original(path)


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    (tmp_path / name).write_text(LFS_POINTER)
    with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer, not the file itself: .*git lfs pull"):
        read_original(tmp_path / name)
