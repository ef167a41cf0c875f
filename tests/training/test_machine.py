"""What the machine or PyTorch cannot do is said before the training, which would pass over it or fail."""

import pytest
import torch

from hf_mae_robust import finetune, pretrain
from hf_mae_robust.errors import UserError
from hf_mae_robust.training import machine
from tests.helpers import as_flags, finetuning_settings
from tests.runs import tiny_run

on_a_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")


def refusal(main, words, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    error = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in error
    return error


CHECKPOINTING = ["--activation_checkpointing", "--activation_checkpointing_kwargs"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--fp16"], "--fp16 needs a GPU, and this run is on a CPU", marks=on_a_cpu),
        pytest.param(["--tf32", "true"], "--tf32 requires", marks=on_a_cpu),
        (["--bf16", "--fp16"], "At most one of fp16 and bf16"),
        (["--fp16_full_eval"], "--fp16_full_eval is not for evaluations here"),
        (["--bf16_full_eval"], "--bf16_full_eval is not for evaluations here"),
        ([CHECKPOINTING[1], '{"use_reentrant": false}'], "has no effect without --activation_checkpointing"),
        ([*CHECKPOINTING, '{"use_rentrant": false}'], "unknown 'use_rentrant'; there are use_reentrant, "),
        ([*CHECKPOINTING, '{"use_reentrant": "no"}'], "use_reentrant must be true or false"),
        ([*CHECKPOINTING, '{"every_n_layers": 0}'], "every_n_layers must be an integer of at least 1"),
        ([*CHECKPOINTING, '{"determinism_check": "x"}'], "determinism_check should be one of"),
        (["--torch_compile_mode", "fast"], "--torch_compile_mode fast: one of default, "),
    ],
)
def test_what_cannot_be_is_a_sentence(words, message, photos_dir, tmp_path, capsys):
    words = tiny_run(photos_dir, "--output_dir", str(tmp_path / "out"), *words)
    assert message in refusal(pretrain.main, words, capsys)
    assert not (tmp_path / "out").exists()


@on_a_cpu
@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_precision_of_accelerate_launch_is_meant_too(precision, photos_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    words = tiny_run(photos_dir, "--output_dir", str(tmp_path / "out"))
    assert f"--mixed_precision {precision} of `accelerate launch` needs a GPU" in refusal(pretrain.main, words, capsys)


def test_a_machine_that_cannot_compile_is_found_out_before(photos_dir, tmp_path, capsys, monkeypatch):
    def no_compiler(function, **options):
        def compiled(*inputs):
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

        return compiled

    monkeypatch.setattr(torch, "compile", no_compiler)
    words = tiny_run(photos_dir, "--output_dir", str(tmp_path / "out"), "--torch_compile")
    error = refusal(pretrain.main, words, capsys)
    assert "--torch_compile cannot compile on this machine" in error and "No working C++ compiler found" in error


@pytest.mark.parametrize("settings", [None, {}, {"use_reentrant": True}, {"every_n_layers": 2, "offload": False}])
def test_what_checkpointing_takes_passes(settings, photos_dir, tmp_path):
    words = tiny_run(photos_dir, "--output_dir", str(tmp_path / "out"), "--activation_checkpointing")
    training = pretrain.make_parser().parse(words).training
    training.activation_checkpointing_kwargs = settings
    machine.check_activation_checkpointing(training)
    training.activation_checkpointing_kwargs = {"speed": 9}
    with pytest.raises(UserError, match="unknown 'speed'"):
        machine.check_activation_checkpointing(training)


@pytest.mark.parametrize(
    "words",
    [
        ["--activation_checkpointing"],
        ["--optim", "sgd"],
        ["--optim_args", "eps=1"],
        ["--layer_decay", "0.5"],
        ["--drop_path_rate", "0.2"],
    ],
)
def test_a_linear_probe_has_an_optimizer_of_its_own_and_no_layers_to_train(
    words, photos_dir, encoder_dir, tmp_path, capsys
):
    settings = finetuning_settings(photos_dir, encoder_dir, tmp_path / "out")
    error = refusal(finetune.main, as_flags(settings, "--linear_probe", "true", *words), capsys)
    assert f"{' '.join(words)} is not for --linear_probe" in error
