"""The README.md of a fine-tuned model: what it is, what it was trained on, how well it does, how to use it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

PIPELINES = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
# Result key, type of the metric on the Hub, name.
METRICS = {
    "classification": (("eval_accuracy", "accuracy", "Top-1"), ("eval_top5_accuracy", "accuracy", "Top-5")),
    "segmentation": (("eval_mean_iou", "mean_iou", "Mean IoU"), ("eval_mean_accuracy", "accuracy", "Mean accuracy")),
    "detection": (
        ("eval_box_ap", "mAP", "Box AP"),
        ("eval_box_ap50", "mAP", "Box AP50"),
        ("eval_mask_ap", "mAP", "Mask AP"),
        ("eval_mask_ap50", "mAP", "Mask AP50"),
    ),
}


def save_card(
    folder: str | Path,
    *,
    task: str,
    description: str,
    dataset_name: str,
    split: str,
    results: Mapping[str, Any],
    pictures: tuple[str, ...] = (),
) -> None:
    """Write `README.md` with metadata as the Hub reads them: library, pipeline, and the results as `model-index`.

    Args:
        description: the first line of the run. results: of `all_results.json`; what is missing in them is left out.
        split: of the evaluation. pictures: files in the folder to be shown.
    """
    folder, pipeline = Path(folder), PIPELINES[task]
    is_on_hub = not Path(dataset_name).exists()
    short = dataset_name if is_on_hub else Path(dataset_name).name
    found = [(name, kind, results[key]) for key, kind, name in METRICS[task] if key in results]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["hf_mae_robust", "masked-autoencoder"],
        datasets=[dataset_name] if is_on_hub else None,
        model_name=folder.resolve().name,
        eval_results=[
            EvalResult(
                task_type=pipeline,
                dataset_type=short,
                dataset_name=short,
                dataset_split=split,
                metric_type=kind,
                metric_name=name,
                metric_value=value,
            )
            for name, kind, value in found
        ]
        or None,
    )
    trust = ", trust_remote_code=True" if task == "detection" else ""
    table = "".join(f"| {name} | {value:.4f} |\n" for name, _, value in found)
    shown = "".join(f"\n![{name}]({name})\n" for name in pictures if (folder / name).exists())
    text = (
        f"---\n{data.to_yaml()}\n---\n\n# {folder.resolve().name}\n\n{description}\n\n"
        f"```python\nfrom transformers import pipeline\n\n"
        f'run = pipeline("{pipeline}", "path/to/this/folder"{trust})\nprint(run("path/to/image.jpg"))\n```\n'
    )
    if found:
        text += f"\n| {short} ({split}) | |\n|---|---|\n{table}"
    staged = folder / "README.md.part"
    staged.write_text(text + shown)
    staged.replace(folder / "README.md")
