"""--optim_args: a setting that the optimizer does not take is named, with those that it takes."""

import inspect
import re
from types import SimpleNamespace

import pytest
from transformers import Trainer
from transformers.training_args import OptimizerNames

from hf_mae_robust.errors import UserError
from hf_mae_robust.pretrain import main
from hf_mae_robust.training.optim_args import SETTINGS, SWITCH, check_optim_args
from tests.runs import tiny_run


@pytest.mark.parametrize(
    ("optim", "given", "message"),
    [
        ("sgd", "momentun=0.9", "momentun: unknown (did you mean 'momentum'?); --optim sgd takes momentum, "),
        ("adamw_torch", "betas=0.9", "betas: unknown; --optim adamw_torch takes none"),
        ("sgd", "momentum", "'momentum' is not name=value"),
        ("sgd", "momentum=0.9,", "'' is not name=value"),
        ("sgd", "momentum==0.9", "'momentum==0.9' is not name=value"),
        ("sgd", "momentum=0.9,momentum=0.8", "momentum comes twice"),
        ("sgd", "momentum=x", "momentum=x: must be a number"),
        ("sgd", "momentum=nan", "momentum=nan: must be a number"),
        ("rmsprop", "centered=maybe", "centered=maybe: must be true or false"),
        ("galore_adamw", "rank=1.5", "rank=1.5: must be an integer"),
        ("stable_adamw", "kahan_sum=false", "kahan_sum=false: must be true, or left out"),
        ("one_of_tomorrow", "a", "'a' is not name=value"),
    ],
)
def test_what_is_wrong_is_named(optim, given, message):
    with pytest.raises(UserError) as error:
        check_optim_args(optim, given)
    assert str(error.value).startswith("--optim_args ") and message in str(error.value)


@pytest.mark.parametrize(
    ("optim", "given"),
    [
        ("sgd", "momentum=0.9, nesterov=True"),
        ("rmsprop", "alpha=1e-1"),
        ("adamw_torch", None),
        ("adafactor", ""),
        ("apollo_adamw", "proj=svd,rank=4"),
        ("one_of_tomorrow", "a=b"),
    ],
)
def test_what_is_right_passes(optim, given):
    check_optim_args(optim, given)


def test_a_run_ends_before_anything_is_written(photos_dir, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(tiny_run(photos_dir, "--output_dir", str(tmp_path / "out"), "--optim", "sgd", "--optim_args", "speed=9"))
    error = capsys.readouterr().err
    assert end.value.code == 2 and "--optim_args speed: unknown" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("optim", ["sgd", "adagrad", "rmsprop"])
def test_each_setting_reaches_its_optimizer(optim):
    """In transformers, whose optimizers these are and which passes over what it does not know."""

    def options(given):
        args = SimpleNamespace(optim=optim, optim_args=given, learning_rate=0.1, adam_epsilon=1e-8)
        args.adam_beta1 = args.adam_beta2 = 0.9
        return Trainer.get_optimizer_cls_and_kwargs(args)[1]

    for name, kind in SETTINGS[optim].items():
        assert options(f"{name}=1")[name] == (True if kind is SWITCH else 1.0)
    assert "speed" not in options("speed=9")


def test_the_table_is_that_of_the_installed_transformers():
    """By the source of its functions, most of which need a package to run."""
    handlers = pytest.importorskip("transformers.trainer_optimizer")._OPTIMIZER_HANDLERS
    for optim, handler in handlers.items():
        name, source = OptimizerNames(optim).value, inspect.getsource(handler)
        if name.startswith("rmsprop_bnb"):
            assert name not in SETTINGS
            continue
        if handler.__name__ == "_get_bitsandbytes_optimizer" and "ademamix" not in name:
            assert SETTINGS[name] == {}
            continue
        asked = set(re.findall(r'optim_args\.(?:get|pop)\("(\w+)"|"(\w+)" in ctx\.optim_args', source))
        asked = {found for pair in asked for found in pair if found}
        for names in re.findall(r"for key in \(([^)]*)\)", source):
            asked |= set(re.findall(r'"(\w+)"', names))
        assert asked == SETTINGS[name].keys(), name
