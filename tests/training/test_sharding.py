"""FSDP2 and DeepSpeed among CPU processes, launched as the shipped files say; and what is refused with them."""

import json
import logging
import signal
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from hf_mae_robust import ViTMAERobustForInstanceSegmentation, ViTMAERobustInstanceSegmentationConfig
from hf_mae_robust.errors import EXIT_STOPPED, UserError
from hf_mae_robust.pretrain import main, make_parser
from hf_mae_robust.training.sharding import check_deepspeed, check_fsdp, layers_of
from tests.faults import send
from tests.fresh import run_without_the_package
from tests.helpers import as_flags, finetuning_settings
from tests.launch_files import LAUNCH_CONFIGS, environment_of
from tests.model.test_instance_segmentation import TINY_DETECTOR
from tests.model_helpers import build
from tests.runs import largest_difference, run, tiny_run

FLOAT32 = ("--mixed_precision", "no")
INGREDIENTS = ["--target_normalization", "global_patch", "--target_statistics", "auto", "--mid_mask_ratio", "0.25"]


@pytest.fixture(scope="module")
def words(photos_dir):
    """Of 15 steps of two processes. A process draws the dropout of its own images, so this equals FSDP2 only."""
    return tiny_run(photos_dir, *INGREDIENTS, "--per_device_train_batch_size", "4", "--base_learning_rate", "0.01")


def assert_same_model(folder, other):
    here, there = (load_file(each / "model.safetensors") for each in (folder, other))
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        if name.endswith(("key.bias", "k_proj.bias")):
            continue  # softmax does not feel it: its gradient is rounding, which AdamW makes as large as others
        torch.testing.assert_close(tensor, there[name], rtol=1e-4, atol=1e-6)


# ---- FSDP2 ----


def test_fsdp2_as_shipped_trains_and_leaves_what_ddp_does(words, tmp_path):
    """bf16 comes from the files, and is said. Clipping, so that the norm is that of whole gradients."""
    words = [*words, "--max_steps", "6", "--max_grad_norm", "0.5", "--eval_strategy", "steps", "--eval_steps", "3"]
    ddp = run(words, tmp_path / "ddp", 2, **environment_of("ddp_8gpu.yaml"))
    fsdp = run(words, tmp_path / "fsdp", 2, **environment_of("fsdp2_8gpu.yaml"))
    for each in (ddp, fsdp):
        assert each.codes == [0, 0], each.output
        assert ", cpu bf16\n" in each.output and "8 (4 x 2 processes x 1 accumulated)" in each.output
        assert json.loads((each.folder / "run.json").read_text())["bf16"] is True
        assert json.loads((each.folder / "training_args.json").read_text())["bf16"] is True
    assert largest_difference(fsdp, ddp) < 1e-6
    for name in ("eval_loss", "grad_norm"):
        of = [[entry[name] for entry in each.state()["log_history"] if name in entry] for each in (fsdp, ddp)]
        assert of[0] == pytest.approx(of[1], rel=1e-6) and len(of[0]) >= 2
    assert_same_model(fsdp.folder, ddp.folder)
    assert sorted(path.name for path in fsdp.folder.iterdir()) == sorted(path.name for path in ddp.folder.iterdir())
    for name in ("config.json", "modeling_vit_mae_robust.py", "example_1.png"):
        assert (fsdp.folder / name).read_bytes() == (ddp.folder / name).read_bytes(), name
    assert (fsdp.folder / "reconstructions.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--gradient_accumulation_steps", "2"], ["--activation_checkpointing"]])
def test_fsdp2_in_float32_equals_ddp(words, tmp_path, more):
    words = [*words, *more]
    ddp = run(words, tmp_path / "ddp", 2)
    fsdp = run(words, tmp_path / "fsdp", 2, **environment_of("fsdp2_8gpu.yaml", *FLOAT32))
    assert fsdp.codes == [0, 0], fsdp.output
    assert largest_difference(fsdp, ddp) < 1e-6
    assert_same_model(fsdp.folder, ddp.folder)


@pytest.mark.slow
def test_fsdp_as_a_flag(words, tmp_path):
    words = [*words, "--max_steps", "4"]
    shim = {"IMPORT": "tests.fsdp_on_cpu.sitecustomize"}
    ddp, fsdp = run(words, tmp_path / "ddp", 2), run([*words, "--fsdp"], tmp_path / "fsdp", 2, **shim)
    assert fsdp.codes == [0, 0], fsdp.output
    assert largest_difference(fsdp, ddp) < 1e-6


@pytest.mark.slow
def test_fsdp2_stopped_killed_and_resumed_equals_the_uninterrupted_run(words, tmp_path):
    words = [*words, "--save_strategy", "steps", "--save_steps", "4", "--save_total_limit", "1"]
    environment = environment_of("fsdp2_8gpu.yaml", *FLOAT32)
    whole = run(words, tmp_path / "whole", 2, **environment)
    assert whole.codes == [0, 0], whole.output
    stopped = run(words, tmp_path / "cut", 2, send(signal.SIGTERM, 5, rank=1), **environment)
    assert stopped.codes == [EXIT_STOPPED] * 2, stopped.output
    killed = run(words, tmp_path / "cut", 2, send(signal.SIGKILL, 10), **environment)
    assert killed.codes[0] == -signal.SIGKILL and "checkpoint-6" in killed.output
    resumed = run(words, tmp_path / "cut", 2, **environment)
    assert resumed.codes == [0, 0] and f"Resuming from {tmp_path / 'cut' / 'checkpoint-8'}" in resumed.output
    assert resumed.losses() == whole.losses() and len(whole.losses()) == 15
    assert resumed.weights() == whole.weights()

    code = """
import sys
from transformers import AutoModel, AutoModelForPreTraining
for auto in (AutoModel, AutoModelForPreTraining):
    model, info = auto.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
    print(type(model).__name__, sum(map(len, info.values())))
"""
    printed = run_without_the_package(code, tmp_path, str(resumed.folder))
    assert printed.split() == ["ViTMAERobustModel", "0", "ViTMAERobustForPreTraining", "0"]


@pytest.mark.slow
def test_a_classifier_is_sharded_by_the_same_file(photos_dir, encoder_dir, tmp_path):
    settings = finetuning_settings(photos_dir, encoder_dir, tmp_path / "of the settings")
    words = as_flags(settings, "--per_device_train_batch_size", "4", "--drop_path_rate", "0", "--mixup", "0")
    words += ["--cutmix", "0"]
    ddp = run(words, tmp_path / "ddp", 2, script="finetune")
    fsdp = run(words, tmp_path / "fsdp", 2, script="finetune", **environment_of("fsdp2_8gpu.yaml", *FLOAT32))
    assert fsdp.codes == [0, 0], fsdp.output
    assert largest_difference(fsdp, ddp) < 1e-6
    assert_same_model(fsdp.folder, ddp.folder)
    assert json.loads((fsdp.folder / "config.json").read_text())["architectures"] == ["BeitForImageClassification"]


def test_a_state_dict_in_parts_is_refused_before_the_first_step(words, tmp_path):
    kind = ("--fsdp_state_dict_type", "SHARDED_STATE_DICT")
    refused = run(words, tmp_path / "out", 2, **environment_of("fsdp2_8gpu.yaml", *FLOAT32, *kind))
    assert refused.codes == [2, 2], refused.output
    assert "SHARDED_STATE_DICT" in refused.stderr and "fsdp_state_dict_type: FULL_STATE_DICT" in refused.stderr
    assert not (tmp_path / "out").exists()


TINY = {"image_size": 16, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (build, ["ViTMAERobustLayer"]),
        (lambda: BeitForImageClassification(BeitConfig(**TINY)), ["BeitLayer"]),
        (lambda: Dinov2ForImageClassification(Dinov2Config(**TINY)), ["Dinov2Layer"]),
        (
            lambda: UperNetForSemanticSegmentation(
                UperNetConfig(backbone_config=BeitConfig(**TINY | {"num_hidden_layers": 4}, out_indices=[1, 2, 3, 4]))
            ),
            ["BeitLayer"],
        ),
        (
            lambda: ViTMAERobustForInstanceSegmentation(ViTMAERobustInstanceSegmentationConfig(**TINY_DETECTOR)),
            ["VitDetLayer"],
        ),
    ],
    ids=["pretraining", "classification", "Dinov2", "segmentation", "detection"],
)
def test_layers_are_found_in_every_kind_of_model(make, names):
    assert layers_of(make()) == names


def test_layers_that_the_model_lacks_are_refused():
    plugin = SimpleNamespace(state_dict_type="FULL_STATE_DICT", transformer_cls_names_to_wrap=["ViTMAERobustLayer"])
    check_fsdp(plugin, build())
    with pytest.raises(UserError, match="ViTMAERobustLayer.*BeitForImageClassification has none.*BeitLayer"):
        check_fsdp(plugin, BeitForImageClassification(BeitConfig(**TINY)))


def test_the_shipped_files_leave_the_layers_to_the_model():
    for path in LAUNCH_CONFIGS.glob("fsdp2*.yaml"):
        assert "cls_to_wrap" not in path.read_text()


def test_fsdp_that_accelerate_drops_is_said(words, tmp_path, monkeypatch, caplog):
    """As it does on CPUs."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with caplog.at_level(logging.WARNING):
        main([*words, "--max_steps", "1", "--output_dir", str(tmp_path / "out")])
    assert "every process holds the complete model (DDP)" in caplog.text


# ---- precision ----


def test_the_precision_of_the_launcher_is_that_of_the_run(words, tmp_path, monkeypatch, capsys):
    """`accelerate launch --mixed_precision bf16`, or its file, without --bf16."""
    words = [*words, "--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--save_strategy", "steps"]
    words += ["--save_steps", "1"]
    main(words)
    assert ", cpu\n" in capsys.readouterr().out
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and "bf16: False there, True here" in capsys.readouterr().err
    assert make_parser().parse(words).training.bf16 is True
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert make_parser().parse([*words, "--bf16"]).training.bf16 is True


# ---- DeepSpeed ----


def deepspeed_file(mismatches=(), **sections):
    return SimpleNamespace(config=sections, mismatches=list(mismatches))


def test_files_of_deepspeed_that_say_something_else_are_refused():
    check_deepspeed(deepspeed_file(zero_optimization={"stage": 2}))
    with pytest.raises(UserError, match="has a section optimizer and one scheduler. Leave"):
        check_deepspeed(deepspeed_file(scheduler={}, optimizer={}))
    found = ["- ds bf16.enabled=True vs hf bf16|bf16_full_eval=False", "- ds gradient_clipping=1 vs hf max_grad_norm=0"]
    with pytest.raises(
        UserError, match=r"\(bf16.enabled=True there, bf16=False here; gradient_clipping=1 there, max_g"
    ):
        check_deepspeed(deepspeed_file(found))


needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


@needs_deepspeed
def test_zero2_equals_ddp(words, tmp_path):
    words = [*words, "--max_steps", "5", "--max_grad_norm", "0.5"]
    ddp = run(words, tmp_path / "ddp", 2)
    zero = run(words, tmp_path / "zero", 2, **environment_of("deepspeed_zero2_8gpu.yaml", *FLOAT32))
    assert zero.codes == [0, 0], zero.output
    assert largest_difference(zero, ddp) < 1e-6
    assert_same_model(zero.folder, ddp.folder)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", ["2", "3"])
def test_zero_stopped_and_resumed_equals_the_uninterrupted_run(words, tmp_path, stage):
    words = [*words, "--max_steps", "6"]
    environment = environment_of("deepspeed_zero2_8gpu.yaml", *FLOAT32, "--zero_stage", stage)
    whole = run(words, tmp_path / "whole", 2, **environment)
    stopped = run(words, tmp_path / "cut", 2, send(signal.SIGTERM, 3, rank=1), **environment)
    assert stopped.codes == [EXIT_STOPPED] * 2, stopped.output
    resumed = run(words, tmp_path / "cut", 2, **environment)
    assert resumed.codes == [0, 0] and "Resuming from" in resumed.output, resumed.output
    assert resumed.losses() == whole.losses() and resumed.weights() == whole.weights()


@needs_deepspeed
@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_a_run_with_deepspeed(words, tmp_path):
    nan = "lambda m, a, o: o.__setitem__('loss', o.loss * float('nan')) or o"
    fault = f"rank == 1 and trainer.state.global_step == 2 and trainer.model.register_forward_hook({nan})"
    ended = run(words, tmp_path / "out", 2, fault, **environment_of("deepspeed_zero2_8gpu.yaml", *FLOAT32))
    assert ended.codes == [3, 3], ended.output
    assert list(tmp_path.glob("out/nonfinite-step-3-rank-*.json")) and not list(tmp_path.glob("out/checkpoint-*"))


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("precision", [FLOAT32, ()], ids=["float32", "bf16"])
def test_a_classifier_trains_with_zero2(photos_dir, encoder_dir, tmp_path, precision):
    words = as_flags(
        finetuning_settings(photos_dir, encoder_dir, tmp_path / "of the settings"), "--drop_path_rate", "0"
    )
    words += ["--per_device_train_batch_size", "4", "--mixup", "0", "--cutmix", "0"]
    ddp = run(words, tmp_path / "ddp", 2, script="finetune")
    environment = environment_of("deepspeed_zero2_8gpu.yaml", *precision)
    zero = run(words, tmp_path / "zero", 2, script="finetune", **environment)
    assert zero.codes == [0, 0], zero.output
    assert largest_difference(zero, ddp) < (1e-6 if precision else 5e-2)


@needs_deepspeed
@pytest.mark.slow
def test_zero2_as_shipped_trains_in_bf16(words, tmp_path):
    words = [*words, "--max_steps", "6"]
    alone = run(words, tmp_path / "float32", 2)
    zero = run(words, tmp_path / "zero", 2, **environment_of("deepspeed_zero2_8gpu.yaml"))
    assert zero.codes == [0, 0] and ", cpu bf16\n" in zero.output, zero.output
    assert largest_difference(zero, alone) < 2e-2
    assert load_file(zero.folder / "model.safetensors")["target_normalizer.mean"].dtype == torch.float32


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("start", [(), ("--model_name_or_path",), ("--encoder_from",)], ids=["new", "model", "encoder"])
def test_zero3_equals_ddp_and_leaves_a_whole_model(words, encoder_dir, tmp_path, start):
    words = [*words, "--max_steps", "4", "--max_grad_norm", "0.5", *start, *([encoder_dir] if start else [])]
    environment = environment_of("deepspeed_zero2_8gpu.yaml", *FLOAT32, "--zero_stage", "3")
    ddp = run(words, tmp_path / "ddp", 2)
    zero = run(words, tmp_path / "zero", 2, **environment)
    assert zero.codes == [0, 0], zero.output
    assert largest_difference(zero, ddp) < 1e-6
    assert_same_model(zero.folder, ddp.folder)
    assert (zero.folder / "reconstructions.png").exists()
    _, info = type(build()).from_pretrained(zero.folder, output_loading_info=True)
    assert not any(info.values())


@needs_deepspeed
@pytest.mark.slow
def test_a_classifier_trains_with_zero3(photos_dir, encoder_dir, tmp_path):
    settings = finetuning_settings(photos_dir, encoder_dir, tmp_path / "of the settings")
    words = as_flags(settings, "--per_device_train_batch_size", "4", "--drop_path_rate", "0", "--mixup", "0")
    words += ["--cutmix", "0"]
    ddp = run(words, tmp_path / "ddp", 2, script="finetune")
    environment = environment_of("deepspeed_zero2_8gpu.yaml", *FLOAT32, "--zero_stage", "3")
    zero = run(words, tmp_path / "zero", 2, script="finetune", **environment)
    assert zero.codes == [0, 0], zero.output
    assert largest_difference(zero, ddp) < 1e-6
    assert_same_model(zero.folder, ddp.folder)


@needs_deepspeed
def test_steps_cannot_be_passed_over_with_deepspeed(words, tmp_path):
    environment = environment_of("deepspeed_zero2_8gpu.yaml", *FLOAT32)
    refused = run([*words, "--skip_nonfinite_steps", "2"], tmp_path / "out", 2, **environment)
    assert refused.codes == [2, 2] and "--skip_nonfinite_steps 2: DeepSpeed" in refused.stderr, refused.output
