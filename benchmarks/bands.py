r"""Does pre-training help on images of many bands, with which target, and are 16 bits worth it?

Three sets of small labelled images (13 bands of Sentinel-2, 10 of Landsat 8, 200 of AVIRIS), and nuclei in 16 bits.

    OMP_NUM_THREADS=1 python benchmarks/bands.py path/to/folder-of-the-sets --output_dir outputs/bands

The same command does what is left of a cut one: runs that have finished are kept. It writes bands.json and prints
Markdown; --report_only does this alone.

The plan, written before the first of these results. (Sizes, patch and mask ratio of
the recipes had been chosen by trials of a minute, one seed, which looked at held-out losses and nearest neighbours of
sentinel2-landuse and indian-pines. After some runs on a busy machine, whose results were thrown away, the steps were
halved to fit the time that there was.)

- Pre-training: the recipes multispectral_small and hyperspectral_small, the steps of SETS, the step per patch on, for
  each of the targets none, global_rgb (here: per band) and global_patch; seeds 0, 1, 2. No checkpoint is chosen by a
  result: the last weights count.
- What it is worth: (1) fine-tuning with the recipe's own settings, the steps of SETS; (2) a linear probe: scikit-
  learn's logistic regression on standardised frozen features; (3) nearest neighbours, k 20. Features are the mean of
  the patch tokens. Accuracy on the validation split, once, with the last weights.
- Against: the same model from scratch, with the same fine-tuning but for the layer decay, which is for pre-trained
  weights (1 instead of 0.75); frozen, the untrained model; and logistic regression on the mean of each band, and on
  means and log deviations.
- Primary comparison, on each set: fine-tuning from global_rgb, which is MAE's target, against from scratch, of the
  same seed: mean difference over three seeds and its deviation. Everything else is secondary: among nine comparisons
  of targets, and more of probes, one is the best by chance, and validation splits of 86 and 114 images have a
  standard error of 5 and 3 points by themselves.
- A second look with six times the steps (--times 6) on Sentinel-2 and Indian Pines was decided after these results,
  because 80 steps had hardly changed the features. It was not run to its end, and nothing of it is reported.
- Nuclei: pixels of a mask above 0, mean IoU. 16 bits by the path of bands; the same pictures with their upper 8 bits
  alone, as 8-bit pictures with the defaults (mean and deviation 0.5), and with mean and deviation of their own. Each is
  pre-trained and fine-tuned, seeds 0, 1, 2. Primary: 16 bits against 8 bits with the defaults.

Changed after seed 0, for all models alike: the learning rate of fine-tuning multispectral patches is 3e-3 instead of
1e-3, with which neither the pre-trained nor the new models were near convergence after 80 steps (0.807 and 0.798 on
landsat8-clouds; seed 0 was run again). The nuclei are not fine-tuned from scratch, for lack of time.
"""

import argparse
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hf_mae_robust.analysis.knn import knn_accuracy
from hf_mae_robust.analysis.plots import aligned
from hf_mae_robust.conversion.frozen import FrozenEncoder, load_encoder
from hf_mae_robust.conversion.pixels import read_processor
from hf_mae_robust.data.features import extract_features
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import EvaluationTransform
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.studies.runner import Run, StudyRunner

SEEDS = (0, 1, 2)
TARGETS = ("none", "global_rgb", "global_patch")
SCRATCH = "scratch"
# What every run has: the last weights count, and nothing is drawn or evaluated on the way.
PLAIN = {"eval_strategy": "no", "save_strategy": "no", "dataloader_num_workers": 0, "disable_tqdm": "true"}


@dataclass(frozen=True)
class BandSet:
    """A data set: its recipes, its configuration with labels, and steps of pre-training and fine-tuning."""

    recipe: str
    pretrain_steps: int
    finetune_steps: int
    labelled: str | None = None


SETS = {
    "sentinel2-landuse": BandSet("multispectral_small", 80, 80, "labelled"),
    "landsat8-clouds": BandSet("multispectral_small", 80, 80),
    "indian-pines": BandSet("hyperspectral_small", 80, 80),
}
NUCLEI = "hela-16bit"
NUCLEI_STEPS, NUCLEI_SEGMENTATION_STEPS = 60, 80
NUCLEI_INPUTS = {
    "16 bits": ("bits16", {}),
    "upper 8 bits, mean and deviation 0.5": ("bits8", {}),
    "upper 8 bits, their own mean and deviation": ("bits8", {"image_statistics": "auto"}),
}


def target_flags(target: str) -> dict[str, Any]:
    statistics = {"target_statistics": "auto"} if target == "global_patch" else {}
    return {"target_normalization": target, **statistics}


def classification_runs(data: Path, output: Path, name: str, seed: int) -> dict[str, tuple[Run, Run]]:
    """(pre-training, fine-tuning) by target; from scratch takes the form of the model from one of them."""
    band_set, runs = SETS[name], {}
    labelled = {} if band_set.labelled is None else {"dataset_config_name": band_set.labelled}
    common = {"dataset_name": str(data / name), "seed": seed, **PLAIN}
    finetune = {"config": f"finetune_{band_set.recipe}", **common, "max_steps": band_set.finetune_steps, **labelled}
    for target in TARGETS:
        settings = {"config": band_set.recipe, **common, "max_steps": band_set.pretrain_steps, **target_flags(target)}
        folder = output / name / f"{target}-{seed}"
        before = Run("pretrain", folder / "pretrain", settings)
        runs[target] = before, Run("finetune", folder / "finetune", finetune, before)
    before = runs["global_rgb"][0]
    from_scratch = {**finetune, "from_scratch": True, "layer_decay": 1.0}
    runs[SCRATCH] = before, Run("finetune", output / name / f"{SCRATCH}-{seed}" / "finetune", from_scratch, before)
    return runs


def frozen_accuracies(run: Run, location: DataLocation, untrained_seed: int | None) -> dict[str, float]:
    """Nearest neighbours and a linear probe on the mean of the patch tokens. untrained_seed: of new random weights."""
    encoder, pixels = load_encoder(str(run.output), "mean")
    if untrained_seed is not None:
        torch.manual_seed(untrained_seed)
        encoder = FrozenEncoder(type(encoder.model)(encoder.model.config), "mean")
    transform = EvaluationTransform(read_processor(str(run.output)))
    parts: list[torch.Tensor] = []
    for source in open_splits(location, "train", "validation"):
        images = source.read_as(pixels.band_form, pixels.num_channels)
        parts += extract_features(encoder, images, transform, pixels.num_channels, num_workers=0, shows_progress=False)
    return {"knn": knn_accuracy(*parts)["accuracy"], "probe": logistic_regression(*(part.numpy() for part in parts))}


def logistic_regression(x: np.ndarray, y: np.ndarray, x_val: np.ndarray, y_val: np.ndarray) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return float(model.fit(x, y).score(x_val, y_val))


def baselines(run: Run, location: DataLocation) -> dict[str, float]:
    """Of the numbers of each band alone: mean, and mean and log deviation."""
    _, pixels = load_encoder(str(run.output), "mean")
    transform = EvaluationTransform(read_processor(str(run.output)))

    def describe(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images.mean(dim=(2, 3)), images.std(dim=(2, 3)).clamp(min=1e-6).log()], dim=1)

    parts: list[np.ndarray] = []
    for source in open_splits(location, "train", "validation"):
        images = source.read_as(pixels.band_form, pixels.num_channels)
        found = extract_features(describe, images, transform, pixels.num_channels, num_workers=0, shows_progress=False)
        parts += [part.numpy() for part in found]
    x, y, x_val, y_val = parts
    num_bands = pixels.num_channels
    return {
        "majority": float(np.bincount(y_val).max() / len(y_val)),
        "means": logistic_regression(x[:, :num_bands], y, x_val[:, :num_bands], y_val),
        "means and deviations": logistic_regression(x, y, x_val, y_val),
        "images": len(y_val),
    }


def kept(path: Path, compute: Callable[..., Any], *given: Any) -> Any:
    """What a file of JSON holds, computed and written where it is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(compute(*given)) + "\n")
    return json.loads(path.read_text())


def classify(data: Path, output: Path, name: str, seed: int) -> None:
    """All runs of a set with one seed, and what is measured of their features."""
    runs = classification_runs(data, output, name, seed)
    unique = dict.fromkeys(run for pair in runs.values() for run in pair)
    StudyRunner(list(unique), parallel=1).go()
    location = DataLocation(
        dataset_name=str(data / name), dataset_config_name=SETS[name].labelled, label_column_name="label"
    )
    for target, (before, after) in runs.items():
        untrained = seed if target == SCRATCH else None
        kept(after.folder.parent / "frozen.json", frozen_accuracies, before, location, untrained)
    kept(output / name / "baselines.json", baselines, runs["none"][0], location)


def make_nuclei(source: Path, output: Path) -> None:
    """Parquet sets of the pictures in 16 bits and of their upper 8 bits, with maps of 0 and 1."""
    from datasets import Dataset, Features, load_dataset
    from datasets import Image as ImageFeature

    def png(pixels: np.ndarray) -> dict[str, Any]:
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        return {"bytes": content.getvalue(), "path": None}

    for split, rows in load_dataset(str(source)).items():
        pictures = [np.asarray(row["image"]).astype(np.uint16) for row in rows]
        maps = [png((np.asarray(row["mask"]) > 0).astype(np.uint8)) for row in rows]
        for bits, shift, dtype in (("bits16", 0, np.uint16), ("bits8", 8, np.uint8)):
            columns = {"image": [png((picture >> shift).astype(dtype)) for picture in pictures], "mask": maps}
            table = Dataset.from_dict(columns, features=Features({"image": ImageFeature(), "mask": ImageFeature()}))
            (output / bits).mkdir(parents=True, exist_ok=True)
            table.to_parquet(output / bits / f"{split}-00000-of-00001.parquet")


def nuclei_runs(output: Path, seed: int) -> dict[str, tuple[Run, Run]]:
    runs = {}
    for i, (name, (bits, flags)) in enumerate(NUCLEI_INPUTS.items()):
        common = {"dataset_name": str(output / "data" / bits), "seed": seed, **PLAIN}
        # Crops of 64 px at the scale of the files, as the segmentation has them.
        pretrain = {"config": "small_64px", **common, "max_steps": NUCLEI_STEPS, "crop_scale": [0.15, 0.5], **flags}
        pretrain |= {"vertical_flip": True, "rot90": True}
        pretrain |= {"config_overrides": "num_channels=1", "per_device_train_batch_size": 32}
        segment = {"config": "upernet_small", **common, "max_steps": NUCLEI_SEGMENTATION_STEPS, "image_size": 64}
        segment |= {"id2label": 2, "label_column_name": "mask", "photometric_distortion": False, "num_pictures": 1}
        folder = output / f"input{i}-{seed}"
        before = Run("pretrain", folder / "pretrain", pretrain)
        runs[name] = before, Run("finetune", folder / "finetune", segment, before)
    return runs


def segment(data: Path, output: Path, seed: int) -> None:
    if not (output / "data" / "bits8" / "validation-00000-of-00001.parquet").exists():
        make_nuclei(data / NUCLEI, output / "data")
    runs = nuclei_runs(output, seed)
    StudyRunner(list(dict.fromkeys(run for pair in runs.values() for run in pair)), parallel=1).go()


def spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3f} (1 seed)" if values else "-"
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def finished(runs: dict[str, tuple[Run, Run]]) -> Iterator[tuple[str, Run, Run, dict[str, Any]]]:
    for name, (before, after) in runs.items():
        if (result := after.result()) is not None:
            yield name, before, after, result["metrics"]


def report(data: Path, output: Path) -> None:
    """Everything that has finished: bands.json, and Markdown."""
    rows: list[dict[str, Any]] = []
    for name in SETS:
        for seed in SEEDS:
            for target, before, after, metrics in finished(classification_runs(data, output, name, seed)):
                row = {"set": name, "model": target, "seed": seed, "fine-tuned": metrics["eval_accuracy"]}
                row["seconds of fine-tuning"] = metrics["train_runtime"]
                frozen = after.folder.parent / "frozen.json"
                row |= json.loads(frozen.read_text()) if frozen.exists() else {}
                if target != SCRATCH:
                    found = before.result()["metrics"]  # type: ignore[index]  # fine-tuning comes after it
                    row |= {key: found[key] for key in ("eval_loss", "eval_loss_of_mean")}
                    row["seconds of pre-training"] = found["train_runtime"]
                rows.append(row)
    for seed in SEEDS:
        for name, before, _, metrics in finished(nuclei_runs(output / NUCLEI, seed)):
            row = {"set": NUCLEI, "model": name, "seed": seed, "mean IoU": metrics["eval_mean_iou"]}
            row["seconds of fine-tuning"] = metrics["train_runtime"]
            row["seconds of pre-training"] = before.result()["metrics"]["train_runtime"]  # type: ignore[index]
            rows.append(row)

    def values(**wanted: Any) -> list[dict[str, Any]]:
        return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]

    known = {name: path for name in SETS if (path := output / name / "baselines.json").exists()}
    found = {name: json.loads(path.read_text()) for name, path in known.items()}
    for name in SETS:
        measures = ("fine-tuned", "probe", "knn")
        table = [
            [
                model,
                *(
                    spread([row[measure] for row in values(set=name, model=model) if measure in row])
                    for measure in measures
                ),
            ]
            for model in (SCRATCH, *TARGETS)
        ]
        print(f"\n{name}: {found.get(name)}\n")
        print(aligned([name, "fine-tuned", "linear probe", "nearest neighbours"], table))
        pairs = [
            (mine["fine-tuned"] - others[0]["fine-tuned"])
            for mine in values(set=name, model="global_rgb")
            if (others := values(set=name, model=SCRATCH, seed=mine["seed"]))
        ]
        print(f"\nPrimary: global_rgb against from scratch, by seed: {spread(pairs)} ({[round(p, 3) for p in pairs]})")
    table = [[name, spread([row["mean IoU"] for row in values(set=NUCLEI, model=name)])] for name in NUCLEI_INPUTS]
    print("\n" + aligned(["nuclei", "mean IoU"], table))
    (output / "bands.json").write_text(json.dumps({"runs": rows, "baselines": found}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="Folder that holds the four sets.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/bands"))
    parser.add_argument("--sets", nargs="+", default=[*SETS, NUCLEI], choices=[*SETS, NUCLEI])
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, choices=SEEDS)
    parser.add_argument("--times", type=int, default=1, help="As many times the steps of the plan, on labelled sets.")
    parser.add_argument("--report_only", action="store_true")
    args = parser.parse_args()
    for name, band_set in SETS.items():
        steps = {"pretrain_steps": band_set.pretrain_steps, "finetune_steps": band_set.finetune_steps}
        SETS[name] = replace(band_set, **{kind: number * args.times for kind, number in steps.items()})
    for seed in args.seeds if not args.report_only else ():
        for name in args.sets:
            if name == NUCLEI:
                segment(args.data, args.output_dir / NUCLEI, seed)
            else:
                classify(args.data, args.output_dir, name, seed)
    report(args.data, args.output_dir)


if __name__ == "__main__":
    main()
