"""python -m hf_mae_robust reproduce: the paper's tables and its Figure 2, and studies of our own, as commands."""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import EXIT_STOPPED, StudyError, UserError
from .definitions import (
    ANALYSIS,
    FINETUNE,
    FINETUNE_PAPER,
    FROZEN,
    FROZEN_KINDS,
    FROZEN_PAPER,
    FROZEN_SAMPLES,
    LEARNING_RATES,
    MAE,
    NUM_BLOCKS,
    NUM_BLOCKS_DENSE,
    PRETRAIN,
    PRETRAIN_DENSE,
    PROBED_EVERY,
    PROBES,
    SEEDS,
    STUDIES,
    Study,
    Variant,
    studies,
)
from .plan_report import write_plan_report
from .rates_report import write_rates_report
from .report import Results, write_report
from .runner import Run, StudyRunner

PAPER_DATA = {
    "classification": "ILSVRC/imagenet-1k",
    "detection": "path/to/coco",
    "segmentation": "path/to/ade20k",
}
PAPER_FLAGS = {"segmentation": ["--do_reduce_labels"]}  # 0 is not a class in ADE20K's maps


def add_reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("studies", nargs="+", choices=STUDIES, metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument(
        "--scale",
        choices=["smoke", "small", "medium", "paper"],
        default="small",
        help="smoke: minutes, on digits; small: hours on a CPU, on --dataset_name; medium: longer, on all its images; "
        "paper: prints the commands for ImageNet (%(default)s).",
    )
    parser.add_argument("--run", dest="starts_runs", action="store_true", help="With --scale paper: also start them.")
    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", help="Labelled images (small, medium), or ImageNet, COCO or ADE20K (paper).")
    data.add_argument("--pretrain_dataset_name", help="Other images to pre-train on; default: --dataset_name.")
    data.add_argument("--label_column_name", help="Column of the labels, where it is not the only one.")
    runs = parser.add_argument_group("runs")
    runs.add_argument(
        "--seeds",
        type=int,
        help=f"Runs of each variant; default: {SEEDS['smoke']} (smoke), {SEEDS['small']} (small), or {SEEDS['medium']} "
        "(medium). half_epochs has fewer of some variants, and learning_rates one.",
    )
    runs.add_argument("--num_train_epochs", type=float, help="Epochs of pre-training; default: the scale's.")
    runs.add_argument("--base_learning_rate", type=float, help="That of pre-training; default: the scale's.")
    runs.add_argument("--pretrain_flags", default="", help="More flags for run_pretrain.py, in one string.")
    runs.add_argument("--finetune_flags", default="", help="More flags for run_finetune.py, in one string.")
    runs.add_argument("--probe_flags", default="", help="More flags for the probes of half_epochs, in one string.")
    runs.add_argument("--analyze_flags", default="", help="More flags for `analyze features`, in one string.")
    runs.add_argument("--parallel", type=int, help="Runs at a time; default: cores, or GPUs, at most 8.")
    runs.add_argument("--num_gpus", type=int, default=8, help="With --scale paper (%(default)s).")
    runs.add_argument("--output_dir", type=Path, default=Path("outputs/reproduce"), help="(%(default)s)")
    runs.add_argument("--report_only", action="store_true", help="Report the finished runs, and start none.")


def _as_settings(text: str) -> dict[str, Any]:
    """`"--a 1 --b"` -> `{"a": "1", "b": True}`. Raises ValueError."""
    settings: dict[str, Any] = {}
    name = None
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"'{text}': {error}. Flags are written as in a shell.") from error
    for word in words:
        if word.startswith("--"):
            name = word[2:]
            settings[name] = True
        elif name is None:
            raise UserError(f"'{text}': flags begin with --, and '{word}' does not.")
        else:
            before = settings[name]
            settings[name] = word if before is True else [*(before if isinstance(before, list) else [before]), word]
    return settings


def runs_of(study: Study, args: argparse.Namespace) -> list[Run]:
    """What a study consists of, seed by seed, so that early reports compare complete seeds. Studies share runs: those
    of classification and Figure 2, and the pre-training for detection and segmentation on the same images."""
    root = args.output_dir / args.scale
    folder = root / (study.task if study.is_dense else "classification")
    pretrained = root / "dense" if study.is_dense and args.pretrain_dataset_name else folder
    pretraining, finetuning = _pretraining(study, args), _finetuning(study, args)
    analysis, frozen = None, {kind: _frozen(kind, study, args) for kind in study.frozen}
    if "label_column_name" in pretraining and study.held_out is None:
        analysis = {"dataset_name": pretraining["dataset_name"], **ANALYSIS}
        analysis |= _as_settings(args.analyze_flags)

    def pretrain_run(variant: Variant, seed: int) -> Run:
        settings = {**pretraining, **variant.flags(), **variant.by_scale.get(args.scale, {}), "seed": seed}
        if "num_train_epochs" in settings and args.scale in variant.epochs:
            settings["num_train_epochs"] = _epochs(float(settings["num_train_epochs"]), variant, args.scale)
        if args.scale == "medium":
            settings.setdefault("base_learning_rate", LEARNING_RATES[variant.tuned])
            settings.setdefault("diagnostics_steps", round(PROBED_EVERY / variant.epochs.get("medium", 1.0), 6))
        if variant.learning_rate is not None:
            settings["base_learning_rate"] = variant.learning_rate
        place = pretrained / f"{variant.name}-{seed}" / "pretrain"
        return Run("pretrain", place, settings, None, {"variant": variant.name, "seed": seed})

    runs = []
    for seed, variants in _by_seed(study, args.seeds).items():
        for variant in variants:
            name, described = f"{variant.name}-{seed}", {"variant": variant.name, "seed": seed}
            if variant.changes is None:
                # The sizes of MAE's model, and nothing else of it.
                first, start = pretrain_run(MAE, 0), {"from_scratch": True}
            else:
                first, start = pretrain_run(variant, seed), {}
                runs.append(first)
                if analysis is not None:
                    runs.append(Run("analyze", folder / name / "analyze", analysis, first, described))
                for kind, settings in frozen.items():
                    module = "knn" if kind == "knn" else "finetune"
                    seeded = settings if kind == "knn" else {**settings, "seed": seed}
                    runs.append(Run(module, folder / name / kind, seeded, first, described))
            if finetuning is not None:
                settings = {**finetuning, **start, "seed": seed}
                runs.append(Run("finetune", folder / name / "finetune", settings, first, described))
    return runs


def in_order(runs: Iterable[Run], chosen: Sequence[Study]) -> list[Run]:
    """First the runs that answer a plan's primary question, and MAE's, seed by seed. Then the others, seed by seed."""
    primary = set().union(*(study.answers_first() for study in chosen))
    return sorted(
        runs, key=lambda run: (bool(primary) and run.described["variant"] not in primary, run.described["seed"])
    )


def _by_seed(study: Study, count: int) -> dict[int, list[Variant]]:
    """Seed -> the variants that have it, of the first `count` seeds of each."""
    found: dict[int, list[Variant]] = {}
    for variant in study.variants:
        for seed in study.seeds.get(variant.name, range(count))[:count]:
            found.setdefault(seed, []).append(variant)
    return dict(sorted(found.items()))


def _epochs(of_others: float, variant: Variant, scale: str) -> float:
    return round(variant.epochs.get(scale, 1.0) * of_others, 3)


def _common(args: argparse.Namespace) -> dict[str, Any]:
    return {"report_to": "none"} | ({"dataset_name": args.dataset_name} if args.dataset_name else {})


def _pretraining(study: Study, args: argparse.Namespace) -> dict[str, Any]:
    """Flags of run_pretrain that all variants have."""
    settings = {
        **_common(args),
        **(PRETRAIN_DENSE if study.is_dense else PRETRAIN[args.scale]),
        "save_strategy": "steps",
    }
    settings |= {"save_steps": 0.25, "save_total_limit": 1, "eval_strategy": "no"}
    if args.pretrain_dataset_name:
        settings["dataset_name"] = args.pretrain_dataset_name
    for name in ("num_train_epochs", "base_learning_rate"):
        if getattr(args, name) is not None:
            settings[name] = getattr(args, name)
    if args.scale in ("small", "medium") and not study.is_dense:
        settings |= {"label_column_name": args.label_column_name or "auto", **PROBES}
    if args.scale == "medium":
        settings.pop("diagnostics_steps", None)  # so that all variants are probed at the same epochs
    settings |= _parts(study)
    return settings | _as_settings(args.pretrain_flags)


def _parts(study: Study) -> dict[str, Any]:
    """Flags for what is trained on and what is evaluated, where no test image may be seen."""
    return {} if study.held_out is None else {"eval_split_name": "none", "train_val_split": study.held_out}


def _frozen(kind: str, study: Study, args: argparse.Namespace) -> dict[str, Any]:
    """Flags of an evaluation of frozen features, but for the seed."""
    settings = {**_common(args), **FROZEN[kind], **FROZEN_SAMPLES[args.scale], **_parts(study)}
    if args.label_column_name:
        settings["label_column_name"] = args.label_column_name
    if kind == "knn":
        settings.pop("report_to")  # a flag of training
        return settings
    return settings | _as_settings(args.probe_flags)


def _finetuning(study: Study, args: argparse.Namespace) -> dict[str, Any] | None:
    """Flags of run_finetune that all variants have; None: nothing is fine-tuned."""
    if study.task is None:
        return None
    settings = {**_common(args), "task": study.task, **FINETUNE[args.scale][study.task]}
    settings |= _as_settings(args.finetune_flags)
    if args.label_column_name:
        settings["label_column_name"] = args.label_column_name
    return settings


def paper_commands(study: Study, args: argparse.Namespace) -> list[list[str]]:
    """The accelerate commands of a study at the paper's scale, in their order."""
    launch = ["accelerate", "launch", "--multi_gpu", "--num_processes", str(args.num_gpus)]
    commands, output = [], args.output_dir / "paper" / study.name
    images = args.pretrain_dataset_name or (
        args.dataset_name if args.dataset_name and study.task in ("classification", None) else "ILSVRC/imagenet-1k"
    )
    for variant in study.variants:
        start = []
        if variant.changes is not None:
            words = [*launch, "run_pretrain.py", "--config", variant.recipe, "--dataset_name", images]
            words += ["--dataset_streaming", "--bf16", *_changes(variant, study)]
            commands.append([*words, "--output_dir", str(output / variant.name)])
            start = ["--model_name_or_path", str(output / variant.name)]
        if study.task is None:
            continue
        if variant.changes is None:
            start = ["--model_name_or_path", str(output / study.baseline.name), "--from_scratch"]
        words = [*launch, "run_finetune.py", "--config", FINETUNE_PAPER[study.task], *start, "--dataset_name"]
        words += [args.dataset_name or PAPER_DATA[study.task], *PAPER_FLAGS.get(study.task, ()), "--bf16"]
        commands.append([*words, "--output_dir", str(output / f"{variant.name}_{study.task}")])
        for kind in study.frozen:
            words = [*launch, "run_finetune.py", "--config", FROZEN_PAPER[kind]] if kind in FROZEN_PAPER else []
            words = words or ["python", "-m", "hf_mae_robust", "analyze", "knn", start[1]]
            words += [*(start if kind in FROZEN_PAPER else ()), "--dataset_name"]
            words += [args.dataset_name or PAPER_DATA["classification"]]
            end = str(output / f"{variant.name}_{kind}")
            more = ["--bf16", "--output_dir", end] if kind in FROZEN_PAPER else ["--output", f"{end}.json"]
            commands.append([*words, *more])
    # What is to start from scratch takes its sizes from the baseline, which has to be there.
    return sorted(commands, key=lambda words: "run_pretrain.py" not in words)


def _changes(variant: Variant, study: Study) -> list[str]:
    """Flags beside the recipe's."""
    if variant.recipe != Variant("", "").recipe:
        return []
    words = [
        word
        for name, value in {**(variant.changes or {}), **variant.by_scale.get("paper", {})}.items()
        for word in (f"--{name}", str(value).lower() if isinstance(value, bool) else str(value))
    ]
    if study.task is None:
        words += ["--num_train_epochs", f"{_epochs(100, variant, 'paper'):g}"]
    elif "paper" in variant.epochs:  # of the 800 of the baseline's recipe
        words += ["--num_train_epochs", f"{_epochs(800, variant, 'paper'):g}"]
    return words


def _results(runs: list[Run], kind: str) -> Results:
    found: Results = {}
    for run in runs:
        if run.kind == kind and (result := run.result()) is not None:
            found.setdefault(run.described["variant"], {})[run.described["seed"]] = result
    return found


def _circumstances(runs: list[Run]) -> dict[str, str]:
    """Where and with what the finished runs have trained."""
    finished = [result for run in runs if (result := run.result()) is not None]
    return {name: "; ".join(sorted({result[name] for result in finished})) for name in ("machine", "versions")}


def _planned(study: Study, args: argparse.Namespace) -> int:
    """How many runs a study has: where it has a plan, by that, even if `--seeds` asks for fewer."""
    seeds = max(map(len, study.seeds.values())) if study.plan else args.seeds
    return len(runs_of(study, argparse.Namespace(**vars(args) | {"seeds": seeds})))


def _hours(runs: list[Run]) -> str:
    results = [result for run in runs if (result := run.result()) is not None]
    hours = sum(result["metrics"].get("train_runtime", 0) for result in results) / 3600
    return f"{hours:.2f} h, added up over the runs"


def start(words: list[str]) -> None:
    """A command, until it ends. Raises UserError where it fails."""
    if shutil.which(words[0]) is None:
        raise UserError(f"--run needs the command {words[0]}: pip install {words[0]}.")
    if code := subprocess.run(words, check=False).returncode:
        raise UserError(f"A run ended with exit code {code}; its last lines say why. It was: {shlex.join(words)}")


def run_reproduce(args: argparse.Namespace) -> None:
    """Run the studies of the paper's tables and figures, and report them."""
    if args.scale == "paper":
        if "learning_rates" in args.studies:
            raise UserError("--scale paper is not for learning_rates: the recipes have the paper's. --scale medium.")
        for name in args.studies:
            commands = paper_commands(studies(NUM_BLOCKS["paper"])[name], args)
            for words in commands:
                print(shlex.join(words), flush=True)
            for words in commands if args.starts_runs else ():
                start(words)
        return
    args.seeds = SEEDS[args.scale] if args.seeds is None else args.seeds
    if args.seeds < 1 or (args.parallel is not None and args.parallel < 1):
        raise UserError(f"--seeds {args.seeds} --parallel {args.parallel}: at least 1.")
    chosen = []
    for name in args.studies:
        is_dense = studies(12)[name].is_dense
        if args.scale == "smoke" and (is_dense or args.dataset_name):
            raise UserError(f"--scale smoke is on scikit-learn's digits; {name} with a data set: --scale small.")
        if args.scale == "smoke" and studies(12)[name].frozen:
            raise UserError(f"--scale smoke is not for {name}, which needs labelled images: --scale small or medium.")
        if args.scale == "medium" and is_dense:
            raise UserError(f"--scale medium is not for {name}: --scale small.")
        if args.scale in ("small", "medium") and not args.dataset_name:
            raise UserError(f"--scale {args.scale} needs --dataset_name, such as CIFAR-10's.")
        chosen.append(studies(NUM_BLOCKS_DENSE if is_dense else NUM_BLOCKS[args.scale])[name])
    all_runs = {study.name: runs_of(study, args) for study in chosen}
    unique: dict[Path, Run] = {}
    for run in (run for runs in all_runs.values() for run in runs):
        unique.setdefault(run.folder, run)
        if run.after is not None:
            unique.setdefault(run.after.folder, run.after)
    for run in unique.values():
        run.after = run.after and unique[run.after.folder]
    ordered = in_order(unique.values(), chosen)
    devices = torch.cuda.device_count() or os.cpu_count() or 1
    failure = None
    if not args.report_only:
        try:
            StudyRunner(ordered, args.parallel or min(devices, 8)).go()
        except StudyError as error:
            failure = error
        except KeyboardInterrupt:
            print("\nStopped; the runs have saved. The same command resumes.", file=sys.stderr)
            raise SystemExit(EXIT_STOPPED) from None
    command = "python -m hf_mae_robust reproduce " + shlex.join(_given(args))
    for study in chosen:
        runs = all_runs[study.name]
        finished = sum(run.result() is not None for run in runs)
        results = {kind: _results(runs, kind) for kind in ("pretrain", "analyze", *FROZEN_KINDS, "finetune")}
        about = {
            "scale": args.scale
            if args.scale != "smoke"
            else "smoke: shows that the study runs, not which variant is better",
            "data": Path(args.dataset_name).name if args.dataset_name else "scikit-learn's digits",
            "runs": f"{finished} of {_planned(study, args)} finished",
            **_circumstances(runs),
            **({} if study.plan else {"training": _hours(runs)}),  # a plan's report has the cost by variant
        }
        write = write_plan_report if study.plan else write_rates_report if study.held_out else write_report
        path = write(study, results, args.output_dir / args.scale / "reports", command, about)
        print(f"{study.name}: {finished} of {len(runs)} runs; {path}")
    if failure is not None:
        raise UserError(str(failure)) from failure


def _given(args: argparse.Namespace) -> list[str]:
    """The words of the command, without folders of this machine."""
    words = [*args.studies, "--scale", args.scale]
    for name in ("num_train_epochs", "base_learning_rate", "seeds"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    for name in ("dataset_name", "pretrain_dataset_name"):
        if getattr(args, name):
            words += [f"--{name}", f"path/to/{Path(getattr(args, name)).name}"]
    for name in ("pretrain_flags", "finetune_flags", "probe_flags", "analyze_flags"):
        if getattr(args, name):
            words.append(f"--{name}={getattr(args, name)}")
    return words
