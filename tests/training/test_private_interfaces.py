"""What this package uses of its dependencies that they do not promise to keep: a release that changes it fails here,
in words, and not somewhere in a training."""

import argparse
import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import evaluate
import pytest
import torch
from datasets import Dataset
from faster_coco_eval import mask_api_new_cpp
from faster_coco_eval.core import mask as rle
from fsspec.implementations.local import LocalFileSystem
from torch.distributed import distributed_c10d
from torchvision.models.detection import _utils as torchvision_detection_utils
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments

PACKAGE = Path(__file__).parents[2] / "hf_mae_robust"


@dataclass(frozen=True)
class Private:
    """A name that one of our files relies on.

    Attributes:
        owner: class or module that has it. file: ours, below hf_mae_robust/. verb: what we do with it.
        signature: parameters with their defaults, without types; None: an attribute.
        find: gets an attribute that only an instance has.
    """

    library: str
    owner: Any
    name: str
    signature: str | None
    file: str
    verb: str = "overrides"
    find: Callable[[Path], Any] | None = None

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.name}-{self.file}"

    def complaint(self, now: str) -> str:
        release = sys.version.split()[0] if self.library == "Python" else version(self.library)
        return (
            f"{self.library} {release}: {self.owner.__name__}.{self.name}{self.signature or ''} {now}; {self.file} "
            f"{self.verb} it."
        )


def _trainer(folder: Path) -> Trainer:
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", per_device_train_batch_size=3)
    return Trainer(torch.nn.Linear(1, 1), args)


def _scheduler(folder: Path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def _train_batch_size(folder: Path) -> int:
    return _trainer(folder)._train_batch_size


def _n_gpu(folder: Path) -> int:
    args = TrainingArguments(output_dir=str(folder), report_to="none")
    args._n_gpu = 1
    return args.n_gpu


def _trainers(name: str, signature: str, *files: str, verb: str = "overrides") -> list[Private]:
    return [Private("transformers", Trainer, name, signature, file, verb) for file in files]


def _models(name: str, signature: str | None, *files: str, verb: str = "overrides") -> list[Private]:
    return [Private("transformers", PreTrainedModel, name, signature, file, verb) for file in files]


MODEL, DETECTION = "model/modeling_vit_mae_robust.py", "model/modeling_vit_mae_robust_detection.py"

TABLE = [
    # ---- transformers: the Trainer ----
    *_trainers("_prepare_input", "(self, data)", "training/data_feeding.py"),
    *_trainers("_prepare_inputs", "(self, inputs)", "training/data_feeding.py", "finetuning/trainer.py"),
    *_trainers("_prepare_inputs", "(self, inputs)", "training/profiling.py", verb="times"),
    *_trainers(
        "_maybe_log_save_evaluate",
        "(self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=None)",
        "training/profiling.py",
        verb="times",
    ),
    *_trainers("_get_grad_norm", "(self, model, grad_norm=None)", "training/trainer.py"),
    *_trainers(
        "_init_training_state",
        "(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial)",
        "training/resuming.py",
    ),
    *_trainers("_load_optimizer_and_scheduler", "(self, checkpoint)", "training/resuming.py"),
    *_trainers(
        "_evaluate", "(self, trial, ignore_keys_for_eval, skip_scheduler=False)", "training/resuming.py", verb="calls"
    ),
    *_trainers("_determine_best_metric", "(self, metrics, trial)", "training/resuming.py", verb="calls"),
    *_trainers("_issue_warnings_after_load", "(self, load_result)", "training/resuming.py"),
    *_trainers("_get_output_dir", "(self, trial)", "training/checkpointing.py"),
    *_trainers(
        "_save_checkpoint",
        "(self, model, trial)",
        "training/checkpointing.py",
        "training/publishing.py",
        "training/trainer.py",
    ),
    *_trainers("_save", "(self, output_dir=None, state_dict=None)", "training/checkpointing.py"),
    *_trainers("_push_from_checkpoint", "(self, checkpoint_folder)", "training/publishing.py"),
    *_trainers("_get_learning_rate", "(self)", "training/layer_decay.py"),
    *_trainers("_load_from_checkpoint", "(self, resume_from_checkpoint, model=None)", "finetuning/trainer.py"),
    *_trainers("_load_best_model", "(self)", "finetuning/trainer.py"),
    *(
        Private("transformers", Trainer, "_train_batch_size", None, file, "reads", _train_batch_size)
        for file in ("training/data_feeding.py", "finetuning/classification/linear_probe.py")
    ),
    Private("transformers", TrainingArguments, "_validate_args", "(self)", "training/arguments.py"),
    Private("transformers", TrainingArguments, "_n_gpu", None, "training/launch.py", "sets", _n_gpu),
    # ---- transformers: models and their settings ----
    *_models(
        "_from_config",
        "(config, **kwargs)",
        "pretraining/task.py",
        "finetuning/classification/models.py",
        "finetuning/segmentation/linear_head.py",
        verb="calls",
    ),
    *_models("_init_weights", "(self, module)", MODEL, DETECTION),
    *_models("_no_split_modules", None, MODEL),
    *_models("_keep_in_fp32_modules_strict", None, MODEL, DETECTION),
    *_models("_keys_to_ignore_on_load_unexpected", None, MODEL),
    *(
        Private("transformers", PreTrainedConfig, "_attn_implementation", None, file, "reads")
        for file in (MODEL, "analysis/block_views.py", "finetuning/segmentation/models.py", "pretraining/task.py")
    ),
    Private(
        "transformers",
        PreTrainedConfig,
        "_attn_implementation_internal",
        None,
        MODEL,
        "sets",
        lambda folder: PreTrainedConfig(attn_implementation="eager")._attn_implementation_internal,
    ),
    # ---- torch, torchvision ----
    Private("torch", torch.nn.Module, "_apply", "(self, fn, recurse=True)", MODEL),
    Private("torch", torch.nn.Module, "_apply", "(self, fn, recurse=True)", DETECTION),
    Private(
        "torch",
        torch.optim.lr_scheduler.LambdaLR,
        "_last_lr",
        None,
        "training/resuming.py",
        "sets",
        lambda folder: _scheduler(folder)._last_lr,
    ),
    Private(
        "torchvision",
        torchvision_detection_utils,
        "BalancedPositiveNegativeSampler",
        "(batch_size_per_image, positive_fraction)",
        DETECTION,
        "imports",
    ),
    Private("torch", torch, "_dynamo", None, "pretraining/trainer.py", "calls"),
    Private("torch", torch._dynamo, "mark_static", "(t, index=None)", "pretraining/trainer.py", "calls"),
    Private("torch", distributed_c10d, "_get_default_store", "()", "training/peers.py", "calls"),
    # ---- others ----
    Private("fsspec", LocalFileSystem, "_strip_protocol", "(path)", "data/remote_file.py", "calls"),
    Private("evaluate", evaluate.Metric, "_info", "(self)", "finetuning/classification/metrics.py"),
    Private(
        "evaluate",
        evaluate.Metric,
        "_compute",
        "(self, *, predictions=None, references=None, **kwargs)",
        "finetuning/classification/metrics.py",
    ),
    Private("Python", argparse.HelpFormatter, "_format_action_invocation", "(self, action)", "training/parser.py"),
    Private("Python", argparse.HelpFormatter, "_get_help_string", "(self, action)", "training/parser.py"),
    Private(
        "Python",
        argparse.HelpFormatter,
        "_format_args",
        "(self, action, default_metavar)",
        "training/parser.py",
        "calls",
    ),
    Private(
        "Python",
        argparse.ArgumentParser,
        "_actions",
        None,
        "training/parser.py",
        "reads",
        lambda folder: argparse.ArgumentParser()._actions[0].dest,
    ),
    *(
        Private(
            "Python",
            argparse.ArgumentParser,
            "_negative_number_matcher",
            None,
            file,
            "sets",
            lambda folder: argparse.ArgumentParser()._negative_number_matcher.match("-1.5"),
        )
        for file in ("training/parser.py", "__main__.py")
    ),
    Private(
        "Python",
        argparse,
        "_ArgumentGroup",
        "(container, title=None, description=None, **kwargs)",
        "training/arguments.py",
        "names",
    ),
    Private(
        "datasets",
        Dataset,
        "_indices",
        None,
        "data/source.py",
        "reads",
        lambda folder: (
            Dataset.from_dict({"a": [1, 2, 3]}).select([2, 0])._indices.column(0).to_pylist() == [2, 0] or None
        ),
    ),
]
# Documented as public though they begin with an underscore.
PUBLIC = {"_replace", "_asdict", "_fields"}


def without_types(signature: inspect.Signature) -> str:
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("private", TABLE, ids=str)
def test_it_is_there_as_we_use_it(private, tmp_path):
    if private.find is not None:
        try:
            assert private.find(tmp_path) is not None
        except AttributeError:
            pytest.fail(private.complaint("is not there"))
        return
    if not hasattr(private.owner, private.name):
        pytest.fail(private.complaint("is not there"))
    if private.signature is not None:
        now = without_types(inspect.signature(getattr(private.owner, private.name)))
        assert now == private.signature, private.complaint(f"is now {private.name}{now}")


def test_a_change_is_told_in_words():
    save = next(each for each in TABLE if each.name == "_save_checkpoint")
    assert save.complaint("is now _save_checkpoint(self)") == (
        f"transformers {version('transformers')}: Trainer._save_checkpoint(self, model, trial) is now "
        "_save_checkpoint(self); training/checkpointing.py overrides it."
    )


def test_faster_coco_eval_has_the_functions_of_its_compiled_module():
    """finetuning/detection/{coco,objects}.py call it: no documented function gives the lengths of the runs."""
    runs = {"size": [2, 3], "counts": [1, 2, 3]}
    (mask,) = mask_api_new_cpp.toUncompressedRLE([rle.frPyObjects(runs, *runs["size"])])
    assert list(mask["counts"]) == runs["counts"]


# ---- is anything missing from the table? ----


@cache
def trees() -> dict[str, ast.Module]:
    """Every file of the package, by its path below it."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def members(definition: ast.ClassDef) -> set[str]:
    """Names that the body of a class binds."""
    found = {node.name for node in definition.body if isinstance(node, ast.FunctionDef)}
    for node in definition.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


@cache
def own_names() -> set[str]:
    """Private names that are ours: bound by a class or function of the package, or as an attribute of `self`."""
    found = set()
    for node in (node for tree in trees().values() for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            found |= members(node)
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found


def overrides_of(file: str) -> set[str]:
    """Private members that a class of ours has, and a class of a library that it inherits from as well."""
    module, found = None, set()
    for node in trees()[file].body:
        if isinstance(node, ast.ClassDef) and (names := {name for name in members(node) if is_private(name)}):
            module = module or importlib.import_module("hf_mae_robust." + file.removesuffix(".py").replace("/", "."))
            parents = getattr(module, node.name).__mro__[1:]
            foreign = [parent for parent in parents if not parent.__module__.startswith("hf_mae_robust")]
            found |= {name for name in names if any(name in vars(parent) for parent in foreign)}
    return found


def uses_of(file: str) -> set[str]:
    """Private names that a file asks `super()` for, imports, or takes from something that is not of this package."""
    found = set()
    for node in ast.walk(trees()[file]):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if ast.unparse(node.value) == "super()" or node.attr not in own_names():
                found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if any(is_private(part) for part in node.module.split(".")):
                found |= {alias.name for alias in node.names}
            found |= {alias.name for alias in node.names if is_private(alias.name)}
    return found - PUBLIC


@pytest.mark.parametrize("file", sorted(trees()))
def test_no_use_is_missing_here(file):
    missing = (overrides_of(file) | uses_of(file)) - {private.name for private in TABLE if private.file == file}
    assert not missing, f"{file} relies on {', '.join(sorted(missing))} of a library: add it to TABLE"


@pytest.mark.parametrize("private", TABLE, ids=str)
def test_no_line_of_the_table_is_left_over(private):
    assert private.name in (PACKAGE / private.file).read_text(encoding="utf-8")
